"""How long compiling takes: SmolLM2's export, the graph of a 7B model, and code for GPUs.

    build/venv/bin/python benchmarks/compile_time.py

SmolLM2: wall time of the whole command (import, passes, code generation, library, export),
once with an empty kernel cache and again with a full one. 7B: the export's graph with 32 layers
of Llama-7B's sizes whose 28 GB of weights are a sparse file; CPU time and peak memory of
import, raise, sparsify and export. GPUs: CPU time of a whole library for sm_80 and sm_90a, of
float16 attention in an 8B Llama's sizes and of the same with a window, vertical-slash, nothing
cached. No GPU is needed, but ptxas.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import prefill_opt
from common import Target, finish
from prefill_opt.demo import smollm2


def llama_shaped(folder: Path, layers: int = 32, hidden: int = 4096, heads: int = 32) -> Path:
    """Writes an export-like decoder (decomposed attention) whose weights are a sparse file.

    The attention is written as torch.onnx.export does without RoPE's fusion: rotary
    embedding, causal mask from Range, MatMul, Add, Softmax, MatMul. Returns model.onnx.
    """
    inner, vocabulary, dim = 11008, 32000, hidden // heads
    folder.mkdir(parents=True, exist_ok=True)
    nodes, weights, offset = [], [], 0

    def weight(name: str, *shape: int) -> str:
        nonlocal offset
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=1)
        size = 4 * int(np.prod(shape))
        facts = {"location": "model.onnx.data", "offset": offset, "length": size}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        offset = -(-(offset + size) // 4096) * 4096
        return name

    def constant(name: str, value, kind=np.int64) -> str:
        weights.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes) -> str:
        node = helper.make_node(op, inputs, [output], f"node_{output}", **attributes)
        where = output.split(".")[0]
        node.metadata_props.add(key="namespace", value=f": Llama/model.{where}: DecoderLayer/{op}")
        nodes.append(node)
        return output

    constant("zero", 0)
    constant("one", 1)
    constant("axis0", [0])
    constant("axis1", [1])
    constant("axis2", [2])
    constant("half", [dim // 2])
    constant("whole", [dim])
    constant("two", 2.0, np.float32)
    constant("epsilon", 1e-5, np.float32)
    constant("scale", dim**-0.5, np.float32)
    constant("masked", -3.4028235e38, np.float32)
    constant("none", 0.0, np.float32)
    constant("split", [0, 0, heads, dim])
    constant("join", [0, 0, hidden])
    constant("frequencies", 1e4 ** (-np.arange(0, dim, 2) / dim), np.float32)
    add("Shape", ["input_ids"], "seq1", start=1, end=2)
    add("Squeeze", ["seq1"], "seq")
    add("Range", ["zero", "seq", "one"], "positions")
    add("Unsqueeze", ["positions", "axis1"], "rows")
    add("Unsqueeze", ["positions", "axis0"], "columns")
    add("LessOrEqual", ["columns", "rows"], "visible")
    add("Where", ["visible", "none", "masked"], "bias")
    add("Cast", ["rows"], "angle_rows", to=TensorProto.FLOAT)
    add("Mul", ["angle_rows", "frequencies"], "angles")
    add("Concat", ["angles", "angles"], "angles2", axis=-1)
    add("Cos", ["angles2"], "cos")
    add("Sin", ["angles2"], "sin")
    x = add("Gather", [weight("embed", vocabulary, hidden), "input_ids"], "embedded")
    outputs = []

    def norm(value: str, name: str) -> str:
        add("Pow", [value, "two"], f"{name}.square")
        add("ReduceMean", [f"{name}.square", constant(f"{name}.axes", [-1])], f"{name}.mean")
        add("Add", [f"{name}.mean", "epsilon"], f"{name}.add")
        add("Sqrt", [f"{name}.add"], f"{name}.root")
        add("Div", [value, f"{name}.root"], f"{name}.unit")
        return add("Mul", [f"{name}.unit", weight(f"{name}.weight", hidden)], f"{name}.out")

    def rotate(value: str, name: str) -> str:
        add("Slice", [value, "axis0", "half", constant(f"{name}.a", [-1])], f"{name}.low")
        add("Slice", [value, "half", "whole", f"{name}.a"], f"{name}.high")
        add("Neg", [f"{name}.high"], f"{name}.neg")
        add("Concat", [f"{name}.neg", f"{name}.low"], f"{name}.turned", axis=-1)
        add("Mul", [value, "cos"], f"{name}.c")
        add("Mul", [f"{name}.turned", "sin"], f"{name}.s")
        return add("Add", [f"{name}.c", f"{name}.s"], f"{name}.rotated")

    for layer in range(layers):
        n = f"layers_{layer}"
        h = norm(x, f"{n}.norm1")
        parts = {}
        for part in "qkv":
            add("MatMul", [h, weight(f"{n}.{part}.weight", hidden, hidden)], f"{n}.{part}.flat")
            add("Reshape", [f"{n}.{part}.flat", "split"], f"{n}.{part}.split")
            parts[part] = add("Transpose", [f"{n}.{part}.split"], f"{n}.{part}.heads", perm=[0, 2, 1, 3])
        q, k = rotate(parts["q"], f"{n}.q"), rotate(parts["k"], f"{n}.k")
        outputs += [k, parts["v"]]
        add("Transpose", [k], f"{n}.kt", perm=[0, 1, 3, 2])
        add("MatMul", [q, f"{n}.kt"], f"{n}.raw")
        add("Mul", [f"{n}.raw", "scale"], f"{n}.scaled")
        add("Add", [f"{n}.scaled", "bias"], f"{n}.masked")
        add("Softmax", [f"{n}.masked"], f"{n}.p", axis=-1)
        add("MatMul", [f"{n}.p", parts["v"]], f"{n}.o")
        add("Transpose", [f"{n}.o"], f"{n}.o2", perm=[0, 2, 1, 3])
        add("Reshape", [f"{n}.o2", "join"], f"{n}.o3")
        add("MatMul", [f"{n}.o3", weight(f"{n}.o.weight", hidden, hidden)], f"{n}.o4")
        x = add("Add", [x, f"{n}.o4"], f"{n}.res1")
        h = norm(x, f"{n}.norm2")
        add("MatMul", [h, weight(f"{n}.gate.weight", hidden, inner)], f"{n}.gate")
        add("Sigmoid", [f"{n}.gate"], f"{n}.sig")
        add("Mul", [f"{n}.gate", f"{n}.sig"], f"{n}.silu")
        add("MatMul", [h, weight(f"{n}.up.weight", hidden, inner)], f"{n}.up")
        add("Mul", [f"{n}.silu", f"{n}.up"], f"{n}.prod")
        add("MatMul", [f"{n}.prod", weight(f"{n}.down.weight", inner, hidden)], f"{n}.down")
        x = add("Add", [x, f"{n}.down"], f"{n}.res2")
    add("MatMul", [norm(x, "final"), weight("head", hidden, vocabulary)], "logits")
    graph_outputs = [helper.make_tensor_value_info("logits", 1, ["batch", "seq", vocabulary])]
    graph_outputs += [
        helper.make_tensor_value_info(name, 1, ["batch", heads, "seq", dim]) for name in outputs
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])
    graph = helper.make_graph(nodes, "main", [ids], graph_outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with (folder / "model.onnx.data").open("wb") as file:
        file.truncate(offset)
    return path


def gpu_model(path: Path) -> Path:
    """Writes two attentions, with all keys and in a window, as IR; returns `path`."""
    sizes = {"q": 32, "k": 8, "v": 8}
    types = {name: f'tensor<?x{n}x?x128xf16, #onnx.dims<"b", "", "s", "">>' for name, n in sizes.items()}
    arguments = ", ".join(f"%{name}: {kind}" for name, kind in types.items())

    def attention(result: str, queries: str, more: str) -> str:
        return (
            f"%{result} = prefill.attention %{queries}, %k, %v {{causal, {more}q_heads = 32 : i64, "
            "kv_heads = 8 : i64, head_dim = 128 : i64, v_head_dim = 128 : i64, "
            f'scale = 0.088 : f32, layer = "{result}"}} : {", ".join(types.values())} -> {types["q"]}\n'
        )

    path.write_text(
        'module attributes {onnx.ir_version = 10 : i64, onnx.opset_imports = [#onnx.opset<"", 23>]} {\n'
        f'onnx.graph @attention({arguments}) attributes {{inputs = ["q", "k", "v"]}} {{\n'
        + attention("x", "q", "")
        + attention("o", "x", "window_left = 1023 : i64, ")
        + f'onnx.return %o : {types["q"]} {{output_names = ["o"]}}\n}}\n}}\n'
    )
    return path


def timed(arguments: list, repeats: int = 3) -> dict:
    """Runs prefill-opt; the fastest run's wall and CPU seconds and the peak memory in MB."""
    command = [str(prefill_opt.find_compiler()), *map(str, arguments)]
    best: dict = {}
    # Peak memory comes from wait4 of a small helper, so that nothing of this process counts.
    for _ in range(repeats):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status != 0:
            raise prefill_opt.CompileError(
                (errors.strip().splitlines() or ["failed"])[-1], command, 1, errors
            )
        if not best or wall < best["wall"]:
            best = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "mb": best.get("mb", 0)}
        best["mb"] = max(best["mb"], usage.ru_maxrss * 1024 / 1e6)
    return best


