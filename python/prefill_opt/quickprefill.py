"""Prompts read group by group, with a part of each group's keys kept (QuickPrefill, TIGER-AI-Lab/QuickVideo).

A model compiled with ``-prune=quickprefill`` takes rows of the KV cache out again when a group (the frames
of a second of video, say) has been read: those with the largest keys go, the protected ones and the question
at the prompt's end stay. Lossy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .chunking import _KEPT, Cache, Rows, _joined, _tokens, chunk_size


def query_size(session) -> int:
    """Rows of the question that the model was compiled for (``query=32``)."""
    return int(session.get_modelmeta().custom_metadata_map.get("prefill.query", 1))


def group_lengths(rows: int, groups: int | Sequence[int]) -> list[int]:
    """Lengths of the groups of `rows` rows: all `groups` long but the last one, or as listed.

    Raises ValueError for a length below 1, and for a list that has another sum.
    """
    if isinstance(groups, (int, np.integer)):
        if groups < 1:
            raise ValueError(f"groups {groups}: expected at least one row")
        return [min(int(groups), rows - begin) for begin in range(0, rows, int(groups))]
    lengths = [int(length) for length in groups]
    if min(lengths, default=1) < 1:
        raise ValueError(f"a group of {min(lengths)} rows: expected at least one")
    if sum(lengths) != rows:
        raise ValueError(f"the groups have {sum(lengths)} rows together, the prompt without its question has {rows}")
    return lengths


def run_parts(
    cache: Cache,
    ids: np.ndarray,
    lengths: Sequence[int],
    wanted: np.ndarray | None = None,
    protected: np.ndarray | None = None,
) -> Iterator[tuple[dict[str, np.ndarray], int | np.ndarray]]:
    """The calls of `run_quickprefill`: what `Cache.step` gives for each part, and the rows that the cache holds then
    (int64 [layers] where layers have lengths of their own).

    `ids` int64 [tokens] of `lengths` together, the last of which is the question; `wanted`: ascending rows of the
    prompt whose logits are, where the model selects (None: the last one); `protected`: bool [tokens].
    """
    begin, held = 0, 0 if cache.layers is None else np.zeros(cache.layers, np.int64)
    for length in lengths:
        end = begin + length
        logits: bool | np.ndarray = end == len(ids)
        if wanted is not None:
            logits = wanted[(wanted >= begin) & (wanted < end)] - begin
        mask = None if protected is None else protected[begin:end]
        (result,) = cache.step([Rows(ids[begin:end], 0, held, logits, first=begin, follow=len(ids) - end, protected=mask)])
        kept = [len(rows) for name, rows in result.items() if name.startswith(_KEPT)]
        if cache.layers is None and len(set(kept)) != 1:
            raise RuntimeError("layers kept different numbers of rows, and the cache has one length for all")
        held = held + (kept[0] if cache.layers is None else np.array(kept))
        begin = end
        yield result, held


def run_quickprefill(
    session,
    prompt: Sequence[int],
    groups: int | Sequence[int] | None = None,
    query: int | None = None,
    protected: Sequence[bool] | None = None,
    cache: Cache | None = None,
    keep: str = "all",
) -> dict[str, np.ndarray]:
    """Runs a prompt group by group, then its question; returns what the model gives, without the batch dimension.

    Args:
        session: of a model compiled with ``-prune=quickprefill``.
        prompt: token ids.
        groups: rows of a group, the last one of which has what is left; or the length of each group, such as
            those of video frames. None: as compiled (``group=512``).
        query: rows of the question, which are read in one call and all stay. None: as compiled; a shorter
            prompt is a question as a whole.
        protected: whether each row of the prompt must stay, for models with ``-protect=system``.
        cache: is written from row 0 on; for decode steps after the prompt. None: one of the prompt's size.
        keep: "all" rows of outputs that have a row for every token, or the "last" call's only.

    ``prefill.kept.<layer>`` (int64) lists the rows of the prompt that are in that layer's cache, ascending: their
    positions too. Caches are ``[heads, rows kept, d]``, views of the memory of `cache`. As many rows stay in
    every layer, but with ``decay=``. A decode step is ``cache.step([Rows([token], held=rows kept,
    first=len(prompt))])``, with rows kept int64 [layers] then.

    Raises ValueError for an empty prompt, groups and questions that do not fit it, and for another model.
    """
    ids = _tokens(prompt)
    count = len(ids)
    if keep not in ("all", "last"):
        raise ValueError(f"keep '{keep}': expected all or last")
    names = {i.name for i in session.get_inputs()}
    if "prompt_parts" not in names:
        raise ValueError("the model keeps all keys: compile it with -prune=quickprefill")
    if query is None:
        query = min(query_size(session), count)
    if not 1 <= query <= count:
        raise ValueError(f"query {query}: expected from 1 to {count} rows, the prompt's")
    mask = None
    if protected is not None:
        mask = np.asarray(protected, bool)
        if "protected_rows" not in names:
            raise ValueError("protected: the model was not compiled with -protect=system")
        if mask.shape != (count,):
            raise ValueError(f"protected: expected one entry for each of the {count} tokens, got {mask.shape}")
    lengths = [*group_lengths(count - query, chunk_size(session) if groups is None else groups), query]
    cache = cache or Cache(session, count)
    kept: dict[str, list[np.ndarray]] = {}
    parts: list[dict[str, np.ndarray]] = []
    held: int | np.ndarray = 0
    for result, held in run_parts(cache, ids, lengths, protected=mask):
        for name in [name for name in result if name.startswith(_KEPT)]:
            kept.setdefault(name, []).append(result.pop(name))
        if keep == "last":
            parts.clear()
        parts.append(result)
    outputs = [name for name in cache._outputs if not name.startswith(_KEPT)]
    last = {"logits"} if cache._selecting else set()
    return (
        _joined(parts, outputs, last)
        | {name: np.concatenate(values) for name, values in kept.items()}
        | cache.view(0, held)
    )
