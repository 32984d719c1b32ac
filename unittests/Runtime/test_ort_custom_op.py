"""The custom op in ONNX Runtime: `pytest test_ort_custom_op.py`.

PREFILL_TEST_MODEL names libprefill_runtime_test_model.so (Model.cpp: the
reference tile function behind the real runtime), PREFILL_ORT_SLOTS
libprefill_runtime_ort_slots.so (OrtSlots.c); ctest sets them.
"""
import os
import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

LIBRARY = os.environ.get("PREFILL_TEST_MODEL")
pytestmark = pytest.mark.skipif(
    not LIBRARY, reason="PREFILL_TEST_MODEL is not set")

# ort_custom_op.c, can_infer_shapes.
needs_shapes = pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24),
    reason="no shape inference before ONNX Runtime 1.24")


def make_model(inputs, outputs, feeds, kernel="attention_f32", results=None):
    """One Attention node; feeds: (name, type, dims), results likewise."""
    node = h.make_node("Attention", inputs, outputs, domain="prefill.opt",
                       kernel=kernel)
    graph = h.make_graph(
        [node], "g", [h.make_tensor_value_info(*f) for f in feeds],
        [h.make_tensor_value_info(*r) for r in results])
    return h.make_model(
        graph, ir_version=8,
        opset_imports=[h.make_opsetid("", 18),
                       h.make_opsetid("prefill.opt", 1)])


def make_session(model, threads=2):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(LIBRARY)
    return ort.InferenceSession(model.SerializeToString(), options,
                                providers=["CPUExecutionProvider"])


QKV = [("q", T.FLOAT, ["batch", 4, "rows", 8]),
       ("k", T.FLOAT, ["batch", 2, "keys", 8]),
       ("v", T.FLOAT, ["batch", 2, "keys", 8])]
O = [("o", T.FLOAT, None)]


def random_qkv(b=2, s=37, t=50, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((b, heads, rows, 8)).astype(np.float32)
            for name, heads, rows in (("q", 4, s), ("k", 2, t), ("v", 2, t))}


