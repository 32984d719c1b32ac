r"""What transforms of rows cost and bring on SmolLM2: prediction beside measurement.

    build/venv/bin/python benchmarks/rows.py [--tokens 1024 2048 4096 8192] [--repeats 3] \
        [--transforms NAME ...] [--threads 2] [--name rows]

For every transform, with dense attention and with vertical-slash, and every length:

    rows        that each layer computes (of attention's queries)
    TFLOP       of the linear layers, attention and the head, by `prefill-opt cost`
    seconds     of a prefill that gives the last row's logits: predicted, and the minimum of the
                repeats in a process of its own
    peak        predicted (weights and live values), and the largest resident set of that process
    passkeys    found, of five depths
    perplexity  of the last 1,024 tokens (of at most half of the text) of Python's language
                reference (pydoc_data.topics), and against the dense model's

`ape` cuts a prompt into 4 contexts between 32 tokens before and at least 64 after them; the rows whose
perplexity is taken are the question. `pack` has one prompt here (packing.py has batches).
Predictions are made for the CPU that runtime/src/cost_device.c describes, whatever runs here.
A transform that this build of the compiler does not know is left out with its reason.
Writes results/NAME.json and, with the plot of perplexity against time, results/NAME.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, Target, commit, finish
from prefill_opt import CompileError, run_compiler
from prefill_opt.compiler import compile as compile_model
from prefill_opt.demo import contender, smollm2, suite, texts

#: Options of the compiler, by name in the table. Exact ones first.
TRANSFORMS: dict[str, dict[str, str]] = {
    "dense": {"row_liveness": "off"},
    "row liveness": {},
    "pack": {"pack": "ffd"},
    "chunk 512": {"chunk": "512"},
    "lazyllm": {"prune": "lazyllm:layers=9+19+28,keep=0.7"},
    "quickprefill": {"prune": "quickprefill:group=512,topk=256,query=64"},
    "quickprefill, decay": {"prune": "quickprefill:group=512,topk=256,decay=linear,query=64"},
    "ape": {"parallel_encode": "ape:T=0.9,S=0.9"},
}
ATTENTION = ("dense", "vertical-slash")
#: LazyLLM's schedule above: rows that are kept at each stage, and after which layers (from 1).
LAZYLLM_KEEP, LAZYLLM_LAYERS = 0.7, (9, 19, 28)


def name_of(transform: str, attention: str) -> str:
    return transform if attention == "dense" else f"{transform} + {attention}"


class Rows:
    """Measures the cells of the table."""

    def __init__(self, options, work: Path):
        self.options, self.work = options, work
        self.prompts = suite.Prompts(work / "prompts")
        self.folders: dict[str, Path] = {}
        self.flags: dict[str, dict[str, str]] = {}
        self.refused: dict[str, str] = {}

    def compile(self) -> None:
        """Compiles every combination that this build takes; says why it does not take the others."""
        for transform, attention in itertools.product(self.options.transforms, ATTENTION):
            name = name_of(transform, attention)
            flags = {**TRANSFORMS[transform], "sparsify": attention}
            out = self.work / f"model-{len(self.flags) + len(self.refused)}"
            try:
                self.folders[name] = compile_model(smollm2.build_export(), out, **flags)
                self.flags[name] = flags
            except CompileError as error:
                self.refused[name] = str(error)
                print(f"left out: {name}: {error}", file=sys.stderr)

    def predict(self, name: str, tokens: int) -> dict:
        """What `prefill-opt cost` says after all transforms (of contexts that are in no store). Empty if it
        refuses them."""
        flags = [f"-{key.replace('_', '-')}={value}" for key, value in self.flags[name].items()]
        if "parallel_encode" in self.flags[name]:
            flags.append("-contexts={count}:prefix={prefix},query={query}".format(**contender.CONTEXTS))
        device = f"-device=cpu:threads={self.options.threads}"
        try:
            told = run_compiler(
                ["cost", smollm2.build_export(), f"-tokens={tokens}", device, "-json", *flags]
            )
        except CompileError as error:
            print(f"not predicted: {name}: {error}", file=sys.stderr)
            return {}
        row = [row for row in json.loads(told.stdout)["rows"] if "store" not in row["transform"]][-1]
        return {
            "rows": [a["rows"] for a in row["attentions"]],
            "flops": row["flops"],
            "seconds": row["seconds"],
            "peak_mb": row["peak_bytes"] / 1e6,
            "not_counted": row["not_counted"],
        }

    def measure(self, name: str, tokens: int, bar: suite.Progress) -> dict:
        """Seconds, memory, passkeys and perplexity of one compiled model, in a process of its own."""
        bar.describe(f"{tokens} tokens: {name}")
        runs = [{**self.prompts.filler(tokens), "repeats": self.options.repeats}]
        checks = []
        for number, depth in enumerate(self.options.depths):
            key, prompt, entry = self.prompts.passkey(tokens, depth)
            runs.append({**entry, "save": str(self.work / f"logits-{number}.npy")})
            checks.append((runs[-1]["save"], prompt))
        ids = texts.real_text(self.prompts.tokenizer, tokens)
        rows = texts.perplexity_rows(tokens, min(1024, tokens // 2))
        saved = {what: self.work / f"text.{what}.npy" for what in ("ids", "rows", "logits")}
        np.save(saved["ids"], ids)
        np.save(saved["rows"], rows)
        runs.append({"name": "text", "ids": str(saved["ids"]), "rows": str(saved["rows"])})
        runs[-1]["save"] = str(saved["logits"])
        job = {"kind": "prefill", "path": str(self.folders[name]), "threads": self.options.threads}
        done = contender.measure({**job, "runs": runs}, bar.event)
        speed = done["runs"][runs[0]["name"]]
        return {
            "seconds": speed["seconds"],
            "all_seconds": speed["all_seconds"],
            "peak_mb": speed["peak_mb"],
            "passkeys": sum(prompt.found(np.load(file)) for file, prompt in checks),
            "perplexity": texts.perplexity(np.load(saved["logits"]), ids, rows),
        }

    def all(self) -> list[dict]:
        """One record a combination and length; dense first."""
        steps = len(self.options.tokens) * len(self.folders) * (len(self.options.depths) + 3)
        bar = suite.Progress(steps)
        records = []
        for tokens, name in itertools.product(self.options.tokens, self.folders):
            record = {"name": name, "tokens": tokens, "predicted": self.predict(name, tokens)}
            try:
                record["measured"] = self.measure(name, tokens, bar)
            except contender.ContenderError as error:
                print(f"not measured: {name} at {tokens}: {error}", file=sys.stderr)
            records.append(record)
        bar.close()
        return records


def in_words(rows: list[int]) -> str:
    """Rows of all layers: "29 x 1024, 1"."""
    groups = [(value, len(list(run))) for value, run in itertools.groupby(rows)]
    return ", ".join(f"{count} x {value}" if count > 1 else str(value) for value, count in groups)


def show(records: list[dict], depths: int) -> str:
    """The table as text."""

    def cell(part: dict, key: str, form: str) -> str:
        return format(part[key], form) if key in part else "-"

    header = ["transform", "tokens", "rows a layer", "linear", "attention", "s predicted", "s"]
    header += ["MB predicted", "MB", "passkeys", "perplexity", "vs dense"]
    lines = []
    for record in records:
        predicted, measured = record["predicted"], record.get("measured", {})
        flops = {k: v / 1e12 for k, v in predicted.get("flops", {}).items()}
        exact = next((r for r in records if r["name"] == "dense" and r["tokens"] == record["tokens"]), {})
        exact = exact.get("measured", {}).get("perplexity")
        loss = f"{measured['perplexity'] / exact - 1:+.2%}" if measured and exact else "-"
        lines.append(
            [
                record["name"],
                str(record["tokens"]),
                in_words(predicted.get("rows", [])) or "-",
                *(cell(flops, kind, ".3f") for kind in ("linear", "attention")),
                cell(predicted, "seconds", ".2f"),
                cell(measured, "seconds", ".2f"),
                cell(predicted, "peak_mb", ".0f"),
                cell(measured, "peak_mb", ".0f"),
                f"{measured['passkeys']}/{depths}" if measured else "-",
                cell(measured, "perplexity", ".3f"),
                loss,
            ]
        )
    return suite.table(header, lines)


def plot(records: list[dict], path: Path) -> None:
    """Perplexity above dense's over measured and predicted seconds, a panel a length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = sorted({r["tokens"] for r in records})
    figure, panels = pyplot.subplots(1, len(lengths), figsize=(5 * len(lengths), 4.2), squeeze=False)
    for panel, tokens in zip(panels[0], lengths, strict=True):
        mine = [r for r in records if r["tokens"] == tokens and "measured" in r]
        exact = next((r["measured"]["perplexity"] for r in mine if r["name"] == "dense"), None)
        if exact is None:
            continue
        for number, record in enumerate(mine):
            measured, colour = record["measured"], f"C{number % 10}"
            loss = 100 * (measured["perplexity"] / exact - 1)
            marker = "s" if "+" in record["name"] else "o"
            panel.plot(measured["seconds"], loss, marker, color=colour, label=record["name"])
            if record["predicted"]:
                seconds = record["predicted"]["seconds"]
                panel.plot([measured["seconds"], seconds], [loss, loss], "-", color=colour, lw=0.7)
        panel.set(title=f"{tokens} tokens", xlabel="seconds (line: to the prediction)")
        panel.set_ylabel("perplexity, % above dense")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_xlim(left=0)
        panel.axhline(0, color="grey", lw=0.6)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def lazyllm_bound(layers: int) -> float:
    """How much work LazyLLM's schedule can save on linear layers: 1.47 for 32 layers."""
    shares = [LAZYLLM_KEEP ** sum(layer > stage for stage in LAZYLLM_LAYERS) for layer in range(1, layers + 1)]
    return layers / sum(shares)


