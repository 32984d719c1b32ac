"""Helpers of the tests: sessions, inputs of exported language models, comparisons."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_MODELS = REPOSITORY.parent / "shared" / "models" / "onnx"
#: Another folder in the same form (model.onnx + model.json), e.g. more exports of
#: shared/models/export_models.py: a set that no pattern was written against.
EXTRA_MODELS = Path(os.environ.get("PREFILL_EXTRA_MODELS", "nowhere"))

NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
#: Largest allowed error of a row relative to its 2-norm, by type.
TOLERANCE = {"float32": 2e-5, "float64": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}


def plain_session(
    model: str | Path | bytes, threads: int = 1, optimise: bool = True
) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a model as it is (path or bytes)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, Path):
        model = str(model)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Case:
    """Sizes of one call: batch, new tokens, tokens in the cache, padding.

    Attributes:
        padding: "none", "left" or "right"; the last batch row then has about a third of its
            tokens masked, the others fewer, row 0 none if there are several rows.
    """

    batch: int
    tokens: int
    past: int = 0
    padding: str = "none"

    def __str__(self) -> str:
        text = f"b{self.batch} s{self.tokens} past{self.past}"
        return text if self.padding == "none" else f"{text} {self.padding}pad"

    def mask(self) -> np.ndarray:
        """int64 [batch, past + tokens]; at least one token of a row is visible."""
        total = self.past + self.tokens
        mask = np.ones((self.batch, total), np.int64)
        if self.padding == "none":
            return mask
        for row in range(self.batch):
            share = (row + 1) / (3 * self.batch) if self.batch == 1 else row / (3 * (self.batch - 1))
            # Right padding must leave at least one new token: only those are padded.
            count = min(int(share * total), self.tokens - 1 if self.padding == "right" else total - 1)
            if count:
                if self.padding == "left":
                    mask[row, :count] = 0
                else:
                    mask[row, -count:] = 0
        return mask


def _head_shape(shape: list) -> tuple[int, int]:
    """(heads, head dim) of a cache input declared [batch, heads, length, dim]."""
    heads, dim = shape[1], shape[3]
    return int(heads), int(dim) if isinstance(dim, int) or str(dim).isdigit() else 16


def model_feeds(session: onnxruntime.InferenceSession, case: Case, vocabulary: int = 100) -> dict:
    """Inputs of an exported language model for a case, by the names exporters use.

    Raises ValueError for an input name that is not known, so that no model is tested with
    made-up values.
    """
    rng = np.random.default_rng([case.batch, case.tokens, case.past])
    mask = case.mask()
    feeds = {}
    for item in session.get_inputs():
        kind = NUMPY_TYPES[item.type]
        name = item.name
        if name == "input_ids":
            value = rng.integers(3, vocabulary, (case.batch, case.tokens))
        elif name == "attention_mask":
            value = mask
        elif name == "position_ids":
            positions = np.maximum(mask.cumsum(-1) - 1, 0)
            value = positions[:, case.past :]
        elif name == "token_type_ids":
            value = np.zeros((case.batch, case.tokens))
        elif name in ("pixel_values", "input_features", "inputs_embeds"):
            sizes = [d if isinstance(d, int) else None for d in item.shape]
            sizes[0] = case.batch
            if name == "inputs_embeds":
                sizes[1] = case.tokens
            value = rng.standard_normal(sizes)
        elif "past_key_values" in name and len(item.shape) == 4:
            heads, dim = _head_shape(item.shape)
            value = rng.standard_normal((case.batch, heads, case.past, dim)) * 0.7
        else:
            raise ValueError(f"no value for input {name} {item.shape}")
        feeds[name] = np.ascontiguousarray(value, dtype=kind)
    return feeds


def row_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of a row (last axis), relative to the row's 2-norm.

    NaN must meet NaN and infinities their like, else the error is infinite. The norm of rows
    that are (almost) zero is taken as 1e-3 of the largest row's.
    """
    if got.shape != expected.shape:
        return float("inf")
    if got.size == 0:
        return 0.0
    if expected.dtype.kind in "biuOSU":
        return 0.0 if (got == expected).all() else float("inf")
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    bad, bad_expected = ~np.isfinite(got), ~np.isfinite(expected)
    if (bad != bad_expected).any() or not np.array_equal(got[bad], expected[bad], equal_nan=True):
        return float("inf")
    got, expected = np.where(bad, 0, got), np.where(bad, 0, expected)
    if got.ndim == 0:
        got, expected = got[None], expected[None]
    difference = np.sqrt(((got - expected) ** 2).sum(-1))
    norm = np.sqrt((expected**2).sum(-1))
    norm = np.maximum(norm, max(1e-3 * norm.max(), 1e-30))
    return float((difference / norm).max())


def tolerance(array: np.ndarray) -> float:
    """The allowed `row_error` for an array's type; integers must be equal."""
    return TOLERANCE.get(array.dtype.name, 0.0)


def compare(names: list[str], got: list, expected: list, where: str, factor: float = 1.0) -> list[str]:
    """Returns one line for every output that differs by more than its tolerance x `factor`."""
    wrong = []
    for name, mine, theirs in zip(names, got, expected, strict=True):
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        if mine.shape != theirs.shape:
            wrong.append(f"{where}: {name}: shape {mine.shape} instead of {theirs.shape}")
            continue
        error = row_error(mine, theirs)
        if not error <= factor * tolerance(theirs):
            wrong.append(f"{where}: {name}: relative error {error:.2e}")
    return wrong


def attention_sites(report: dict) -> list[dict]:
    """The list of sites of `prefill_opt.inspect`'s answer, its form checked."""
    sites = report["attention"]
    for site in sites:
        missing = {"layer", "raised", "reason", "form", "q_heads", "kv_heads", "head_dim", "mask"}
        missing -= set(site)
        assert not missing, f"inspect -json lacks {sorted(missing)}: {json.dumps(site)}"
    return sites


def count_kernels(folder: Path) -> int:
    """How many attention ops of ours a compiled model holds, those in subgraphs too."""

    def count(graph: onnx.GraphProto) -> int:
        inside = (a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH)
        here = sum(n.domain == "prefill.opt" and n.op_type == "Attention" for n in graph.node)
        return here + sum(count(g) for g in inside)

    return count(onnx.load(str(Path(folder) / "model.onnx"), load_external_data=False).graph)


def save_model(model: onnx.ModelProto, path: Path) -> Path:
    """Writes a model without checking it (tests need unusual ones); returns the path."""
    path.write_bytes(model.SerializeToString())
    return path
