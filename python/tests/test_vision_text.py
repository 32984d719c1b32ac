"""FlowCut's step in a language model: NumPy float64 written from the formula, and the limits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_models import PATHS
from vision import DIM, HEADS, KV_HEADS, close, feeds_of, forward, prompt, run, softmax

import prefill_opt


def flowcut(weights, embeds, vision, layer, target, protected=()):
    """A prompt [n, HIDDEN]: (rows, K, V) of every layer, the last row's logits, the tightest decision.

    After `layer` (from 1) `target` vision rows stay: those of the greatest (r + m) * size, r the
    softmax over the vision rows of the last row's query with their keys, m that of its value with
    their values, both means over the heads, size the sum of |v| of the mean over the heads.
    """
    tight = np.inf

    def choose(number, rows, q, k, v, p):
        nonlocal tight
        seen = np.flatnonzero(vision[rows])
        if number != layer:
            return None
        keys, values = (z.repeat(HEADS // KV_HEADS, 0)[:, seen] for z in (k, v))
        last = v.repeat(HEADS // KV_HEADS, 0)[:, -1]
        r = softmax(np.einsum("hc,hjc->hj", q[:, -1], keys) / np.sqrt(DIM)).mean(0)
        m = softmax(np.einsum("hc,hjc->hj", last, values) / np.sqrt(DIM)).mean(0)
        score = (r + m) * np.abs(v[:, seen].mean(0)).sum(-1)
        fixed = np.isin(seen, protected)
        order = [i for i in np.argsort(-score, kind="stable") if not fixed[i]]
        count = max(0, min(target, len(seen)) - fixed.sum())
        if 0 < count < len(order):
            tight = score[order[count - 1]] / score[order[count]] - 1
        stay = ~vision[rows]
        stay[seen[fixed]] = True
        stay[seen[order[:count]]] = True
        return stay

    caches, logits = forward(weights, embeds, choose)
    return caches, logits, tight


@pytest.mark.parametrize("sparsify", ["dense", "a-shape:init=4,local=64,dense-below=999"])
@pytest.mark.parametrize(
    "layer, target, parts",
    [(1, 9, (7, 36, 9)), (2, 64, (5, 100, 70)), (3, 1, (6, 40, 1)), (1, 7, (5, 20, 11, 30, 8))],
)
def test_it_is_what_numpy_gives(language, compiled, sparsify, layer, target, parts):
    """Also with two images, which are scored together."""
    path, weights = language
    folder = compiled(path, logits="last", prune=f"flowcut:target={target},llm-layer={layer}", sparsify=sparsify)
    embeds, vision = prompt(len(parts) + sum(parts), *parts)
    caches, logits, tight = flowcut(weights, embeds, vision, layer, target)
    assert tight > 1e-4, "the prompt decides nothing clearly"
    found = run(folder, feeds_of(embeds, vision))
    rows = found[f"prefill.rows.{layer}"][0]
    np.testing.assert_array_equal(rows, caches[-1][0])
    assert len(rows) == (~vision).sum() + target
    for number, (_, k, v) in enumerate(caches):
        close(found[f"present.{number}.key"][0], k)
        close(found[f"present.{number}.value"][0], v)
    close(found["logits"][0, 0], logits)
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert {k: entry["prune"][k] for k in ("method", "exact", "layers", "target", "llm_layer", "positions")} == {
        "method": "flowcut", "exact": False, "layers": [layer], "target": target, "llm_layer": layer,
        "positions": "preserve",
    }  # fmt: skip


@pytest.mark.parametrize("parts", [(40,), (9, 8, 6), (3, 8)], ids=["text only", "as many as stay", "no text after"])
def test_no_more_than_the_target_is_the_dense_result(language, compiled, parts):
    path, _ = language
    embeds, vision = prompt(3, *parts)
    dense = run(compiled(path, logits="last"), {"inputs_embeds": embeds[None]})
    found = run(compiled(path, logits="last", prune="flowcut:target=8,llm-layer=1"), feeds_of(embeds, vision))
    for name, value in dense.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    np.testing.assert_array_equal(found["prefill.rows.1"][0], np.arange(len(vision)))


def test_protected_rows_count_and_stay(language, compiled):
    path, weights = language
    folder = compiled(
        path, logits="last", prune="flowcut:target=5,llm-layer=2", protect="system,rows:10-12,last:1"
    )
    embeds, vision = prompt(5, 6, 30, 8)
    fixed = np.zeros(len(vision), bool)
    fixed[20] = True
    caches, _, tight = flowcut(weights, embeds, vision, 2, 5, (10, 11, 12, 20))
    assert tight > 1e-4
    found = run(folder, {**feeds_of(embeds, vision), "protected_rows": fixed[None]})
    np.testing.assert_array_equal(found["prefill.rows.2"][0], caches[-1][0])
    assert {10, 11, 12, 20} <= set(caches[-1][0].tolist())
    # More protected rows than the target.
    fixed[6:30] = True
    found = run(folder, {**feeds_of(embeds, vision), "protected_rows": fixed[None]})
    np.testing.assert_array_equal(found["prefill.rows.2"][0], np.flatnonzero(~vision | fixed))


def test_a_batch_keeps_as_many_rows_of_every_prompt(language, compiled):
    """Prompts of one length, one with more image than the other: each has its own rows, the first more of them."""
    path, weights = language
    folder = compiled(path, logits="last", prune="flowcut:target=6,llm-layer=1")
    prompts = [prompt(1, 5, 30, 9), prompt(2, 5, 20, 19)]
    found = run(folder, {k: np.concatenate([feeds_of(*p)[k] for p in prompts]) for k in feeds_of(*prompts[0])})
    # Text of the second one and 6 of its vision rows: 30 rows. The first one's text is 14.
    for entry, target in ((0, 16), (1, 6)):
        caches, logits, tight = flowcut(weights, *prompts[entry], 1, target)
        assert tight > 1e-4
        np.testing.assert_array_equal(found["prefill.rows.1"][entry], caches[-1][0])
        close(found["logits"][entry, 0], logits)


def test_padding_is_not_asked_and_stays(compiled):
    """A model with input_ids and attention_mask: padding on either side changes nothing."""
    folder = compiled(PATHS["llama-dynamo18"], logits="last", prune="flowcut:target=9,llm-layer=1", protect="last:1")
    ids = np.random.default_rng(7).integers(1, 100, (1, 50))
    vision = np.zeros((1, 50), bool)
    vision[0, 6:40] = True

    def padded(left, right, marks=False):
        shape = ((0, 0), (left, right))
        feeds = {"input_ids": np.pad(ids, shape), "vision_rows": np.pad(vision, shape, constant_values=marks)}
        return run(folder, {**feeds, "attention_mask": np.pad(np.ones_like(ids), shape)})

    alone, left, right = padded(0, 0), padded(9, 0), padded(0, 9)
    rows = alone["prefill.rows.1"][0]
    assert len(rows) == 16 + 9
    np.testing.assert_array_equal(left["prefill.rows.1"][0], [*range(9), *(rows + 9)])
    np.testing.assert_array_equal(right["prefill.rows.1"][0], [*rows, *range(50, 59)])
    close(left["logits"], alone["logits"])
    # Padding that is marked as an image is none.
    np.testing.assert_array_equal(padded(9, 0, True)["prefill.rows.1"], left["prefill.rows.1"])


def test_attack_on_protected_rows(language, compiled):
    """Last rows searched for to drop protected vision rows never do; without the protection they do."""
    path, _ = language
    prune = "flowcut:target=12,llm-layer=1"
    safe = prefill_opt.session(
        compiled(path, logits="last", prune=prune, protect="system,last:1"), log_severity_level=4
    )
    bare = prefill_opt.session(compiled(path, logits="last", prune=prune, protect="last:1"), log_severity_level=4)
    base, vision = prompt(1, 6, 30, 6)
    fixed = np.zeros(len(vision), bool)
    fixed[10:15] = True
    rng, fewest = np.random.default_rng(2), 5
    for _ in range(60):
        trial = np.concatenate([base[:-1], rng.standard_normal((1, base.shape[1])).astype(np.float32) * 3])
        feeds = feeds_of(trial, vision)
        (rows,) = safe.run(["prefill.rows.1"], {**feeds, "protected_rows": fixed[None]})
        assert set(np.flatnonzero(fixed | ~vision)) <= set(rows[0].tolist()) and rows.shape == (1, 24)
        (free,) = bare.run(["prefill.rows.1"], feeds)
        fewest = min(fewest, len(set(np.flatnonzero(fixed)) & set(free[0].tolist())))
    assert fewest < 5, "nothing was dropped even without protection"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prune": "flowcut:llm-layer=1"}, "expected target="),
        ({"prune": "flowcut:target=0,llm-layer=1"}, "target=0: expected"),
        ({"prune": "flowcut:target=4,llm-layer=0"}, "llm-layer=0: expected the layer of the language model"),
        ({"prune": "flowcut:target=4,llm-layer=x"}, "llm-layer=x: expected"),
        ({"prune": "flowcut:target=4,llm-layer=4"}, "layer 4 is the last one"),
        ({"prune": "flowcut:target=4,llm-layer=9"}, "layer 9 is not there: the model has 4 layers"),
        ({"prune": "flowcut:target=4,llm-layer=1,anchor=cls"}, "compile each with its own"),
        ({"prune": "flowcut:target=4,llm-layer=1", "logits": "all"}, "ask for -logits=last or -logits=rows"),
        ({"prune": "flowcut:target=4,llm-layer=1", "accuracy": "exact"}, "-accuracy=exact refuses -prune"),
        ({"prune": "flowcut:target=4,llm-layer=1", "pack": "ffd"}, "-prune with -pack"),
        ({"prune": "flowcut:target=4,llm-layer=1", "chunk": "64", "logits": "rows"}, "-prune with -chunk"),
    ],
)
def test_what_is_refused(language, compiler, tmp_path, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(language[0], tmp_path / "out", **{"logits": "last", **options})
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
