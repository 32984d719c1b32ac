"""LazyLLM with its auxiliary cache: prompts and decode steps against an independent float64 implementation."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import plain_session
from test_chunking import CACHED, MASKED, PLAIN, open_session, shared_model
from test_pruning import HUGGING_FACE, SMOLLM2, needs_smollm2
from test_share_kv import decoder as shared_decoder
from test_share_kv import with_logits

import prefill_opt

SMALL = "llama-dynamo18-nomask"
STEPS = 5
#: A window; positions that the caller hands to the rotary operator, which -chunk refuses as well.
REFUSED = ("phi3-dynamo18", "llama-hf-ort-past")


class Decoder:
    """A Llama-like decoder in float64: RMS norms, RoPE by halves, grouped heads, SwiGLU.

    `layers`: weights [in, out] by name; no norms or no MLP where the names are missing.
    """

    def __init__(self, embedding, head, layers, heads, groups, theta, eps, last_norm=None):
        self.embedding, self.head, self.layers, self.last_norm = embedding, head, layers, last_norm
        self.heads, self.groups, self.theta, self.eps = heads, groups, theta, eps

    def norm(self, x, weight):
        return x if weight is None else x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * weight

    def rotate(self, x, rows):
        """x [rows, heads, d]."""
        half = x.shape[-1] // 2
        angle = (rows[:, None] * self.theta ** (-np.arange(half) / half))[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def project(self, layer, x, rows):
        """Rotated q and k, and v, [rows, heads, d]."""
        w = {k: v.astype(np.float64) for k, v in self.layers[layer].items() if k in ("q", "k", "v", "norm1")}
        y = self.norm(x, w.get("norm1"))
        q, k, v = ((y @ w[n]).reshape(len(x), c, -1) for n, c in zip("qkv", (self.heads, *[self.groups] * 2)))
        return self.rotate(q, rows), self.rotate(k, rows), v

    def finish(self, layer, x, attended):
        w = {k: v.astype(np.float64) for k, v in self.layers[layer].items()}
        x = x + attended.reshape(len(x), -1) @ w["o"]
        if "gate" in w:
            y = self.norm(x, w.get("norm2"))
            x = x + (y @ w["gate"] / (1 + np.exp(-(y @ w["gate"]))) * (y @ w["up"])) @ w["down"]
        return x

    def logits(self, x):
        return self.norm(x, self.last_norm) @ self.head


class Procedure:
    """The paper's procedure, row by row: what a layer gave for a row is remembered and never computed again."""

    def __init__(self, model: Decoder, stages, keep, protected):
        self.model, self.stages, self.keep = model, stages, keep
        self.protected = protected  # (row, rows of the context) -> bool
        self.given = [{} for _ in range(len(model.layers) + 1)]  # [l][row]: what enters layer l
        self.keys = [{} for _ in model.layers]
        self.values = [{} for _ in model.layers]
        self.count = 0

    def call(self, ids):
        """Returns logits of the last row, and per stage the rows seen after it and those computed after it."""
        model, first = self.model, self.count
        self.count += len(ids)
        for row, token in enumerate(ids, first):
            self.given[0][row] = model.embedding[token].astype(np.float64)
        seen, selected, computed = np.arange(self.count), {}, {}
        for layer in range(len(model.layers)):
            todo = np.array([row for row in seen if row not in self.keys[layer]])
            if layer in self.stages:
                selected[layer], computed[layer] = seen, todo
            x = np.stack([self.given[layer][row] for row in todo])
            q, k, v = model.project(layer, x, todo)
            for row, key, value in zip(todo, k, v, strict=True):
                assert row not in self.keys[layer]
                self.keys[layer][row], self.values[layer][row] = key, value
            k, v = (
                np.stack([cache[layer][row] for row in seen]).repeat(model.heads // model.groups, 1)
                for cache in (self.keys, self.values)
            )
            s = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
            s[:, seen[None] > todo[:, None]] = -np.inf
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            x = model.finish(layer, x, np.einsum("hij,jhd->ihd", p, v))
            for row, value in zip(todo, x, strict=True):
                self.given[layer + 1][row] = value
            if layer + 1 in self.stages:
                assert todo[-1] == self.count - 1
                seen = self.choose(seen, p[:, -1].mean(0))
        return model.logits(x[-1]), selected, computed

    def choose(self, seen, score):
        kept = {i for i, row in enumerate(seen) if self.protected(row, self.count)}
        for i in np.argsort(-score, kind="stable"):
            if len(kept) >= -(-round(self.keep * 1e6) * len(seen) // 1_000_000):
                break
            kept.add(int(i))
        return seen[sorted(kept)]


def default_protection(row, count):
    return row < 4 or row == count - 1


def small_llama():
    """The small Llama of shared/models, from the weights of an export of it."""
    arrays = [numpy_helper.to_array(t) for t in onnx.load(str(shared_model(SMALL))).graph.initializer]
    weights = [a.astype(np.float64) for a in arrays if a.ndim == 2]
    names = ("q", "k", "v", "o", "gate", "up", "down")
    layers = [
        dict(zip(names, weights[i : i + 7], strict=True)) | {"norm1": np.ones(64), "norm2": np.ones(64)}
        for i in range(1, len(weights) - 1, 7)
    ]
    return Decoder(weights[0], weights[-1], layers, 4, 2, 10000.0, 1e-6, np.ones(64))


def smollm2_in_numpy():
    load_file = pytest.importorskip("safetensors.numpy").load_file
    weights = load_file(HUGGING_FACE / "model.safetensors")
    config = json.loads((HUGGING_FACE / "config.json").read_text())
    names = {f"self_attn.{n}_proj": n for n in "qkvo"} | {f"mlp.{n}_proj": n for n in ("gate", "up", "down")}
    names |= {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
    layers = [
        {short: weights[f"model.layers.{i}.{name}.weight"].T for name, short in names.items()}
        for i in range(config["num_hidden_layers"])
    ]
    embedding = weights["model.embed_tokens.weight"]
    return Decoder(
        embedding, embedding.T, layers, config["num_attention_heads"], config["num_key_value_heads"],
        config["rope_parameters"]["rope_theta"], config["rms_norm_eps"], weights["model.norm.weight"],
    )  # fmt: skip


def deep_decoder(path, layers=6, hidden=32, heads=4, groups=2, vocabulary=60, axes=0):
    """Writes a decoder with rotary embedding and no MLP, as ONNX; returns it as NumPy has it.

    With `axes` it has an input position_ids [axes, batch, s], and each axis rotates every so-manieth pair (as the
    multimodal rotary embedding of Qwen2-VL has sections for time, height and width).
    """
    rng, dim, half = np.random.default_rng(0), hidden // heads, hidden // heads // 2
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(op, inputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(name, *shape, scale):
        return constant(name, rng.normal(0, scale, shape).astype(np.float32))

    zero, one, two = (constant(n, np.array(v)) for n, v in (("zero", 0), ("one", 1), ("two", [2])))
    axis = constant("axis", np.array([1]))
    rates = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    if axes:
        turns = []
        for i in range(axes):
            own = constant(f"rates{i}", np.where(np.arange(half) % axes == i, rates, 0)[None, None, None])
            of_axis = node("Gather", ["position_ids", constant(f"axis{i}", np.array(i))], f"positions{i}", axis=0)
            places = node("Cast", [of_axis], f"numbers{i}", to=TensorProto.FLOAT)
            places = node("Unsqueeze", [places, constant(f"around{i}", np.array([1, 3]))], f"column{i}")
            turns.append(node("Mul", [places, own], f"angle{i}"))
        angle = node("Sum", turns, "angle")
    else:
        count = node("Gather", [node("Shape", ["input_ids"], "shape"), one], "count")
        rows = node("Cast", [node("Range", [zero, count, one], "rows")], "numbers", to=TensorProto.FLOAT)
        angle = node("MatMul", [node("Unsqueeze", [rows, axis], "column"), constant("rates", rates[None])], "angle")
    wide = node("Concat", [angle, angle], "wide", axis=-1)
    cos, sin = node("Cos", [wide], "cos"), node("Sin", [wide], "sin")
    halves = [constant(n, np.array([v])) for n, v in (("begin", 0), ("middle", half), ("end", dim), ("last", 3))]

    def rotated(x, name):
        low = node("Slice", [x, halves[0], halves[1], halves[3]], f"{name}.low")
        high = node("Slice", [x, halves[1], halves[2], halves[3]], f"{name}.high")
        turned = node("Concat", [node("Neg", [high], f"{name}.neg"), low], f"{name}.turned", axis=-1)
        parts = [node("Mul", [x, cos], f"{name}.cos"), node("Mul", [turned, sin], f"{name}.sin")]
        return node("Add", parts, f"{name}.rotated")

    x = node("Gather", [weight("embedding", vocabulary, hidden, scale=1), "input_ids"], "x")
    found = []
    for layer in range(layers):
        parts = {}
        for n, c in zip("qkv", (heads, groups, groups), strict=True):
            y = node("MatMul", [x, weight(f"l{layer}.{n}.w", hidden, c * dim, scale=0.12)], f"l{layer}.{n}")
            shape = constant(f"l{layer}.{n}.shape", np.array([0, -1, c, dim]))
            y = node("Reshape", [y, shape], f"l{layer}.{n}.split")
            parts[n] = node("Transpose", [y], f"l{layer}.{n}.heads", perm=[0, 2, 1, 3])
        q, k = (rotated(parts[n], f"l{layer}.{n}") for n in "qk")
        o = node("Attention", [q, k, parts["v"]], f"/model/layers.{layer}/attn/Attention", is_causal=1)
        o = node("Transpose", [o], f"l{layer}.moved", perm=[0, 2, 1, 3])
        o = node("Reshape", [o, constant(f"l{layer}.join", np.array([0, -1, hidden]))], f"l{layer}.joined")
        o = node("MatMul", [o, weight(f"l{layer}.o.w", hidden, hidden, scale=0.12)], f"l{layer}.o")
        x = node("Add", [x, o], f"l{layer}.y")
        found.append([c for c in constants if c.name.startswith(f"l{layer}.") and c.name.endswith(".w")])
    node("MatMul", [x, weight("head", hidden, vocabulary, scale=1)], "logits")
    graph = helper.make_graph(
        nodes, "decoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "s"])]
        + [helper.make_tensor_value_info("position_ids", TensorProto.INT64, [axes, "batch", "s"])] * (axes > 0),
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "s", vocabulary])],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    values = {c.name: numpy_helper.to_array(c).astype(np.float64) for c in constants}
    each = [{c.name.split(".")[1]: values[c.name] for c in of_layer} for of_layer in found]
    return Decoder(values["embedding"], values["head"], each, heads, groups, 10000.0, 0.0)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """(path, decoder) of six layers."""
    path = tmp_path_factory.mktemp("deep") / "model.onnx"
    return path, deep_decoder(path)


def option(stages, keep):
    return f"lazyllm:layers={'+'.join(map(str, stages))},keep={keep},aux=on"


def compare_calls(folder, decoder, stages, keep, parts, protected=default_protection, atol=1e-4, **options):
    """Runs the calls of `parts` in both; returns how many rows were revived."""
    context = prefill_opt.LazyLLM(open_session(folder))
    oracle = Procedure(decoder, stages, keep, protected)
    work = [0] * len(decoder.layers)
    revived = 0
    for number, ids in enumerate(parts):
        logits, selected, computed = oracle.call(ids)
        run = context.step if number else context.prompt
        result = run(ids, **options)
        for stage in stages:
            where = f"call {number}, after layer {stage}"
            np.testing.assert_array_equal(result[f"prefill.rows.{stage}"], selected[stage], where)
            np.testing.assert_array_equal(result[f"prefill.computed.{stage}"], computed[stage], where)
            revived += (result[f"prefill.computed.{stage}"] < context.rows - len(ids)).sum()
            waiting = sorted(set(oracle.keys[stage - 1]) - set(oracle.keys[stage]))
            np.testing.assert_array_equal(context.waiting(stage), waiting, where)
        np.testing.assert_allclose(result["logits"][-1], logits, atol=atol * np.abs(logits).max())
        # Keys and values are there for the rows that a layer computed, once for each of them.
        for layer in range(1, len(decoder.layers) + 1):
            rows = context.computed(layer)
            assert len(set(rows.tolist())) == len(rows)
            assert set(rows.tolist()) == set(oracle.keys[layer - 1])
            held = context._saved(f"key.{layer}")
            assert held.size == len(rows) * oracle.keys[0][0].size
            work[layer - 1] = len(rows)
    assert work == [len(keys) for keys in oracle.keys]
    return revived


def split(ids, prompt, steps=STEPS):
    return [ids[:prompt], *(ids[prompt + i : prompt + i + 1] for i in range(steps))]


@pytest.mark.parametrize("stages, keep, n", [((1,), 0.5, 60), ((1,), 0.1, 150), ((1,), 0.9, 9), ((1,), 0.3, 1)])
def test_small_llama_is_what_the_paper_does(compiled, stages, keep, n):
    folder = compiled(shared_model(SMALL), prune=option(stages, keep), logits="last")
    ids = np.random.default_rng(n).integers(0, 112, n + STEPS)
    revived = compare_calls(folder, small_llama(), stages, keep, split(ids, n))
    assert revived or keep == 0.9 or n == 1, "the test could not fail"
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert entry["prune"]["aux"] is True and entry["prune"]["exact"] is False


@pytest.mark.parametrize("stages, keep", [((2,), 0.4), ((1, 3), 0.6), ((2, 3, 5), 0.7), ((1, 2, 3, 4, 5), 0.8)])
@pytest.mark.parametrize("n", (2, 70))
def test_several_stages(compiled, deep, stages, keep, n):
    path, decoder = deep
    folder = compiled(path, prune=option(stages, keep), logits="last")
    ids = np.random.default_rng(7).integers(0, 60, n + 8)
    revived = compare_calls(folder, decoder, stages, keep, split(ids, n, 8))
    assert revived or n == 2, "the test could not fail"


def test_several_tokens_a_step(compiled, deep):
    """A second prompt after the first one: its rows stand beside those that are revived."""
    path, decoder = deep
    stages, keep = (1, 3), 0.4
    folder = compiled(path, prune=option(stages, keep), logits="last")
    ids = np.random.default_rng(8).integers(0, 60, 90)
    parts = [ids[:40], ids[40:41], ids[41:71], ids[71:72], ids[72:90]]
    assert compare_calls(folder, decoder, stages, keep, parts)


@needs_smollm2
@pytest.mark.parametrize("stages, keep", [((9, 19, 28), 0.7), ((2, 3), 0.3)])
def test_smollm2_is_what_the_paper_does(compiled, stages, keep):
    """A real prompt, and tokens that are its own continuation or others."""
    folder = compiled(SMOLLM2, prune=option(stages, keep))
    ids = np.random.default_rng(len(stages)).integers(0, 49152, 101 + STEPS)
    assert compare_calls(folder, smollm2_in_numpy(), stages, keep, split(ids, 101), atol=2e-3)


@pytest.mark.parametrize("name", [n for n in (*PLAIN, *MASKED, *CACHED) if n not in REFUSED])
def test_everything_kept_is_the_model(name, compiled):
    """keep=1: every call gives what the model itself gives for the whole context; nothing waits."""
    model = shared_model(name)
    padding = {} if name in PLAIN else {"padding": "none"}
    folder = compiled(model, prune=option((1,), 1), logits="last", accuracy="exact", **padding)
    assert json.loads((folder / "manifest.json").read_text())["prune"]["exact"] is True
    context, original = prefill_opt.LazyLLM(open_session(folder)), plain_session(model)
    ids = np.random.default_rng(1).integers(3, 100, 37)
    tolerance = 2e-2 if "fp16" in name else 1e-4
    for end in (30, 31, 32, 36, 37):
        run = context.step if context.rows else context.prompt
        result = run(ids[context.rows : end])
        expected = of_context(original, ids[:end])
        np.testing.assert_allclose(result["logits"][0], expected, atol=tolerance * np.abs(expected).max())
        assert len(context.waiting(1)) == 0
        np.testing.assert_array_equal(context.computed(2), np.arange(end))


def of_context(session, ids):
    """The last row's logits of a model as exported, for a whole context."""
    feeds = {}
    for given in session.get_inputs():
        shape = [d if isinstance(d, int) else 0 for d in given.shape]
        shape[0] = 1
        kind = np.float16 if "float16" in given.type else np.float32
        feeds[given.name] = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
        }.get(given.name, np.zeros(shape, kind))
    names = [o.name for o in session.get_outputs()]
    return session.run(None, feeds)[names.index("logits")][0, -1].astype(np.float64)


def test_prompt_is_that_of_the_model_without_the_cache(compiled, deep):
    path, _ = deep
    ids = np.random.default_rng(2).integers(0, 60, 200)
    options = {"prune": option((1, 4), 0.5), "logits": "last"}
    plain = open_session(compiled(path, **options | {"prune": "lazyllm:layers=1+4,keep=0.5"}))
    expected = dict(zip([o.name for o in plain.get_outputs()], plain.run(None, {"input_ids": ids[None]})))
    for more in ({}, {"sparsify": "a-shape:init=256,local=256,dense-below=0"}):
        result = prefill_opt.LazyLLM(open_session(compiled(path, **options, **more))).prompt(ids)
        for name, value in expected.items():
            np.testing.assert_allclose(result[name], value[0], atol=1e-4, err_msg=name)


def test_sparse_prompts(compiled, deep):
    """Prune first, then index; a decode step is dense."""
    path, _ = deep
    few = {"sparsify": "a-shape:init=16,local=64,dense-below=0"}
    folder = compiled(path, prune=option((2,), 0.5), logits="last", **few)
    alone = open_session(compiled(path, prune="lazyllm:layers=2,keep=0.5", logits="last", **few))
    ids = np.random.default_rng(2).integers(0, 60, 300)
    context = prefill_opt.LazyLLM(open_session(folder))
    result = context.prompt(ids)
    expected = dict(zip([o.name for o in alone.get_outputs()], alone.run(None, {"input_ids": ids[None]})))
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value[0], atol=1e-4, err_msg=name)
    assert np.isfinite(context.step(3)["logits"]).all()