def targets_of(records: list[dict]) -> list[Target]:
    """LazyLLM within 5 % of its bound, in FLOPs against row liveness; nothing of what was left out."""
    targets = []
    by = {(r["name"], r["tokens"]): r for r in records}
    for (name, tokens), record in by.items():
        exact = by.get(("row liveness", tokens))
        if name != "lazyllm" or not exact or not record["predicted"] or not exact["predicted"]:
            continue
        share = exact["predicted"]["flops"]["linear"] / record["predicted"]["flops"]["linear"]
        what = f"LazyLLM, {tokens} tokens: gain on linear layers, FLOPs"
        bound = lazyllm_bound(len(record["predicted"]["rows"]))
        targets.append(Target(what, share, 0.95 * bound, note=f"bound {bound:.3f}"))
    return targets


def main() -> int:
    """Measures, prints the table, draws the plot; the exit status is 1 on a missed target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--transforms", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS))
    parser.add_argument("--repeats", type=int, default=3, help="prefills timed of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=float, nargs="*", default=list(texts.DEPTHS))
    parser.add_argument("--name", default="rows", help="of the result files")
    options = parser.parse_args()
    smollm2.models_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=smollm2.models_dir()) as work:
        rows = Rows(options, Path(work))
        rows.compile()
        records = rows.all()
    print(show(records, len(options.depths)))
    for name, why in rows.refused.items():
        print(f"left out: {name}: {why}")
    if any("measured" in r for r in records):
        RESULTS.mkdir(exist_ok=True)
        plot(records, RESULTS / f"{options.name}.png")
    record = {"model": smollm2.NAME, "threads": options.threads, "commit": commit()}
    record |= {"left_out": rows.refused, "rows": records}
    return finish(options.name, record, targets_of(records))


if __name__ == "__main__":
    sys.exit(main())
