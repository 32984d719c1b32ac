"""com.microsoft GroupQueryAttention: our reading against ONNX Runtime 1.32."""

import numpy as np
import pytest

from .forms import group_query_attention
from .runner import run_ort

LOWEST = np.finfo(np.float32).min

# batch, s, past buffer (None: no past inputs), lengths after the step, total
CASES = {
    "prompt": (2, 6, 0, [6, 6], 6),
    "prompt right-padded": (2, 6, 0, [6, 3], 6),
    "prompt without past": (2, 6, None, [6, 6], 6),
    "prompt without past, padded": (2, 6, None, [6, 3], 6),
    "prompt into a buffer": (2, 4, 9, [4, 2], 4),
    "one token": (2, 1, 0, [1, 1], 1),
    "one token into a buffer": (2, 1, 3, [1, 1], 1),
    "decode": (2, 1, 4, [5, 5], 5),
    "decode ragged": (2, 1, 4, [5, 3], 5),
    "decode buffer": (2, 1, 8, [5, 3], 5),
    "chunk": (1, 3, 4, [7], 7),
    "chunk buffer": (1, 3, 9, [7], 7),
    "chunk short": (1, 3, 4, [6], 7),
}


def build(case, hq=4, hk=2, d=16, packed=False, rotary=0, half=None, bias=None,
          positions=None, sink=False, seed=0):  # fmt: skip
    rng = np.random.default_rng(seed)

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    b, s, buffer, lengths, total = case
    q, k, v = f(b, s, hq * d), f(b, s, hk * d), f(b, s, hk * d)
    if packed:
        q, k, v = np.concatenate([q, k, v], -1), None, None
    past = [None, None] if buffer is None else [f(b, hk, buffer, d), f(b, hk, buffer, d)]
    half = half or d // 2
    tables = [f(32, half), f(32, half)] if rotary else [None, None]
    ids = None
    if positions == "random":
        ids = rng.integers(0, 20, (b, s))
    inputs = [q, k, v, *past, np.array(lengths, np.int32) - 1, np.array(total, np.int32),
              *tables, ids, bias(b, hq, s, total, f) if bias else None,
              f(hq) if sink else None]  # fmt: skip
    return inputs, dict(
        num_heads=hq, kv_num_heads=hk, do_rotary=rotary
    )


def check(inputs, attributes):
    while inputs[-1] is None:
        inputs.pop()
    got = run_ort("GroupQueryAttention", inputs, attributes, 3, "com.microsoft", 21)
    want = group_query_attention(inputs, attributes)
    s, total = inputs[0].shape[1], int(inputs[6])
    for i, (x, y) in enumerate(zip(got, want)):
        assert x.shape == y.shape
        if i == 0 and total == s:
            # Rows of right padding are unspecified (most of the time they are
            # the same all the same).
            for b, last in enumerate(inputs[5]):
                x[b, last + 1 :] = y[b, last + 1 :] = 0
        np.testing.assert_allclose(x, y, atol=4e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extra", [
    {}, {"local_window_size": 1}, {"local_window_size": 3}, {"softcap": 0.5},
    {"scale": 0.7}, {"smooth_softmax": 1}, {"smooth_softmax": 0}, {"causal": 0},
    {"rotary_interleaved": 1}, {"local_window_size": 3, "softcap": 0.5},
])  # fmt: skip
def test_cases(case, rotary, packed, extra):
    inputs, attributes = build(CASES[case], packed=packed, rotary=rotary)
    check(inputs, {**attributes, **extra})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("hq,hk,d,half", [(4, 4, 8, None), (6, 2, 32, 8), (3, 1, 16, 8)])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_heads_and_partial_rotary(case, hq, hk, d, half, interleaved):
    rotary = 1 if half else 0
    inputs, attributes = build(CASES[case], hq, hk, d, rotary=rotary, half=half)
    check(inputs, {**attributes, "rotary_interleaved": interleaved})


@pytest.mark.parametrize("case", CASES)
def test_position_ids(case):
    """A first prompt counts from the first number of all batches; afterwards
    the numbers are taken as they are."""
    inputs, attributes = build(CASES[case], rotary=1, positions="random")
    check(inputs, attributes)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 0.5])
@pytest.mark.parametrize("shape", ["full", "one"])
def test_bias_and_sink(case, sink, softcap, shape):
    def bias(b, h, s, t, f):
        return f(b, h, s, t) if shape == "full" else f(1, 1, s, t)

    inputs, attributes = build(CASES[case], bias=bias, sink=sink)
    check(inputs, {**attributes, "softcap": softcap})


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("value", [-np.inf, LOWEST, -1e30])
def test_rows_without_keys(causal, value):
    """With `causal`, a row of -inf or of lowest numbers gives 0; without, -inf
    gives NaN and the lowest number the mean."""

    def bias(b, h, s, t, f):
        x = np.zeros((1, 1, s, t), np.float32)
        x[..., 1, :] = value
        return x

    inputs, attributes = build(CASES["prompt"], bias=bias)
    attributes["causal"] = causal
    got = run_ort("GroupQueryAttention", inputs[:11], attributes, 3, "com.microsoft", 21)[0][:, 1]
    want = group_query_attention(inputs[:11], attributes)[0][:, 1]
    if causal and value != -1e30:
        assert not got.any()
    elif value == -np.inf:
        assert np.isnan(got).all()
    else:
        np.testing.assert_allclose(got, want, atol=4e-6)