@pytest.mark.parametrize("stages", [(1,), (3,), (1, 2), (1, 2, 3)])
def test_with_shared_keys(compiler, tmp_path, stages):
    """Layers after the last stage that read one layer's keys have one cache, and give what their copies would."""
    path = tmp_path / "model.onnx"
    shared_decoder(path, shared=True, layers=6)
    with_logits(path)
    contexts = []
    for number, more in enumerate(({}, {"share_kv": "detect"})):
        out = prefill_opt.compile(path, tmp_path / str(number), prune=option(stages, 0.5), logits="last", **more)
        contexts.append(prefill_opt.LazyLLM(open_session(out)))
    ids = np.random.default_rng(3).integers(0, 50, 60)
    for part in (ids[:52], *ids[52:, None]):
        one, other = (c.step(part) if c.rows else c.prompt(part) for c in contexts)
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)
        last = one[f"prefill.rows.{stages[-1]}"]
        assert len(last) < contexts[0].rows
    assert contexts[1].state_bytes["kv"] < contexts[0].state_bytes["kv"]


def test_shared_keys_of_other_rows(compiler, tmp_path):
    """A stage among the layers that share keys would leave some of them keys of other rows."""
    path = tmp_path / "model.onnx"
    shared_decoder(path, shared=True, layers=6)
    with_logits(path)
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(path, tmp_path / "out", prune=option((2, 5), 0.5), logits="last", share_kv="detect")
    assert "it reads rows that an earlier layer left out" in str(error.value)
    assert len(str(error.value).strip().splitlines()) == 1 and not (tmp_path / "out").exists()


