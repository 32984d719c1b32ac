"""Contexts encoded independently (APE): the three stages against NumPy in float64, the store, the refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from test_chunking import expect_equal, open_session, prompt, shared_model, whole

import prefill_opt
from prefill_opt import chunking

SMALL = "llama-dynamo18-nomask"
HEADS, GROUPS, DIM, LAYERS = 4, 2, 16, 2
PREFIX, CONTEXTS, QUERY = prompt(5, seed=1), [prompt(n, seed=n) for n in (13, 70, 9)], prompt(11, seed=2)


class Oracle:
    """The tiny Llama in float64, from the paper's formulas; weights from the export, in the order it has them."""

    def __init__(self, path):
        arrays = [onnx.numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer]
        matrices = [a.astype(np.float64) for a in arrays if a.ndim == 2]
        self.embedding, self.head = matrices[0], matrices[-1]
        self.layers = [matrices[1 + 7 * i : 8 + 7 * i] for i in range(LAYERS)]
        self.frequencies = next(a for a in arrays if a.shape == (DIM // 2,)).astype(np.float64)

    @staticmethod
    def norm(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)  # its weights are ones

    def rotate(self, x, positions):
        angle = positions[:, None] * self.frequencies
        c, s = np.cos(angle)[None], np.sin(angle)[None]
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    @staticmethod
    def softmax(q, k, v, scale, visible=None):
        """O and the log-sum-exp of every row."""
        k, v = (np.repeat(x, HEADS // GROUPS, 0) for x in (k, v))
        scores = q @ k.transpose(0, 2, 1) * scale
        if visible is not None:
            scores = np.where(visible, scores, -np.inf)
        most = scores.max(-1, keepdims=True)
        p = np.exp(scores - most)
        total = p.sum(-1, keepdims=True)
        return p @ v / total, (most + np.log(total))[..., 0]

    def rows(self, ids, positions, own, contexts=None, t=1.0, s=1.0):
        """Logits and KV of rows behind the KV `own`, which see `contexts` (both: K, V by layer) too."""
        x, kv = self.embedding[ids], []
        n = len(ids)
        for layer, (wq, wk, wv, wo, gate, up, down) in enumerate(self.layers):
            y = self.norm(x)
            q, k, v = ((y @ w).reshape(n, -1, DIM).transpose(1, 0, 2) for w in (wq, wk, wv))
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            kv.append((k, v))
            keys, values = (np.concatenate([own[layer][i], (k, v)[i]], 1) for i in range(2))
            held = own[layer][0].shape[1]
            visible = np.arange(held + n)[None] <= held + np.arange(n)[:, None]
            o, l_o = self.softmax(q, keys, values, DIM**-0.5, visible)
            if contexts is not None:
                o_c, l_c = self.softmax(q, *contexts[layer], DIM**-0.5 / t)
                w = np.exp(s * t * l_c - np.logaddexp(s * t * l_c, l_o))[..., None]
                o = w * o_c + (1 - w) * o
            x = x + o.transpose(1, 0, 2).reshape(n, -1) @ wo
            y = self.norm(x)
            g = y @ gate
            x = x + (g / (1 + np.exp(-g)) * (y @ up)) @ down
        return self.norm(x) @ self.head, kv

    def prompt(self, prefix, contexts, query, t, s):
        """Logits of the query, and KV of the prefix, of every context and of the query."""
        nothing = [(np.zeros((GROUPS, 0, DIM)),) * 2] * LAYERS
        _, first = self.rows(prefix, np.arange(len(prefix)), nothing)
        parts = [self.rows(c, len(prefix) + np.arange(len(c)), first)[1] for c in contexts]
        joined = None
        if parts:
            joined = [tuple(np.concatenate([p[i][j] for p in parts], 1) for j in range(2)) for i in range(LAYERS)]
        start = len(prefix) + max(map(len, contexts), default=0)
        logits, last = self.rows(query, start + np.arange(len(query)), first, joined, t, s)
        return logits, first, parts, last


def named(kv):
    return {f"present.{i}.{n}": kv[i][j] for i in range(LAYERS) for j, n in enumerate(("key", "value"))}


def flat(part):
    return np.concatenate([value.ravel() for value in part.values()])


def expect_parts(found, oracle, contexts, t, s, where, prefix=PREFIX, query=QUERY):
    logits, first, parts, last = oracle.prompt(prefix, contexts, query, t, s)
    expect_equal(found.outputs, {"logits": logits.astype(np.float32)}, where)
    for mine, theirs in [(found.prefix(), first), (found.query(), last)] + [
        (found.context(i), part) for i, part in enumerate(parts)
    ]:
        expect_equal(mine, {n: v.astype(np.float32) for n, v in named(theirs).items()}, where)


@pytest.mark.parametrize("t, s", [(0.9, 0.9), (1, 1), (0.5, 2), (3, 0.1)])
def test_what_the_formulas_give(t, s, compiled):
    """Logits and KV of all stages: several contexts of different lengths, one, none; in chunks of any size."""
    model = shared_model(SMALL)
    folder = compiled(model, parallel_encode=f"ape:T={t},S={s}")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"method": "ape", "exact": False, "T": t, "S": s, "input": "context_slots"}
    assert manifest["parallel_encode"] == entry and manifest["exact"] is False
    session, oracle = open_session(folder), Oracle(model)
    for contexts in (CONTEXTS, CONTEXTS[1:2], []):
        for chunk in (None, 4):
            found = prefill_opt.parallel_encode(session, PREFIX, contexts, QUERY, chunk=chunk)
            expect_parts(found, oracle, contexts, t, s, f"{len(contexts)} contexts, chunk {chunk}")
            assert found.position == len(PREFIX) + max(map(len, contexts), default=0) + len(QUERY)


def test_one_context_is_the_ordinary_prompt(compiled):
    """With T = S = 1; and no context at all whatever T and S are. Two contexts are not."""
    model = shared_model(SMALL)
    plain = open_session(compiled(model))
    one = open_session(compiled(model, parallel_encode="ape:T=1,S=1"))
    other = open_session(compiled(model, parallel_encode="ape:T=0.9,S=0.9"))
    for session, contexts, same in (
        (one, CONTEXTS[:1], True),
        (one, [], True),
        (other, [], True),
        (other, CONTEXTS[:1], False),
        (one, CONTEXTS[:2], False),
    ):
        expected = whole(plain, np.concatenate([PREFIX, *contexts, QUERY]))["logits"][-len(QUERY) :]
        found = prefill_opt.parallel_encode(session, PREFIX, contexts, QUERY).outputs["logits"]
        error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert error.max() < 2e-5 if same else error.max() > 1e-2
    ids = prompt(45)
    expect_equal(prefill_opt.run_chunked(other, ids, 16), whole(plain, ids), "without contexts, as -chunk")


def test_rows_after_the_query(compiled):
    """Generated rows see what the query sees."""
    model = shared_model(SMALL)
    session, oracle = open_session(compiled(model, parallel_encode="ape")), Oracle(model)
    found = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, new_tokens=4)
    tokens = found.generate(5)
    expected = oracle.prompt(PREFIX, CONTEXTS, np.concatenate([QUERY, tokens[:4]]), 0.9, 0.9)[0]
    np.testing.assert_array_equal(tokens, expected[-5:].argmax(-1))
    expect_equal(found.outputs, {"logits": expected[-1:].astype(np.float32)}, "the last one")
    with pytest.raises(ValueError, match="1 more rows, and room for 0: give parallel_encode new_tokens"):
        found.step([1])


def test_contexts_do_not_see_one_another(compiled):
    """Another context in its place leaves the others' KV bit by bit as it is, and the order too."""
    session = open_session(compiled(shared_model(SMALL), parallel_encode="ape"))
    first = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY)
    other = [CONTEXTS[0], prompt(31, seed=7), CONTEXTS[2]]
    second = prefill_opt.parallel_encode(session, PREFIX, other, QUERY)
    third = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS[::-1], QUERY)
    for i in (0, 2):
        np.testing.assert_array_equal(flat(first.context(i)), flat(second.context(i)))
    for i in range(3):
        np.testing.assert_array_equal(flat(first.context(i)), flat(third.context(2 - i)))
    assert len(flat(first.context(1))) != len(flat(second.context(1)))
    assert np.abs(first.outputs["logits"] - second.outputs["logits"]).max() > 1e-3
    expect_equal(third.outputs, first.outputs, "the order of contexts")


