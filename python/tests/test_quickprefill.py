"""QuickPrefill: kept rows, logits and KV of an independent implementation, and its limits."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from support import SHARED_MODELS, save_model
from test_chunking import MASKED, PLAIN, open_session, shared_model
from test_share_kv import decoder, with_logits

import prefill_opt
from prefill_opt.chunking import Cache, Rows
from prefill_opt.quickprefill import group_lengths

SMALL = "llama-dynamo18-nomask"
#: Distinct tokens: repeated ones have keys of the same size in the first layer.
PROMPT = np.random.default_rng(5).permutation(112)[:90]


class Llama:
    """The small Llama of shared/models in float64, from the weights of an export of it."""

    def __init__(self, path):
        arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer]
        weights = [a.astype(np.float64) for a in arrays if a.ndim == 2]
        self.embedding, self.head = weights[0], weights[-1]
        self.layers = [weights[i : i + 7] for i in range(1, len(weights) - 1, 7)]
        self.heads, self.groups, self.dim = 4, 2, 16
        assert self.embedding.shape == (112, 64) and self.head.shape == (64, 112) and len(self.layers) == 2

    @staticmethod
    def norm(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def rotate(self, x, positions):
        """x [heads, rows, dim]."""
        angle = positions[:, None] * 10000.0 ** (-np.arange(self.dim // 2) / (self.dim // 2))
        cos, sin = (np.concatenate([f(angle)] * 2, -1) for f in (np.cos, np.sin))
        half = np.concatenate([-x[..., self.dim // 2 :], x[..., : self.dim // 2]], -1)
        return x * cos + half * sin

    def quickprefill(self, ids, lengths, keep, protected):
        """Groups of `lengths`, the last one of which is the question.

        `keep`: rows of a group, layer -> how many stay. Returns the logits of all rows, and (rows, K, V) per layer.
        """
        caches = [
            (np.zeros(0, int), np.zeros((self.groups, 0, self.dim)), np.zeros((self.groups, 0, self.dim)))
            for _ in self.layers
        ]
        logits, begin = [], 0
        for number, n in enumerate(lengths):
            rows = np.arange(begin, begin + n)
            x = self.embedding[ids[rows]]
            for layer, (wq, wk, wv, wo, gate, up, down) in enumerate(self.layers):
                y = self.norm(x)
                q, k, v = ((y @ w).reshape(n, -1, self.dim).transpose(1, 0, 2) for w in (wq, wk, wv))
                q, k = self.rotate(q, rows), self.rotate(k, rows)
                held, past_k, past_v = caches[layer]
                all_k, all_v = np.concatenate([past_k, k], 1), np.concatenate([past_v, v], 1)
                share = self.heads // self.groups
                s = q @ all_k.repeat(share, 0).transpose(0, 2, 1) / np.sqrt(self.dim)
                s[:, np.concatenate([held, rows])[None] > rows[:, None]] = -np.inf
                p = np.exp(s - s.max(-1, keepdims=True))
                p /= p.sum(-1, keepdims=True)
                x = x + (p @ all_v.repeat(share, 0)).transpose(1, 0, 2).reshape(n, -1) @ wo
                y = self.norm(x)
                x = x + (y @ gate / (1 + np.exp(-(y @ gate))) * (y @ up)) @ down
                stay = set(range(n))
                if number < len(lengths) - 1 and not keep(n, layer) >= n:
                    stay = {i for i in range(n) if protected[begin + i]}
                    for i in np.argsort(np.sqrt((k * k).sum((0, 2))), kind="stable"):
                        if len(stay) < keep(n, layer):
                            stay.add(int(i))
                stay = sorted(stay)
                caches[layer] = (
                    np.concatenate([held, rows[stay]]),
                    np.concatenate([past_k, k[:, stay]], 1),
                    np.concatenate([past_v, v[:, stay]], 1),
                )
            logits.append(self.norm(x) @ self.head)
            begin += n
        return np.concatenate(logits), caches


@pytest.fixture(scope="module")
def llama():
    return Llama(shared_model(SMALL))


def budget(topk=None, top_p=1.0, decay=None):
    """The formula of the options; `decay` gives topk and top_p of layer 1 of the two."""

    def keep(rows, layer):
        if layer and decay:
            return budget(*decay)(rows, 0)
        if topk is not None and rows <= topk:
            return rows
        share = round(top_p * 1e6) * rows // 1_000_000
        return share if topk is None else min(topk, share)

    return keep


def protect(n, bos=4, last=1):
    return [i < bos or i >= n - last for i in range(n)]


def kept(result, layer):
    return result[f"prefill.kept.{layer + 1}"]


def expect(result, logits, caches, names=("present.{}.key", "present.{}.value")):
    np.testing.assert_allclose(result["logits"], logits, atol=1e-4 * np.abs(logits).max())
    for layer, (rows, k, v) in enumerate(caches):
        np.testing.assert_array_equal(kept(result, layer), rows)
        for name, expected in zip(names, (k, v), strict=True):
            mine = result[name.format(layer)]
            assert mine.shape == expected.shape
            np.testing.assert_allclose(mine, expected, atol=1e-4 * np.abs(expected).max())


CASES = {
    "topk": ("topk=6", 16, 5, budget(6)),
    "top-p": ("top-p=0.4", 16, 5, budget(None, 0.4)),
    "both": ("topk=6,top-p=0.3", 16, 5, budget(6, 0.3)),
    "lists": ("topk=6", [9, 30, 1, 6, 7, 32], 5, budget(6)),
    "long question": ("topk=2", 20, 50, budget(2)),
    "a share of nothing": ("top-p=0.5", [1, 1, 40, 1], 47, budget(None, 0.5)),
    "linear decay": ("topk=7,decay=linear", 16, 5, budget(7, 1, (4, 1))),
    "decay of both": ("topk=9,top-p=0.8,decay=0.4", 16, 5, budget(9, 0.8, (3, 0.32))),
    "decay of a share": ("top-p=0.9,decay=linear", [9, 30, 1, 6, 7, 32], 5, budget(None, 0.9, (None, 0.45))),
    "no decay": ("topk=6,decay=1", 16, 5, budget(6)),
}


@pytest.mark.parametrize("case", CASES)
def test_is_what_the_formula_gives(case, compiled, llama):
    options, groups, query, keep = CASES[case]
    session = open_session(compiled(shared_model(SMALL), prune="quickprefill:group=16," + options))
    n = len(PROMPT)
    result = prefill_opt.run_quickprefill(session, PROMPT, groups, query)
    lengths = [*group_lengths(n - query, groups), query]
    logits, caches = llama.quickprefill(PROMPT, lengths, keep, protect(n))
    assert len(caches[0][0]) < n and not np.array_equal(caches[0][0], caches[1][0])
    expect(result, logits, caches)


@pytest.mark.parametrize(
    "name, names",
    [
        ("llama-dynamo23-pos", ("present.{}.key", "present.{}.value")),  # position_ids
        ("llama-hf-present", ("past_key_values.layers.{}.keys", "past_key_values.layers.{}.values")),
        ("llama-dynamo18-pos-past", ("present.{}.key", "present.{}.value")),  # a cache of its own
    ],
)
def test_other_exports(name, names, compiled, llama):
    folder = compiled(shared_model(name), prune="quickprefill:group=16,topk=6,query=5", padding="none")
    result = prefill_opt.run_quickprefill(open_session(folder), PROMPT)
    lengths = [*group_lengths(85, 16), 5]
    expect(result, *llama.quickprefill(PROMPT, lengths, budget(6), protect(90)), names)
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert entry["prune"] | {"protect": 0} == {
        "method": "quickprefill",
        "exact": False,
        "of_layers": 2,
        "positions": "preserve",
        "protect": 0,
        "group": 16,
        "topk": 6,
        "top_p": 1,
        "score": "key-norm-small",
        "decay": "none",
        "query": 5,
    }


def test_decode_steps_go_on(compiled, llama):
    """The next token has the prompt's next position, not the cache's length."""
    session = open_session(compiled(shared_model(SMALL), prune="quickprefill:group=16,topk=6"))
    n = len(PROMPT) - 2
    cache = Cache(session, len(PROMPT))
    result = prefill_opt.run_quickprefill(session, PROMPT[:n], query=5, cache=cache)
    held = len(kept(result, 0))
    logits, caches = llama.quickprefill(
        PROMPT, [*group_lengths(n - 5, 16), 5, 1, 1], budget(6), protect(n)
    )
    for i in range(2):
        (step,) = cache.step([Rows(PROMPT[n + i : n + i + 1], held=held + i, first=n + i)])
        np.testing.assert_allclose(step["logits"][0], logits[n + i], atol=1e-4 * np.abs(logits).max())
        np.testing.assert_array_equal(step["prefill.kept.2"], [n + i])
    assert len(caches[0][0]) == held + 2


def test_decode_steps_with_decay(compiled, llama):
    """Every layer's cache has a length of its own; requests stand side by side as without."""
    folder = compiled(shared_model(SMALL), prune="quickprefill:group=16,topk=8,decay=0.5")
    assert json.loads((folder / "manifest.json").read_text())["prune"]["decay"] == 0.5
    session = open_session(folder)
    keep, n = budget(8, 1, (4, 1)), len(PROMPT) - 2
    cache = Cache(session, 2 * len(PROMPT))
    assert cache.layers == 2
    result = prefill_opt.run_quickprefill(session, PROMPT[:n], query=4, cache=cache)
    held = np.array([len(kept(result, layer)) for layer in range(2)])
    assert held[0] > held[1] and [result[f"present.{i}.key"].shape[1] for i in range(2)] == list(held)
    logits, caches = llama.quickprefill(PROMPT, [*group_lengths(n - 4, 16), 4, 1, 1], keep, protect(n))
    for i in range(2):
        other = Rows(PROMPT[:9], len(PROMPT), np.zeros(2, int), first=0, follow=1)
        token = PROMPT[n + i : n + i + 1]
        step, beside = cache.step([Rows(token, held=held + i, first=n + i), other])
        np.testing.assert_allclose(step["logits"][0], logits[n + i], atol=1e-4 * np.abs(logits).max())
        assert [len(beside[f"prefill.kept.{layer}"]) for layer in (1, 2)] == [8, 4]
    assert [len(rows) for rows, _, _ in caches] == list(held + 2)


