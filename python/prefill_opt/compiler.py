"""Runs the compiler, `prefill-opt`, as a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path


class CompileError(RuntimeError):
    """The compiler refused or failed. The text is its own one-line message.

    Attributes:
        command: the arguments it was called with.
        returncode: its exit status; negative if a signal ended it.
        stderr: everything it printed on standard error.
    """

    def __init__(self, message: str, command: list[str], returncode: int, stderr: str):
        super().__init__(message)
        self.command = command
        self.returncode = returncode
        self.stderr = stderr


def find_compiler() -> Path:
    """Where the compiler is.

    ``$PREFILL_OPT``, this package's own (in a wheel), this checkout's ``build/bin``, the PATH.

    Raises `CompileError` naming these places if it is in none of them.
    """
    override = os.environ.get("PREFILL_OPT")
    if override:
        if not os.access(override, os.X_OK):
            raise CompileError(f"PREFILL_OPT names no program: {override}", [], 127, "")
        return Path(override)
    package = Path(__file__).resolve().parent
    for folder in (package / "_compiler", package.parents[1] / "build"):
        built = folder / "bin" / "prefill-opt"
        if os.access(built, os.X_OK):
            return built
    found = shutil.which("prefill-opt")
    if found:
        return Path(found)
    raise CompileError(
        "prefill-opt was not found: run 'make build', set PREFILL_OPT or add it to PATH",
        [],
        127,
        "",
    )


def _message(command: list[str], returncode: int, stderr: str) -> str:
    """The line of `stderr` that says what went wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in lines:
        if "error:" in line:
            return line[line.index("error:") + len("error:") :].strip() or line
        if "Unknown command line argument" in line:
            return line[line.index("Unknown") :].partition("  Try:")[0]
    if returncode < 0:
        return f"prefill-opt was ended by signal {-returncode}"
    return lines[-1] if lines else f"prefill-opt failed with exit status {returncode}"


def run_compiler(
    arguments: list[str | os.PathLike], timeout: float | None = None
) -> subprocess.CompletedProcess:
    """Runs the compiler with `arguments`; returns the finished process (text output).

    Raises `CompileError` on a non-zero exit status, on a signal, and after `timeout` seconds.
    """
    command = [str(find_compiler()), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"prefill-opt took more than {timeout:g} s", command, -9, "") from error
    if done.returncode != 0:
        text = _message(command, done.returncode, done.stderr)
        raise CompileError(text, command, done.returncode, done.stderr)
    return done


def _flags(options: dict) -> list[str]:
    """Keyword options as flags: ``external_data="copy"`` is ``-external-data=copy``."""
    flags = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = "-" + name.replace("_", "-")
        flags.append(flag if value is True else f"{flag}={value}")
    return flags


def compile(
    model: str | os.PathLike,
    out: str | os.PathLike,
    sparsify: str | None = None,
    timeout: float | None = None,
    **options,
) -> Path:
    """Compiles an ONNX model into the folder `out` and returns that folder.

    Args:
        model: path of the ``.onnx`` file.
        out: folder to write; made if missing.
        sparsify: pattern with parameters, e.g. ``"vertical-slash:density=0.2"``; None: exact.
        timeout: seconds after which the compiler is stopped; None: never.
        options: further flags of the compiler, underscores for dashes; True for a bare flag,
            None and False leave it out.

    Raises `CompileError` with the compiler's one-line message.
    """
    run_compiler([model, *_flags({"sparsify": sparsify, **options}), "-o", out], timeout)
    return Path(out)


def inspect(model: str | os.PathLike, timeout: float | None = None) -> dict:
    """What the compiler finds in a model.

    Returns a dictionary whose list ``attention`` has one entry a site, with the keys layer,
    raised, reason, form, q_heads, kv_heads, head_dim and mask. Raises `CompileError`.
    """
    done = run_compiler(["inspect", model, "-json"], timeout)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise CompileError(
            f"prefill-opt inspect printed no JSON: {error}", done.args, 0, done.stderr
        ) from error
