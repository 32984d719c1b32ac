"""Attention in the branches of an If, as decoders are merged: one branch reads a cache, the other does not."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from support import attention_sites, compare, count_kernels, plain_session, save_model

import prefill_opt

HEADS, DIM = 4, 16
CONSTANTS = """factor = Constant<value_float=0.3>()
    low = Constant<value_float=-3.4028234663852886e38>()
    nil = Constant<value_int=0>()
    one = Constant<value_int=1>()
    flat = Constant<value_ints=[0]>()
    first = Constant<value_ints=[1]>()
    second = Constant<value_ints=[2]>()"""


def causal(p: str, k: str, v: str, past: str) -> str:
    """Causal attention of q, k, v, its names beginning with `p`; row 0 stands at key `past`, a scalar."""
    return f"""{p}kt = Transpose<perm=[0,1,3,2]>({k})
      {p}raw = MatMul(q, {p}kt)
      {p}scaled = Mul({p}raw, factor)
      {p}qs = Shape<start=2, end=3>(q)
      {p}ks = Shape<start=2, end=3>({k})
      {p}qn = Squeeze({p}qs)
      {p}kn = Squeeze({p}ks)
      {p}rows0 = Range(nil, {p}qn, one)
      {p}cols0 = Range(nil, {p}kn, one)
      {p}rows1 = Add({p}rows0, {past})
      {p}rows = Unsqueeze({p}rows1, first)
      {p}cols = Unsqueeze({p}cols0, flat)
      {p}see = LessOrEqual({p}cols, {p}rows)
      {p}masked = Where({p}see, {p}scaled, low)
      {p}p = Softmax<axis=-1>({p}masked)
      {p}o = MatMul({p}p, {v})"""


def decoder(then: str, other: str, results: tuple[str, str] = ("t_o", "e_o"), before: str = "") -> onnx.ModelProto:
    """One output o of q, k, v [B,4,S,16] and caches, whose lengths P and R the model calls by two names."""
    head = f"float[B,{HEADS},S,{DIM}]"
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 18]>
    decoder (bool cached, {head} q, {head} k, {head} v,
             float[B,{HEADS},P,{DIM}] past_k, float[B,{HEADS},R,{DIM}] past_v) => ({head} o) {{
      {CONSTANTS}
      {before}
      o = If(cached) <
        then_branch = with_cache () => ({head} {results[0]}) {{ {then} }},
        else_branch = without () => ({head} {results[1]}) {{ {other} }}
      >
    }}""")


def length(p: str, of: str) -> str:
    """The number of rows of the cache `of`, as the scalar `p`n."""
    return f"{p}s = Shape<start=2, end=3>({of})\n {p}n = Squeeze({p}s)\n"


#: K and V behind their caches, and attention of both.
CACHED = "kk = Concat<axis=2>(past_k, k)\n vv = Concat<axis=2>(past_v, v)\n"
CACHED += length("t_", "past_k") + causal("t_", "kk", "vv", "t_n")


def check(model, folder_options: dict, calls, tmp_path, raised: int) -> None:
    """Compares all `calls` (cached, S, P, R) of the compiled model with the original."""
    path = save_model(model, tmp_path / "model.onnx")
    original = plain_session(path, optimise=False)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60, **folder_options)
    rewritten = prefill_opt.session(folder, log_severity_level=4, intra_op_num_threads=1)
    rng = np.random.default_rng(0)
    wrong = []
    for cached, s, p, r in calls:
        sizes = {"q": s, "k": s, "v": s, "past_k": p, "past_v": r}
        feeds = {
            name: rng.standard_normal((2, HEADS, n, DIM)).astype(np.float32) for name, n in sizes.items()
        } | {"cached": np.array(cached)}
        where = f"cached={cached} S={s} P={p} R={r}"
        wrong += compare(["o"], rewritten.run(None, feeds), original.run(None, feeds), where)
    assert not wrong, "; ".join(wrong)
    assert count_kernels(folder) == raised, attention_sites(prefill_opt.inspect(path, timeout=60))


