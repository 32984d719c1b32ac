"""Which rows run together: the library's scheduler for hybrid batches (``prefill/schedule.h``)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from .artifacts import LIBRARY, load_library


class _Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("budget", ctypes.c_int64),
        ("max_requests", ctypes.c_int64),
        ("multiple", ctypes.c_int64),
    ]


class _Request(ctypes.Structure):
    _fields_ = [("prompt", ctypes.c_int64), ("computed", ctypes.c_int64), ("done", ctypes.c_int64)]


class Scheduler:
    """Decides how many rows every request gets in the next batch; holds no state of requests.

    Decode-maximal batching (SARATHI, arXiv:2308.16369): one row for every request that generates,
    the rest of the budget for prompts, those that are begun before those that wait.

    Args:
        library: ``libprefill_model.so`` or the folder that holds it.
        budget: most rows of a batch.
        max_requests: most requests that hold rows of the cache at a time, at most `budget`;
            None: 128, or `budget` if that is less.
        multiple: batches are a multiple of this many rows as far as a chunk may be cut for it.

    Raises ValueError for numbers out of range, `LoadError` if the library cannot be loaded.
    """

    def __init__(
        self,
        library: str | os.PathLike,
        budget: int = 512,
        max_requests: int | None = None,
        multiple: int = 1,
    ):
        if max_requests is None:
            max_requests = min(128, budget)
        if budget < 1:
            raise ValueError(f"budget {budget}: expected at least one row")
        if not 1 <= max_requests <= budget:
            raise ValueError(f"max_requests {max_requests}: expected 1 to the budget, {budget}")
        if multiple < 1:
            raise ValueError(f"multiple {multiple}: expected at least 1")
        path = Path(library)
        if path.is_dir():
            path = path / LIBRARY
        self._run = load_library(path).prefill_schedule
        self._run.restype = ctypes.c_int
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        self._options = _Options(ctypes.sizeof(_Options), budget, max_requests, multiple)
        self.max_requests = max_requests

    def next(self, requests: Sequence[tuple[int, int, bool]]) -> list[int]:
        """Rows of every request in the next batch.

        Args:
            requests: in order of arrival, each as (tokens of the prompt, how many of these are in the
                cache, finished or cancelled).

        Raises ValueError where a request is out of range or more than `max_requests` are under way.
        """
        count = len(requests)
        given = (_Request * max(count, 1))(*(_Request(p, c, bool(d)) for p, c, d in requests))
        rows = (ctypes.c_int64 * max(count, 1))()
        total = ctypes.c_int64()
        if self._run(ctypes.byref(self._options), given, count, rows, ctypes.byref(total)):
            raise ValueError(
                "a request has no prompt or more computed than its prompt, or more than "
                f"{self.max_requests} are under way"
            )
        return list(rows[:count])
