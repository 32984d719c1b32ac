"""Contexts that are encoded independently of one another (APE, arXiv:2502.05431).

A model compiled with ``-parallel-encode=ape`` encodes a prefix, every context behind this prefix alone, and then
a query that sees all of them. What a context becomes does not depend on the others, so that it can be kept in a
`ContextStore` and used again in another order, with other contexts and for another query. Lossy: contexts do not
see one another, and their keys are weighed by a softmax of their own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from .chunking import Cache, _tokens, chunk_size, run_rows


class ContextStore:
    """Keys and values of prefixes and of contexts behind them, by their content.

    An entry is found by the SHA-256 of the model (operators and weights, and how it was compiled), the rows of a
    chunk, the prefix's tokens and the context's: nothing is taken for another one's. A store may serve several
    models. Whoever can ask it learns by the time it takes whether somebody else's context is in it: give every
    tenant a `salt` of its own.

    Args:
        max_bytes: most bytes of keys and values; what was used least recently goes. None: no bound.
        salt: part of every key.

    Attributes:
        hits, misses: how often an entry was there, and was not.
        nbytes: of all keys and values.
    """

    def __init__(self, max_bytes: int | None = None, salt: bytes = b""):
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"max_bytes {max_bytes}: expected a number from 0 on")
        self.max_bytes = max_bytes
        self.salt = salt
        self.hits = self.misses = self.nbytes = 0
        self._entries: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, model: str, chunk: int, prefix: np.ndarray, context: np.ndarray | None) -> str:
        """The key of a context behind a prefix, or of the prefix itself (None)."""
        digest = hashlib.sha256()
        parts = [self.salt, model.encode(), str(chunk).encode(), prefix.astype("<i8").tobytes()]
        parts += [] if context is None else [context.astype("<i8").tobytes()]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """Arrays ``[heads, tokens, d]`` by output name, not to be written to; None if they are not there."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keeps a copy of `arrays`; what does not fit at all is not kept."""
        size = sum(array.nbytes for array in arrays.values())
        if key in self._entries or (self.max_bytes is not None and size > self.max_bytes):
            return
        copies = {name: array.copy() for name, array in arrays.items()}
        for copy in copies.values():
            copy.flags.writeable = False
        self._entries[key] = copies
        self.nbytes += size
        while self.max_bytes is not None and self.nbytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= sum(array.nbytes for array in oldest.values())

    def clear(self) -> None:
        """Drops all entries."""
        self._entries.clear()
        self.nbytes = 0


