"""com.microsoft MultiHeadAttention and Attention against ONNX Runtime 1.32."""

import numpy as np
import pytest

from .forms import multi_head_attention, packed_weight_attention
from .runner import run_ort

H, D, B = 3, 8, 2


def rng_of(seed):
    rng = np.random.default_rng(seed)
    return rng, lambda *shape: rng.standard_normal(shape).astype(np.float32)


def compare(op, form, inputs, attributes, outputs, atol=4e-6):
    while inputs[-1] is None:
        inputs.pop()
    got = run_ort(op, inputs, attributes, outputs, "com.microsoft", 17)
    for x, y in zip(got, form(inputs, attributes)):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, atol=atol, rtol=0)


def padding(kind, rng, s, t):
    """A padding mask that leaves every batch a key."""
    if kind == "2d":
        m = rng.integers(-1, 3, (B, t))
        m[:, 0] = 1
    elif kind == "3d":
        m = rng.integers(-1, 3, (B, s, t))
        m[..., 0] = 1
    elif kind == "lengths":
        m = np.array([t, max(1, t // 2)])
    elif kind == "ranges":
        m = np.array([t, t - 1, 0, 1])
    else:
        return None
    return m.astype(np.int32)


@pytest.mark.parametrize("kind", [None, "2d", "3d", "lengths"])
@pytest.mark.parametrize("bias", [None, "input", "scores", "both"])
@pytest.mark.parametrize("s,t,past", [(4, 4, None), (4, 4, 5), (3, 6, None), (6, 3, 2), (1, 1, 4)])
@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}, {"scale": 0.7}, {"mask_filter_value": -2.0}])
def test_multi_head_attention(kind, bias, s, t, past, extra):
    rng, f = rng_of(1)
    if extra.get("unidirectional") and s != t:
        with pytest.raises(ValueError):
            multi_head_attention([f(B, s, H * D), f(B, t, H * D), f(B, t, H * D)],
                                 {"num_heads": H, **extra})  # fmt: skip
        return
    total = t + (past or 0)
    inputs = [f(B, s, H * D), f(B, t, H * D), f(B, t, H * D),
              f(3 * H * D) if bias in ("input", "both") else None,
              padding(kind, rng, s, total),
              f(1, H, s, total) if bias in ("scores", "both") else None]  # fmt: skip
    if past is not None:
        inputs += [f(B, H, past, D), f(B, H, past, D)]
    compare("MultiHeadAttention", multi_head_attention, inputs, {"num_heads": H, **extra}, 3)


@pytest.mark.parametrize("bias", [False, True])
def test_cross(bias):
    _, f = rng_of(2)
    inputs = [f(B, 4, H * D), f(B, H, 6, D), f(B, H, 6, D), f(3 * H * D) if bias else None]
    compare("MultiHeadAttention", multi_head_attention, inputs, {"num_heads": H}, 1)


def test_value_size():
    _, f = rng_of(3)
    inputs = [f(B, 4, H * D), f(B, 6, H * D), f(B, 6, H * 12), f(2 * H * D + H * 12)]
    compare("MultiHeadAttention", multi_head_attention, inputs, {"num_heads": H}, 1)


@pytest.mark.parametrize("causal", [0, 1])
def test_all_keys_padding(causal):
    """mask_filter_value is added, so a padded row is a softmax of its scores
    (minus the digits that fp32 loses at -10000)."""
    rng, f = rng_of(4)
    mask = np.array([[0, 0, 0, 0], [0, 1, 1, 0]], np.int32)
    inputs = [f(B, 4, H * D), f(B, 4, H * D), f(B, 4, H * D), None, mask]
    compare("MultiHeadAttention", multi_head_attention, inputs,
            {"num_heads": H, "unidirectional": causal}, 1, atol=2e-3)  # fmt: skip


@pytest.mark.parametrize("value", [np.finfo(np.float32).min, -1e30])
def test_masked_bias_rows(value):
    _, f = rng_of(5)
    bias = np.zeros((1, 1, 4, 4), np.float32)
    bias[..., 1, :] = value
    inputs = [f(B, 4, H * D), f(B, 4, H * D), f(B, 4, H * D), None, None, bias]
    compare("MultiHeadAttention", multi_head_attention, inputs, {"num_heads": H}, 1)


@pytest.mark.parametrize("kind", [None, "2d", "3d", "lengths", "ranges"])
@pytest.mark.parametrize("bias", [None, "input", "both"])
@pytest.mark.parametrize("past", [None, 5])
@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}, {"scale": 0.7}, {"mask_filter_value": -2.0}])
def test_attention(kind, bias, past, extra):
    rng, f = rng_of(6)
    s, width = 4, 20
    total = s + (past or 0)
    inputs = [f(B, s, width), f(width, 3 * H * D) * 0.3,
              f(3 * H * D) if bias else None, padding(kind, rng, s, total),
              None if past is None else f(2, B, H, past, D),
              f(1, H, s, total) if bias == "both" else None]  # fmt: skip
    if past is not None and bias == "both":
        with pytest.raises(ValueError):
            packed_weight_attention(inputs, {"num_heads": H})
        return
    compare("Attention", packed_weight_attention, inputs, {"num_heads": H, **extra}, 2)


def test_attention_hidden_sizes():
    _, f = rng_of(7)
    inputs = [f(B, 4, 20), f(20, 2 * H * D + H * 12) * 0.3]
    compare("Attention", packed_weight_attention, inputs,
            {"num_heads": H, "qkv_hidden_sizes": [H * D, H * D, H * 12]}, 1)  # fmt: skip
