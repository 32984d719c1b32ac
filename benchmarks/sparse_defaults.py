r"""What a sparse pattern costs in quality on SmolLM2: perplexity and passkeys by budget.

For dense, each `-sparsify=` given and each length: density (share of causal blocks),
perplexity of the last 1,024 tokens of a real text, and passkeys found at five depths. The
patterns' defaults are chosen from this table (docs/SparseDefaults.md). Times are not
compared here.

    python benchmarks/sparse_defaults.py --tokens 2048 4096 8192 \
        --sparsify vertical-slash:density=0.25 xattention:threshold=0.9
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import save
from prefill_opt import compile as compile_model
from prefill_opt import session
from prefill_opt.demo import smollm2, texts
from prefill_opt.demo.suite import table
from prefill_opt.hosting import attention_statistics


DEFAULTS = [
    "auto",
    *(f"vertical-slash:density={share}" for share in (0.25, 0.4)),
    *(f"xattention:threshold={share}" for share in (0.9, 0.95)),
]


def evaluate(ready, tokenizer, tokens: int, depths: list[float]) -> dict:
    """Perplexity, mean density and passkeys of one compiled model at one length."""
    ids = texts.real_text(tokenizer, tokens)
    rows = texts.perplexity_rows(tokens)
    feeds = {"input_ids": ids, "logits_to_keep": rows}
    started = time.perf_counter()
    logits = ready.run(["logits"], feeds)[0][0]
    record = {
        "tokens": tokens,
        "seconds": time.perf_counter() - started,
        "perplexity": texts.perplexity(logits, ids, rows),
        "found": 0,
        "depths": len(depths),
    }
    for depth in depths:
        prompt = texts.passkey(tokenizer, tokens, depth)
        feeds = {"input_ids": prompt.ids, "logits_to_keep": prompt.rows}
        record["found"] += prompt.found(ready.run(["logits"], feeds)[0][0])
    return record


def density(folder: Path, tokenizer, tokens: int) -> float:
    """Mean share of causal blocks over layers, heads and rows, on the real text."""
    ready = session(folder, statistics=True, log_severity_level=3)
    feeds = {
        "input_ids": texts.real_text(tokenizer, tokens),
        "logits_to_keep": np.array([tokens - 1]),
    }
    found = attention_statistics(ready, feeds)
    # The last layer computes one row.
    rows = [s["block_map"].shape[2] for s in found]
    return float(np.average([s["density"].mean() for s in found], weights=rows))


def main() -> None:
    """Prints the table and writes results/sparse_defaults.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--sparsify", nargs="+", default=DEFAULTS, help="values of -sparsify=")
    parser.add_argument("--depths", type=float, nargs="+", default=list(texts.DEPTHS))
    parser.add_argument("--name", default="sparse_defaults", help="of the result file")
    options = parser.parse_args()
    tokenizer = smollm2.tokenizer()
    specs = ["dense", *options.sparsify]
    records = []
    with tempfile.TemporaryDirectory(dir=smollm2.models_dir()) as work:
        for number, spec in enumerate(specs):
            folder = Path(work) / str(number)
            compile_model(smollm2.build_export(), folder, sparsify=spec)
            ready = session(folder, log_severity_level=3)
            for tokens in options.tokens:
                record = evaluate(ready, tokenizer, tokens, options.depths)
                record["sparsify"] = spec
                record["density"] = 1.0 if spec == "dense" else density(folder, tokenizer, tokens)
                records.append(record)
                print(
                    f"{spec:40s} {tokens:6d} tokens  density {record['density']:6.1%}  "
                    f"perplexity {record['perplexity']:7.3f}  "
                    f"passkeys {record['found']}/{record['depths']}",
                    flush=True,
                )
    rows = [
        [
            r["sparsify"],
            str(r["tokens"]),
            f"{r['density']:.1%}",
            f"{r['perplexity']:.3f}",
            f"{r['found']}/{r['depths']}",
        ]
        for r in records
    ]
    print("\n" + table(["-sparsify", "tokens", "density", "perplexity", "passkeys"], rows))
    save(options.name, {"model": "SmolLM2-135M-Instruct", "records": records}, [])


if __name__ == "__main__":
    main()
