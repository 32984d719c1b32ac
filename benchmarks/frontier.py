r"""The Sparse Frontier's question on this machine: what does which method cost, and for how much speed?

    build/venv/bin/python benchmarks/frontier.py [--quick] [--tokens 1024 2048 4096 8192] \
        [--sparsify SPEC ...] [--plan plan.json ...]

For every method x length on SmolLM2, against the dense compilation:

    density     visited share of the causal blocks, mean of heads, on the first text
    speed-up    of attention (the generated kernels on operands of some layers, estimate
                included, minima of interleaved repeats) and end to end (one prefill)
    estimate    share of dense attention time that does not go into visited blocks
    perplexity  of the last 1,024 tokens of two real texts: Python's language reference
                (pydoc_data.topics) and the docstrings of its standard library
    retrieval   passkeys at five depths, four keys with one asked for, a key traced through
                three assignments with a decoy; out of those that the dense model finds

Each cell (method, length) is kept in build/bench/frontier and not measured again by the same
compiler. Writes results/frontier.json and results/frontier.png.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import tasks
from common import save
from prefill_opt import find_compiler
from prefill_opt.calibrate import candidates as known
from prefill_opt.calibrate.choose import fit_costs
from prefill_opt.calibrate.measure import Kernels, measure_layer
from prefill_opt.calibrate.model import Model
from prefill_opt.calibrate.state import Progress, State, digest
from prefill_opt.demo import smollm2, texts
from prefill_opt.demo.suite import table

METHODS = [
    *(f"sale:top-p={share},stride=4,local=64" for share in (0.75, 0.8, 0.85, 0.9)),
    *(f"sale:top-p={share},stride=4,local=64,values=0" for share in (0.85, 0.9, 0.95)),
    *(f"sampled:stride=8,threshold={share}" for share in (0.8, 0.9)),
    *(f"xattention:stride=8,threshold={share}" for share in (0.8, 0.9, 0.95)),
    *(f"flexprefill:gamma={share}" for share in (0.9, 0.95)),
    *(f"sale:threshold={share}" for share in (0.008, 0.02, 0.05)),
    *(f"vertical-slash:density={share}" for share in (0.1, 0.25)),
    *(f"block-sparse:density={share}" for share in (0.1, 0.25)),
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
        self.key = digest(find_compiler(), options.threads, options.quick)

    def prompts(self, tokens: int) -> list[tuple[str, texts.Passkey]]:
        """The retrieval prompts: (task, prompt)."""
        depths = texts.DEPTHS[1::2] if self.options.quick else texts.DEPTHS
        seeds = range(2 if self.options.quick else 4)
        found = [("passkey", texts.passkey(self.tokenizer, tokens, depth)) for depth in depths]
        found += [("four keys", tasks.four_keys(self.tokenizer, tokens, seed)) for seed in seeds]
        return found + [("trace", tasks.trace(self.tokenizer, tokens, seed)) for seed in seeds]

    def whole_model(self, folder: Path, tokens: int) -> dict:
        """Perplexities, density, seconds of a prefill and which prompts are answered."""
        rows = texts.perplexity_rows(tokens, min(1024, tokens // 2))
        ready = self.model.open(folder)
        cell: dict = {"perplexity": {}, "found": []}
        seconds = []
        for name, read in (("topics", texts.real_text), ("docstrings", tasks.docstrings)):
            ids = read(self.tokenizer, tokens)
            run = self.model.run(folder, ids, rows, ready)
            cell["perplexity"][name] = texts.perplexity(run.logits, ids, rows)
            cell.setdefault("density", float(run.density.mean()))
            seconds.append(run.seconds)
        for _, prompt in self.prompts(tokens):
            run = self.model.run(folder, prompt.ids, prompt.rows, ready)
            cell["found"].append(prompt.found(run.logits))
            seconds.append(run.seconds)
        return {**cell, "seconds": min(seconds)}

    def attention(self, folders: dict[str, Path], tokens: int) -> dict[str, dict]:
        """Attention's speed-up and the estimate's share, on the operands of some layers."""
        layers = np.linspace(0, self.model.layers - 1, 2 if self.options.quick else 6).round().astype(int)
        dense = Kernels(self.model.dense, self.options.threads)
        kernels = {name: Kernels(folder, self.options.threads) for name, folder in folders.items()}
        rows: dict[str, list[dict]] = {name: [] for name in folders}
        ids = texts.real_text(self.tokenizer, tokens)
        for layer in layers:
            for operands in self.model.capture(ids, range(layer, layer + 1)):
                measured = measure_layer(operands, self.model.heads[layer], dense, kernels, 3)
                for name, row in measured.items():
                    rows[name].append(row)
        for each in (dense, *kernels.values()):
            each.close()
        found = {}
        for name, mine in rows.items():
            sparse, exact = (np.array([row[key] for row in mine]) for key in ("seconds", "dense_seconds"))
            estimate, _ = fit_costs(sparse, exact, np.array([np.mean(row["density"]) for row in mine]))
            found[name] = {"attention_speedup": float(exact.sum() / sparse.sum()), "estimate_share": estimate}
        return found

    def length(self, tokens: int, methods: dict[str, list[list[dict]]]) -> dict[str, dict]:
        """All methods at one length, "dense" first."""
        cells = {}
        missing = {}
        for name, heads in methods.items():
            key = f"{tokens}-{digest(self.key, heads)}"
            cells[name] = self.state.get(key)
            if cells[name] is None:
                missing[name] = key
            else:
                self.bar.done(1, cached=True)
        folders = {}
        for number, name in enumerate(missing):
            folders[name] = self.model.compile(methods[name], f"method-{number}")
        if missing:
            self.bar.begin(f"{tokens} tokens: attention")
        times = self.attention({n: f for n, f in folders.items() if n != "dense"}, tokens) if missing else {}
        for name, key in missing.items():
            self.bar.begin(f"{tokens} tokens: {name}")
            cells[name] = {**self.whole_model(folders[name], tokens), **times.get(name, {})}
            self.state.put(key, cells[name])
            self.bar.done(1)
        return cells

    def summary(self, tokens: int, cells: dict[str, dict]) -> list[dict]:
        """Rows of the table: a method's numbers against the dense cell's."""
        exact = cells["dense"]
        kinds = [task for task, _ in self.prompts(tokens)]
        rows = []
        for name, cell in cells.items():
            row = {"method": name, "tokens": tokens, **{k: v for k, v in cell.items() if k != "found"}}
            row["end_to_end_speedup"] = exact["seconds"] / cell["seconds"]
            row["loss"] = {
                text: value / exact["perplexity"][text] - 1 for text, value in cell["perplexity"].items()
            }
            for task in dict.fromkeys(kinds):
                able = [i for i, kind in enumerate(kinds) if kind == task and exact["found"][i]]
                row[task] = [sum(cell["found"][i] for i in able), len(able)]
            rows.append(row)
        return rows


def plot(rows: list[dict], path: Path) -> None:
    """The Pareto plot: mean loss of both texts over attention's speed-up, a panel a length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = sorted({row["tokens"] for row in rows})
    figure, panels = pyplot.subplots(1, len(lengths), figsize=(5 * len(lengths), 4.2), squeeze=False)
    for panel, tokens in zip(panels[0], lengths, strict=True):
        points = []
        for row in rows:
            if row["tokens"] == tokens and "attention_speedup" in row:
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
    lines = []
    for row in rows:
        found = [f"{row[task][0]}/{row[task][1]}" for task in ("passkey", "four keys", "trace")]
        speed, share = row.get("attention_speedup"), row.get("estimate_share")
        lines.append(
            [row["method"], str(row["tokens"]), f"{row['density']:.1%}"]
            + [f"{share:.0%}" if share is not None else "-", f"{speed:.2f}" if speed else "-"]
            + [f"{row['end_to_end_speedup']:.2f}"]
            + [f"{row['loss'][text]:+.1%}" for text in row["loss"]]
            + found
        )
    header = ["method", "tokens", "density", "estimate", "attention x", "end to end x"]
    return table([*header, "topics", "docstrings", "passkey", "four keys", "trace"], lines)


def main() -> None:
    """Measures what is missing, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--sparsify", nargs="+", help="methods instead of the usual ones")
    parser.add_argument("--plan", type=Path, nargs="*", default=[], help="calibrated configuration files")
    parser.add_argument("--quick", action="store_true", help="three methods, short prompts, fewer of them")
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
        frontier.bar.expect(len(methods) * len(lengths))
        for tokens in lengths:
            rows += frontier.summary(tokens, frontier.length(tokens, methods))
        frontier.bar.close()
    print(show(rows))
    path = save(options.name, {"model": smollm2.NAME, "threads": options.threads, "rows": rows}, [])
    plot(rows, path.with_suffix(".png"))
    print(f"\nresults: {path.parent.name}/{path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
