#!/usr/bin/env python3
"""Prompts of different lengths on SmolLM2: packed, one by one, and the export on a padded batch.

Prints seconds for all prompts, rows, and the share of the ideal gain (padded rows per real row)
that packing reaches against the padded batch. One thread each; the smallest of the repeats, taken
in turns.

    build/venv/bin/python benchmarks/packing.py --prompts 64 --repeats 3
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--median", type=int, default=100, help="median length in tokens")
    parser.add_argument("--spread", type=float, default=0.8, help="sigma of the logarithm")
    parser.add_argument("--longest", type=int, default=727)
    parser.add_argument("--capacity", type=int, default=None, help="most rows of a pack")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(options.median), options.spread, options.prompts)).astype(int)
    lengths = np.clip(lengths, 1, options.longest)
    prompts = [rng.integers(0, smollm2.VOCABULARY, n) for n in lengths]
    model = smollm2.build_export()
    padded = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    with tempfile.TemporaryDirectory() as folder:
        packed = prefill_opt.compile(model, Path(folder) / "packed", pack="ffd")
        alone = prefill_opt.compile(model, Path(folder) / "alone")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        export = onnxruntime.InferenceSession(str(model), settings, ["CPUExecutionProvider"])
        sessions = [prefill_opt.session(f, intra_op_num_threads=options.threads) for f in (packed, alone)]
        plan = prefill_opt.pack(prompts, options.capacity)

        def one_by_one() -> None:
            for prompt in prompts:
                feeds = {"input_ids": prompt[None], "logits_to_keep": np.array([len(prompt) - 1])}
                sessions[1].run(None, feeds)

        # The padded batch gives the logits of every prompt's last row: all rows that are one.
        last = np.unique(lengths - 1)
        ways = {
            "packed": lambda: prefill_opt.run_packed(sessions[0], plan),
            "one by one": one_by_one,
            "export, padded": lambda: export.run(None, {"input_ids": padded, "logits_to_keep": last}),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(options.repeats):
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    ideal = padded.size / lengths.sum()
    gain = best["export, padded"] / best["packed"]
    print(f"{len(prompts)} prompts, {lengths.sum()} rows of {padded.size} padded, {len(plan.packs)} packs")
    for name, seconds in best.items():
        print(f"{name:15} {seconds:8.2f} s")
    print(f"gain {gain:.2f}, ideal {ideal:.2f}: {gain / ideal:.2f} of it")
    if options.json:
        options.json.write_text(json.dumps({"seconds": best, "gain": gain, "ideal": ideal}))


if __name__ == "__main__":
    main()
