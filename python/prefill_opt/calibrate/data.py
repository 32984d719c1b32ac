"""Reads the texts that are calibrated on: token ids, or text with a tokenizer file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import CalibrationError

#: Keys of a block of the index; a shorter text has nothing to leave out.
BLOCK = 64


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        place: the path as it was given, with several documents in the file ``PATH, document 2``.
        ids: token ids, int64 [1, tokens].
    """

    place: str
    ids: np.ndarray

    @property
    def name(self) -> str:
        """`place` without folders, for plans and reports."""
        return self.place.rpartition("/")[2]


def _from_text(text: str, path: Path, tokenizer: str | None) -> list:
    """The documents of a text file, each a list of token ids: of a JSON list of ids, or of such
    lists; of whitespace-separated ids, or prose, which are one document."""
    if tokenizer:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise CalibrationError("--tokenizer needs the Python package 'tokenizers'") from error
        try:
            reader = Tokenizer.from_file(str(tokenizer))
        except Exception as error:
            raise CalibrationError(f"cannot read the tokenizer {tokenizer}: {error}") from error
        return [reader.encode(text, add_special_tokens=False).ids]
    if text.lstrip().startswith("["):
        try:
            ids = json.loads(text)
        except json.JSONDecodeError as error:
            raise CalibrationError(f"{path} starts like a JSON list but is none: {error}") from error
        return ids if ids and all(isinstance(each, list) for each in ids) else [ids]
    try:
        return [[int(word) for word in text.split()]]
    except ValueError as error:
        raise CalibrationError(
            f"{path} holds no token ids; for plain text give --tokenizer=tokenizer.json"
        ) from error


def read_documents(path: str | Path, tokens: int, tokenizer: str | None = None) -> list[Document]:
    """The documents of a file, of each the first `tokens` token ids, more than BLOCK.

    Args:
        path: ``.npy`` of ids, one row a document; a JSON list of ids or a list of such lists,
            one a document; whitespace-separated ids or, with `tokenizer`, text: one document.
        tokens: how many to take at most.
        tokenizer: a ``tokenizer.json`` of the ``tokenizers`` library.

    Raises `CalibrationError` for an unreadable, empty or too short document; it names it.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            found = list(array) if array.ndim == 2 else [array.reshape(-1)]
        else:
            found = [np.array(ids) for ids in _from_text(path.read_text(), path, tokenizer)]
    except (OSError, ValueError) as error:
        raise CalibrationError(f"cannot read {path}: {error}") from error
    if not found or (len(found) == 1 and found[0].size == 0):
        raise CalibrationError(f"{path} is empty: calibration needs data")
    documents = []
    for number, ids in enumerate(found, 1):
        place = str(path) if len(found) == 1 else f"{path}, document {number}"
        if ids.size == 0:
            raise CalibrationError(f"{place} is empty: calibration needs data")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise CalibrationError(f"{place} holds no list of whole numbers")
        if ids.min() < 0:
            raise CalibrationError(f"{place} holds the negative token id {ids.min()}")
        if len(ids) <= BLOCK:
            raise CalibrationError(
                f"{place} has {len(ids)} tokens; calibration needs more than a block of {BLOCK}"
            )
        documents.append(Document(place, ids[:tokens].astype(np.int64)[None]))
    return documents


def read_texts(paths: Sequence[str | Path], tokens: int, tokenizer: str | None = None) -> list[Document]:
    """The documents of all files, of one length: `tokens`, or what the only one has.

    Raises `CalibrationError` as `read_documents` does, and if one of several is shorter than
    another, or the same.
    """
    found = [document for path in paths for document in read_documents(path, tokens, tokenizer)]
    longest = max(found, key=lambda document: document.ids.shape[1])
    most = longest.ids.shape[1]
    seen: dict[bytes, Document] = {}
    for document in found:
        length = document.ids.shape[1]
        if length < most:
            raise CalibrationError(
                f"{document.place} has {length} tokens, {longest.place} {most}: texts of one length are "
                f"needed; leave it out, or give --tokens={length}"
            )
        before = seen.setdefault(document.ids.tobytes(), document)
        if before is not document:
            raise CalibrationError(
                f"{before.place} and {document.place} begin with the same {length} tokens: one says "
                "nothing about the other"
            )
    return found


def check_range(document: Document, vocabulary: int) -> None:
    """Raises `CalibrationError` if a token id is not below `vocabulary`."""
    most = document.ids.max()
    if most >= vocabulary:
        raise CalibrationError(
            f"{document.place}: token id {most} is not in the model's vocabulary of {vocabulary}"
        )
