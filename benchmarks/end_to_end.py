"""SmolLM2-135M prefill, end to end: our compiled models against what users have today.

    build/venv/bin/python benchmarks/end_to_end.py [--tokens 1024 2048 4096 8192] [--rounds 2]

Contenders, each in a process of its own, with the same number of threads:

    export          the ONNX file as torch.onnx.export writes it, in ONNX Runtime
    genai           the onnxruntime-genai builder's GroupQueryAttention model in ONNX Runtime
    torch           transformers with PyTorch's scaled_dot_product_attention
    dense           the export through prefill-opt, exact
    auto            the export through prefill-opt -sparsify
    vertical-slash  the export through prefill-opt -sparsify=vertical-slash

Seconds are wall time of one prefill that returns logits and KV cache, minimum over rounds.
Rounds go through all contenders in turn, so that a busy moment of the machine does not hit
one of them only. Ours also answer passkeys at five depths and a perplexity text. Memory is
the peak resident set of the process in MB (10**6 bytes).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from common import Target, finish
from prefill_opt import CompileError
from prefill_opt.demo import smollm2, suite, texts
from prefill_opt.demo.contender import ContenderError, measure

OURS = {"dense": None, "auto": "auto", "vertical-slash": "vertical-slash"}
ALL = ("export", "genai", "torch", *OURS)


def prepare(names: list[str], work: Path) -> dict[str, suite.Contender]:
    """Builds or compiles what the named contenders need; failures become notes."""
    made = {}
    for name in names:
        try:
            if name == "export":
                made[name] = suite.Contender(name, "onnx", str(smollm2.build_export()))
            elif name == "genai":
                made[name] = suite.Contender(name, "genai", str(smollm2.build_genai()))
            elif name == "torch":
                smollm2.build_hf()
                made[name] = suite.Contender(name, "torch")
            else:
                made[name] = suite.compiled(name, OURS.get(name, name), work)
        except (CompileError, smollm2.ModelError) as error:
            made[name] = suite.Contender(name, "", note=str(error))
            print(f"{name}: {error}", flush=True)
    return made


def run_length(
    tokens: int, contenders: dict[str, suite.Contender], prompts: suite.Prompts, options, bar, log
) -> dict[str, dict]:
    """Measures every contender at one prompt length.

    Returns {contender: {seconds, peak_mb, all_seconds, passkeys: {depth: found}, perplexity,
    density}}; a failure gives {note}.
    """
    results: dict[str, dict] = {name: {"all_seconds": []} for name in contenders}
    for number in range(options.rounds):
        for name, contender in contenders.items():
            out = results[name]
            if contender.note:
                out["note"] = contender.note
            if "note" in out or (name == "export" and number and tokens > 2048):
                continue
            ours = contender.kind == "prefill"
            quality = number == 0 and (ours or (name == "export" and tokens <= 2048))
            keys = [prompts.passkey(tokens, depth) for depth in texts.DEPTHS]
            runs = [{**keys[2][2], "repeats": options.repeats if name != "export" else 1}]
            text = prompts.text(tokens)
            if quality:
                runs += [key[2] for i, key in enumerate(keys) if i != 2] + [text[3]]
            folder = prompts.folder.parent / "logits"
            folder.mkdir(exist_ok=True)
            runs = [{**run, "save": str(folder / f"{name}.{run['name']}.npy")} for run in runs]
            job = {"kind": contender.kind, "path": contender.path, "runs": runs}
            job["threads"] = options.threads
            statistics = folder / f"{name}.{tokens}.npz"
            if ours and quality and options.statistics:
                job["statistics"] = str(statistics)
            bar.describe(f"{tokens} tokens, round {number + 1}: {name}")
            try:
                measured = measure(job, None, log / f"{name}-{tokens}.log")
            except ContenderError as error:
                out["note"] = str(error)
                bar.write(f"{name} at {tokens}: {error}")
                continue
            finally:
                bar.skip(1)
            saved = {run["name"]: run["save"] for run in runs}
            # Every passkey prompt of a length is the same work: all of them count.
            for run_name, run in measured["runs"].items():
                if run_name.startswith("passkey"):
                    out["all_seconds"] += run["all_seconds"]
            out["seconds"] = min(out["all_seconds"])
            out["peak_mb"] = max(out.get("peak_mb", 0), measured["peak_mb"])
            if quality:
                out["passkeys"] = {
                    str(depth): key[1].found(np.load(saved[key[0]]))
                    for depth, key in zip(texts.DEPTHS, keys, strict=True)
                }
                out["perplexity"] = texts.perplexity(np.load(saved[text[0]]), text[1], text[2])
            if "statistics" in job:
                with np.load(statistics) as file:
                    found = [file[n].mean() for n in file.files if n.startswith("density_")]
                out["density"] = float(np.mean(found)) if found else None
    return results


def run_long(
    tokens: int, contenders: dict[str, suite.Contender], prompts: suite.Prompts, options, bar, log
) -> dict[str, dict]:
    """Speed and memory past the model's context; random tokens, the last row's logits."""
    results = {}
    for name in OURS:
        contender = contenders.get(name)
        if contender is None:
            continue
        bar.describe(f"{tokens} tokens: {name}")
        if contender.note:
            results[name] = {"note": contender.note}
        else:
            job = {"kind": "prefill", "path": contender.path, "threads": options.threads}
            job["runs"] = [prompts.filler(tokens)]
            try:
                measured = measure(job, None, log / f"{name}-{tokens}.log")
                seconds = next(iter(measured["runs"].values()))["seconds"]
                results[name] = {"seconds": seconds, "peak_mb": measured["peak_mb"]}
            except ContenderError as error:
                results[name] = {"note": str(error)}
        bar.skip(1)
    return results


def ratio(results: dict, over: str, under: str) -> float | None:
    """Seconds of `over` divided by seconds of `under`; None if either is missing."""
    a, b = (results.get(name, {}).get("seconds") for name in (over, under))
    return a / b if a and b else None


def targets(lengths: dict[int, dict], long: dict[int, dict]) -> list[Target]:
    """The numbers issue 3 asks for, with what was measured."""
    found: list[Target] = []
    for tokens, results in lengths.items():
        peers = [n for n in ("genai", "torch") if results.get(n, {}).get("seconds")]
        best = min(peers, key=lambda n: results[n]["seconds"]) if peers else "genai"
        if tokens >= 8192:
            bounds = {"dense": (5.5, 1.2), "auto": (8.0, 1.6), "vertical-slash": (8.0, 1.6)}
            for name, (export, peer) in bounds.items():
                if name not in results:
                    continue
                found.append(Target(f"{tokens}: {name} x export", ratio(results, "export", name), export))
                found.append(
                    Target(f"{tokens}: {name} x better peer ({best})", ratio(results, best, name), peer)
                )
                peak = results[name].get("peak_mb")
                found.append(Target(f"{tokens}: {name} peak MB", peak, 2000, at_least=False))
        else:
            for name in OURS:
                if name in results:
                    value = ratio(results, "genai", name)
                    found.append(Target(f"{tokens}: {name} x genai", value, 1 / 1.1))
        dense = results.get("dense", {}).get("passkeys")
        for name in ("auto", "vertical-slash"):
            sparse = results.get(name, {}).get("passkeys")
            if dense is None or sparse is None:
                continue
            wanted = [depth for depth, good in dense.items() if good]
            kept = sum(sparse[depth] for depth in wanted)
            note = f"dense finds {len(wanted)} of {len(dense)}"
            found.append(Target(f"{tokens}: passkeys {name} keeps", kept, len(wanted), note=note))
        if tokens >= 4096 and {"auto", "dense"} <= results.keys():
            quality = [results[name].get("perplexity") for name in ("auto", "dense")]
            if all(quality):
                value = quality[0] / quality[1]
                found.append(Target(f"{tokens}: perplexity, auto / dense", value, 1.01, False))
    for tokens, results in long.items():
        for name, result in results.items():
            found.append(Target(f"{tokens}: {name} peak MB", result.get("peak_mb"), 4000, False))
        for name in ("auto", "vertical-slash"):
            value = ratio(results, "dense", name)
            found.append(Target(f"{tokens}: {name} x dense", value, 2.5))
    return found


def show(lengths: dict[int, dict], long: dict[int, dict]) -> str:
    """The measured values as a table."""
    rows = []
    for tokens, results in [*lengths.items(), *long.items()]:
        for name, result in results.items():
            if "seconds" not in result:
                rows.append([str(tokens), name, "-", "", "", "", "", result.get("note", "")[:60]])
                continue
            keys = result.get("passkeys")
            rows.append(
                [
                    str(tokens),
                    name,
                    f"{result['seconds']:.2f}",
                    f"{tokens / result['seconds']:.0f}",
                    f"{result['peak_mb']:.0f}",
                    f"{sum(keys.values())}/{len(keys)}" if keys else "-",
                    f"{result['perplexity']:.3f}" if "perplexity" in result else "-",
                    f"{100 * result['density']:.1f} %" if result.get("density") else "-",
                ]
            )
    header = ["tokens", "contender", "seconds", "tokens/s", "peak MB", "passkeys", "perplexity", "density"]
    return suite.table(header, rows)


def main() -> int:
    """Measures, prints, writes results/end_to_end.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--long", type=int, nargs="*", default=[32768], help="speed-only lengths")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="runs a round")
    parser.add_argument("--contenders", nargs="*", default=list(ALL), metavar="NAME")
    parser.add_argument("--no-statistics", dest="statistics", action="store_false")
    parser.add_argument("--name", default="end_to_end", help="name of the result file")
    options = parser.parse_args()
    work = smollm2.models_dir().parent / "bench"
    log = work / "logs"
    log.mkdir(parents=True, exist_ok=True)
    contenders = prepare(options.contenders, work)
    prompts = suite.Prompts(work / "prompts")
    steps = len(options.tokens) * options.rounds * len(contenders) + len(OURS) * len(options.long)
    bar = suite.Progress(steps)
    lengths: dict[int, dict] = {}
    long: dict[int, dict] = {}
    for tokens in options.tokens:
        lengths[tokens] = run_length(tokens, contenders, prompts, options, bar, log)
    for tokens in options.long:
        long[tokens] = run_long(tokens, contenders, prompts, options, bar, log)
    bar.close()
    print(f"threads {options.threads}, {suite.machine()['processor']}\n")
    print(show(lengths, long))
    record = {
        "model": smollm2.NAME,
        "threads": options.threads,
        "lengths": {str(k): v for k, v in lengths.items()},
        "long": {str(k): v for k, v in long.items()},
        "compile_seconds": {n: c.compile_seconds for n, c in contenders.items() if c.compile_seconds},
    }
    return finish(options.name, record, targets(lengths, long))


if __name__ == "__main__":
    sys.exit(main())
