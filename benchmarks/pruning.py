"""Token pruning against the dense model: rows per layer, FLOPs of the linear layers, time.

    python benchmarks/pruning.py [MODEL.onnx] --tokens=2048 --prune=lazyllm:layers=9+19+28,keep=0.7

FLOPs are counted from the shapes that ONNX Runtime's profiler reports for each product with
weights, time is the profiler's for the same nodes and that of the whole call: one thread, minima
over interleaved repeats. Ids are random: which rows go differs from text, how many does not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

import prefill_opt
from prefill_opt.demo import smollm2


def profile(folder: Path, feeds: dict, where: str) -> tuple[float, float, float, dict]:
    """One call: seconds, seconds and FLOPs of products with weights, the outputs."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = where
    options.intra_op_num_threads = 1
    session = prefill_opt.session(folder, options, log_severity_level=4)
    names = [o.name for o in session.get_outputs()]
    begin = time.perf_counter()
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    total = time.perf_counter() - begin
    path = Path(session.end_profiling())
    seconds, flops = 0.0, 0.0
    for event in json.loads(path.read_text()):
        arguments = event.get("args", {})
        if not event.get("name", "").endswith("_kernel_time"):
            continue
        if arguments.get("op_name") not in ("MatMul", "FusedMatMul", "Gemm"):
            continue
        # Packed weights have no shape here; the result has their width.
        left = next(iter(arguments["input_type_shape"][0].values()))
        result = next(iter(arguments["output_type_shape"][0].values()))
        flops += 2.0 * np.prod(left) * result[-1]
        seconds += event["dur"] * 1e-6
    path.unlink()
    return total, seconds, flops, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = smollm2.models_dir() / "smollm2" / "export" / "model.onnx"
    parser.add_argument("model", nargs="?", type=Path, default=default)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--prune", default="lazyllm:layers=9+19+28,keep=0.7")
    parser.add_argument("--sparsify", default="dense")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ids = np.random.default_rng(0).integers(0, smollm2.VOCABULARY, (1, options.tokens))
    feeds = {"input_ids": ids, "logits_to_keep": np.array([-1])}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = {"sparsify": options.sparsify}
        dense = prefill_opt.compile(options.model, root / "dense", **shared)
        pruned = prefill_opt.compile(options.model, root / "pruned", prune=options.prune, **shared)
        best: dict = {}
        for _ in range(options.repeats):
            for name, compiled in (("dense", dense), ("pruned", pruned)):
                result = profile(compiled, feeds, str(root / "profile"))
                old = best.get(name, result)
                best[name] = (*(min(a, b) for a, b in zip(result[:3], old[:3], strict=True)), result[3])
    keys = {n: v for n, v in best["pruned"][3].items() if n.endswith(".key")}
    rows = [keys[n].shape[2] for n in sorted(keys, key=lambda n: int(n.split(".")[1]))]
    print(f"{options.model.name}, {options.tokens} tokens, -prune={options.prune}, -sparsify={options.sparsify}")
    print("rows per layer:", " ".join(map(str, rows)))
    print(f"rows, dense / pruned: {len(rows) * options.tokens / sum(rows):.3f}")
    for at, what, unit in ((2, "FLOPs of products", 1e9), (1, "seconds of products", 1), (0, "seconds", 1)):
        a, b = best["dense"][at] / unit, best["pruned"][at] / unit
        print(f"{what}: {a:.2f} / {b:.2f} = {a / b:.3f}")


if __name__ == "__main__":
    main()