def main() -> int:
    """Measures and writes results/compile_time.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    work = smollm2.models_dir().parent / "bench" / "compile"
    work.mkdir(parents=True, exist_ok=True)
    record: dict = {"runs": {}}
    targets = []
    # This process stays small, or its own size would count as the child's peak.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    export = smollm2.build_export()
    cache = work / "cache"
    for pattern in ("dense", "vertical-slash"):
        common = [export, f"-sparsify={pattern}", "-o", work / f"smollm2-{pattern}"]
        for what, extra, bound in (
            ("no cache", ["-no-kernel-cache"], 3.0),
            ("cached", [f"-kernel-cache={cache}"], 1.0),
        ):
            name = f"SmolLM2, {pattern}, {what}: wall s"
            try:
                if what == "cached":
                    timed([*common, *extra], 1)
                run = timed([*common, *extra], options.repeats)
                record["runs"][name] = run
                note = f"CPU {run['cpu']:.2f} s, {run['mb']:.0f} MB"
                targets.append(Target(name, run["wall"], bound, False, note))
            except prefill_opt.CompileError as error:
                targets.append(Target(name, None, bound, False, str(error)[:100]))
    model = llama_shaped(work / "7b")
    sites = None
    try:
        sites = prefill_opt.inspect(model)["attention"]
        record["7b_attentions_raised"] = sum(site["raised"] for site in sites)
        record["7b_inspect"] = timed(["inspect", model, "-json"], options.repeats)
        run = timed([model, "-sparsify=vertical-slash", "-o", work / "7b-out"], options.repeats)
        record["runs"]["7B"] = run
        note = f"{record['7b_attentions_raised']} of 32 attentions raised; kernels cached"
        targets.append(Target("7B graph: CPU s", run["cpu"], 3.0, False, note))
        note = f"this process: {own:.0f} MB"
        targets.append(Target("7B graph: peak MB", run["mb"], 300, False, note))
    except prefill_opt.CompileError as error:
        targets.append(Target("7B graph: CPU s", None, 3.0, False, str(error)[:100]))
        targets.append(Target("7B graph: peak MB", None, 300, False))
    name = "GPUs, sm_80 and sm_90a, 2 kernels, vertical-slash: CPU s"
    if shutil.which("ptxas"):
        command = [gpu_model(work / "gpu.mlir"), "-target=cpu,sm_80,sm_90a", "-sparsify=vertical-slash"]
        run = timed([*command, "-no-kernel-cache", "-o", work / "gpu-out"], 1)
        record["runs"][name] = run
        targets.append(Target(name, run["cpu"], 30.0, False, f"wall {run['wall']:.1f} s"))
    else:
        targets.append(Target(name, None, 30.0, False, "no ptxas in the PATH"))
    size = (work / "7b" / "model.onnx.data").stat()
    record["7b_data_gb"] = size.st_size / 1e9
    print(f"7B: {size.st_size / 1e9:.1f} GB of weights, {size.st_blocks * 512 / 1e6:.1f} MB on disk")
    return finish("compile_time", record, targets)


if __name__ == "__main__":
    sys.exit(main())
