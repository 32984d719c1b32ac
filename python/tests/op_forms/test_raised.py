"""What matchOpForm makes of one-operator models, run against ONNX Runtime.

`prefill-opt -emit=prefill` gives the text, interpreter.py runs it (attention in
float64), and the outputs must be those of the operator.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from .interpreter import run_text
from .runner import make_model, run_onnx, run_ort
from .test_group_query_attention import CASES, build
from .test_multi_head_attention import padding

ROOT = Path(__file__).resolve().parents[3]
TOOL = os.environ.get("PREFILL_OPT", str(ROOT / "build" / "bin" / "prefill-opt"))
#: A program that prints the raised module of a model in generic form; for work
#: on the matchers without the rest.
OWN = os.environ.get("PREFILL_OP_FORMS_TOOL")
#: 1: compile and run the kernels instead of interpreting the text.
KERNELS = os.environ.get("PREFILL_OP_FORMS_KERNELS") == "1"

pytestmark = pytest.mark.skipif(
    not OWN and not Path(TOOL).exists(), reason="prefill-opt is not built"
)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def raise_model(model, tmp_path):
    """The module after raising, in generic form, and messages."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    if OWN:
        done = run(OWN, str(path))
        return done.stdout, done.stderr
    text = tmp_path / "m.mlir"
    done = run(TOOL, str(path), "-emit=prefill", "-explain", "-o", str(text))
    generic = run(TOOL, str(text), "-mlir-print-op-generic")
    return generic.stdout, done.stderr


def run_kernels(model, feeds, tmp_path):
    import prefill_opt

    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    prefill_opt.compile(path, out)
    assert "prefill.opt" in (out / "model.onnx").read_bytes().decode("latin1")
    session = prefill_opt.session(out)
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, feeds)))


def check(tmp_path, op, inputs, attributes, outputs, shapes, domain="", opset=23,
          atol=5e-6, oracle=run_ort, skip_rows=None):  # fmt: skip
    inputs = list(inputs)
    while inputs[-1] is None:
        inputs.pop()
    model = make_model(op, inputs, attributes, outputs, domain, opset, shapes)
    feeds = [x for x in inputs if x is not None]
    if KERNELS:
        text, got = "", run_kernels(model, feeds, tmp_path)
    else:
        text, messages = raise_model(model, tmp_path)
        got, count = run_text(text, feeds)
        assert count == 1, messages
    if oracle is run_onnx:
        want = run_onnx(op, inputs, attributes, outputs, opset)
    else:
        want = run_ort(op, inputs, attributes, outputs, domain, opset)
    for i, (x, y) in enumerate(zip(got, want)):
        assert x.shape == y.shape, (i, x.shape, y.shape)
        if i == 0 and skip_rows:
            skip_rows(x, y)
        np.testing.assert_allclose(x, y, atol=atol, rtol=0)
    return text


def refused(tmp_path, op, inputs, attributes, outputs, shapes, domain="", opset=23):
    model = make_model(op, inputs, attributes, outputs, domain, opset, shapes)
    text, messages = raise_model(model, tmp_path)
    assert "prefill.attention" not in text
    return messages


