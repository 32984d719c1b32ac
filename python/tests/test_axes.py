"""Random Einsum attentions: any order of axes, softmax over any of them, equal sizes everywhere.

With all sizes equal, shapes say nothing: only the indices do.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx.parser
import pytest
from support import count_kernels, plain_session, row_error, save_model

import prefill_opt

CASES = 8


def random_model(rng: random.Random) -> onnx.ModelProto:
    """Two products around a softmax, their letters in random order, some of them swapped."""
    size = rng.choice((2, 4))
    sizes = dict.fromkeys("bhijde", size)
    if rng.random() < 0.5:
        sizes.update(b=2, h=4, i=8, j=8, d=16, e=16)

    def order(letters: str) -> str:
        return "".join(rng.sample(letters, 4)) if rng.random() < 0.6 else letters

    def shape(letters: str) -> str:
        return ",".join(str(sizes[c]) for c in letters)

    q, k, v, scores, o = (order(x) for x in ("bhid", "bhjd", "bhje", "bhij", "bhie"))
    read = scores
    if rng.random() < 0.35 and sizes["j"] == size:
        one, two = rng.sample("bhij", 2)
        read = scores.translate(str.maketrans(one + two, two + one))
    axis = scores.index("j") if rng.random() < 0.8 else rng.randrange(4)
    product = f"{read},{v}->{o}>(p, v)" if rng.random() < 0.7 else f"{v},{read}->{o}>(v, p)"
    product = product.replace(">(", '">(')
    masked = rng.random() < 0.6
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    attention (float[{shape(q)}] q, float[{shape(k)}] k, float[{shape(v)}] v) => (float[{shape(o)}] o) {{
      raw = Einsum<equation="{q},{k}->{scores}">(q, k)
      s = {"Add(raw, mask)" if masked else "Identity(raw)"}
      p = Softmax<axis={axis}>(s)
      o = Einsum<equation="{product}
    }}"""
    model = onnx.parser.parse_model(text)
    if masked:
        row, column = "ij" if rng.random() < 0.7 else rng.sample("bhij", 2)
        visible = np.tri(sizes[row], sizes[column], rng.choice((0, 0, 1, -1, -2)))
        values = np.where(visible, 0, rng.choice((np.finfo(np.float32).min, -np.inf))).astype(np.float32)
        if scores.index(row) > scores.index(column):
            values = values.T
        values = values.reshape([sizes[c] if c in (row, column) else 1 for c in scores])
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, "mask"))
    return model


@pytest.mark.parametrize("seed", range(10))
def test_random_axes(seed, compiler, tmp_path):
    raised = 0
    for case in range(CASES):
        rng = random.Random(100 * seed + case)
        model = random_model(rng)
        path = save_model(model, tmp_path / f"{case}.onnx")
        original = plain_session(path, optimise=False)
        folder = prefill_opt.compile(path, tmp_path / str(case), timeout=60)
        raised += count_kernels(folder)
        numbers = np.random.default_rng(case)
        feeds = {i.name: numbers.standard_normal(i.shape).astype(np.float32) for i in original.get_inputs()}
        (expected,) = original.run(None, feeds)
        (got,) = prefill_opt.session(folder, log_severity_level=4).run(None, feeds)
        assert row_error(got, expected) < 2e-5, onnx.printer.to_text(model)
    assert raised, "none of them was raised"
