"""Several prompts in one sequence: the plan, and running a packed model (Prepacking, arXiv:2404.09529).

A model compiled with ``-pack`` takes ``input_ids [1, rows]`` and ``segment_starts [prompts + 1]``: where
each prompt begins, and the end. There are no padding rows. `pack` decides which prompts share a run; it
is the C library's (runtime/include/prefill/pack.h), which is at hand without a model and without ONNX
Runtime.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import library

_ALGORITHMS = {"ffd": 0, "exact": 1}
_Numbers = ctypes.POINTER(ctypes.c_int64)


class _Options(ctypes.Structure):
    _fields_ = [("algorithm", ctypes.c_int32), ("capacity", ctypes.c_int64), ("min_gain", ctypes.c_double)]


class _Result(ctypes.Structure):
    _fields_ = [("prompts", _Numbers), ("starts", _Numbers), ("packs", ctypes.c_size_t), ("gain", ctypes.c_double)]


class _Inputs(ctypes.Structure):
    _fields_ = [(name, _Numbers) for name in ("input_ids", "segment_starts", "position_ids", "last_rows")]


@dataclass(frozen=True)
class Pack:
    """Prompts that run as one sequence.

    Attributes:
        prompts: their numbers in the list given to `pack`, in the order of their rows.
        ids: int64 [1, rows], the tokens of all.
        starts: int64 [len(prompts) + 1], row at which each begins, and the number of rows.
        positions: int64 [1, rows], position ids, beginning anew in every prompt.
        last_rows: int64 [len(prompts)], the last row of every prompt.
    """

    prompts: tuple[int, ...]
    ids: np.ndarray
    starts: np.ndarray
    positions: np.ndarray
    last_rows: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What `pack` decided: the packs, and rows of a padded batch per row of theirs."""

    packs: tuple[Pack, ...]
    gain: float


def _numbers(array: np.ndarray):
    return array.ctypes.data_as(_Numbers)


def _plan(lengths: np.ndarray, options: _Options) -> tuple[list[list[int]], float]:
    """Prompt numbers of every pack, and the gain."""
    prompts = np.zeros(len(lengths), np.int64)
    starts = np.zeros(len(lengths) + 1, np.int64)
    result = _Result(_numbers(prompts), _numbers(starts), 0, 0.0)
    library.call_host("prefill_pack_plan", _numbers(lengths), len(lengths), options, result)
    bounds = starts[: result.packs + 1]
    packs = [prompts[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return packs, result.gain


def _fill(arrays: list[np.ndarray], lengths: np.ndarray, items: list[int]) -> Pack:
    """The inputs of the pack of prompts `items`."""
    rows = int(lengths[items].sum())
    prompts = np.array(items, np.int64)
    ids, positions = np.empty((1, rows), np.int64), np.empty((1, rows), np.int64)
    starts, last = np.empty(len(items) + 1, np.int64), np.empty(len(items), np.int64)
    tokens = (_Numbers * len(arrays))(*(_numbers(a) for a in arrays))
    inputs = _Inputs(*(_numbers(a) for a in (ids, starts, positions, last)))
    library.call_host(
        "prefill_pack_fill", tokens, _numbers(lengths), _numbers(prompts), len(items), inputs
    )
    return Pack(tuple(items), ids, starts, positions, last)


def pack(
    prompts: Sequence[Sequence[int]],
    capacity: int | None = None,
    algorithm: str = "ffd",
    min_gain: float = 1.05,
) -> Plan:
    """Decides which prompts run together.

    Args:
        prompts: token ids of each.
        capacity: most rows of a pack; None: those of the longest prompt, at least 2,048.
        algorithm: "ffd" (first-fit-decreasing) or "exact" (fewest packs, at most 20 prompts).
        min_gain: where a padded batch would have fewer than this times the rows (prompts of the same
            length), every prompt is a pack of its own: packing would gain nothing.

    Raises ValueError for an empty prompt, one longer than `capacity`, and an unknown algorithm.
    """
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"algorithm '{algorithm}': expected ffd or exact")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity {capacity}: expected a positive number of rows")
    if not min_gain > 0:
        raise ValueError(f"min_gain {min_gain}: expected a positive number")
    arrays = [np.ascontiguousarray(p, np.int64) for p in prompts]
    for i, array in enumerate(arrays):
        if np.asarray(prompts[i]).ndim != 1:
            raise ValueError(f"prompt {i}: expected a list of token ids, got {array.ndim} dimensions")
    lengths = np.array([len(a) for a in arrays], np.int64)
    try:
        bins, gain = _plan(lengths, _Options(_ALGORITHMS[algorithm], capacity or 0, min_gain))
    except library.KernelError as error:
        raise ValueError(str(error)) from None
    return Plan(tuple(_fill(arrays, lengths, items) for items in bins), gain)


def _one_axis(session) -> None:
    """Refuses a model whose positions are several numbers a token: which ones, its host knows alone."""
    for given in session.get_inputs():
        if given.name == "position_ids" and len(given.shape) != 2:
            raise ValueError(
                f"the input position_ids is {given.shape}, not [batch, tokens]: positions of several axes (as of "
                "images) are the host's, which calls the session itself"
            )


def run_packed(session, plan: Plan) -> list[dict[str, np.ndarray]]:
    """Runs a model compiled with ``-pack`` on every pack; returns its outputs prompt by prompt.

    Args:
        session: an ``onnxruntime.InferenceSession`` of the compiled model. Inputs it may have besides
            ``input_ids`` and ``segment_starts``: ``position_ids``, and ``logits_to_keep`` or
            ``logits_rows``, which are set to the last row of every prompt.
        plan: from `pack`.

    Outputs ``[1, rows, n]`` become ``[rows of the prompt, n]`` (``[1, n]`` with rows selected), and
    caches ``[1, heads, rows, d]`` become ``[heads, rows of the prompt, d]``: views, nothing is copied.
    Raises ValueError for a model that is not packed.
    """
    inputs = {i.name for i in session.get_inputs()}
    if "segment_starts" not in inputs:
        raise ValueError("the model has no input segment_starts: compile it with -pack=ffd")
    _one_axis(session)
    selecting = inputs & {"logits_to_keep", "logits_rows"}
    known = {"input_ids", "segment_starts", "position_ids"} | selecting
    if inputs - known:
        raise ValueError(f"no value for the input {min(inputs - known)}")
    names = [o.name for o in session.get_outputs()]
    results: list[dict[str, np.ndarray]] = [{} for p in plan.packs for _ in p.prompts]
    for p in plan.packs:
        feeds = {"input_ids": p.ids, "segment_starts": p.starts}
        if "position_ids" in inputs:
            feeds["position_ids"] = p.positions
        for name in selecting:
            feeds[name] = p.last_rows
        for name, value in zip(names, session.run(None, feeds), strict=True):
            for i, prompt in enumerate(p.prompts):
                rows = slice(p.starts[i], p.starts[i + 1])
                if name == "logits" and selecting:
                    rows = slice(i, i + 1)
                results[prompt][name] = value[0, :, rows] if value.ndim == 4 else value[0, rows]
    return results
