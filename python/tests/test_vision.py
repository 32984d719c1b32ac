"""Pruning of vision tokens (MustDrop, FlowCut): NumPy float64 written from the paper's formulas, and the limits."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from support import plain_session
from test_models import PATHS
from vision import (
    HIDDEN,
    LAYERS,
    anchor_of,
    anchor_shares,
    close,
    count_layers,
    encode,
    encoder_model,
    feeds_of,
    forward,
    images,
    prompt,
    run,
    softmax,
    step_model,
)

import prefill_opt


def mustdrop(weights, embeds, vision, layers, share, most, protected=()):
    """A prompt [n, HIDDEN]: (rows, K, V) of every layer, the last row's logits, the tightest decision.

    After each of `layers` (from 1) vision row j goes iff its attention, mean over the heads, summed
    over the text after the image is below share times that of all vision rows, and no row of that
    text gives it `most`.
    """
    tight = np.inf

    def choose(number, rows, q, k, v, p):
        nonlocal tight
        seen = vision[rows]
        if number not in layers or not seen.any():
            return None
        a = p.mean(0)[np.flatnonzero(seen)[-1] + 1 :]
        if len(a) == 0:
            return None
        total, peak = a.sum(0), a.max(0)
        low = share * total[seen].sum()
        free = seen & ~np.isin(rows, protected)
        tight = min(tight, *(abs(total[free] / low - 1)), *(abs(peak[free] / most - 1)))
        return ~(free & (total < low) & (peak < most))

    caches, logits = forward(weights, embeds, choose)
    return caches, logits, tight


SETTING = "mustdrop:layers={},global={},individual={}"


@pytest.mark.parametrize("sparsify", ["dense", "a-shape:init=4,local=64,dense-below=999"])
@pytest.mark.parametrize(
    "layers, share, most, parts",
    [
        ((1, 3), 0.03, 0.25, (7, 36, 9)),
        ((1, 2, 3), 0.02, 0.1, (5, 100, 70)),
        ((2,), 1.0, 0.15, (6, 40, 1)),
        ((1, 2), 0.05, 0.3, (5, 20, 11, 30, 8)),
    ],
)
def test_language_model_is_what_numpy_gives(language, compiled, sparsify, layers, share, most, parts):
    """Also with two images: the text after the last one asks, that between them stays."""
    path, weights = language
    prune = SETTING.format("+".join(map(str, layers)), share, most)
    folder = compiled(path, logits="last", prune=prune, sparsify=sparsify)
    embeds, vision = prompt(len(parts) + sum(parts), *parts)
    n = len(vision)
    caches, logits, tight = mustdrop(weights, embeds, vision, layers, share, most, (0, 1, 2, 3, n - 1))
    assert tight > 1e-4, "the prompt decides nothing clearly"
    assert parts[0] < len(caches[-1][0]) < n
    found = run(folder, feeds_of(embeds, vision))
    for layer in layers:
        np.testing.assert_array_equal(found[f"prefill.rows.{layer}"][0], caches[layer][0])
    for number, (_, k, v) in enumerate(caches):
        close(found[f"present.{number}.key"][0], k)
        close(found[f"present.{number}.value"][0], v)
    close(found["logits"][0, 0], logits)
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert {k: entry["prune"][k] for k in ("method", "exact", "layers", "global", "individual", "positions")} == {
        "method": "mustdrop",
        "exact": False,
        "layers": list(layers),
        "global": share,
        "individual": most,
        "positions": "preserve",
    }


def left_in_the_end(caches, first):
    """(rows, K, V) of every layer with kv=final: from layer `first` on those of the last layer."""
    final = caches[-1][0]
    cut = []
    for number, (rows, k, v) in enumerate(caches, 1):
        stay = np.isin(rows, final) | (number < first)
        cut.append((rows[stay], k[:, stay], v[:, stay]))
    return cut


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A decode step of the language model, as it was exported."""
    return plain_session(step_model(tmp_path_factory.mktemp("step")))