def data(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


# --- ai.onnx Attention ------------------------------------------------------


def attention_model(past, s, t, three, hq=4, hk=2, d=8, e=12, b=2):
    q, k, v, pk, pv = data(
        1, (b, hq, s, d), (b, hk, t, d), (b, hk, t, e), (b, hk, past or 0, d),
        (b, hk, past or 0, e),
    )  # fmt: skip
    keys = "t" if s != t else "s"
    shapes = [["b", hq, "s", d], ["b", hk, keys, d], ["b", hk, keys, e], None,
              ["b", hk, "p", d], ["b", hk, "p", e]]  # fmt: skip
    attributes = {}
    if three:
        q, k, v = (
            x.transpose(0, 2, 1, 3).reshape(b, x.shape[2], -1) for x in (q, k, v)
        )
        shapes[:3] = [["b", "s", hq * d], ["b", keys, hk * d], ["b", keys, hk * e]]
        attributes = {"q_num_heads": hq, "kv_num_heads": hk}
    return [q, k, v, None, *([None, None] if past is None else [pk, pv])], attributes, shapes


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("s,t", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("past", [None, 0, 3])
@pytest.mark.parametrize("three", [False, True])
def test_onnx(tmp_path, opset, causal, s, t, past, three):
    inputs, attributes, shapes = attention_model(past, s, t, three)
    attributes["is_causal"] = causal
    for outputs in (1, 3) if past is None else (3,):
        check(tmp_path, "Attention", inputs, attributes, outputs, shapes, opset=opset)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kind", ["bool", "float", "inf"])
@pytest.mark.parametrize("dims", ["st", "1st", "hst", "11st", "bhst", "b1st"])
@pytest.mark.parametrize("past", [None, 3])
def test_onnx_mask(tmp_path, opset, causal, kind, dims, past):
    s, t = 4, 4
    inputs, attributes, shapes = attention_model(past, s, t, False)
    total = t + (past or 0)
    sizes = {"1": 1, "b": 2, "h": 4, "s": s, "t": total}
    m = data(2, [sizes[c] for c in dims])[0]
    if kind == "bool":
        m = m < 0.2
    elif kind == "inf":
        m = np.where(m < 0.2, 0, -np.inf).astype(np.float32)
    inputs[3] = m
    names = {"1": 1, "b": "b", "h": 4, "s": "s", "t": "s" if past is None else "m"}
    shapes[3] = [names[c] for c in dims]
    attributes.update(is_causal=causal, softcap=0.5)
    check(tmp_path, "Attention", inputs, attributes, 3, shapes, opset=opset)


@pytest.mark.parametrize("opset", [24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("lengths", [[5, 4], [3, 2], [1, 5], [0, 2]])
@pytest.mark.parametrize("mask", [None, 5, 4])
def test_onnx_lengths(tmp_path, opset, causal, lengths, mask):
    inputs, attributes, shapes = attention_model(None, 3, 5, False)
    if mask == 4 and max(lengths) > 4:
        pytest.skip("the mask must cover the lengths")
    inputs += [np.array(lengths, np.int64)]
    shapes += [["b"]]
    if mask:
        inputs[3] = data(3, (3, mask))[0]
        shapes[3] = ["s", "m"]
    attributes["is_causal"] = causal
    oracle = run_onnx if mask == 4 and opset == 24 else run_ort
    check(tmp_path, "Attention", inputs, attributes, 1, shapes, opset=opset, oracle=oracle)


@pytest.mark.parametrize("left", [-1, 0, 2])
@pytest.mark.parametrize("right", [-1, 0, 1])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [None, 3])
@pytest.mark.parametrize("mask", [False, True])
def test_onnx_windows(tmp_path, left, right, causal, past, mask):
    inputs, attributes, shapes = attention_model(past, 4, 6, False)
    if mask:
        inputs[3] = data(3, (4, 6 + (past or 0)))[0]
        shapes[3] = ["s", "m"]
    attributes.update(is_causal=causal, left_window_size=left, right_window_size=right)
    outputs = 1 if past is None else 3
    check(tmp_path, "Attention", inputs, attributes, outputs, shapes, opset=25)


@pytest.mark.parametrize("change", [
    {"softmax_precision": 7}, {"softcap": -1.0}, {"scale": 0.0}, {"is_causal": 2},
    {"left_window_size": 2}, {"unknown": 1}, {"q_num_heads": 3},
])  # fmt: skip
def test_onnx_refused(tmp_path, change):
    inputs, attributes, shapes = attention_model(None, 4, 4, False)
    refused(tmp_path, "Attention", inputs, {**attributes, **change}, 1, shapes)


def test_onnx_scores_used(tmp_path):
    inputs, attributes, shapes = attention_model(None, 4, 4, False)
    assert "qk_matmul_output" in refused(
        tmp_path, "Attention", inputs, attributes, 4, shapes
    )


# --- com.microsoft GroupQueryAttention ---------------------------------------


def gqa_shapes(inputs, hq, hk, d, packed):
    width = (hq + 2 * hk) * d if packed else hq * d
    past = ["b", hk, "p", d]
    shapes = [["b", "s", width], ["b", "s", hk * d], ["b", "s", hk * d], past, past,
              ["b"], [], None, None, ["b", "s"], None, [hq]]  # fmt: skip
    if inputs[7] is not None:
        shapes[7] = shapes[8] = list(inputs[7].shape)
    if inputs[10] is not None:
        x = inputs[10].shape
        shapes[10] = ["b" if x[0] > 1 else 1, x[1], "s", "total"]
    return shapes


def check_gqa(tmp_path, inputs, attributes, packed=False, outputs=3):
    hq, hk = attributes["num_heads"], attributes["kv_num_heads"]
    d = inputs[0].shape[2] // (hq + 2 * hk if packed else hq)
    shapes = gqa_shapes(inputs, hq, hk, d, packed)
    s, total, lengths = inputs[0].shape[1], int(inputs[6]), inputs[5]

    def skip_rows(x, y):
        if total == s:
            for b, last in enumerate(lengths):
                x[b, last + 1 :] = y[b, last + 1 :] = 0

    return check(tmp_path, "GroupQueryAttention", inputs, attributes, outputs, shapes,
                 "com.microsoft", 21, skip_rows=skip_rows)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extra", [
    {}, {"local_window_size": 3, "softcap": 0.5}, {"scale": 0.7, "smooth_softmax": 1},
    {"causal": 0, "rotary_interleaved": 1},
])  # fmt: skip
def test_gqa(tmp_path, case, rotary, packed, extra):
    inputs, attributes = build(CASES[case], packed=packed, rotary=rotary)
    check_gqa(tmp_path, inputs, {**attributes, **extra}, packed)


@pytest.mark.parametrize("case", CASES)
def test_gqa_one_output(tmp_path, case):
    inputs, attributes = build(CASES[case], rotary=1, d=32, half=8)
    check_gqa(tmp_path, inputs, attributes, outputs=3)
    if CASES[case][2] is None:
        check_gqa(tmp_path, inputs, attributes, outputs=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("positions", [None, "random"])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("shape", ["full", "one"])
def test_gqa_bias(tmp_path, case, positions, sink, shape):
    def bias(b, h, s, t, f):
        return f(b, h, s, t) if shape == "full" else f(1, 1, s, t)

    inputs, attributes = build(
        CASES[case], rotary=1, bias=bias, sink=sink, positions=positions
    )
    check_gqa(tmp_path, inputs, attributes)


@pytest.mark.parametrize("change", [
    {"local_window_size": 0}, {"softcap": -1.0}, {"qk_output": 1},
    {"sliding_window_cache": 1, "local_window_size": 4}, {"k_quant_type": "PER_TENSOR"},
    {"causal": 0, "local_window_size": 3}, {"unknown": 1}, {"kv_num_heads": 3},
])  # fmt: skip
def test_gqa_refused(tmp_path, change):
    inputs, attributes = build(CASES["prompt"])
    shapes = gqa_shapes(inputs, 4, 2, 16, False)
    refused(tmp_path, "GroupQueryAttention", inputs[:7], {**attributes, **change}, 3,
            shapes, "com.microsoft", 21)  # fmt: skip


# --- com.microsoft MultiHeadAttention and Attention ---------------------------

H, D, B = 3, 8, 2


def mha_shapes(inputs, s, t):
    keys = "s" if s == t else "t"
    shapes = [["b", "s", H * D], ["b", keys, H * D], ["b", keys, H * D], [3 * H * D],
              None, None, ["b", H, "p", D], ["b", H, "p", D]]  # fmt: skip
    if len(inputs) > 4 and inputs[4] is not None:
        shapes[4] = {1: ["b"], 2: ["b", "m"], 3: ["b", "s", "m"]}[inputs[4].ndim]
    if len(inputs) > 5 and inputs[5] is not None:
        shapes[5] = [1, H, "s", "m"]
    return shapes


@pytest.mark.parametrize("kind", [None, "2d", "3d", "lengths"])
@pytest.mark.parametrize("bias", [None, "input", "scores", "both"])
@pytest.mark.parametrize("s,t,past", [(4, 4, None), (4, 4, 5), (3, 6, None), (6, 3, 2)])
@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}, {"scale": 0.7, "mask_filter_value": -2.0}])
def test_mha(tmp_path, kind, bias, s, t, past, extra):
    rng = np.random.default_rng(1)
    total = t + (past or 0)
    f = lambda *x: rng.standard_normal(x).astype(np.float32)  # noqa: E731
    inputs = [f(B, s, H * D), f(B, t, H * D), f(B, t, H * D),
              f(3 * H * D) if bias in ("input", "both") else None,
              padding(kind, rng, s, total),
              f(1, H, s, total) if bias in ("scores", "both") else None]  # fmt: skip
    if past is not None:
        inputs += [f(B, H, past, D), f(B, H, past, D)]
    while inputs[-1] is None:
        inputs.pop()
    shapes = mha_shapes(inputs, s, t)
    attributes = {"num_heads": H, **extra}
    if extra.get("unidirectional") and s != t:
        assert "unidirectional" in refused(
            tmp_path, "MultiHeadAttention", inputs, attributes, 3, shapes, "com.microsoft", 17
        )
        return
    for opset in (11, 17):
        check(tmp_path, "MultiHeadAttention", inputs, attributes, 3, shapes,
              "com.microsoft", opset)  # fmt: skip
    if past is None:
        check(tmp_path, "MultiHeadAttention", inputs, attributes, 1, shapes,
              "com.microsoft", 17)  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
