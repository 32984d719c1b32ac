"""MustDrop in a vision encoder (merged windows, key set): NumPy float64 written from the formulas, and the limits."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from vision import (
    HIDDEN,
    anchor_shares,
    close,
    encode,
    encoder_model,
    export,
    images,
    project,
    run,
    torch,
    tower,
    tower_weights,
    transformers,
)

import prefill_opt


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """CLIP of 3 layers, 6 x 6 patches and a class token."""
    return encoder_model(tmp_path_factory, "CLIP", layers=3)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """SigLIP of 3 layers, 6 x 6 patches, no class token."""
    return encoder_model(tmp_path_factory, "Siglip", layers=3, parts=False, vision_use_head=False)


def window_rows(window, height, width, cls):
    """Rows of a window's patches, windows counted row by row."""
    across = 6 // width
    top, left = window // across * height, window % across * width
    return [int(cls) + (top + i) * 6 + left + j for i in range(height) for j in range(width)]


def merge(x, height, width, threshold, cls, protected=()):
    """One layer's result [b, n, d]: (merged [b, m, d], rows [b, m], windows merged, tightest decision)."""
    count = 36 // (height * width)
    windows = [window_rows(w, height, width, cls) for w in range(count)]
    similarity = np.empty((len(x), count))
    for b, image in enumerate(x):
        unit = image / np.linalg.norm(image, axis=-1, keepdims=True)
        for w, rows in enumerate(windows):
            cosine = unit[rows] @ unit[rows].T
            similarity[b, w] = (cosine.sum() - np.trace(cosine)) / (len(rows) * (len(rows) - 1))
    tight = np.abs(similarity - threshold).min()
    free = np.array([not set(rows) & set(protected) for rows in windows])
    r = min(int((free & (s >= threshold)).sum()) for s in similarity)
    merged, kept = [], []
    for image, s in zip(x, similarity, strict=True):
        order = [w for w in np.argsort(-s, kind="stable") if free[w]]
        if r and r < len(order):
            tight = min(tight, s[order[r - 1]] - s[order[r]])
        first, gone = order[:r], {i for w in order[:r] for i in windows[w]}
        rest = [i for i in range(int(cls), len(image)) if i not in gone]
        parts = [image[: int(cls)], *(image[windows[w]].mean(0)[None] for w in first), image[rest]]
        merged.append(np.concatenate(parts))
        kept.append([*range(int(cls)), *(windows[w][0] for w in first), *rest])
    return np.array(merged), np.array(kept), r, tight


def mustdrop(weights, pixels, cls, window=None, key=0.0, protected=()):
    """Images [b, 3, 36, 36]: (last_hidden_state, rows, windows merged, key rows, tightest decision)."""
    rows, count, tight, shares = np.tile(np.arange(36 + cls), (len(pixels), 1)), 0, np.inf, None

    def after(number, x, q, k, v):
        nonlocal rows, count, tight, shares
        shares = anchor_shares(q, k, cls)
        if number == 1 and window:
            x, rows, count, tight = merge(x, *window, cls, protected)
        return x

    x = encode(weights, pixels, cls, after)
    keys = np.zeros(shares.shape, bool)
    if key:
        most = int(np.ceil(key * shares.shape[1] - 1e-9))
        for b, s in enumerate(shares):
            order = np.argsort(-s, kind="stable")
            keys[b, order[:most]] = True
            if most < len(s):
                tight = min(tight, s[order[most - 1]] / s[order[most]] - 1)
    return x, rows, count, keys, tight


@pytest.mark.parametrize(
    "name, window, key, count",
    [
        ("clip", (3, 3, 0.1), 0.08, 1),
        ("clip", (3, 3, 0.05), 0.25, 3),
        ("clip", (2, 3, 0.1), 0, 2),
        ("clip", (1, 2, 0.2), 1, 2),
        ("clip", (6, 6, -1), 0.08, 2),
        ("clip", (3, 3, 0.99), 0.08, 1),
        ("siglip", (3, 3, 0.05), 0.1, 2),
    ],
)
def test_encoder_is_what_numpy_gives(request, compiled, name, window, key, count):
    path, weights, cls = request.getfixturevalue(name)
    height, width, threshold = window
    folder = compiled(path, prune=f"mustdrop:vit-merge={height}x{width}@{threshold},key={key}")
    pixels = images(height * width + count, count)
    x, rows, merged, keys, tight = mustdrop(weights, pixels, cls, window, key)
    assert tight > 1e-4, "the images decide nothing clearly"
    assert (threshold == 0.99) == (merged == 0)
    found = run(folder, {"pixel_values": pixels})
    np.testing.assert_array_equal(found["prefill.rows.1"], rows)
    np.testing.assert_array_equal(found["prefill.merged"], [merged])
    close(found["last_hidden_state"], x)
    if cls:
        close(found["first"], x[:, 0])
        close(found["patches"], x[:, 1:])
    assert ("prefill.key_rows" in found) == (key > 0)
    if key:
        np.testing.assert_array_equal(found["prefill.key_rows"], keys)
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert {k: entry["prune"][k] for k in ("method", "exact", "layers", "vit_merge", "key")} == {
        "method": "mustdrop", "exact": False, "layers": [1], "key": key,
        "vit_merge": {"height": height, "width": width, "similarity": threshold},
    }  # fmt: skip


