"""The calibration from model and text to a plan; `calibrate` does all of it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..compiler import find_compiler
from . import choose, weights
from .candidates import DENSE, Candidate, configuration, to_minference
from .data import check_range
from .errors import CalibrationError
from .measure import Kernels, measure_layer
from .model import Model, Run
from .state import Progress, State, default_folder, digest, model_files

#: Lengths below the calibrated one that are tried for ``dense_below``.
SHORT_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
#: Weights of steps in runs of the model, for the time left.
_RUN, _LAYER = 1.3, 0.1


@dataclass
class Options:
    """What a calibration is asked for.

    Attributes:
        max_loss: allowed growth of perplexity as a share; None if `max_time` is given.
        max_time: allowed attention time as a share of dense's; None: as `max_loss` says.
        threads: intra-op threads.
        repeats: repetitions of each timing.
        rows: how many rows of the text give perplexity and divergence.
        groups: runs with one group of layers sparse.
        random_runs: runs with random heads sparse.
        checks: whole-model checks of the bisection.
        cost: "time" (measured) or "blocks" (density; the same on every machine).
        target: as the compiler's -target.
    """

    max_loss: float | None = 0.01
    max_time: float | None = None
    threads: int = 2
    repeats: int = 3
    rows: int = 1024
    groups: int = 15
    random_runs: int = 15
    checks: int = 7
    cost: str = "time"
    target: str = "cpu"

    def measuring(self) -> dict:
        """The options that measurements depend on; the rest only picks among them."""
        names = ("threads", "repeats", "rows", "target")
        # The version changes with what is measured.
        return {"version": 2, **{name: getattr(self, name) for name in names}}


@dataclass
class Result:
    """A finished calibration.

    Attributes:
        heads: configuration of each head, ``heads[layer][query head]``, with what was measured.
        dense_below: shorter prompts run dense.
        plan: int [layers x heads], index into `names`.
        names: candidates, "dense" first.
        measured: {candidate: [layer: fields of `measure.Measured`]}.
        weight: [layers x heads], reach of a head's error to the logits.
        cost: [heads, candidates] in dense attention times.
        runs: whole-model checks {name: {loss, error, divergence, density, cost, seconds}};
            error: standard error of the loss, from the spread over rows.
        chosen: the same of the plan.
        dense: {perplexity, seconds} of the exact model.
        short: checks of shorter prompts.
    """

    heads: list[list[dict]]
    dense_below: int
    plan: np.ndarray
    names: list[str]
    measured: dict
    weight: np.ndarray
    cost: np.ndarray
    runs: dict[str, dict]
    chosen: dict
    dense: dict
    short: list[dict] = field(default_factory=list)


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


class Calibration:
    """The steps; each keeps its result in the state."""

    def __init__(
        self,
        model: Model,
        ids: np.ndarray,
        candidates: list[Candidate],
        options: Options,
        state: State,
        bar: Progress,
    ):
        self.model, self.ids, self.options, self.state, self.bar = model, ids, options, state, bar
        self.candidates = candidates
        self.names = ["dense", *(c.name for c in candidates)]
        self.tokens = ids.shape[1]
        self.rows = rows_of(self.tokens, options.rows)
        self.width = max(model.heads)
        self._exact: np.ndarray | None = None

    # -- whole-model runs ---------------------------------------------------------------

    @staticmethod
    def _nll(logs: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of every row, in nats."""
        return -logs[np.arange(len(rows)), ids[0, rows + 1]].astype(np.float64)

    def _compare(self, exact: np.ndarray, mine: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> dict:
        """Loss, its standard error, and divergence, of log-probabilities."""
        more = self._nll(mine, ids, rows) - self._nll(exact, ids, rows)
        return {
            "loss": float(np.expm1(more.mean())),
            "error": float(more.std() / np.sqrt(len(more))),
            "divergence": divergence(exact, mine),
        }

    def exact(self) -> np.ndarray:
        """The dense model's log-probabilities, computed once a session."""
        if self._exact is None:
            self.bar.begin("dense model")
            run = self.model.run(self.model.dense, self.ids, self.rows)
            self._exact = log_probabilities(run.logits)
            nll = float(self._nll(self._exact, self.ids, self.rows).mean())
            self.dense_run = {"nll": nll, "seconds": run.seconds}
            self.bar.done(1)
        return self._exact

    def heads_of(self, plan: np.ndarray) -> list[list[dict]]:
        """Configurations of a plan [layers x width] of indices into `names` (0: dense)."""
        plan = np.asarray(plan).reshape(self.model.layers, self.width)
        return [
            [
                self.candidates[plan[layer, head] - 1].at(layer, head) if plan[layer, head] else dict(DENSE)
                for head in range(self.model.heads[layer])
            ]
            for layer in range(self.model.layers)
        ]

    def evaluate(self, plan: np.ndarray, what: str) -> dict:
        """Loss, divergence, density and seconds of the whole model under a plan."""
        heads = self.heads_of(plan)
        key = f"run-{digest(heads)}"
        found = self.state.get(key)
        if found is None:
            exact = self.exact()
            self.bar.begin(what)
            folder = self.model.compile(heads)
            run: Run = self.model.run(folder, self.ids, self.rows)
            logs = log_probabilities(run.logits)
            found = {
                **self._compare(exact, logs, self.ids, self.rows),
                "density": float(
                    np.mean([run.density[i, :count].mean() for i, count in enumerate(self.model.heads)])
                ),
                "seconds": run.seconds,
            }
            self.state.put(key, found)
            self.bar.done(_RUN)
        else:
            self.bar.done(_RUN, cached=True)
        return found

    # -- heads --------------------------------------------------------------------------

    def measure(self) -> dict[str, list[dict]]:
        """Every candidate on every layer's operands: {name: [layer: fields of Measured]}."""
        missing = [layer for layer in range(self.model.layers) if self.state.get(f"layer-{layer}") is None]
        if missing:
            self._measure_layers(set(missing))
        layers = [self.state.get(f"layer-{layer}") for layer in range(self.model.layers)]
        return {name: [layer[name] for layer in layers] for name in self.names[1:]}

    def _measure_layers(self, missing: set[int]) -> None:
        model = self.model
        dense = Kernels(model.dense, self.options.threads)
        sparse = {}
        for index, candidate in enumerate(self.candidates):
            plan = np.full(model.layers * self.width, index + 1)
            sparse[candidate.name] = Kernels(
                model.compile(self.heads_of(plan), f"candidate-{index}"), self.options.threads
            )
        for chunk in model.chunks(self.tokens):
            wanted = [layer for layer in chunk if layer in missing]
            if not wanted:
                continue
            self.bar.begin(f"operands of layers {chunk.start}-{chunk.stop - 1}")
            for operands in model.capture(self.ids, range(wanted[0], wanted[-1] + 1)):
                layer = operands.layer
                if layer not in missing:
                    continue
                self.bar.begin(f"kernels of layer {layer}")
                heads = model.heads[layer]
                self.state.put(
                    f"layer-{layer}", measure_layer(operands, heads, dense, sparse, self.options.repeats)
                )
                self.bar.done(_LAYER * len(sparse))
        for kernels in (dense, *sparse.values()):
            kernels.close()

    def arrays(self, measured: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(error, density, cost), each [layers x width, candidates], dense first.

        Cost is in dense attention times of a head. Layers with fewer heads than the widest
        are filled with heads that cost and lose nothing.
        """
        count = self.model.layers * self.width
        error, density = np.zeros((count, len(self.names))), np.ones((count, len(self.names)))
        cost = np.ones((count, len(self.names)))
        for index, name in enumerate(self.names[1:], 1):
            rows = measured[name]
            for layer, row in enumerate(rows):
                heads = slice(layer * self.width, layer * self.width + self.model.heads[layer])
                error[heads, index] = row["error"]
                density[heads, index] = row["density"]
            sparse = [i for i, causal in enumerate(self.model.causal) if causal]
            a, b = choose.fit_costs(
                np.array([rows[i]["seconds"] for i in sparse]),
                np.array([rows[i]["dense_seconds"] for i in sparse]),
                np.array([np.mean(rows[i]["density"]) for i in sparse]),
            )
            blocks = self.options.cost == "blocks"
            cost[:, index] = density[:, index] if blocks else a + b * density[:, index]
        for layer, causal in enumerate(self.model.causal):
            if not causal:  # Sparse patterns are not for it: never worth choosing.
                cost[layer * self.width : (layer + 1) * self.width, 1:] = 2
        return error, density, cost

    # -- weights ------------------------------------------------------------------------

    def probe_candidate(self, error: np.ndarray, cost: np.ndarray) -> int:
        """The candidate for runs with one group sparse: clearly lossy, yet of the useful kind.

        The one with the median error among those that are cheaper than dense.
        """
        everything = range(1, len(self.names))
        useful = [i for i in everything if cost[:, i].mean() < 1] or list(everything)
        useful.sort(key=lambda i: error[:, i].mean())
        return useful[len(useful) // 2]

    def weigh(
        self, error: np.ndarray, cost: np.ndarray, uniform: list[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights of heads [layers x width] and factors of candidates, see weights.py.

        `uniform` has the divergence of each candidate used everywhere, dense first.
        """
        layers, options = self.model.layers, self.options
        probe = self.probe_candidate(error, cost)
        losses = []
        of_head = np.zeros((layers, self.width), int)
        for number, group in enumerate(weights.groups_of(layers, options.groups)):
            plan = np.zeros((layers, self.width), int)
            plan[group] = probe
            of_head[group] = number
            losses.append(self.evaluate(plan, f"reach of layers {group[0]}-{group[-1]}")["divergence"])
        randoms, plans = [], []
        for seed in range(options.random_runs):
            plan = weights.random_half(layers * self.width, len(self.candidates), seed) + 1
            plans.append(plan)
            run = self.evaluate(plan, f"random heads {seed + 1}/{options.random_runs}")
            randoms.append(run["divergence"])
        return weights.fit_both(
            error,
            (np.array(losses), of_head.reshape(-1), probe),
            (np.array(randoms), plans),
            np.array(uniform),
        )

    # -- choice -------------------------------------------------------------------------

    def loss_of(self, run: dict) -> float:
        """The loss that is held: growth of perplexity and its standard error. On a finite text,
        perplexity falls by chance as easily as it rises."""
        return run["loss"] + run["error"]

    def choose(self, weighted: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """The plan [layers x width] that keeps to the budget."""
        sequence = choose.plans(weighted, cost)
        if self.options.max_time is not None:
            for plan in sequence:
                if choose.cost_of(plan, cost) <= self.options.max_time:
                    return plan
            raise CalibrationError(
                f"--max-time={self.options.max_time:.0%}: the cheapest plan takes "
                f"{choose.cost_of(sequence[-1], cost):.0%} of dense attention time"
            )
        limit = self.options.max_loss
        predicted = [weighted[np.arange(len(p)), p].sum() for p in sequence]
        first = int(np.searchsorted(predicted, np.log1p(limit)))
        best = choose.cheapest_within(
            sequence,
            lambda plan: self.loss_of(self.evaluate(plan, "checking a plan")),
            limit,
            self.options.checks,
            min(first, len(sequence) - 1),
        )
        return sequence[best]

    def short_prompts(self, plan: np.ndarray) -> tuple[int, list[dict]]:
        """``dense_below`` and the checks behind it.

        A length is good if on the text's first tokens the plan loses no more than allowed
        (with a max_loss) and the model is not slower than the dense one.
        """
        checks = []
        limit = self.options.max_loss
        folder = None
        below = self.tokens if not plan.any() else 0
        lengths = [n for n in SHORT_LENGTHS if n < self.tokens] if plan.any() else []
        for tokens in reversed(lengths):
            key = f"short-{tokens}-{digest(self.heads_of(plan))}"
            found = self.state.get(key)
            if found is None:
                self.bar.begin(f"prompts of {tokens} tokens")
                folder = folder or self.model.compile(self.heads_of(plan), "chosen")
                found = self._short(folder, tokens)
                self.state.put(key, found)
            checks.append(found)
            slower = self.options.cost == "time" and found["seconds"] > 1.02 * found["dense_seconds"]
            if slower or (limit is not None and self.loss_of(found) > limit):
                below = max(below, 2 * tokens)
                break
        return min(below, self.tokens), checks

    def _short(self, folder: Path, tokens: int) -> dict:
        ids = self.ids[:, :tokens]
        rows = rows_of(tokens, self.options.rows)
        seconds, dense_seconds = [], []
        ready = [self.model.open(each) for each in (self.model.dense, folder)]
        for _ in range(3):
            exact = self.model.run(self.model.dense, ids, rows, ready[0])
            mine = self.model.run(folder, ids, rows, ready[1])
            dense_seconds.append(exact.seconds)
            seconds.append(mine.seconds)
        p, q = log_probabilities(exact.logits), log_probabilities(mine.logits)
        return {
            "tokens": tokens,
            **self._compare(p, q, ids, rows),
            "density": float(mine.density.mean()),
            "seconds": min(seconds),
            "dense_seconds": min(dense_seconds),
        }

    def run(self) -> Result:
        """All steps."""
        layers, options, bar = self.model.layers, self.options, self.bar
        bar.expect(1 + _LAYER * layers * len(self.candidates))
        bar.expect(_RUN * (min(layers, options.groups) + options.random_runs + len(self.candidates) + 3))
        bar.expect(_RUN * (options.checks if options.max_time is None else 1))
        measured = self.measure()
        error, density, cost = self.arrays(measured)
        runs = {}
        for index, candidate in enumerate(self.candidates, 1):
            plan = np.full(layers * self.width, index)
            found = dict(self.evaluate(plan, f"everywhere {candidate.name}"))
            runs[candidate.name] = {**found, "cost": choose.cost_of(plan, cost)}
        uniform = [0.0, *(runs[name]["divergence"] for name in self.names[1:])]
        weight, factor = self.weigh(error, cost, uniform)
        weighted = weight[:, None] * error * factor
        plan = self.choose(weighted, cost)
        chosen = {**self.evaluate(plan, "the choice"), "cost": choose.cost_of(plan, cost)}
        # No head by head choice is kept that one candidate for all heads beats.
        if options.max_time is None:
            for index, name in enumerate(self.names[1:], 1):
                run = runs[name]
                if self.loss_of(run) <= options.max_loss and run["cost"] < chosen["cost"]:
                    plan, chosen = np.full(layers * self.width, index), run
        below, short = self.short_prompts(plan)
        self.exact()
        heads = self._described(plan, measured, cost)
        dense = {"perplexity": float(np.exp(self.dense_run["nll"])), "seconds": self.dense_run["seconds"]}
        return Result(
            heads, below, plan, self.names, measured, weight, cost, runs, chosen, dense, short
        )

    def _described(self, plan: np.ndarray, measured: dict, cost: np.ndarray) -> list[list[dict]]:
        """The plan's configurations with recall, measured density and time of each head."""
        rows = self.heads_of(plan)
        for layer, row in enumerate(rows):
            for head, entry in enumerate(row):
                index = plan[layer * self.width + head]
                if index == 0 or not self.model.causal[layer]:
                    row[head] = dict(DENSE)
                    continue
                found = measured[self.names[index]][layer]
                seconds = found["dense_seconds"] / self.model.heads[layer]
                row[head] = {
                    **entry,
                    "recall": round(found["recall"][head], 4),
                    "measured_density": round(found["density"][head], 4),
                    "ms": round(1e3 * seconds * cost[layer * self.width + head, index], 3),
                }
        return rows


def state_key(model: Path, ids: np.ndarray, candidates: list[Candidate], options: Options) -> str:
    """What a state is filed under: contents of model, compiler and text, candidates, options."""
    described = [[c.name, c.head, sorted((str(k), v) for k, v in c.heads.items())] for c in candidates]
    return digest(*model_files(model), find_compiler(), ids, described, options.measuring())


def calibrate(
    path: Path,
    ids: np.ndarray,
    candidates: list[Candidate],
    options: Options,
    state: Path | None = None,
    progress: bool = True,
    report: Path | None = None,
) -> Result:
    """Calibrates a model on token ids int64 [1, tokens].

    Args:
        path: the ONNX model.
        candidates: what heads may be given besides dense.
        state: where to keep what is measured; None: the user's cache folder.
        report: folder for a page with pictures.

    Raises `CalibrationError`.
    """
    from . import report as pages  # It needs Result.

    state = (state or default_folder()) / state_key(path, ids, candidates, options)
    bar = Progress(progress)
    # Weight files are hard-linked into compiled folders, which needs the model's file system.
    state.mkdir(parents=True, exist_ok=True)
    near = len(model_files(path)) == 1 or state.stat().st_dev == path.stat().st_dev
    try:
        work = tempfile.TemporaryDirectory(prefix=".work-", dir=state if near else path.resolve().parent)
    except OSError:
        work = tempfile.TemporaryDirectory(prefix="work-", dir=state)
    with work as folder:
        # All rows of the last layer, too: it is measured as the others are.
        model = Model(path, Path(folder), options.threads, {"row_liveness": "off"})
        check_range(ids, model.find_vocabulary())
        try:
            calibration = Calibration(model, ids, candidates, options, State(state), bar)
            result = calibration.run()
            if report:
                bar.begin("report")
                maps = model.block_maps(calibration.heads_of(result.plan), ids, pages.picks(result))
                pages.write(report, result, path.name, ids.shape[1], maps)
            return result
        finally:
            bar.close()


def plan_text(result: Result, model: str, kind: str = "extended", target: str = "cpu") -> str:
    """The file that is written: ours ("extended") or MInference's list ("minference")."""
    if kind == "minference":
        rows = [
            {str(i): to_minference(head, head.get("recall", 1.0)) for i, head in enumerate(row)}
            for row in result.heads
        ]
        return json.dumps(rows, indent=2) + "\n"
    body = configuration(result.heads, model, result.dense_below, target)
    body["calibration"] = {
        "dense_perplexity": round(result.dense["perplexity"], 4),
        **{key: round(value, 5) for key, value in result.chosen.items() if key != "seconds"},
    }
    # One head a line keeps the file readable and its differences small.
    layers = body.pop("layers")
    lines = []
    for layer in layers:
        if layer.get("dense"):
            lines.append('  {"dense": true}')
        else:
            heads = ",\n    ".join(f'"{k}": {json.dumps(v)}' for k, v in layer["heads"].items())
            lines.append('  {"heads": {\n    ' + heads + "}}")
    head = json.dumps(body)[:-1]
    return head + ', "layers": [\n' + ",\n".join(lines) + "\n]}\n"
