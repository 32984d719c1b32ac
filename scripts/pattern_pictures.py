"""Draws docs/patterns/images: which blocks each pattern keeps of SmolLM2's attention.

Queries and keys of one layer are taken from the Transformers model on a real text (Python's own
documentation, `pydoc_data.topics`); the kernel that prefill-opt compiles for a pattern says which
blocks it visited (its `block_map`). Nothing is drawn by hand.

    PREFILL_OPT=build/bin/prefill-opt PYTHONPATH=python \\
        python scripts/pattern_pictures.py build/models/smollm2/hf [NAME ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import onnx
from onnx import TensorProto, helper

import prefill_opt

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import ListedColormap  # noqa: E402
from PIL import Image  # noqa: E402
from synthetic_video import video_attention  # noqa: E402

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "patterns" / "images"
TOKENS, LAYER, BLOCK = 4096, 15, 64
Q_HEADS, KV_HEADS, DIM = 9, 3, 64
#: One query head of each KV head.
SHOWN = (1, 3, 7)
#: What is compiled for each picture. Budgets that would keep everything at this length are smaller.
SPECS = {
    "a-shape": "a-shape:init=128,local=1024",
    "streaming": "streaming",
    "tri-shape": "tri-shape:init=128,local=1024,last=512",
    "strided": "strided:local=256",
    "vertical-slash": "vertical-slash:density=0.25",
    "block-topk": "block-topk:top-k=12",
    "block-topp": "block-topp",
    "xattention": "xattention",
    "auto": "auto",
    "sampled": "sampled",
    "sale": "sale",
    "flexprefill": "flexprefill",
    "infllm-v2": "infllm-v2:top-k=12,window=256",
    "grid": "grid:stride=384",
    "q-boundary": "q-boundary:vertical=64,slash=256",
    "2d-boundary": "2d-boundary:vertical=64,slash=256",
    "duo": "duo:sparsity=0.5,rest=sampled",
    "trianglemix": "trianglemix:layers=0",
}


def text_tokens(tokenizer) -> list[int]:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return tokenizer(text[: TOKENS * 8])["input_ids"][:TOKENS]


def attention_inputs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rotated queries and keys of `LAYER`, float32 [1, heads, TOKENS, DIM]."""
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found = {}

    def record(module, query, key, value, mask, **extra):
        if module.layer_idx == LAYER:
            found["q"], found["k"] = query.float().numpy(), key.float().numpy()
        return sdpa_attention_forward(module, query, key, value, mask, **extra)

    AttentionInterface.register("recorded", record)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="recorded", dtype=torch.float32
    )
    ids = text_tokens(AutoTokenizer.from_pretrained(folder))
    with torch.no_grad():
        model.model(torch.tensor([ids]))
    return np.ascontiguousarray(found["q"]), np.ascontiguousarray(found["k"])


