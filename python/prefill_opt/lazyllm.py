"""Prompts and decode steps that leave rows out of later layers until they are attended to (LazyLLM, arXiv:2407.14057).

A model compiled with ``-prune=lazyllm:...,aux=on`` computes in its later layers the rows that the last row attends
to most, in every call another choice: hidden states of the others wait in an auxiliary cache. No row is computed
twice in a layer. Lossy, but for ``keep=1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .chunking import _SELECTING, _TYPES, _tokens

_PAST, _PRESENT, _ROWS = "prefill.past.", "prefill.present.", "prefill.rows."
_STATE_TYPES = _TYPES | {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


class LazyLLM:
    """A context: a prompt, and what was generated after it or came later.

    Args:
        session: an ``onnxruntime.InferenceSession`` of a model compiled with ``-prune=lazyllm:...,aux=on``.

    Attributes:
        rows: tokens of the context so far.
        layers: the layers (from 1) after which rows are left out.

    Raises ValueError for another model, and for one with inputs that it has no value for.
    """

    def __init__(self, session):
        import onnxruntime

        self._session = session
        inputs = {i.name: i for i in session.get_inputs()}
        if _PAST + "ids" not in inputs:
            raise ValueError("the model revives no rows: compile it with -prune=lazyllm:aux=on")
        self._past = [name for name in inputs if name.startswith(_PAST)]
        self._given = set(inputs) - set(self._past)
        unknown = self._given - {"input_ids", "position_ids", "protected_rows", *_SELECTING}
        if unknown:
            raise ValueError(f"no value for the input {min(unknown)}")
        self._ids_type = _STATE_TYPES[inputs["input_ids"].type]
        self._outputs = [o.name for o in session.get_outputs()]
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._state = {}
        for name in self._past:
            # The only size that is not fixed is the number of rows: none yet.
            shape = [d if isinstance(d, int) else 0 for d in inputs[name].shape]
            self._state[name] = self._value(np.zeros(shape, _STATE_TYPES[inputs[name].type]))
        self.rows = 0
        self.layers = [int(n.removeprefix(_ROWS)) for n in self._outputs if n.startswith(_ROWS)]

    def _saved(self, what: str) -> np.ndarray:
        return self._state[_PAST + what].numpy()

    def _stage(self, layer: int) -> int | None:
        """The stage before `layer`, or None."""
        return max((stage for stage in self.layers if stage < layer), default=None)

    def computed(self, layer: int) -> np.ndarray:
        """int64: rows of the context that `layer` (from 1) has computed, in the order in which it did."""
        stage = self._stage(layer)
        return np.arange(self.rows) if stage is None else self._saved(f"rows.{stage}")

    def waiting(self, layer: int) -> np.ndarray:
        """int64, ascending: rows in the auxiliary cache behind `layer`, one of `layers`."""
        if layer not in self.layers:
            raise ValueError(f"layer {layer}: rows are left out after {', '.join(map(str, self.layers))}")
        return self._saved(f"waiting.{layer}")

    @property
    def state_bytes(self) -> dict[str, int]:
        """Bytes of the state: ``kv`` of all layers, ``aux``: hidden states of rows that wait, ``other``."""
        sizes = {"kv": 0, "aux": 0, "other": 0}
        for name in self._past:
            kind = name.removeprefix(_PAST).split(".")[0]
            sizes[{"key": "kv", "value": "kv", "hidden": "aux"}.get(kind, "other")] += self._saved(
                name.removeprefix(_PAST)
            ).nbytes
        return sizes

    def prompt(
        self, ids: Sequence[int], protected: Sequence[bool] | None = None, logits: Sequence[int] = (-1,)
    ) -> dict[str, np.ndarray]:
        """Begins the context with a prompt; as `step`. Raises ValueError if it has begun already."""
        if self.rows:
            raise ValueError(f"the context has {self.rows} rows already: make another LazyLLM, or step()")
        return self._run(_tokens(ids), protected, logits)

    def step(
        self, ids: int | Sequence[int], protected: Sequence[bool] | None = None, logits: Sequence[int] = (-1,)
    ) -> dict[str, np.ndarray]:
        """Appends one token to the context, or several; returns what the model gives, without the batch dimension.

        Args:
            ids: a token id or a list of them.
            protected: which of these rows must stay in every later call too, for models with ``-protect=system``.
            logits: numbers of the rows among `ids` whose logits are wanted (negative: from the end), for models
                that select them (``-logits=rows``, ``logits_to_keep``); others give those of the last one.

        ``logits`` [rows wanted, vocabulary]; ``prefill.rows.<layer>`` int64: rows of the context that the
        layers after `layer` saw in this call, ascending; ``prefill.computed.<layer>`` int64: those of them that
        they computed in it, new and revived ones, ascending.

        Raises ValueError for bad arguments, and a failure of the model as ONNX Runtime has it; the context is then
        what it was.
        """
        if not self.rows:
            raise ValueError("the context is empty: begin it with prompt()")
        return self._run(_tokens([ids] if np.ndim(ids) == 0 else ids, "the step"), protected, logits)

    def _run(self, ids, protected, logits) -> dict[str, np.ndarray]:
        count = len(ids)
        if protected is not None and "protected_rows" not in self._given:
            raise ValueError("protected: the model was not compiled with -protect=system")
        mask = np.zeros(count, bool) if protected is None else np.asarray(protected, bool)
        if mask.shape != (count,):
            raise ValueError(f"protected: expected one entry for each of the {count} tokens, got {mask.shape}")
        wanted = np.asarray(logits, np.int64)
        if wanted.ndim != 1 or (wanted < -count).any() or (wanted >= count).any():
            raise ValueError(f"logits: expected numbers of rows from {-count} to {count - 1}, got {logits}")
        selecting = self._given & set(_SELECTING)
        if not selecting and list(wanted) not in ([-1], [count - 1]):
            raise ValueError("logits: the model gives those of the last row; compile it with -logits=rows")
        feeds = {
            "input_ids": ids.astype(self._ids_type)[None],
            "position_ids": self.rows + np.arange(count)[None],
            "protected_rows": mask[None],
        } | dict.fromkeys(selecting, wanted)
        values = {name: self._value(value) for name, value in feeds.items() if name in self._given}
        found = dict(
            zip(self._outputs, self._session.run_with_ort_values(self._outputs, values | self._state), strict=True)
        )
        held = {layer: len(self._saved(f"rows.{layer}")) for layer in self.layers}
        self._state = {name: found.pop(_PRESENT + name.removeprefix(_PAST)) for name in self._past}
        self.rows += count
        result = {name: value.numpy()[0] for name, value in found.items()}
        for layer in self.layers:
            result[f"prefill.computed.{layer}"] = self._saved(f"rows.{layer}")[held[layer] :]
        return result

    def generate(self, first: int, count: int) -> list[int]:
        """Greedy decoding: `count` tokens after `first`, which is not in the context yet (the prompt's best one)."""
        tokens = []
        for _ in range(count):
            first = int(self.step(first)["logits"][-1].argmax())
            tokens.append(first)
        return tokens
