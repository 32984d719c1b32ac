"""Prompts in chunks, alone and beside requests that generate (SARATHI, arXiv:2308.16369).

A model compiled with ``-chunk`` computes some rows of one or more requests a call. The keys and values
of their earlier rows are in a `Cache`: the model appends to it in place, so that a chunk costs its own
rows and the attention to what is before them, and memory grows with the cache alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .hosting import session as open_session
from .packing import _one_axis
from .schedule import Scheduler

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SELECTING = ("logits_to_keep", "logits_rows")
_KEPT = "prefill.kept."


def _present_of(past: str) -> str:
    """The output whose value an input of a cache takes in the next call."""
    if past.startswith("past_key_values."):
        return "present." + past.removeprefix("past_key_values.")
    if past.startswith("input.past"):
        return "output.past" + past.removeprefix("input.past")
    return past.removeprefix("past.")


def _caches(session) -> list[tuple]:
    """(input, output) of every part of the model's cache."""
    outputs = {o.name: o for o in session.get_outputs()}
    pasts = [i for i in session.get_inputs() if "past" in i.name]
    if not pasts or any(_present_of(i.name) not in outputs for i in pasts):
        raise ValueError("the model has no KV cache: compile it with -chunk=512")
    return [(i, outputs[_present_of(i.name)]) for i in pasts]


def chunk_size(session) -> int:
    """Rows of a chunk that the model was compiled for (``-chunk=512``); 512 if it does not say."""
    return int(session.get_modelmeta().custom_metadata_map.get("prefill.chunk", 512))


def _whole(session) -> None:
    """Refuses a model that prunes its cache, for runners that do not tell it the parts of a prompt."""
    if "prompt_parts" in {i.name for i in session.get_inputs()}:
        raise ValueError("the model prunes its cache (-prune=quickprefill): use run_quickprefill")
    if "prefill.past.ids" in {i.name for i in session.get_inputs()}:
        raise ValueError("the model revives rows (-prune=lazyllm:aux=on): use LazyLLM")


def _tokens(prompt: Sequence[int], what: str = "the prompt") -> np.ndarray:
    ids = np.asarray(prompt)
    if ids.ndim != 1:
        raise ValueError(f"{what}: expected a list of token ids, got {ids.ndim} dimensions")
    if not len(ids):
        raise ValueError(f"{what} is empty: there is no row to compute")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{what}: expected integers, got {ids.dtype}")
    return ids.astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """The next rows of a request: `ids` follow the `held` tokens whose keys are in the cache, from
    row `slot` of it on. `logits`: whether those of the last row are wanted, where the model selects, or
    the numbers of the rows (in `ids`) of which they are. With ``-parallel-encode``, `contexts`: first row
    of the cache and number of the contexts' keys, and `shift`: how many positions the rows stand behind
    the held ones.

    For models with ``-prune=quickprefill``: `first` is the number of the first row in its prompt (None:
    `held`, as nothing was pruned), `follow` how many rows of the prompt follow these (0: none of these is
    pruned), `protected` (bool [rows]) which ones the input ``protected_rows`` marks (None: none). With ``decay=``
    `held` is int64 [layers], as many as each layer's cache has."""

    ids: np.ndarray
    slot: int = 0
    held: int | np.ndarray = 0
    logits: bool | np.ndarray = True
    contexts: tuple[int, int] = (0, 0)
    shift: int = 0
    first: int | None = None
    follow: int = 0
    protected: np.ndarray | None = None

    @property
    def position(self) -> int:
        """Number of the first row in its prompt."""
        return self.held + self.shift if self.first is None else self.first

    @property
    def wanted(self) -> np.ndarray:
        """Numbers of the rows whose logits are wanted."""
        if isinstance(self.logits, np.ndarray):
            return self.logits
        return np.array([len(self.ids) - 1] if self.logits else [], np.int64)


