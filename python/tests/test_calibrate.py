"""Offline calibration: measurements, choice, files, errors, resumption; on a tiny model."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from prefill_opt.calibrate import candidates, choose, data, search, weights
from prefill_opt.calibrate.__main__ import main
from prefill_opt.calibrate.errors import CalibrationError
from prefill_opt.calibrate.measure import Kernels, by_head, compare
from prefill_opt.calibrate.model import Model
from prefill_opt.calibrate.state import State, write_atomically
from prefill_opt.compiler import CompileError, run_compiler
from support import SHARED_MODELS

MODEL = "llama-dynamo18-nomask"
LAYERS, HEADS, VOCABULARY = 2, 4, 112
SPECS = "xattention:threshold=0.8;a-shape:init=64,local=128"

pytestmark = pytest.mark.skipif(not (SHARED_MODELS / f"{MODEL}.onnx").exists(), reason="no shared models")


@pytest.fixture
def tiny(compiler, tmp_path) -> Path:
    """A copy of the tiny model, since work folders may lie beside it."""
    return Path(shutil.copy(SHARED_MODELS / f"{MODEL}.onnx", tmp_path / "model.onnx"))


@pytest.fixture
def ids(tmp_path) -> Path:
    path = tmp_path / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(3, VOCABULARY, 512))
    return path


def arguments(model: Path, ids: Path, *more: str) -> list[str]:
    folder = model.parent
    fast = ["--tokens=512", "--groups=2", "--random-runs=2", "--repeats=1"]
    fast += ["--cost=blocks", "--threads=1", "-q"]
    if not any("--candidates" in word for word in more):
        fast.append(f"--candidates={SPECS}")
    given = [str(model), f"--data={ids}", "-o", str(folder / "plan.json"), f"--state={folder / 'state'}"]
    return [*given, *fast, *more]


def test_plan_is_written_and_compiles(tiny, ids, tmp_path, compiled):
    assert main(arguments(tiny, ids, "--max-loss=30%")) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["version"] == 1 and plan["model"] == "model.onnx" and len(plan["layers"]) == LAYERS
    heads = [head for layer in plan["layers"] for head in layer.get("heads", {}).values()]
    assert heads, "nothing was made sparse at 30 % loss"
    for head in heads:
        assert head["type"] in ("xattention", "a_shape", "dense")
        if head["type"] != "dense":
            assert 0 < head["recall"] <= 1 and 0 < head["measured_density"] <= 1 and head["ms"] > 0
    assert plan["calibration"]["density"] < 1
    compiled(tiny, sparsify=f"config:{tmp_path / 'plan.json'}")
    assert not list(tmp_path.glob(".*")), "something was left behind"


def test_plain_sparsify_takes_the_plan_beside_the_model(tiny, ids, tmp_path, capsys):
    written = [word for word in arguments(tiny, ids, "--max-loss=30%") if word != "-o"]
    written.remove(str(tmp_path / "plan.json"))
    assert main(written) == 0
    beside = tmp_path / "model.prefill.json"
    assert beside.is_file()

    def taken(*flags: str) -> tuple[str, str]:
        out = tmp_path / "out"
        done = run_compiler([tiny, *flags, "-o", out])
        return json.loads((out / "manifest.json").read_text())["sparsify"], done.stderr

    assert taken("-sparsify=auto")[0] == taken("-sparsify")[0] == f"config:{beside}"
    assert "takes the calibrated" in taken("-sparsify")[1]
    for flags in (("-sparsify=auto:",), ("-sparsify=auto:top-p=0.9",), ("-sparsify=dense",), ()):
        assert "config" not in taken(*flags)[0] and not taken(*flags)[1]
    # A plan of another model is an error, as with config:FILE.
    plan = json.loads(beside.read_text())
    beside.write_text(json.dumps({**plan, "layers": plan["layers"] + plan["layers"]}))
    with pytest.raises(CompileError, match=r"model\.prefill\.json"):
        run_compiler([tiny, "-sparsify", "-o", tmp_path / "none"])
    assert not (tmp_path / "none").exists()


def test_same_twice_and_from_the_state(tiny, ids, tmp_path, monkeypatch):
    assert main(arguments(tiny, ids, "--max-loss=10%")) == 0
    first = (tmp_path / "plan.json").read_text()
    # From the state: no kernel is measured again.
    monkeypatch.setattr(search, "measure_layer", lambda *a: pytest.fail("measured again"))
    assert main(arguments(tiny, ids, "--max-loss=10%")) == 0
    assert (tmp_path / "plan.json").read_text() == first
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "state")
    assert main(arguments(tiny, ids, "--max-loss=10%")) == 0

    def without_times(text: str) -> list:
        layers = json.loads(text)["layers"]
        return [[{**head, "ms": 0} for head in layer.get("heads", {}).values()] for layer in layers]

    assert without_times((tmp_path / "plan.json").read_text()) == without_times(first)


def test_interrupted_goes_on(tiny, ids, tmp_path, monkeypatch, capsys):
    done = []
    real = search.measure_layer

    def interrupted(operands, *rest):
        if done:
            raise KeyboardInterrupt
        done.append(operands.layer)
        return real(operands, *rest)

    monkeypatch.setattr(search, "measure_layer", interrupted)
    assert main(arguments(tiny, ids)) == 130
    assert "goes on" in capsys.readouterr().err and not (tmp_path / "plan.json").exists()

    def counting(operands, *rest):
        done.append(operands.layer)
        return real(operands, *rest)

    monkeypatch.setattr(search, "measure_layer", counting)
    assert main(arguments(tiny, ids)) == 0
    assert done == [0, 1], "a layer was measured twice or not at all"


@pytest.fixture
def texts(tmp_path) -> list[Path]:
    """Three texts of two files; the model knows nothing about any of them."""
    rng = np.random.default_rng(1)
    two, one = tmp_path / "two.npy", tmp_path / "one.json"
    np.save(two, rng.integers(3, VOCABULARY, (2, 512)))
    one.write_text(json.dumps(rng.integers(3, 20, 600).tolist()))
    return [two, one]


def test_several_texts(tiny, texts, tmp_path, capsys):
    more = (f"--data={texts[1]}", "--max-loss=10%", f"--report={tmp_path / 'report'}")
    given = arguments(tiny, texts[0], *more)
    assert main(given) == 0
    assert "on the worst if it is left out (" in capsys.readouterr().out
    first = (tmp_path / "plan.json").read_text()
    found = json.loads(first)["calibration"]
    names = [text["name"] for text in found["texts"]]
    assert names == ["two.npy, document 1", "two.npy, document 2", "one.json"]
    losses = [text["loss"] for text in found["texts"]]
    assert np.log1p(found["loss"]) == pytest.approx(np.log1p(losses).mean(), abs=3e-5)
    # The budget is held with the margin, and where each text has no say in its own plan.
    spread = found["spread"]
    assert choose.held(found["texts"], spread) <= found["held"] + 1e-4 and found["held"] <= 0.1
    left_out = [{**text, "loss": text["left_out"]} for text in found["texts"]]
    assert choose.held(left_out, spread) == pytest.approx(found["held"], abs=0.02)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "512 tokens of 3 texts each" in page and all(page.count(f"<td>{name}") == 1 for name in names)
    assert main(given) == 0
    assert (tmp_path / "plan.json").read_text() == first


def test_check_of_a_plan(tiny, texts, tmp_path, capsys):
    given = arguments(tiny, texts[0], f"--data={texts[1]}", "--max-loss=10%")
    assert main(given) == 0
    plan = tmp_path / "plan.json"
    chosen = json.loads(plan.read_text())["calibration"]
    body = json.loads(plan.read_text())
    plan.write_text(json.dumps({**body, "dense_below": 0}))  # Checked as a user runs it: with that.
    capsys.readouterr()
    asked = [str(tiny), *(f"--data={path}" for path in texts), "--tokens=512", "--threads=1", "-q"]
    assert main([*asked, f"--check={plan}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line, text in zip(lines, chosen["texts"], strict=False):
        assert line.startswith(text["name"])
        loss = re.search(r"perplexity (\S+)% .* ([0-9.]+)% of the blocks", line)
        assert float(loss[1]) == pytest.approx(100 * text["loss"], abs=0.011)
        assert float(loss[2]) == pytest.approx(100 * text["density"], abs=0.051)
    assert "margin" in lines[3]
    # Patterns too; a budget that is not held is an error.
    assert main([*asked, "--check=a-shape:init=64,local=64,dense-below=0", "--max-loss=0"]) == 1
    out, error = capsys.readouterr()
    assert "more than --max-loss" in error and len(out.splitlines()) == 4
    for wrong, message in (("no-such", "no-such"), ("a-shape:local=-1", "local")):
        assert main([*asked, f"--check={wrong}"]) == 1
        assert message in capsys.readouterr().err
    assert main([*given, f"--check={plan}"]) == 1 and "leave out -o" in capsys.readouterr().err
    assert not list(tmp_path.glob(".work*"))


def test_another_text_costs_only_its_own_measurements(tiny, texts, tmp_path, monkeypatch):
    given = arguments(tiny, texts[0])
    assert main(given) == 0
    measured = []
    real = search.measure_layer

    def counting(operands, heads, dense, sparse, repeats):
        measured.append((operands.layer, repeats))
        return real(operands, heads, dense, sparse, repeats)

    monkeypatch.setattr(search, "measure_layer", counting)
    assert main([*given, f"--data={texts[1]}"]) == 0
    assert measured == [(0, 0), (1, 0)], "only the new text, and no times"
    # Where it comes first its kernels are timed: the order is not part of what is known.
    measured.clear()
    assert main(arguments(tiny, texts[1], f"--data={texts[0]}")) == 0
    assert measured == [(0, 1), (1, 1)]


def test_budget_is_kept(tiny, ids, tmp_path):
    shares = []
    for loss in ("0%", "3%", "1000%"):
        assert main(arguments(tiny, ids, f"--max-loss={loss}")) == 0
        found = json.loads((tmp_path / "plan.json").read_text())["calibration"]
        assert found["loss"] + found["error"] <= float(loss[:-1]) / 100 + 1e-9
        shares.append(found["density"])
    assert shares[0] >= shares[1] >= shares[2] and shares[0] > 0.8 and shares[2] < 0.8
    assert main(arguments(tiny, ids, "--max-time=90%")) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["calibration"]["cost"] <= 0.9


def test_recall_is_the_softmax_mass_that_is_kept(tiny, ids, tmp_path):
    """Against float64 softmax over the very blocks that a-shape keeps."""
    model = Model(tiny, tmp_path, 1)
    head = candidates.parse_spec("a-shape:init=64,local=64")
    folder = model.compile([[head] * HEADS] * LAYERS)
    dense, sparse = Kernels(model.dense, 1), Kernels(folder, 1)
    for operands in model.capture(np.load(ids)[None], range(LAYERS)):
        exact = dense.run(operands, HEADS)
        assert np.allclose(exact["o"], operands.result, atol=1e-5)
        mine = sparse.run(operands, HEADS)
        found = compare(exact, mine, HEADS)
        assert 0 < min(found["recall"]) < 0.999, "the pattern leaves nothing out: the test says nothing"
        # Recall from the kernel's own weights: dense output of indicator values over kept keys.
        rows = np.arange(512)
        visible = rows[:, None] >= rows[None]
        near = rows[:, None] // 64 - rows[None] // 64
        kept = visible & ((near <= 1) | (rows[None] < 64))
        q, k = rotated(operands)
        for number in range(HEADS):
            scores = q[number] @ k[number * k.shape[0] // HEADS].T / np.sqrt(q.shape[-1])
            mass = np.exp(scores - scores.max(-1, keepdims=True)) * visible
            share = (mass * kept).sum(-1) / mass.sum(-1)
            assert abs(share.mean() - found["recall"][number]) < 2e-3
            assert abs(share[-64:].mean() - found["recall_last"][number]) < 2e-3


def rotated(operands) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys [heads, rows, dim] in float64 with the rotary embedding applied."""
    made = []
    for array in operands.inputs[:2]:
        array = array[0].astype(np.float64)
        if array.ndim == 2:
            array = array.reshape(array.shape[0], -1, 16)
        if array.shape[0] == 512:
            array = array.transpose(1, 0, 2)
        if len(operands.inputs) > 11 and operands.inputs[10] is not None:
            tables = (table.reshape(-1, table.shape[-1]) for table in operands.inputs[10:12])
            cos, sin = (table[:512, :8].astype(np.float64) for table in tables)
            first, second = array[..., :8], array[..., 8:]
            array = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
        made.append(array)
    return made[0], made[1]