def expected(q, k, v, bias=0.0, mask=None, sinks=None):
    """Causal attention, END alignment, in float64; (o, lse)."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], 1) for x in (k, v))
    s, t = q.shape[2], k.shape[2]
    x = q @ k.swapaxes(2, 3) * np.float32(8) ** -0.5 + bias
    visible = np.arange(t)[None, :] <= np.arange(s)[:, None] + t - s
    x = np.where(visible, x, -np.inf)
    if mask is not None:
        x = np.where(mask[:, None, None, :] != 0, x, -np.inf)
    m = x.max(-1, keepdims=True)
    if sinks is not None:
        m = np.maximum(m, sinks[None, :, None, None])
    p = np.exp(x - m)
    l = p.sum(-1, keepdims=True)
    if sinks is not None:
        l = l + np.exp(sinks[None, :, None, None] - m)
    return p @ v / l, (m + np.log(l))[..., 0]


def test_attention():
    session = make_session(make_model(["q", "k", "v"], ["o"], QKV, results=O))
    for shape in ((1, 1, 1), (2, 37, 50), (3, 130, 130)):
        feeds = random_qkv(*shape)
        np.testing.assert_allclose(session.run(None, feeds)[0],
                                   expected(**feeds)[0], atol=2e-6)


@needs_shapes
def test_shape_inference_keeps_names():
    session = make_session(make_model(["q", "k", "v"], ["o"], QKV, results=O))
    output = session.get_outputs()[0]
    assert output.type == "tensor(float)"
    assert output.shape == ["batch", 4, "rows", 8]


@needs_shapes
def test_shape_inference_reaches_other_nodes():
    model = make_model(["q", "k", "v"], ["x"], QKV, results=O)
    model.graph.node.append(
        h.make_node("Transpose", ["x"], ["o"], perm=[0, 2, 1, 3]))
    assert make_session(model).get_outputs()[0].shape == ["batch", "rows", 4, 8]


def test_unknown_dimensions_are_not_constants():
    """Without names ONNX Runtime would fold Shape(o) to -1."""
    feeds = [(n, T.FLOAT, [None, heads, None, 8])
             for n, heads in (("q", 4), ("k", 2), ("v", 2))]
    model = make_model(["q", "k", "v"], ["x"], feeds,
                       results=[("shape", T.INT64, [4])])
    model.graph.node.append(h.make_node("Shape", ["x"], ["shape"]))
    session = make_session(model)
    assert session.run(None, random_qkv())[0].tolist() == [2, 4, 37, 8]


def test_optional_inputs_and_outputs():
    names = ["q", "k", "v", "bias", "mask", "", "sinks"]
    feeds = QKV + [("bias", T.FLOAT, [1, 1, "rows", "keys"]),
                   ("mask", T.INT64, ["batch", "keys"]),
                   ("sinks", T.FLOAT, [4])]
    results = O + [("lse", T.FLOAT, None), ("map", T.UINT8, None)]
    session = make_session(
        make_model(names, ["o", "lse", "", "map"], feeds, results=results))
    rng = np.random.default_rng(1)
    x = random_qkv()
    extra = {"bias": rng.standard_normal((1, 1, 37, 50)).astype(np.float32),
             "mask": rng.integers(0, 2, (2, 50)),
             "sinks": rng.standard_normal(4).astype(np.float32)}
    o, lse, block_map = session.run(None, {**x, **extra})
    want_o, want_lse = expected(**x, **extra)
    np.testing.assert_allclose(o, want_o, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, atol=2e-6)
    assert block_map.shape == (2, 4, 3, 4) and block_map.dtype == np.uint8
    assert block_map[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0],
                                        [1, 1, 1, 1]]


def test_bool_mask():
    feeds = QKV + [("bias", T.BOOL, ["rows", "keys"])]
    session = make_session(
        make_model(["q", "k", "v", "bias"], ["o"], feeds, results=O))
    x = random_qkv()
    mask = np.random.default_rng(2).integers(0, 2, (37, 50)).astype(bool)
    mask[:, 0] = True
    np.testing.assert_allclose(
        session.run(None, {**x, "bias": mask})[0],
        expected(**x, bias=np.where(mask, 0, -np.inf))[0], atol=2e-6)


def test_half_precision_and_flat_layout():
    feeds = [("q", T.FLOAT16, ["batch", "rows", 32]),
             ("k", T.FLOAT16, ["batch", "keys", 16]),
             ("v", T.FLOAT16, ["batch", "keys", 16])]
    session = make_session(
        make_model(["q", "k", "v"], ["o"], feeds, "attention_f16",
                   [("o", T.FLOAT16, None)]))
    assert session.get_outputs()[0].type == "tensor(float16)"
    x = {n: a.astype(np.float16) for n, a in random_qkv().items()}
    flat = {n: a.transpose(0, 2, 1, 3).reshape(2, a.shape[2], -1)
            for n, a in x.items()}
    got = session.run(None, flat)[0].reshape(2, 37, 4, 8).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(got.astype(np.float32), expected(**x)[0],
                               atol=3e-3)


@pytest.mark.skipif("PREFILL_ORT_SLOTS" not in os.environ,
                    reason="PREFILL_ORT_SLOTS is not set")
def test_the_stream_lies_where_it_is_looked_for():
    """By its two neighbours: ONNX Runtime's table is in one order for ever."""
    node = h.make_node("Slots", ["x"], ["found"], domain="prefill.test")
    graph = h.make_graph(
        [node], "g", [h.make_tensor_value_info("x", T.FLOAT, [2])],
        [h.make_tensor_value_info("found", T.INT64, None)])
    model = h.make_model(
        graph, ir_version=8, opset_imports=[h.make_opsetid("prefill.test", 1)])
    options = ort.SessionOptions()
    options.register_custom_ops_library(os.environ["PREFILL_ORT_SLOTS"])
    session = ort.InferenceSession(model.SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    found, = session.run(None, {"x": np.zeros(2, np.float32)})
    assert found.tolist() == [1, 1, 1]


def test_unknown_kernel():
    with pytest.raises(Exception, match="kernel 'nope' is not in this library"):
        make_session(make_model(["q", "k", "v"], ["o"], QKV, "nope", O))


def test_missing_attribute():
    model = make_model(["q", "k", "v"], ["o"], QKV, results=O)
    del model.graph.node[0].attribute[:]
    with pytest.raises(Exception, match="attribute 'kernel' is missing"):
        make_session(model)


def test_errors_carry_the_message():
    feeds = [(n, T.FLOAT, None) for n in "qkv"]
    session = make_session(
        make_model(["q", "k", "v"], ["o"], feeds, results=O))
    x = random_qkv()
    with pytest.raises(Exception, match=r"kernel 'attention_f32': input K: "
                       r"expected \[2,2,\?,8\], got \[2,1,50,8\]"):
        session.run(None, {**x, "k": x["k"][:, :1]})
    with pytest.raises(Exception, match="expected rank 3 or 4"):
        session.run(None, {**x, "q": x["q"][0, 0, 0]})
    session.run(None, x)  # and the session still works


def test_concurrent_runs():
    session = make_session(make_model(["q", "k", "v"], ["o"], QKV, results=O))
    cases = [random_qkv(1 + i % 2, 20 + 7 * i, 64 + i, seed=i)
             for i in range(8)]
    want = [session.run(None, c)[0] for c in cases]
    errors = []

    def work(i):
        for _ in range(20):
            if not np.array_equal(session.run(None, cases[i])[0], want[i]):
                errors.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_threads_give_the_same_bits():
    model = make_model(["q", "k", "v"], ["o"], QKV, results=O)
    x = random_qkv(2, 300, 300)
    one = make_session(model, threads=1).run(None, x)[0]
    two = make_session(model, threads=2).run(None, x)[0]
    assert np.array_equal(one, two)


def test_no_keys():
    session = make_session(make_model(["q", "k", "v"], ["o"], QKV, results=O))
    x = random_qkv(1, 3, 0)
    assert not session.run(None, x)[0].any()