class Cache:
    """Keys and values of requests, for a model compiled with ``-chunk``.

    Args:
        session: an ``onnxruntime.InferenceSession`` of the compiled model.
        rows: tokens that it holds, of all requests together. Memory is taken as rows are written.

    Attributes:
        arrays: by output name, ``[1, heads, rows, d]``; written in place by `step`.
        layers: how many have lengths of their own (``decay=``); None: there is one length.
    """

    def __init__(self, session, rows: int):
        if rows < 1:
            raise ValueError(f"a cache of {rows} rows: expected at least one")
        _one_axis(session)
        names = {i.name for i in session.get_inputs()}
        if not {"segment_starts", "cache_slots"} <= names:
            _caches(session)  # says so if there is none at all
            raise ValueError("the model has a KV cache of its own, which holds one request: use run_chunked")
        own = {"input_ids", "segment_starts", "cache_slots", "context_slots", "position_shifts", "position_ids"}
        own |= {"prompt_parts", "protected_rows"}
        known = own | set(_SELECTING)
        self._selecting = names & set(_SELECTING)
        self._given = names & own
        self._session = session
        self.rows = rows
        self.arrays: dict[str, np.ndarray] = {}
        self._bound: list[tuple[str, str]] = []
        for past, present in _caches(session):
            heads, width = past.shape[1], past.shape[3]
            if past.type not in _TYPES:
                raise ValueError(f"the input {past.name}: no array of {past.type}")
            self.arrays[present.name] = np.zeros((1, heads, rows, width), _TYPES[past.type])
            self._bound.append((past.name, present.name))
            known.add(past.name)
        if names - known:
            raise ValueError(f"no value for the input {min(names - known)}")
        self._outputs = [o.name for o in session.get_outputs() if o.name not in self.arrays]
        slots = next(i.shape for i in session.get_inputs() if i.name == "cache_slots")
        self.layers: int | None = slots[0] if len(slots) == 3 else None

    def _slots(self, work: Sequence[Rows]) -> np.ndarray:
        """``cache_slots``: [requests, 2], or [layers, requests, 2]."""
        if self.layers is None:
            return np.array([[w.slot, w.held] for w in work], np.int64)
        held = [np.broadcast_to(w.held, self.layers) for w in work]
        return np.stack([np.stack([np.full(self.layers, w.slot), h], -1) for w, h in zip(work, held, strict=True)], 1)

    def step(self, work: Sequence[Rows]) -> list[dict[str, np.ndarray]]:
        """Computes rows of several requests; returns the outputs but the cache, request by request.

        ``[1, rows, n]`` becomes ``[rows of the request, n]``. Where the model selects logits
        (``logits_to_keep``, ``logits_rows``), ``logits`` is that of the last row, ``[1, n]``, of the
        rows asked for, or ``[0, n]`` if none was wanted. Outputs ``prefill.kept.<layer>`` become numbers of
        rows of the prompt. Raises onnxruntime's InvalidArgument, with the kernel's
        message, for slots that overlap or do not fit.
        """
        counts = [len(w.ids) for w in work]
        starts = np.cumsum([0, *counts]).astype(np.int64)
        feeds = {
            "input_ids": np.concatenate([w.ids for w in work])[None],
            "segment_starts": starts,
            "cache_slots": self._slots(work),
            "context_slots": np.array([w.contexts for w in work], np.int64),
            "position_shifts": np.array([w.shift for w in work], np.int64),
            "position_ids": np.concatenate([w.position + np.arange(len(w.ids)) for w in work])[None],
            "prompt_parts": np.array([[w.position, w.follow] for w in work], np.int64),
            "protected_rows": np.concatenate(
                [np.zeros(len(w.ids), bool) if w.protected is None else w.protected for w in work]
            )[None],
        }
        feeds = {name: value for name, value in feeds.items() if name in self._given}
        wanted = [w.wanted for w in work]
        chosen = np.cumsum([0, *map(len, wanted)])
        for name in self._selecting:
            feeds[name] = np.concatenate([s + w for s, w in zip(starts[:-1], wanted, strict=True)])
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for past, present in self._bound:
            array = self.arrays[present]
            place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        results: list[dict[str, np.ndarray]] = [{} for _ in work]
        for output, value in zip(binding.get_outputs()[len(self._bound) :], self._outputs, strict=True):
            name, value = value, output.numpy()
            for i, result in enumerate(results):
                rows = slice(starts[i], starts[i + 1])
                if name.startswith(_KEPT):
                    kept = value[0, np.searchsorted(value[0], starts[i]) : np.searchsorted(value[0], starts[i + 1])]
                    result[name] = kept - starts[i] + work[i].position
                    continue
                if name == "logits" and self._selecting:
                    rows = slice(chosen[i], chosen[i + 1])
                result[name] = value[0, :, rows] if value.ndim == 4 else value[0, rows]
        return results

    def view(self, slot: int, count: int | np.ndarray) -> dict[str, np.ndarray]:
        """Rows [slot, slot + count) by output name, ``[heads, count, d]``, without a copy.

        `count` is int64 [layers] where layers have lengths of their own.
        """
        counts = [count] * len(self.arrays)
        if self.layers is not None:  # keys and values of one layer after the other
            counts = np.repeat(np.broadcast_to(count, self.layers), 2)
        return {name: a[0, :, slot : slot + n] for (name, a), n in zip(self.arrays.items(), counts, strict=True)}


