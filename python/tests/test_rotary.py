"""Rotary position embedding in the ways exporters write it, and in ways that are not it.

Every variant is a causal attention over q and k that a piece of graph computes from the
inputs; the rotated keys are an output too (a KV cache). The result must equal ONNX Runtime's
on the original. Rotations must become part of the attention op, anything else must not.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from support import compare, count_kernels, plain_session, save_model

import prefill_opt
from prefill_opt.compiler import run_compiler

HEADS, KV_HEADS, DIM = 4, 2, 16
SIZES = ((1, 1), (1, 2), (2, 65), (3, 130))

#: Constants, and tables cos, sin [1,1,S,16] of position * frequency (frequencies twice).
#: cosn, sinn hold the first 8 columns, cos3, sin3 lack the heads' axis, cosp, sinp [..,8]
#: hold 4 frequencies twice, cosw, sinw each frequency twice in a row.
PRELUDE = """
    flat = Constant<value_ints=[0]>()
    second = Constant<value_ints=[1]>()
    two = Constant<value_ints=[2]>()
    four = Constant<value_ints=[4]>()
    mid = Constant<value_ints=[8]>()
    last = Constant<value_ints=[-1]>()
    end = Constant<value_ints=[9223372036854775807]>()
    begin = Constant<value_ints=[-9223372036854775807]>()
    nil = Constant<value_int=0>()
    one = Constant<value_int=1>()
    length = Shape<start=2, end=3>(q)
    count = Squeeze(length)
    range = Range(nil, count, one)
    place0 = Cast<to=1>(range)
    place = Unsqueeze(place0, second)
    angles = Mul(place, frequencies)
    both = Concat<axis=1>(angles, angles)
    cos2 = Cos(both)
    sin2 = Sin(both)
    cos3 = Unsqueeze(cos2, flat)
    sin3 = Unsqueeze(sin2, flat)
    cos = Unsqueeze(cos3, second)
    sin = Unsqueeze(sin3, second)
    cosn3 = Slice(cos3, flat, mid, last)
    sinn3 = Slice(sin3, flat, mid, last)
    cosn = Unsqueeze(cosn3, second)
    sinn = Unsqueeze(sinn3, second)
    cosp0 = Slice(cos3, flat, four, last)
    sinp0 = Slice(sin3, flat, four, last)
    cosp3 = Concat<axis=-1>(cosp0, cosp0)
    sinp3 = Concat<axis=-1>(sinp0, sinp0)
    cosp = Unsqueeze(cosp3, second)
    sinp = Unsqueeze(sinp3, second)
    cosw0 = Unsqueeze(cosn, last)
    sinw0 = Unsqueeze(sinn, last)
    cosw1 = Concat<axis=-1>(cosw0, cosw0)
    sinw1 = Concat<axis=-1>(sinw0, sinw0)
    wshape = Constant<value_ints=[1,1,-1,16]>()
    cosw = Reshape(cosw1, wshape)
    sinw = Reshape(sinw1, wshape)"""
ATTENTION = """
    wide0 = Unsqueeze(kr, two)
    eshape = Constant<value_ints=[1,1,2,1,1]>()
    wide1 = Expand(wide0, eshape)
    vshape = Constant<value_ints=[0,4,-1,16]>()
    wide = Reshape(wide1, vshape)
    wv0 = Unsqueeze(v, two)
    wv1 = Expand(wv0, eshape)
    wv = Reshape(wv1, vshape)
    across = Transpose<perm=[0,1,3,2]>(wide)
    raw = MatMul(qr, across)
    factor = Constant<value_float=0.25>()
    scaled = Mul(raw, factor)
    rows = Unsqueeze(range, second)
    cols = Unsqueeze(range, flat)
    see = LessOrEqual(cols, rows)
    zero = Constant<value_float=0.0>()
    low = Constant<value_float=-3.4028234663852886e38>()
    bias = Where(see, zero, low)
    masked = Add(scaled, bias)
    p = Softmax<axis=-1>(masked)
    o = MatMul(p, wv)"""

# Rotations; @ stands for q or k, the result is @r.
SLICES = """
    @low = Slice(@, flat, mid, last)
    @high = Slice(@, mid, end, last)"""
SUM = """
    @minus = Neg(@high)
    @turned = Concat<axis=-1>(@minus, @low)
    @c = Mul(@, cos)
    @s = Mul(@turned, sin)
    @r = Add(@c, @s)"""
SPLIT = "\n    @low, @high = Split<axis=-1, num_outputs=2>(@)"
PRODUCTS = """
    @a = Mul(@low, cosn)
    @b = Mul(@high, sinn)
    @c = Mul(@high, cosn)
    @d = Mul(@low, sinn)"""
HALVES = SLICES + SUM
SUBTRACTED = (
    SPLIT
    + PRODUCTS
    + """
    @e = Sub(@a, @b)
    @f = Add(@c, @d)
    @r = Concat<axis=-1>(@e, @f)"""
)
STRIDED = """
    @low = Slice(@, flat, end, last, two)
    @high = Slice(@, second, end, last, two)"""
STACKED = (
    STRIDED
    + PRODUCTS
    + """
    @e = Sub(@a, @b)
    @f = Add(@d, @c)
    @e1 = Unsqueeze(@e, last)
    @f1 = Unsqueeze(@f, last)
    @pairs = Concat<axis=-1>(@e1, @f1)
    @shape = Shape(@)
    @r = Reshape(@pairs, @shape)"""
)
PARTIAL = """
    @part = Slice(@, flat, mid, last)
    @rest = Slice(@, mid, end, last)
    @low = Slice(@part, flat, four, last)
    @high = Slice(@part, four, end, last)
    @minus = Neg(@high)
    @turned = Concat<axis=-1>(@minus, @low)
    @c = Mul(@part, cosp)
    @s = Mul(@turned, sinp)
    @t = Add(@c, @s)
    @r = Concat<axis=-1>(@t, @rest)"""
HEADS_LAST = """
    @b = Transpose<perm=[0,2,1,3]>(@)
    @low = Slice(@b, flat, mid, last)
    @high = Slice(@b, mid, end, last)
    @minus = Neg(@high)
    @turned = Concat<axis=-1>(@minus, @low)
    @cos = Unsqueeze(cos3, two)
    @sin = Unsqueeze(sin3, two)
    @c = Mul(@b, @cos)
    @s = Mul(@turned, @sin)
    @t = Add(@c, @s)
    @r = Transpose<perm=[0,2,1,3]>(@t)"""
NODE = """
    @cos = Slice(cos3, flat, mid, last)
    @sin = Slice(sin3, flat, mid, last)
    @cosb = Expand(@cos, tshape)
    @sinb = Expand(@sin, tshape)
    @r = RotaryEmbedding{attributes}(@, @cosb, @sinb)"""
TSHAPE = """
    all = Shape<start=0, end=1>(q)
    tshape = Concat<axis=0>(all, second, second)"""
CONTRIB = """
    @ids = Unsqueeze(range, flat)
    @table = Slice(cos2, flat, mid, last)
    @tables = Slice(sin2, flat, mid, last)
    @bids = Expand(@ids, bshape)
    @r = com.microsoft.RotaryEmbedding{attributes}(@, @bids, @table, @tables)"""
BSHAPE = """
    all = Shape<start=0, end=1>(q)
    bshape = Concat<axis=0>(all, second)"""


def flipped(axis: str) -> str:
    """Tables backwards along an axis, instead of cos and sin."""
    return "".join(f"\n    {t}f = Slice({t}, last, begin, {axis}, last)" for t in ("cos", "sin"))


ROTATIONS = {
    "slices": HALVES,
    "split": SPLIT + SUM,
    "operands swapped": HALVES.replace("Mul(@, cos)", "Mul(cos, @)").replace("(@c, @s)", "(@s, @c)"),
    "subtracted": SUBTRACTED,
    "negative after the product": SUBTRACTED.replace("Sub(@a, @b)", "Add(@n, @a)").replace(
        "@e =", "@n = Neg(@b)\n    @e ="
    ),
    "negative tables": HALVES.replace("@minus = Neg(@high)", "@minus = Identity(@high)")
    .replace("(@minus, @low)", "(@minus, @opposite)")
    .replace("@minus =", "@opposite = Neg(@low)\n    @minus =")
    .replace("Mul(@turned, sin)", "Mul(@turned, @sin)")
    .replace("@s =", "@sin = Neg(sin)\n    @s ="),
    "one table": HALVES.replace("(@turned, sin)", "(@turned, cos)"),
    "pairs by strides": STACKED,
    "first 8 of 16": PARTIAL,
    "before the heads are moved": HEADS_LAST,
    "node": TSHAPE + NODE.replace("{attributes}", ""),
    "node, interleaved": TSHAPE + NODE.replace("{attributes}", "<interleaved=1>"),
    "contrib node": BSHAPE + CONTRIB.replace("{attributes}", ""),
}
#: Pieces of graph that are no rotation of both by the same tables: (of q, of k).
OTHERS = {
    "wrong sign": HALVES.replace("Neg(@high)", "Identity(@high)"),
    "other half negative": HALVES.replace("Neg(@high)", "Identity(@high)")
    .replace("(@minus, @low)", "(@minus, @opposite)")
    .replace("@minus =", "@opposite = Neg(@low)\n    @minus ="),
    "turned the other way": HALVES.replace("(@minus, @low)", "(@low, @minus)"),
    "columns backwards": flipped("last") + HALVES.replace(", cos)", ", cosf)").replace(", sin)", ", sinf)"),
    "rows backwards": flipped("two") + HALVES.replace(", cos)", ", cosf)").replace(", sin)", ", sinf)"),
    "a multiple": HALVES.replace("@r = Add(@c, @s)", "@cc = Add(@c, @c)\n    @r = Add(@cc, @s)"),
    "halves with tables of pairs": HALVES.replace(", cos)", ", cosw)").replace(", sin)", ", sinw)"),
    "last 8 of 16": PARTIAL.replace("Slice(@, flat, mid, last)", "Slice(@, mid, end, last)", 1)
    .replace("@rest = Slice(@, mid, end, last)", "@rest = Slice(@, flat, mid, last)")
    .replace("(@t, @rest)", "(@rest, @t)"),
}
MIXED = {
    "only the queries": (HALVES, "\n    @r = Identity(@)"),
    "only the keys": ("\n    @r = Identity(@)", HALVES),
    "other tables for the keys": (
        HALVES,
        "\n    @sin0 = Sin(cos)\n" + HALVES.replace("Mul(@turned, sin)", "Mul(@turned, @sin0)"),
    ),
    "halves and pairs": (HALVES, STACKED),
    "all and a part": (HALVES, PARTIAL),
}


def build(of_q: str, of_k: str) -> onnx.ModelProto:
    """A model of one attention with pieces of graph for q and k."""
    shared, pieces = [], []
    for name, piece in (("q", of_q), ("k", of_k)):
        for line in piece.splitlines():
            if "@" in line:
                pieces.append(line.replace("@", name))
            elif line not in shared:
                shared.append(line)
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[B,{HEADS},S,{DIM}] q, float[B,{KV_HEADS},S,{DIM}] k, float[B,{KV_HEADS},S,{DIM}] v)
      => (float[B,{HEADS},S,{DIM}] o, float[B,{KV_HEADS},S,{DIM}] cache)
    <float[1,8] frequencies = {{1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01}}>
    {{{PRELUDE}{chr(10).join(shared)}
    {chr(10).join(pieces)}{ATTENTION}
    cache = Identity(kr)
    }}"""
    return onnx.parser.parse_model(text)


