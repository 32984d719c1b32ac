r"""The Sparse Frontier's question on this machine: what does which method cost, and for how much speed?

    build/venv/bin/python benchmarks/frontier.py [--quick] [--tokens 1024 2048 4096 8192] \
        [--sparsify SPEC ...] [--plan plan.json ...] [--measure perplexity retrieval time] [--keep]

For every method x length on SmolLM2, against the dense compilation:

    density     visited share of the causal blocks, mean of heads, on the first text
    speed-up    of attention (the generated kernels on operands of some layers, estimate
                included, minima of interleaved repeats) and end to end (one prefill)
    estimate    share of dense attention time that does not go into visited blocks
    perplexity  of the last 1,024 tokens of two real texts: Python's language reference
                (pydoc_data.topics) and the docstrings of its standard library
    retrieval   passkeys at five depths, four keys with one asked for, a key traced through
                three assignments with a decoy; only those that the dense model finds are asked

Each cell (method, length, one of perplexity, retrieval and time) is kept in
build/bench/frontier and not measured again by the same compiler; with --keep, not by a later
one either (the results name the commit of every cell). Only time depends on what else the
machine does: --measure time on a quiet one after --measure perplexity retrieval on any. At
8,192 tokens retrieval is most of the work. Cells that are kept are shown whatever --measure
says: with `--measure` alone nothing else is.
Writes results/frontier.json and results/frontier.png.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import tasks
from common import commit, save
from prefill_opt import find_compiler
from prefill_opt.calibrate import candidates as known
from prefill_opt.calibrate.choose import fit_costs
from prefill_opt.calibrate.measure import Kernels, measure_layer
from prefill_opt.calibrate.model import Model
from prefill_opt.calibrate.state import Progress, State, digest
from prefill_opt.demo import smollm2, texts
from prefill_opt.demo.suite import table

TASKS = ("passkey", "four keys", "trace")
KINDS = ["perplexity", "retrieval", "time"]
METHODS = [
    *(f"sale:top-p={share},stride=4,local=64" for share in (0.75, 0.85, 0.9)),
    "sale:top-p=0.9,stride=4,local=64,values=0",
    *(f"sale:threshold={share}" for share in (0.008, 0.02)),
    "sampled:stride=8,threshold=0.9",
    *(f"xattention:stride=8,threshold={share}" for share in (0.8, 0.9, 0.95)),
    *(f"flexprefill:gamma={share}" for share in (0.9, 0.95)),
    *(f"vertical-slash:density={share}" for share in (0.1, 0.25)),
    "block-sparse:density=0.25",
    "infllm-v2",
    "a-shape:init=128,local=1024",
]
QUICK = [
    "sale:top-p=0.85,stride=4,local=64",
    "xattention:stride=8,threshold=0.9",
    "vertical-slash:density=0.25",
]


class Frontier:
    """The cells of the table, measured or kept."""

    def __init__(self, model: Model, state: State, options):
        self.model, self.state, self.options = model, state, options
        self.tokenizer = smollm2.tokenizer()
        self.bar = Progress()
        self.build = digest(find_compiler())
        self.commit = commit()

    def prompts(self, tokens: int) -> list[tuple[str, texts.Passkey]]:
        """The retrieval prompts: (task, prompt)."""
        depths = texts.DEPTHS[1::2] if self.options.quick else texts.DEPTHS
        seeds = range(2 if self.options.quick else 4)
        found = [("passkey", texts.passkey(self.tokenizer, tokens, depth)) for depth in depths]
        found += [("four keys", tasks.four_keys(self.tokenizer, tokens, seed)) for seed in seeds]
        return found + [("trace", tasks.trace(self.tokenizer, tokens, seed)) for seed in seeds]

    def perplexity(self, folder: Path, tokens: int) -> dict:
        """Perplexities of both texts and the density on the first."""
        rows = texts.perplexity_rows(tokens, min(1024, tokens // 2))
        ready = self.model.open(folder)
        cell: dict = {"perplexity": {}}
        for name, read in (("topics", texts.real_text), ("docstrings", tasks.docstrings)):
            ids = read(self.tokenizer, tokens)
            run = self.model.run(folder, ids, rows, ready)
            cell["perplexity"][name] = texts.perplexity(run.logits, ids, rows)
            cell.setdefault("density", float(run.density.mean()))
        return cell

    def retrieval(self, folder: Path, tokens: int, able: list[bool] | None) -> dict:
        """Which prompts are answered, of those that `able` allows."""
        ready = self.model.open(folder)
        found = []
        for i, (_, prompt) in enumerate(self.prompts(tokens)):
            asked = able is None or able[i]
            found.append(
                asked and prompt.found(self.model.run(folder, prompt.ids, prompt.rows, ready).logits)
            )
        return {"found": found}

    def times(self, folders: dict[str, Path], tokens: int) -> dict[str, dict]:
        """Seconds of a prefill (minima of interleaved rounds), attention's speed-up, the estimate's share."""
        ids = texts.real_text(self.tokenizer, tokens)
        last = np.array([tokens - 1])
        found: dict[str, dict] = {name: {"seconds": np.inf} for name in folders}
        for _ in range(self.options.rounds):
            for name, folder in folders.items():
                seconds = self.model.run(folder, ids, last).seconds
                found[name]["seconds"] = min(found[name]["seconds"], seconds)
        layers = np.linspace(0, self.model.layers - 2, 2 if self.options.quick else 6).round().astype(int)
        dense = Kernels(self.model.dense, self.options.threads)
        kernels = {n: Kernels(f, self.options.threads) for n, f in folders.items() if n != "dense"}
        rows: dict[str, list[dict]] = {name: [] for name in kernels}
        for layer in layers:
            for operands in self.model.capture(ids, range(layer, layer + 1)):
                measured = measure_layer(operands, self.model.heads[layer], dense, kernels, 3)
                for name, row in measured.items():
                    rows[name].append(row)
        for each in (dense, *kernels.values()):
            each.close()
        for name, mine in rows.items():
            sparse, exact = (np.array([row[key] for row in mine]) for key in ("seconds", "dense_seconds"))
            estimate, _ = fit_costs(sparse, exact, np.array([np.mean(row["density"]) for row in mine]))
            found[name]["attention_speedup"] = float(exact.sum() / sparse.sum())
            found[name]["estimate_share"] = estimate
        return found

    def kept(self, kind: str, tokens: int, heads) -> tuple[str, dict | None]:
        """A cell's key, and the cell if it need not be measured again."""
        threads = self.options.threads if kind == "time" else None
        key = f"{kind}-{tokens}-{digest(threads, self.options.quick, heads)}"
        cell = self.state.get(key)
        if cell and (self.options.keep or cell["build"] == self.build):
            return key, cell
        return key, None

    def put(self, key: str, cell: dict) -> dict:
        """Keeps a cell with what measured it."""
        cell |= {"build": self.build, "commit": self.commit}
        self.state.put(key, cell)
        self.bar.done(1)
        return cell

    def length(self, tokens: int, methods: dict[str, list[list[dict]]]) -> dict[str, dict]:
        """All methods at one length, "dense" first: {method: {kind: cell}}."""
        cells: dict[str, dict] = {name: {} for name in methods}
        folders: dict[str, Path] = {}

        def folder(name: str) -> Path:
            if name not in folders:
                folders[name] = self.model.compile(methods[name], f"method-{list(methods).index(name)}")
            return folders[name]

        for kind in ("perplexity", "retrieval"):
            for name, heads in methods.items():
                key, cell = self.kept(kind, tokens, heads)
                if kind in self.options.measure:
                    if cell is not None:
                        self.bar.done(1, cached=True)
                    else:
                        self.bar.begin(f"{tokens} tokens: {kind} of {name}")
                        if kind == "perplexity":
                            cell = self.perplexity(folder(name), tokens)
                        else:
                            able = cells["dense"]["retrieval"]["found"] if name != "dense" else None
                            cell = self.retrieval(folder(name), tokens, able)
                        self.put(key, cell)
                if cell is not None and (name == "dense" or kind in cells["dense"]):
                    cells[name][kind] = cell
        keys = {name: self.kept("time", tokens, heads) for name, heads in methods.items()}
        # Times are compared with dense of the same run.
        missing = [name for name, (_, cell) in keys.items() if cell is None]
        if "time" in self.options.measure and missing:
            self.bar.begin(f"{tokens} tokens: times")
            names = list(dict.fromkeys(["dense", *missing]))
            times = self.times({name: folder(name) for name in names}, tokens)
            for name in missing:
                times[name]["dense_seconds"] = times["dense"]["seconds"]
                keys[name] = (keys[name][0], self.put(keys[name][0], times[name]))
        for name, (_, cell) in keys.items():
            if cell is not None:
                cells[name]["time"] = cell
        return cells

    def summary(self, tokens: int, cells: dict[str, dict]) -> list[dict]:
        """Rows of the table: a method's numbers against the dense cell's."""
        exact = cells["dense"]
        kinds = [task for task, _ in self.prompts(tokens)] if "retrieval" in exact else []
        rows = []
        for name, cell in cells.items():
            if not cell:
                continue
            row = {"method": name, "tokens": tokens}
            row["commits"] = {kind: part["commit"] for kind, part in cell.items()}
            for part in cell.values():
                row |= {k: v for k, v in part.items() if k not in ("found", "build", "commit")}
            if "time" in cell:
                row["end_to_end_speedup"] = row["dense_seconds"] / row["seconds"]
            if "perplexity" in cell:
                perplexity = exact["perplexity"]["perplexity"]
                row["loss"] = {t: value / perplexity[t] - 1 for t, value in row["perplexity"].items()}
            for task in dict.fromkeys(kinds):
                if "retrieval" not in cell:
                    continue
                able = [i for i, k in enumerate(kinds) if k == task and exact["retrieval"]["found"][i]]
                row[task] = [sum(cell["retrieval"]["found"][i] for i in able), len(able)]
            rows.append(row)
        return rows


