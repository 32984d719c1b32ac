"""`-share-kv=detect` on a model whose layers read one layer's keys and values, exported with copies."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import compare, plain_session

import prefill_opt

HIDDEN, HEADS, KV_HEADS = 32, 4, 2


def decoder(path, shared: bool, external: bool = False, layers: int = 4) -> None:
    """A YOCO-like decoder: the second half of the layers projects keys and values from one state.

    With `shared` by equal weights, which the file holds once a layer; otherwise by their own.
    """
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []

    def product(x: str, name: str, columns: int, seed: int | None = None) -> str:
        draw = rng if seed is None else np.random.default_rng(seed)
        matrix = draw.normal(0, 0.2, (HIDDEN, columns)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"{name}.weight"))
        nodes.append(helper.make_node("MatMul", [x, f"{name}.weight"], [name], name))
        return name

    x, state = "x", ""
    for layer in range(layers):
        if layer == layers // 2:
            state = x
        source = state or x
        width = HIDDEN * KV_HEADS // HEADS
        seeds = (101, 102) if state and shared else (None, None)
        q = product(x, f"l{layer}.q", HIDDEN)
        k, v = (product(source, f"l{layer}.{n}", width, s) for n, s in zip("kv", seeds, strict=True))
        attended = f"l{layer}.o"
        attributes = {"q_num_heads": HEADS, "kv_num_heads": KV_HEADS, "is_causal": 1}
        nodes.append(helper.make_node("Attention", [q, k, v], [attended], f"/model/layers.{layer}/attn/Attention", **attributes))
        nodes.append(helper.make_node("Add", [x, attended], [f"l{layer}.y"]))
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "s", width]) for n in (k, v)]
        x = f"l{layer}.y"
    outputs.insert(0, helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, "s", HIDDEN]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "s", HIDDEN])
    graph = helper.make_graph(nodes, "decoder", [given], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)


def with_logits(path, tokens_input: str = "input_ids") -> None:
    """Gives the decoder at `path` token ids for its input, `logits` for its first output, and no caches."""
    model = onnx.load(path)
    graph, rng = model.graph, np.random.default_rng(5)
    for name, shape in (("embedding", (50, HIDDEN)), ("head", (HIDDEN, 50))):
        graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    graph.node.insert(0, helper.make_node("Gather", ["embedding", tokens_input], ["x"]))
    graph.node.append(helper.make_node("MatMul", [graph.output[0].name, "head"], ["logits"]))
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(tokens_input, TensorProto.INT64, [1, "s"]))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "s", 50]))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def outputs_of(session, tokens: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(1, tokens, HIDDEN)).astype(np.float32)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("external", (False, True))
def test_copies_are_computed_once(external, compiler, tmp_path):
    model, out = tmp_path / "model.onnx", tmp_path / "out"
    decoder(model, shared=True, external=external)
    prefill_opt.compile(model, out, share_kv="detect")
    entry = json.loads((out / "manifest.json").read_text())["share_kv"]
    assert entry["exact"] is True
    assert [(e["layer"], e["reads"]) for e in entry["layers"]] == [("model.layers.3.attn", "model.layers.2.attn")]
    products = [n for n in onnx.load(out / "model.onnx", load_external_data=False).graph.node if n.op_type == "MatMul"]
    assert len(products) == 4 * 3 - 2
    ours = outputs_of(prefill_opt.session(out, log_severity_level=4), 70)
    theirs = outputs_of(plain_session(model), 70)
    assert not compare(list(theirs), [ours[n] for n in theirs], list(theirs.values()), "shared")
    assert np.array_equal(ours["l2.k"], ours["l3.k"])


def test_layers_with_their_own_keys_stay(compiler, tmp_path):
    """Nothing is found: the model is what it is without the option."""
    model = tmp_path / "model.onnx"
    decoder(model, shared=False)
    texts = []
    for options in ({}, {"share_kv": "detect"}):
        prefill_opt.run_compiler([model, *(f"-{k.replace('_', '-')}={v}" for k, v in options.items()),
                                  "-emit=sparse", "-o", tmp_path / "text.mlir"])
        texts.append((tmp_path / "text.mlir").read_text())
    assert texts[0] == texts[1]


def test_cost_and_the_line(compiler, tmp_path):
    model = tmp_path / "model.onnx"
    decoder(model, shared=True)
    done = prefill_opt.run_compiler([model, "-share-kv=detect", "-o", tmp_path / "out"])
    assert "KV sharing: 1 attentions read another one's keys and values, 1 of them computed these again" in done.stderr
    report = json.loads(
        prefill_opt.run_compiler(["cost", model, "-tokens=64", "-share-kv=detect", "-json"]).stdout
    )
    before, after = (
        next(r for r in report["rows"] if r["transform"] == name)
        for name in ("attention raised", "-share-kv=detect")
    )
    width = HIDDEN * KV_HEADS // HEADS
    assert before["flops"]["linear"] - after["flops"]["linear"] == 2 * 64 * HIDDEN * 2 * width
    assert after["kv_bytes"] == before["kv_bytes"] * 3 / 4


def test_rows_stop_where_no_layer_has_keys_of_its_own(compiler, tmp_path):
    """All rows but the last end at the state that the upper layers share (YOCO's early exit)."""
    model, out = tmp_path / "model.onnx", tmp_path / "out"
    decoder(model, shared=True)
    with_logits(model)
    report = json.loads(
        prefill_opt.run_compiler(
            ["cost", model, "-tokens=64", "-share-kv=detect", "-logits=last", "-json"]
        ).stdout
    )
    assert [a["rows"] for a in report["rows"][-1]["attentions"]] == [64, 64, 1, 1]
    prefill_opt.compile(model, out, share_kv="detect", logits="last")
    ids = {"input_ids": np.arange(41)[None] % 50}
    ours = prefill_opt.session(out, log_severity_level=4).run(None, ids)[0]
    theirs = plain_session(model).run(None, ids)[0][:, -1:]
    assert not compare(["logits"], [ours], [theirs], "last")


def test_wrong_value(compiler, tmp_path):
    decoder(tmp_path / "model.onnx", shared=True)
    with pytest.raises(prefill_opt.CompileError, match="-share-kv=yes: expected detect or off"):
        prefill_opt.compile(tmp_path / "model.onnx", tmp_path / "out", share_kv="yes")