@pytest.mark.parametrize("name", [n for n in (*PLAIN, *MASKED) if "phi3" not in n])  # phi3 has a window
def test_everything_kept_is_a_chunked_prompt(name, compiled):
    """Bit by bit: with top-p=1, with topk of a group's rows, and with every row protected."""
    model = shared_model(name)
    padding = {"padding": "none"} if name in MASKED else {}
    ids = PROMPT[:37]
    chunked = prefill_opt.run_chunked(open_session(compiled(model, chunk="16", **padding)), ids, 16)
    exact = compiled(model, prune="quickprefill:group=16,top-p=1,query=5", accuracy="exact", **padding)
    entry = json.loads((exact / "manifest.json").read_text())
    assert entry["exact"] is True and entry["prune"]["exact"] is True
    folders = [exact]
    if name == SMALL:
        folders += [
            compiled(model, prune="quickprefill:group=16,topk=16,query=5"),
            compiled(model, prune="quickprefill:group=16,topk=1,query=5", protect="rows:0-999"),
        ]
    for folder in folders:
        result = prefill_opt.run_quickprefill(open_session(folder), ids)
        np.testing.assert_array_equal(result.pop("prefill.kept.1"), np.arange(37))
        np.testing.assert_array_equal(result.pop("prefill.kept.2"), np.arange(37))
        assert set(result) == set(chunked)
        for key, value in chunked.items():
            np.testing.assert_array_equal(result[key], value, err_msg=key)