@pytest.mark.parametrize(
    "layers, share, most, parts",
    [((1, 3), 0.03, 0.25, (7, 36, 9)), ((1, 2, 3), 0.02, 0.1, (5, 100, 70)), ((2,), 1.0, 0.15, (6, 40, 1))],
)
def test_decode_reads_the_rows_that_are_left_in_the_end(language, compiled, step, layers, share, most, parts):
    """kv=final: caches from the first stage's layer on lose rows; decode steps go on at the prompt's end."""
    path, weights = language
    prune = SETTING.format("+".join(map(str, layers)), share, most)
    embeds, vision = prompt(len(parts) + sum(parts), *parts)
    n = len(vision)
    caches, _, tight = mustdrop(weights, embeds, vision, layers, share, most, (0, 1, 2, 3, n - 1))
    assert tight > 1e-4, "the prompt decides nothing clearly"
    expected = left_in_the_end(caches, layers[0])
    feeds = feeds_of(embeds, vision)
    plain = run(compiled(path, logits="last", prune=prune), feeds)
    folder = compiled(path, logits="last", prune=prune + ",kv=final")
    found = run(folder, feeds)
    assert list(found) == list(plain)
    for name in ("logits", *(f"prefill.rows.{layer}" for layer in layers)):
        np.testing.assert_array_equal(found[name], plain[name])
    for number, (_, k, v) in enumerate(expected):
        close(found[f"present.{number}.key"][0], k)
        close(found[f"present.{number}.value"][0], v)
    assert json.loads((folder / "manifest.json").read_text())["prune"]["kv"] == "final"
    parts = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    state = {f"past.{part}": found[f"present.{part}"] for part in parts}
    for position in (n, n + 1):
        row = np.random.default_rng(position).standard_normal((1, HIDDEN)).astype(np.float32)
        names = [output.name for output in step.get_outputs()]
        result = step.run(None, {"inputs_embeds": row[None], "position_ids": np.array([[position]]), **state})
        made = dict(zip(names, result, strict=True))
        state = {name: made[name.replace("past", "present")] for name in state}
        caches, other = forward(weights, row, lambda *_: None, position, caches)
        expected, logits = forward(weights, row, lambda *_: None, position, expected)
        close(made["logits"][0, 0], logits)
        assert np.abs(logits - other).max() > 1e-3, "all rows give the same: nothing is shown"


@pytest.mark.parametrize("share, most", [(0, 0.5), (0.5, 0), (0, 0)])
def test_a_threshold_of_nothing_is_the_model_itself(language, compiled, share, most):
    path, _ = language
    kept = compiled(path, logits="last", prune=SETTING.format("1+3", share, most))
    plain = compiled(path, logits="last")
    assert (kept / "model.onnx").read_bytes() == (plain / "model.onnx").read_bytes()
    assert json.loads((kept / "manifest.json").read_text())["exact"] is True


@pytest.mark.parametrize("parts", [(40,), (9, 30), (0, 25)], ids=["text only", "no text after", "nothing but an image"])
def test_nothing_to_ask_about_or_nobody_who_asks(language, compiled, parts):
    """All rows stay, and the result is the dense one to the bit."""
    path, _ = language
    pruned = compiled(path, logits="last", prune=SETTING.format("1+3", 1, 1))
    embeds, vision = prompt(3, *parts)
    dense = run(compiled(path, logits="last"), {"inputs_embeds": embeds[None]})
    found = run(pruned, feeds_of(embeds, vision))
    for name, value in dense.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    np.testing.assert_array_equal(found["prefill.rows.3"][0], np.arange(len(vision)))


def test_everything_goes_but_what_is_protected(language, compiled):
    """Thresholds of 1 drop every vision row: text, -protect and the input protected_rows stay."""
    path, _ = language
    folder = compiled(path, logits="last", prune=SETTING.format(1, 1, 1), protect="system,rows:10-12")
    embeds, vision = prompt(5, 6, 30, 8)
    fixed = np.zeros(len(vision), bool)
    fixed[[20, 21]] = True
    found = run(folder, {**feeds_of(embeds, vision), "protected_rows": fixed[None]})
    expected = np.flatnonzero(~vision | fixed | np.isin(np.arange(len(vision)), (10, 11, 12)))
    np.testing.assert_array_equal(found["prefill.rows.1"][0], expected)


