"""The package outside of a checkout: which compiler it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import prefill_opt

CODE = "import prefill_opt; print(prefill_opt.find_compiler())"


def compiler_of(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """What the package copied to `folder` finds."""
    clean = {k: v for k, v in os.environ.items() if k != "PREFILL_OPT"}
    return subprocess.run(
        [sys.executable, "-c", CODE],
        env=clean | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
    )


def program(path: Path) -> str:
    """An empty executable."""
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_find_compiler(tmp_path):
    site = tmp_path / "lib" / "site"
    source = Path(prefill_opt.__file__).parent
    shutil.copytree(source, site / "prefill_opt", ignore=shutil.ignore_patterns("_compiler"))
    done = compiler_of(site, PATH=str(tmp_path))
    assert done.returncode != 0
    assert "prefill-opt was not found: run 'make build'" in done.stderr
    on_path = program(tmp_path / "tools" / "prefill-opt")
    path = str(tmp_path / "tools")
    assert compiler_of(site, PATH=path).stdout.strip() == on_path
    # The wheel's own comes before; setup.py puts it there.
    own = program(site / "prefill_opt" / "_compiler" / "bin" / "prefill-opt")
    assert compiler_of(site, PATH=path).stdout.strip() == own
    assert compiler_of(site, PREFILL_OPT=on_path).stdout.strip() == on_path