@pytest.mark.parametrize("sparsify", ["dense", "a-shape:init=64,local=256"])
def test_merged_decoder(sparsify, compiler, tmp_path):
    model = decoder(CACHED, causal("e_", "k", "v", "nil"))
    calls = [(True, s, p, p) for s, p in ((1, 1), (1, 63), (65, 70))] + [(False, s, 1, 1) for s in (1, 65, 130)]
    check(model, {"sparsify": sparsify}, calls, tmp_path, raised=2)


def test_branch_in_a_branch(compiler, tmp_path):
    """What the outer branch computed is known in the inner one."""
    head = f"float[B,{HEADS},S,{DIM}]"
    inner = f"""twice = Add(k, k)
      t_o = If(cached) <
        then_branch = yes () => ({head} i_o) {{ {causal("i_", "twice", "v", "nil")} }},
        else_branch = no () => ({head} j_o) {{ j_o = Identity(twice) }}
      >"""
    model = decoder(inner, causal("e_", "k", "v", "nil"))
    check(model, {}, [(c, s, 1, 1) for c in (True, False) for s in (1, 65)], tmp_path, raised=2)


def test_product_outside(compiler, tmp_path):
    """Scores computed before the If, and read by one branch or by both."""
    before = "kt = Transpose<perm=[0,1,3,2]>(k)\n raw = MatMul(q, kt)\n scores = Mul(raw, factor)"
    read = "t_p = Softmax<axis=-1>(scores)\n t_o = MatMul(t_p, v)"
    model = decoder(read, "e_o = Identity(v)", before=before)
    check(model, {}, [(c, s, 1, 1) for c in (True, False) for s in (1, 65)], tmp_path, raised=1)
    both = decoder(read, "e_o = MatMul(scores, v)", before=before)
    check(both, {}, [(c, s, 1, 1) for c in (True, False) for s in (1, 65)], tmp_path, raised=0)


@pytest.mark.parametrize("cached_first", [True, False])
def test_assumptions_stay_in_their_branch(cached_first, compiler, tmp_path):
    """With a cache the two lengths must be equal, or the product fails. The other branch runs whatever
    they are, and there the mask's offset is not the number of keys before the row."""
    other = "k2 = Concat<axis=2>(past_k, k)\n v2 = Concat<axis=2>(past_k, v)\n"
    other += length("e_", "past_v") + causal("e_", "k2", "v2", "e_n")
    if cached_first:
        model = decoder(CACHED, other)
    else:
        model = decoder(other, CACHED, results=("e_o", "t_o"))
    calls = [(cached_first, 7, 5, 5), (cached_first, 65, 70, 70)]
    calls += [(not cached_first, 7, p, r) for p, r in ((5, 5), (5, 9), (9, 5), (70, 3), (0, 80))]
    path = save_model(model, tmp_path / "which.onnx")
    sites = attention_sites(prefill_opt.inspect(path, timeout=60))
    # Raised or not, but not as causal from the last key.
    masks = [site["mask"] for site in sites if site["raised"]]
    assert masks.count("causal") == 1, masks
    check(model, {}, calls, tmp_path, raised=len(masks))


def test_loop_is_declined(compiler, tmp_path):
    """Every turn of a loop is another execution: sizes may differ from one to the next."""
    head = f"float[B,{HEADS},S,{DIM}]"
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    looped ({head} q, {head} k, {head} v, int64 turns) => ({head} o) {{
      {CONSTANTS}
      yes = Constant<value_ints=[1]>()
      yes1 = Squeeze(yes)
      go = Cast<to=9>(yes1)
      o = Loop(turns, go, v) <
        body = turn (int64 i, bool more, {head} v_in) => (bool m_out, {head} l_o) {{
          m_out = Identity(more)
          {causal("l_", "k", "v_in", "nil")}
        }}
      >
    }}"""
    path = save_model(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    (site,) = attention_sites(prefill_opt.inspect(path, timeout=60))
    assert not site["raised"] and "no branch of an If" in site["reason"]
