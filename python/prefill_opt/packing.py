"""Several prompts in one sequence: the plan, and running a packed model (Prepacking, arXiv:2404.09529).

A model compiled with ``-pack`` takes ``input_ids [1, rows]`` and ``segment_starts [prompts + 1]``: where
each prompt begins, and the end. There are no padding rows. `pack` decides which prompts share a run;
it needs neither the compiler nor ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Prompts for which `exact` tries all distributions.
MOST_EXACT = 20


@dataclass(frozen=True)
class Pack:
    """Prompts that run as one sequence.

    Attributes:
        prompts: their numbers in the list given to `pack`, in the order of their rows.
        ids: int64 [1, rows], the tokens of all.
        starts: int64 [len(prompts) + 1], row at which each begins, and the number of rows.
    """

    prompts: tuple[int, ...]
    ids: np.ndarray
    starts: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """int64 [1, rows]: position ids, beginning anew in every prompt."""
        lengths = np.diff(self.starts)
        return np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int64)

    @property
    def last_rows(self) -> np.ndarray:
        """int64 [len(prompts)]: the last row of every prompt."""
        return self.starts[1:] - 1


@dataclass(frozen=True)
class Plan:
    """What `pack` decided: the packs, and rows of a padded batch per row of theirs."""

    packs: tuple[Pack, ...]
    gain: float


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of at most `capacity` for items of `lengths`; item numbers, longest first.

    At most 11/9 of the fewest bins, and one (Johnson 1973). Ties keep the lower number first.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for at, free in enumerate(room):
            if lengths[item] <= free:
                break
        else:
            at = len(bins)
            bins.append([])
            room.append(capacity)
        bins[at].append(item)
        room[at] -= lengths[item]
    return bins


def fewest_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The same with as few bins as there can be, by trying: for at most `MOST_EXACT` items."""
    best = first_fit_decreasing(lengths, capacity)
    least = -(-sum(lengths) // capacity)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))

    def place(at: int, bins: list[list[int]], room: list[int]) -> None:
        nonlocal best
        if len(bins) >= len(best) or len(best) == least:
            return
        if at == len(order):
            best = [list(b) for b in bins]
            return
        item = order[at]
        # Bins with the same room are the same.
        for free in sorted(set(room)):
            if lengths[item] <= free:
                to = room.index(free)
                bins[to].append(item)
                room[to] -= lengths[item]
                place(at + 1, bins, room)
                room[to] += lengths[item]
                bins[to].pop()
        place(at + 1, [*bins, [item]], [*room, capacity - lengths[item]])

    place(0, [], [])
    return best


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
        algorithm: "ffd" (first-fit-decreasing) or "exact" (fewest packs, at most `MOST_EXACT` prompts).
        min_gain: where a padded batch would have fewer than this times the rows (prompts of the same
            length), every prompt is a pack of its own: packing would gain nothing.

    Raises ValueError for an empty prompt, one longer than `capacity`, and an unknown algorithm.
    """
    if algorithm not in ("ffd", "exact"):
        raise ValueError(f"algorithm '{algorithm}': expected ffd or exact")
    arrays = [np.asarray(p, np.int64) for p in prompts]
    for i, array in enumerate(arrays):
        if array.ndim != 1:
            raise ValueError(f"prompt {i}: expected a list of token ids, got {array.ndim} dimensions")
        if not len(array):
            raise ValueError(f"prompt {i} is empty: leave it out")
    if not arrays:
        return Plan((), 1.0)
    lengths = [len(a) for a in arrays]
    if capacity is None:
        capacity = max(2048, *lengths)
    for i, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"prompt {i} has {length} tokens, more than the capacity {capacity}")
    gain = max(lengths) * len(lengths) / sum(lengths)
    if gain < min_gain:
        bins = [[i] for i in range(len(lengths))]
    elif algorithm == "ffd":
        bins = first_fit_decreasing(lengths, capacity)
    elif len(lengths) > MOST_EXACT:
        raise ValueError(f"exact packs at most {MOST_EXACT} prompts, got {len(lengths)}: use ffd")
    else:
        bins = fewest_bins(lengths, capacity)
    packs = []
    for items in bins:
        starts = np.cumsum([0, *(lengths[i] for i in items)]).astype(np.int64)
        ids = np.concatenate([arrays[i] for i in items])[None]
        packs.append(Pack(tuple(items), ids, starts))
    return Plan(tuple(packs), gain)


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
