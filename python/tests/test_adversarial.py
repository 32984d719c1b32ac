"""Attention-like graphs that are almost, but not quite, what a matcher expects.

Whatever the compiler does with them, the result must equal ONNX Runtime's on the original.
The unchanged forms must be raised, so that the comparison means something; forms that no
attention kernel can express must stay.
"""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from support import attention_sites, compare, count_kernels, plain_session, save_model

import prefill_opt

HEADS, DIM = 4, 16
SIZES = ((1, 1), (2, 2), (5, 5), (64, 64), (65, 65), (7, 70), (1, 130), (70, 7), (200, 200))

#: The steps of a plain decomposed attention; a variant replaces some of them.
STEPS = {
    "transpose": "kt = Transpose<perm=[0,1,3,2]>(k)",
    "dot": "raw = MatMul(q, kt)",
    "scale": "factor = Constant<value_float=0.25>()\n scaled = Mul(raw, factor)",
    "cap": "capped = Identity(scaled)",
    "sizes": """qs = Shape<start=2, end=3>(q)
        ks = Shape<start=2, end=3>(k)
        nil = Constant<value_int=0>()
        one = Constant<value_int=1>()
        flat = Constant<value_ints=[0]>()
        first = Constant<value_ints=[1]>()
        qn = Squeeze(qs)
        kn = Squeeze(ks)
        past = Sub(kn, qn)
        rows0 = Range(nil, qn, one)
        cols0 = Range(nil, kn, one)""",
    "rows": "rows1 = Add(rows0, past)",
    "grid": "rows = Unsqueeze(rows1, first)\n cols = Unsqueeze(cols0, flat)",
    "visible": "see = LessOrEqual(cols, rows)",
    "values": "zero = Constant<value_float=0.0>()\n low = Constant<value_float=-3.4028234663852886e38>()",
    "bias": "bias = Where(see, zero, low)",
    "masked": "masked = Add(capped, bias)",
    "softmax": "p = Softmax<axis=-1>(masked)",
    "guard": "pg = Identity(p)",
    "apply": "o = MatMul(pg, v)",
}
GUARD = "bad = IsNaN(p)\n nought = Constant<value_float=0.0>()\n pg = Where(bad, nought, p)"
MINUS_INF = "zero = Constant<value_float=0.0>()\n inf0 = Constant<value_float=3.0e38>()\n ten = Constant<value_float=-10.0>()\n low = Mul(inf0, ten)"
NO_MASK = dict.fromkeys(("sizes", "rows", "grid", "visible", "values", "bias"), "") | {
    "masked": "masked = Identity(capped)"
}
WINDOW = "causal = LessOrEqual(cols, rows)\n near = Sub(rows, cols)\n w = Constant<value_int=9>()\n"


LAST = "last = Constant<value_ints=[-1]>()\n before = Constant<value_ints=[-2]>()\n"
STABLE = LAST + "top = ReduceMax(masked, last)\n low0 = Sub(masked, top)\n e = Exp(low0)\n"
SUMS = "sums = ReduceSum(e, last)\n"
MINUS = (
    "big = Constant<value_float=3.0e38>()\n ten0 = Constant<value_float=-10.0>()\n minus = Mul(big, ten0)\n"
)


def guard_by(test: str, kept: str = "Where(bad, nought, p)") -> str:
    """Zeros in place of probabilities where `test` says."""
    return (
        LAST + MINUS + f"nought = Constant<value_float=0.0>()\n {test}\n pg = {kept}"
    )


def variant(
    expect: str = "any",
    inputs: str = "",
    outputs: str = "",
    opset: int = 18,
    loud: bool = True,
    **steps,
):
    """A variant: replaced steps, further inputs and outputs in ONNX's text form.

    expect: "raised" (must be), "kept" (must not be), "any". loud: large scores too, of which
    exponentials overflow where nothing is subtracted.
    """
    return {
        "expect": expect,
        "inputs": inputs,
        "outputs": outputs,
        "opset": opset,
        "loud": loud,
        "steps": steps,
    }


