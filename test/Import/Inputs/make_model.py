"""Writes a model given in protobuf's text format: make_model.py TEXT OUT.onnx."""

import sys

import onnx
from google.protobuf import text_format

with open(sys.argv[1], encoding="utf-8") as source:
    # Lines of FileCheck and RUN lines are comments to protobuf.
    model = text_format.Parse(source.read(), onnx.ModelProto())
with open(sys.argv[2], "wb") as target:
    target.write(model.SerializeToString())