def attention_model() -> onnx.ModelProto:
    """One causal attention of SmolLM2's shape."""
    info = helper.make_tensor_value_info
    names = (("q", Q_HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    inputs = [info(name, TensorProto.FLOAT, [1, heads, "s", DIM]) for name, heads in names]
    inputs.append(info("kinds", TensorProto.INT64, [1, "s"]))
    output = info("o", TensorProto.FLOAT, [1, Q_HEADS, "s", DIM])
    node = helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=1)
    graph = helper.make_graph([node], "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def block_map(spec: str, q: np.ndarray, k: np.ndarray, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel for `spec` visited: uint8 [heads, query blocks, key blocks], 1 is a block,
    2 one from which single columns were taken; and the density of each head."""
    name, _, options = spec.partition(":")
    if name == "duo":  # a file of scores: the first KV head stays full, the others stream
        heads = work / "heads.tsv"
        heads.write_text("0.9\t0.2\t0.1\n")
        options = f"heads={heads},{options}"
    spec = f"{name}:dense-below=0,{options}"
    model, out = work / "attention.onnx", work / "out"
    onnx.save(attention_model(), model)
    modality = "kinds" if "boundary" in name else None
    prefill_opt.compile(model, out, sparsify=spec, modality=modality)
    blocks = -(-TOKENS // BLOCK)
    outputs = {
        "o": np.zeros_like(q),
        "density": np.zeros((1, Q_HEADS), np.float32),
        "block_map": np.zeros((1, Q_HEADS, blocks, blocks), np.uint8),
    }
    # Made up: pictures of 576 tokens in the text.
    kinds = np.isin(np.arange(TOKENS) // 64, [*range(8, 17), *range(20, 29), *range(33, 42), *range(50, 59)])
    inputs = {"q": q, "k": k, "v": k}
    if modality:
        inputs["modality"] = kinds[None].astype(np.int64)
    with prefill_opt.Library(out) as library:
        library.run(library.kernels[0], inputs, outputs)
    return outputs["block_map"][0], outputs["density"][0]


def true_mass(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Softmax mass of each block, averaged over its rows: float [heads, blocks, blocks]."""
    blocks = TOKENS // BLOCK
    mass = np.zeros((Q_HEADS, blocks, blocks), np.float32)
    for head in SHOWN:
        scores = q[0, head] @ k[0, head // (Q_HEADS // KV_HEADS)].T / DIM**0.5
        scores[np.triu_indices(TOKENS, 1)] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        mass[head] = p.reshape(blocks, BLOCK, blocks, BLOCK).sum((1, 3)) / BLOCK
    return mass


def draw(path: Path, maps: np.ndarray, titles: list[str], colours, top: float) -> None:
    """One panel for each shown head; 4 pixels a block."""
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(9, 3.3), dpi=90)
    for axis, head, title in zip(axes, SHOWN, titles, strict=True):
        axis.imshow(maps[head], cmap=colours, vmin=0, vmax=top, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_xticks([0, 63], ["key 0", "4,095"], fontsize=7)
        axis.set_yticks([0, 63], ["query 0", "4,095"], fontsize=7, rotation=90, va="center")
    figure.tight_layout()
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[:, :, :3])
    picture.quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of SmolLM2 for Transformers")
    parser.add_argument("names", nargs="*", help="patterns; default: all")
    arguments = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    q, k = attention_inputs(arguments.model)
    causal = np.tril(np.ones((TOKENS // BLOCK,) * 2))
    if not arguments.names:
        mass = true_mass(q, k)
        titles = [f"head {head}" for head in SHOWN]
        colours = matplotlib.colormaps["magma_r"].resampled(12).with_extremes(bad="white")
        shown = np.where(causal > 0, np.log10(np.maximum(mass, 1e-6)) + 5, np.nan)
        draw(IMAGES / "attention.png", shown, titles, colours, 5)
    colours = ListedColormap(["white", "#d9dee7", "#1f4e9c", "#e0912f"])
    for name in arguments.names or SPECS:
        # Text has no frames; lines nearer to each other than blocks are not to be seen.
        tensors = video_attention(TOKENS, ((384, 100), (384, 300), None))[:2] if name == "grid" else (q, k)
        with tempfile.TemporaryDirectory() as work:
            visited, density = block_map(SPECS[name], *tensors, Path(work))
        # 0 in the future, 1 left out, 2 visited, 3 columns only
        maps = np.where(causal > 0, visited + 1, 0)
        share = density if SPECS[name].startswith(("grid", "q-", "2d-")) else (visited == 1).sum((1, 2)) / causal.sum()
        draw(IMAGES / f"{name}.png", maps, [f"head {h}: {share[h]:.0%}" for h in SHOWN], colours, 3)
        print(f"{name:15} {SPECS[name]:45}", " ".join(f"{share[h]:.0%}" for h in SHOWN))
    return 0


if __name__ == "__main__":
    sys.exit(main())