def test_layouts():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((2, 5, 12))
    four = flat.reshape(2, 5, 3, 4)
    expected = by_head(flat, 3, 5)
    assert expected.shape == (3, 10, 4)
    assert (by_head(four, 3, 5) == expected).all()
    assert (by_head(np.ascontiguousarray(four.transpose(0, 2, 1, 3)), 3, 5) == expected).all()


def test_costs_are_split():
    density = np.array([0.1, 0.2, 0.5, 0.8])
    dense = np.array([1.0, 2.0, 1.0, 3.0])
    assert choose.fit_costs((0.06 + 0.9 * density) * dense, dense, density) == (0.06, 0.9)
    # No spread of densities: blocks cost what dense's do, the rest is the estimate.
    assert choose.fit_costs(np.array([0.35]), np.array([1.0]), np.array([0.25])) == (0.1, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_choice_is_the_best_for_its_cost(seed):
    """Every plan of the sweep against all plans of three heads and four candidates."""
    rng = np.random.default_rng(seed)
    cost = np.concatenate([np.ones((3, 1)), rng.random((3, 3))], 1)
    error = np.concatenate([np.zeros((3, 1)), rng.random((3, 3))], 1)
    everything = np.stack(np.meshgrid(*[range(4)] * 3), -1).reshape(-1, 3)
    take = lambda table, plan: table[np.arange(3), plan].sum()  # noqa: E731
    sequence = choose.plans(error, cost)
    assert len(sequence) > 2 and not sequence[0].any()
    for plan in sequence:
        cheaper = [p for p in everything if take(cost, p) <= take(cost, plan) + 1e-12]
        assert take(error, plan) <= min(take(error, p) for p in cheaper) + 1e-12
    # No corner of the hull is missing: at every price, the best of all plans is among them.
    for price in np.geomspace(1e-2, 1e2, 60):
        best, mine = (min(take(error, p) + price * take(cost, p) for p in s) for s in (everything, sequence))
        assert mine <= best * (1 + 1e-9)


def test_bisection_finds_the_last_good_plan():
    sequence = [np.array([i]) for i in range(50)]
    for last in (0, 7, 33, 49):
        assert choose.cheapest_within(sequence, lambda p: p[0] / 100, last / 100, 10, first=20) == last
    # Without enough steps it stays on the safe side.
    assert choose.cheapest_within(sequence, lambda p: p[0] / 100, 0.33, 2) <= 33


def test_weights_are_recovered():
    rng = np.random.default_rng(5)
    heads, groups = 24, 6
    truth = rng.uniform(0.2, 5, groups).repeat(4) * rng.uniform(0.7, 1.4, heads)
    of_head = np.arange(groups).repeat(4)
    probe = rng.uniform(0.5, 2, heads)
    group_error = np.array([probe[of_head == g].sum() for g in range(groups)])
    group_loss = np.array([(truth * probe)[of_head == g].sum() for g in range(groups)])
    errors = rng.uniform(0, 2, (40, heads)) * (rng.random((40, heads)) < 0.5)
    found = weights.fit(group_loss, group_error, of_head, errors @ truth, errors)
    prior = weights.fit(group_loss, group_error, of_head, np.zeros(0), np.zeros((0, heads)))
    assert np.abs(np.log(found / truth)).mean() < 0.5 * np.abs(np.log(prior / truth)).mean()


def test_candidates_get_factors():
    """One candidate whose errors reach the logits half as much as the others' of that size."""
    rng = np.random.default_rng(6)
    heads, of_head = 24, np.arange(6).repeat(4)
    truth = rng.uniform(0.2, 5, 6).repeat(4)
    error = np.concatenate([np.zeros((heads, 1)), rng.uniform(0.5, 2, (heads, 2))], 1)
    reach = truth[:, None] * error * (1, 1, 0.5)
    plans = [weights.random_half(heads, 2, seed) + 1 for seed in range(20)]
    losses = np.array([reach[np.arange(heads), plan].sum() for plan in plans])
    groups = np.bincount(of_head, weights=reach[:, 1])
    found = weights.fit_both(error[None], (groups, of_head, 1), (losses, plans), reach.sum(0)[None])
    weight, factor = found
    assert abs(factor[2] / factor[1] - 0.5) < 0.05
    assert np.allclose(weight[:, None] * error * factor, reach, rtol=0.2)


def test_weights_of_runs_on_several_texts():
    """Heads whose errors differ between texts, and runs on one text each: the same weights."""
    rng = np.random.default_rng(7)
    texts, heads, of_head = 3, 24, np.arange(6).repeat(4)
    truth = rng.uniform(0.2, 5, 6).repeat(4)
    error = rng.uniform(0.1, 4, (texts, heads, 3)) * (0, 1, 1)
    reach = truth[:, None] * error * (1, 1, 0.5)
    plans = [weights.random_half(heads, 2, seed) + 1 for seed in range(30)]
    losses = np.array([reach[run % texts, np.arange(heads), plan].sum() for run, plan in enumerate(plans)])
    groups = np.array([reach[g % texts, of_head == g, 1].sum() for g in range(6)])
    weight, factor = weights.fit_both(error, (groups, of_head, 1), (losses, plans), reach.sum(1))
    assert abs(factor[2] / factor[1] - 0.5) < 0.05
    assert np.allclose((weight[:, None] * error * factor)[:, :, 1:], reach[:, :, 1:], rtol=0.2)


def test_reads_every_form_of_data(tmp_path):
    expected = list(range(3, 103))
    np.save(tmp_path / "a.npy", np.array(expected, np.int32))
    (tmp_path / "b.json").write_text(json.dumps([expected]))
    (tmp_path / "c.txt").write_text("\n".join(map(str, expected)))
    for name in ("a.npy", "b.json", "c.txt"):
        (found,) = data.read_documents(tmp_path / name, 80)
        assert found.ids.tolist() == [expected[:80]] and found.name == name
    # Several documents: rows, or lists, which need not be of one length in the file.
    other = [id + 1 for id in expected]
    np.save(tmp_path / "d.npy", np.array([expected, other]))
    (tmp_path / "e.json").write_text(json.dumps([expected, [*other, 5]]))
    for name in ("d.npy", "e.json"):
        found = data.read_texts([tmp_path / name], 80)
        assert [document.ids.tolist() for document in found] == [[expected[:80]], [other[:80]]]
        assert [document.name for document in found] == [f"{name}, document 1", f"{name}, document 2"]


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [
        ([range(100), range(1, 65)], 100, r"b\.json, document 2 has 64 tokens; calibration needs more"),
        ([range(100), range(1, 100)], 100, r"document 2 has 99 tokens, \S*a\.npy 100: .*--tokens=99"),
        ([range(100), []], 100, r"b\.json, document 2 is empty"),
        ([range(100), range(1, 99), [*range(80), 5]], 80, r"a\.npy and \S*b\.json, document 3 begin with"),
        ([range(100), [[1, 2], [3, 4]]], 100, "no list of whole numbers"),
    ],
)
def test_texts_that_do_not_go_together(rows, tokens, expected, tmp_path):
    """The document is named; `a.npy` has the numbers 0 to 99, `b.json` the rows."""
    np.save(tmp_path / "a.npy", np.arange(100))
    first = list(range(200, 300))
    (tmp_path / "b.json").write_text(json.dumps([first, *map(list, rows[1:])]))
    with pytest.raises(CalibrationError, match=expected):
        data.read_texts([tmp_path / "a.npy", tmp_path / "b.json"], tokens)