VARIANTS = {
    # Forms that are attention.
    "plain causal": variant("raised"),
    "minus infinity": variant("raised", values=MINUS_INF),
    "minus infinity, guarded": variant("raised", values=MINUS_INF, guard=GUARD),
    "guarded": variant("raised", guard=GUARD),
    "no mask": variant("raised", **NO_MASK),
    "another scale": variant(
        "raised", scale="factor = Constant<value_float=0.3>()\n scaled = Mul(raw, factor)"
    ),
    "negative scale": variant(
        "any", scale="factor = Constant<value_float=-0.25>()\n scaled = Mul(raw, factor)"
    ),
    "no scale": variant("raised", scale="scaled = Identity(raw)"),
    "divided": variant("raised", scale="factor = Constant<value_float=5.0>()\n scaled = Div(raw, factor)"),
    "scale on q": variant(
        "raised",
        dot="f = Constant<value_float=0.4>()\n q2 = Mul(q, f)\n raw = MatMul(q2, kt)",
        scale="scaled = Identity(raw)",
    ),
    "scaled twice": variant(
        "raised", dot="f = Constant<value_float=0.4>()\n q2 = Mul(q, f)\n raw = MatMul(q2, kt)"
    ),
    "window 9": variant("raised", visible=WINDOW + "close = Less(near, w)\n see = And(causal, close)"),
    "window 10 by <=": variant(
        "raised", visible=WINDOW + "close = LessOrEqual(near, w)\n see = And(causal, close)"
    ),
    "greater or equal": variant("raised", visible="see = GreaterOrEqual(rows, cols)"),
    "not greater": variant("raised", visible="gt = Greater(cols, rows)\n see = Not(gt)"),
    "where on scores": variant("raised", bias="", masked="masked = Where(see, capped, low)"),
    "softcap": variant(
        "raised",
        cap="c = Constant<value_float=2.0>()\n t0 = Div(scaled, c)\n t1 = Tanh(t0)\n capped = Mul(t1, c)",
    ),
    "additive mask input": variant(
        "any", "float[B,1,S,T] extra", **{**NO_MASK, "masked": "masked = Add(capped, extra)"}
    ),
    "key padding": variant(
        "any", "bool[B,1,1,T] pad", visible="causal = LessOrEqual(cols, rows)\n see = And(causal, pad)"
    ),
    # The mask is another one.
    "strictly before": variant(visible="see = Less(cols, rows)"),
    "strictly before, minus infinity": variant(visible="see = Less(cols, rows)", values=MINUS_INF),
    "one ahead": variant(visible="r1 = Add(rows, one)\n see = LessOrEqual(cols, r1)"),
    "anti-causal": variant(visible="see = GreaterOrEqual(cols, rows)"),
    "diagonal only": variant(visible="see = Equal(cols, rows)"),
    "everything but": variant(visible="le = LessOrEqual(cols, rows)\n see = Not(le)"),
    "start aligned": variant(rows="rows1 = Identity(rows0)"),
    "rows doubled": variant(
        rows="two = Constant<value_int=2>()\n rows2 = Mul(rows0, two)\n rows1 = Add(rows2, past)"
    ),
    "rows and columns swapped": variant(
        grid="rows = Unsqueeze(cols0, flat)\n cols1 = Add(rows0, past)\n cols = Unsqueeze(cols1, first)"
    ),
    "or instead of and": variant(visible=WINDOW + "close = Less(near, w)\n see = Or(causal, close)"),
    "window ahead too": variant(
        visible="near = Sub(rows, cols)\n w = Constant<value_int=9>()\n ab = Abs(near)\n see = Less(ab, w)"
    ),
    "window of one": variant(visible=WINDOW + "close = Less(near, one)\n see = And(causal, close)"),
    "window of none": variant(visible=WINDOW + "close = Less(near, nil)\n see = And(causal, close)"),
    "chunks": variant(
        visible="w = Constant<value_int=8>()\n cr = Div(rows, w)\n cc = Div(cols, w)\n same = Equal(cr, cc)\n le = LessOrEqual(cols, rows)\n see = And(same, le)"
    ),
    "parity": variant(
        visible="two = Constant<value_int=2>()\n m = Mod(cols, two)\n ev = Equal(m, nil)\n le = LessOrEqual(cols, rows)\n see = Or(ev, le)"
    ),
    "mask by row": variant(
        "any", "bool[B,1,S,1] pad", visible="causal = LessOrEqual(cols, rows)\n see = And(causal, pad)"
    ),
    "mask from the batch": variant(
        "any", "bool[B,1,1,T] pad", visible="causal = LessOrEqual(cols, rows)\n see = Or(causal, pad)"
    ),
    "mask per head": variant(
        "any", "bool[B,4,1,T] pad", visible="causal = LessOrEqual(cols, rows)\n see = And(causal, pad)"
    ),
    # The value of the mask is not minus infinity.
    **{
        f"finite {value:g}": variant(
            values=f"zero = Constant<value_float=0.0>()\n low = Constant<value_float={value!r}>()"
        )
        for value in (-1.0, -10.0, -10000.0, -1e9, 5.0, -1e30)
    },
    "mask given at run time": variant("any", "float[1] low", values="zero = Constant<value_float=0.0>()"),
    "visible ones are not zero": variant(
        values="zero = Constant<value_float=1.5>()\n low = Constant<value_float=-3.4028234663852886e38>()"
    ),
    "mask value the wrong way": variant(bias="bias = Where(see, low, zero)"),
    "multiplied mask": variant(bias="bias = Cast<to=1>(see)", masked="masked = Mul(capped, bias)"),
    "added one and zero": variant(bias="bias = Cast<to=1>(see)"),
    "mask scaled too": variant(
        scale="scaled = Identity(raw)",
        masked="m0 = Add(capped, bias)\n f = Constant<value_float=0.25>()\n masked = Mul(m0, f)",
    ),
    "mask before the cap": variant(
        cap="capped = Identity(scaled)",
        masked="m0 = Add(capped, bias)\n c = Constant<value_float=30.0>()\n m1 = Div(m0, c)\n m2 = Tanh(m1)\n masked = Mul(m2, c)",
    ),
    "cap and uncap differ": variant(
        cap="c = Constant<value_float=2.0>()\n c2 = Constant<value_float=3.0>()\n t0 = Div(scaled, c)\n t1 = Tanh(t0)\n capped = Mul(t1, c2)"
    ),
    "mask added twice": variant(masked="m0 = Add(capped, bias)\n masked = Add(m0, bias)"),
    "where zero": variant(bias="", masked="masked = Where(see, capped, zero)"),
    # Scale and softmax.
    "scale a head": variant("any", "float[4,1,1] factor", scale="scaled = Mul(raw, factor)"),
    "scale a row": variant("any", "float[S,1] factor", scale="scaled = Mul(raw, factor)"),
    "scale at run time": variant("any", "float[1] factor", scale="scaled = Mul(raw, factor)"),
    "scale by shape": variant(
        scale="hs = Shape<start=2, end=3>(k)\n hf = Cast<to=1>(hs)\n hq = Sqrt(hf)\n scaled = Div(raw, hq)"
    ),
    "softmax over rows": variant("kept", softmax="p = Softmax<axis=-2>(masked)"),
    "softmax over heads": variant("kept", softmax="p = Softmax<axis=1>(masked)"),
    "log softmax": variant("kept", softmax="p = LogSoftmax<axis=-1>(masked)"),
    "hardmax": variant("kept", softmax="p = Hardmax<axis=-1>(masked)"),
    "softmax halved": variant(guard="h = Constant<value_float=0.5>()\n pg = Mul(p, h)"),
    "softmax plus one": variant(guard="h = Constant<value_float=1.0>()\n pg = Add(p, h)"),
    "guard by one": variant(
        values=MINUS_INF,
        visible="see = Less(cols, rows)",
        guard="bad = IsNaN(p)\n nought = Constant<value_float=1.0>()\n pg = Where(bad, nought, p)",
    ),
    "guard inverted": variant(
        values=MINUS_INF,
        guard="bad = IsNaN(p)\n nought = Constant<value_float=0.0>()\n pg = Where(bad, p, nought)",
    ),
    # A softmax spelt out.
    "exponentials": variant("raised", softmax=STABLE + SUMS + "p = Div(e, sums)"),
    "exponentials, minus infinity": variant(
        "raised", values=MINUS_INF, softmax=STABLE + SUMS + "p = Div(e, sums)"
    ),
    "exponentials by a reciprocal": variant(
        "raised", softmax=STABLE + SUMS + "r = Reciprocal(sums)\n p = Mul(e, r)"
    ),
    "exponentials as they are": variant(
        "raised", loud=False, softmax=LAST + "e = Exp(masked)\n" + SUMS + "p = Div(e, sums)"
    ),
    "exponentials as they are, a bias": variant(
        "any",
        "float[B,1,S,T] extra",
        loud=False,
        **{
            **NO_MASK,
            "masked": "masked = Add(capped, extra)",
            "softmax": LAST + "e = Exp(masked)\n" + SUMS + "p = Div(e, sums)",
        },
    ),
    "divided after the values": variant(
        "raised", softmax=STABLE + SUMS + "p = Identity(e)", apply="o0 = MatMul(pg, v)\n o = Div(o0, sums)"
    ),
    "divided after the values by others": variant(
        "any",
        softmax=STABLE + "sums0 = ReduceSum(e, last)\n e2 = Mul(e, e)\n sums = ReduceSum(e2, last)\n p = Identity(e)",
        apply="o0 = MatMul(pg, v)\n o = Div(o0, sums)",
    ),
    "log softmax, exponentials": variant("raised", softmax="lp = LogSoftmax<axis=-1>(masked)\n p = Exp(lp)"),
    "log softmax over rows, exponentials": variant(
        "kept", softmax="lp = LogSoftmax<axis=-2>(masked)\n p = Exp(lp)"
    ),
    **{
        f"exponentials of the logarithm of sums, {what}": variant(
            expect,
            softmax=LAST + "l = ReduceLogSumExp(masked, last)\n d0 = Sub(masked, l)\n p = Exp(d0)",
            **mask,
        )
        for what, expect, mask in (
            ("no mask", "raised", NO_MASK),
            ("minima", "any", {}),
            ("minus infinity", "any", {"values": MINUS_INF}),
        )
    },
    "exponentials of the logarithm of others": variant(
        "kept", softmax=LAST + "l = ReduceLogSumExp(scaled, last)\n d0 = Sub(masked, l)\n p = Exp(d0)"
    ),
    "maximum of the rows is subtracted": variant(
        softmax=LAST
        + "top = ReduceMax(scaled, before)\n d0 = Sub(masked, top)\n e = Exp(d0)\n"
        + SUMS
        + "p = Div(e, sums)"
    ),
    "sums of the rows": variant("kept", softmax=STABLE + "sums = ReduceSum(e, before)\n p = Div(e, sums)"),
    "sums of all": variant(
        "kept", softmax=STABLE + "both = Constant<value_ints=[-1,-2]>()\n sums = ReduceSum(e, both)\n p = Div(e, sums)"
    ),
    "sums and one": variant(
        "kept",
        softmax=STABLE + "u = Constant<value_float=1.0>()\n" + SUMS + "s1 = Add(sums, u)\n p = Div(e, s1)",
    ),
    "sums of other exponentials": variant(
        "kept", softmax=STABLE + "e0 = Exp(scaled)\n sums = ReduceSum(e0, last)\n p = Div(e, sums)", loud=False
    ),
    "exponentials masked before they are summed": variant(
        loud=False,
        bias="",
        masked="masked = Identity(capped)",
        softmax=STABLE + "m01 = Cast<to=1>(see)\n em = Mul(e, m01)\n sums = ReduceSum(em, last)\n p = Div(em, sums)",
    ),
    "sums the wrong way": variant("kept", softmax=STABLE + SUMS + "p = Div(sums, e)", loud=False),
    "powers of two": variant(
        "kept",
        softmax=STABLE.replace("e = Exp(low0)", "two0 = Constant<value_float=2.0>()\n e = Pow(two0, low0)")
        + SUMS
        + "p = Div(e, sums)",
    ),
    # Guards of rows without keys.
    **{
        f"guard by the largest {what}": variant(
            "raised",
            values=MINUS_INF,
            visible="see = Less(cols, rows)",
            guard=guard_by(f"m0 = ReduceMax({of}, last)\n {test}", kept),
        )
        for what, of, test, kept in (
            ("bias", "bias", "bad = Equal(m0, minus)", "Where(bad, nought, p)"),
            ("score", "masked", "bad = Equal(m0, minus)", "Where(bad, nought, p)"),
            ("score is infinite", "masked", "bad = IsInf(m0)", "Where(bad, nought, p)"),
            ("bias above", "bias", "good = Greater(m0, minus)", "Where(good, p, nought)"),
            ("bias not above", "bias", "good = Greater(m0, minus)\n bad = Not(good)", "Where(bad, nought, p)"),
        )
    },
    "guard by all scores": variant(
        "raised",
        values=MINUS_INF,
        visible="see = Less(cols, rows)",
        guard=guard_by(
            "eq = Equal(masked, minus)\n eqi = Cast<to=6>(eq)\n all = ReduceMin(eqi, last)\n bad = Cast<to=9>(all)"
        ),
    ),
    "guard by a count": variant(
        "raised",
        visible="see = Less(cols, rows)",
        guard=guard_by("si = Cast<to=7>(see)\n n0 = ReduceSum(si, last)\n bad = Equal(n0, nil)"),
    ),
    "guard in every masked place": variant(
        "raised",
        visible="see = Less(cols, rows)",
        guard="nought = Constant<value_float=0.0>()\n pg = Where(see, p, nought)",
    ),
    "guard by the largest, inverted": variant(
        values=MINUS_INF,
        visible="see = Less(cols, rows)",
        guard=guard_by("m0 = ReduceMax(bias, last)\n bad = Equal(m0, minus)", "Where(bad, p, nought)"),
    ),
    "guard by the smallest": variant(
        values=MINUS_INF,
        visible="see = Less(cols, rows)",
        guard=guard_by("m0 = ReduceMin(bias, last)\n bad = Equal(m0, minus)"),
    ),
    "guard by the largest of the rows": variant(
        values=MINUS_INF,
        visible="see = Less(cols, rows)",
        guard=guard_by("m0 = ReduceMax(bias, before)\n bad = Equal(m0, minus)"),
    ),
    "guard by one of two masks": variant(
        "any",
        "bool[B,1,1,T] pad",
        values=MINUS_INF,
        masked="half = Add(capped, bias)\n padded = Where(pad, zero, low)\n masked = Add(half, padded)",
        guard=guard_by("m0 = ReduceMax(bias, last)\n bad = Equal(m0, minus)"),
    ),
    "guard by both masks, minima": variant(
        "any",
        "bool[B,1,1,T] pad",
        visible="causal = LessOrEqual(cols, rows)\n see = And(causal, pad)",
        guard=guard_by("m0 = ReduceMax(bias, last)\n bad = Equal(m0, minus)"),
    ),
    "guard by the largest of a finite mask": variant(
        visible="see = Less(cols, rows)",
        guard=guard_by("m0 = ReduceMax(bias, last)\n bad = Equal(m0, low)"),
    ),
    "guard in other places": variant(
        guard="nought = Constant<value_float=0.0>()\n eight = Constant<value_int=8>()\n r8 = Sub(rows, eight)\n"
        " other = Less(r8, cols)\n pg = Where(other, p, nought)"
    ),
    "guard of visible places": variant(
        guard="nought = Constant<value_float=0.0>()\n pg = Where(see, nought, p)"
    ),
    "guard of an input's rows": variant(
        "any", "bool[B,1,S,1] pad", guard="nought = Constant<value_float=0.0>()\n pg = Where(pad, p, nought)"
    ),
    "guard of a bias that is given": variant(
        "raised",
        "float[B,1,S,T] extra",
        **{
            **NO_MASK,
            "masked": "masked = Add(capped, extra)",
            "guard": guard_by("m0 = ReduceMax(extra, last)\n bad = Equal(m0, minus)"),
        },
    ),
    "result guarded by a count": variant(
        "raised",
        visible="see = Less(cols, rows)",
        apply="nought = Constant<value_float=0.0>()\n "
        + LAST
        + "si = Cast<to=7>(see)\n n0 = ReduceSum(si, last)\n bad = Equal(n0, nil)\n o0 = MatMul(pg, v)\n"
        " o = Where(bad, nought, o0)",
    ),
    **{
        f"result guarded by the largest {what}": variant(
            expect,
            "float[B,1,S,T] extra, float[B,1,S,T] other",
            **{
                **NO_MASK,
                "masked": "masked = Add(capped, extra)",
                "apply": LAST
                + MINUS
                + f"nought = Constant<value_float=0.0>()\n m0 = ReduceMax({of}, last)\n bad = Equal(m0, minus)\n"
                " o0 = MatMul(pg, v)\n o = Where(bad, nought, o0)",
            },
        )
        for what, of, expect in (("bias", "extra", "raised"), ("of others", "other", "any"))
    },
    "exponentials masked after they are summed": variant(
        visible="see = Less(cols, rows)",
        softmax=STABLE + SUMS + "p = Identity(e)",
        guard="nought = Constant<value_float=0.0>()\n pg = Where(see, p, nought)",
        apply="o0 = MatMul(pg, v)\n o = Div(o0, sums)",
    ),
    # Multiplied masks.
    "multiplied and added mask": variant(
        "raised",
        bias="",
        masked="m01 = Cast<to=1>(see)\n u = Constant<value_float=1.0>()\n not01 = Sub(u, m01)\n"
        " far = Constant<value_float=1e10>()\n gone = Mul(far, not01)\n kept0 = Mul(capped, m01)\n"
        " masked = Sub(kept0, gone)",
    ),
    "multiplied and added mask, small": variant(
        bias="",
        masked="m01 = Cast<to=1>(see)\n u = Constant<value_float=1.0>()\n not01 = Sub(u, m01)\n"
        " far = Constant<value_float=10.0>()\n gone = Mul(far, not01)\n kept0 = Mul(capped, m01)\n"
        " masked = Sub(kept0, gone)",
    ),
    "multiplied by another mask than added": variant(
        bias="",
        masked="m01 = Cast<to=1>(see)\n u = Constant<value_float=1.0>()\n r1 = Add(rows, one)\n"
        " see2 = LessOrEqual(cols, r1)\n m2 = Cast<to=1>(see2)\n not01 = Sub(u, m2)\n"
        " far = Constant<value_float=1e10>()\n gone = Mul(far, not01)\n kept0 = Mul(capped, m01)\n"
        " masked = Sub(kept0, gone)",
    ),
    # Rounding on the way.
    "scores rounded": variant(
        "kept", cap="c16 = Cast<to=10>(scaled)\n capped = Cast<to=1>(c16)", loud=False
    ),
    "probabilities rounded": variant("kept", guard="p16 = Cast<to=10>(p)\n pg = Cast<to=1>(p16)"),
    "masked scores rounded": variant(
        "kept", softmax="m16 = Cast<to=10>(masked)\n p16 = Softmax<axis=-1>(m16)\n p = Cast<to=1>(p16)"
    ),
    "scores in double": variant(
        "raised", cap="c64 = Cast<to=11>(scaled)\n capped = Cast<to=1>(c64)"
    ),
    # Other axes.
    "keys first": variant(
        "raised",
        transpose="qt = Transpose<perm=[0,1,3,2]>(q)",
        dot="raw = MatMul(k, qt)",
        grid="rows = Unsqueeze(rows1, flat)\n cols = Unsqueeze(cols0, first)",
        softmax="p = Softmax<axis=-2>(masked)",
        guard="pg = Transpose<perm=[0,1,3,2]>(p)",
    ),
    "keys first, softmax over rows": variant(
        "kept",
        transpose="qt = Transpose<perm=[0,1,3,2]>(q)",
        dot="raw = MatMul(k, qt)",
        grid="rows = Unsqueeze(rows1, flat)\n cols = Unsqueeze(cols0, first)",
        softmax="p = Softmax<axis=-1>(masked)",
        guard="pg = Transpose<perm=[0,1,3,2]>(p)",
    ),
    "einsum, heads last": variant(
        "raised",
        transpose="",
        dot='raw = Einsum<equation="bhid,bhjd->bijh">(q, k)',
        grid="two1 = Constant<value_ints=[1,2]>()\n ends = Constant<value_ints=[0,2]>()\n"
        " rows = Unsqueeze(rows1, two1)\n cols = Unsqueeze(cols0, ends)",
        softmax="p = Softmax<axis=2>(masked)",
        apply='o = Einsum<equation="bijh,bhjd->bhid">(pg, v)',
    ),
    "einsum, other axes left out": variant(
        "raised",
        transpose="",
        dot='raw = Einsum<equation="... i d, ... j d -> ... i j">(q, k)',
        apply='o = Einsum<equation="...ij,...jd->...id">(pg, v)',
    ),
    "einsum, one batch of keys": variant(
        "any",
        "float[1,4,T,16] k1, float[N,4,T,16] vn",
        **NO_MASK,
        transpose="",
        dot='raw = Einsum<equation="bhid,bhjd->bhij">(q, k1)',
        apply='o = Einsum<equation="bhij,bhjd->bhid">(pg, vn)',
    ),
    "einsum, values of the rows": variant(
        "any",
        transpose="",
        dot='raw = Einsum<equation="bhid,bhjd->bhij">(q, k)',
        apply='o = Einsum<equation="bhji,bhjd->bhid">(pg, v)',
    ),
    "flattened to two axes": variant(
        "raised",
        softmax="two0 = Constant<value_ints=[-1]>()\n ns = Concat<axis=0>(two0, ks)\n flat0 = Reshape(masked, ns)\n"
        " p0 = Softmax<axis=1>(flat0)\n ms = Shape(masked)\n p = Reshape(p0, ms)",
    ),
    "flattened with the rows": variant(
        "kept",
        softmax="sq = Mul(qs, ks)\n two0 = Constant<value_ints=[-1]>()\n ns = Concat<axis=0>(two0, sq)\n"
        " flat0 = Reshape(masked, ns)\n p0 = Softmax<axis=1>(flat0)\n ms = Shape(masked)\n p = Reshape(p0, ms)",
    ),
    "rows first": variant(
        "raised",
        "float[S,B,4,16] q2, float[T,B,4,16] k2, float[T,B,4,16] v2",
        transpose="",
        dot='raw = Einsum<equation="ibhd,jbhd->ijbh">(q2, k2)',
        grid="ends0 = Constant<value_ints=[1,2,3]>()\n ends1 = Constant<value_ints=[0,2,3]>()\n"
        " rows = Unsqueeze(rows1, ends0)\n cols = Unsqueeze(cols0, ends1)",
        softmax="p = Softmax<axis=1>(masked)",
        apply='o0 = Einsum<equation="ijbh,jbhd->ibhd">(pg, v2)\n o = Transpose<perm=[1,2,0,3]>(o0)',
    ),
    "rows first, of other batches": variant(
        "any",
        "float[S,B,4,16] q2, float[T,B,4,16] k2, float[T,B,4,16] v2",
        **NO_MASK,
        transpose="",
        dot='raw = Einsum<equation="ibhd,jchd->bcijh">(q2, k2)',
        softmax="p = Softmax<axis=3>(masked)",
        apply='o0 = Einsum<equation="bcijh,jchd->ibhd">(pg, v2)\n o = Transpose<perm=[1,2,0,3]>(o0)',
    ),
    # A bias that is subtracted, turned or scaled.
    "bias subtracted": variant(
        "raised", "float[4,1,T] extra", masked="b0 = Sub(capped, extra)\n masked = Add(b0, bias)"
    ),
    "bias with heads last": variant(
        "any",
        "float[S,T,4] extra",
        masked="et = Transpose<perm=[2,0,1]>(extra)\n b0 = Add(capped, et)\n masked = Add(b0, bias)",
    ),
    "bias by rows and keys turned": variant(
        "any",
        "float[T,S] extra",
        masked="et = Transpose<perm=[1,0]>(extra)\n b0 = Add(capped, et)\n masked = Add(b0, bias)",
    ),
    "bias padded": variant(
        "any",
        "float[B,1,S,1] extra",
        masked="ones1 = Constant<value_ints=[1]>()\n more = Sub(ks, ones1)\n nil1 = Constant<value_ints=[0]>()\n"
        " pads = Concat<axis=0>(nil1, more)\n ax3 = Constant<value_ints=[3]>()\n nothing = Constant<value_float=0.0>()\n"
        " wide = Pad(extra, pads, nothing, ax3)\n b0 = Add(capped, wide)\n masked = Add(b0, bias)",
    ),
    # Values are used elsewhere.
    "probabilities are an output": variant("kept", outputs="float[B,4,S,T] p"),
    "guarded probabilities are an output": variant("kept", outputs="float[B,4,S,T] pg"),
    "scores are an output": variant("any", outputs="float[B,4,S,T] raw"),
    "mask is an output": variant("any", outputs="float[S,T] bias"),
    "visibility is used elsewhere": variant(
        "any", outputs="float[S,T] seen", apply="seen = Cast<to=1>(see)\n o = MatMul(pg, v)"
    ),
    "transposed k is used elsewhere": variant(
        "any", outputs="float[B,4,16,T] k2", apply="k2 = Neg(kt)\n o = MatMul(pg, v)"
    ),
    "k is v": variant("any", apply="o = MatMul(pg, k)"),
    "q is k": variant(
        "any",
        transpose="kt = Transpose<perm=[0,1,3,2]>(q)",
        sizes=STEPS["sizes"].replace("(k)", "(q)"),
        apply="o = MatMul(pg, q)",
    ),
    "probabilities used twice": variant(
        "any", outputs="float[B,4,S,16] o2", apply="o = MatMul(pg, v)\n o2 = MatMul(pg, k)"
    ),
    "one mask, two softmaxes": variant(
        "any",
        outputs="float[B,4,S,16] o2",
        apply="o = MatMul(pg, v)\n m2 = Sub(raw, bias)\n p2 = Softmax<axis=-1>(m2)\n o2 = MatMul(p2, v)",
    ),
    # Layout.
    "v rolled": variant(
        "any",
        apply="v1 = Slice(v, vb, ve, va)\n v2 = Slice(v, vz, vb, va)\n vr = Concat<axis=2>(v1, v2)\n o = MatMul(pg, vr)",
        values=STEPS["values"]
        + "\n vb = Constant<value_ints=[1]>()\n ve = Constant<value_ints=[100000]>()\n va = Constant<value_ints=[2]>()\n vz = Constant<value_ints=[0]>()",
    ),
    "output transposed": variant(
        "any",
        outputs="",
        apply="ot = MatMul(pg, v)\n o0 = Transpose<perm=[0,2,1,3]>(ot)\n o = Transpose<perm=[0,2,1,3]>(o0)",
    ),
}
#: Shared heads: which query head reads which KV head.
GROUPED = {
    "grouped": "[0,0,1,1]",
    "tiled": "[0,1,0,1]",
    "reversed": "[1,1,0,0]",
    "uneven": "[0,0,0,1]",
}


