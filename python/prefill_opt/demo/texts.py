"""Prompts: passkeys hidden in filler, and a real text for perplexity. Deterministic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
#: Where in the filler the key is hidden, as shares of its length.
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Passkey:
    """One prompt that asks for a hidden number, with the answer appended.

    Attributes:
        ids: int64 [1, tokens], prompt and answer.
        rows: int64 [n], the positions whose logits predict the answer's tokens.
        answer: int64 [n], the tokens of the answer.
        key: the number as text.
    """

    ids: np.ndarray
    rows: np.ndarray
    answer: np.ndarray
    key: str

    def found(self, logits: np.ndarray) -> bool:
        """Whether the arg-max of every row of `logits` [n, vocabulary] is the answer."""
        return bool((np.asarray(logits).argmax(-1) == self.answer).all())


def passkey(tokenizer, tokens: int, depth: float, seed: int = 0) -> Passkey:
    """A chat prompt of exactly `tokens` tokens (the answer included).

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` with SmolLM2's chat tokens.
        tokens: total length; at least 200.
        depth: place of the key in the filler, 0 (start) to 1 (end).
        seed: chooses the number.

    Raises ValueError if `tokens` is too small to hold the question.
    """
    key = str(int(np.random.default_rng([seed, tokens, int(depth * 1000)]).integers(10000, 99999)))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    head = encode(
        "<|im_start|>user\nThere is important information hidden in a lot of irrelevant text. "
        "Find it and memorize it.\n\n"
    )
    needle = encode(f"The pass key is {key}. Remember it. {key} is the pass key. ")
    tail = encode("\n\nWhat is the pass key?<|im_end|>\n<|im_start|>assistant\nThe pass key is ")
    answer = encode(key)
    room = tokens - len(head) - len(needle) - len(tail) - len(answer)
    if room < 1:
        raise ValueError(f"a passkey prompt needs more than {tokens - room} tokens")
    sentence = encode(FILLER)
    filler = (sentence * (room // len(sentence) + 1))[:room]
    # Put the key at the start of a round of the filler, so that no sentence is cut.
    place = int(room * depth) // len(sentence) * len(sentence)
    ids = head + filler[:place] + needle + filler[place:] + tail + answer
    first = len(ids) - len(answer)
    return Passkey(
        ids=np.array([ids], np.int64),
        rows=np.arange(first - 1, len(ids) - 1),
        answer=np.array(answer, np.int64),
        key=key,
    )


def real_text(tokenizer, tokens: int, skip: int = 0) -> np.ndarray:
    """The first `tokens` tokens of Python's own documentation (``pydoc_data.topics``).

    The topics are joined in alphabetical order; `skip` tokens are left out before. Returns
    int64 [1, tokens]. Raises ValueError if the text is shorter than that (about 200,000).
    """
    from pydoc_data.topics import topics

    # Encoding topic by topic stops as soon as there is enough.
    ids: list[int] = []
    for name in sorted(topics):
        ids += tokenizer.encode(topics[name] + "\n\n", add_special_tokens=False).ids
        if len(ids) >= skip + tokens:
            return np.array([ids[skip : skip + tokens]], np.int64)
    raise ValueError(f"the text has only {len(ids)} tokens")


def perplexity_rows(tokens: int, count: int = 1024) -> np.ndarray:
    """The positions whose logits predict the last `count` tokens of a text: int64 [n]."""
    return np.arange(max(0, tokens - 1 - count), tokens - 1)


def perplexity(logits: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> float:
    """exp of the mean negative log-likelihood of ``ids[0, rows + 1]``.

    Args: logits float [n, vocabulary] of `rows`; ids int64 [1, tokens]; rows int64 [n].
    """
    total = 0.0
    for begin in range(0, len(rows), 128):
        part = np.asarray(logits[begin : begin + 128], np.float64)
        peak = part.max(-1)
        normaliser = peak + np.log(np.exp(part - peak[:, None]).sum(-1))
        chosen = ids[0, rows[begin : begin + 128] + 1]
        total += (normaliser - part[np.arange(len(part)), chosen]).sum()
    return float(np.exp(total / len(rows)))