class ParallelPrompt:
    """A query behind contexts that were encoded independently; what `parallel_encode` returns.

    Attributes:
        outputs: of the query's rows, or of those of the last `step`, without the batch dimension: ``logits``
            ``[rows, vocabulary]`` (of the last row, or of those asked for, where the model selects them) and what
            else the model gives.
        cache: rows of the contexts, then those of the prefix, then the query's.
    """

    def __init__(self, cache: Cache, lengths: list[int], prefix: int, rows: int, chunk: int):
        self.cache = cache
        self._rows = prefix + rows
        self._chunk = chunk
        self._bounds = np.cumsum([0, *lengths])
        self._slot, self._prefix = int(self._bounds[-1]), prefix
        self._held = prefix
        self._shift = max(lengths, default=0)
        self.outputs: dict[str, np.ndarray] = {}

    @property
    def position(self) -> int:
        """Position of the next row."""
        return self._held + self._shift

    def context(self, number: int) -> dict[str, np.ndarray]:
        """Keys and values of a context by output name, ``[heads, tokens, d]``, without a copy."""
        begin, end = self._bounds[number], self._bounds[number + 1]
        return self.cache.view(int(begin), int(end - begin))

    def prefix(self) -> dict[str, np.ndarray]:
        """Those of the prefix."""
        return self.cache.view(self._slot, self._prefix)

    def query(self) -> dict[str, np.ndarray]:
        """Those of the query's rows and of all rows after them."""
        return self.cache.view(self._slot + self._prefix, self._held - self._prefix)

    def step(self, ids: Sequence[int], logits: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Computes the next rows, which see all contexts, the prefix and the rows before them.

        Args:
            ids: their tokens.
            logits: where the model selects them, numbers of the rows (ascending) whose logits are wanted; None: the
                last one's.

        Returns `outputs`. Raises ValueError for no rows, and for more than were made room for.
        """
        rows = _tokens(ids, "the next rows")
        room = self._rows - self._held
        if len(rows) > room:
            raise ValueError(f"{len(rows)} more rows, and room for {room}: give parallel_encode new_tokens")
        contexts = (0, self._slot)
        wanted = True if logits is None else np.asarray(logits, np.int64)
        where = dict(slot=self._slot, held=self._held, contexts=contexts, shift=self._shift, logits=wanted)
        self.outputs = run_rows(self.cache, rows, self._chunk, **where)
        self._held += len(rows)
        return self.outputs

    def generate(self, count: int) -> list[int]:
        """The `count` most likely tokens after the query, one by one. All but the last become rows."""
        tokens: list[int] = []
        for _ in range(count):
            if tokens:
                self.step(tokens[-1:])
            tokens.append(int(self.outputs["logits"][-1].argmax()))
        return tokens


def _check_positions(lengths: list[int], prefix: int, rows: int, positions: int) -> None:
    """Raises ValueError where a row would stand past the model's last position."""
    for i, length in enumerate(lengths):
        if prefix + length > positions:
            raise ValueError(
                f"context {i} has {length} tokens and ends, behind a prefix of {prefix}, at position "
                f"{prefix + length - 1}: the model has {positions} positions"
            )
    last = prefix + max(lengths, default=0) + rows - 1
    if last >= positions:
        raise ValueError(
            f"the query ends at position {last} (behind the prefix and the longest context; with new_tokens): "
            f"the model has {positions} positions"
        )


def _encode(cache: Cache, ids: np.ndarray, chunk: int, slot: int, held: int) -> dict[str, np.ndarray]:
    """Keys and values of rows behind `held` ones, by output name: views of the cache."""
    run_rows(cache, ids, chunk, keep="last", slot=slot, held=held, logits=False)
    return cache.view(slot + held, len(ids))


def parallel_encode(
    session,
    prefix: Sequence[int],
    contexts: Sequence[Sequence[int]],
    query: Sequence[int],
    store: ContextStore | None = None,
    chunk: int | None = None,
    new_tokens: int = 0,
    max_positions: int | None = None,
    logits: Sequence[int] | None = None,
) -> ParallelPrompt:
    """Encodes contexts independently of one another, and a query that sees all of them.

    Args:
        session: of a model compiled with ``-parallel-encode=ape``.
        prefix: token ids that stand before every context, at least one (the first token of a prompt draws much
            attention; without it every context would have such a token of its own).
        contexts: token ids of each; none at all is an ordinary prompt.
        query: token ids behind them. Its first row stands one position behind the longest context.
        store: where encoded contexts (and the prefix) are looked for and kept.
        chunk: rows of a chunk; None: as compiled.
        new_tokens: rows to make room for after the query, for `ParallelPrompt.step` and `.generate`.
        max_positions: positions that the model knows, where the compiled model does not say (rotary tables that
            it computes have no end).
        logits: as of `ParallelPrompt.step`, for the query.

    Returns a `ParallelPrompt`. Raises ValueError for a model that was not compiled for it, for an empty prefix,
    context or query, and for rows past the model's last position.
    """
    known = session.get_modelmeta().custom_metadata_map
    if "prefill.parallel-encode" not in known:
        raise ValueError("the model takes no contexts: compile it with -parallel-encode=ape")
    chunk = chunk_size(session) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk {chunk}: expected at least one row")
    if new_tokens < 0:
        raise ValueError(f"new_tokens {new_tokens}: expected a number from 0 on")
    first = _tokens(prefix, "the prefix")
    documents = [_tokens(context, f"context {i}") for i, context in enumerate(contexts)]
    asked = _tokens(query, "the query")
    lengths = [len(document) for document in documents]
    limits = [int(known["prefill.positions"])] if "prefill.positions" in known else []
    limits += [] if max_positions is None else [max_positions]
    if limits:
        _check_positions(lengths, len(first), len(asked) + new_tokens, min(limits))

    # Contexts first, then the prefix and what comes behind it: first every context that is not in the store, one
    # after the other, and then the query.
    slot, behind = sum(lengths), max(len(asked) + new_tokens, *lengths, 0)
    cache = Cache(session, slot + len(first) + behind)
    model = known.get("prefill.model", "") + known["prefill.parallel-encode"]
    begin = slot
    for document in (None, *documents):
        key = store.key(model, chunk, first, document) if store is not None else ""
        entry = store.get(key) if store is not None else None
        ids, held = (first, 0) if document is None else (document, len(first))
        found = _encode(cache, ids, chunk, slot, held) if entry is None else entry
        if store is not None and entry is None:
            store.put(key, found)
        for name, array in found.items():
            cache.arrays[name][0, :, begin : begin + len(ids)] = array
        begin = 0 if document is None else begin + len(ids)
    prompt = ParallelPrompt(cache, lengths, len(first), len(asked) + new_tokens, chunk)
    prompt.step(asked, logits)
    return prompt
