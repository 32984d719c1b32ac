#!/usr/bin/env python3
"""SmolLM2 reads a number out of one of several contexts: one after the other in one prompt, encoded
independently (APE), and taken from a store.

The contexts are pieces of Python's documentation with the number in the middle of one of them; each line is
one place of the number. `sequential` is the same compiled model without contexts, so that all ways run the
same kernels. The seconds are of one processor: of the prompt, as `prefill-opt cost` predicts them in the first
line, and with the answer's tokens.

    build/venv/bin/python benchmarks/parallel.py --contexts 4 --tokens 500
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import prefill_opt
from prefill_opt.demo import smollm2, texts


def make_prompts(tokenizer, count: int, tokens: int, place: int) -> tuple[list, list, list, str]:
    """Prefix, contexts, question and the number, which is in context `place`."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    key = str(int(np.random.default_rng([tokens, count, place]).integers(10000, 99999)))
    needle = encode(f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n")
    contexts = []
    for i in range(count):
        extra = needle if i == place else []
        body = texts.real_text(tokenizer, tokens - len(extra), skip=i * tokens)[0].tolist()
        contexts.append(body[: len(body) // 2] + extra + body[len(body) // 2 :])
    prefix = encode(
        "<|im_start|>user\nThere is important information hidden in a lot of irrelevant text. "
        "Find it and memorize it.\n\n"
    )
    question = encode("\n\nWhat is the pass key?<|im_end|>\n<|im_start|>assistant\nThe pass key is ")
    return prefix, contexts, question, key


def predicted(method: str, prefix: int, contexts: int, tokens: int, question: int) -> list[float]:
    """Seconds that the compiler predicts for the prompt: sequential, independent, from the store."""
    model, total = smollm2.build_export(), prefix + contexts * tokens + question
    command = ["cost", model, f"-tokens={total}", "-json", "-device=cpu:threads=1"]
    apart = [f"-parallel-encode={method}", f"-contexts={contexts}:prefix={prefix},query={question}"]
    rows = [json.loads(prefill_opt.run_compiler([*command, *more]).stdout)["rows"] for more in (["-chunk=512"], apart)]
    return [rows[0][-1]["seconds"], rows[1][-2]["seconds"], rows[1][-1]["seconds"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=500, help="of a context")
    parser.add_argument("--T", type=float, default=0.9)
    parser.add_argument("--S", type=float, default=0.9)
    parser.add_argument("--places", type=int, nargs="*", help="contexts that hold the number; default: all")
    options = parser.parse_args()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2.models_dir() / "smollm2" / "hf" / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as folder:
        method = f"ape:T={options.T:g},S={options.S:g}"
        out = prefill_opt.compile(smollm2.build_export(), Path(folder) / "out", parallel_encode=method)
        session = prefill_opt.session(out, intra_op_num_threads=1)
        print(f"{options.contexts} contexts of {options.tokens} tokens, {method}")
        print(f"{'number in':>9} {'number':>7}   {'sequential':30} {'independent':30} from the store")
        prefix, _, question, _ = make_prompts(tokenizer, options.contexts, options.tokens, 0)
        told = predicted(method, len(prefix), options.contexts, options.tokens, len(question))
        print(f"{'predicted':17}   " + " ".join(f"{'':12} {seconds:6.2f} s{'':9}" for seconds in told))
        for place in options.places if options.places else range(options.contexts):
            prefix, contexts, question, key = make_prompts(tokenizer, options.contexts, options.tokens, place)
            store = prefill_opt.ContextStore()
            ways = {
                "sequential": (sum(contexts, prefix), [], None),
                "independent": (prefix, contexts, store),
                "stored": (prefix, contexts, store),
            }
            cells = []
            for first, documents, kept in ways.values():
                start = time.process_time()
                prompt = prefill_opt.parallel_encode(session, first, documents, question, kept, new_tokens=7)
                read = time.process_time() - start
                said = tokenizer.decode(prompt.generate(8)).strip().split("\n")[0]
                cells.append(f"{said[:10]!r:12} {read:6.2f} s {time.process_time() - start:6.2f} s")
            print(f"{place:9} {key:>7}   {cells[0]:30} {cells[1]:30} {cells[2]}", flush=True)


if __name__ == "__main__":
    main()
