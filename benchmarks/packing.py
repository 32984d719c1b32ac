"""Prompts of different lengths on SmolLM2: packed, one by one, and the export on a padded batch.

Prints seconds for all prompts, when their first tokens come (mean and last, all prompts there at
once: a pack's together, one by one in their order, a padded batch's at its end), and the share of
the ideal gain (padded rows per real row) that packing reaches against the padded batch. One thread
each; the smallest of the repeats, taken in turns. Writes results/packing.json.

    build/venv/bin/python benchmarks/packing.py --prompts 64 --repeats 2
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from common import Target, finish

import prefill_opt
from prefill_opt.demo import smollm2
from prefill_opt.demo.suite import table
from prefill_opt.packing import Pack, Plan


def steps_of(steps: list[tuple[int, Callable[[], object]]]) -> tuple[float, np.ndarray]:
    """Seconds of all steps (prompts that are ready after it, what to run), and of each prompt."""
    ready, begin = [], time.perf_counter()
    for prompts, run in steps:
        run()
        ready += [time.perf_counter() - begin] * prompts
    return ready[-1], np.array(ready)


def run_pack(session, pack: Pack) -> None:
    """One run of a packed model."""
    alone = dataclasses.replace(pack, prompts=tuple(range(len(pack.prompts))))
    prefill_opt.run_packed(session, Plan((alone,), 1.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--median", type=int, default=100, help="median length in tokens")
    parser.add_argument("--spread", type=float, default=0.8, help="sigma of the logarithm")
    parser.add_argument("--longest", type=int, default=727)
    parser.add_argument("--capacity", type=int, default=None, help="most rows of a pack")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="packing", help="of the result file")
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

        def one(prompt: np.ndarray) -> None:
            feeds = {"input_ids": prompt[None], "logits_to_keep": np.array([len(prompt) - 1])}
            sessions[1].run(None, feeds)

        # The padded batch gives the logits of every prompt's last row: all rows that are one.
        last = np.unique(lengths - 1)
        batch = {"input_ids": padded, "logits_to_keep": last}
        ways = {
            "packed": [(len(p.prompts), lambda p=p: run_pack(sessions[0], p)) for p in plan.packs],
            "one by one": [(1, lambda p=p: one(p)) for p in prompts],
            "export, padded": [(len(prompts), lambda: export.run(None, batch))],
        }
        best: dict[str, tuple[float, np.ndarray]] = {}
        for _ in range(options.repeats):
            for name, steps in ways.items():
                seconds, ready = steps_of(steps)
                if name not in best or seconds < best[name][0]:
                    best[name] = seconds, ready
    ideal = padded.size / lengths.sum()
    gain = best["export, padded"][0] / best["packed"][0]
    print(f"{len(prompts)} prompts, {lengths.sum()} rows of {padded.size} padded, {len(plan.packs)} packs\n")
    rows = [
        [name, f"{seconds:.2f}", f"{ready.mean():.2f}", f"{ready.max():.2f}"]
        for name, (seconds, ready) in best.items()
    ]
    print(table(["way", "seconds", "first tokens, mean", "last"], rows))
    print(f"\ngain {gain:.2f}, ideal {ideal:.2f}: {gain / ideal:.2f} of it")
    means = {name: float(ready.mean()) for name, (_, ready) in best.items()}
    record = {
        "threads": options.threads,
        "prompts": lengths.tolist(),
        "packs": len(plan.packs),
        "seconds": {name: seconds for name, (seconds, _) in best.items()},
        "first_token_mean": means,
        "gain": gain,
        "ideal": ideal,
    }
    targets = [Target("share of the ideal gain against the padded export", gain / ideal, 0.9)]
    faster = means["one by one"] / means["packed"]
    print(f"first tokens on average {faster:.2f} times as early as one by one")
    return finish(options.name, record, targets)


if __name__ == "__main__":
    sys.exit(main())
