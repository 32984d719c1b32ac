"""A mask whose length has a name of its own beside a cache and new tokens: what is read of it says how long it is."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from support import attention_sites, compare, plain_session, save_model

import prefill_opt

HEADS, DIM = 2, 8
NAMES = ("o", "present")


def decoder(reads: bool) -> onnx.ModelProto:
    """Tokens [B,S], a mask [B,T], caches of P keys and R values: heads of embeddings, biased by the mask's positions.

    As ALiBi: the bias has the mask's length. The mask hides keys by a Gather of all P + S positions
    if `reads`, else not at all.
    """
    hidden = """all = Gather<axis=1>(mask, columns)
      hole = Equal(all, nil)
      holes = Unsqueeze(hole, middle)
      hides = Or(holes, later)"""
    cache = f"float[B,{HEADS}"
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 18]>
    decoder (int64[B,S] ids, int64[B,T] mask, {cache},P,{DIM}] k, {cache},R,{DIM}] v) => (float[B,{HEADS},S,{DIM}] o, {cache},Q,{DIM}] present)
    <float[9,{HEADS * DIM}] table, float[1,{HEADS},1,1] slopes> {{
      heads = Constant<value_ints=[0, 0, {HEADS}, {DIM}]>()
      nil = Constant<value_int=0>()
      one = Constant<value_int=1>()
      first = Constant<value_ints=[1]>()
      flat = Constant<value_ints=[0]>()
      middle = Constant<value_ints=[1, 2]>()
      low = Constant<value_float=-3.4028234663852886e38>()
      factor = Constant<value_float=0.3>()
      x = Gather(table, ids)
      x4 = Reshape(x, heads)
      q = Transpose<perm=[0,2,1,3]>(x4)
      present = Concat<axis=2>(k, q)
      values = Concat<axis=2>(v, q)
      p1 = Shape<start=2, end=3>(k)
      p = Squeeze(p1)
      s1 = Shape<start=1, end=2>(ids)
      s = Squeeze(s1)
      t = Add(p, s)
      columns = Range(nil, t, one)
      rows0 = Range(nil, s, one)
      rows1 = Add(rows0, p)
      rows = Unsqueeze(rows1, first)
      later = Greater(columns, rows)
      {hidden if reads else "hides = Identity(later)"}
      sums = CumSum(mask, one)
      positions = Cast<to=1>(sums)
      positions4 = Unsqueeze(positions, middle)
      bias = Mul(slopes, positions4)
      kt = Transpose<perm=[0,1,3,2]>(present)
      raw = MatMul(q, kt)
      scaled = Mul(raw, factor)
      biased = Add(scaled, bias)
      masked = Where(hides, low, biased)
      probabilities = Softmax<axis=-1>(masked)
      o = MatMul(probabilities, values)
    }}""")


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with numbers for its initialisers, which are no inputs."""
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name, shape in (("table", (9, HEADS * DIM)), ("slopes", (1, HEADS, 1, 1))):
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize("reads", (True, False))
def test_mask_of_its_own_length(reads, compiler, tmp_path):
    path = save_model(with_weights(decoder(reads)), tmp_path / "model.onnx")
    (site,) = attention_sites(prefill_opt.inspect(path))
    # Unread, a mask of one element serves keys of any number.
    assert site["raised"] == reads, site
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    plain = plain_session(path)
    rewritten = prefill_opt.session(folder, log_severity_level=4, intra_op_num_threads=1)
    wrong = []
    for batch, tokens, past in ((1, 1, 0), (2, 5, 0), (1, 1, 7), (3, 65, 2), (2, 64, 63)):
        for length in {past + tokens} if reads else {1, past + tokens}:
            rng = np.random.default_rng([batch, tokens, past])
            cache = rng.standard_normal((2, batch, HEADS, past, DIM)).astype(np.float32)
            mask = np.ones((batch, length), np.int64)
            mask[-1, : length // 3] = 0
            feeds = {"ids": rng.integers(0, 9, (batch, tokens)), "mask": mask, "k": cache[0], "v": cache[1]}
            where = f"b{batch} s{tokens} past{past} mask{length}"
            wrong += compare(list(NAMES), rewritten.run(None, feeds), plain.run(None, feeds), where)
    assert not wrong, wrong
