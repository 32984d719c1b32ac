"""Row liveness: only the rows that reach the outputs are computed, and they are the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import SHARED_MODELS, Case, compare, model_feeds, plain_session
from test_models import LENGTHS, MODELS, PATHS, facts

import prefill_opt
from prefill_opt.demo import smollm2

LANGUAGE = [n for n in MODELS if "logits" in facts(n).get("outputs", {}) and "bert" not in n]
#: What stops the rows of these models below their last attention, and why that is right.
STOPPED: dict[str, str] = {}
SMOLLM2 = smollm2.models_dir() / "smollm2" / "export" / "model.onnx"


def liveness(folder) -> dict:
    """The manifest's entry."""
    return json.loads((folder / "manifest.json").read_text())["row_liveness"]


def small_cases(name: str) -> list[Case]:
    """Lengths around tiles, a batch, padding and a cache where the model takes them."""
    found = [Case(1, n) for n in LENGTHS] + [Case(3, 65)]
    inputs = facts(name)["inputs"]
    if any("past_key_values" in i for i in inputs):
        found += [Case(1, 1, 7), Case(2, 65, 64)]
    if "attention_mask" in inputs and not any("Group" in op for op in facts(name)["ops"]):
        found += [Case(3, 65, 0, "left"), Case(3, 65, 0, "right")]
    return found


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize("which", ("last", "rows"))
def test_selected_logits_equal_the_original(name, which, compiled):
    path = PATHS[name]
    original = plain_session(path)
    folder = compiled(path, logits=which)
    entry = liveness(folder)
    assert entry["exact"] is True
    assert "was: all rows" in entry["logits"]
    queries = [layer for s in entry["selections"] for layer in s["queries"]]
    if name not in STOPPED:
        assert len(queries) == 1, f"queries of {queries or 'no attention'} shrink"
    session = prefill_opt.session(folder, intra_op_num_threads=1, log_severity_level=4)
    names = [o.name for o in original.get_outputs()]
    at = names.index("logits")
    wrong, done = [], 0
    for case in small_cases(name):
        feeds = model_feeds(original, case)
        try:
            expected = original.run(None, feeds)
        except Exception:
            continue  # The original itself cannot run this size.
        rows = np.array([-1], np.int64)
        if which == "rows":
            n = case.tokens
            rows = np.unique([0, n // 2, n - 2 if n > 1 else 0, n - 1]).astype(np.int64)[::-1].copy()
            feeds["logits_rows"] = rows
        expected[at] = expected[at][:, rows]
        wrong += compare(names, session.run(None, feeds), expected, str(case))
        done += 1
    assert not wrong, f"{len(wrong)} wrong, first: " + "; ".join(wrong[:6])
    assert done >= len(LENGTHS)


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not exported: python -m prefill_opt.demo")
def test_smollm2_is_the_same_to_the_bit(compiled):
    """The export selects rows itself; on two threads about ten seconds."""
    on, off = compiled(SMOLLM2), compiled(SMOLLM2, row_liveness="off")
    (selection,) = liveness(on)["selections"]
    assert selection["queries"] == ["inner.model.layers.29.self_attn"]
    assert selection["rows"] == "rows 'logits_to_keep'"
    assert "row_liveness" not in json.loads((off / "manifest.json").read_text())
    rng = np.random.default_rng(0)
    feeds = [
        {"input_ids": rng.integers(0, smollm2.VOCABULARY, (b, n)), "logits_to_keep": np.array(rows)}
        for b, n, rows in (
            (1, 1, [0]),
            (1, 2, [-1]),
            (2, 65, [64]),
            (1, 200, [199, 0, 5, 6, 7, -3, 0]),
            (1, 130, list(range(30, 130))),
        )
    ]
    results = []
    for folder in (on, off):
        session = prefill_opt.session(folder, intra_op_num_threads=1, log_severity_level=4)
        results.append([session.run(None, f) for f in feeds])
        del session
    for mine, theirs in zip(*results, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not exported: python -m prefill_opt.demo")
def test_few_rows_run_dense_in_a_sparse_model(compiled):
    """Of three single rows the last layer visits every visible block."""
    folder = compiled(SMOLLM2, sparsify="a-shape:init=64,local=64,dense-below=0")
    session = prefill_opt.session(folder, statistics=True, log_severity_level=4)
    ids = np.random.default_rng(1).integers(0, smollm2.VOCABULARY, (1, 600))
    feeds = {"input_ids": ids, "logits_to_keep": np.array([599, 3, 400])}
    found = prefill_opt.attention_statistics(session, feeds)
    assert (found[0]["density"] < 0.9).all()
    assert (found[29]["density"] == 1).all()
    assert found[29]["block_map"].shape[2] == 1
    assert (found[29]["block_map"] == 1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"logits": "first"}, "-logits=first: expected all, last or rows"),
        ({"logits": "last", "row_liveness": "off"}, "-logits=last needs -row-liveness=on"),
    ],
)
def test_wrong_options(options, message, compiler, tmp_path):
    model = SHARED_MODELS / "llama-dynamo18.onnx"
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(model, tmp_path / "out", **options)


@pytest.mark.skipif("bert-ts17" not in PATHS, reason="no shared/models/onnx beside the repository")
def test_models_without_logits(compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match="-logits=last: the model has no output 'logits'"):
        prefill_opt.compile(PATHS["bert-ts17"], tmp_path / "out", logits="last")
    # Its rows are all read: nothing changes.
    on = prefill_opt.compile(PATHS["bert-ts17"], tmp_path / "on")
    off = prefill_opt.compile(PATHS["bert-ts17"], tmp_path / "off", row_liveness="off")
    assert (on / "model.onnx").read_bytes() == (off / "model.onnx").read_bytes()
    assert liveness(on)["selections"] == []
