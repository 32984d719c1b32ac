"""Texts and retrieval tasks of benchmarks/frontier.py beyond the demo's. Deterministic."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import numpy as np
from prefill_opt.demo import texts

NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Frank")


def docstrings(tokenizer, tokens: int) -> np.ndarray:
    """The first `tokens` tokens of the docstrings of Python's standard library: int64 [1, tokens].

    English prose written by many people about code, in the order of the files' names; only
    docstrings of more than 400 characters. Raises ValueError if there are not enough.
    """
    ids: list[int] = []
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*folder.glob("*.py"), *folder.glob("asyncio/*.py"), *folder.glob("email/*.py")]
    for file in sorted(files):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) > 400:
                    ids += tokenizer.encode(text + "\n\n", add_special_tokens=False).ids
        if len(ids) >= tokens:
            return np.array([ids[:tokens]], np.int64)
    raise ValueError(f"the docstrings have only {len(ids)} tokens")


def calibration_texts(tokenizer, tokens: int) -> np.ndarray:
    """Texts to calibrate on, none of them with a token that frontier.py looks at: int64 [4, tokens].

    Two later parts of Python's language reference, one of its docstrings, and its source code.
    """
    skip = 40_000
    code: list[int] = []
    folder = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse.py", "ast.py", "bdb.py", "calendar.py"):
        code += tokenizer.encode((folder / name).read_text(encoding="utf-8"), add_special_tokens=False).ids
    parts = [
        texts.real_text(tokenizer, tokens, skip=skip)[0],
        texts.real_text(tokenizer, tokens, skip=2 * skip)[0],
        docstrings(tokenizer, skip + tokens)[0, skip:],
        np.array(code[:tokens], np.int64),
    ]
    return np.stack(parts)


def _prompt(tokenizer, tokens: int, needles: list[str], depths, question: str, lead: str, key: str):
    """A chat prompt of `tokens` tokens with needles hidden at `depths` of the filler."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    head = encode(
        "<|im_start|>user\nThere is important information hidden in a lot of irrelevant text. "
        "Find it and memorize it.\n\n"
    )
    tail = encode(f"\n\n{question}<|im_end|>\n<|im_start|>assistant\n{lead}")
    hidden, answer = [encode(needle) for needle in needles], encode(key)
    room = tokens - len(head) - len(tail) - len(answer) - sum(map(len, hidden))
    sentence = encode(texts.FILLER)
    if room < len(sentence):
        raise ValueError(f"{tokens} tokens are too few for this task")
    filler = (sentence * (room // len(sentence) + 1))[:room]
    ids, last = list(head), 0
    for depth, needle in sorted(zip(depths, hidden, strict=True), key=lambda pair: pair[0]):
        place = int(room * depth) // len(sentence) * len(sentence)
        ids += filler[last:place] + needle
        last = place
    ids += filler[last:] + tail + answer
    first = len(ids) - len(answer)
    return texts.Passkey(
        ids=np.array([ids], np.int64),
        rows=np.arange(first - 1, len(ids) - 1),
        answer=np.array(answer, np.int64),
        key=key,
    )


def four_keys(tokenizer, tokens: int, seed: int) -> texts.Passkey:
    """Four keys of four people, one asked for."""
    rng = np.random.default_rng([4, seed])
    names = rng.permutation(NAMES)[:4]
    keys = [str(k) for k in rng.choice(np.arange(10000, 99999), 4, replace=False)]
    needles = [
        f"The pass key of {name} is {key}. Remember it. {key} is the pass key of {name}. "
        for name, key in zip(names, keys, strict=True)
    ]
    asked = int(rng.integers(4))
    name = names[asked]
    question = f"What is the pass key of {name}?"
    depths = (0.1, 0.35, 0.6, 0.85)
    return _prompt(tokenizer, tokens, needles, depths, question, f"The pass key of {name} is ", keys[asked])


def trace(tokenizer, tokens: int, seed: int) -> texts.Passkey:
    """A key that goes through three assignments, asked for under its last name, and a decoy."""
    rng = np.random.default_rng([3, seed])
    a, b, c, other = rng.permutation(NAMES)[:4]
    key, decoy = (str(int(k)) for k in rng.choice(np.arange(10000, 99999), 2, replace=False))
    needles = [
        f"The pass key of {other} is {decoy}. Remember it. {decoy} is the pass key of {other}. ",
        f"The pass key of {a} is {key}. Remember it. {key} is the pass key of {a}. ",
        f"The pass key of {b} is the pass key of {a}. ",
        f"The pass key of {c} is the pass key of {b}. ",
    ]
    question, lead = f"What is the pass key of {c}?", f"The pass key of {c} is "
    return _prompt(tokenizer, tokens, needles, (0.1, 0.37, 0.63, 0.9), question, lead, key)
