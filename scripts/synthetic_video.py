"""Attention as video models have it, made up: what `grid` finds of it and how long that takes.

Keys and queries of tokens at the same place of their frames are alike (slashes), all queries like
the keys at one place (a vertical line), and queries at that place like everything (a horizontal
line); the first keys take their part as well. One head of three has nothing of all that.

    PREFILL_OPT=build/bin/prefill-opt PYTHONPATH=python python scripts/synthetic_video.py [TOKENS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import prefill_opt

Q_HEADS, KV_HEADS, DIM = 9, 3, 64
#: Tokens of a frame and the line's place in it, per KV head; none: a head without frames.
FRAMES = ((128, 17), (196, 100), None)
#: Logit of two tokens at the same place.
STRENGTH = 9.0


def video_attention(
    tokens: int, frames: tuple = FRAMES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries [1, 9, tokens, 64], keys and values [1, 3, tokens, 64], float32."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((1, Q_HEADS, tokens, DIM))
    k = rng.standard_normal((1, KV_HEADS, tokens, DIM))
    v = rng.standard_normal((1, KV_HEADS, tokens, DIM))
    length = (STRENGTH * DIM**0.5) ** 0.5
    for head, frame in enumerate(frames):
        sink = rng.standard_normal(DIM) / DIM**0.5
        group = slice(head * Q_HEADS // KV_HEADS, (head + 1) * Q_HEADS // KV_HEADS)
        if frame is not None:
            size, line = frame
            codes = rng.standard_normal((size, DIM))
            codes *= length / np.linalg.norm(codes, axis=1, keepdims=True)
            place = np.arange(tokens) % size
            k[0, head] = 0.3 * k[0, head] + codes[place]
            wish = codes[place] + codes[line]
            wish[place == line] *= 0.1
            q[0, group] = 0.3 * q[0, group] + wish
        q[0, group] += length / 2 * sink
        k[0, head, :4] = 2 * length * sink
    return tuple(np.ascontiguousarray(x, np.float32) for x in (q, k, v))


def attention_model() -> onnx.ModelProto:
    """One causal attention of these heads."""
    info = helper.make_tensor_value_info
    names = (("q", Q_HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    inputs = [info(name, TensorProto.FLOAT, [1, heads, "s", DIM]) for name, heads in names]
    output = info("o", TensorProto.FLOAT, [1, Q_HEADS, "s", DIM])
    node = helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=1)
    graph = helper.make_graph([node], "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def main() -> int:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    q, k, v = video_attention(tokens)
    o, lse = np.zeros_like(q), np.zeros(q.shape[:3], np.float32)
    density = np.zeros(q.shape[:2], np.float32)
    specs = ["dense", "grid", "grid:hline=0", "sampled", "vertical-slash:density=0.1"]
    found, best = {}, dict.fromkeys(specs, float("inf"))
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "attention.onnx"
        onnx.save(attention_model(), model)
        libraries = {}
        for i, spec in enumerate(specs):
            prefill_opt.compile(model, Path(work) / str(i), sparsify=spec)
            libraries[spec] = prefill_opt.Library(Path(work) / str(i), 1)
        for head, frame in enumerate(FRAMES):
            part = slice(head * 3, head * 3 + 3)
            inputs = {"q": q[:, part].repeat(3, 1), "k": k[:, [head] * 3], "v": v[:, [head] * 3]}
            best = dict.fromkeys(specs, float("inf"))
            for _ in range(5):
                for spec, library in libraries.items():
                    start = time.perf_counter()
                    library.run(library.kernels[0], inputs, {"o": o})
                    best[spec] = min(best[spec], time.perf_counter() - start)
            for spec, library in libraries.items():
                library.run(library.kernels[0], inputs, {"o": o, "lse": lse, "density": density})
                found[spec] = lse.copy(), o.copy(), density.mean()
            print(f"{tokens} tokens, frames {frame}")
            for spec in specs:
                recall = np.exp(found[spec][0] - found["dense"][0]).mean()
                error = np.abs(found[spec][1] - found["dense"][1]).mean() / np.abs(found["dense"][1]).mean()
                print(
                    f"  {spec:28} density {found[spec][2]:5.1%}  recall {recall:6.2%}"
                    f"  error {error:6.2%}  time {best[spec] / best['dense']:5.3f} of dense"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
