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
