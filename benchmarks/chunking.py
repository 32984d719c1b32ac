#!/usr/bin/env python3
"""A long prompt of SmolLM2 as a whole and in chunks: seconds and peak memory; and what rows of other
requests cost beside a chunk.

Every run is a process of its own with one thread. Memory is the process's peak resident set less what it
had with the session loaded, in MB of 10**6 bytes, beside the size of the KV cache (float32), which both
ways need. With `--decodes`, seconds of a chunk, of as many rows of requests that generate (256 tokens
each) and of both in one call: the smallest of the repeats, taken in turns.

    build/venv/bin/python benchmarks/chunking.py --tokens 2048 8192 --chunks 0 1024
    build/venv/bin/python benchmarks/chunking.py --tokens --decodes 1 8 --chunk 256
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import prefill_opt
from prefill_opt import chunking
from prefill_opt.demo import smollm2


def status_mb(field: str) -> float:
    """A field of /proc/self/status, as VmHWM, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def measure(folder: str, tokens: int, chunk: int) -> dict[str, float]:
    """One prompt in this process; chunk 0: as a whole, with a model without -chunk."""
    session = prefill_opt.session(folder, intra_op_num_threads=1)
    ids = np.random.default_rng(0).integers(0, smollm2.VOCABULARY, tokens)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_mb("VmRSS")
    start = time.perf_counter()
    if chunk:
        result = prefill_opt.run_chunked(session, ids, chunk)
    else:
        feeds = {"input_ids": ids[None], "logits_to_keep": np.array([tokens - 1])}
        names = [o.name for o in session.get_outputs()]
        result = dict(zip(names, session.run(None, feeds), strict=True))
    seconds = time.perf_counter() - start
    cache = sum(v.nbytes for n, v in result.items() if n != "logits") / 1e6
    return {"seconds": seconds, "peak_mb": status_mb("VmHWM") - before, "cache_mb": cache}


def ride_along(folder: str, decodes: int, chunk: int, repeats: int) -> dict[str, float]:
    """Seconds of a chunk, of `decodes` rows of other requests, and of both together."""
    held = 256
    session = prefill_opt.session(folder, intra_op_num_threads=1)
    cache = chunking.Cache(session, chunk + decodes * (held + 1))
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, smollm2.VOCABULARY, count)

    slots = [chunk + i * (held + 1) for i in range(decodes)]
    cache.step([chunking.Rows(ids(held), slot, logits=False) for slot in slots])
    prompt = [chunking.Rows(ids(chunk), logits=False)]
    generating = [chunking.Rows(ids(1), slot, held) for slot in slots]
    ways = {"chunk": prompt, "decodes": generating, "both": prompt + generating}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, work in ways.items():
            start = time.perf_counter()
            cache.step(work)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 8192], help="lengths of the prompt")
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 1024], help="0: the whole prompt at once")
    parser.add_argument("--sparsify", default="dense")
    parser.add_argument("--decodes", type=int, nargs="*", default=[], help="requests beside a chunk")
    parser.add_argument("--chunk", type=int, default=256, help="rows of the chunk beside them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.tokens[0], options.chunks[0])))
        return
    model = smollm2.build_export()
    with tempfile.TemporaryDirectory() as folder:
        whole = prefill_opt.compile(model, Path(folder) / "whole", sparsify=options.sparsify)
        chunked = prefill_opt.compile(model, Path(folder) / "chunked", sparsify=options.sparsify, chunk="512")
        if options.tokens:
            print(f"{'tokens':>7} {'chunk':>6} {'seconds':>8} {'peak MB':>8} {'cache MB':>9}")
        for tokens in options.tokens:
            for chunk in options.chunks:
                command = [sys.executable, __file__, "--tokens", str(tokens), "--chunks", str(chunk)]
                done = subprocess.run(
                    [*command, "--child", str(chunked if chunk else whole)],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                got = json.loads(done.stdout)
                print(
                    f"{tokens:7} {chunk or 'whole':>6} {got['seconds']:8.1f} {got['peak_mb']:8.0f} "
                    f"{got['cache_mb']:9.0f}",
                    flush=True,
                )
        for decodes in options.decodes:
            best = ride_along(str(chunked), decodes, options.chunk, options.repeats)
            alone = best["chunk"] + best["decodes"]
            print(
                f"{options.chunk} rows {best['chunk']:.3f} s, {decodes} decodes {best['decodes']:.3f} s, together "
                f"{best['both']:.3f} s: {alone / best['both']:.2f} x; a decode costs "
                f"{(best['both'] - best['chunk']) / best['decodes']:.2f} of what it does alone",
                flush=True,
            )


if __name__ == "__main__":
    main()