def test_text_before_the_video_stays(compiled, llama):
    """It is in group 0, and its keys may well be the largest: protected, it stays all the same."""
    text, n = 12, len(PROMPT)
    _, caches = llama.quickprefill(PROMPT, [40, 45, 5], budget(16), protect(n, 0))
    assert any(not set(range(text)) <= set(rows) for rows, _, _ in caches), "the test could not fail"
    model = shared_model(SMALL)
    option = "quickprefill:group=40,topk=16,query=5"
    mask = np.arange(n) < text
    tokens = np.isin(PROMPT, PROMPT[:text])
    expected = llama.quickprefill(PROMPT, [40, 45, 5], budget(16), mask | (np.arange(n) == n - 1))
    for protection, given in (
        (f"rows:0-{text - 1}", None),
        (f"bos:{text}", None),
        ("system,last:1", mask),
        (",".join(f"ids:{i}" for i in PROMPT[:text]), None),
    ):
        session = open_session(compiled(model, prune=option, protect=protection))
        result = prefill_opt.run_quickprefill(session, PROMPT, [40, 45], protected=given)
        expect(result, *expected)
        # The rows of a prompt are counted, not those of a group.
        assert len(kept(result, 0)) == 16 + 16 + 5
    assert tokens.sum() == text


def test_last_rows_of_the_prompt_stay(compiled, llama):
    """`last:20` reaches over the question into the group before it."""
    folder = compiled(shared_model(SMALL), prune="quickprefill:group=16,topk=6,query=5", protect="last:20")
    result = prefill_opt.run_quickprefill(open_session(folder), PROMPT)
    expect(result, *llama.quickprefill(PROMPT, [*group_lengths(85, 16), 5], budget(6), protect(90, 0, 20)))
    assert set(range(70, 90)) <= set(kept(result, 0))