def test_what_is_held_of_one_and_of_equal_texts():
    one = {"loss": 0.01, "error": 0.003, "divergence": 0.002}
    assert choose.held([one]) == pytest.approx(0.013)
    # No spread: the margin is the mean's own standard error, by Student's distribution.
    assert choose.held([one] * 4) == pytest.approx(0.01 + 1.2 * 0.0015)
    assert choose.held([one] * 2) < choose.held([one, {**one, "loss": 0.02}]) - 0.01
    # A gain by chance hides no divergence.
    lucky = {**one, "loss": -0.01, "divergence": 0.02}
    assert choose.held([lucky]) == choose.held([lucky] * 3) == pytest.approx(0.02)


@pytest.mark.parametrize("texts", [2, 3, 4, 8])
def test_five_of_six_other_texts_stay_below_what_is_held(texts):
    """Texts drawn at random, whose losses are seen through the noise of their rows."""
    rng = np.random.default_rng(texts)
    for between, noise in ((0.01, 0.001), (0.005, 0.005), (0.001, 0.01)):
        below = 0
        for _ in range(2000):
            *true, unseen = rng.normal(0.004, between, texts + 1)
            runs = [{"loss": rng.normal(loss, noise), "error": noise, "divergence": 0.0} for loss in true]
            below += unseen <= choose.held(runs)
        assert below / 2000 > 0.78, (between, noise)
        # Where the spread is the texts', no more than that.
        assert below / 2000 < (0.87 if between > noise else 1)


