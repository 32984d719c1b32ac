"""Runs the text of `prefill-opt -emit=prefill` in numpy.

Needs the generic form (`-mlir-print-op-generic`). onnx.nodes run in ONNX Runtime,
one at a time; prefill.attention in float64. For small graphs: constants must be
printed in full.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from onnx import helper

from .prefill_reference import prefill_attention

TYPES = {
    "f32": np.float32, "f16": np.float16, "f64": np.float64, "i64": np.int64,
    "i32": np.int32, "i1": np.bool_,
}  # fmt: skip
OPERANDS = ("q", "k", "v", "bias", "key_mask", "kv_lengths", "sinks", "q_segment",
            "k_segment", "q_offset", "cos", "sin")  # fmt: skip
OPERATION = re.compile(
    r'^\s*(?:(%[\w.\-]+)(?::(\d+))? = )?"(\w+\.\w+)"\(([^)]*)\)(?: <\{(.*)\}>)?'
)


def _elements(text):
    """The array of a `dense<...> : tensor<...>`."""
    body, dims, kind = re.fullmatch(
        r"dense<(.*)> : tensor<((?:\d+x)*)(\w+)>", text, re.S
    ).groups()
    shape = [int(d) for d in dims.split("x") if d]
    dtype = TYPES[kind]
    values = []
    for item in re.findall(r"[\w.+\-]+", body):
        if item in ("true", "false"):
            values.append(item == "true")
        elif item.startswith("0x") and kind == "f32":
            values.append(struct.unpack(">f", bytes.fromhex(item[2:]))[0])
        elif item.startswith("0x") and kind == "f16":
            values.append(struct.unpack(">e", bytes.fromhex(item[2:]))[0])
        else:
            values.append(float(item) if kind[0] == "f" else int(item))
    array = np.array(values, dtype)
    return np.full(shape, array[0]) if array.size == 1 else array.reshape(shape)


def _attributes(text):
    """{name: value} of the entries of an #onnx.list or of properties."""
    found = {}
    for name, value in re.findall(
        r'(\w+) = (array<i\d+: [^>]*>|#prefill<\w+ \w+>|"[^"]*"|-?[\w.+\-]+(?: : \w+)?)',
        text,
    ):
        if value.startswith("array"):
            found[name] = [int(x) for x in re.findall(r"-?\d+", value.split(":")[1])]
        elif value.startswith("#prefill"):
            found[name] = value.split()[-1].rstrip(">")
        elif value.startswith('"'):
            found[name] = value[1:-1]
        elif value.endswith((": si64", ": i64", ": i32")):
            found[name] = int(value.split()[0])
        elif value.endswith((": f32", ": f64")):
            word = value.split()[0]
            if word.startswith("0x"):
                found[name] = struct.unpack(">f", bytes.fromhex(word[2:]))[0]
            else:
                found[name] = float(word)
    return found


def _run_node(properties, inputs, count, opset):
    import onnxruntime as ort

    listed = re.search(r"attrs = #onnx\.list<\{(.*?)\}>", properties)
    attributes = _attributes(listed.group(1)) if listed else {}
    plain = _attributes(re.sub(r"attrs = #onnx\.list<\{.*?\}>", "", properties))
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    outputs = [f"y{i}" for i in range(count)]
    domain = plain.get("op_domain", "")
    node = helper.make_node(
        plain["op_type"], names, outputs, domain=domain, **attributes
    )
    given = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for n, x in zip(names, inputs)
        if x is not None
    ]
    graph = helper.make_graph(
        [node], "g", given, [helper.make_empty_tensor_value_info(o) for o in outputs]
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {n: x for n, x in zip(names, inputs) if x is not None}
    return session.run(None, feeds)


def _run_attention(properties, operands, result_type):
    attributes = _attributes(properties)
    sizes = re.search(
        r"operandSegmentSizes = array<i32: ([^>]*)>", properties
    ).group(1)
    given = iter(operands)
    named = {
        name: next(given)
        for name, size in zip(OPERANDS, sizes.split(", "))
        if int(size)
    }
    if "cos" in named or "q_segment" in named:
        raise NotImplementedError("rotary or segments in prefill.attention")
    rank = result_type.count("x")
    keep = ("q_heads", "kv_heads", "scale", "window_left", "window_right", "softcap",
            "alignment", "masked_row", "q_layout", "k_layout", "v_layout", "o_layout")  # fmt: skip
    arguments = {k: v for k, v in attributes.items() if k in keep}
    y = prefill_attention(
        **named, **arguments, causal="causal" in properties, o_rank=rank
    )
    return [y.astype(named["q"].dtype)]


def run_text(text, feeds):
    """Outputs of the main graph. `feeds`: arrays in the order of its inputs."""
    opset = int(re.search(r'#onnx\.opset<(?:"", )?(\d+)>', text).group(1))
    values = {}
    arguments = re.search(r"\^bb0\((.*)\):", text).group(1)
    for name, x in zip(re.findall(r"(%[\w.\-]+):", arguments), feeds):
        values[name] = x
    attention = 0
    for line in text.splitlines():
        match = OPERATION.match(line)
        if not match or match.group(3) in ("builtin.module", "onnx.graph"):
            continue
        result, count, op, operands, properties = match.groups()
        operands = [
            values[o.strip()] for o in operands.split(",") if o.strip()
        ]
        if op == "onnx.initializer":
            values[result] = _elements(
                re.search(r"value = (dense<.*?> : tensor<[\w]+>)", line).group(1)
            )
            continue
        if op == "onnx.absent":
            values[result] = None
            continue
        if op == "onnx.return":
            return operands, attention
        if op == "onnx.node":
            count = int(count or 1)
            got = _run_node(properties or "", operands, count, opset)
        elif op == "prefill.attention":
            result_type = line.rsplit("->", 1)[1]
            shape = re.search(r"tensor<([^,>]*)", result_type).group(1)
            got = _run_attention(properties, operands, shape)
            attention += 1
        else:
            raise NotImplementedError(op)
        for i, y in enumerate(got):
            values[f"{result}#{i}" if len(got) > 1 else result] = y
    raise ValueError("no onnx.return")