def test_requests_side_by_side(compiled):
    session = open_session(compiled(shared_model(SMALL), prune="quickprefill:group=16,topk=6"))
    prompts = [PROMPT[:40], PROMPT[40:63]]
    alone = [prefill_opt.run_quickprefill(session, p, 20, 3) for p in prompts]
    cache = Cache(session, 80)
    slots, held = (41, 0), [0, 0]
    found = [{f"prefill.kept.{i}": [] for i in (1, 2)} for _ in prompts]
    for begins, ends in (((0, 0), (20, 20)), ((20, 20), (37, 23)), ((37, 23), (40, 23))):
        work = [
            Rows(p[b:e], slot, h, True, first=b, follow=len(p) - e)
            for p, slot, h, b, e in zip(prompts, slots, held, begins, ends, strict=True)
        ]
        for i, result in enumerate(cache.step(work)):
            for name, rows in found[i].items():
                rows.append(result[name])
            held[i] += len(result["prefill.kept.1"])
    for one, mine, slot, count in zip(alone, found, slots, held, strict=True):
        for name, rows in mine.items():
            np.testing.assert_array_equal(np.concatenate(rows), one[name])
        for name, array in cache.view(slot, count).items():
            np.testing.assert_allclose(array, one[name], atol=1e-5, err_msg=name)


def test_keys_that_are_no_numbers_stay(compiled, tmp_path):
    """A norm that is no number is not understood: its row is kept before all others but protected ones."""
    model = onnx.load(str(shared_model(SMALL)))
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [112, 64]:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[PROMPT[25]] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path = save_model(model, tmp_path / "nan.onnx")
    folder = prefill_opt.compile(path, tmp_path / "out", prune="quickprefill:group=30,topk=1,query=30", protect="last:1")
    result = prefill_opt.run_quickprefill(open_session(folder), PROMPT)
    assert kept(result, 0)[0] == 25 and len(kept(result, 0)) == 32
    # In the next layer more rows are such, of which the first stays.
    assert kept(result, 1)[0] <= 25 and len(kept(result, 1)) == 32
    assert np.isnan(result["logits"][25:]).all()


def test_selected_logits(compiled, llama):
    folder = compiled(shared_model(SMALL), prune="quickprefill:group=16,topk=6,query=5", logits="rows")
    result = prefill_opt.run_quickprefill(open_session(folder), PROMPT)
    logits, caches = llama.quickprefill(PROMPT, [*group_lengths(85, 16), 5], budget(6), protect(90))
    expect(result, logits[-1:], caches)


def test_with_sparse_attention(compiled, llama):
    """Keys are counted in the cache: the nearest ones that are left. Layer 1 keeps the same rows."""
    option = {"prune": "quickprefill:group=128,topk=96,query=5"}
    ids = np.random.default_rng(0).integers(0, 112, 400)
    model = shared_model(SMALL)
    all_seen = open_session(compiled(model, sparsify="a-shape:init=64,local=4096,dense-below=0", **option))
    few = open_session(compiled(model, sparsify="a-shape:init=16,local=64,dense-below=0", **option))
    dense = prefill_opt.run_quickprefill(open_session(compiled(model, **option)), ids)
    same, other = (prefill_opt.run_quickprefill(s, ids) for s in (all_seen, few))
    for name, value in dense.items():
        np.testing.assert_allclose(same[name], value, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(other["prefill.kept.1"], dense["prefill.kept.1"])
    assert np.isfinite(other["logits"]).all()
    assert np.abs(other["logits"] - dense["logits"]).max() > 1e-3


def test_with_shared_keys(compiler, tmp_path):
    """Layers that read the same keys keep the same rows, and give what their copies would."""
    path = tmp_path / "model.onnx"
    decoder(path, shared=True)
    with_logits(path)
    results = []
    for number, more in enumerate(({}, {"share_kv": "detect"})):
        out = prefill_opt.compile(path, tmp_path / str(number), prune="quickprefill:group=16,topk=6,query=5", **more)
        results.append(prefill_opt.run_quickprefill(open_session(out), np.arange(45)))
    one, other = results
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)
    assert len(kept(one, 0)) < 45
    np.testing.assert_array_equal(kept(other, 2), kept(other, 3))
    assert not np.array_equal(kept(other, 1), kept(other, 2))


