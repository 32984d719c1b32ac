"""``make demo``: one long prompt through SmolLM2 in ONNX Runtime, five ways, in one table.

The export as PyTorch writes it; the same file through prefill-opt, exact; with
``-sparsify`` (``auto``), ``vertical-slash`` and ``a-shape``. Each runs in a process of its own.
Also draws which key blocks a few heads kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from ..compiler import CompileError
from . import picture, smollm2, suite, texts
from .contender import ContenderError, measure

PATTERNS = {"prefill-opt dense": None} | {
    name: name for name in ("auto", "vertical-slash", "a-shape")
}
HEADER = [
    "contender",
    "seconds",
    "speed-up",
    "tokens/s",
    "peak MB",
    "passkey",
    "max logit diff",
    "perplexity",
    "density",
]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m prefill_opt.demo", description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192, help="prompt length (8192)")
    parser.add_argument("--depth", type=float, default=0.5, help="where the key is hidden (0.5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the runtime (2)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of the prompt; the fastest counts")
    parser.add_argument("--text-tokens", type=int, help="length of the perplexity text (as the prompt)")
    parser.add_argument("--skip-export", action="store_true", help="leave out the slow first row")
    parser.add_argument("--out", type=Path, help="folder of table, JSON and picture (build/demo)")
    parser.add_argument("--no-progress", action="store_true")
    options = parser.parse_args()
    if options.tokens < 200:
        parser.error("--tokens must be at least 200: the question itself needs about 100")
    if options.tokens > smollm2.CONTEXT:
        print(f"note: {options.tokens} tokens are past the model's context of {smollm2.CONTEXT}")
    options.text_tokens = options.text_tokens or min(options.tokens, 100_000)
    return options


def _prepare(options, work: Path) -> list[suite.Contender]:
    """The model (built when missing) and the compiled folders; failures become notes."""
    if not (smollm2.models_dir() / "smollm2" / "export" / "done").exists():
        print("building the model once: GGUF -> PyTorch -> ONNX (about two minutes)", flush=True)
    export = smollm2.build_export()
    contenders = []
    if not options.skip_export:
        contenders.append(suite.Contender("export as is", "onnx", str(export)))
    for name, pattern in PATTERNS.items():
        try:
            contenders.append(suite.compiled(name, pattern, work))
            print(f"compiled {name} in {contenders[-1].compile_seconds:.1f} s", flush=True)
        except CompileError as error:
            contenders.append(suite.Contender(name, "prefill", note=f"not compiled: {error}"))
            print(f"{name}: not compiled: {error}", flush=True)
    return contenders


def _density(path: Path) -> float | None:
    """The mean density over layers, heads and rows in a statistics file."""
    with np.load(path) as file:
        names = [name for name in file.files if name.startswith("density_")]
        found = [file[name].mean() for name in names]
        # The last layer may compute a few rows only.
        rows = [file[name.replace("density", "block_map")].shape[2] for name in names]
    return float(np.average(found, weights=rows)) if found else None


def main() -> int:
    """Runs the demo; exit status 1 if any row is missing."""
    options = _arguments()
    work = options.out or Path(smollm2.models_dir()).parent / "demo"
    work.mkdir(parents=True, exist_ok=True)
    try:
        contenders = _prepare(options, work)
    except smollm2.ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    prompts = suite.Prompts(work / "prompts")
    key_name, prompt, key_run = prompts.passkey(options.tokens, options.depth)
    _, text_ids, text_rows, text_run = prompts.text(options.text_tokens)
    key_run["repeats"] = options.repeats

    bar = suite.Progress(3 * len(contenders), not options.no_progress)
    rows, records, reference = [], [], None
    started = time.perf_counter()
    for contender in contenders:
        slug = contender.name.replace(" ", "-")
        record: dict = {"name": contender.name, "note": contender.note}
        records.append(record)
        if contender.note:
            rows.append([contender.name] + ["-"] * (len(HEADER) - 1))
            bar.skip(3)
            continue
        runs = []
        for run in (key_run, text_run):
            runs.append({**run, "save": str(work / f"{slug}.{run['name']}.npy")})
        job = {
            "kind": contender.kind,
            "path": contender.path,
            "threads": options.threads,
            "runs": runs,
        }
        statistics = work / f"{slug}.statistics.npz"
        if contender.kind == "prefill":
            job["statistics"] = str(statistics)
        bar.describe(contender.name)
        try:
            measured = measure(job, bar.event, work / f"{slug}.log")
        except ContenderError as error:
            record["note"] = str(error)
            rows.append([contender.name] + ["-"] * (len(HEADER) - 1))
            continue
        key_logits = np.load(runs[0]["save"])
        text_logits = np.load(runs[1]["save"])
        if reference is None:
            reference = (contender.name, measured["runs"][key_name]["seconds"], key_logits)
        record.update(measured)
        record["density"] = 1.0
        if contender.kind == "prefill":
            record["density"] = _density(statistics)
        record["passkey_found"] = prompt.found(key_logits)
        record["max_logit_difference"] = float(np.abs(key_logits - reference[2]).max())
        record["perplexity"] = texts.perplexity(text_logits, text_ids, text_rows)
        record["speed_up"] = reference[1] / measured["runs"][key_name]["seconds"]
        seconds = measured["runs"][key_name]["seconds"]
        density = record["density"]
        rows.append(
            [
                contender.name,
                f"{seconds:.2f}",
                f"{record['speed_up']:.1f} x",
                f"{options.tokens / seconds:.0f}",
                f"{measured['peak_mb']:.0f}",
                "found" if record["passkey_found"] else "LOST",
                f"{record['max_logit_difference']:.1e}",
                f"{record['perplexity']:.3f}",
                "-" if density is None else f"{100 * density:.1f} %",
            ]
        )
    bar.close()

    title = (
        f"{smollm2.NAME}, {options.tokens} tokens, {options.threads} threads, {suite.machine()['processor']}"
    )
    text = title + "\n\n" + suite.table(HEADER, rows)
    if reference:
        text += (
            f"\n\nspeed-up and logit difference: against '{reference[0]}'; perplexity: last "
            f"{len(text_rows)} of {options.text_tokens} tokens of pydoc_data.topics; density: visited "
            f"share of the causal blocks, mean over layers and heads"
        )
    text += "".join(f"\n{r['name']}: {r['note']}" for r in records if r["note"])
    print("\n" + text + "\n")
    (work / "table.txt").write_text(text + "\n")
    summary = {
        "model": smollm2.NAME,
        "tokens": options.tokens,
        "threads": options.threads,
        "machine": suite.machine(),
        "rows": records,
    }
    (work / "demo.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name in filter(None, PATTERNS.values()):
        statistics = work / f"{name}.statistics.npz"
        if statistics.exists():
            path = picture.draw_file(statistics, work / f"{name}.png", f"{name}, {title}")
            if path:
                print(f"picture: {path}")
    print(f"table: {work / 'table.txt'} ({time.perf_counter() - started:.0f} s in all)")
    return 1 if any(record["note"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