def test_padding_asks_nothing_and_stays(compiled):
    """A model with input_ids and attention_mask: padding on either side changes nothing."""
    folder = compiled(PATHS["llama-dynamo18"], logits="last", prune=SETTING.format(1, 0.03, 0.3), protect="last:1")
    ids = np.random.default_rng(7).integers(1, 100, (1, 50))
    vision = np.zeros((1, 50), bool)
    vision[0, 6:40] = True

    def padded(left, right):
        shape = ((0, 0), (left, right))
        feeds = {"input_ids": np.pad(ids, shape), "vision_rows": np.pad(vision, shape)}
        return run(folder, {**feeds, "attention_mask": np.pad(np.ones_like(ids), shape)})

    alone, left, right = padded(0, 0), padded(9, 0), padded(0, 9)
    rows = alone["prefill.rows.1"][0]
    assert 16 < len(rows) < 50
    np.testing.assert_array_equal(left["prefill.rows.1"][0], [*range(9), *(rows + 9)])
    np.testing.assert_array_equal(right["prefill.rows.1"][0], [*rows, *range(50, 59)])
    close(left["logits"], alone["logits"])


def test_threads_do_not_matter(language, compiled):
    path, _ = language
    folder = compiled(path, logits="last", prune=SETTING.format("1+2+3", 0.02, 0.1))
    embeds, vision = prompt(8, 5, 200, 130)
    one, two = (run(folder, feeds_of(embeds, vision), intra_op_num_threads=n) for n in (1, 3))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_attack_on_the_system_prompt(language, compiled):
    """A suffix searched for to draw attention away from protected image rows never drops one.

    Without the protection the same suffixes do: the test can fail.
    """
    path, _ = language
    prune = SETTING.format(1, 0.03, 0.2)
    safe = prefill_opt.session(
        compiled(path, logits="last", prune=prune, protect="system,last:1"), log_severity_level=4
    )
    bare = prefill_opt.session(compiled(path, logits="last", prune=prune, protect="last:1"), log_severity_level=4)
    prefix, vision = prompt(1, 6, 30, 12)
    fixed = np.zeros(len(vision), bool)
    fixed[10:20] = True
    rng = np.random.default_rng(2)
    best, fewest = prefix[36:], len(vision)
    for _ in range(300):
        trial = best + rng.standard_normal(best.shape).astype(np.float32) * 0.5
        feeds = feeds_of(np.concatenate([prefix[:36], trial]), vision)
        (rows,) = safe.run(["prefill.rows.1"], {**feeds, "protected_rows": fixed[None]})
        assert set(np.flatnonzero(fixed | ~vision)) <= set(rows[0].tolist())
        (free,) = bare.run(["prefill.rows.1"], feeds)
        left = len(set(np.flatnonzero(fixed)) & set(free[0].tolist()))
        if left < fewest:
            best, fewest = trial, left
    assert fewest < 10, "the attack found nothing to drop even without protection"


