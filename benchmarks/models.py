"""One-attention ONNX models and sessions for the kernel benchmark."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def _model(node, inputs, outputs, opset: int = 18, contrib: bool = True) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    if contrib:
        imports.append(helper.make_opsetid("com.microsoft", 1))
    graph = helper.make_graph([node], "attention", inputs, outputs)
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def causal_attention(heads: int, kv_heads: int, dim: int, dtype: str = "float32") -> onnx.ModelProto:
    """ai.onnx Attention-23, causal, q [b, heads, s, dim], k and v [b, kv_heads, s, dim]."""
    kind = TYPES[dtype]
    node = helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=1)
    inputs = [
        helper.make_tensor_value_info("q", kind, ["b", heads, "s", dim]),
        helper.make_tensor_value_info("k", kind, ["b", kv_heads, "s", dim]),
        helper.make_tensor_value_info("v", kind, ["b", kv_heads, "s", dim]),
    ]
    output = helper.make_tensor_value_info("o", kind, ["b", heads, "s", dim])
    return _model(node, inputs, [output], 23, contrib=False)


def _session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """A session whose threads sleep when idle, so that contenders do not disturb each other."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnxruntime_calls(heads, kv_heads, dim, arrays, threads):
    """Functions that run ONNX Runtime's own attention ops on q, k, v [1, h, s, d] (float32).

    Returns {"ort gqa": f, "ort attention": f, "ort mha": f}; each returns o as [1, h, s, d].
    MultiHeadAttention has no grouped heads and is left out if there are any.
    """
    tokens = arrays[0].shape[2]
    flat = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(1, tokens, -1) for x in arrays]
    info = helper.make_tensor_value_info
    kind = TensorProto.FLOAT

    def back(o):
        return o.reshape(1, tokens, heads, dim).transpose(0, 2, 1, 3)

    node = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "", "", "sl", "tl"],
        ["o", "pk", "pv"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
    )
    inputs = [info(n, kind, None) for n in "qkv"]
    inputs += [info("sl", TensorProto.INT32, [1]), info("tl", TensorProto.INT32, [])]
    outputs = [info(n, kind, None) for n in ("o", "pk", "pv")]
    gqa = _session(_model(node, inputs, outputs), threads)
    feeds = dict(zip("qkv", flat, strict=True))
    lengths = {"sl": np.array([tokens - 1], np.int32), "tl": np.array(tokens, np.int32)}
    attention = _session(causal_attention(heads, kv_heads, dim), threads)
    feeds4 = dict(zip("qkv", arrays, strict=True))
    calls = {
        "ort gqa": lambda: back(gqa.run(["o"], {**feeds, **lengths})[0]),
        "ort attention": lambda: attention.run(None, feeds4)[0],
    }
    if heads == kv_heads:
        node = helper.make_node(
            "MultiHeadAttention",
            ["q", "k", "v"],
            ["o"],
            domain="com.microsoft",
            num_heads=heads,
            unidirectional=1,
        )
        mha = _session(_model(node, [info(n, kind, None) for n in "qkv"], [info("o", kind, None)]), threads)
        calls["ort mha"] = lambda: back(mha.run(None, feeds)[0])
    return calls


def torch_call(arrays, kv_groups: int, dtype: str):
    """PyTorch's scaled_dot_product_attention, causal, in the given type; returns (f, to numpy)."""
    import torch

    kind = getattr(torch, dtype)
    q, k, v = (torch.from_numpy(np.ascontiguousarray(x)).to(kind) for x in arrays)
    options = {"enable_gqa": True} if kv_groups > 1 else {}

    def call():
        with torch.inference_mode():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **options)

    return call
