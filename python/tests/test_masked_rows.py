"""Rows that a float mask hides altogether: masks that are inputs of the graph.

Exporters write "hidden" as -inf or as the least finite number. The two differ in rows with no
other key: softmax over equal minima is a mean, over nothing but -inf it is NaN, and beside one
finite minimum -inf counts for nothing. The compiled model must do what the original does.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from support import count_kernels, plain_session, row_error, save_model

import prefill_opt

HEADS, DIM = 4, 16
LEAST = np.finfo(np.float32).min
GUARD = "bad = IsNaN(p)\n zero = Constant<value_float=0.0>()\n w = Where(bad, zero, p)"
SIZES = ((1, 1), (9, 9), (64, 64), (70, 135), (200, 200))


def model(apply: str, shape: str) -> onnx.ModelProto:
    """A decomposed attention with an input `mask` that is added; `apply` makes w of p."""
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    attention (float[b,{HEADS},s,{DIM}] q, float[b,{HEADS},t,{DIM}] k, float[b,{HEADS},t,{DIM}] v,
               float[{shape}] mask) => (float[b,{HEADS},s,{DIM}] o) {{
        kt = Transpose<perm=[0,1,3,2]>(k)
        raw = MatMul(q, kt)
        factor = Constant<value_float=0.25>()
        scaled = Mul(raw, factor)
        masked = Add(scaled, mask)
        p = Softmax<axis=-1>(masked)
        {apply}
        o = MatMul(w, v)
    }}"""
    return onnx.parser.parse_model(text)


def mask_of_minima(rng, *shape: int) -> np.ndarray:
    """A mask in which row i is of kind i % 7, see below."""
    mask = rng.standard_normal(shape).astype(np.float32)
    rows = mask.reshape(-1, shape[-1])
    for i, row in enumerate(rows):
        lone = rng.integers(shape[-1])
        match i % 7:
            case 0:  # every key hidden by the same finite minimum
                row[:] = LEAST
            case 1:  # one finite minimum, the others -inf
                row[:] = -np.inf
                row[lone] = LEAST
            case 2:  # different minima
                row[:] = rng.choice(np.float32([LEAST, -3.3e38, -3.1e38]), row.shape)
            case 3:  # and -inf among them
                row[:] = rng.choice(np.float32([LEAST, -np.inf, -np.inf, -3.2e38]), row.shape)
            case 4:  # nothing but -inf
                row[:] = -np.inf
            case 5:  # one key that is seen beside minima
                row[:] = LEAST
                row[lone] = 0
            case _:  # an ordinary bias
                pass
    return mask


@pytest.mark.parametrize("shape", ["b,1,s,t", f"1,{HEADS},s,t", "s,t"])
@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])
def test_mask_input(guard, shape, compiler, tmp_path):
    path = save_model(model(GUARD if guard else "w = Identity(p)", shape), tmp_path / "model.onnx")
    out = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    assert count_kernels(out) == 1
    original, compiled = plain_session(path), prefill_opt.session(out, intra_op_num_threads=2)
    for s, t in SIZES:
        rng = np.random.default_rng([s, t])
        sizes = {"b": 2, "s": s, "t": t}
        mask = mask_of_minima(rng, *(sizes.get(d) or int(d) for d in shape.split(",")))
        feeds = {"mask": mask}
        for name, length in (("q", s), ("k", t), ("v", t)):
            feeds[name] = rng.standard_normal((2, HEADS, length, DIM)).astype(np.float32)
        expected, got = original.run(None, feeds)[0], compiled.run(None, feeds)[0]
        assert row_error(got, expected) < 1e-5, f"s={s} t={t}"


def compiled_text(text: str, tmp_path):
    """Compiles a model in text form with one attention; returns a session."""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    out = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    assert count_kernels(out) == 1
    return prefill_opt.session(out, intra_op_num_threads=2)


def test_past_the_lengths(compiler, tmp_path):
    """Keys and values past a sequence's length may hold anything."""
    session = compiled_text(
        f"""<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        attention (float[b,s,{HEADS * DIM}] q, float[b,s,{2 * DIM}] k, float[b,s,{2 * DIM}] v,
                   int32[b] lengths, int32[1] total)
            => (float[b,s,{HEADS * DIM}] o, float[b,2,t,{DIM}] pk, float[b,2,t,{DIM}] pv) {{
            o, pk, pv = com.microsoft.GroupQueryAttention<num_heads={HEADS}, kv_num_heads=2>
                (q, k, v, , , lengths, total)
        }}""",
        tmp_path,
    )
    rng = np.random.default_rng(5)
    s, last = 150, 70  # of entry 1
    feeds = {"lengths": np.int32([s - 1, last]), "total": np.int32([s])}
    for name, heads in (("q", HEADS), ("k", 2), ("v", 2)):
        feeds[name] = rng.standard_normal((2, s, heads * DIM)).astype(np.float32)
    expected = session.run(["o"], feeds)[0]
    assert np.isfinite(expected).all()
    for name in "kv":
        feeds[name][1, last + 1 :] = np.nan
    got = session.run(["o"], feeds)[0]
    assert np.array_equal(got[:, : last + 1], expected[:, : last + 1])


def test_padded_keys(compiler, tmp_path):
    """Masked keys may hold anything, and so may their values where a whole block is masked.

    Other values of masked keys are multiplied by 0, as in ONNX Runtime: infinities show.
    """
    session = compiled_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
        attention (float[b,{HEADS},s,{DIM}] q, float[b,{HEADS},s,{DIM}] k,
                   float[b,{HEADS},s,{DIM}] v, int64[b,s] mask) => (float[b,{HEADS},s,{DIM}] o) {{
            seen = Cast<to=9>(mask)
            axes = Constant<value_ints=[1, 2]>()
            visible = Unsqueeze(seen, axes)
            o = Attention(q, k, v, visible)
        }}""",
        tmp_path,
    )
    rng = np.random.default_rng(6)
    s, pad = 300, 200
    feeds = {n: rng.standard_normal((2, HEADS, s, DIM)).astype(np.float32) for n in "qkv"}
    feeds["mask"] = np.ones((2, s), np.int64)
    feeds["mask"][1, :pad] = 0
    expected = session.run(["o"], feeds)[0]
    assert np.isfinite(expected).all()
    feeds["k"][1, :, :pad] = np.nan
    feeds["v"][1, :, : pad // 2] = np.nan
    assert np.array_equal(session.run(["o"], feeds)[0], expected)