PROTECTIONS = {
    "bos": ("bos:7,last:3", None, lambda ids: lambda row, count: row < 7 or row >= count - 3),
    "ids": ("ids:3-5,ids:11", None, lambda ids: lambda row, count: ids[row] in (3, 4, 5, 11) or row == count - 1),
    "rows": ("rows:20-30,rows:62", None, lambda ids: lambda row, count: 20 <= row <= 30 or row in (62, count - 1)),
    "system": ("system,last:1", slice(10, 22), lambda ids: lambda row, count: 10 <= row < 22 or row == count - 1),
}


@pytest.mark.parametrize("kind", PROTECTIONS)
def test_protected_rows_never_leave(compiled, deep, kind):
    """In no stage of no call, whatever the last row attends to; counted in the context, not in a call."""
    path, decoder = deep
    protect, marked, rule = PROTECTIONS[kind]
    stages, keep = (1, 3), 0.1
    folder = compiled(path, prune=option(stages, keep), logits="last", protect=protect)
    ids = np.random.default_rng(3).integers(0, 60, 60 + STEPS)
    context, oracle = prefill_opt.LazyLLM(open_session(folder)), Procedure(decoder, stages, keep, rule(ids))
    for number, part in enumerate(split(ids, 60)):
        mask = np.zeros(len(part), bool)
        if marked and not number:
            mask[marked] = True
        given = {"protected": mask} if marked else {}
        result = (context.step if number else context.prompt)(part, **given)
        _, selected, computed = oracle.call(part)
        for stage in stages:
            rows = result[f"prefill.rows.{stage}"]
            fixed = {row for row in range(context.rows) if rule(ids)(row, context.rows)}
            assert fixed <= set(rows.tolist()) and len(fixed) < context.rows
            np.testing.assert_array_equal(rows, selected[stage])
            np.testing.assert_array_equal(result[f"prefill.computed.{stage}"], computed[stage])