class Grid(torch.nn.Module):
    """Rows [b, n, 32] that are an encoder's input -> rows: what goes in is what is merged, but for a little."""

    def __init__(self, layers, spread=0.01):
        super().__init__()
        config = transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=layers
        )
        self.encoder = transformers.models.clip.modeling_clip.CLIPEncoder(config)
        with torch.no_grad():
            for name, value in self.encoder.named_parameters():
                value.normal_(1 if "norm" in name and name.endswith("weight") else 0, spread)

    def forward(self, rows):
        return self.encoder(inputs_embeds=rows).last_hidden_state


def export_grid(path, rows, layers=2):
    torch.manual_seed(0)
    axes = {n: {0: "b"} for n in ("rows", "out")}
    export(Grid(layers), (torch.randn(2, rows, 32),), path, ["rows"], ["out"], axes)
    return path


def alike_windows(seed):
    """Rows [1, 37, 32] of a grid: windows 1 and 2 of 3 x 3 are constant."""
    rows = np.random.default_rng(seed).standard_normal((1, 37, 32)).astype(np.float32)
    for window in (1, 2):
        own = window_rows(window, 3, 3, cls=True)
        rows[0, own] = rows[0, own[0]]
    return rows


def test_two_constant_windows_of_a_grid_merge(tmp_path, compiled):
    """6 x 6 patches, windows 1 and 2 of 3 x 3 constant: exactly these become one row each."""
    folder = compiled(export_grid(tmp_path / "grid.onnx", 37), prune="mustdrop:vit-merge=3x3@0.8,key=0.01")
    rows = alike_windows(0)
    found = run(folder, {"rows": rows})
    np.testing.assert_array_equal(found["prefill.merged"], [2])
    order = found["prefill.rows.1"][0]
    np.testing.assert_array_equal(order[:3], [0, 4, 19])
    gone = {i for w in (1, 2) for i in window_rows(w, 3, 3, cls=True)}
    np.testing.assert_array_equal(order[3:], [i for i in range(1, 37) if i not in gone])
    assert found["out"].shape == (1, 37 - 16, 32)
    # A key set of one patch, ceil(0.01 * 20).
    assert found["prefill.key_rows"].shape == (1, 20) and found["prefill.key_rows"].sum() == 1
    # In a batch with an image without such windows nothing is merged.
    other = np.random.default_rng(1).standard_normal((1, 37, 32)).astype(np.float32)
    both = run(folder, {"rows": np.concatenate([rows, other])})
    np.testing.assert_array_equal(both["prefill.merged"], [0])
    np.testing.assert_array_equal(both["prefill.rows.1"], [range(37)] * 2)


