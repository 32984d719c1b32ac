"""Runs one ONNX operator in ONNX Runtime or in the onnx reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

OUTPUT_NAMES = "YABCDE"


def make_model(
    op_type, inputs, attributes, outputs=1, domain="", opset=23, shapes=None
):
    """One-node model. `inputs` holds arrays, None for an omitted input;
    `outputs` a count or a list of booleans (False: omitted). `shapes` declares
    shapes of inputs; without, only ranks are declared."""
    present = [True] * outputs if isinstance(outputs, int) else list(outputs)
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    results = [OUTPUT_NAMES[i] if p else "" for i, p in enumerate(present)]
    node = helper.make_node(op_type, names, results, domain=domain, **attributes)

    def info(name, array):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = [None] * array.ndim
        if shapes:
            shape = shapes[int(name[1:])]
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [node],
        "g",
        [info(n, x) for n, x in zip(names, inputs) if x is not None],
        [onnx.ValueInfoProto(name=r) for r in results if r],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run_ort(op_type, inputs, attributes, outputs=1, domain="", opset=23):
    """Outputs of ONNX Runtime's CPU provider, without graph optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    model = make_model(op_type, inputs, attributes, outputs, domain, opset)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    return session.run(None, feeds)


def run_onnx(op_type, inputs, attributes, outputs=1, opset=23):
    """Outputs of onnx's reference implementation."""
    model = make_model(op_type, inputs, attributes, outputs, "", opset)
    feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    return ReferenceEvaluator(model).run(None, feeds)
