r"""How well does a calibration's choice carry over to a text that it has not seen?

    build/venv/bin/python benchmarks/held_out.py [--tokens 1024] [--text FILE ...] [--limit 0.01]

On SmolLM2, over tasks.calibration_texts, the frontier's two texts and the text files given, with
`auto` at several shares as candidates. First the choice per head: of the plans that some texts
choose at the cost of `auto` everywhere, the squared output error (relative to the layer's) on the
texts left out, as a share of `auto`'s. Then the budget: one share for all heads, the cheapest whose
loss some texts let pass by each rule; how often the others lose more, and at what density.
All subsets of a size are taken. Quality only: the machine may be busy. Prints, writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import tasks
from prefill_opt.calibrate import candidates as known
from prefill_opt.calibrate import choose
from prefill_opt.calibrate.data import Document
from prefill_opt.calibrate.measure import Kernels, compare
from prefill_opt.calibrate.model import Model
from prefill_opt.calibrate.state import Progress, State
from prefill_opt.calibrate.text import Text
from prefill_opt.demo import smollm2, texts

SHARES = (0.75, 0.85, 0.9, 0.95)
AUTO = 1 + SHARES.index(0.9)


def documents(tokens: int, files: list[Path]) -> list[Document]:
    """The texts; files that are too short are an error."""
    tokenizer = smollm2.tokenizer()
    found = [("topics", texts.real_text(tokenizer, tokens))]
    found.append(("docstrings", tasks.docstrings(tokenizer, tokens)))
    more = tasks.calibration_texts(tokenizer, tokens)
    found += [(f"calibration {i}", row[None]) for i, row in enumerate(more)]
    for file in files:
        ids = tokenizer.encode(file.read_text(errors="replace"), add_special_tokens=False).ids
        if len(ids) < tokens:
            raise SystemExit(f"{file} has {len(ids)} tokens only")
        found.append((file.name, np.array([ids[:tokens]], np.int64)))
    return [Document(name, ids) for name, ids in found]


def errors(model: Model, texts: list[Text], folders: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(squared error, density) of every head, both [texts, heads, 1 + shares], dense first."""
    heads, every = smollm2.Q_HEADS, set(range(model.layers))
    error = np.zeros((len(texts), model.layers, heads, 1 + len(SHARES)))
    density = np.ones_like(error)
    dense, *sparse = (Kernels(folder, model.threads) for folder in (model.dense, *folders))
    for number, text in enumerate(texts):
        for operands in text.operands(every):
            exact = dense.run(operands, heads)
            for share, kernels in enumerate(sparse, 1):
                found = compare(exact, kernels.run(operands, heads), heads)
                error[number, operands.layer, :, share] = found["error"]
                density[number, operands.layer, :, share] = found["density"]
    # Layers count alike: in units of what `auto` does to them.
    error /= error[..., AUTO].mean((0, 2))[None, :, None, None]
    return tuple(a.reshape(len(texts), -1, 1 + len(SHARES)) for a in (error, density))


def print_choice(error: np.ndarray, density: np.ndarray) -> None:
    """The first question."""
    heads, count = np.arange(error.shape[1]), len(error)
    for some in sorted({1, min(3, count - 1)}):
        for name, combine in (("mean", choose.over_texts), ("maximum", lambda e: e.max(0))):
            shares = []
            for left in range(count):
                rest = [i for i in range(count) if i != left]
                for chosen in map(list, itertools.combinations(rest, some)):
                    cost = 0.05 + density[chosen].mean(0)
                    cost[:, 0] = 1
                    limit = choose.cost_of(np.full(len(heads), AUTO), cost)
                    sequence = choose.plans(combine(error[chosen]), cost)
                    plan = choose.dearest_within(sequence, cost, limit)
                    shares.append(error[left, heads, plan].sum() / error[left, :, AUTO].sum())
            what = f"chosen from {some} by the {name}"
            print(f"{what}: {np.mean(shares):.3f} of auto's error, worst {max(shares):.3f}")


def print_budget(runs: list[list[dict]], limit: float) -> None:
    """The second; runs [shares][texts]."""
    rules = {
        "with the margin, and divergence": choose.held,
        "with the margin": lambda some: choose.held([{**run, "divergence": 0.0} for run in some]),
        "worst text": lambda some: max(run["loss"] for run in some),
        "mean": lambda some: float(np.mean([run["loss"] for run in some])),
    }
    dense = {"loss": 0.0, "error": 0.0, "divergence": 0.0, "density": 1.0}
    runs = [*runs, [dense] * len(runs[0])]
    every = range(len(runs[0]))
    for some in (1, 2, 4):
        for name, rule in rules.items():
            over, visited = [], []
            for chosen in itertools.combinations(every, some):
                row = next(row for row in runs if rule([row[i] for i in chosen]) <= limit)
                others = [row[i] for i in every if i not in chosen]
                over += [run["loss"] > limit for run in others]
                visited += [run["density"] for run in others]
            what = f"{some} texts, {name}"
            lost, blocks = np.mean(over), np.mean(visited)
            print(f"{what}: {lost:.0%} of the others lose more, {blocks:.0%} of the blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    heads = [known.parse_spec(f"sale:top-p={share},stride=4,local=64") for share in SHARES]
    found = documents(options.tokens, options.text)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = Model(smollm2.models_dir() / "smollm2" / "export" / "model.onnx", work, options.threads)
        bar = Progress()
        measured = [Text(model, each, 1024, State(work / f"{i}"), bar, False) for i, each in enumerate(found)]
        folders = [
            model.compile([[head] * smollm2.Q_HEADS] * model.layers, f"share-{i}")
            for i, head in enumerate(heads)
        ]
        runs = []
        for share, compiled in zip(SHARES, folders, strict=True):
            ready = model.open(compiled)
            runs.append([text.run(compiled, ready) for text in measured])
            print(f"share {share}", flush=True)
            for text, run in zip(measured, runs[-1], strict=True):
                print(f"    {text.name}: {run['loss']:+.2%} +- {run['error']:.2%}", flush=True)
        print_budget(runs, options.limit)
        print_choice(*errors(model, measured, folders))


if __name__ == "__main__":
    main()
