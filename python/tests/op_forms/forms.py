"""What each ONNX attention operator means in terms of `prefill.attention`.

Every function takes the operator's inputs (None: omitted) and attributes and
returns its outputs, computed as lib/Analysis/OpForms*.cpp rewrites it: ordinary
tensor arithmetic around one call of prefill_attention. ValueError: the form is
declined.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .prefill_reference import prefill_attention


def _input(inputs, i):
    return inputs[i] if i < len(inputs) else None


def heads_first(x, heads):
    """[b,s,h*d] to [b,h,s,d]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)


def onnx_attention(inputs, attributes, opset):
    """ai.onnx Attention 23, 24, 25: Y, present_key, present_value."""
    q, k, v = inputs[:3]
    mask, past_key, past_value, nonpad = (_input(inputs, i) for i in range(3, 7))
    a = dict(attributes)
    if q.ndim == 3:
        hq, hk = a["q_num_heads"], a["kv_num_heads"]
        layout, head_dim = "bshd", q.shape[2] // hq
    else:
        hq, hk = q.shape[1], k.shape[1]
        layout, head_dim = "bhsd", q.shape[3]
    if a.get("scale", 1) <= 0:
        raise ValueError("declined")
    k4 = heads_first(k, hk) if q.ndim == 3 else k
    v4 = heads_first(v, hk) if q.ndim == 3 else v
    s = q.shape[1] if q.ndim == 3 else q.shape[2]
    offset = {"alignment": "start"}
    if past_key is not None:
        k4 = np.concatenate([past_key, k4], 2)
        v4 = np.concatenate([past_value, v4], 2)
        offset = {"alignment": "operand", "q_offset": past_key.shape[2]}
    elif nonpad is not None:
        offset = {"alignment": "operand", "q_offset": nonpad - s}
    t = k4.shape[2]
    if mask is not None and mask.shape[-1] < t:
        pad = [(0, 0)] * (mask.ndim - 1) + [(0, t - mask.shape[-1])]
        fill = False if mask.dtype == bool else -np.inf
        mask = np.pad(mask, pad, constant_values=fill)
    if mask is not None and mask.dtype != bool and opset < 25:
        # ONNX Runtime's kernel takes the lowest number for -inf in a row where
        # nothing else is visible; elsewhere both leave no weight.
        mask = np.where(mask <= ml_dtypes.finfo(mask.dtype).min, -np.inf, mask)
    left, right = a.get("left_window_size", -1), a.get("right_window_size", -1)
    y = prefill_attention(
        q,
        k4,
        v4,
        q_heads=hq,
        kv_heads=hk,
        scale=a.get("scale", 1 / np.sqrt(head_dim)),
        softcap=a.get("softcap", 0.0) if a.get("softcap", 0.0) > 0 else None,
        bias=mask,
        kv_lengths=nonpad,
        causal=a.get("is_causal", 0) == 1,
        window_left=None if left < 0 else left,
        window_right=None if right < 0 else right,
        q_layout=layout,
        o_layout=layout,
        o_rank=q.ndim,
        **offset,
    )
    return [y, k4, v4]


def rotate(x, positions, cos, sin, interleaved):
    """RotaryEmbedding on [b,h,s,d]; rotates the first 2*cos.shape[1] numbers."""
    half = cos.shape[1]
    x = x.astype(np.float64)
    c = cos.astype(np.float64)[positions][:, None]
    s = sin.astype(np.float64)[positions][:, None]
    part = x[..., : 2 * half]
    if interleaved:
        x1, x2 = part[..., 0::2], part[..., 1::2]
    else:
        x1, x2 = part[..., :half], part[..., half:]
    y1, y2 = x1 * c - x2 * s, x2 * c + x1 * s
    out = x.copy()
    if interleaved:
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = y1, y2
    else:
        out[..., :half], out[..., half : 2 * half] = y1, y2
    return out


def group_query_attention(inputs, attributes):
    """com.microsoft GroupQueryAttention: output, present_key, present_value."""
    a = dict(attributes)
    q, k, v, past_key, past_value, seqlens, total = inputs[:7]
    cos, sin, positions, bias, sink = (_input(inputs, i) for i in range(7, 12))
    hq, hk = a["num_heads"], a["kv_num_heads"]
    if k is None:
        d = q.shape[2] // (hq + 2 * hk)
        q, k, v = np.split(q, [hq * d, (hq + hk) * d], -1)
    d = q.shape[2] // hq
    b, s = q.shape[:2]
    total = int(np.asarray(total).reshape(()))
    lengths = seqlens.astype(np.int64).reshape(-1) + 1
    past = np.zeros(b, np.int64) if total == s else lengths - s
    q4, k4, v4 = heads_first(q, hq), heads_first(k, hk), heads_first(v, hk)
    if a.get("do_rotary", 0):
        if positions is None:
            positions = past[:, None] + np.arange(s)
        elif total == s:
            # A first prompt counts from the first number of all batches.
            positions = np.broadcast_to(positions[0, 0] + np.arange(s), (b, s))
        inter = a.get("rotary_interleaved", 0)
        q4, k4 = (rotate(x, positions, cos, sin, inter) for x in (q4, k4))
    if past_key is not None:
        # Present row j of batch b: past row j, new row j - past[b], or zeros.
        buffer = past_key.shape[2]
        length = max(buffer, total)
        j = np.arange(length)[None]
        new = j - past[:, None]
        index = np.where(new < 0, j, np.where(new < s, buffer + new, buffer + s))

        def append(old, x):
            zero = np.zeros_like(x[:, :, :1])
            row = np.concatenate([old, x, zero], 2)
            return np.take_along_axis(row, index[:, None, :, None], 2)

        k4, v4 = append(past_key, k4), append(past_value, v4)
        if bias is not None and bias.shape[-1] < length:
            pad = length - bias.shape[-1]
            bias = np.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, pad)])
    if sink is None and a.get("smooth_softmax", -1) == 1:
        sink = np.zeros(hq)
    causal = a.get("causal", 1) == 1
    window = a.get("local_window_size", -1)
    y = prefill_attention(
        q4,
        k4,
        v4,
        q_heads=hq,
        kv_heads=hk,
        scale=a.get("scale", 0.0) or 1 / np.sqrt(d),
        softcap=a.get("softcap", 0.0) or None,
        bias=bias,
        sinks=sink,
        kv_lengths=lengths,
        causal=causal,
        window_left=window - 1 if window > 0 else None,
        masked_row="zero" if causal or bias is None else "mean",
        alignment="operand",
        q_offset=past,
        o_layout="bshd",
        o_rank=3,
    )
    return [y, k4, v4]


