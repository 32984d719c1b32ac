"""Our attention kernels against PyTorch's and ONNX Runtime's, and against the machine's peak.

    build/venv/bin/python benchmarks/kernel.py [--tokens 2048 4096 8192] [--threads 1 2]

Everything runs in this one process, contenders in turn within each round, and the smallest
wall time of a whole call over all rounds counts. GFLOP/s count the causal half: 4 x heads x
head dim x tokens x (tokens + 1) / 2. The peak is measured by peak.c in this process, between
the rounds. Ours are called through the C ABI on NumPy arrays [1, heads, tokens, dim].
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

# Idle OpenMP threads must not spin while the next contender runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ml_dtypes
import numpy as np

import models
import prefill_opt
from common import Target, finish
from prefill_opt.demo import smollm2, suite

HERE = Path(__file__).resolve().parent
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def peak_function(work: Path):
    """Compiles peak.c once; returns f(threads, milliseconds) -> GFLOP/s."""
    library = work / "libpeak.so"
    source = HERE / "peak.c"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        command = ["clang-22", "-O2", "-shared", "-fPIC", "-pthread", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
    function = ctypes.CDLL(str(library)).peak_gflops
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_int, ctypes.c_int]
    return function


def compiled(work: Path, heads: int, kv_heads: int, dim: int, dtype: str, sparsify=None) -> Path:
    """A library with the one kernel of a causal attention."""
    name = f"{heads}-{kv_heads}-{dim}-{dtype}" + (f"-{sparsify}" if sparsify else "")
    name = name.replace(":", "_").replace(",", "_").replace("=", "")
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "attention.onnx"
    model.write_bytes(models.causal_attention(heads, kv_heads, dim, dtype).SerializeToString())
    return prefill_opt.compile(model, folder / "out", sparsify=sparsify, timeout=120)


def our_call(library: prefill_opt.Library, arrays, dtype: str, statistics: bool = False):
    """A function that runs the library's kernel on q, k, v; it returns o (and the density)."""
    q, k, v = (np.ascontiguousarray(x).astype(NUMPY[dtype]) for x in arrays)
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    outputs = {"o": out}
    if statistics:
        outputs["density"] = np.zeros(q.shape[:2], np.float32)
    name = library.kernels[0]

    def call():
        library.run(name, {"q": q, "k": k, "v": v}, outputs)
        return outputs["density"] if statistics else out

    return call


def interleave(calls: dict, rounds: int, slow: dict[str, int] | None = None) -> dict[str, float]:
    """Minimum wall seconds of each call; every round runs all of them once.

    slow: names with a smaller number of rounds of their own.
    """
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for number in range(rounds):
        for name, call in calls.items():
            if number >= (slow or {}).get(name, rounds):
                continue
            time.sleep(0.005)
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def check(calls: dict, reference: str, tolerance: float) -> str:
    """Compares results with a reference call; returns the names that are wrong."""

    def array(value):
        return (value.float().numpy() if hasattr(value, "numpy") else value).astype(np.float32)

    expected = array(calls[reference]())
    wrong = []
    for name, call in calls.items():
        if not np.abs(array(call()) - expected).max() <= tolerance * np.abs(expected).max():
            wrong.append(name)
    return ", ".join(wrong)


def inputs(heads: int, kv_heads: int, tokens: int, dim: int):
    """Random q, k, v, float32 [1, h, tokens, dim]."""
    rng = np.random.default_rng(tokens + dim)
    shapes = ((heads, dim), (kv_heads, dim), (kv_heads, dim))
    return [rng.standard_normal((1, h, tokens, d), np.float32) for h, d in shapes]


def window_for(share: float, blocks: int) -> str:
    """A pattern without an estimate that visits about `share` of the causal blocks: the first
    block of every row of blocks, and the last few."""

    def visited(local: int) -> int:
        return sum(min(row + 1, 1 + local) for row in range(blocks))

    wanted = share * blocks * (blocks + 1) / 2
    local = min(range(1, blocks), key=lambda local: abs(visited(local) - wanted))
    return f"a-shape:init=64,local={64 * local},dense-below=0"


