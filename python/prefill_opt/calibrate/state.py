"""What is already measured, kept on disk so that an interrupted calibration goes on; progress."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def write_atomically(path: str | Path, text: str) -> None:
    """Writes a file so that it is either complete or not there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(*parts) -> str:
    """A key of files (Path: their content), arrays and anything JSON can say."""
    state = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(1 << 24):
                    state.update(block)
        elif isinstance(part, np.ndarray):
            state.update(np.ascontiguousarray(part).tobytes())
        else:
            state.update(json.dumps(part, sort_keys=True).encode())
        state.update(b"\0")
    return state.hexdigest()


def model_files(path: Path) -> list[Path]:
    """The model and the weight files it names."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    found = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path, *sorted(file for name in found if (file := path.parent / name).is_file())]


def default_folder() -> Path:
    """Where states are kept: ``$PREFILL_CACHE/calibrate`` or the user's cache folder."""
    base = os.environ.get("PREFILL_CACHE")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefill-opt"
    return Path(base) / "calibrate"


def work_folder(model: Path, folder: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder for compiled variants of a model: in `folder`, or beside the model.

    Weight files are hard-linked into compiled folders, which needs the model's file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    near = len(model_files(model)) == 1 or folder.stat().st_dev == model.stat().st_dev
    try:
        return tempfile.TemporaryDirectory(prefix=".work-", dir=folder if near else model.resolve().parent)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="work-", dir=folder)


class State:
    """Results of steps as JSON files in a folder, one a step."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str):
        """The result of a step, or None if it was not done."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None

    def put(self, name: str, value) -> None:
        """Keeps the result of a step."""
        write_atomically(self.folder / f"{name}.json", json.dumps(value))

    def step(self, name: str, compute: Callable[[], object]):
        """The kept result of a step, or `compute`'s, which is then kept."""
        value = self.get(name)
        if value is None:
            value = compute()
            self.put(name, value)
        return value


class Progress:
    """A bar over the steps of a calibration with the time that is left.

    Steps are weighed in runs of the model; steps found in the state do not count for the
    speed. Where standard error is no terminal, a line every half minute instead.
    """

    def __init__(self, enabled: bool = True):
        self._terminal = enabled and sys.stderr.isatty()
        self._enabled = enabled
        self._total = self._done = self._timed = self._seconds = 0.0
        self._last = time.monotonic()
        self._shown = 0.0
        self._what = ""

    def expect(self, weight: float) -> None:
        """Adds work to come (negative: work that turned out not to be needed)."""
        self._total += weight

    def begin(self, what: str) -> None:
        """Says what runs now."""
        self._what = what
        self._last = time.monotonic()
        self._show()

    def done(self, weight: float, cached: bool = False) -> None:
        """Counts work that is over."""
        now = time.monotonic()
        self._done += weight
        if not cached:
            self._timed += weight
            self._seconds += now - self._last
        self._last = now
        self._show()

    def left(self) -> float | None:
        """Seconds left, None while unknown."""
        if self._timed == 0:
            return None
        return max(0.0, self._total - self._done) * self._seconds / self._timed

    def _show(self) -> None:
        now = time.monotonic()
        if not self._enabled or (not self._terminal and now - self._shown < 30 and self._shown):
            return
        self._shown = now
        share = min(1.0, self._done / self._total) if self._total else 0.0
        left = self.left()
        remaining = "" if left is None else f", {int(left) // 60}:{int(left) % 60:02d} left"
        if self._terminal:
            filled = int(24 * share)
            bar = "█" * filled + "░" * (24 - filled)
            sys.stderr.write(f"\r\033[K{bar} {share:4.0%}{remaining}  {self._what}")
        else:
            sys.stderr.write(f"[{share:4.0%}{remaining}] {self._what}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Ends the bar's line."""
        if self._terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