def merge_alone(folder, kind):
    """The node MergeWindows of a compiled model with the casts around it, and one to float32.

    ONNX Runtime has few operators of bfloat16 on CPUs: the whole model may not run there.
    """
    model = onnx.load(folder / "model.onnx")
    (node,) = (n for n in model.graph.node if n.op_type == "MergeWindows")
    (before,) = (n for n in model.graph.node if node.input[0] in n.output)
    (after,) = (n for n in model.graph.node if node.output[0] in n.input)
    assert (before.op_type, after.op_type) == ("Cast", "Cast")
    info = onnx.helper.make_tensor_value_info
    wide = onnx.helper.make_node("Cast", after.output[:1], ["wide"], to=onnx.TensorProto.FLOAT)
    outputs = [info("wide", onnx.TensorProto.FLOAT, None), *(info(n, onnx.TensorProto.INT64, None) for n in node.output[1:])]
    inputs = [info(before.input[0], kind, [None, 37, 32]), info(node.input[1], onnx.TensorProto.BOOL, [None, 37])]
    graph = onnx.helper.make_graph([before, node, after, wide], "merge", inputs, outputs)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(folder / "libprefill_model.so"))
    return onnxruntime.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision(tmp_path, compiled, kind, opset):
    """Windows are merged in float64 and rounded to the type; the model goes on in it."""
    module = Grid(2, spread=0).to(getattr(torch, kind))
    example = torch.randn(1, 37, 32).to(getattr(torch, kind))
    path = tmp_path / f"{kind}.onnx"
    export(module, (example,), path, ["rows"], ["out"], {n: {0: "b"} for n in ("rows", "out")}, opset)
    folder = compiled(path, prune="mustdrop:vit-merge=3x3@0.8,key=0.1")
    numbers = np.dtype(getattr(ml_dtypes, kind) if kind == "bfloat16" else kind)
    rows = np.concatenate([alike_windows(0), alike_windows(1)])
    rows[:, window_rows(2, 3, 3, cls=True)] += np.random.default_rng(2).standard_normal((2, 9, 32)) / 10
    rows = rows.astype(numbers)
    expected, order, merged, tight = merge(rows.astype(np.float64), 3, 3, 0.8, True)
    assert merged == 2 and tight > 1e-3
    expected = expected.astype(np.float32).astype(numbers)
    code = onnx.helper.np_dtype_to_tensor_dtype(numbers)
    value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    session = merge_alone(folder, code)
    names = [item.name for item in session.get_inputs()]
    feeds = {names[0]: value(rows.view(np.uint16), code), names[1]: value(np.zeros((2, 37), bool), 9)}
    y, found, count = (v.numpy() for v in session.run_with_ort_values(None, feeds))
    np.testing.assert_array_equal(y, expected.astype(np.float32))
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(count, [2])
    if kind == "float16":  # layers that add nothing: what comes out are the merged rows
        whole = run(folder, {"rows": rows})
        np.testing.assert_array_equal(whole["out"], expected)
        assert whole["prefill.key_rows"].sum() == 2 * 2


def test_protected_patches_are_not_merged(clip, compiled):
    path, weights, cls = clip
    prune = "mustdrop:vit-merge=3x3@-1"
    folder = compiled(path, prune=prune, protect="rows:15-16,system")
    pixels = images(8, 2)
    fixed = np.zeros((2, 37), bool)
    fixed[1, 36] = True
    found = run(folder, {"pixel_values": pixels, "protected_rows": fixed})
    # 15 and 16 are in windows 0 and 1; the second image's last patch in window 3.
    _, rows, merged, _, _ = mustdrop(weights, pixels, cls, (3, 3, -1), protected=(15, 16))
    assert merged == 2
    np.testing.assert_array_equal(found["prefill.merged"], [1])
    np.testing.assert_array_equal(found["prefill.rows.1"][1][:2], [0, 19])
    assert {15, 16} <= set(found["prefill.rows.1"][0].tolist())
    everything = run(compiled(path, prune=prune, protect="rows:0-99"), {"pixel_values": pixels})
    np.testing.assert_array_equal(everything["prefill.merged"], [0])
    plain = run(compiled(path), {"pixel_values": pixels})
    close(everything["last_hidden_state"], plain["last_hidden_state"])


@pytest.mark.parametrize("prune", ["mustdrop:vit-merge=1x1@0.8", "mustdrop:key=0", "mustdrop:vit-merge=1x1@0,key=0"])
def test_nothing_asked_for_is_the_model_itself(clip, compiled, prune):
    kept = compiled(clip[0], prune=prune, accuracy="exact")
    assert (kept / "model.onnx").read_bytes() == (compiled(clip[0]) / "model.onnx").read_bytes()
    assert json.loads((kept / "manifest.json").read_text())["exact"] is True


@pytest.mark.parametrize("key, marked", [(0.08, 3), (1, 36), (0.000001, 1)])
def test_a_key_set_alone_changes_nothing_else(clip, compiled, key, marked):
    path, weights, cls = clip
    folder = compiled(path, prune=f"mustdrop:key={key}", accuracy="exact")
    pixels = images(2, 2)
    _, _, _, keys, tight = mustdrop(weights, pixels, cls, key=key)
    assert tight > 1e-4 and (keys.sum(1) == marked).all()
    found, plain = run(folder, {"pixel_values": pixels}), run(compiled(path), {"pixel_values": pixels})
    np.testing.assert_array_equal(found.pop("prefill.key_rows"), keys)
    assert list(found) == list(plain)
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value)