def test_a_number_that_is_none(compiled):
    """NaN in a context's keys shows in the query's rows, which see all contexts, and nowhere else."""
    session = open_session(compiled(shared_model(SMALL), parallel_encode="ape"))
    store = prefill_opt.ContextStore()
    first = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, store)
    entry = list(store._entries.values())[2]
    for array in entry.values():
        array.flags.writeable = True
        array[:] = np.nan
    second = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, store)
    assert np.isnan(second.outputs["logits"]).all()
    assert np.isnan(flat(second.context(1))).all()
    for i in (0, 2):
        np.testing.assert_array_equal(flat(first.context(i)), flat(second.context(i)))


def test_store(compiled):
    """What is taken from a store is bit by bit what is computed; keys tell apart what differs."""
    folder = compiled(shared_model(SMALL), parallel_encode="ape")
    session = open_session(folder)
    plain = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY)
    store = prefill_opt.ContextStore()
    for hits in (0, 4, 8):
        found = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, store)
        assert (store.hits, store.misses, len(store)) == (hits, 4, 4)
        np.testing.assert_array_equal(found.outputs["logits"], plain.outputs["logits"])
        np.testing.assert_array_equal(flat(found.context(1)), flat(plain.context(1)))
    assert store.nbytes == 4 * (len(PREFIX) + sum(map(len, CONTEXTS))) * 2 * LAYERS * GROUPS * DIM
    # Another query, order and number of contexts: nothing is encoded again.
    prefill_opt.parallel_encode(session, PREFIX, CONTEXTS[1::-1], prompt(3, seed=9), store)
    assert store.misses == 4
    # Another prefix, chunk, parameter or model is another entry.
    prefill_opt.parallel_encode(session, PREFIX[:-1], CONTEXTS[:1], QUERY, store)
    assert store.misses == 6
    prefill_opt.parallel_encode(session, PREFIX, CONTEXTS[:1], QUERY, store, chunk=4)
    assert store.misses == 8
    warmer = open_session(compiled(shared_model(SMALL), parallel_encode="ape:T=0.8"))
    prefill_opt.parallel_encode(warmer, PREFIX, CONTEXTS[:1], QUERY, store)
    assert store.misses == 10
    names = ("prefill.model", "prefill.parallel-encode")
    digests = [tuple(s.get_modelmeta().custom_metadata_map[n] for n in names) for s in (session, warmer)]
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]