def test_mha_cross(tmp_path, bias):
    q, k, v, x = data(2, (B, 4, H * D), (B, H, 6, D), (B, H, 6, D), (3 * H * D,))
    shapes = [["b", "s", H * D], ["b", H, "t", D], ["b", H, "t", D], [3 * H * D]]
    check(tmp_path, "MultiHeadAttention", [q, k, v, x if bias else None],
          {"num_heads": H}, 1, shapes, "com.microsoft", 17)  # fmt: skip


@pytest.mark.parametrize("kind", [None, "2d", "3d", "lengths", "ranges"])
@pytest.mark.parametrize("bias", [None, "input", "both"])
@pytest.mark.parametrize("past", [None, 5])
@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}])
@pytest.mark.parametrize("opset", [11, 17])
def test_packed_weights(tmp_path, kind, bias, past, extra, opset):
    rng = np.random.default_rng(6)
    s, width = 4, 20
    total = s + (past or 0)
    f = lambda *x: rng.standard_normal(x).astype(np.float32)  # noqa: E731
    inputs = [f(B, s, width), f(width, 3 * H * D) * 0.3,
              f(3 * H * D) if bias else None, padding(kind, rng, s, total),
              None if past is None else f(2, B, H, past, D),
              f(1, H, s, total) if bias == "both" else None]  # fmt: skip
    while inputs[-1] is None:
        inputs.pop()
    shapes = [["b", "s", width], [width, 3 * H * D], [3 * H * D], None,
              [2, "b", H, "p", D], [1, H, "s", "m"]]  # fmt: skip
    batch = "b"
    if kind == "ranges":
        # Only with a known batch size can it be told from lengths.
        batch = B
        shapes[0][0] = B
    if kind:
        shapes[3] = {1: [2 * B if kind == "ranges" else batch], 2: [batch, "m"],
                     3: [batch, "s", "m"]}[inputs[3].ndim]  # fmt: skip
    attributes = {"num_heads": H, **extra}
    if past is not None and bias == "both":
        refused(tmp_path, "Attention", inputs, attributes, 2, shapes, "com.microsoft", opset)
        return
    check(tmp_path, "Attention", inputs, attributes, 2, shapes, "com.microsoft", opset)


# --- onnx's node tests --------------------------------------------------------


def test_onnx_node_tests(tmp_path):
    """Each is raised with the right numbers, or refused for its 4th output."""
    from .test_onnx_attention import node_tests

    raised, declined = 0, []
    for case in node_tests():
        node = case.model.graph.node[0]
        if any(np.asarray(x).dtype.kind == "V" for x in case.data_sets[0][0]):
            continue
        text, messages = raise_model(case.model, tmp_path)
        if "prefill.attention" not in text:
            declined.append((case.name, messages))
            continue
        for inputs, outputs in case.data_sets:
            try:
                got, _ = run_text(text, [np.asarray(x) for x in inputs])
            except Exception as error:
                raise AssertionError(f"{case.name}: {error}") from error
            low = np.asarray(inputs[0]).dtype.itemsize == 2
            for x, y in zip(got, outputs):
                np.testing.assert_allclose(
                    x, np.asarray(y), atol=2e-2 if low else 5e-6, err_msg=case.name
                )
        raised += 1
    assert raised >= 60
    # Nothing else is declined.
    for name, messages in declined:
        assert "qk_matmul_output" in messages or "qk_matmul" in name, (name, messages)
