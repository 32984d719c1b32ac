"""Set-ups of the tests of vision pruning: tiny models, exported, and the same in NumPy float64.

A language model that takes embeddings, CLIP and SigLIP encoders of 6 x 6 patches, and LLaVA's tower
with its projector. What a method adds (which rows go) is a function that the test gives.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

import prefill_opt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HIDDEN, HEADS, KV_HEADS, LAYERS, VOCABULARY = 32, 4, 2, 4, 61
DIM = HIDDEN // HEADS
PATCHES, TEXT = 36, 24
SIZES = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, image_size=36, patch_size=6)


def run(folder, feeds, **options) -> dict[str, np.ndarray]:
    """All outputs of a compiled model, by name."""
    session = prefill_opt.session(folder, log_severity_level=4, **options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def export(module, example, path: Path, names: list[str], outputs: list[str], axes: dict, opset=17) -> None:
    """The module as a file, traced with `example`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            dynamo=False,
            opset_version=opset,
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


class Given(Store):
    """Puts the keys and values of a cache, a pair for every layer, before new ones."""

    def __init__(self, caches):
        super().__init__()
        self.caches = caches

    def update(self, keys, values, layer_idx, *args, **kwargs):
        earlier = self.caches[2 * layer_idx : 2 * layer_idx + 2]
        return super().update(*(torch.cat(pair, 2) for pair in zip(earlier, (keys, values), strict=True)))


class Step(torch.nn.Module):
    """inputs_embeds [1, 1, HIDDEN], position_ids [1, 1], caches -> logits, caches with the new row."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds, position_ids, *caches):
        cache = Given(caches)
        result = self.model(
            inputs_embeds=inputs_embeds, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        return (result.logits, *cache.pairs)


def make_language():
    """A tiny Llama, always the same."""
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
    return transformers.LlamaForCausalLM(config)


def language_model(folder):
    """(path, weights as float64) of the tiny Llama, which takes embeddings."""
    model = make_language()
    path = folder / "llm.onnx"
    outputs = ["logits", *(f"present.{i}.{n}" for i in range(LAYERS) for n in ("key", "value"))]
    axes = {n: {0: "b", 2 if n.startswith("present") else 1: "s"} for n in ["inputs_embeds", *outputs]}
    export(Language(model), (torch.randn(2, 12, HIDDEN),), path, ["inputs_embeds"], outputs, axes)
    return path, {n: p.double().numpy() for n, p in model.state_dict().items()}


def step_model(folder):
    """Path of a decode step of the tiny Llama; every layer has a cache of its own length."""
    names = [f"{i}.{n}" for i in range(LAYERS) for n in ("key", "value")]
    inputs = ["inputs_embeds", "position_ids", *(f"past.{n}" for n in names)]
    example = (torch.randn(1, 1, HIDDEN), torch.tensor([[12]]))
    example += tuple(torch.randn(1, KV_HEADS, 12 - i // 2, DIM) for i in range(len(names)))
    axes = {f"past.{n}": {2: f"n{i // 2}"} for i, n in enumerate(names)}
    path = folder / "step.onnx"
    export(Step(make_language()), example, path, inputs, ["logits", *(f"present.{n}" for n in names)], axes)
    return path


def softmax(x):
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, weight):
    """RMS norm."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def rotated(x, rows):
    """RoPE, halves; x [heads, n, DIM] at positions `rows`."""
    angle = np.outer(rows, 10000.0 ** (-np.arange(0, DIM, 2) / DIM))
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(weights, embeds, choose, first=0, past=None):
    """A prompt [n, HIDDEN]: (rows, K, V) of every layer, the last row's logits.

    Rows are at positions from `first` on; past: what is cached before them, as it is given.
    choose(layer from 1, rows, q, k, v, probabilities) gives which rows stay after it, or None: all.
    """
    x, rows, caches = embeds.astype(np.float64), first + np.arange(len(embeds)), []
    for number in range(1, LAYERS + 1):
        w = {n.split(".", 3)[3]: p for n, p in weights.items() if n.startswith(f"model.layers.{number - 1}.")}
        n = len(rows)
        y = norm(x, w["input_layernorm.weight"])

        def heads(name, count):
            return (y @ w[f"self_attn.{name}_proj.weight"].T).reshape(n, count, DIM).transpose(1, 0, 2)

        q, k, v = rotated(heads("q", HEADS), rows), rotated(heads("k", KV_HEADS), rows), heads("v", KV_HEADS)
        seen = rows
        if past is not None:
            earlier = past[number - 1]
            seen = np.concatenate([earlier[0], rows])
            k, v = (np.concatenate(pair, 1) for pair in zip(earlier[1:], (k, v), strict=True))
        caches.append((seen, k, v))
        group = HEADS // KV_HEADS
        s = np.einsum("hic,hjc->hij", q, k.repeat(group, 0)) / np.sqrt(DIM)
        p = softmax(np.where(np.tri(n, len(seen), len(seen) - n, dtype=bool), s, -np.inf))
        x = x + (p @ v.repeat(group, 0)).transpose(1, 0, 2).reshape(n, -1) @ w["self_attn.o_proj.weight"].T
        y = norm(x, w["post_attention_layernorm.weight"])
        gate = y @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
        stay = choose(number, rows, q, k, v, p)
        if stay is not None:
            x, rows = x[stay], rows[stay]
    return caches, norm(x[-1], weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def prompt(seed, *parts):
    """Embeddings [n, HIDDEN] and which rows are vision: parts are numbers of rows, text first."""
    rng = np.random.default_rng(seed)
    vision = np.concatenate([np.full(part, i % 2 == 1) for i, part in enumerate(parts)])
    return rng.standard_normal((len(vision), HIDDEN)).astype(np.float32), vision


def feeds_of(embeds, vision):
    """Inputs of the language model, a batch of 1."""
    return {"inputs_embeds": embeds[None], "vision_rows": vision[None]}


def close(found, expected):
    """Equal but for the rounding of float32."""
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1.0, np.abs(expected).max()), rtol=0)