def test_store_knows_the_weights(compiled, tmp_path):
    """One weight differs in its last bit: another model. The same file elsewhere is the same."""
    path = shared_model(SMALL)
    model = onnx.load(str(path))
    tensor = next(i for i in model.graph.initializer if list(i.dims) == [64, 32])
    weights = onnx.numpy_helper.to_array(tensor).copy()
    weights[63, 31] = np.nextafter(weights[63, 31], 1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    shutil.copy(path, tmp_path / "same.onnx")
    digests = [
        open_session(compiled(p, parallel_encode="ape")).get_modelmeta().custom_metadata_map["prefill.model"]
        for p in (path, tmp_path / "other.onnx", tmp_path / "same.onnx")
    ]
    assert digests[0] != digests[1] and digests[0] == digests[2]


def test_store_forgets(compiled):
    """Within max_bytes, what was used least recently goes; what never fits is not kept."""
    session = open_session(compiled(shared_model(SMALL), parallel_encode="ape"))
    row = 4 * 2 * LAYERS * GROUPS * DIM
    store = prefill_opt.ContextStore(max_bytes=row * (len(PREFIX) + 13 + 9))
    for _ in range(2):
        prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, store)  # the one with 70 tokens never fits
    assert (store.hits, store.misses, len(store)) == (3, 5, 3)
    prefill_opt.parallel_encode(session, PREFIX, [prompt(2, seed=5)], QUERY, store)
    assert len(store) == 3 and store.nbytes <= store.max_bytes  # context 0 went
    assert store.get(store.key("another model", 512, PREFIX, None)) is None
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)
    with pytest.raises(ValueError, match="max_bytes -1"):
        prefill_opt.ContextStore(-1)
    keys = {prefill_opt.ContextStore(salt=s).key("m", 1, PREFIX, None) for s in (b"", b"a", b"b")}
    assert len(keys) == 3


