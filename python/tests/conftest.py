"""Fixtures of all tests: the compiler, a compile cache, the shared models."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import prefill_opt


@pytest.fixture(scope="session")
def compiler() -> Path:
    """Path of prefill-opt; the test is skipped where it is not built.

    PREFILL_TESTS=1 (set by scripts/test.sh) makes a missing compiler a failure instead.
    """
    try:
        return prefill_opt.find_compiler()
    except prefill_opt.CompileError as error:
        if os.environ.get("PREFILL_TESTS") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def compiled(compiler, tmp_path_factory):
    """A function (model path, **options) -> output folder, compiling each model once."""
    folders: dict[tuple, Path] = {}
    root = tmp_path_factory.mktemp("compiled")

    def get(model: Path, **options) -> Path:
        key = (str(model), *sorted(options.items()))
        if key not in folders:
            out = root / f"{len(folders)}-{Path(model).stem}"
            folders[key] = prefill_opt.compile(model, out, timeout=120, **options)
        return folders[key]

    return get


@pytest.fixture(scope="session")
def language(tmp_path_factory):
    """(path, weights as float64) of a tiny Llama that takes embeddings (vision.py)."""
    pytest.importorskip("torch")
    from vision import language_model

    return language_model(tmp_path_factory.mktemp("language"))
