"""What each candidate does to each head: recall, error, density and time of its real kernel.

Recall needs no matrix of scores: with L the log-sum-exp of a row over what a kernel visits,
exp(L_sparse - L_dense) is the share of the row's attention mass that the sparse kernel saw.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..library import Library
from .model import Operands, attention_nodes

#: Rows at the end whose recall is reported for itself: the ones a prompt's answer needs.
LAST_ROWS = 64


@dataclass
class Measured:
    """One layer under one candidate; lists over query heads.

    Attributes:
        recall: mean over rows of the visited share of the attention mass.
        recall_last: the same over the last rows.
        recall_low: 5th percentile over rows.
        error: mean over rows of the squared 2-norm of the output's difference from dense.
        relative: square root of `error` relative to the dense output's.
        density: visited share of the causal blocks.
        seconds: the layer's kernel, minimum of the repeats; None without repeats.
        dense_seconds: the dense kernel on the same operands, likewise.
    """

    recall: list[float]
    recall_last: list[float]
    recall_low: list[float]
    error: list[float]
    relative: list[float]
    density: list[float]
    seconds: float | None
    dense_seconds: float | None

    def json(self) -> dict:
        """As written into the state folder."""
        return asdict(self)


class Kernels:
    """The attention kernels of one compiled folder, by layer."""

    def __init__(self, folder: Path, threads: int):
        self._library = Library(folder, threads=threads)
        self._names = [
            next(a.s.decode() for a in node.attribute if a.name == "kernel")
            for node in attention_nodes(folder)
        ]

    def run(self, operands: Operands, heads: int, statistics: bool = True) -> dict[str, np.ndarray]:
        """Runs a layer: arrays ``o``, and with `statistics` ``lse`` [b, heads, s] and
        ``density`` [b, heads]."""
        outputs = {"o": np.empty_like(operands.result)}
        if statistics:
            q = operands.inputs[0]
            batch = q.shape[0]
            rows = operands.result.size // (batch * heads * _value_dim(operands.result, heads))
            outputs["lse"] = np.empty((batch, heads, rows), np.float32)
            outputs["density"] = np.ones((batch, heads), np.float32)
        self._library.run(self._names[operands.layer], operands.inputs, outputs)
        return outputs

    def time(self, operands: Operands, heads: int) -> float:
        """Seconds of one call without statistics."""
        start = time.perf_counter()
        self.run(operands, heads, statistics=False)
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends the threads."""
        self._library.close()


def _value_dim(result: np.ndarray, heads: int) -> int:
    return result.shape[-1] if result.ndim == 4 else result.shape[-1] // heads


def by_head(result: np.ndarray, heads: int, rows: int) -> np.ndarray:
    """An attention's output as [heads, batch x rows, value dim], whatever its layout.

    [b, s, heads x e], [b, s, heads, e] and [b, heads, s, e] are told apart by the sizes.
    """
    if result.ndim == 3:
        result = result.reshape(result.shape[0], result.shape[1], heads, -1)
    elif result.shape[1] == heads and result.shape[2] == rows:
        result = result.transpose(0, 2, 1, 3)
    return result.transpose(2, 0, 1, 3).reshape(heads, -1, result.shape[3])


def compare(dense: dict[str, np.ndarray], sparse: dict[str, np.ndarray], heads: int) -> dict:
    """The quality fields of `Measured` from two results of `Kernels.run`."""
    rows = dense["lse"].shape[-1]
    with np.errstate(invalid="ignore"):
        share = np.exp(sparse["lse"].astype(np.float64) - dense["lse"])
    # A row without a visible key has no mass to lose.
    share = np.where(np.isneginf(dense["lse"]), 1.0, share)
    share = np.clip(share, 0, 1).transpose(1, 0, 2)  # [heads, batch, rows]
    exact, mine = by_head(dense["o"], heads, rows), by_head(sparse["o"], heads, rows)
    error = ((mine.astype(np.float64) - exact) ** 2).sum(-1).mean(-1)
    size = (exact.astype(np.float64) ** 2).sum(-1).mean(-1)
    flat = share.reshape(heads, -1)
    return {
        "recall": flat.mean(-1).tolist(),
        "recall_last": share[:, :, -LAST_ROWS:].reshape(heads, -1).mean(-1).tolist(),
        "recall_low": np.percentile(flat, 5, axis=-1).tolist(),
        "error": error.tolist(),
        "relative": np.sqrt(error / np.maximum(size, 1e-30)).tolist(),
        "density": sparse["density"].mean(0).tolist(),
    }


def measure_layer(
    operands: Operands, heads: int, dense: Kernels, candidates: dict[str, Kernels], repeats: int
) -> dict[str, dict]:
    """Every candidate on one layer's operands: {name: fields of `Measured`}.

    Repeats go through all candidates in turn, so that a busy moment hits all of them.
    """
    exact = dense.run(operands, heads)
    quality = {
        name: compare(exact, kernels.run(operands, heads), heads) for name, kernels in candidates.items()
    }
    every = {None: dense, **candidates}
    rounds = [{name: each.time(operands, heads) for name, each in every.items()} for _ in range(repeats)]
    seconds = {name: min((each[name] for each in rounds), default=None) for name in every}
    return {
        name: Measured(**quality[name], seconds=seconds[name], dense_seconds=seconds[None]).json()
        for name in candidates
    }


def average(texts: list[list[dict]]) -> list[dict]:
    """Fields of `Measured` by layer, means over texts ([texts][layers]); times are the first's."""
    means = []
    for layer in zip(*texts, strict=True):
        mean = dict(layer[0])
        for name, value in mean.items():
            if isinstance(value, list):
                mean[name] = np.mean([each[name] for each in layer], axis=0).tolist()
        means.append(mean)
    return means