@pytest.mark.parametrize("name", ("gpt2-dynamo18", "llama-dynamo23-pos", "llama-optimum", "qwen2-dynamo23-pos"))
def test_other_exports(name, compiled):
    """Learned positions, an input position_ids, a cache that is replaced: one context at T = S = 1 is the prompt."""
    model = shared_model(name)
    plain = open_session(compiled(model, chunk="512", padding="none"))
    session = open_session(compiled(model, parallel_encode="ape:T=1,S=1", padding="none"))
    expected = prefill_opt.run_chunked(plain, np.concatenate([PREFIX, CONTEXTS[1], QUERY]))["logits"]
    found = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS[1:2], QUERY)
    expect_equal(found.outputs, {"logits": expected[-len(QUERY) :]}, name)


@pytest.mark.parametrize("options", ({"logits": "rows"}, {"share_kv": "detect"}, {"chunk": "7"}))
def test_with_other_options(options, compiled):
    """Selected logits are those of the query's last row."""
    model = shared_model(SMALL)
    folder = compiled(model, parallel_encode="ape", **options)
    found = prefill_opt.parallel_encode(open_session(folder), PREFIX, CONTEXTS, QUERY, new_tokens=1)
    expected = Oracle(model).prompt(PREFIX, CONTEXTS, QUERY, 0.9, 0.9)[0]
    expected = expected[-1:] if "logits" in options else expected
    expect_equal(found.outputs, {"logits": expected.astype(np.float32)}, str(options))
    assert len(found.step(QUERY[:1])["logits"]) == 1


def test_two_questions_in_one_call(compiled):
    """Requests side by side may read the same contexts; another one reads none."""
    session = open_session(compiled(shared_model(SMALL), parallel_encode="ape"))
    other, third, first = prompt(4, seed=20), prompt(6, seed=21), len(PREFIX)
    alone = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, new_tokens=20)
    expected = [
        alone.outputs["logits"],
        prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, other).outputs["logits"],
        prefill_opt.run_chunked(session, third)["logits"],
    ]
    total = sum(map(len, CONTEXTS))
    behind = total + first + len(QUERY)  # of the second request: a prefix of its own
    for array in alone.cache.arrays.values():
        array[0, :, behind : behind + first] = array[0, :, total : total + first]
    where = {"contexts": (0, total), "shift": 70}
    work = [
        chunking.Rows(QUERY, total, first, **where),
        chunking.Rows(other, behind, first, **where),
        chunking.Rows(third, behind + first + len(other), 0),
    ]
    for got, logits in zip(alone.cache.step(work), expected, strict=True):
        expect_equal(got, {"logits": logits}, "side by side")


