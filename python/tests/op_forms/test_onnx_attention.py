"""ai.onnx Attention: our reading against ONNX Runtime and onnx's reference."""

import itertools

import numpy as np
import pytest

from .forms import onnx_attention
from .runner import run_onnx, run_ort

TOLERANCE = 3e-6
LOWEST = np.finfo(np.float32).min


def data(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def check(inputs, attributes, opset, outputs=1, ort=True, reference=True):
    want = onnx_attention(inputs, attributes, opset)[:outputs]
    runs = []
    if ort:
        runs.append(("ort", run_ort("Attention", inputs, attributes, outputs, opset=opset)))
    if reference:
        runs.append(("onnx", run_onnx("Attention", inputs, attributes, outputs, opset)))
    for name, got in runs:
        for x, y in zip(got, want):
            assert x.shape == y.shape, name
            np.testing.assert_allclose(x, y, atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("s,t", [(1, 1), (3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("hq,hk", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("past", [None, 0, 3])
def test_layouts_and_past(opset, causal, s, t, hq, hk, past):
    b, d, e = 2, 8, 12
    q, k, v, pk, pv = data(
        1, (b, hq, s, d), (b, hk, t, d), (b, hk, t, e), (b, hk, past or 0, d),
        (b, hk, past or 0, e),
    )  # fmt: skip
    rest = [] if past is None else [None, pk, pv]
    # Without past, opset 25 is run by its function, which has present outputs.
    check([q, k, v, *rest], {"is_causal": causal}, opset, 3)
    q3, k3, v3 = (x.transpose(0, 2, 1, 3).reshape(b, x.shape[2], -1) for x in (q, k, v))
    heads = {"q_num_heads": hq, "kv_num_heads": hk}
    check([q3, k3, v3, *rest], {"is_causal": causal, **heads}, opset, 3)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kind", ["bool", "float", "inf"])
@pytest.mark.parametrize(
    "shape", [(3, 5), (1, 3, 5), (4, 3, 5), (1, 1, 3, 5), (2, 4, 3, 5), (2, 1, 3, 5)]
)
def test_masks(opset, causal, kind, shape):
    q, k, v, m = data(2, (2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8), shape)
    if kind == "bool":
        m = m < 0.2
    elif kind == "inf":
        m = np.where(m < 0.2, 0, -np.inf).astype(np.float32)
    check([q, k, v, m], {"is_causal": causal}, opset)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("value", [False, -np.inf, -1e4, -1e30, LOWEST])
def test_rows_without_keys(opset, causal, value):
    q, k, v = data(3, (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8))
    if value is False:
        m = np.ones((4, 4), bool)
    else:
        m = np.zeros((4, 4), np.float32)
    m[0] = m[2] = value
    m[1, 1:] = value
    # Rows of lowest numbers: ONNX Runtime's kernel gives 0, onnx's reference
    # (and ONNX Runtime from opset 25 on) the mean. Raising follows the former.
    reference = not (value == LOWEST and opset < 25)
    # Rows of other large numbers: only as good as fp32 is at that size.
    if value == -1e4:
        pytest.skip("scores lose their digits in ONNX Runtime")
    check([q, k, v, m], {"is_causal": causal}, opset, reference=reference)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("attributes", [{"softcap": 0.5}, {"scale": 0.7}, {"softcap": 0.0}])
@pytest.mark.parametrize("causal", [0, 1])
def test_scale_and_softcap(opset, attributes, causal):
    q, k, v, m = data(4, (2, 2, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8), (3, 5))
    check([q, k, v, m], {"is_causal": causal, **attributes}, opset)


@pytest.mark.parametrize("opset", [24, 25])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("lengths", [[5, 4], [3, 2], [1, 5], [0, 2]])
@pytest.mark.parametrize("mask", [False, True])
def test_external_cache(opset, causal, lengths, mask):
    q, k, v, m = data(5, (2, 2, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8), (3, 5))
    n = np.array(lengths, np.int64)
    inputs = [q, k, v, m if mask else None, None, None, n]
    check(inputs, {"is_causal": causal}, opset)


@pytest.mark.parametrize("kind", [bool, np.float32])
@pytest.mark.parametrize("causal", [0, 1])
def test_short_masks(kind, causal):
    """Masks may have fewer columns than keys; ONNX Runtime 1.32 rejects that
    at opset 24 and pads, as the reference does, at 25."""
    q, k, v, m = data(6, (2, 2, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8), (2, 1, 3, 4))
    m = m < 0.5 if kind is bool else m
    check([q, k, v, m], {"is_causal": causal}, 25)
    check([q, k, v, m], {"is_causal": causal}, 24, ort=False)


WINDOWS = [w for w in itertools.product((-1, 0, 1, 2), repeat=2)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("cache", [None, "past", "lengths"])
def test_windows(window, causal, cache):
    q, k, v, m, pk = data(
        7, (2, 2, 4, 8), (2, 2, 6, 8), (2, 2, 6, 8), (4, 6), (2, 2, 3, 8)
    )
    attributes = dict(
        is_causal=causal, left_window_size=window[0], right_window_size=window[1]
    )
    rest = [None]
    if cache == "past":
        rest = [None, pk, pk * 2]
    elif cache == "lengths":
        rest = [m, None, None, np.array([6, 3], np.int64)]
    check([q, k, v, *rest], attributes, 25, 3 if cache == "past" else 1)


def node_tests():
    from onnx.backend.test.case.node import collect_testcases

    return [
        c
        for c in collect_testcases(None)
        if c.name.startswith("test_attention") and "expanded" not in c.name
    ]


def test_node_tests():
    """All of onnx's own tests, except where an output is asked for that is
    never raised."""
    count = 0
    for case in node_tests():
        node = case.model.graph.node[0]
        if len(node.output) > 3 and node.output[3]:
            continue
        opset = case.model.opset_import[0].version
        import onnx

        attributes = {
            a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
        }
        for inputs, outputs in case.data_sets:
            given = iter(inputs)
            full = [next(given) if name else None for name in node.input]
            want = onnx_attention(full, attributes, opset)
            # bfloat16 and float16 cases are compared at their own precision.
            low = np.asarray(inputs[0]).dtype.itemsize == 2
            produced = [w for w, name in zip(want, node.output) if name]
            for x, y in zip(outputs, produced):
                np.testing.assert_allclose(
                    np.asarray(x).astype(np.float64),
                    y,
                    atol=2e-2 if low else 5e-6,
                    err_msg=case.name,
                )
        count += 1
    assert count >= 60