def _joined(parts: list[dict[str, np.ndarray]], names: Sequence[str], last: set[str]) -> dict[str, np.ndarray]:
    """Outputs of all chunks as those of the whole prompt; of `last` only the last chunk's."""
    result = {}
    for name in names:
        values = [p[name] for p in (parts[-1:] if name in last else parts)]
        result[name] = values[0] if len(values) == 1 else np.concatenate(values, axis=values[0].ndim - 2)
    return result


def run_rows(cache: Cache, ids: np.ndarray, chunk: int, keep: str = "all", **where) -> dict[str, np.ndarray]:
    """The outputs but the cache for rows `ids` of a request, computed chunk by chunk.

    Args:
        cache: gets their keys and values.
        chunk: rows of a chunk.
        keep: as of `run_chunked`.
        where: of `Rows` for the first chunk; ``logits=False`` where no row's are wanted, or the numbers of the
            rows whose are, ascending.
    """
    parts: list[dict[str, np.ndarray]] = []
    held, logits = where.pop("held", 0), where.pop("logits", True)
    for begin in range(0, len(ids), chunk):
        if keep == "last":
            parts.clear()
        end = begin + chunk
        wanted = logits[(logits >= begin) & (logits < end)] - begin if isinstance(logits, np.ndarray) else logits
        if wanted is True:
            wanted = end >= len(ids)
        parts += cache.step([Rows(ids[begin:end], held=held + begin, logits=wanted, **where)])
    last = cache._selecting and not isinstance(logits, np.ndarray)
    return _joined(parts, cache._outputs, {"logits"} if last else set())


def run_chunked(
    session, prompt: Sequence[int], chunk: int | None = None, capacity: int | None = None, keep: str = "all"
) -> dict[str, np.ndarray]:
    """Runs a prompt chunk by chunk; returns what the whole prompt gives, without the batch dimension.

    Args:
        session: of a model compiled with ``-chunk``, or of an export with inputs ``past_key_values.*``.
        prompt: token ids.
        chunk: rows of a chunk; the last one has what is left. None: as compiled (`chunk_size`).
        capacity: rows of the cache; None: those of the prompt.
        keep: "all" rows of outputs that have a row for every token, or the "last" chunk's only, so that
            memory does not grow with them. Selected logits are those of the prompt's last row.

    Caches are ``[heads, tokens, d]``, views of the memory that the model appended to. Raises ValueError
    for an empty prompt, a chunk below 1, a prompt longer than `capacity`, and a model without a cache.
    """
    _whole(session)
    ids = _tokens(prompt)
    if keep not in ("all", "last"):
        raise ValueError(f"keep '{keep}': expected all or last")
    chunk = chunk_size(session) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk {chunk}: expected at least one row")
    capacity = len(ids) if capacity is None else capacity
    if len(ids) > capacity:
        raise ValueError(f"the prompt has {len(ids)} tokens, more than the capacity {capacity}")
    if "cache_slots" not in {i.name for i in session.get_inputs()}:
        return _run_with_own_cache(session, ids, chunk, keep)
    cache = Cache(session, capacity)
    return run_rows(cache, ids, chunk, keep) | cache.view(0, len(ids))


def _run_with_own_cache(session, ids: np.ndarray, chunk: int, keep: str) -> dict[str, np.ndarray]:
    """The same for an export that has a cache: what it returns is its next input."""
    _one_axis(session)
    caches = _caches(session)
    inputs = {i.name for i in session.get_inputs()}
    pasts = {past.name for past, _ in caches}
    known = {"input_ids", "attention_mask", "position_ids", "logits_to_keep", *pasts}
    if inputs - known:
        raise ValueError(f"no value for the input {min(inputs - known)}")
    names = [o.name for o in session.get_outputs()]
    held: dict[str, np.ndarray] = {}
    for past, _ in caches:
        sizes = [str(past.shape[axis]) for axis in (1, 3)] if len(past.shape) == 4 else [""]
        if past.type not in _TYPES or not all(size.isdigit() for size in sizes):
            raise ValueError(
                f"the input {past.name}: expected [batch, heads, rows, width] of float32 or float16 with the "
                f"numbers of heads and width, got {past.shape} of {past.type}"
            )
        heads, width = map(int, sizes)
        held[past.name] = np.zeros((1, heads, 0, width), _TYPES[past.type])
    parts: list[dict[str, np.ndarray]] = []
    for begin in range(0, len(ids), chunk):
        end = min(begin + chunk, len(ids))
        feeds = {
            "input_ids": ids[None, begin:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end)[None],
            "logits_to_keep": np.array([end - begin - 1]),
        } | held
        values = dict(zip(names, session.run(None, {n: v for n, v in feeds.items() if n in inputs}), strict=True))
        held = {past.name: values.pop(present.name) for past, present in caches}
        if keep == "last":
            parts.clear()
        parts.append({name: value[0] for name, value in values.items()})
    last = {"logits"} if "logits_to_keep" in inputs else set()
    rest = [n for n in names if n in parts[0]]
    return _joined(parts, rest, last) | {present.name: held[past.name][0] for past, present in caches}