class Encoder(torch.nn.Module):
    """pixel_values -> all rows, and with `parts` the first, and all but the first."""

    def __init__(self, model, parts):
        super().__init__()
        self.model, self.parts = model, parts

    def forward(self, pixel_values):
        rows = self.model(pixel_values=pixel_values).last_hidden_state
        return (rows, rows[:, 0], rows[:, 1:]) if self.parts else rows


def encoder_model(tmp_path_factory, kind, layers, parts=True, **options):
    """(path, weights as float64, hasClassToken) of a tiny CLIP or SigLIP encoder of 6 x 6 patches."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}VisionConfig")(num_hidden_layers=layers, **SIZES, **options)
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


def layer_norm(x, weights, name, epsilon):
    """By the weights whose names end with `name`.weight and .bias."""
    weight, bias = (
        next(p for n, p in weights.items() if n.endswith(f"{name}.{part}")) for part in ("weight", "bias")
    )
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def encode(weights, pixels, cls, after, final_norm=True):
    """Images [b, 3, 36, 36] through a CLIP or SigLIP encoder: the last layer's rows [b, rows, 32].

    after(number of the layer from 1, x, q, k, v) gives what the next layer gets, from x [b, rows, 32].
    final_norm: without a class token, the last norm too.
    """
    weights = {n.removeprefix("vision_model."): p for n, p in weights.items()}
    epsilon = 1e-5 if cls else 1e-6
    b = len(pixels)
    patches = pixels.astype(np.float64).reshape(b, 3, 6, 6, 6, 6).transpose(0, 2, 4, 1, 3, 5).reshape(b, PATCHES, -1)
    x = patches @ weights["embeddings.patch_embedding.weight"].reshape(32, -1).T
    if cls:
        x = np.concatenate([np.tile(weights["embeddings.class_embedding"], (b, 1, 1)), x], 1)
    else:
        x = x + weights["embeddings.patch_embedding.bias"]
    x = x + weights["embeddings.position_embedding.weight"]
    if cls:
        x = layer_norm(x, weights, "pre_layrnorm", epsilon)
    for number in range(1, count_layers(weights) + 1):
        w = {n.split(".", 3)[3]: p for n, p in weights.items() if n.startswith(f"encoder.layers.{number - 1}.")}
        shape = x.shape[:2]

        def linear(y, name):
            return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        y = layer_norm(x, w, "layer_norm1", epsilon)
        q, k, v = (linear(y, f"self_attn.{n}_proj").reshape(*shape, 4, 8).transpose(0, 2, 1, 3) for n in "qkv")
        p = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(8))
        x = x + linear((p @ v).transpose(0, 2, 1, 3).reshape(*shape, 32), "self_attn.out_proj")
        y = linear(layer_norm(x, w, "layer_norm2", epsilon), "mlp.fc1")
        if cls:
            y = y / (1 + np.exp(-1.702 * y))
        else:
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = after(number, x + linear(y, "mlp.fc2"), q, k, v)
    if final_norm and not cls:
        x = layer_norm(x, weights, "post_layernorm", epsilon)
    return x


def count_layers(weights):
    """Layers of an encoder."""
    return 1 + max(int(n.split(".layers.")[1].split(".")[0]) for n in weights if ".layers." in n)


def anchor_of(z, cls):
    """The row that asks, [b, heads, 1, d]: the class token, or the mean of all."""
    return z[:, :, :1] if cls else z.mean(2, keepdims=True)


def anchor_shares(q, k, cls):
    """The mean over the heads of what the anchor's attention gives to each patch, [b, patches]."""
    scores = anchor_of(q, cls) @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    return softmax(scores)[:, :, 0].mean(1)[:, int(cls) :]


