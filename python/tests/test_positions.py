"""Positions of several axes (multimodal rotary embedding): row transforms take them from the host, or refuse.

Learned positions and ALiBi: test_chunking.py, test_parallel.py, test_packing.py, chunk-prompt-mixers.mlir.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_chunking import open_session
from test_lazyllm import deep_decoder

import prefill_opt
from prefill_opt import chunking, packing

AXES, LENGTHS = 3, (21, 1, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("axes") / "model.onnx"
    deep_decoder(path, layers=3, axes=AXES)
    return path


def positions(length: int, seed: int = 0) -> np.ndarray:
    """As of an image in a text: the axes differ, and do not grow by 1."""
    return np.sort(np.random.default_rng(seed).integers(0, 50, (AXES, 1, length)), -1)


PROMPTS = [np.random.default_rng(n).integers(0, 60, n) for n in LENGTHS]
GIVEN = [positions(n, n) for n in LENGTHS]


@pytest.fixture(scope="module")
def alone(model, compiled):
    """Logits [rows, vocabulary] of each prompt by itself."""
    session = open_session(compiled(model))
    return [
        session.run(["logits"], {"input_ids": ids[None], "position_ids": where})[0][0]
        for ids, where in zip(PROMPTS, GIVEN, strict=True)
    ]


def test_packs(model, compiled, alone):
    session = open_session(compiled(model, pack="ffd"))
    feeds = {
        "input_ids": np.concatenate(PROMPTS)[None],
        "position_ids": np.concatenate(GIVEN, -1),
        "segment_starts": np.cumsum([0, *LENGTHS]),
    }
    found = session.run(["logits"], feeds)[0][0]
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-4)
    with pytest.raises(ValueError, match="positions of several axes"):
        packing.run_packed(session, prefill_opt.pack(PROMPTS))


@pytest.mark.parametrize("prune", (None, "quickprefill:group=7,top-p=1"))
def test_chunks(model, compiled, alone, prune):
    folder = compiled(model, prune=prune) if prune else compiled(model, chunk="7")
    session = open_session(folder)
    with pytest.raises(ValueError, match="positions of several axes"):
        chunking.Cache(session, 40)
    cache = {
        i.name: np.zeros((1, i.shape[1], 40, i.shape[3]), np.float32) for i in session.get_inputs() if "past" in i.name
    }
    names, parts = [o.name for o in session.get_outputs()], []
    for begin in range(0, 40, 7):
        end = min(40, begin + 7)
        feeds = {
            "input_ids": PROMPTS[2][None, begin:end],
            "position_ids": GIVEN[2][..., begin:end],
            "segment_starts": np.array([0, end - begin]),
            "cache_slots": np.array([[0, begin]]),
        }
        if prune:
            feeds["prompt_parts"] = np.array([[begin, 40 - end]])
        values = dict(zip(names, session.run(None, feeds | cache), strict=True))
        cache = {name: values[name.replace("past_key_values", "present")] for name in cache}
        parts.append(values["logits"][0])
    np.testing.assert_allclose(np.concatenate(parts), alone[2], atol=1e-4)


def test_pruned_rows_keep_theirs(model, compiled, alone):
    """Where nothing is worth less than a row that stays, nothing changes: positions go along with rows."""
    session = open_session(compiled(model, prune="lazyllm:layers=1,keep=0.5", protect="rows:0-99", logits="last"))
    feeds = {"input_ids": PROMPTS[2][None], "position_ids": GIVEN[2]}
    np.testing.assert_allclose(session.run(["logits"], feeds)[0][0, -1], alone[2][-1], atol=1e-4)
    session = open_session(compiled(model, prune="lazyllm:layers=1,keep=0.5", logits="last"))
    rows, logits = session.run(["prefill.rows.1", "logits"], feeds)
    # In the layers after it, what is left is a prompt with these positions: to move them all changes nothing.
    moved = session.run(["prefill.rows.1", "logits"], feeds | {"position_ids": GIVEN[2] + 5})
    np.testing.assert_array_equal(rows, moved[0])
    np.testing.assert_allclose(logits, moved[1], atol=1e-4)
    other = session.run(["logits"], feeds | {"position_ids": GIVEN[2][::-1]})[0]
    assert np.abs(other - logits).max() > 1e-2


def test_what_is_refused(model, compiled):
    session = open_session(compiled(model, parallel_encode="ape"))
    with pytest.raises(ValueError, match="positions of several axes"):
        prefill_opt.parallel_encode(session, [1], [[2]], [3])
    session = open_session(compiled(model, prune="quickprefill:group=7"))
    with pytest.raises(ValueError, match="positions of several axes"):
        prefill_opt.run_quickprefill(session, PROMPTS[2])
    with pytest.raises(prefill_opt.CompileError, match="'position_ids' is not .batch, tokens.: positions of several"):
        compiled(model, prune="lazyllm:layers=1,keep=0.5,aux=on", logits="last")
