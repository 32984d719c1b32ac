"""Attention-like graphs that are almost, but not quite, what a matcher expects.

Whatever the compiler does with them, the result must equal ONNX Runtime's on the original.
The unchanged forms must be raised, so that the comparison means something; forms that no
attention kernel can express must stay.
"""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from adversarial_variants import DIM, HEADS, LAST, STEPS, VARIANTS, text_of, variant
from support import attention_sites, compare, count_kernels, plain_session, save_model

import prefill_opt

SIZES = ((1, 1), (2, 2), (5, 5), (64, 64), (65, 65), (7, 70), (1, 130), (70, 7), (200, 200))
#: Shared heads: which query head reads which KV head.
GROUPED = {
    "grouped": "[0,0,1,1]",
    "tiled": "[0,1,0,1]",
    "reversed": "[1,1,0,0]",
    "uneven": "[0,0,0,1]",
}


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


#: Rows [from, to) and columns [0, columns) of a stored causal mask, beside a cache of `p` rows.
STORED = {
    "its rows behind the cache": ("raised", "p", "n", "n"),
    "one row early": ("any", "pm", "nm", "n"),
    "first rows": ("any", "nil1", "qs", "n"),
    "last rows of all": ("any", "msn", "far", "n"),
    "the cache twice": ("any", "pp", "np", "n"),
}


