"""Packs of prompts: the plan, and results equal to those of one prompt at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import SHARED_MODELS, compare

import prefill_opt
from prefill_opt import packing
from prefill_opt.demo import smollm2

SMOLLM2 = smollm2.models_dir() / "smollm2" / "export" / "model.onnx"
#: Exports that can be packed: no attention_mask, no cache.
PACKABLE = ("llama-dynamo18-nomask", "plain-dynamo18-eager", "plain-dynamo23", "plain-ts17")


def prompts(lengths, vocabulary=100, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, n) for n in lengths]


def test_plans():
    plan = prefill_opt.pack(prompts([5, 9, 3, 7, 1]), capacity=10)
    assert [p.prompts for p in plan.packs] == [(1, 4), (3, 2), (0,)]
    assert plan.packs[1].starts.tolist() == [0, 7, 10]
    assert plan.packs[1].positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert plan.packs[1].last_rows.tolist() == [6, 9]
    assert plan.gain == pytest.approx(45 / 25)
    assert prefill_opt.pack([]).packs == ()


def bins(lengths, capacity, algorithm):
    plan = prefill_opt.pack([[0] * n for n in lengths], capacity, algorithm, min_gain=1)
    return [list(p.prompts) for p in plan.packs]


def test_first_fit_decreasing_is_near_the_fewest():
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.integers(1, 60, rng.integers(1, 12)).tolist()
        few, many = (bins(lengths, 64, a) for a in ("exact", "ffd"))
        for found in (few, many):
            assert sorted(i for b in found for i in b) == list(range(len(lengths)))
            assert all(sum(lengths[i] for i in b) <= 64 for b in found)
        assert -(-sum(lengths) // 64) <= len(few) <= len(many) <= 11 / 9 * len(few) + 1
    # Where they differ.
    lengths = [8, 6, 3, 3, 2, 2]
    assert len(bins(lengths, 12, "exact")) == 2
    assert len(bins(lengths, 12, "ffd")) == 3


def test_first_fit_decreasing_by_its_definition():
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 40, 50).tolist()
    expected, room = [], []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = next((k for k, free in enumerate(room) if lengths[item] <= free), len(room))
        if at == len(room):
            expected.append([])
            room.append(64)
        expected[at].append(item)
        room[at] -= lengths[item]
    assert bins(lengths, 64, "ffd") == expected


def test_equal_lengths_gain_nothing():
    plan = prefill_opt.pack(prompts([8, 8, 8]))
    assert [p.prompts for p in plan.packs] == [(0,), (1,), (2,)]
    assert len(prefill_opt.pack(prompts([8, 8, 8]), min_gain=1).packs) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[1], []],), "prompt 1 is empty"),
        (([[1, 2, 3]], 2), "prompt 0 has 3 tokens, more than the capacity 2"),
        (([[[1]]],), "prompt 0: expected a list of token ids"),
        (([[1]], None, "best"), "expected ffd or exact"),
        (([[1]], 0), "capacity 0: expected a positive number"),
        (([[1]], None, "ffd", 0), "min_gain 0: expected a positive number"),
        (([[1], [1, 2]] * 11, None, "exact"), "at most 20 prompts, got 22"),
    ],
)
def test_wrong_plans(arguments, message):
    with pytest.raises(ValueError, match=message):
        prefill_opt.pack(*arguments)


def one_by_one(session, prompts, selecting):
    """Outputs of each prompt alone, in a model that is not packed."""
    inputs = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    results = []
    for prompt in prompts:
        feeds = {"input_ids": prompt[None]}
        if "position_ids" in inputs:
            feeds["position_ids"] = np.arange(len(prompt))[None]
        if selecting:
            feeds["logits_to_keep"] = np.array([len(prompt) - 1])
        values = session.run(None, feeds)
        results.append({name: value[0] for name, value in zip(names, values, strict=True)})
    return results


def shared_model(name: str) -> Path:
    """The path of one of the shared exports; skips the test where they are not at hand."""
    path = SHARED_MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("no shared/models/onnx beside the repository")
    return path


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("sparsify", ("dense", "a-shape:init=16,local=16,dense-below=0"))
def test_packs_equal_one_by_one(name, sparsify, compiled):
    """Prompts of 5 and 1 alone are the pack that the authors' code loses the second one of."""
    model = shared_model(name)
    packed, alone = compiled(model, sparsify=sparsify, pack="ffd"), compiled(model, sparsify=sparsify)
    assert json.loads((packed / "manifest.json").read_text())["pack"]["exact"] is True
    packs = prefill_opt.session(packed, intra_op_num_threads=1, log_severity_level=4)
    session = prefill_opt.session(alone, intra_op_num_threads=1, log_severity_level=4)
    wrong = []
    for lengths in ([1, 200, 64, 65, 2, 63, 130], [5, 1]):
        given = prompts(lengths)
        got = packing.run_packed(packs, prefill_opt.pack(given, capacity=300))
        for i, (mine, theirs) in enumerate(zip(got, one_by_one(session, given, False), strict=True)):
            where = f"prompt {i} of {len(given)}"
            wrong += compare(list(theirs), [mine[n] for n in theirs], list(theirs.values()), where)
    assert not wrong, "; ".join(wrong[:5])


@pytest.mark.parametrize(
    "name, message",
    [
        ("llama-dynamo18", "reads 'attention_mask'"),
        ("llama-dynamo23-pos-nomask", "it has a mask or bias of its own"),
        ("bert-ts17", "-pack: "),
    ],
)
def test_models_that_cannot_be_packed(name, message, compiler, tmp_path):
    model = shared_model(name)
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(model, tmp_path / "out", pack="ffd")


def test_wrong_option_and_wrong_model(compiled, tmp_path):
    model = shared_model("llama-dynamo18-nomask")
    with pytest.raises(prefill_opt.CompileError, match="-pack=best: expected ffd, exact or off"):
        prefill_opt.compile(model, tmp_path / "out", pack="best")
    session = prefill_opt.session(compiled(model), log_severity_level=4)
    with pytest.raises(ValueError, match="no input segment_starts: compile it with -pack=ffd"):
        packing.run_packed(session, prefill_opt.pack([[5]]))


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not exported: python -m prefill_opt.demo")
def test_smollm2_in_a_pack(compiled):
    """Logits and caches as one by one; other neighbours change no bit."""
    given = prompts([40, 1, 97, 64], smollm2.VOCABULARY)
    session = prefill_opt.session(compiled(SMOLLM2, pack="ffd"), intra_op_num_threads=1, log_severity_level=4)
    got = packing.run_packed(session, prefill_opt.pack(given))
    others = [p if i == 2 else (p + 1) % smollm2.VOCABULARY for i, p in enumerate(given)]
    again = packing.run_packed(session, prefill_opt.pack(others))
    del session
    for name, value in got[2].items():
        assert value.tobytes() == again[2][name].tobytes(), name
    assert not np.array_equal(got[0]["logits"], again[0]["logits"])
    session = prefill_opt.session(compiled(SMOLLM2), intra_op_num_threads=1, log_severity_level=4)
    for i, (mine, theirs) in enumerate(zip(got, one_by_one(session, given, True), strict=True)):
        assert not compare(list(theirs), [mine[n] for n in theirs], list(theirs.values()), f"prompt {i}")