def plot(rows: list[dict], path: Path) -> None:
    """The Pareto plot: mean loss of both texts over attention's speed-up, a panel a length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = sorted({row["tokens"] for row in rows if {"attention_speedup", "loss"} <= row.keys()})
    figure, panels = pyplot.subplots(1, len(lengths), figsize=(5 * len(lengths), 4.2), squeeze=False)
    for panel, tokens in zip(panels[0], lengths, strict=True):
        points = []
        for row in rows:
            if row["tokens"] == tokens and "attention_speedup" in row and "loss" in row:
                loss = 100 * float(np.mean(list(row["loss"].values())))
                points.append((row["attention_speedup"], loss, row["method"]))
        for family in dict.fromkeys(name.partition(":")[0] for _, _, name in points):
            mine = sorted(p for p in points if p[2].partition(":")[0] == family)
            panel.plot([p[0] for p in mine], [p[1] for p in mine], "o-", label=family)
        # The frontier: nothing else is both faster and better.
        best = sorted(
            p for p in points if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in points)
        )
        panel.plot([p[0] for p in best], [p[1] for p in best], "k--", lw=0.8, label="frontier")
        panel.set(title=f"{tokens} tokens", xlabel="attention speed-up, estimate included")
        panel.set_ylabel("perplexity, % above dense")
        panel.set_yscale("symlog", linthresh=1)
        panel.axhline(1, color="grey", lw=0.6)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def show(rows: list[dict]) -> str:
    """The table as text."""

    def cell(row: dict, key: str, form: str) -> str:
        return format(row[key], form) if key in row else "-"

    lines = []
    for row in rows:
        found = ["{}/{}".format(*row[task]) if task in row else "-" for task in TASKS]
        losses = [f"{row['loss'][text]:+.1%}" if "loss" in row else "-" for text in ("topics", "docstrings")]
        speeds = [cell(row, key, ".2f") for key in ("attention_speedup", "end_to_end_speedup")]
        share = [cell(row, "density", ".1%"), cell(row, "estimate_share", ".1%")]
        lines.append([row["method"], str(row["tokens"]), *share, *speeds, *losses, *found])
    header = ["method", "tokens", "density", "estimate", "attention x", "end to end x"]
    return table([*header, "topics", "docstrings", *TASKS], lines)


def main() -> None:
    """Measures what is missing, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--sparsify", nargs="+", help="methods instead of the usual ones")
    parser.add_argument("--plan", type=Path, nargs="*", default=[], help="calibrated configuration files")
    parser.add_argument("--quick", action="store_true", help="three methods, short prompts, fewer of them")
    parser.add_argument("--measure", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--keep", action="store_true", help="keep cells that another build measured")
    parser.add_argument("--rounds", type=int, default=2, help="prefills timed of each method")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="frontier", help="of the result files")
    options = parser.parse_args()
    lengths = options.tokens or ([1024, 2048] if options.quick else [1024, 2048, 4096, 8192])
    kept = smollm2.models_dir().parent / "bench" / "frontier"
    kept.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory(dir=smollm2.models_dir()) as work:
        model = Model(smollm2.build_export(), Path(work), options.threads)
        layers, heads = model.layers, max(model.heads)
        methods = {"dense": [[known.DENSE] * heads] * layers}
        for spec in options.sparsify or (QUICK if options.quick else METHODS):
            methods[spec] = [[known.parse_spec(spec)] * heads] * layers
        for path in options.plan:
            plan = known.read_configuration(path, layers, heads)
            rows_of_plan = [[plan.at(i, h) for h in range(heads)] for i in range(layers)]
            methods[f"calibrated:{path.stem}"] = rows_of_plan
        frontier = Frontier(model, State(kept), options)
        frontier.bar.expect(len(methods) * len(lengths) * len(options.measure))
        for tokens in lengths:
            rows += frontier.summary(tokens, frontier.length(tokens, methods))
        frontier.bar.close()
    print(show(rows))
    path = save(options.name, {"model": smollm2.NAME, "threads": options.threads, "rows": rows}, [])
    if any({"loss", "attention_speedup"} <= row.keys() for row in rows):
        plot(rows, path.with_suffix(".png"))
    print(f"\nresults: {path.parent.name}/{path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
