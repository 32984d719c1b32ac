"""Masks that a graph computes, together with the operator's own causality.

Each model is raised, interpreted (or run, see test_raised.py) and compared with
ONNX Runtime; nothing says which masks become attributes, only that the numbers
are right.
"""

import itertools

import numpy as np
import onnx
import pytest

from . import test_raised
from .interpreter import run_text
from .runner import make_model  # noqa: F401

pytestmark = test_raised.pytestmark

MASKS = {
    "causal": "m = LessOrEqual(cols, rows)",
    "causal off by one": "r1 = Add(rows, one)\n m = LessOrEqual(cols, r1)",
    "strict": "m = Less(cols, rows)",
    "window": "c = LessOrEqual(cols, rows)\n d = Sub(rows, cols)\n w = Less(d, two)\n m = And(c, w)",
    "padding": "m = Identity(pad)",
    "causal padding": "c = LessOrEqual(cols, rows)\n m = And(c, pad)",
    "all": "m = GreaterOrEqual(cols, zero)",
}
VALUES = {"bool": None, "inf": -np.inf, "lowest": float(np.finfo(np.float32).min), "1e9": -1e9}


def model(kind, value, causal, past, contrib, opset):
    total = "pt" if past else "s"
    lines = [f"""
      zero = Constant<value_int=0>()
      one = Constant<value_int=1>()
      two = Constant<value_int=2>()
      a0 = Constant<value_ints=[0]>()
      a1 = Constant<value_ints=[1]>()
      a12 = Constant<value_ints=[1, 2]>()
      qs = Shape(q)
      i2 = Constant<value_int={1 if contrib else 2}>()
      s = Gather(qs, i2)
      ms = Shape(mask)
      t = Gather(ms, one)
      p = Sub(t, s)
      ri = Range(zero, s, one)
      rp = Add(ri, p)
      rows = Unsqueeze(rp, a1)
      ci = Range(zero, t, one)
      cols = Unsqueeze(ci, a0)
      bm = Cast<to=9>(mask)
      pad = Unsqueeze(bm, a12)
      {MASKS[kind]}"""]
    if kind in ("padding", "causal padding"):
        # [b,1,1|s,t]: the operator wants all rows.
        lines.append("b1 = Slice(ms, a0, a1)\n s1 = Unsqueeze(s, a0)\n t1 = Unsqueeze(t, a0)\n"
                     " sh = Concat<axis=0>(b1, a1, s1, t1)\n m4 = Expand(m, sh)")
    else:
        lines.append("s1 = Unsqueeze(s, a0)\n t1 = Unsqueeze(t, a0)\n"
                     " sh = Concat<axis=0>(a1, a1, s1, t1)\n m4 = Expand(m, sh)")
    if value is None:
        lines.append("mm = Identity(m4)")
    else:
        lines.append("f0 = Constant<value_float=0.0>()\n mm = Where(m4, f0, low)")
    declared = {None: ""}
    pasts = ", pk, pv" if past else ""
    if contrib:
        present = ", y1, y2" if past else ""
        lines.append(f"y{present} = com.microsoft.MultiHeadAttention<num_heads=2, "
                     f"unidirectional={causal}>(q, k, v, , , mm{pasts})")
        q = "float[b,s,16] q, float[b,s,16] k, float[b,s,16] v"
    else:
        present = ", y1, y2" if past else ""
        lines.append(f"y{present} = Attention<is_causal={causal}>(q, k, v, mm{pasts})")
        q = "float[b,2,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v"
    inputs = q + f", int64[b,{total}] mask" + (
        ", float[b,2,p0,8] pk, float[b,2,p0,8] pv" if past else "")
    low = "" if value is None else ", float low"
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
      g ({inputs}) => (float[b,n,r,c] y) <> {{ {chr(10).join(lines)} }}"""
    if contrib:
        text = text.replace("float[b,n,r,c] y", "float[b,r,c] y")
    parsed = onnx.parser.parse_model(text)
    if value is not None:
        parsed.graph.initializer.append(
            onnx.numpy_helper.from_array(np.float32(value), "low"))
    return parsed


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize(
    ("form", "value"),
    # The bias of MultiHeadAttention is never bool.
    [(f, v) for f in ("23", "25", "mha") for v in VALUES if (f, v) != ("mha", "bool")],
)
def test_masks(tmp_path, kind, value, causal, past, form):
    import onnxruntime as ort

    contrib = form == "mha"
    made = model(kind, VALUES[value], causal, past, contrib, 18 if contrib else int(form))
    rng = np.random.default_rng(0)
    b, s = 2, 5
    t = s + past
    # Rows without keys: batch 1 starts with padding.
    mask = np.ones((b, t), np.int64)
    mask[1, : 2 if not past else 4] = 0
    mask[0, -1] = 0

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    shape = (b, s, 16) if contrib else (b, 2, s, 8)
    feeds = [f(*shape), f(*shape), f(*shape), mask]
    if past:
        feeds += [f(b, 2, past, 8), f(b, 2, past, 8)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(made.SerializeToString(), options)
    names = [i.name for i in session.get_inputs()]
    want = session.run(["y"], dict(zip(names, feeds)))[0]
    if test_raised.KERNELS:
        got = test_raised.run_kernels(made, feeds, tmp_path)[0]
    else:
        text, messages = test_raised.raise_model(made, tmp_path)
        (got, *_), count = run_text(text, feeds)
        assert count == 1, messages
    if (value == "lowest" and form == "25") or (
        contrib and causal and value in ("inf", "lowest")
    ) or (contrib and value == "inf" and kind == "strict"):
        # Rows that see nothing. Kernels take scores below -2e38 for hidden, so
        # that lowest numbers give 0 (as in ONNX Runtime's Attention 23) where
        # other operators give a mean, unless the mask is understood; what is not
        # understood gives the mean also for -inf where ONNX Runtime gives NaN.
        # And `unidirectional` lets rows of -inf see later keys there.
        seen = ~np.isin(np.arange(s), [0, 1])
        got, want = (x[..., seen, :] for x in (got, want))
    np.testing.assert_allclose(got, want, atol=5e-6, rtol=0, equal_nan=True)