def test_rows_of_the_logits(compiled, deep):
    """-logits=rows: rows of the call, whose logits are those of a call that asks for the last one alone."""
    path, _ = deep
    folder = compiled(path, prune=option((1, 3), 0.6), logits="rows", protect="last:1")
    session, ids = open_session(folder), np.random.default_rng(4).integers(0, 60, 50)
    context = prefill_opt.LazyLLM(session)
    result = context.prompt(ids[:40], logits=[39, 7, -20, -1])
    assert result["logits"].shape == (4, 60)
    np.testing.assert_array_equal(result["logits"][0], result["logits"][3])
    assert {7, 20, 39} <= set(result["prefill.rows.3"].tolist())
    result = context.step(ids[40:], logits=[0, -1])
    assert {40, 49} <= set(result["prefill.rows.3"].tolist())
    assert result["logits"].shape == (2, 60)
    assert prefill_opt.LazyLLM(session).prompt(ids, logits=[])["logits"].shape == (0, 60)
    # Causality: where nothing is left out, a row's logits are those of the context that ends with it.
    session = open_session(compiled(path, prune=option((1, 3), 1), logits="rows"))
    context = prefill_opt.LazyLLM(session)
    context.prompt(ids[:30])
    found = context.step(ids[30:], logits=[4, -1])["logits"]
    for row, end in zip(found, (35, 50), strict=True):
        expected = of_context(plain_session(path), ids[:end])
        np.testing.assert_allclose(row, expected, atol=1e-4 * np.abs(expected).max())