def images(seed, count):
    """Noise, float32 [count, 3, 36, 36]."""
    return np.random.default_rng(seed).standard_normal((count, 3, 36, 36)).astype(np.float32)


class Tower(torch.nn.Module):
    """pixel_values -> image features of a LLaVA model: layer `layer` of its tower, projected.

    `pooled`: the tower's pooled output too, for which the last layer is needed.
    """

    def __init__(self, model, layer, strategy, pooled=False):
        super().__init__()
        self.model, self.layer, self.strategy, self.pooled = model, layer, strategy, pooled

    def forward(self, pixel_values):
        outputs = self.model.vision_tower(pixel_values, output_hidden_states=True)
        rows = outputs.hidden_states[self.layer]
        if self.strategy == "default":
            rows = rows[:, 1:]
        features = self.model.multi_modal_projector(rows)
        return (features, outputs.pooler_output) if self.pooled else features


def tower(folder, kind, layers, layer, strategy, name="tower", pooled=False):
    """(path, weights as float64) of a tiny LLaVA's tower and projector."""
    torch.manual_seed(3)
    vision = getattr(transformers, f"{kind}VisionConfig")(num_hidden_layers=layers, **SIZES)
    if kind == "Siglip":
        vision.vision_use_head = False
    text = transformers.LlamaConfig(
        vocab_size=40, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=layer)
    model = transformers.LlavaModel(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(1 if "norm" in key and key.endswith("weight") else 0, 0.3)
    path = folder / f"{name}.onnx"
    names = ["image_features", "pooled"] if pooled else ["image_features"]
    export(
        Tower(model, layer, strategy, pooled), (torch.randn(2, 3, 36, 36),), path, ["pixel_values"], names,
        {n: {0: "b"} for n in ["pixel_values", *names]},
    )  # fmt: skip
    return path, {n: p.double().numpy() for n, p in model.state_dict().items()}


def project(weights, rows):
    """LLaVA's projector: Linear, GELU, Linear."""
    w = {n.removeprefix("multi_modal_projector."): p for n, p in weights.items()}
    x = rows @ w["linear_1.weight"].T + w["linear_1.bias"]
    x = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x @ w["linear_2.weight"].T + w["linear_2.bias"]


def tower_weights(weights, layers):
    """Of the tower, with `layers` layers."""
    own = {n.removeprefix("vision_tower."): p for n, p in weights.items() if n.startswith("vision_tower.")}
    own = {n.removeprefix("vision_model."): p for n, p in own.items()}
    return {
        n: p for n, p in own.items() if not n.startswith("encoder.layers.") or int(n.split(".")[2]) < layers
    }
