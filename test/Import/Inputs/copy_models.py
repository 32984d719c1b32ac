"""Writes every model in a folder back: copy_models.py OUT MODELS. Copies must be equal."""

import filecmp
import pathlib
import subprocess
import sys

copy = pathlib.Path(sys.argv[1]) / "copy.onnx"
models = sorted(pathlib.Path(sys.argv[2]).glob("*.onnx"))
assert models
for model in models:
    subprocess.run(["prefill-opt", model, "-emit=onnx", "-o", copy], check=True)
    assert filecmp.cmp(model, copy, shallow=False), model