def text_of(recipe: dict, kv_heads: int = HEADS) -> str:
    """The model in ONNX's text form."""
    steps = {**STEPS, **recipe["steps"]}
    if recipe["opset"] < 13:
        raise ValueError("Squeeze and Unsqueeze need axes as inputs")
    body = "\n".join(steps.values())
    inputs = f"float[B,{HEADS},S,{DIM}] q, float[B,{kv_heads},T,{DIM}] k, float[B,{kv_heads},T,{DIM}] v"
    inputs += f", {recipe['inputs']}" if recipe["inputs"] else ""
    outputs = f"float[B,{HEADS},S,{DIM}] o" + (f", {recipe['outputs']}" if recipe["outputs"] else "")
    return (
        f'<ir_version: 8, opset_import: ["" : {recipe["opset"]}]>\n'
        f"attention ({inputs}) => ({outputs}) {{\n{body}\n}}"
    )


def feeds_for(session, s: int, t: int, batch: int, loud: bool) -> dict[str, np.ndarray]:
    """Random inputs; `loud` makes scores large, so that finite masks leak."""
    rng = np.random.default_rng([s, t, batch, loud])
    sizes = {"B": batch, "S": s, "T": t, "N": 1}
    feeds = {}
    for item in session.get_inputs():
        shape = [sizes.get(d, d) for d in item.shape]
        if item.type == "tensor(bool)":
            value = rng.random(shape) < 0.7
            if item.name == "pad":
                value[..., -1] = True
        else:
            value = rng.standard_normal(shape).astype(np.float32)
            if loud and item.name in ("q", "k"):
                value *= 40
            if item.name in ("extra", "other"):
                # Some masked places, some rows of nothing else, of either kind.
                value[rng.random(shape) < 0.3] = -np.inf
                value[..., ::5, :] = -np.inf
                value[..., 1::5, :] = np.finfo(np.float32).min
            if item.name == "low":
                value = np.full(shape, -7.0, np.float32)
        feeds[item.name] = value
    return feeds


