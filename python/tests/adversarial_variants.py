"""The table of test_adversarial.py: attention spelt out in ONNX's text form, step by step, and
what its variants put in place of some of the steps."""

from __future__ import annotations

HEADS, DIM = 4, 16

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
    "scale a head": variant("raised", "float[4,1,1] factor", scale="scaled = Mul(raw, factor)"),
    "scale a row": variant("raised", "float[S,1] factor", scale="scaled = Mul(raw, factor)"),
    "scale at run time": variant("raised", "float[1] factor", scale="scaled = Mul(raw, factor)"),
    "scale a key": variant("kept", "float[T] factor", scale="scaled = Mul(raw, factor)"),
    "divide a row of a head": variant(
        "raised",
        "float[B,4,S,1] factor",
        scale="one0 = Constant<value_float=1.0>()\n f0 = Abs(factor)\n f1 = Add(f0, one0)\n"
        " scaled = Div(raw, f1)",
    ),
    "scale a head, then the cap": variant(
        "raised",
        "float[4,1,1] slope",
        cap="f0 = Mul(scaled, slope)\n c = Constant<value_float=2.0>()\n t0 = Div(f0, c)\n t1 = Tanh(t0)\n"
        " capped = Mul(t1, c)",
    ),
    "scale a head after the cap": variant(
        "kept",
        "float[4,1,1] slope",
        cap="c = Constant<value_float=2.0>()\n t0 = Div(scaled, c)\n t1 = Tanh(t0)\n capped = Mul(t1, slope)",
    ),
    "scale a head after the mask": variant(
        "kept", "float[4,1,1] slope", masked="m0 = Add(capped, bias)\n masked = Mul(m0, slope)"
    ),
    **{
        f"relative positions {where}": variant(
            "raised",
            "float[S,T,16] table",
            dot=f"kt = Transpose<perm=[0,1,3,2]>(k)\n raw0 = MatMul(q, kt)\n"
            f' rel = Einsum<equation="bhid,ijd->bhij">(q, table)\n raw = Add({added})',
            transpose="",
        )
        for where, added in (("first", "rel, raw0"), ("second", "raw0, rel"))
    },
    "positions of keys": variant(
        "any",
        "float[4,T,16] table",
        dot='raw0 = MatMul(q, kt)\n rel = Einsum<equation="bhid,hjd->bhij">(q, table)\n raw = Add(raw0, rel)',
    ),
    "two products": variant(
        "kept",
        "float[B,4,S,16] q2",
        dot="raw0 = MatMul(q, kt)\n raw1 = MatMul(q2, kt)\n raw = Add(raw0, raw1)",
    ),
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