def check(model: onnx.ModelProto, folder, compiler, rotary: str | None) -> None:
    """Compiles, compares with ONNX Runtime, and looks whether the op rotates.

    rotary: the kind the attention op must have, or None for none.
    """
    path = save_model(model, folder / "model.onnx")
    raised = run_compiler([path, "-emit=prefill", "-o", "-"]).stdout
    (attention,) = [line for line in raised.splitlines() if "prefill.attention" in line]
    for kind in ("half", "interleaved"):
        assert (f"#prefill<rotary {kind}>" in attention) == (rotary == kind), attention
    assert ("rotated_k" in attention) == bool(rotary)  # the cache
    out = prefill_opt.compile(path, folder / "out")
    assert count_kernels(out) == 1
    ours, theirs = prefill_opt.session(out), plain_session(path)
    rng = np.random.default_rng(0)
    for batch, tokens in SIZES:
        feeds = {
            name: rng.standard_normal((batch, heads, tokens, DIM)).astype(np.float32)
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        }
        where = f"batch {batch}, {tokens} tokens"
        wrong = compare(["o", "cache"], ours.run(None, feeds), theirs.run(None, feeds), where)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotation(name, tmp_path, compiler):
    piece = ROTATIONS[name]
    pairs = "strides" in name or "interleaved" in name
    check(build(piece, piece), tmp_path, compiler, "interleaved" if pairs else "half")


@pytest.mark.parametrize("name", [*OTHERS, *MIXED])
def test_no_rotation(name, tmp_path, compiler):
    of_q, of_k = MIXED.get(name) or (OTHERS[name], OTHERS[name])
    check(build(of_q, of_k), tmp_path, compiler, None)
