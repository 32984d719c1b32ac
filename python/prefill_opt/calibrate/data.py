"""Reads the text that is calibrated on: token ids, or text with a tokenizer file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .errors import CalibrationError

#: Keys of a block of the index; a shorter text has nothing to leave out.
BLOCK = 64


def _from_text(text: str, path: Path, tokenizer: str | None) -> list:
    """Token ids of a text file: a JSON list, whitespace-separated ids, or prose."""
    if tokenizer:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise CalibrationError("--tokenizer needs the Python package 'tokenizers'") from error
        try:
            reader = Tokenizer.from_file(str(tokenizer))
        except Exception as error:
            raise CalibrationError(f"cannot read the tokenizer {tokenizer}: {error}") from error
        return reader.encode(text, add_special_tokens=False).ids
    if text.lstrip().startswith("["):
        try:
            ids = json.loads(text)
        except json.JSONDecodeError as error:
            raise CalibrationError(f"{path} starts like a JSON list but is none: {error}") from error
        return ids[0] if len(ids) == 1 and isinstance(ids[0], list) else ids
    try:
        return [int(word) for word in text.split()]
    except ValueError as error:
        raise CalibrationError(
            f"{path} holds no token ids; for plain text give --tokenizer=tokenizer.json"
        ) from error


def read_ids(path: str | Path, tokens: int, tokenizer: str | None = None) -> np.ndarray:
    """The first `tokens` token ids of a file, int64 [1, n] with BLOCK < n <= tokens.

    Args:
        path: ``.npy``, a JSON list, whitespace-separated ids or, with `tokenizer`, text.
        tokens: how many to take at most.
        tokenizer: a ``tokenizer.json`` of the ``tokenizers`` library.

    Raises `CalibrationError` for an unreadable, empty or too short file.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            ids = np.load(path, allow_pickle=False).reshape(-1)
        else:
            ids = np.array(_from_text(path.read_text(), path, tokenizer))
    except (OSError, ValueError) as error:
        raise CalibrationError(f"cannot read {path}: {error}") from error
    if ids.size == 0:
        raise CalibrationError(f"{path} is empty: calibration needs data")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise CalibrationError(f"{path} holds no list of whole numbers")
    if ids.min() < 0:
        raise CalibrationError(f"{path} holds the negative token id {ids.min()}")
    if len(ids) <= BLOCK:
        raise CalibrationError(
            f"{path} has {len(ids)} tokens; calibration needs more than a block of {BLOCK}"
        )
    return ids[:tokens].astype(np.int64)[None]


def check_range(ids: np.ndarray, vocabulary: int) -> None:
    """Raises `CalibrationError` if a token id is not below `vocabulary`."""
    if ids.max() >= vocabulary:
        raise CalibrationError(f"token id {ids.max()} is not in the model's vocabulary of {vocabulary}")
