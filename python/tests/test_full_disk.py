"""What cannot be written: one line, and nothing left behind."""

from __future__ import annotations

import os
import resource
import subprocess

import pytest
from adversarial_variants import text_of, variant
from onnx.parser import parse_model
from support import save_model

import prefill_opt


@pytest.mark.parametrize("bytes_per_file", (0, 4096, 100_000))
def test_limit_on_files(bytes_per_file, compiler, tmp_path):
    """A limit on the size of files (ulimit -f) stands in for a full disk; by itself it ends the process."""
    model = save_model(parse_model(text_of(variant())), tmp_path / "model.onnx")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [prefill_opt.find_compiler(), str(model), "-no-kernel-cache", "-o", str(out)],
        env=os.environ | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, bytes_per_file)),
    )
    assert done.returncode == 1, (done.returncode, done.stderr[-400:])
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr, done.stderr
    assert not out.exists() and not list(scratch.iterdir())