def check(model: onnx.ModelProto, expect: str, tmp_path, loudness=(False, True)) -> None:
    """Compiles a model and compares it with the original at all sizes."""
    path = save_model(model, tmp_path / "model.onnx")
    # Unoptimised: the reference must be the graph itself.
    original = plain_session(path, optimise=False)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    rewritten = prefill_opt.session(folder, log_severity_level=4, intra_op_num_threads=1)
    names = [item.name for item in original.get_outputs()]
    wrong = []
    for s, t in SIZES:
        for batch, loud in enumerate(loudness, 1):
            feeds = feeds_for(original, s, t, batch, loud)
            try:
                expected = original.run(None, feeds)
            except Exception:
                continue
            got = rewritten.run(None, feeds)
            # Large scores make softmax one-hot: rounding of the scores shows.
            where = f"s={s} t={t} batch={batch} loud={loud}"
            wrong += compare(names, got, expected, where, factor=200 if loud else 1)
    assert not wrong, "; ".join(wrong[:5])
    kernels = count_kernels(folder)
    if expect == "raised":
        assert kernels == 1, "a plain attention was not raised"
    elif expect == "kept":
        assert kernels == 0, "was raised although no kernel can express it"


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant(name, compiler, tmp_path):
    recipe = VARIANTS[name]
    loudness = (False, recipe["loud"])
    check(onnx.parser.parse_model(text_of(recipe)), recipe["expect"], tmp_path, loudness)


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_grouped_heads(name, compiler, tmp_path):
    """KV heads repeated by Gather: only the usual order is a group."""
    order = GROUPED[name]
    steps = {
        "transpose": f"pick = Constant<value_ints={order}>()\n kk = Gather<axis=1>(k, pick)\n"
        "vv = Gather<axis=1>(v, pick)\n kt = Transpose<perm=[0,1,3,2]>(kk)",
        "apply": "o = MatMul(pg, vv)",
    }
    check(onnx.parser.parse_model(text_of(variant(**steps), kv_heads=2)), "any", tmp_path)