def test_with_a_projector(tmp_path, compiled):
    """LLaVA's tower and projector: the features are those of the class token's row left out."""
    path, weights = tower(tmp_path, "CLIP", 4, -2, "default")
    folder = compiled(path, prune="mustdrop:vit-merge=3x3@0.1,key=0.08")
    pixels = images(14, 2)
    x, rows, merged, keys, tight = mustdrop(tower_weights(weights, 3), pixels, True, (3, 3, 0.1), 0.08)
    assert merged and tight > 1e-4
    found = run(folder, {"pixel_values": pixels})
    close(found["image_features"], project(weights, x[:, 1:]))
    np.testing.assert_array_equal(found["prefill.rows.1"], rows)
    np.testing.assert_array_equal(found["prefill.key_rows"], keys)
    assert found["prefill.key_rows"].shape == found["image_features"].shape[:2]


def test_key_set_protects_in_the_language_model(clip, language, compiled):
    """What the encoder marks never goes in the language model, whatever its thresholds are."""
    encoder = compiled(clip[0], prune="mustdrop:vit-merge=3x3@0.1,key=0.2")
    image = run(encoder, {"pixel_values": images(9, 1)})
    features, keys = image["patches"], image["prefill.key_rows"]
    text = np.random.default_rng(3).standard_normal((1, 9, HIDDEN)).astype(np.float32)
    embeds = np.concatenate([text[:, :4], features, text[:, 4:]], 1)

    def along(marks):
        return np.concatenate([np.zeros((1, 4), bool), marks, np.zeros((1, 5), bool)], 1)

    folder = compiled(
        language[0], logits="last", prune="mustdrop:layers=1,global=1,individual=1", protect="system,last:1"
    )
    vision = along(np.ones_like(keys))
    found = run(folder, {"inputs_embeds": embeds, "vision_rows": vision, "protected_rows": along(keys)})
    np.testing.assert_array_equal(found["prefill.rows.1"][0], np.flatnonzero(~vision[0] | along(keys)[0]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prune": "mustdrop:vit-merge=4x4@0.8"}, "a grid of 6 x 6 patches has no whole windows of 4 x 4"),
        ({"prune": "mustdrop:vit-merge=3x3@0.8,anchor=mean"}, "its 37 patches are no square"),
        ({"prune": "mustdrop:vit-merge=3x3"}, "vit-merge=3x3: expected the sides of a window"),
        ({"prune": "mustdrop:vit-merge=3@0.8"}, "as in 3x3@0.8"),
        ({"prune": "mustdrop:vit-merge=0x3@0.8"}, "as in 3x3@0.8"),
        ({"prune": "mustdrop:vit-merge=3x3@1.5"}, "from -1 to 1"),
        ({"prune": "mustdrop:vit-merge=3x3@nan"}, "from -1 to 1"),
        ({"prune": "mustdrop:key=1.5"}, "key=1.5: expected the share of patches"),
        ({"prune": "mustdrop:key=nan"}, "key=nan: expected"),
        ({"prune": "mustdrop:key=0.5,anchor=sun"}, "expected cls or mean"),
        ({"prune": "mustdrop:vit-merge=3x3@0.8,layers=2"}, "compile each with its own"),
        ({"prune": "mustdrop:global=0.1,key=0.8"}, "compile each with its own"),
        ({"prune": "mustdrop:vit-merge=3x3@0.8", "accuracy": "exact"}, "-accuracy=exact refuses -prune"),
        ({"prune": "mustdrop:vit-merge=3x3@0.8", "logits": "last"}, "it is for a vision encoder"),
        ({"prune": "mustdrop:vit-merge=3x3@0.8", "target": "sm_80"}, "-prune with -target=sm_80"),
        ({"prune": "mustdrop:vit-merge=3x3@0.8", "protect": "ids:3"}, "has no input 'input_ids'"),
    ],
)
def test_what_is_refused(clip, compiler, tmp_path, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(clip[0], tmp_path / "out", **options)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "rows, layers, message",
    [
        (39, 2, "whether the first of 39 rows is a class token cannot be told"),
        (26, 2, "a grid of 5 x 5 patches has no whole windows of 3 x 3"),
        (37, 1, "the model has 1 layers, too few"),
    ],
)
def test_grids_that_are_refused(compiler, tmp_path, rows, layers, message):
    path = export_grid(tmp_path / "grid.onnx", rows, layers)
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(path, tmp_path / "out", prune="mustdrop:vit-merge=3x3@0.8")


def test_a_language_model_is_refused(language, compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match="it is not a vision encoder's"):
        prefill_opt.compile(language[0], tmp_path / "out", prune="mustdrop:vit-merge=3x3@0.8")