def _padding(mask, b, t, filter_value):
    """What a padding mask of MultiHeadAttention or Attention adds."""
    j = np.arange(t)[None]
    if mask.ndim == 1 and mask.shape[0] == b:
        visible = (j < mask[:, None])[:, None, None]
    elif mask.ndim == 1 and mask.shape[0] == 2 * b:
        end, start = mask.reshape(2, b, 1)
        visible = ((j < end) & (j >= start))[:, None, None]
    elif mask.ndim == 2:
        visible = (mask > 0)[:, None, None]
    elif mask.ndim == 3:
        visible = (mask > 0)[:, None]
    else:
        raise ValueError("declined")
    return np.where(visible, 0.0, filter_value)


def _masks(padding, bias, b, t, filter_value):
    if padding is None:
        return bias
    added = _padding(padding, b, t, filter_value)
    return added if bias is None else added + bias


def multi_head_attention(inputs, attributes):
    """com.microsoft MultiHeadAttention: output, present_key, present_value."""
    a = dict(attributes)
    q, k, v = inputs[:3]
    if k is None or v is None or q.ndim != 3:
        raise ValueError("declined")
    bias, padding, scores_bias, past_key, past_value = (
        _input(inputs, i) for i in range(3, 8)
    )
    h = a["num_heads"]
    b, s, width = q.shape
    cross = k.ndim == 4
    causal = a.get("unidirectional", 0) == 1
    if causal and k.shape[2 if cross else 1] != s:
        raise ValueError("declined")
    if bias is not None:
        q = q + bias[:width]
        if not cross:
            k, v = k + bias[width : 2 * width], v + bias[2 * width :]
    k4, v4 = (k, v) if cross else (heads_first(k, h), heads_first(v, h))
    if past_key is not None:
        k4 = np.concatenate([past_key, k4], 2)
        v4 = np.concatenate([past_value, v4], 2)
    mask = _masks(
        padding, scores_bias, b, k4.shape[2], a.get("mask_filter_value", -10000.0)
    )
    y = prefill_attention(
        q,
        k4,
        v4,
        q_heads=h,
        kv_heads=h,
        scale=a.get("scale", 0.0) or 1 / np.sqrt(width // h),
        bias=mask,
        causal=causal,
        masked_row="zero" if causal else "mean",
        q_layout="bshd",
        o_layout="bshd",
        o_rank=3,
    )
    return [y, k4, v4]


def packed_weight_attention(inputs, attributes):
    """com.microsoft Attention: output, present."""
    a = dict(attributes)
    x, weights = inputs[:2]
    bias, padding, past, scores_bias = (_input(inputs, i) for i in range(2, 6))
    if past is not None and scores_bias is not None:
        raise ValueError("declined")  # ONNX Runtime: not both
    h = a["num_heads"]
    b, s, _ = x.shape
    third = weights.shape[1] // 3
    widths = a.get("qkv_hidden_sizes", [third] * 3)
    packed = x.astype(np.float64) @ weights.astype(np.float64)
    if bias is not None:
        packed = packed + bias
    q, k, v = np.split(packed, np.cumsum(widths)[:2], -1)
    k4, v4 = heads_first(k, h), heads_first(v, h)
    if past is not None:
        k4 = np.concatenate([past[0], k4], 2)
        v4 = np.concatenate([past[1], v4], 2)
    mask = _masks(
        padding, scores_bias, b, k4.shape[2], a.get("mask_filter_value", -10000.0)
    )
    causal = a.get("unidirectional", 0) == 1
    y = prefill_attention(
        q,
        k4,
        v4,
        q_heads=h,
        kv_heads=h,
        scale=a.get("scale", 0.0) or 1 / np.sqrt(widths[0] // h),
        bias=mask,
        causal=causal,
        masked_row="zero" if causal else "mean",
        q_layout="bshd",
        o_layout="bshd",
        o_rank=3,
    )
    present = np.stack([k4, v4]) if k4.shape == v4.shape else None
    return [y, present]
