"""The calibration from model and texts to a plan; `calibrate` does all of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..compiler import find_compiler
from . import choose, weights
from .candidates import DENSE, Candidate, configuration, to_minference
from .data import Document, check_range
from .errors import CalibrationError
from .measure import Kernels, average, measure_layer
from .model import Model
from .state import Progress, State, default_folder, digest, model_files, work_folder
from .text import Text, pooled

#: Lengths below the calibrated one that are tried for ``dense_below``.
SHORT_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
#: Weights of steps in runs of the model, for the time left.
_RUN, _LAYER, _UNTIMED = 1.3, 0.1, 0.03


@dataclass
class Options:
    """What a calibration is asked for.

    Attributes:
        max_loss: allowed growth of perplexity as a share; None if `max_time` is given.
        max_time: allowed attention time as a share of dense's; None: as `max_loss` says.
        threads: intra-op threads.
        repeats: repetitions of each timing.
        rows: how many rows of each text give perplexity and divergence.
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
    rows: int = 2048
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
        measured: {candidate: [layer: fields of `measure.Measured`]}, means over the texts.
        weight: [layers x heads], reach of a head's error to the logits.
        cost: [heads, candidates] in dense attention times.
        runs: whole-model checks {name: {loss, error, held, divergence, density, cost, seconds}};
            error: standard error of the loss, from the spread over rows; held: the loss that
            is compared with the budget.
        chosen: the same of the plan, ``spread`` (`choose.spread_of`), and ``texts``: [{name, loss,
            error, divergence, density, seconds}]; with several, each has ``left_out``, the loss on
            it of what the others choose at the same cost.
        dense: {perplexity, seconds} of the exact model, over all texts.
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


