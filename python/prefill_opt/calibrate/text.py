"""What is measured on one text. Every step keeps its result in the text's own state, so that
another text beside it, or one less, costs nothing that is known already."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .data import Document
from .model import Model, Operands
from .state import Progress, State


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis, float32, in place to spare memory."""
    for row in logits:
        row -= row.max()
        row -= np.log(np.exp(row.astype(np.float64)).sum())
    return logits


def divergence(exact: np.ndarray, mine: np.ndarray) -> float:
    """Mean over rows of KL(exact || mine) of two log-probability arrays [rows, vocabulary]."""
    total = 0.0
    for p, q in zip(exact, mine, strict=True):
        total += float((np.exp(p.astype(np.float64)) * (p.astype(np.float64) - q)).sum())
    return max(0.0, total / len(exact))


def rows_of(tokens: int, count: int) -> np.ndarray:
    """`count` rows of a text (or as many as there are), spread over all but its first quarter,
    which only gives context: a choice must be good behind short contexts too."""
    first, end = tokens // 4, tokens - 1
    return np.unique(np.linspace(first, end - 1, min(count, end - first)).round().astype(np.int64))


def _nll(logs: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of every row, in nats."""
    return -logs[np.arange(len(rows)), ids[0, rows + 1]].astype(np.float64)


def compare(exact: np.ndarray, mine: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> dict:
    """Loss, its standard error, and divergence, of log-probabilities [rows, vocabulary]."""
    more = _nll(mine, ids, rows) - _nll(exact, ids, rows)
    return {
        "loss": float(np.expm1(more.mean())),
        "error": float(more.std() / np.sqrt(len(more))),
        "divergence": divergence(exact, mine),
    }


def pooled(runs: list[dict]) -> dict:
    """One plan's runs on several texts as one: growth of perplexity over all their rows, its
    standard error, and the means of divergence, density and seconds."""
    means = {key: float(np.mean([run[key] for run in runs])) for key in ("divergence", "density", "seconds")}
    return {
        "loss": float(np.expm1(np.mean(np.log1p([run["loss"] for run in runs])))),
        "error": float(np.sqrt(np.sum(np.square([run["error"] for run in runs]))) / len(runs)),
        **means,
    }


class Text:
    """A text, the model on it, and what is known of them.

    Attributes:
        name: of the document.
        ids: int64 [1, tokens].
        rows: int64 [n], those that give the loss.
        timed: kernels are timed on this text.
    """

    def __init__(self, model: Model, document: Document, rows: int, state: State, bar: Progress, timed: bool):
        self.model, self.state, self.bar, self.timed = model, state, bar, timed
        self.name, self.ids = document.name, document.ids
        self.tokens = self.ids.shape[1]
        self.rows = rows_of(self.tokens, rows)
        self._exact: np.ndarray | None = None

    def exact(self) -> np.ndarray:
        """The dense model's log-probabilities, computed once a session; kept in a file, for they
        are 400 MB for each text."""
        if self._exact is None:
            self.bar.begin("dense model")
            run = self.model.run(self.model.dense, self.ids, self.rows)
            logs = log_probabilities(run.logits)
            nll = float(_nll(logs, self.ids, self.rows).mean())
            self.state.step("dense", lambda: {"nll": nll, "seconds": run.seconds})
            file = Path(self.model.work) / f"exact-{id(self)}.npy"
            np.save(file, logs)
            self._exact = np.load(file, mmap_mode="r")
            self.bar.done(1)
        return self._exact

    def dense(self) -> dict:
        """{nll, seconds} of the dense model."""
        if self.state.get("dense") is None:
            self.exact()
        return self.state.get("dense")

    def run(self, folder: Path, ready) -> dict:
        """Loss, its error, divergence, density and seconds of a compiled folder."""
        run = self.model.run(folder, self.ids, self.rows, ready)
        return {
            **compare(self.exact(), log_probabilities(run.logits), self.ids, self.rows),
            "density": float(
                np.mean([run.density[i, :count].mean() for i, count in enumerate(self.model.heads)])
            ),
            "seconds": run.seconds,
        }

    # -- layers -------------------------------------------------------------------------

    def layer(self, layer: int) -> dict | None:
        """Every candidate on a layer's operands, {name: fields of `measure.Measured`}; None: not
        measured yet."""
        found = self.state.get(f"layer-{layer}")
        return found if found or self.timed else self.state.get(f"untimed-{layer}")

    def put_layer(self, layer: int, found: dict) -> None:
        """Keeps it."""
        self.state.put(f"layer-{layer}" if self.timed else f"untimed-{layer}", found)

    def operands(self, layers: set[int]):
        """`Operands` of some layers, by as few runs as memory allows."""
        for chunk in self.model.chunks(self.tokens):
            wanted = [layer for layer in chunk if layer in layers]
            if not wanted:
                continue
            self.bar.begin(f"operands of layers {chunk.start}-{chunk.stop - 1}")
            found: Operands
            for found in self.model.capture(self.ids, range(wanted[0], wanted[-1] + 1)):
                if found.layer in layers:
                    yield found

    # -- shorter prompts ----------------------------------------------------------------

    def short_key(self, tokens: int, plan: str) -> str:
        """Where `short` is kept for a plan with that digest."""
        return f"short-{tokens}-{plan}" if self.timed else f"untimed-short-{tokens}-{plan}"

    def short(self, folder: Path, tokens: int, rows: int) -> dict:
        """As `run`, on the text's first tokens, with the dense model's seconds; minima of three
        rounds if the text is timed."""
        ids, rows_here = self.ids[:, :tokens], rows_of(tokens, rows)
        seconds, dense_seconds = [], []
        ready = [self.model.open(each) for each in (self.model.dense, folder)]
        for _ in range(3 if self.timed else 1):
            exact = self.model.run(self.model.dense, ids, rows_here, ready[0])
            mine = self.model.run(folder, ids, rows_here, ready[1])
            dense_seconds.append(exact.seconds)
            seconds.append(mine.seconds)
        p, q = log_probabilities(exact.logits), log_probabilities(mine.logits)
        return {
            "tokens": tokens,
            **compare(p, q, ids, rows_here),
            "density": float(mine.density.mean()),
            "seconds": min(seconds),
            "dense_seconds": min(dense_seconds),
        }