def test_scores_that_are_no_numbers(compiled, tmp_path):
    """A NaN makes the last row's scores NaN: of equal ones the first stay, and the model goes on."""
    path = tmp_path / "model.onnx"
    deep_decoder(path)
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == "embedding")
    array = numpy_helper.to_array(tensor).copy()
    array[5] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    folder = compiled(path, prune=option((1,), 0.5), logits="last", protect="last:1")
    context = prefill_opt.LazyLLM(open_session(folder))
    result = context.prompt([1, 2, 5, 3, 4, 6, 7, 8])
    assert np.isnan(result["logits"]).all()
    np.testing.assert_array_equal(result["prefill.rows.1"], [0, 1, 2, 7])
    np.testing.assert_array_equal(context.waiting(1), [3, 4, 5, 6])


def test_a_call_that_fails_changes_nothing(compiled, deep):
    path, _ = deep
    folder = compiled(path, prune=option((1,), 0.5), logits="last")
    one, other = (prefill_opt.LazyLLM(open_session(folder)) for _ in range(2))
    for context in (one, other):
        context.prompt(np.arange(30))
    with pytest.raises(Exception, match=r"out of data bounds|indices element"):
        one.step(99)  # there are 60 tokens
    assert one.rows == 30
    np.testing.assert_array_equal(one.step(7)["logits"], other.step(7)["logits"])
    assert one.state_bytes["aux"] == 4 * 32 * len(one.waiting(1)) > 0