class Calibration:
    """The steps; each keeps its result in the state of the text that it ran on."""

    def __init__(
        self, model: Model, texts: list[Text], candidates: list[Candidate], options: Options, bar: Progress
    ):
        self.model, self.texts, self.options, self.bar = model, texts, options, bar
        self.candidates = candidates
        self.names = ["dense", *(c.name for c in candidates)]
        self.tokens = texts[0].tokens
        self.width = max(model.heads)
        self.spread = 0.0  # choose.spread_of, as soon as every candidate was used everywhere.

    # -- whole-model runs ---------------------------------------------------------------

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

    def evaluate(self, plan: np.ndarray, what: str, texts: list[int] | None = None) -> list[dict]:
        """Loss, divergence, density and seconds of the whole model under a plan, on each of the
        texts with these numbers (None: on all)."""
        heads = self.heads_of(plan)
        key = f"run-{digest(heads)}"
        wanted = self.texts if texts is None else [self.texts[number] for number in texts]
        missing = [text for text in wanted if text.state.get(key) is None]
        if missing:
            for text in missing:
                text.exact()
            self.bar.begin(what)
            folder = self.model.compile(heads)
            ready = self.model.open(folder)
            for text in missing:
                text.state.put(key, text.run(folder, ready))
                self.bar.done(_RUN)
        for _ in range(len(wanted) - len(missing)):
            self.bar.done(_RUN, cached=True)
        return [text.state.get(key) for text in wanted]

    # -- heads --------------------------------------------------------------------------

    def measure(self) -> list[dict[str, list[dict]]]:
        """Every candidate on every layer's operands, by text: {name: [layer: fields of Measured]}."""
        every = range(self.model.layers)
        missing = [{layer for layer in every if text.layer(layer) is None} for text in self.texts]
        if any(missing):
            self._measure_layers(missing)
        layers = [[text.layer(layer) for layer in every] for text in self.texts]
        return [{name: [layer[name] for layer in mine] for name in self.names[1:]} for mine in layers]

    def _measure_layers(self, missing: list[set[int]]) -> None:
        model = self.model
        dense = Kernels(model.dense, self.options.threads)
        sparse = {}
        for index, candidate in enumerate(self.candidates):
            plan = np.full(model.layers * self.width, index + 1)
            sparse[candidate.name] = Kernels(
                model.compile(self.heads_of(plan), f"candidate-{index}"), self.options.threads
            )
        for text, layers in zip(self.texts, missing, strict=True):
            repeats = self.options.repeats if text.timed else 0
            for operands in text.operands(layers):
                self.bar.begin(f"kernels of layer {operands.layer}")
                heads = model.heads[operands.layer]
                text.put_layer(operands.layer, measure_layer(operands, heads, dense, sparse, repeats))
                self.bar.done((_LAYER if text.timed else _UNTIMED) * len(sparse))
        for kernels in (dense, *sparse.values()):
            kernels.close()

    def arrays(self, measured: list[dict]) -> tuple[np.ndarray, np.ndarray]:
        """(error [texts, layers x width, candidates], cost [layers x width, candidates]), dense first.

        Cost is in dense attention times of a head, as the timed text says, at the mean density
        of all texts. Layers with fewer heads than the widest are filled with heads that cost
        and lose nothing.
        """
        count = self.model.layers * self.width
        error = np.zeros((len(self.texts), count, len(self.names)))
        density = np.ones((len(self.texts), count, len(self.names)))
        cost = np.ones((count, len(self.names)))
        for index, name in enumerate(self.names[1:], 1):
            for text, rows in enumerate(measured):
                for layer, row in enumerate(rows[name]):
                    heads = slice(layer * self.width, layer * self.width + self.model.heads[layer])
                    error[text, heads, index] = row["error"]
                    density[text, heads, index] = row["density"]
            timed = [measured[0][name][i] for i, causal in enumerate(self.model.causal) if causal]
            a, b = choose.fit_costs(
                np.array([row["seconds"] for row in timed]),
                np.array([row["dense_seconds"] for row in timed]),
                np.array([np.mean(row["density"]) for row in timed]),
            )
            mean = density[:, :, index].mean(0)
            cost[:, index] = mean if self.options.cost == "blocks" else a + b * mean
        for layer, causal in enumerate(self.model.causal):
            if not causal:  # Sparse patterns are not for it: never worth choosing.
                cost[layer * self.width : (layer + 1) * self.width, 1:] = 2
        return error, cost

    # -- weights ------------------------------------------------------------------------

    def probe_candidate(self, error: np.ndarray, cost: np.ndarray) -> int:
        """The candidate for runs with one group sparse: clearly lossy, yet of the useful kind.

        The one with the median error among those that are cheaper than dense.
        """
        everything = range(1, len(self.names))
        useful = [i for i in everything if cost[:, i].mean() < 1] or list(everything)
        useful.sort(key=lambda i: error[..., i].mean())
        return useful[len(useful) // 2]

    def weigh(
        self, error: np.ndarray, cost: np.ndarray, uniform: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights of heads [layers x width] and factors of candidates, see weights.py.

        `uniform` [texts, candidates] has the divergence of each candidate used everywhere, dense
        first. Every run is on one text, and they take turns.
        """
        layers, options, texts = self.model.layers, self.options, len(self.texts)
        probe = self.probe_candidate(error, cost)
        losses = []
        of_head = np.zeros((layers, self.width), int)
        for number, group in enumerate(weights.groups_of(layers, options.groups)):
            plan = np.zeros((layers, self.width), int)
            plan[group] = probe
            of_head[group] = number
            run = self.evaluate(plan, f"reach of layers {group[0]}-{group[-1]}", [number % texts])[0]
            losses.append(run["divergence"])
        randoms, plans = [], []
        for seed in range(options.random_runs):
            plan = weights.random_half(layers * self.width, len(self.candidates), seed) + 1
            plans.append(plan)
            run = self.evaluate(plan, f"random heads {seed + 1}/{options.random_runs}", [seed % texts])[0]
            randoms.append(run["divergence"])
        return weights.fit_both(
            error,
            (np.array(losses), of_head.reshape(-1), probe),
            (np.array(randoms), plans),
            uniform,
        )

    # -- choice -------------------------------------------------------------------------

    def choose(self, weighted: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The plan [layers x width] that keeps to the budget, and for every text the plan that
        the others choose at its cost.

        `weighted` [texts, heads, candidates] is what the heads' errors do to the logits.
        """
        combined = choose.over_texts(weighted)
        sequence = choose.plans(combined, cost)
        without = [np.delete(weighted, text, 0) for text in range(len(weighted)) if len(weighted) > 1]
        left_out = [choose.plans(choose.over_texts(rest), cost) for rest in without]

        def others(plan: np.ndarray) -> list[np.ndarray]:
            limit = choose.cost_of(plan, cost)
            # One text has no others: what it chose is judged by itself.
            return [choose.dearest_within(each, cost, limit) for each in left_out] or [plan]

        if self.options.max_time is not None:
            for plan in sequence:
                if choose.cost_of(plan, cost) <= self.options.max_time:
                    return plan, others(plan)
            raise CalibrationError(
                f"--max-time={self.options.max_time:.0%}: the cheapest plan takes "
                f"{choose.cost_of(sequence[-1], cost):.0%} of dense attention time"
            )
        limit = self.options.max_loss

        def held(plan: np.ndarray) -> float:
            loss = choose.held(self.left_out_runs(others(plan)), self.spread)
            if loss > limit or len(self.texts) == 1:
                return loss
            return max(loss, choose.held(self.evaluate(plan, "checking a plan"), self.spread))

        predicted = [combined[np.arange(len(p)), p].sum() for p in sequence]
        first = min(int(np.searchsorted(predicted, np.log1p(limit))), len(sequence) - 1)
        best = choose.cheapest_within(sequence, held, limit, self.options.checks, first)
        return sequence[best], others(sequence[best])

    def left_out_runs(self, plans: list[np.ndarray]) -> list[dict]:
        """The run on each text of the plan that was chosen without it."""
        return [self.evaluate(plan, "checking a plan", [text])[0] for text, plan in enumerate(plans)]

    def judged(self, runs: list[dict], plan: np.ndarray, cost: np.ndarray) -> dict:
        """Runs of a plan on all texts as one entry of `Result.runs`."""
        return {**pooled(runs), "held": choose.held(runs, self.spread), "cost": choose.cost_of(plan, cost)}

    def short_prompts(self, plan: np.ndarray) -> tuple[int, list[dict]]:
        """``dense_below`` and the checks behind it.

        A length is good if on the texts' first tokens the plan loses no more than allowed
        (with a max_loss; the mean over the texts, for few rows say nothing of the worst) and the
        model is not slower than the dense one.
        """
        checks = []
        limit = self.options.max_loss
        heads = self.heads_of(plan)
        folder = None
        below = self.tokens if not plan.any() else 0
        lengths = [n for n in SHORT_LENGTHS if n < self.tokens] if plan.any() else []
        for tokens in reversed(lengths):
            runs = []
            for text in self.texts:
                key = text.short_key(tokens, digest(heads))
                if text.state.get(key) is None:
                    self.bar.begin(f"prompts of {tokens} tokens")
                    folder = folder or self.model.compile(heads, "chosen")
                    text.state.put(key, text.short(folder, tokens, self.options.rows))
                runs.append(text.state.get(key))
            times = {name: runs[0][name] for name in ("tokens", "seconds", "dense_seconds")}
            checks.append({**pooled(runs), **times})
            loss = checks[-1]["loss"] + checks[-1]["error"]
            slower = self.options.cost == "time" and times["seconds"] > 1.02 * times["dense_seconds"]
            if slower or (limit is not None and loss > limit):
                below = max(below, 2 * tokens)
                break
        return min(below, self.tokens), checks

    def run(self) -> Result:
        """All steps."""
        layers, options, bar, texts = self.model.layers, self.options, self.bar, len(self.texts)
        bar.expect(texts + (_LAYER + (texts - 1) * _UNTIMED) * layers * len(self.candidates))
        bar.expect(_RUN * (min(layers, options.groups) + options.random_runs + texts * len(self.candidates)))
        # About half of the checks pass, and are made once more with the plan itself.
        checks = options.checks * (1.5 if texts > 1 else 1) if options.max_time is None else 1
        bar.expect(_RUN * texts * (checks + 3))
        measured = self.measure()
        error, cost = self.arrays(measured)
        everywhere, uniform = [], np.zeros((texts, len(self.names)))
        for index, candidate in enumerate(self.candidates, 1):
            plan = np.full(layers * self.width, index)
            everywhere.append((plan, self.evaluate(plan, f"everywhere {candidate.name}")))
            uniform[:, index] = [run["divergence"] for run in everywhere[-1][1]]
        self.spread = choose.spread_of([found for _, found in everywhere])
        runs = {
            candidate.name: self.judged(found, plan, cost)
            for candidate, (plan, found) in zip(self.candidates, everywhere, strict=True)
        }
        weight, factor = self.weigh(error, cost, uniform)
        plan, others = self.choose(weight[:, None] * error * factor, cost)
        # No head by head choice is kept that one candidate for all heads beats.
        if options.max_time is None:
            best = choose.cost_of(plan, cost)
            for index, name in enumerate(self.names[1:], 1):
                if runs[name]["held"] <= options.max_loss and runs[name]["cost"] < best:
                    plan, best = np.full(layers * self.width, index), runs[name]["cost"]
                    others = [plan] * texts  # Nothing in it was chosen by a text.
        found = self.evaluate(plan, "the choice")
        chosen = self.judged(found, plan, cost)
        left_out = self.left_out_runs(others)
        chosen["held"] = max(chosen["held"], choose.held(left_out, self.spread))
        chosen["spread"] = self.spread
        chosen["texts"] = [{"name": text.name, **run} for text, run in zip(self.texts, found, strict=True)]
        if texts > 1:
            for entry, run in zip(chosen["texts"], left_out, strict=True):
                entry["left_out"] = run["loss"]
        below, short = self.short_prompts(plan)
        exact = [text.dense() for text in self.texts]
        dense = {
            "perplexity": float(np.exp(np.mean([run["nll"] for run in exact]))),
            "seconds": float(np.mean([run["seconds"] for run in exact])),
        }
        means = {name: average([each[name] for each in measured]) for name in self.names[1:]}
        heads = self._described(plan, means, cost)
        return Result(heads, below, plan, self.names, means, weight, cost, runs, chosen, dense, short)

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
    """What a text's state is filed under: contents of model, compiler and text, candidates, options."""
    described = [[c.name, c.head, sorted((str(k), v) for k, v in c.heads.items())] for c in candidates]
    return digest(*model_files(model), find_compiler(), ids, described, options.measuring())


def calibrate(
    path: Path,
    documents: list[Document],
    candidates: list[Candidate],
    options: Options,
    state: Path | None = None,
    progress: bool = True,
    report: Path | None = None,
) -> Result:
    """Calibrates a model on texts of one length.

    Args:
        path: the ONNX model.
        documents: the texts; kernels are timed on the first.
        candidates: what heads may be given besides dense.
        state: where to keep what is measured; None: the user's cache folder.
        report: folder for a page with pictures.

    Raises `CalibrationError`.
    """
    from . import report as pages  # It needs Result.

    base = state or default_folder()
    states = [State(base / state_key(path, each.ids, candidates, options)) for each in documents]
    bar = Progress(progress)
    with work_folder(path, states[0].folder) as name:
        # All rows of the last layer, too: it is measured as the others are.
        model = Model(path, Path(name), options.threads, {"row_liveness": "off"})
        vocabulary = model.find_vocabulary()
        for document in documents:
            check_range(document, vocabulary)
        texts = [
            Text(model, document, options.rows, kept, bar, timed=number == 0)
            for number, (document, kept) in enumerate(zip(documents, states, strict=True))
        ]
        try:
            calibration = Calibration(model, texts, candidates, options, bar)
            result = calibration.run()
            if report:
                bar.begin("report")
                shown = pages.picks(result)
                maps = model.block_maps(calibration.heads_of(result.plan), texts[0].ids, shown)
                pages.write(report, result, path.name, texts[0].tokens, maps)
            return result
        finally:
            bar.close()


def rounded(run: dict) -> dict:
    """A run for a plan's file: no times, no digits that say nothing."""
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in run.items() if k != "seconds"}


def plan_text(result: Result, model: str, kind: str = "extended", target: str = "cpu") -> str:
    """The file that is written: ours ("extended") or MInference's list ("minference")."""
    if kind == "minference":
        rows = [
            {str(i): to_minference(head, head.get("recall", 1.0)) for i, head in enumerate(row)}
            for row in result.heads
        ]
        return json.dumps(rows, indent=2) + "\n"
    body = configuration(result.heads, model, result.dense_below, target)
    texts = [rounded(text) for text in result.chosen["texts"]]
    body["calibration"] = {
        "dense_perplexity": round(result.dense["perplexity"], 4),
        **rounded({key: value for key, value in result.chosen.items() if key != "texts"}),
        "texts": texts,
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