@pytest.mark.parametrize(
    "batch, shorter, message",
    [(2, 0, "expected a batch of 1, got 2"), (1, 1, r"expected \[1,31\], got \[1,30\]")],
)
def test_what_the_compiled_model_refuses(language, compiled, batch, shorter, message):
    folder = compiled(language[0], logits="last", prune=SETTING.format(1, 1, 1))
    embeds, vision = prompt(0, 5, 20, 6)
    feeds = feeds_of(embeds, vision[shorter:])
    with pytest.raises(Exception, match=message):
        run(folder, {name: value.repeat(batch, 0) for name, value in feeds.items()})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prune": "mustdrop:layers=1,global=nan"}, "global=nan: expected 0"),
        ({"prune": "mustdrop:layers=1,individual=-0.1"}, "individual=-0.1: expected 0"),
        ({"prune": "mustdrop:layers=1,global=2"}, "global=2: expected 0"),
        ({"prune": "mustdrop:layers=1,individual=1e-15"}, "from 1e-12 to 1"),
        ({"prune": "mustdrop:layers=9"}, "layer 9 is not there: the model has 4 layers"),
        ({"prune": "mustdrop:layers=4"}, "layer 4 is the last one"),
        ({"prune": "mustdrop:layers=1,kv=some"}, "kv=some: expected layer"),
        ({"prune": "mustdrop:kv=final,key=0.1"}, "compile each with its own"),
        ({"prune": "lazyllm:kv=final"}, "unknown option 'kv=final'"),
        ({"prune": "mustdrop"}, "layer 15 is not there: the model has 4 layers; name some with layers="),
        ({"prune": "mustdrop:layers=1,keep=0.5"}, "unknown option 'keep'"),
        ({"prune": "mustdrop:layers=1,positions=compact"}, "expected preserve"),
        ({"prune": "mustdrop:layers=1,vit-merge=3x3@0.8"}, "compile each with its own"),
        ({"prune": "mustdrop:layers=1", "protect": "ids:3"}, "has no input 'input_ids'"),
        ({"prune": "mustdrop:layers=1", "accuracy": "exact"}, "-accuracy=exact refuses -prune"),
        ({"prune": "mustdrop:layers=1", "pack": "ffd"}, "-prune with -pack"),
        ({"prune": "mustdrop:layers=1", "chunk": "64", "logits": "rows"}, "-prune with -chunk"),
        ({"prune": "mustdrop:layers=1", "target": "sm_80"}, "-prune with -target=sm_80"),
        ({"prune": "mustdrop:layers=1", "logits": "all"}, "ask for -logits=last or -logits=rows"),
    ],
)  # fmt: skip
def test_what_is_refused(language, compiler, tmp_path, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(language[0], tmp_path / "out", **{"logits": "last", **options})
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_input_of_that_name_is_refused(language, tmp_path):
    model = onnx.load(language[0])
    model.graph.input.append(onnx.helper.make_tensor_value_info("vision_rows", onnx.TensorProto.BOOL, ["b", "s"]))
    onnx.save(model, tmp_path / "named.onnx")
    with pytest.raises(prefill_opt.CompileError, match="an input 'vision_rows' already"):
        prefill_opt.compile(tmp_path / "named.onnx", tmp_path / "out", logits="last", prune="mustdrop:layers=1")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return encoder_model(tmp_path_factory, "CLIP", layers=6)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return encoder_model(tmp_path_factory, "Siglip", layers=5, parts=False, vision_use_head=False)


def flow_drop(shares, target, left):
    """How many of the patches with this attention go."""
    count = len(shares)
    if count <= target:
        return 0
    if left == 0:
        return count - target
    positive = shares[shares > 0]
    evenness = -(positive * np.log(positive)).sum() / np.log(count)
    return int(np.clip(np.rint((count - target) / np.sqrt(left) * (1 - evenness**2)), 0, count - target))


def flowcut(weights, pixels, target, cls, protected=(), final_norm=True, forced=None):
    """Images [b, 3, 36, 36]: (rows after each stage by layer, last_hidden_state, tightest choice).

    forced: rows to keep by layer, instead.
    """
    layers = count_layers(weights)
    rows = np.tile(np.arange(36 + cls), (len(pixels), 1))
    flow, stages, tight = np.zeros(rows.shape), {}, np.inf

    def after(number, x, q, k, v):
        nonlocal rows, flow, tight
        shares = anchor_shares(q, k, cls)
        values = softmax(anchor_of(v, cls) @ v.transpose(0, 1, 3, 2))[:, :, 0].mean(1)[:, int(cls) :]
        shares, values = (z / z.sum(1, keepdims=True) for z in (shares, values))
        size = np.abs(v.mean(1)).sum(-1)[:, int(cls) :]
        flow[:, int(cls) :] = flow[:, int(cls) :] / 2 + (shares + values) * size / 2
        left = layers - 1 - number
        if forced is not None and number in forced:
            place = np.array([np.searchsorted(a, b) for a, b in zip(rows, forced[number], strict=True)])
            rows, flow = (np.take_along_axis(z, place, 1) for z in (rows, flow))
            return np.take_along_axis(x, place[..., None], 1)
        if forced is not None or left < 0 or left % 2:
            return x
        drop = max(flow_drop(s, target, left) for s in shares)
        stay = []
        for entry in range(len(pixels)):
            fixed = [i for i, r in enumerate(rows[entry]) if r < cls or r in protected]
            rest = [i for i in np.argsort(-flow[entry], kind="stable") if i not in fixed]
            count = rows.shape[1] - drop - len(fixed)
            if drop:
                tight = min(tight, flow[entry][rest[count - 1]] / flow[entry][rest[count]] - 1)
            stay.append(sorted(fixed + rest[:count]))
        rows, flow = (np.take_along_axis(z, np.array(stay), 1) for z in (rows, flow))
        stages[number] = rows
        return np.take_along_axis(x, np.array(stay)[..., None], 1)

    x = encode(weights, pixels, cls, after, final_norm)
    return stages, x, tight


@pytest.mark.parametrize("name, target, count", [("clip", 9, 1), ("clip", 1, 3), ("clip", 30, 2), ("siglip", 7, 1)])
def test_encoder_is_what_numpy_gives(request, compiled, name, target, count):
    path, weights, cls = request.getfixturevalue(name)
    folder = compiled(path, prune=f"flowcut:target={target}")
    pixels = images(target, count)
    stages, rows, tight = flowcut(weights, pixels, target, cls)
    assert tight > 1e-4, "the images decide nothing clearly"
    found = run(folder, {"pixel_values": pixels})
    assert len(stages) > 1
    for layer, expected in stages.items():
        np.testing.assert_array_equal(found[f"prefill.rows.{layer}"], expected)
    assert rows.shape[1] == target + cls
    close(found["last_hidden_state"], rows)
    if cls:
        close(found["first"], rows[:, 0])
        close(found["patches"], rows[:, 1:])
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert {k: entry["prune"][k] for k in ("method", "exact", "layers", "target")} == {
        "method": "flowcut", "exact": False, "layers": list(stages), "target": target
    }  # fmt: skip


@pytest.mark.parametrize("target", [36, 1000])
def test_a_target_of_all_patches_is_the_model_itself(clip, compiled, target):
    kept = compiled(clip[0], prune=f"flowcut:target={target}")
    assert (kept / "model.onnx").read_bytes() == (compiled(clip[0]) / "model.onnx").read_bytes()
    entry = json.loads((kept / "manifest.json").read_text())
    assert entry["exact"] is True and entry["prune"]["layers"] == []


def test_protected_patches_stay_whatever_the_image_is(clip, compiled):
    """Images searched for to take attention from some patches drop others, never these."""
    path, weights, cls = clip
    safe = prefill_opt.session(compiled(path, prune="flowcut:target=6", protect="rows:10-13"), log_severity_level=4)
    bare = prefill_opt.session(compiled(path, prune="flowcut:target=6"), log_severity_level=4)
    rng, best, fewest = np.random.default_rng(5), images(5, 1), 5
    for _ in range(60):
        trial = best + rng.standard_normal(best.shape).astype(np.float32) * 0.3
        (rows,) = safe.run(["prefill.rows.5"], {"pixel_values": trial})
        assert {0, 10, 11, 12, 13} <= set(rows[0].tolist()) and rows.shape == (1, 7)
        (free,) = bare.run(["prefill.rows.5"], {"pixel_values": trial})
        left = len({10, 11, 12, 13} & set(free[0].tolist()))
        if left < fewest:
            best, fewest = trial, left
    assert fewest < 4, "nothing was dropped even without protection"
    stages, _, _ = flowcut(weights, best, 6, cls, (10, 11, 12, 13))
    np.testing.assert_array_equal(safe.run(["prefill.rows.5"], {"pixel_values": best})[0], stages[5])


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("clip", {"prune": "flowcut"}, "expected target="),
        ("clip", {"prune": "flowcut:target=0"}, "target=0: expected the number of patches that stay, from 1 on"),
        ("clip", {"prune": "flowcut:target=-3"}, "target=-3: expected"),
        ("clip", {"prune": "flowcut:target=4,anchor=sun"}, "expected cls or mean"),
        ("clip", {"prune": "flowcut:target=4,llm-layer=1"}, "no input 'input_ids'"),
        ("clip", {"prune": "flowcut:target=4,keep=1"}, "unknown option 'keep'"),
        ("clip", {"prune": "flowcut:target=4", "accuracy": "exact"}, "-accuracy=exact refuses -prune"),
        ("clip", {"prune": "flowcut:target=4", "logits": "last"}, "it is for a vision encoder"),
        ("clip", {"prune": "flowcut:target=4", "target": "sm_80"}, "-prune with -target=sm_80"),
        ("clip", {"prune": "flowcut:target=4,anchor=mean"}, "all rows but the first, which is no class token"),
        ("clip", {"prune": "flowcut:target=4", "protect": "ids:3"}, "has no input 'input_ids'"),
        ("clip", {"prune": "mustdrop:layers=1"}, "no input 'input_ids'"),
        ("language", {"prune": "flowcut:target=4"}, "it is not a vision encoder's"),
    ],
)  # fmt: skip
def test_what_is_refused_of_encoders(request, compiler, tmp_path, model, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(request.getfixturevalue(model)[0], tmp_path / "out", **options)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