def test_bad_calls(compiled, deep):
    path, _ = deep
    folder = compiled(path, prune=option((1,), 0.5), logits="last")
    context = prefill_opt.LazyLLM(open_session(folder))
    with pytest.raises(ValueError, match="begin it with prompt"):
        context.step(1)
    for arguments, message in (
        (([],), "the prompt is empty"),
        (([1, 2], [True, False]), "not compiled with -protect=system"),
        (([1, 2], None, [0]), "compile it with -logits=rows"),
        (([1, 2], None, [2]), "expected numbers of rows from -2 to 1"),
        (([[1, 2]],), "expected a list of token ids"),
    ):
        with pytest.raises(ValueError, match=message):
            context.prompt(*arguments)
    context.prompt([1, 2, 3])
    with pytest.raises(ValueError, match="has 3 rows already"):
        context.prompt([1])
    with pytest.raises(ValueError, match="layer 2: rows are left out after 1"):
        context.waiting(2)
    system = prefill_opt.LazyLLM(
        open_session(compiled(path, prune=option((1,), 0.5), logits="last", protect="system,last:1"))
    )
    with pytest.raises(ValueError, match=r"expected one entry for each of the 2 tokens, got \(3,\)"):
        system.prompt([1, 2], [True] * 3)
    plain = open_session(compiled(path, chunk="16"))
    with pytest.raises(ValueError, match="compile it with -prune=lazyllm:aux=on"):
        prefill_opt.LazyLLM(plain)
    with pytest.raises(ValueError, match="use LazyLLM"):
        prefill_opt.run_chunked(open_session(folder), [1, 2])


