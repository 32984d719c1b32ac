"""What the demo and the end-to-end benchmark share: contenders, prompts, progress."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..compiler import compile as compile_model
from . import smollm2, texts


@dataclass
class Contender:
    """One way of running the model.

    Attributes:
        name: as shown in tables.
        kind: see `contender`'s jobs.
        path: model file or folder, as text.
        compile_seconds: how long prefill-opt took, 0 for the others.
        note: why it could not be prepared; empty if it was.
    """

    name: str
    kind: str
    path: str = ""
    compile_seconds: float = 0.0
    note: str = ""


def compiled(name: str, sparsify: str | None, work: Path) -> Contender:
    """Compiles the demo's export with a pattern into ``work/<name>``.

    Raises `prefill_opt.CompileError`. Compiling takes seconds, so it is done every time.
    """
    out = work / name.replace(" ", "-").replace(":", "_")
    start = time.perf_counter()
    compile_model(smollm2.build_export(), out, sparsify=sparsify)
    return Contender(name, "prefill", str(out), time.perf_counter() - start)


@dataclass
class Prompts:
    """Token files in a folder, ready for `contender` jobs."""

    folder: Path
    tokenizer: object = field(default_factory=smollm2.tokenizer)

    def _save(self, name: str, array: np.ndarray) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.npy"
        np.save(path, array)
        return str(path)

    def passkey(self, tokens: int, depth: float) -> tuple[str, texts.Passkey, dict]:
        """A passkey prompt and its run entry; the run's name is ``passkey-TOKENS-DEPTH``."""
        prompt = texts.passkey(self.tokenizer, tokens, depth)
        name = f"passkey-{tokens}-{depth:g}"
        run = {
            "name": name,
            "ids": self._save(f"{name}.ids", prompt.ids),
            "rows": self._save(f"{name}.rows", prompt.rows),
        }
        return name, prompt, run

    def text(self, tokens: int) -> tuple[str, np.ndarray, np.ndarray, dict]:
        """The perplexity text: (name, ids, rows, run entry); the name is ``text-TOKENS``."""
        ids = texts.real_text(self.tokenizer, tokens)
        rows = texts.perplexity_rows(tokens)
        name = f"text-{tokens}"
        run = {
            "name": name,
            "ids": self._save(f"{name}.ids", ids),
            "rows": self._save(f"{name}.rows", rows),
        }
        return name, ids, rows, run

    def filler(self, tokens: int) -> dict:
        """A prompt for speed only, of any length; the run's name is ``speed-TOKENS``."""
        ids = np.random.default_rng(1).integers(100, smollm2.VOCABULARY, (1, tokens))
        name = f"speed-{tokens}"
        return {
            "name": name,
            "ids": self._save(f"{name}.ids", ids),
            "rows": self._save(f"{name}.rows", np.array([tokens - 1])),
        }


class Progress:
    """One progress bar over all runs of all contenders, alive while a run takes minutes.

    Where standard error is no terminal (a log file), it prints a line a contender instead.
    """

    def __init__(self, steps: int, enabled: bool = True):
        from tqdm import tqdm

        self._lines = enabled and not sys.stderr.isatty()
        self._steps, self._done = steps, 0
        self._bar = tqdm(
            total=steps,
            disable=not enabled or self._lines,
            leave=False,
            bar_format="{l_bar}{bar:20}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            self._bar.refresh()

    def describe(self, text: str) -> None:
        """Shows what runs now."""
        if self._lines:
            print(f"[{self._done}/{self._steps}] {text}", file=sys.stderr, flush=True)
        self._bar.set_description_str(text)

    def event(self, event: dict) -> None:
        """A `contender` event: loading and every run are one step."""
        if event["event"] in ("loaded", "run"):
            self.skip(1)

    def skip(self, steps: int) -> None:
        """Counts steps that are over, done or not."""
        self._done += steps
        self._bar.update(steps)

    def write(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Ends the bar."""
        self._stop.set()
        self._thread.join()
        self._bar.close()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain text table: first column left, the others right aligned."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        parts = [cells[0].ljust(widths[0])]
        parts += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def machine() -> dict:
    """What this machine is: processor, logical CPUs, memory in GB, instruction sets."""
    import os

    model, flags = "unknown processor", ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
        elif line.startswith("flags"):
            flags = line.split(":", 1)[1]
            break
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "memory_gb": round(int(memory.split()[1]) * 1024 / 1e9, 1),
        "isa": [f for f in wanted if f" {f} " in f"{flags} "],
    }
