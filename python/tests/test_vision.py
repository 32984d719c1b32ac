"""Pruning of vision tokens (MustDrop, FlowCut): NumPy float64 written from the paper's formulas, and the limits."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_models import PATHS

import prefill_opt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HIDDEN, HEADS, KV_HEADS, LAYERS, VOCABULARY = 32, 4, 2, 4, 61
DIM = HIDDEN // HEADS


def run(folder, feeds, **options) -> dict[str, np.ndarray]:
    session = prefill_opt.session(folder, log_severity_level=4, **options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def export(module, example, path: Path, names: list[str], outputs: list[str], axes: dict) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
        )


class Store(transformers.DynamicCache):
    """Keeps keys and values as they are: the tracer would put an empty tensor before them."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def update(self, keys, values, *args, **kwargs):
        self.pairs += [keys, values]
        return keys, values


class Language(torch.nn.Module):
    """inputs_embeds -> logits of all rows, then the KV cache."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds):
        cache = Store()
        result = self.model(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True)
        return (result.logits, *cache.pairs)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """(path, weights as float64) of a tiny Llama that takes embeddings."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("language") / "llm.onnx"
    outputs = ["logits", *(f"present.{i}.{n}" for i in range(LAYERS) for n in ("key", "value"))]
    axes = {n: {0: "b", 2 if n.startswith("present") else 1: "s"} for n in ["inputs_embeds", *outputs]}
    export(Language(model), (torch.randn(2, 12, HIDDEN),), path, ["inputs_embeds"], outputs, axes)
    return path, {n: p.double().numpy() for n, p in model.state_dict().items()}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def rotated(x, rows):
    """RoPE, halves; x [heads, n, DIM] at positions `rows`."""
    angle = np.outer(rows, 10000.0 ** (-np.arange(0, DIM, 2) / DIM))
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(weights, embeds, choose):
    """A prompt [n, HIDDEN]: (rows, K, V) of every layer, the last row's logits.

    choose(layer from 1, rows, q, k, v, probabilities) gives which rows stay after it, or None: all.
    """
    x, rows, caches = embeds.astype(np.float64), np.arange(len(embeds)), []
    for number in range(1, LAYERS + 1):
        w = {n.split(".", 3)[3]: p for n, p in weights.items() if n.startswith(f"model.layers.{number - 1}.")}
        n = len(rows)
        y = norm(x, w["input_layernorm.weight"])

        def heads(name, count):
            return (y @ w[f"self_attn.{name}_proj.weight"].T).reshape(n, count, DIM).transpose(1, 0, 2)

        q, k, v = rotated(heads("q", HEADS), rows), rotated(heads("k", KV_HEADS), rows), heads("v", KV_HEADS)
        caches.append((rows, k, v))
        group = HEADS // KV_HEADS
        s = np.einsum("hic,hjc->hij", q, k.repeat(group, 0)) / np.sqrt(DIM)
        p = softmax(np.where(np.tri(n, dtype=bool), s, -np.inf))
        x = x + (p @ v.repeat(group, 0)).transpose(1, 0, 2).reshape(n, -1) @ w["self_attn.o_proj.weight"].T
        y = norm(x, w["post_attention_layernorm.weight"])
        gate = y @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
        stay = choose(number, rows, q, k, v, p)
        if stay is not None:
            x, rows = x[stay], rows[stay]
    return caches, norm(x[-1], weights["model.norm.weight"]) @ weights["lm_head.weight"].T


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


def prompt(seed, *parts):
    """Embeddings [n, HIDDEN] and which rows are vision: parts are numbers of rows, text first."""
    rng = np.random.default_rng(seed)
    vision = np.concatenate([np.full(part, i % 2 == 1) for i, part in enumerate(parts)])
    return rng.standard_normal((len(vision), HIDDEN)).astype(np.float32), vision


def feeds_of(embeds, vision):
    return {"inputs_embeds": embeds[None], "vision_rows": vision[None]}


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1.0, np.abs(expected).max()), rtol=0)


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
        ({"prune": "mustdrop"}, "layer 14 is not there: the model has 4 layers; name some with layers="),
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


class Encoder(torch.nn.Module):
    """pixel_values -> all rows, and with `parts` the first, and all but the first."""

    def __init__(self, model, parts):
        super().__init__()
        self.model, self.parts = model, parts

    def forward(self, pixel_values):
        rows = self.model(pixel_values=pixel_values).last_hidden_state
        return (rows, rows[:, 0], rows[:, 1:]) if self.parts else rows


ENCODER_LAYERS, PATCHES = 6, 36


