"""Every shared export, compiled exactly, against ONNX Runtime on the original."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import (
    EXTRA_MODELS,
    SHARED_MODELS,
    Case,
    attention_sites,
    compare,
    count_kernels,
    model_feeds,
    plain_session,
)

import prefill_opt

PATHS = {
    path.stem: path for folder in (EXTRA_MODELS, SHARED_MODELS) for path in sorted(folder.glob("*.onnx"))
}
MODELS = sorted(PATHS)
LENGTHS = (1, 2, 63, 64, 65, 200)

pytestmark = pytest.mark.skipif(not MODELS, reason="no shared/models/onnx beside the repository")


def facts(name: str) -> dict:
    """The description beside a model."""
    return json.loads(PATHS[name].with_suffix(".json").read_text())


def is_gqa(name: str) -> bool:
    """Whether the model's attention is com.microsoft's GroupQueryAttention."""
    return any("GroupQueryAttention" in op for op in facts(name)["ops"])


def cases(name: str) -> list[Case]:
    """The calls to compare for a model, by the inputs it has."""
    inputs = facts(name)["inputs"]
    found = [Case(batch, tokens) for batch in (1, 3) for tokens in LENGTHS]
    has_past = any("past_key_values" in i for i in inputs)
    if has_past:
        for past in (1, 7, 64, 130):
            found += [Case(1, 1, past), Case(1, 65, past), Case(3, 1, past), Case(3, 65, past)]
    if "attention_mask" in inputs:
        sides = ("right",) if is_gqa(name) else ("left", "right")
        for side in sides:
            for tokens in (2, 64, 65, 200):
                found += [Case(1, tokens, 0, side), Case(3, tokens, 0, side)]
                if has_past:
                    found.append(Case(3, tokens, 13, side))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_attention_is_raised(name, compiler):
    report = prefill_opt.inspect(PATHS[name], timeout=60)
    sites = attention_sites(report)
    layers = facts(name)["dims"]["layers"]
    assert len(sites) == layers, f"{len(sites)} attentions found, the model has {layers}"
    declined = [f"layer {s['layer']}: {s['reason']}" for s in sites if not s["raised"]]
    assert not declined, "; ".join(declined)
    if PATHS[name].parent == SHARED_MODELS:
        dims = facts(name)["dims"]
        for site in sites:
            assert site["q_heads"] == dims["heads"]
            assert site["head_dim"] == dims["hidden"] // dims["heads"]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_the_original(name, compiled):
    path = PATHS[name]
    original = plain_session(path)
    folder = compiled(path)
    rewritten = prefill_opt.session(folder, intra_op_num_threads=1, log_severity_level=4)
    assert [o.name for o in rewritten.get_outputs()] == [o.name for o in original.get_outputs()]
    assert [(i.name, i.type) for i in rewritten.get_inputs()] == [
        (i.name, i.type) for i in original.get_inputs()
    ]
    names = [o.name for o in original.get_outputs()]
    wrong, done = [], 0
    for case in cases(name):
        feeds = model_feeds(original, case)
        try:
            expected = original.run(None, feeds)
        except Exception:
            continue  # The original itself cannot run this size.
        try:
            got = rewritten.run(None, feeds)
        except Exception as error:
            wrong.append(f"{case}: {str(error).splitlines()[0][:200]}")
            continue
        if is_gqa(name) and case.padding == "right":
            # GroupQueryAttention leaves the rows of padding unspecified.
            got, expected = _without_padding(got, case), _without_padding(expected, case)
        wrong += compare(names, got, expected, str(case))
        done += 1
    assert not wrong, f"{len(wrong)} wrong, first: " + "; ".join(wrong[:6])
    assert done >= len(LENGTHS), f"only {done} sizes could be compared"
    assert count_kernels(folder) > 0


def _without_padding(outputs: list[np.ndarray], case: Case) -> list[np.ndarray]:
    """Zeroes the rows of padding tokens in logits [b, s, v] and caches [b, h, past + s, d]."""
    mask = case.mask().astype(bool)
    result = []
    for array in outputs:
        array = array.copy()
        if array.ndim == 3:
            array[~mask[:, case.past :]] = 0
        elif array.ndim == 4:
            array.transpose(0, 2, 1, 3)[~mask[:, : array.shape[2]]] = 0
        result.append(array)
    return result


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("llama-dynamo18", "bert-ts17"))])
def test_threads_do_not_change_a_bit(name, compiled):
    folder = compiled(PATHS[name])
    case = Case(3, 200)
    results = []
    for threads in (1, 2, 3):
        session = prefill_opt.session(folder, intra_op_num_threads=threads, log_severity_level=4)
        results.append(session.run(None, model_feeds(session, case)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tobytes() == two.tobytes()