EXPANSIONS = {
    # repeat_kv: [B,2,T,16] -> [B,2,1,T,16] -> [B,2,2,T,16] -> [B,4,T,16]
    "repeat": ("raised", 2, "[1,1,2,1,1]"),
    # tile: [B,1,2,T,16] -> [B,2,2,T,16]: query heads 0, 2 read KV head 0
    "tile": ("any", 1, "[1,2,1,1,1]"),
}


@pytest.mark.parametrize("name", sorted(EXPANSIONS))
def test_expanded_heads(name, compiler, tmp_path):
    expect, axis, repeats = EXPANSIONS[name]
    lines = [f"ax = Constant<value_ints=[{axis}]>()", f"rep = Constant<value_ints={repeats}>()"]
    lines.append("shape4 = Constant<value_ints=[0, 4, -1, 16]>()")
    for x in "kv":
        lines.append(f"{x}5 = Unsqueeze({x}, ax)")
        lines.append(f"{x}6 = Expand({x}5, rep)")
        lines.append(f"{x}{x} = Reshape({x}6, shape4)")
    lines.append("kt = Transpose<perm=[0,1,3,2]>(kk)")
    steps = {"transpose": "\n".join(lines), "apply": "o = MatMul(pg, vv)"}
    model = onnx.parser.parse_model(text_of(variant(**steps), kv_heads=2))
    check(model, expect, tmp_path)