@dataclass
class Request:
    """A prompt and what it generates.

    Attributes:
        prompt: int64 [n], its tokens.
        limit: tokens to generate.
        generated: tokens so far.
        logits: float [1, vocabulary] of each of them.
        computed: tokens whose keys are in the cache.
        cancelled: set it to end the request; its rows of the cache are free from the next batch on.
    """

    prompt: np.ndarray
    limit: int
    generated: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    computed: int = 0
    cancelled: bool = False
    slot: int | None = None

    @property
    def done(self) -> bool:
        return self.cancelled or len(self.generated) >= self.limit


class HybridBatch:
    """Requests of one compiled model: chunks of prompts beside rows of those that generate.

    Args:
        directory: a folder written with ``-chunk``; its library's `Scheduler` decides.
        capacity: most tokens of a request, prompt and generated ones.
        requests: most requests at a time, `budget` if that is less; the cache has ``requests * capacity`` rows.
        budget: most rows of a batch; None: what ``-chunk`` said.
        options: of `prefill_opt.session`, e.g. ``intra_op_num_threads=2``.
    """

    def __init__(
        self, directory: str | os.PathLike, capacity: int, requests: int = 8, budget: int | None = None, **options
    ):
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: expected at least one token")
        ready = open_session(directory, **options)
        _whole(ready)
        budget = chunk_size(ready) if budget is None else budget
        self.scheduler = Scheduler(directory, budget, min(requests, budget) if budget > 0 else requests)
        self.cache = Cache(ready, self.scheduler.max_requests * capacity)
        self.capacity = capacity
        self.requests: list[Request] = []
        self._free = [i * capacity for i in reversed(range(self.scheduler.max_requests))]

    def add(self, prompt: Sequence[int], new_tokens: int = 1) -> Request:
        """A request for the `new_tokens` most likely tokens after `prompt`, one by one."""
        what = f"request {len(self.requests)}"
        ids = _tokens(prompt, what)
        if new_tokens < 1:
            raise ValueError(f"{what}: expected at least one new token, got {new_tokens}")
        if len(ids) + new_tokens - 1 > self.capacity:
            raise ValueError(
                f"{what} needs {len(ids) + new_tokens - 1} rows of the cache, more than the capacity {self.capacity}"
            )
        self.requests.append(Request(ids, new_tokens))
        return self.requests[-1]

    def step(self) -> int:
        """Runs the next batch; returns its rows, 0 when every request is done."""
        for request in self.requests:
            if request.done and request.slot is not None:
                self._free.append(request.slot)
                request.slot = None
        counts = self.scheduler.next([(len(r.prompt), min(r.computed, len(r.prompt)), r.done) for r in self.requests])
        work: list[Rows] = []
        chosen = [(r, n) for r, n in zip(self.requests, counts, strict=True) if n]
        for request, count in chosen:
            if request.slot is None:
                request.slot = self._free.pop()
            tokens = request.prompt[request.computed : request.computed + count]
            if request.generated:
                tokens = np.array(request.generated[-1:], np.int64)
            ends = request.computed + count >= len(request.prompt)
            work.append(Rows(tokens, request.slot, request.computed, ends))
        if not work:
            return 0
        for (request, count), rows, result in zip(chosen, work, self.cache.step(work), strict=True):
            request.computed += count
            if rows.logits:
                request.logits.append(result["logits"][-1:].copy())
                request.generated.append(int(result["logits"][-1].argmax()))
        return sum(counts)

    def run(self) -> list[int]:
        """Runs batches until every request is done; returns their rows."""
        batches = []
        while rows := self.step():
            batches.append(rows)
        return batches