def test_half_precision(compiled):
    """Both softmaxes are rounded to float16 before they are merged."""
    name = "llama-dynamo23-pos-fp16"
    session = open_session(compiled(shared_model(name), parallel_encode="ape:T=1,S=1", padding="none"))
    plain = open_session(compiled(shared_model(name), chunk="512", padding="none"))
    expected = prefill_opt.run_chunked(plain, np.concatenate([PREFIX, CONTEXTS[0], QUERY]))["logits"]
    found = prefill_opt.parallel_encode(session, PREFIX, CONTEXTS[:1], QUERY)
    expect_equal(found.outputs, {"logits": expected[-len(QUERY) :]}, name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"parallel_encode": "mape"}, "'mape': expected ape"),
        ({"parallel_encode": "ape:"}, "expected options after ape:"),
        ({"parallel_encode": "ape:T=0"}, "T=0: expected a number from 0.001 to 1000"),
        ({"parallel_encode": "ape:S=-1"}, "S=-1: expected a number"),
        ({"parallel_encode": "ape:T=nan"}, "T=nan: expected a number"),
        ({"parallel_encode": "ape:S=inf"}, "S=inf: expected a number"),
        ({"parallel_encode": "ape:T="}, "T=: expected a number"),
        ({"parallel_encode": "ape:prefix=auto"}, "unknown option 'prefix=auto': expected T and S"),
        ({"accuracy": "exact"}, "-accuracy=exact refuses -parallel-encode=ape"),
        ({"sparsify": "a-shape"}, "with -sparsify=a-shape: contexts and query are weighed"),
        ({"prune": "lazyllm", "logits": "last"}, "with -prune: rows are scored by the query"),
        ({"pack": "ffd"}, "with -pack: a pack has no cache"),
        ({"target": "sm_80"}, "with -target=sm_80: kernels for GPUs take no KV cache yet"),
        ({"logits": "last"}, "take -logits=rows"),
    ],
)
def test_wrong_options(options, message, compiler, tmp_path):
    options = {"parallel_encode": "ape"} | options
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(shared_model(SMALL), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("llama-dynamo18", "reads 'attention_mask'.*-padding=none"),
        ("llama-optimum", "-parallel-encode: no attention has a cache .*-padding=none replaces it"),
        ("phi3-dynamo18", "reads 'attention_mask'"),
    ],
)
def test_models_that_cannot(name, message, compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(shared_model(name), tmp_path / "out", parallel_encode="ape")


def test_sliding_windows(compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match="it has a sliding window, and which keys"):
        prefill_opt.compile(shared_model("phi3-dynamo18"), tmp_path / "out", parallel_encode="ape", padding="none")


def test_wrong_calls(compiled):
    model = shared_model(SMALL)
    session = open_session(compiled(model, parallel_encode="ape"))
    for arguments, message in [
        (([], CONTEXTS, QUERY), "the prefix is empty"),
        ((PREFIX, [QUERY, []], QUERY), "context 1 is empty"),
        ((PREFIX, CONTEXTS, []), "the query is empty"),
        ((PREFIX, [[1.5]], QUERY), "context 0: expected integers"),
        ((PREFIX, [[[1]]], QUERY), "context 0: expected a list of token ids, got 2 dimensions"),
        ((PREFIX, CONTEXTS, QUERY, None, 0), "chunk 0: expected at least one row"),
        ((PREFIX, CONTEXTS, QUERY, None, None, -1), "new_tokens -1"),
        ((PREFIX, CONTEXTS, QUERY, None, None, 0, 74), "context 1 has 70 tokens and ends.* position 74: .* 74 pos"),
        ((PREFIX, CONTEXTS, QUERY, None, None, 1, 86), "the query ends at position 86 .* 86 positions"),
    ]:
        with pytest.raises(ValueError, match=message):
            prefill_opt.parallel_encode(session, *arguments)
    prefill_opt.parallel_encode(session, PREFIX, CONTEXTS, QUERY, max_positions=86)
    with pytest.raises(ValueError, match="compile it with -parallel-encode=ape"):
        prefill_opt.parallel_encode(open_session(compiled(model, chunk="512")), PREFIX, CONTEXTS, QUERY)


def test_learned_positions_end(compiled):
    """The table's rows are the model's positions: said before anything is computed."""
    session = open_session(compiled(shared_model("gpt2-dynamo18"), parallel_encode="ape", padding="none"))
    with pytest.raises(ValueError, match="context 0 has 508 tokens .*the model has 512 positions"):
        prefill_opt.parallel_encode(session, PREFIX, [prompt(508)], QUERY)
    with pytest.raises(ValueError, match="the query ends at position 512"):
        prefill_opt.parallel_encode(session, PREFIX, [prompt(497)], QUERY)
    prefill_opt.parallel_encode(session, PREFIX, [prompt(496)], QUERY)