def test_texts_differ_by_a_share_of_the_divergence_that_candidates_show():
    """Losses of candidates used everywhere are drawn with a known spread; it is found again, and
    it widens the margin of a plan whose own losses happen to lie together."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(300):
        text = rng.normal(0, 0.3, 4)
        found.append(
            choose.spread_of(
                [
                    [
                        {"loss": rng.normal((0.5 + t) * d, 0.003), "error": 0.003, "divergence": d}
                        for t in text
                    ]
                    for d in (0.001, 0.01, 0.03, 0.1)
                ]
            )
        )
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.3, abs=0.03)
    same = [{"loss": 0.009, "error": 0.003, "divergence": 0.01}] * 4
    assert choose.spread_of([same]) == 0 and choose.spread_of([same[:1]]) == 0
    assert choose.held(same, 0.5) > choose.held(same) + 0.004
    assert choose.held(same[:1], 0.5) == choose.held(same[:1])


def test_reads_text_with_a_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(100)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text(" ".join(words))
    (got,) = data.read_documents(tmp_path / "text", 4096, str(tmp_path / "tokenizer.json"))
    assert got.ids.tolist() == [list(range(100))]


def test_minference_both_ways(tiny, ids, tmp_path, compiled):
    specs = "vertical-slash:vertical=64,slash=128;a-shape:init=64,local=128"
    more = (f"--candidates={specs}", "--format=minference", "--max-loss=50%")
    assert main(arguments(tiny, ids, *more)) == 0
    rows = json.loads((tmp_path / "plan.json").read_text())
    assert [sorted(row) for row in rows] == [[str(i) for i in range(HEADS)]] * LAYERS
    compiled(tiny, sparsify=f"config:{tmp_path / 'plan.json'}")
    start = candidates.read_configuration(tmp_path / "plan.json", LAYERS, HEADS)
    assert len(start.heads) == LAYERS * HEADS
    shutil.copy(tmp_path / "plan.json", tmp_path / "start.json")
    assert main(arguments(tiny, ids, f"--start={tmp_path / 'start.json'}", "--max-loss=50%")) == 0


def _other_ids(path: Path, ids: list) -> Path:
    path.write_text(json.dumps(ids))
    return path


def _start(path: Path, body) -> str:
    path.write_text(json.dumps(body))
    return f"--start={path}"


LAYER = {str(i): ["vertical_and_slash", 100, 200, 1] for i in range(HEADS)}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("short", "more than a block"),
        ("empty", "is empty"),
        ("missing", "cannot read"),
        ("range", "token id 112 is not in the model's vocabulary of 112"),
        ("negative", "negative token id"),
        ("words", "--tokenizer"),
        ("layers", "describes 3 layers, the model has 2"),
        ("heads", "the model has 4 query heads"),
        ("no json", "cannot read"),
        ("bidirectional", "is causal"),
        ("nothing raised", "was raised"),
        ("nan", "not finite"),
        ("pattern", "unknown pattern 'magic'"),
        ("option", "unknown option"),
        ("format", "has no words for"),
        ("folder", "no such folder"),
        ("both", "not allowed with"),
    ],
)
def test_bad_input(case, expected, tiny, ids, tmp_path, capsys):
    more: list[str] = []
    if case in ("short", "empty", "range", "negative"):
        good = [5] * 100
        bad = {"short": good[:64], "empty": [], "range": [*good, VOCABULARY], "negative": [*good, -1]}[case]
        ids = _other_ids(tmp_path / "bad.json", bad)
    elif case == "missing":
        ids = tmp_path / "nowhere"
    elif case == "words":
        ids = tmp_path / "text.txt"
        ids.write_text("once upon a time " * 100)
    elif case == "layers":
        more.append(_start(tmp_path / "start.json", [LAYER] * 3))
    elif case == "heads":
        more.append(_start(tmp_path / "start.json", [LAYER, {**LAYER, "4": LAYER["0"]}]))
    elif case == "no json":
        (tmp_path / "start.json").write_text("{")
        more.append(f"--start={tmp_path / 'start.json'}")
    elif case == "bidirectional":
        shutil.copy(SHARED_MODELS / "bert-dynamo18.onnx", tiny)
    elif case == "nothing raised":
        one = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [1, 4])
        two = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, [1, 4])
        node = onnx.helper.make_node("Identity", ["input_ids"], ["logits"])
        graph = onnx.helper.make_graph([node], "g", [one], [two])
        opset = onnx.helper.make_opsetid("", 18)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tiny)
    elif case == "nan":
        model = onnx.load(tiny)
        weight = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[: values.size // 2] = np.nan
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, tiny)
    elif case == "pattern":
        more.append("--candidates=magic")
    elif case == "option":
        more.append("--candidates=xattention:colour=3")
    elif case == "format":
        more.append("--format=minference")
    elif case == "both":
        more += ["--max-loss=1%", "--max-time=50%"]
    given = arguments(tiny, ids, *more)
    if case == "folder":
        given[given.index("-o") + 1] = str(tmp_path / "nowhere" / "plan.json")
    before = sorted(tmp_path.iterdir())
    try:
        status = main(given)
    except SystemExit as ended:
        status = ended.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert len(lines) == 1 and expected in lines[0], lines
    left = set(tmp_path.iterdir()) - set(before) - {tmp_path / "state"}
    assert not left, "something was written"


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    state = State(tmp_path / "state")
    (tmp_path / "state" / "x.json").write_text('{"half')
    assert state.step("x", lambda: 3) == 3 and state.get("x") == 3


def test_the_compiler_hands_over(compiler, tmp_path):
    environment = {**os.environ, "PREFILL_PYTHON": sys.executable}
    environment["PYTHONPATH"] = str(Path(candidates.__file__).parents[2])
    command = [str(compiler), "calibrate", "nowhere.onnx", "--data=x", "-o", str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.strip().endswith("no such file: nowhere.onnx")
    # An interpreter without the package: one line that says so.
    environment["PYTHONPATH"] = str(tmp_path)
    (tmp_path / "prefill_opt.py").write_text("raise ImportError('not here')")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "needs the Python package prefill_opt" in done.stderr


def test_malformed_candidates():
    for spec in ("xattention:threshold", "xattention:threshold=high"):
        with pytest.raises(CalibrationError, match="not option=number"):
            candidates.parse_spec(spec)
    expected = {"type": "a_shape", "n_init": 64, "n_local": 256}
    assert candidates.parse_spec("a-shape:init=64,local=256") == expected


def _browser() -> str | None:
    """Headless Chromium, if there is one: by name on the PATH or as Playwright keeps it."""
    for name in ("chromium", "chromium-headless-shell", "google-chrome", "chrome-headless-shell"):
        if found := shutil.which(name):
            return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright"))
    kept = [*cache.glob("chromium*/*/chrome"), *cache.glob("chromium*/*/*headless*shell")]
    return str(kept[0]) if kept else None


@pytest.fixture
def report(tiny, ids, tmp_path) -> Path:
    assert main(arguments(tiny, ids, "--max-loss=30%", f"--report={tmp_path / 'report'}")) == 0
    return tmp_path / "report" / "index.html"


class _Page(html.parser.HTMLParser):
    """Images, SVG shapes and references of a page; complains about tags left open."""

    def __init__(self):
        super().__init__()
        self.images, self.references, self.shapes, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.images += [values["src"]] if tag == "img" else []
        self.shapes += [tag] if tag in ("svg", "circle", "rect") else []
        self.references += [v for k, v in attrs if k in ("src", "href") and not (v or "").startswith("data:")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.shapes += [tag] if tag in ("circle", "rect") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


def test_report_is_one_page_with_pictures(report, compiled, tiny):
    text = report.read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open and not page.references and "url(" not in text, "the page needs something else"
    plan = json.loads((tiny.parent / "plan.json").read_text())
    heads = [h for layer in plan["layers"] for h in layer.get("heads", {}).values() if h["type"] != "dense"]
    assert len(page.images) == min(8, len(heads)) > 0
    assert page.shapes.count("circle") == 2 * 3 and page.shapes.count("rect") == 3 * LAYERS * HEADS
    image = pytest.importorskip("PIL.Image")
    shares = []
    for source in page.images:
        kind, encoded = source.split(",", 1)
        assert kind == "data:image/png;base64"
        pixels = np.asarray(image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
        assert pixels.shape[0] == pixels.shape[1] == 512 // 64
        below = np.tril(np.ones(pixels.shape[:2], bool))
        # Visited is blue or orange; above the diagonal there is nothing.
        visited = (pixels == (38, 84, 156)).all(-1) | (pixels == (236, 140, 44)).all(-1)
        assert not visited[~below].any()
        shares.append(visited[below].mean())
    measured = sorted(h["measured_density"] for h in heads)
    assert abs(min(shares) - measured[0]) < 0.02 and abs(max(shares) - measured[-1]) < 0.02


def test_report_in_a_browser(report, tmp_path):
    browser = _browser()
    if browser is None:
        pytest.skip("no headless Chromium on this machine")
    image = pytest.importorskip("PIL.Image")
    shot = tmp_path / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,2600"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(image.open(shot).convert("RGB")).reshape(-1, 3)
    for colour in ((38, 84, 156), (226, 228, 232), (212, 56, 13)):
        seen = (np.abs(pixels.astype(int) - colour) < 6).all(-1).sum()
        assert seen > 50, f"the picture's colour {colour} does not show"


def test_report_survives_names_with_markup(tmp_path):
    from prefill_opt.calibrate import report as pages

    run = {"loss": -0.1, "error": 0.01, "divergence": 0.0, "density": 0.5, "cost": 0.5, "seconds": 1.0}
    result = search.Result(
        [[{"type": "dense"}], [{"type": "<b>", "measured_density": 0.5, "recall": 0.9, "ms": 1.0}]],
        0,
        np.array([0, 1]),
        ["dense", "<script>"],
        {},
        np.ones(2),
        np.ones((2, 2)),
        {"<script>": run},
        run,
        {"perplexity": 7.0, "seconds": 1.0},
    )
    text = pages.page(result, "a&b<c>", 128, {(1, 0): np.eye(2, dtype=np.uint8)})
    assert "<script>" not in text and "<b>:" not in text and "a&amp;b&lt;c&gt;" in text
