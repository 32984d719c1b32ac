"""`prefill.attention` in numpy float64.

The arguments are the operands and attributes of the op in
include/prefill/Dialect/Prefill/PrefillOps.td. Used to state what each ONNX
operator form means in terms of that op (see forms.py).
"""

from __future__ import annotations

import numpy as np


def split_heads(x, heads, layout):
    """[b,h,s,d] float64 of any of the three tensor layouts."""
    x = np.asarray(x, np.float64)
    if layout == "bhsd":
        return x
    if x.ndim == 3:
        x = x.reshape(x.shape[0], x.shape[1], heads, -1)
    return x.transpose(0, 2, 1, 3)


def prefill_attention(
    q,
    k,
    v,
    *,
    q_heads,
    kv_heads,
    scale,
    bias=None,
    key_mask=None,
    kv_lengths=None,
    sinks=None,
    q_offset=None,
    causal=False,
    window_left=None,
    window_right=None,
    softcap=None,
    alignment="end",
    masked_row="zero",
    q_layout="bhsd",
    k_layout="bhsd",
    v_layout="bhsd",
    o_layout="bhsd",
    o_rank=4,
):
    """Returns o in the asked layout."""
    q = split_heads(q, q_heads, q_layout)
    k = split_heads(k, kv_heads, k_layout)
    v = split_heads(v, kv_heads, v_layout)
    b, _, s, _ = q.shape
    t = k.shape[2]
    group = q_heads // kv_heads
    scores = scale * np.einsum(
        "bghsd,bgtd->bghst", q.reshape(b, kv_heads, group, s, -1), k
    ).reshape(b, q_heads, s, t)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    visible = np.ones((b, q_heads, s, t), bool)
    if bias is not None:
        assert bias.shape[-1] == t, "the kernel does not broadcast along keys"
        if bias.dtype == bool:
            visible &= bias
        else:
            # Large numbers swallow the score in fp32, and models rely on it.
            exact = scores + bias.astype(np.float64)
            with np.errstate(over="ignore"):
                rounded = scores.astype(np.float32) + bias.astype(np.float32)
            scores = np.where(np.abs(bias) > 1e6, rounded, exact)
            # "mean": whatever hides is one finite number.
            visible &= scores > (-3e38 if masked_row == "mean" else -np.inf)
    if alignment == "end":
        offset = np.full(b, t - s)
    elif alignment == "start":
        offset = np.zeros(b, np.int64)
    else:
        offset = np.broadcast_to(np.asarray(q_offset), (b,))
    i = np.arange(s)[None, :, None] + offset[:, None, None]
    j = np.arange(t)[None, None, :]
    allowed = np.ones((b, s, t), bool)
    if causal:
        allowed &= j <= i
    if window_left is not None:
        allowed &= j >= i - window_left
    if window_right is not None:
        allowed &= j <= i + window_right
    if kv_lengths is not None:
        allowed &= j < np.broadcast_to(np.asarray(kv_lengths), (b,))[:, None, None]
    if key_mask is not None:
        allowed &= (np.asarray(key_mask) != 0)[:, None, :]
    visible &= allowed[:, None]
    if masked_row == "scores":
        visible |= ~visible.any(-1, keepdims=True)
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(-1, keepdims=True) if t else np.full((b, q_heads, s, 1), -np.inf)
    if sinks is not None:
        sink = np.asarray(sinks, np.float64).reshape(1, q_heads, 1, 1)
        top = np.maximum(top, sink)
    top = np.where(np.isneginf(top), 0.0, top)
    p = np.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sink - top)
    empty = ~visible.any(-1, keepdims=True)
    p = p / np.where(total == 0, 1.0, total)
    if masked_row == "mean":
        p = np.where(empty, 1.0 / max(t, 1), p)
    elif masked_row == "nan":
        p = np.where(empty, np.nan, p)
    o = np.einsum("bghst,bgte->bghse", p.reshape(b, kv_heads, group, s, t), v)
    o = o.reshape(b, q_heads, s, -1)
    if o_layout == "bshd":
        o = o.transpose(0, 2, 1, 3)
        if o_rank == 3:
            o = o.reshape(b, s, -1)
    return o