@pytest.mark.parametrize("name", sorted(STORED))
def test_stored_mask_with_cache(name, compiler, tmp_path):
    """A lower triangle [300,300] is cut to the rows behind a cache: that it is long enough shows in its columns."""
    expect, first, last, columns = STORED[name]
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    attention (float[B,{HEADS},S,{DIM}] q, float[B,{HEADS},S,{DIM}] k, float[B,{HEADS},S,{DIM}] v,
               float[B,{HEADS},P,{DIM}] past_k, float[B,{HEADS},P,{DIM}] past_v) => (float[B,{HEADS},S,{DIM}] o) {{
      kk = Concat<axis=2>(past_k, k)
      vv = Concat<axis=2>(past_v, v)
      kt = Transpose<perm=[0,1,3,2]>(kk)
      raw = MatMul(q, kt)
      factor = Constant<value_float=0.25>()
      scaled = Mul(raw, factor)
      sizes = Constant<value_ints=[1,1,300,300]>()
      ones = ConstantOfShape<value=int64[1] {{1}}>(sizes)
      lower = Trilu<upper=0>(ones)
      stored = Cast<to=9>(lower)
      qs = Shape<start=2, end=3>(q)
      p = Shape<start=2, end=3>(past_k)
      n = Shape<start=2, end=3>(kk)
      nil1 = Constant<value_ints=[0]>()
      one1 = Constant<value_ints=[1]>()
      rows1 = Constant<value_ints=[2]>()
      columns1 = Constant<value_ints=[3]>()
      far = Constant<value_ints=[9223372036854775807]>()
      all = Constant<value_ints=[300]>()
      pm = Sub(p, one1)
      nm = Sub(n, one1)
      pp = Add(p, p)
      np = Add(n, p)
      msn = Sub(all, qs)
      some = Slice(stored, {first}, {last}, rows1)
      see = Slice(some, nil1, {columns}, columns1)
      low = Constant<value_float=-3.4028234663852886e38>()
      masked = Where(see, scaled, low)
      prob = Softmax<axis=-1>(masked)
      o = MatMul(prob, vv)
    }}"""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    original = plain_session(path, optimise=False)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    rewritten = prefill_opt.session(folder, log_severity_level=4, intra_op_num_threads=1)
    rng = np.random.default_rng(2)
    wrong, done = [], 0
    for s, p in ((1, 0), (1, 5), (7, 0), (7, 1), (65, 70), (65, 5), (100, 200), (3, 99)):
        sizes = {"q": s, "k": s, "v": s, "past_k": p, "past_v": p}
        feeds = {n: rng.standard_normal((2, HEADS, m, DIM)).astype(np.float32) for n, m in sizes.items()}
        try:
            expected = original.run(None, feeds)
        except Exception:
            continue
        wrong += compare(["o"], rewritten.run(None, feeds), expected, f"s={s} p={p}")
        done += 1
    assert not wrong, "; ".join(wrong)
    assert done >= 2
    assert expect == "any" or count_kernels(folder) == 1


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


@pytest.mark.parametrize("place", ["added", "added, with a bias", "in place"])
@pytest.mark.parametrize("softmax", ["half", "single"])
def test_half_precision_padding(softmax, place, compiler, tmp_path):
    """-65504 does not swallow a score that is added in fp32, as ONNX Runtime does on the CPU: rows that see
    nothing are the softmax of their scores. Put in place of the scores, it gives their mean."""
    finite = "low32 = Constant<value_float=-65504.0>()\n low = Cast<to=10>(low32)\n"
    if place == "in place":
        masked = "masked = Where(see, scaled, low)"
    else:
        zero = "nought32 = Constant<value_float=0.0>()\n nought = Cast<to=10>(nought32)\n"
        masked = zero + "bias = Where(see, nought, low)\n"
        other = "other" if "bias" in place else "nought"
        masked += f"biased = Add(scaled, {other})\n masked = Add(biased, bias)"
    extra = f", float16[1,{HEADS},S,S] other" if "bias" in place else ""
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    attention (float16[B,{HEADS},S,{DIM}] q, bool[B,S] pad{extra}) => (float16[B,{HEADS},S,{DIM}] o) {{
      {STEPS["sizes"].replace("(k)", "(q)")}
      {STEPS["grid"].replace("rows1", "rows0")}
      causal = LessOrEqual(cols, rows)
      axes = Constant<value_ints=[1,2]>()
      pad4 = Unsqueeze(pad, axes)
      see = And(causal, pad4)
      kt = Transpose<perm=[0,1,3,2]>(q)
      raw = MatMul(q, kt)
      scale32 = Constant<value_float=0.25>()
      scale = Cast<to=10>(scale32)
      scaled = Mul(raw, scale)
      {finite}
      {masked}
      m = Cast<to={1 if softmax == "single" else 10}>(masked)
      p0 = Softmax<axis=-1>(m)
      p = Cast<to=10>(p0)
      o = MatMul(p, q)
    }}"""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    original = plain_session(path)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    assert count_kernels(folder) == 1
    rewritten = prefill_opt.session(folder, log_severity_level=4)
    rng = np.random.default_rng(1)
    wrong = []
    for s in (1, 7, 65, 130):
        pad = np.ones((3, s), bool)
        pad[1, : s - 1] = False  # left padding: the first rows see nothing
        pad[2, s // 3 :] = False
        feeds = {"q": rng.standard_normal((3, HEADS, s, DIM)).astype(np.float16), "pad": pad}
        if extra:
            feeds["other"] = rng.standard_normal((1, HEADS, s, s)).astype(np.float16)
        wrong += compare(["o"], rewritten.run(None, feeds), original.run(None, feeds), f"s={s}")
    assert not wrong, "; ".join(wrong)


def listed(text: str, tmp_path) -> list[dict]:
    """What inspect says of a model in ONNX's text form."""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    return attention_sites(prefill_opt.inspect(path, timeout=60))


@pytest.mark.parametrize("spelling", ("dynamic", "weights and back", "fused"))
def test_quantised_projections(spelling, compiler, tmp_path):
    """Projections in 8 bits, as quantizers write them, around an attention of floats."""
    rng = np.random.default_rng(3)
    width = HEADS * DIM
    steps = "shape = Constant<value_ints=[0, 0, 4, 16]>()\n"
    if spelling == "dynamic":
        steps += "x8, xs, xz = DynamicQuantizeLinear(x)\n"
    for name in "qkv":
        if spelling == "dynamic":
            steps += f"{name}i = MatMulInteger(x8, w{name}, xz, wz)\n{name}f = Cast<to=1>({name}i)\n"
            steps += f"{name}m = Mul(xs, ws)\n{name}p = Mul({name}f, {name}m)\n"
        elif spelling == "fused":
            steps += f"{name}p = com.microsoft.DynamicQuantizeMatMul(x, w{name}, ws, wz)\n"
        else:
            steps += f"{name}w = DequantizeLinear(w{name}, ws, wz)\n{name}p = MatMul(x, {name}w)\n"
        steps += f"{name}r = Reshape({name}p, shape)\n{name}t = Transpose<perm=[0,2,1,3]>({name}r)\n"
    text = f"""<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
    attention (float[B,S,{width}] x) => (float[B,{HEADS},S,{DIM}] o) {{
      {steps} kt = Transpose<perm=[0,1,3,2]>(kt0)
      f = Constant<value_float=0.25>()
      raw = MatMul(qt, kt)
      scaled = Mul(raw, f)
      p = Softmax<axis=-1>(scaled)
      o = MatMul(p, vt)
    }}""".replace("kt = Transpose<perm=[0,2,1,3]>(kr)", "kt0 = Transpose<perm=[0,2,1,3]>(kr)")
    model = onnx.parser.parse_model(text)
    for name, value in {
        **{f"w{n}": rng.integers(-127, 128, (width, width)).astype(np.int8) for n in "qkv"},
        "ws": np.float32(0.002),
        "wz": np.int8(0),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    path = save_model(model, tmp_path / "model.onnx")
    original = plain_session(path, optimise=False)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    assert count_kernels(folder) == 1
    rewritten = prefill_opt.session(folder, log_severity_level=4)
    wrong = []
    for batch, s in ((1, 1), (3, 65)):
        feeds = {"x": rng.standard_normal((batch, s, width)).astype(np.float32)}
        wrong += compare(["o"], rewritten.run(None, feeds), original.run(None, feeds), f"s={s}")
    assert not wrong, "; ".join(wrong)


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