@pytest.mark.parametrize("order", ["past first", "new first"])
def test_cache_order(order, compiler, tmp_path):
    """A cache in front is usual; behind, the same causal mask means something else."""
    first = order == "past first"
    join = "past_{0}, {0}" if first else "{0}, past_{0}"
    lines = [f"{x}{x} = Concat<axis=2>({join.format(x)})" for x in "kv"]
    lines.append("kt = Transpose<perm=[0,1,3,2]>(kk)")
    steps = {
        "transpose": "\n".join(lines),
        "sizes": STEPS["sizes"].replace("(k)", "(kk)"),
        "apply": "o = MatMul(pg, vv)",
    }
    past = ", ".join(f"float[B,{HEADS},P,{DIM}] past_{x}" for x in "kv")
    model = onnx.parser.parse_model(text_of(variant(inputs=past, **steps)))
    path = save_model(model, tmp_path / "model.onnx")
    original = plain_session(path, optimise=False)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    rewritten = prefill_opt.session(folder, log_severity_level=4)
    wrong = []
    rng = np.random.default_rng(0)
    for s, p in ((1, 0), (1, 5), (65, 0), (65, 70), (3, 200)):
        feeds = {
            name: rng.standard_normal((2, HEADS, n, DIM)).astype(np.float32)
            for name, n in {"q": s, "k": s, "v": s, "past_k": p, "past_v": p}.items()
        }
        wrong += compare(["o"], rewritten.run(None, feeds), original.run(None, feeds), f"s={s} past={p}")
    assert not wrong, "; ".join(wrong)
    assert not first or count_kernels(folder) == 1