def test_a_batch_is_refused(compiled, deep):
    """The model itself says so: a context is one sequence."""
    path, _ = deep
    session = open_session(compiled(path, prune=option((1,), 0.5), logits="last"))
    feeds = {
        i.name: np.zeros(
            [d if isinstance(d, int) else 0 for d in i.shape],
            {"tensor(float)": np.float32, "tensor(int64)": np.int64}[i.type],
        )
        for i in session.get_inputs()
    } | {"input_ids": np.ones((2, 7), np.int64)}
    with pytest.raises(Exception, match=r"index: 0 Got: 2 Expected: 1"):
        session.run(None, feeds)


def test_cost_counts_the_prompt(compiler, deep):
    path, _ = deep
    rows = [
        json.loads(
            prefill_opt.run_compiler(
                ["cost", path, "-tokens=100", "-logits=last", "-json", f"-prune=lazyllm:layers=2,keep=0.5,aux={aux}"]
            ).stdout
        )["rows"]
        for aux in ("on", "off")
    ]
    assert rows[0][-1]["flops"] == rows[1][-1]["flops"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        (SMALL, {"prune": "lazyllm:layers=1,aux=yes", "logits": "last"}, "aux=yes: expected on or off"),
        (SMALL, {"prune": "lazyllm:layers=2,aux=on", "logits": "last"}, "layer 2 is the last one"),
        (SMALL, {"prune": "lazyllm:layers=1,aux=on"}, "ask for -logits=last or -logits=rows"),
        (SMALL, {"prune": "lazyllm:layers=1,aux=on", "logits": "last", "accuracy": "exact"}, "-accuracy=exact refuses"),
        (SMALL, {"prune": "lazyllm:layers=1,aux=on", "logits": "last", "chunk": "16"}, "-prune with -chunk"),
        (SMALL, {"prune": "lazyllm:layers=1,aux=on", "logits": "last", "pack": "ffd"}, "-prune with -pack"),
        (SMALL, {"prune": "lazyllm:layers=1,aux=on", "logits": "last", "parallel_encode": "ape"}, "with -prune"),
        (SMALL, {"prune": "lazyllm:layers=1,aux=on", "logits": "last", "target": "cpu,sm_80"}, "-prune with -target"),
        ("llama-dynamo18", {"prune": "lazyllm:layers=1,aux=on", "logits": "last"}, "-padding=none"),
        ("llama-dynamo18-pos-past", {"prune": "lazyllm:layers=1,aux=on", "logits": "last"}, "-padding=none"),
        ("phi3-dynamo18", {"prune": "lazyllm:layers=1,aux=on", "logits": "last", "padding": "none"}, "it has a window"),
        ("bert-dynamo18", {"prune": "lazyllm:layers=1,aux=on", "padding": "none"}, "it takes some of the rows"),
    ],
)  # fmt: skip
def test_what_is_refused(compiler, tmp_path, name, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(shared_model(name), tmp_path / "out", **options)
    assert re.search(re.escape(message), str(error.value))
    assert len(str(error.value).strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
