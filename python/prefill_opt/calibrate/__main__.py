"""The command ``prefill-opt calibrate``: ``python -m prefill_opt.calibrate MODEL --data=FILE -o PLAN``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .errors import CalibrationError


def share(text: str) -> float:
    """``1%`` or ``0.01`` as a share. Raises ValueError, which argparse reports."""
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


class _Parser(argparse.ArgumentParser):
    """One line and exit status 1 on wrong arguments, as prefill-opt does."""

    def error(self, message: str):
        print(f"prefill-opt calibrate: error: {message}", file=sys.stderr)
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="prefill-opt calibrate",
        description="Chooses a sparse pattern for every attention head, measured on texts of yours.",
    )
    parser.add_argument("model", type=Path, help="the ONNX model")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="token ids (text, JSON, .npy), or text with --tokenizer; once for every file",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="the configuration file to write (MODEL.prefill.json beside it)"
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, for --data that is text")
    parser.add_argument("--tokens", type=int, default=4096, help="length of the prompts (4096)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--max-loss", type=share, default=None, help="allowed growth of perplexity (1%%)")
    budget.add_argument("--max-time", type=share, default=None, help="allowed attention time, of dense's")
    parser.add_argument("--candidates", help="patterns to choose from, 'spec;spec;...'")
    parser.add_argument("--start", type=Path, help="a configuration file whose choice is a candidate, too")
    parser.add_argument(
        "--check", metavar="PLAN", help="choose nothing: what a plan or pattern loses on these texts"
    )
    parser.add_argument("--format", choices=("extended", "minference"), default="extended")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with pictures")
    parser.add_argument("--target", choices=("cpu",), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cost", choices=("time", "blocks"), default="time", help="what is minimised")
    parser.add_argument("--rows", type=int, default=2048, help="rows of each text that give the loss")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of timings")
    parser.add_argument("--groups", type=int, default=15, help="runs with a group of layers sparse")
    parser.add_argument("--random-runs", type=int, default=15, help="runs with random heads sparse")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where an interrupted calibration goes on from"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _candidates(options, model: Path) -> list:
    """The candidates: those asked for, or the defaults that the compiler knows."""
    import tempfile

    from ..compiler import CompileError, compile, inspect
    from . import candidates as known

    minference = options.format == "minference"
    asked = [spec.strip() for spec in (options.candidates or "").split(";") if spec.strip()]
    if options.candidates is not None and not asked:
        raise CalibrationError("--candidates names none")
    specs = asked or (known.MINFERENCE_DEFAULTS if minference else known.DEFAULTS)
    found, refused = [], set()
    with tempfile.TemporaryDirectory() as folder:
        for spec in dict.fromkeys(specs):
            head = known.parse_spec(spec)
            name = spec.partition(":")[0]
            if head == known.DENSE or name in refused:
                continue
            if minference:
                known.to_minference(head, 1.0)
            try:
                compile(model, Path(folder) / "ir", sparsify=spec, emit="sparse")
            except CompileError as error:
                if asked:
                    raise CalibrationError(str(error)) from error
                refused.add(name)
                continue
            found.append(known.Candidate(spec, head))
    if options.start:
        try:
            sites = [site for site in inspect(model)["attention"] if site["raised"]]
        except CompileError as error:
            raise CalibrationError(str(error)) from error
        heads = max((site["q_heads"] for site in sites), default=0)
        found.append(known.read_configuration(options.start, len(sites), heads))
    if not found:
        raise CalibrationError("there is no candidate besides dense")
    return found


def _check(options, documents: list) -> int:
    """Prints what a plan loses; exit status 1 if that is more than a given --max-loss."""
    from .check import check

    found = check(
        options.model, documents, options.check, options.rows, options.threads, not options.quiet
    )
    width = max(len(text["name"]) for text in found["texts"])

    def line(name: str, run: dict) -> str:
        loss = f"perplexity {run['loss']:+.2%} +- {run['error']:.2%}"
        return f"{name:<{width}}  {loss}, divergence {run['divergence']:.4f}, {run['density']:.1%} of the blocks"

    for text in found["texts"]:
        times = f"{text['seconds']:.2f} s, dense {text['dense_seconds']:.2f} s"
        print(f"{line(text['name'], text)}, {times}")
    if len(documents) > 1:
        print(f"{line('all', found)}, {found['held']:+.2%} with a margin for other texts")
    if options.max_loss is not None and found["held"] > options.max_loss:
        raise CalibrationError(
            f"{options.check}: {found['held']:+.2%}, more than --max-loss={options.max_loss:.2%}"
        )
    return 0


def run(options) -> int:
    """Does what the arguments say. Raises `CalibrationError`."""
    from . import data, search
    from .state import write_atomically

    if not options.model.is_file():
        raise CalibrationError(f"no such file: {options.model}")
    for name in ("tokens", "threads", "rows", "repeats", "groups"):
        if getattr(options, name) < 1:
            raise CalibrationError(f"--{name} must be positive")
    if options.check is not None and (options.output or options.report):
        raise CalibrationError("--check writes nothing: leave out -o and --report")
    options.output = options.output or options.model.with_suffix(".prefill.json")
    if not options.output.resolve().parent.is_dir():
        raise CalibrationError(f"no such folder: {options.output.resolve().parent}")
    if options.tokens <= data.BLOCK:
        raise CalibrationError(f"--tokens={options.tokens}: it takes more than a block of {data.BLOCK}")
    documents = data.read_texts(options.data, options.tokens, options.tokenizer)
    tokens = documents[0].ids.shape[1]
    if tokens < options.tokens and not options.quiet:
        has = f"{documents[0].place} has" if len(documents) == 1 else "the texts have"
        print(f"prefill-opt calibrate: {has} {tokens} tokens only", file=sys.stderr)
    if options.check is not None:
        return _check(options, documents)
    max_loss = 0.01 if options.max_loss is None else options.max_loss
    settings = search.Options(
        max_loss=max_loss if options.max_time is None else None,
        max_time=options.max_time,
        threads=options.threads,
        repeats=options.repeats,
        rows=options.rows,
        groups=options.groups,
        random_runs=max(0, options.random_runs),
        cost=options.cost,
        target=options.target,
    )
    found = _candidates(options, options.model)
    result = search.calibrate(
        options.model, documents, found, settings, options.state, not options.quiet, options.report
    )
    text = search.plan_text(result, options.model.name, options.format, options.target)
    write_atomically(options.output, text)
    chosen = result.chosen
    what = "blocks" if options.cost == "blocks" else "dense attention time"
    margin = ""
    if len(documents) > 1:
        worst = max(chosen["texts"], key=lambda text: text["left_out"])
        margin = f"{chosen['held']:+.2%} with a margin for other texts, "
        margin += f"{worst['left_out']:+.2%} on the worst if it is left out ({worst['name']}), "
    print(
        f"{options.output}: perplexity {chosen['loss']:+.2%} +- {chosen['error']:.2%}, "
        f"{margin}divergence {chosen['divergence']:.4f}, "
        f"{chosen['density']:.1%} of the blocks, {chosen['cost']:.1%} of {what} at {tokens} tokens; "
        f"dense below {result.dense_below}"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 with one line on standard error; 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return run(options)
    except CalibrationError as error:
        line = " ".join(str(error).split())
        print(f"prefill-opt calibrate: error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nprefill-opt calibrate: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