class Bench:
    """Collects rows and targets while the parts run."""

    def __init__(self, options, work: Path):
        self.options, self.work = options, work
        self.peak = peak_function(work)
        self.rows: list[dict] = []
        self.targets: list[Target] = []

    def library(self, dim: int, dtype: str, threads: int, sparsify=None):
        """Our kernel for the benchmark's heads, or None with a printed reason."""
        try:
            folder = compiled(self.work, self.options.heads, self.options.kv_heads, dim, dtype, sparsify)
            return prefill_opt.Library(folder, threads)
        except (prefill_opt.CompileError, prefill_opt.LoadError) as error:
            print(f"head dim {dim}, {dtype}, {sparsify or 'dense'}: {error}", flush=True)
            return None

    def dense(self, dim: int, tokens: int, threads: int, dtype: str = "float32", peers: bool = True):
        """One line of the dense table; returns our fraction of the peak or None."""
        import torch

        options = self.options
        torch.set_num_threads(threads)
        arrays = inputs(options.heads, options.kv_heads, tokens, dim)
        library = self.library(dim, dtype, threads)
        calls, slow = {}, {}
        if library:
            calls["ours"] = our_call(library, arrays, dtype)
        if peers:
            calls["torch"] = models.torch_call(arrays, options.heads // options.kv_heads, dtype)
        if peers and dtype == "float32":
            theirs = models.onnxruntime_calls(options.heads, options.kv_heads, dim, arrays, threads)
            calls["ort gqa"] = theirs["ort gqa"]
            if tokens <= 4096:
                calls |= theirs
                slow = {"ort attention": 2, "ort mha": 2}
        if not calls:
            return None
        if "torch" in calls:
            wrong = check(calls, "torch", 1e-4 if dtype == "float32" else 2e-2)
            if wrong:
                print(f"WRONG RESULT at {dim}, {tokens}, {dtype}: {wrong}")
        peak = self.peak(threads, 300)
        best = interleave(calls, options.rounds, slow)
        peak = max(peak, self.peak(threads, 300))
        flops = 4 * options.heads * dim * tokens * (tokens + 1) / 2
        row = {"part": "dense", "dtype": dtype, "dim": dim, "tokens": tokens, "threads": threads}
        row |= {"peak_gflops": peak, "ms": {n: 1e3 * s for n, s in best.items()}}
        row["gflops"] = {n: flops / s / 1e9 for n, s in best.items()}
        self.rows.append(row)
        cells = [f"{n} {1e3 * s:.1f} ms {flops / s / 1e9:.0f}" for n, s in best.items()]
        ours = best.get("ours")
        share = flops / ours / 1e9 / peak if ours else None
        head = f"{dtype} d={dim} S={tokens} threads={threads} peak {peak:.0f} GFLOP/s"
        print(f"{head} | {' | '.join(cells)}" + (f" | ours {100 * share:.0f} %" if share else ""), flush=True)
        what = f"{dtype} d={dim} S={tokens} {threads}T"
        if dtype == "float32" and peers and dim in (64, 128):
            self.targets.append(Target(f"{what}: share of peak", share, 0.72))
            bounds = {"torch": 1.3 if dim == 64 else 1.15, "ort gqa": 1.3, "ort attention": 3, "ort mha": 3}
        else:
            bounds = {"torch": 1.0}
        for name, bound in bounds.items():
            if name in best:
                value = best[name] / ours if ours else None
                self.targets.append(Target(f"{what}: x {name}", value, bound))
        if library:
            library.close()
        return share

    def sparse(self, dim: int, tokens: int, threads: int):
        """25 % and 5 % of the blocks, against dense: of vertical-slash, estimate included, whose
        overhead is extrapolated to 0 %, and of a fixed window, which has no estimate."""
        blocks = -(-tokens // 64)
        arrays = inputs(self.options.heads, self.options.kv_heads, tokens, dim)
        libraries, calls, densities = {}, {}, {}
        for name, pattern in (
            ("dense", None),
            ("25 %", "vertical-slash:density=0.25,dense-below=0"),
            ("5 %", "vertical-slash:density=0.05,dense-below=0"),
            ("window 25 %", window_for(0.25, blocks)),
            ("window 5 %", window_for(0.05, blocks)),
        ):
            library = self.library(dim, "float32", threads, pattern)
            if library:
                libraries[name] = library
                calls[name] = our_call(library, arrays, "float32")
                try:
                    densities[name] = float(our_call(library, arrays, "float32", True)().mean())
                except prefill_opt.KernelError as error:
                    print(f"no density: {error}")
        if len(densities) < 5:
            return
        peak = self.peak(threads, 300)
        best = interleave(calls, self.options.rounds)
        peak = max(peak, self.peak(threads, 300))
        # Kept blocks count whole, the diagonal's and tiles of gathered columns too. Kernels leave
        # out most of what the diagonal hides and columns that are not there; `visible` counts
        # half of the diagonal's blocks.
        flops = 4 * self.options.heads * dim * 64 * 64 * blocks * (blocks + 1) / 2
        hidden = 4 * self.options.heads * dim * 64 * 63 / 2 * blocks
        row = {"part": "sparse", "dim": dim, "tokens": tokens, "threads": threads}
        row |= {"peak_gflops": peak, "ms": {n: 1e3 * s for n, s in best.items()}, "density": densities}
        what = f"sparse d={dim} S={tokens} {threads}T"
        slope = (best["25 %"] - best["5 %"]) / max(densities["25 %"] - densities["5 %"], 1e-6)
        overhead = best["5 %"] - slope * densities["5 %"]
        row["overhead_ms"] = 1e3 * overhead
        self.rows.append(row)
        cells = [f"{n} {1e3 * s:.1f} ms (density {densities[n]:.3f})" for n, s in best.items()]
        print(f"{what} | {' | '.join(cells)} | overhead {1e3 * overhead:.1f} ms", flush=True)
        for name, bound in (("25 %", 0.70), ("5 %", 0.60)):
            window = f"window {name}"
            share = flops * densities[window] / best[window] / 1e9 / peak
            visible = (flops * densities[window] - hidden) / best[window] / 1e9 / peak
            estimated = flops * densities[name] / best[name] / 1e9 / peak
            note = f"{visible:.3g} without what the diagonal hides; "
            note += f"vertical-slash, estimate included, {estimated:.3g}"
            self.targets.append(Target(f"{what}: {name} kept, share of peak", share, bound, True, note))
        if tokens >= 8192:
            note = "time over density, extrapolated to 0"
            value = overhead / best["dense"]
            self.targets.append(Target(f"{what}: estimate + index / dense time", value, 0.08, False, note))
        for library in libraries.values():
            library.close()

    def crossover(self, dim: int, threads: int):
        """The default pattern on short prompts: never slower than dense."""
        dense = self.library(dim, "float32", threads)
        sparse = self.library(dim, "float32", threads, "vertical-slash")
        if not dense or not sparse:
            return
        for tokens in (128, 512, 1024, 2048, 4096):
            arrays = inputs(self.options.heads, self.options.kv_heads, tokens, dim)
            calls = {
                "dense": our_call(dense, arrays, "float32"),
                "vertical-slash": our_call(sparse, arrays, "float32"),
            }
            best = interleave(calls, max(self.options.rounds, 200_000 // tokens))
            value = best["vertical-slash"] / best["dense"]
            row = {"part": "crossover", "dim": dim, "tokens": tokens, "threads": threads}
            self.rows.append({**row, "ms": {n: 1e3 * s for n, s in best.items()}})
            what = f"crossover d={dim} S={tokens} {threads}T: vertical-slash / dense time"
            print(f"{what} {value:.3f}", flush=True)
            self.targets.append(Target(what, value, 1.02, at_least=False))
        dense.close()
        sparse.close()


def main() -> int:
    """Runs the parts, prints the verdicts, writes results/kernel.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="*", default=["dense", "types", "dims", "sparse", "crossover"])
    parser.add_argument("--name", default="kernel", help="name of the result file")
    options = parser.parse_args()
    work = smollm2.models_dir().parent / "bench" / "kernel"
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, work)
    info = suite.machine()
    print(f"{info['processor']}, {info['cpus']} CPUs, {' '.join(info['isa'])}", flush=True)
    shares: dict[tuple, float | None] = {}
    if "dense" in options.parts:
        for threads in options.threads:
            for dim in options.dims:
                for tokens in options.tokens:
                    shares[dim, tokens, threads] = bench.dense(dim, tokens, threads)
    if "types" in options.parts:
        for dtype in ("float16", "bfloat16"):
            for dim in options.dims:
                bench.dense(dim, 4096, max(options.threads), dtype)
    if "dims" in options.parts:
        threads = max(options.threads)
        base = shares.get((128, 4096, threads)) or bench.dense(128, 4096, threads, peers=False)
        for dim, tokens in ((80, 4096), (96, 4096), (256, 4096), (64, 4001), (128, 4001)):
            share = bench.dense(dim, tokens, threads, peers=False)
            value = share / base if share and base else None
            what = f"d={dim} S={tokens} {threads}T: share of peak / that of d=128 S=4096"
            bench.targets.append(Target(what, value, 0.85))
    if "sparse" in options.parts:
        for dim in options.dims:
            for tokens in options.tokens:
                bench.sparse(dim, tokens, max(options.threads))
    if "crossover" in options.parts:
        bench.crossover(options.dims[0], max(options.threads))
    record = {"heads": options.heads, "kv_heads": options.kv_heads, "rows": bench.rows}
    return finish(options.name, record, bench.targets)


if __name__ == "__main__":
    sys.exit(main())