def test_bad_calls(compiled):
    model = shared_model(SMALL)
    folder = compiled(model, prune="quickprefill:group=16,topk=6")
    session = open_session(folder)
    for arguments, message in (
        (([],), "the prompt is empty"),
        ((PROMPT, 0), "groups 0: expected at least one row"),
        ((PROMPT, [40, 0, 49]), "a group of 0 rows: expected at least one"),
        ((PROMPT, [40, 40]), "the groups have 80 rows together, the prompt without its question has 89"),
        ((PROMPT, 16, 0), "query 0: expected from 1 to 90 rows"),
        ((PROMPT, 16, 91), "query 91: expected from 1 to 90 rows"),
        ((PROMPT, 16, 5, [True] * 90), "not compiled with -protect=system"),
    ):
        with pytest.raises(ValueError, match=message):
            prefill_opt.run_quickprefill(session, *arguments)
    system = open_session(compiled(model, prune="quickprefill:group=16,topk=6", protect="system,last:1"))
    with pytest.raises(ValueError, match=r"expected one entry for each of the 90 tokens, got \(3,\)"):
        prefill_opt.run_quickprefill(system, PROMPT, protected=[True] * 3)
    with pytest.raises(ValueError, match="use run_quickprefill"):
        prefill_opt.run_chunked(session, PROMPT)
    with pytest.raises(ValueError, match="use run_quickprefill"):
        prefill_opt.HybridBatch(folder, 100)
    with pytest.raises(ValueError, match="compile it with -prune=quickprefill"):
        prefill_opt.run_quickprefill(open_session(compiled(model, chunk="16")), PROMPT)
    with pytest.raises(Exception, match="segment 0: expected the number of its first row"):
        Cache(session, 90).step([Rows(PROMPT, first=-1)])


@pytest.mark.parametrize(
    "name, options, message",
    [
        (SMALL, {"prune": "quickprefill:group=0"}, "'group=0': expected a number of rows, at least 1"),
        (SMALL, {"prune": "quickprefill:group=frames16"}, "the compiler does not know frames"),
        (SMALL, {"prune": "quickprefill:topk=0"}, "'topk=0': expected a number of rows, at least 1"),
        (SMALL, {"prune": "quickprefill:topk=-3"}, "'topk=-3': expected a number of rows"),
        (SMALL, {"prune": "quickprefill:top-p=0"}, "top-p=0: expected the share of rows that stays"),
        (SMALL, {"prune": "quickprefill:top-p=1.5"}, "top-p=1.5: expected the share"),
        (SMALL, {"prune": "quickprefill:top-p=nan"}, "top-p=nan: expected the share"),
        (SMALL, {"prune": "quickprefill:query=0"}, "'query=0': expected a number of rows"),
        (SMALL, {"prune": "quickprefill:score=value-norm"}, "score=value-norm: expected key-norm-small"),
        (SMALL, {"prune": "quickprefill:decay=0"}, "decay=0: expected none, linear, or the factor"),
        (SMALL, {"prune": "quickprefill:decay=1.5"}, "decay=1.5: expected none, linear, or the factor"),
        (SMALL, {"prune": "quickprefill:decay=nan"}, "decay=nan: expected none, linear, or the factor"),
        (SMALL, {"prune": "quickprefill:top-p=1,decay=0.5", "accuracy": "exact"}, "-accuracy=exact refuses"),
        (SMALL, {"prune": "quickprefill:keep=1"}, "unknown option 'keep=1': expected group, topk, top-p"),
        (SMALL, {"prune": "quickprefill", "protect": "last:0"}, "a number from 1 on"),
        (SMALL, {"prune": "quickprefill", "accuracy": "exact"}, "-accuracy=exact refuses -prune=quickprefill"),
        (SMALL, {"prune": "quickprefill", "chunk": "512"}, "-prune=quickprefill with -chunk"),
        (SMALL, {"prune": "quickprefill", "pack": "ffd"}, "-prune=quickprefill with -pack"),
        (SMALL, {"prune": "quickprefill", "logits": "last"}, "-logits=last with -prune=quickprefill"),
        (SMALL, {"prune": "quickprefill", "target": "cpu,sm_80"}, "-prune=quickprefill with -target=sm_80"),
        ("llama-dynamo18", {"prune": "quickprefill"}, "-padding=none"),  # attention_mask
        ("llama-dynamo18-pos-past", {"prune": "quickprefill"}, "a KV cache of its own"),
        ("phi3-dynamo18", {"prune": "quickprefill", "padding": "none"}, "it has a window"),
        ("bert-dynamo18", {"prune": "quickprefill", "padding": "none"}, "takes some of the rows"),
    ],
)  # fmt: skip
def test_what_is_refused(compiler, tmp_path, name, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(SHARED_MODELS / f"{name}.onnx", tmp_path / "out", **options)
    assert message in str(error.value)
    assert len(str(error.value).strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