def test_transposed_wrongly(compiler, tmp_path):
    """Scores over heads instead of keys: S = H = T makes the shapes fit."""
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    attention (float[B,{HEADS},{HEADS},{DIM}] q, float[B,{HEADS},{HEADS},{DIM}] k,
               float[B,{HEADS},{HEADS},{DIM}] v) => (float[B,{HEADS},{HEADS},{DIM}] o) {{
      kt = Transpose<perm=[0,2,3,1]>(k)
      raw = MatMul(q, kt)
      factor = Constant<value_float=0.25>()
      scaled = Mul(raw, factor)
      p = Softmax<axis=-1>(scaled)
      o = MatMul(p, v)
    }}"""
    check(onnx.parser.parse_model(text), "any", tmp_path)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("softmax", ["half", "single"])
def test_half_precision(softmax, masked, compiler, tmp_path):
    """fp16, its softmax in fp16 or fp32. ONNX Runtime has no fp16 Add on the CPU, runs that in
    fp32, and must not do so with our op."""
    wide = softmax == "single"
    extra = ", float16[B,1,S,S] mask" if masked else ""
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    attention (float16[B,S,{HEADS * DIM}] x{extra}) => (float16[B,{HEADS},S,{DIM}] o) {{
      shape = Constant<value_ints=[0, 0, {HEADS}, {DIM}]>()
      one32 = Constant<value_float=1.0>()
      one = Cast<to=10>(one32)
      y = Add(x, one)
      heads = Reshape(y, shape)
      y2 = Sub(y, one)
      heads2 = Reshape(y2, shape)
      q = Transpose<perm=[0,2,1,3]>(heads2)
      kt = Transpose<perm=[0,2,3,1]>(heads)
      raw = MatMul(q, kt)
      scale32 = Constant<value_float=0.25>()
      scale = Cast<to=10>(scale32)
      scaled = Mul(raw, scale)
      masked = {"Add(scaled, mask)" if masked else "Identity(scaled)"}
      m = Cast<to={1 if wide else 10}>(masked)
      p0 = Softmax<axis=-1>(m)
      p = Cast<to=10>(p0)
      o0 = MatMul(p, q)
      o = Add(o0, one)
    }}"""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    original = plain_session(path, optimise=False)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    assert count_kernels(folder) == 1
    rewritten = prefill_opt.session(folder, log_severity_level=4)
    wrong = []
    for batch, s in ((1, 1), (2, 65)):
        rng = np.random.default_rng(s)
        lowest = np.finfo(np.float16).min
        feeds = {
            "x": rng.standard_normal((batch, s, HEADS * DIM)).astype(np.float16),
        }
        if masked:
            feeds["mask"] = np.triu(np.full((batch, 1, s, s), lowest, np.float16), 1)
        wrong += compare(["o"], rewritten.run(None, feeds), original.run(None, feeds), f"s={s}")
    assert not wrong, "; ".join(wrong)


