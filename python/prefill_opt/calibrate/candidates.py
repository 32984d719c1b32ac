"""Candidates: what a head may be given. Pattern specs, configuration files, conversions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import CalibrationError

DENSE = {"type": "dense"}
#: Tried unless --candidates says otherwise: `auto` with other shares. Static patterns would win
#: some heads, but their choice does not carry over to other lengths (docs/Calibration.md).
DEFAULTS = tuple(
    f"sale:top-p={share},stride=4,local=64" for share in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
)
#: The same for --format=minference: budgets its list can say, from its own search.
MINFERENCE_DEFAULTS = (
    *(f"vertical-slash:vertical={v},slash={s}" for v, s in ((30, 800), (100, 750), (500, 700), (1000, 1500))),
    "a-shape:init=128,local=1024",
)
#: Spelling of types and options in the configuration file, where it differs from the spec's.
_TYPES = {"vertical-slash": "vertical_and_slash", "a-shape": "a_shape", "tri-shape": "tri_shape"}
_SHAPE_OPTIONS = {"init": "n_init", "local": "n_local", "last": "n_last"}
#: More keys than any prompt has: a window of it is dense in MInference's list.
_EVERYTHING = 1 << 20


def parse_spec(spec: str) -> dict:
    """``NAME:option=number,...`` as a head of the configuration file.

    Raises `CalibrationError` for a malformed spec. Unknown names are the compiler's to refuse.
    """
    name, _, options = spec.partition(":")
    head: dict = {"type": _TYPES.get(name, name)}
    shape = name in ("a-shape", "tri-shape")
    for part in filter(None, options.split(",")):
        key, equals, text = part.partition("=")
        if key == "dense-below":
            continue
        try:
            value = float(text)
        except ValueError as error:
            raise CalibrationError(f"candidate '{spec}': '{part}' is not option=number") from error
        if not equals:
            raise CalibrationError(f"candidate '{spec}': '{part}' is not option=number")
        head[_SHAPE_OPTIONS.get(key, key) if shape else key] = int(value) if value == int(value) else value
    return head


@dataclass
class Candidate:
    """A pattern for every head that is considered.

    Attributes:
        name: as shown; the spec.
        head: the configuration of a head; used where `heads` has none.
        heads: {(layer, query head): configuration}, for a candidate read from a file.
    """

    name: str
    head: dict = field(default_factory=lambda: dict(DENSE))
    heads: dict[tuple[int, int], dict] = field(default_factory=dict)

    def at(self, layer: int, head: int) -> dict:
        """The configuration of a query head."""
        return self.heads.get((layer, head), self.head)


def configuration(
    heads: Sequence[Sequence[dict]], model: str = "", dense_below: int | None = 0, target: str = "cpu"
) -> dict:
    """The configuration file for a choice ``heads[layer][query head]``."""
    layers = []
    for row in heads:
        if all(head["type"] == "dense" for head in row):
            layers.append({"dense": True})
        else:
            layers.append({"heads": {str(i): head for i, head in enumerate(row)}})
    body: dict = {"version": 1, "model": model, "target": target}
    if dense_below is not None:
        body["dense_below"] = dense_below
    return {**body, "layers": layers}


def _from_list(entry, place: str) -> dict:
    """A head of MInference's list as one of ours."""
    try:
        kind, first, second = entry[0], int(entry[1]), int(entry[2])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise CalibrationError(f"{place}: a head needs [type, number, number, ...]") from error
    if kind == "vertical_and_slash":
        return {"type": kind, "vertical": first, "slash": second}
    if kind == "stream_llm":
        return {"type": "a_shape", "n_init": first, "n_local": second}
    if kind == "block_sparse":
        return {"type": kind, "top_k": 100}
    raise CalibrationError(f"{place}: unknown type '{kind}'")


def read_configuration(path: str | Path, layers: int, heads: int) -> Candidate:
    """A configuration file, MInference's or ours, as a candidate called ``start``.

    Raises `CalibrationError` if it is unreadable or describes other numbers of layers or
    query heads than the model has.
    """
    try:
        body = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CalibrationError(f"cannot read {path}: {error}") from error
    extended = isinstance(body, dict)
    rows = body.get("layers") if extended else body
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CalibrationError(f"{path}: expected a list over layers or an object with one in \"layers\"")
    if len(rows) != layers:
        raise CalibrationError(
            f"{path} describes {len(rows)} layers, the model has {layers} raised attentions"
        )
    # A head that MInference's list leaves out gets its default, one of ours is dense.
    missing = dict(DENSE) if extended else {"type": "vertical_and_slash", "vertical": 1000, "slash": 6096}
    start = Candidate("start", missing)
    for layer, row in enumerate(rows):
        found = row.get("heads", {}) if extended else row
        if extended and row.get("dense"):
            found = {str(head): dict(DENSE) for head in range(heads)}
        for key, entry in found.items():
            place = f"{path}: layer {layer}, head {key}"
            if not key.isdigit() or int(key) >= heads:
                raise CalibrationError(f"{place}: the model has {heads} query heads")
            if isinstance(entry, list):
                entry = _from_list(entry, place)
            elif not isinstance(entry, dict) or "type" not in entry:
                raise CalibrationError(f"{place}: expected an object with a \"type\"")
            informative = ("recall", "ms", "score", "measured_density")
            start.heads[layer, int(key)] = {k: v for k, v in entry.items() if k not in informative}
    return start


def to_minference(head: dict, score: float) -> list:
    """A head as an entry of MInference's list; dense becomes a window over everything.

    Raises `CalibrationError` if that list has no words for it.
    """
    kind = head["type"]
    if kind == "dense":
        return ["stream_llm", 128, _EVERYTHING, score]
    if kind == "vertical_and_slash" and "density" not in head:
        return [kind, head.get("vertical", 1000), head.get("slash", 6096), score]
    if kind == "a_shape":
        return ["stream_llm", head.get("n_init", 128), head.get("n_local", 3968), score]
    if kind == "block_sparse" and head.get("top_k", 100) == 100 and "density" not in head:
        return [kind, 100, 100, score]
    raise CalibrationError(
        f"--format=minference has no words for {json.dumps(head)}: leave that candidate out"
    )