def encoder_model(tmp_path_factory, kind, layers=ENCODER_LAYERS, parts=True, **options):
    """(path, weights as float64, hasClassToken) of a tiny CLIP or SigLIP encoder of 6 x 6 patches."""
    torch.manual_seed(1)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, image_size=36, patch_size=6)
    config = getattr(transformers, f"{kind}VisionConfig")(num_hidden_layers=layers, **sizes, **options)
    model = getattr(transformers, f"{kind}VisionModel")(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.3)
    path = tmp_path_factory.mktemp(kind) / "vit.onnx"
    names = ["last_hidden_state", "first", "patches"] if parts else ["last_hidden_state"]
    export(
        Encoder(model, parts), (torch.randn(2, 3, 36, 36),), path, ["pixel_values"], names,
        {n: {0: "b"} for n in ["pixel_values", *names]},
    )  # fmt: skip
    return path, {n: p.double().numpy() for n, p in model.state_dict().items()}, kind == "CLIP"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return encoder_model(tmp_path_factory, "CLIP")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return encoder_model(tmp_path_factory, "Siglip", layers=5, parts=False, vision_use_head=False)


def layer_norm(x, weights, name, epsilon):
    weight, bias = (
        next(p for n, p in weights.items() if n.endswith(f"{name}.{part}")) for part in ("weight", "bias")
    )
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + epsilon) * weight + bias


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

    final_norm: without a class token, the last norm too. forced: rows to keep by layer, instead.
    """
    weights = {n.removeprefix("vision_model."): p for n, p in weights.items()}
    epsilon = 1e-5 if cls else 1e-6
    b = len(pixels)
    patches = pixels.astype(np.float64).reshape(b, 3, 6, 6, 6, 6).transpose(0, 2, 4, 1, 3, 5).reshape(b, PATCHES, -1)
    kernel = weights["embeddings.patch_embedding.weight"].reshape(32, -1)
    x = patches @ kernel.T + (0 if cls else weights["embeddings.patch_embedding.bias"])
    if cls:
        x = np.concatenate([np.tile(weights["embeddings.class_embedding"], (b, 1, 1)), x], 1)
    x = x + weights["embeddings.position_embedding.weight"]
    if cls:
        x = layer_norm(x, weights, "pre_layrnorm", epsilon)
    layers = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("encoder.layers."))
    rows = np.tile(np.arange(x.shape[1]), (b, 1))
    flow, stages, tight = np.zeros(rows.shape), {}, np.inf
    for number in range(1, layers + 1):
        w = {n.split(".", 3)[3]: p for n, p in weights.items() if n.startswith(f"encoder.layers.{number - 1}.")}

        def linear(y, name):
            return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        y = layer_norm(x, w, "layer_norm1", epsilon)
        q, k, v = (
            linear(y, f"self_attn.{n}_proj").reshape(*rows.shape, 4, 8).transpose(0, 2, 1, 3) for n in "qkv"
        )
        p = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(8))
        o = (p @ v).transpose(0, 2, 1, 3).reshape(*rows.shape, 32)
        x = x + linear(o, "self_attn.out_proj")
        y = linear(layer_norm(x, w, "layer_norm2", epsilon), "mlp.fc1")
        if cls:
            y = y / (1 + np.exp(-1.702 * y))
        else:
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, "mlp.fc2")

        def anchor(z):
            return z[:, :, :1] if cls else z.mean(2, keepdims=True)

        shares = softmax(anchor(q) @ k.transpose(0, 1, 3, 2) / np.sqrt(8))[:, :, 0].mean(1)[:, int(cls) :]
        values = softmax(anchor(v) @ v.transpose(0, 1, 3, 2))[:, :, 0].mean(1)[:, int(cls) :]
        shares, values = (z / z.sum(1, keepdims=True) for z in (shares, values))
        size = np.abs(v.mean(1)).sum(-1)[:, int(cls) :]
        flow[:, int(cls) :] = flow[:, int(cls) :] / 2 + (shares + values) * size / 2
        left = layers - 1 - number
        if forced is not None and number in forced:
            place = np.array([np.searchsorted(a, b) for a, b in zip(rows, forced[number], strict=True)])
            rows, flow = (np.take_along_axis(z, place, 1) for z in (rows, flow))
            x = np.take_along_axis(x, place[..., None], 1)
        if forced is not None or left < 0 or left % 2:
            continue
        drop = max(flow_drop(s, target, left) for s in shares)
        stay = []
        for entry in range(b):
            fixed = [i for i, r in enumerate(rows[entry]) if r < cls or r in protected]
            rest = [i for i in np.argsort(-flow[entry], kind="stable") if i not in fixed]
            count = rows.shape[1] - drop - len(fixed)
            if drop:
                tight = min(tight, flow[entry][rest[count - 1]] / flow[entry][rest[count]] - 1)
            stay.append(sorted(fixed + rest[:count]))
        rows, flow = (np.take_along_axis(z, np.array(stay), 1) for z in (rows, flow))
        x = np.take_along_axis(x, np.array(stay)[..., None], 1)
        stages[number] = rows
    if final_norm and not cls:
        x = layer_norm(x, weights, "post_layernorm", epsilon)
    return stages, x, tight


def images(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 3, 36, 36)).astype(np.float32)


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