def listed(text: str, tmp_path) -> list[dict]:
    """What inspect says of a model in ONNX's text form."""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    return attention_sites(prefill_opt.inspect(path, timeout=60))


def test_dropout(compiler, tmp_path):
    """Dropout that drops is no attention; one that does not is."""
    lines = "ratio = Constant<value_float=0.5>()\n on0 = Constant<value_int={0}>()\n on = Cast<to=9>(on0)\n"
    lines += " pg = Dropout(p, ratio, on)"
    for training in (0, 1):
        sites = listed(text_of(variant(guard=lines.format(training))), tmp_path)
        assert [site["raised"] for site in sites] == [not training], sites


#: What stands in place of steps of a plain attention that then is not raised, and must be listed.
UNKNOWN = {
    "clip": {"guard": "c0 = Constant<value_float=0.001>()\n pg = Clip(p, c0)"},
    "sigmoid of scores": {"cap": "capped = Sigmoid(scaled)"},
    "power": {"guard": "two0 = Constant<value_float=2.0>()\n pg = Pow(p, two0)"},
    "quantised scores": {
        "dot": "q8, qf, qz = DynamicQuantizeLinear(q)\n k8, kf, kz = DynamicQuantizeLinear(kt)\n"
        " r32 = MatMulInteger(q8, k8, qz, kz)\n rf = Cast<to=1>(r32)\n f2 = Mul(qf, kf)\n raw = Mul(rf, f2)"
    },
    "quantised probabilities": {
        "apply": "p8, pf, pz = DynamicQuantizeLinear(pg)\n v8, vf, vz = DynamicQuantizeLinear(v)\n"
        " o32 = MatMulInteger(p8, v8, pz, vz)\n of = Cast<to=1>(o32)\n f2 = Mul(pf, vf)\n o = Mul(of, f2)"
    },
    "quantised and back": {
        "guard": "qs0 = Constant<value_float=0.0039>()\n qz0 = Constant<value_int=0>()\n qz = Cast<to=2>(qz0)\n"
        " p8 = QuantizeLinear(p, qs0, qz)\n pg = DequantizeLinear(p8, qs0, qz)"
    },
    "softmax and one": {
        "softmax": LAST + "e = Exp(masked)\n s0 = ReduceSum(e, last)\n u = Constant<value_float=1.0>()\n"
        " s1 = Add(s0, u)\n p = Div(e, s1)"
    },
    "bare exponentials": {"softmax": "p = Exp(masked)"},
}


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_unknown_steps_are_listed(name, compiler, tmp_path):
    sites = listed(text_of(variant(**UNKNOWN[name])), tmp_path)
    assert [site["raised"] for site in sites] == [False], sites
    assert sites[0]["reason"]


def test_no_attention(compiler, tmp_path):
    """Routers, classifiers and gates are not listed."""
    weights = ", ".join(["0.1"] * 64)
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    layer (float[B,S,64] x) => (float[B,S] y, float[B,S] chosen) {{
      w = Constant<value_floats=[{weights}]>()
      logits = MatMul(x, w)
      chosen = Softmax<axis=-1>(logits)
      gate = Exp(logits)
      last = Constant<value_ints=[-1]>()
      wide = Unsqueeze(gate, last)
      gated = Mul(wide, x)
      y = MatMul(gated, w)
    }}"""
    assert listed(text, tmp_path) == []
