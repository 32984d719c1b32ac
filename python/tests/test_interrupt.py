"""Ctrl-C while a model is compiled leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from adversarial_variants import text_of, variant
from onnx.parser import parse_model
from support import save_model

import prefill_opt


@pytest.mark.parametrize("folder_exists", (False, True))
def test_interrupt(folder_exists, compiler, tmp_path):
    model = save_model(parse_model(text_of(variant())), tmp_path / "model.onnx")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    if folder_exists:
        out.mkdir()
        (out / "mine.txt").write_text("kept")
    process = subprocess.Popen(
        [prefill_opt.find_compiler(), str(model), "-no-kernel-cache", "-o", str(out)],
        env=os.environ | {"TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # As soon as something is there that must go.
    while process.poll() is None and not list(out.glob(".prefill-opt*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, said.decode()
    assert [path.name for path in out.glob("*")] == (["mine.txt"] if folder_exists else [])
    assert out.exists() == folder_exists
    assert not list(scratch.iterdir())
