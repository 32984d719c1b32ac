"""Chunks and hybrid batches: results equal to those of whole prompts, one at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from support import SHARED_MODELS, compare

import prefill_opt
from prefill_opt import chunking
from prefill_opt.demo import smollm2

SMOLLM2 = smollm2.models_dir() / "smollm2" / "export" / "model.onnx"
#: Exports that get a cache from us.
PLAIN = ("llama-dynamo18-nomask", "plain-dynamo18-eager", "plain-dynamo23", "plain-ts17")
#: The same with -padding=none.
MASKED = (
    "gpt2-dynamo18",  # learned positions
    "gpt2-ts17",
    "llama-dynamo18",
    "llama-dynamo23-pos",  # position_ids
    "llama-dynamo23-pos-fp16",
    "llama-hf-present",  # KV outputs of its own
    "phi3-dynamo18",
    "qwen2-dynamo23-pos",
)
#: Exports that have one.
CACHED = (
    "llama-dynamo18-pos-past",
    "llama-dynamo23-pos-past",
    "llama-dynamo24-pos-past",
    "llama-optimum",
    "llama-hf-ort-past",
)
LENGTH = 45


def shared_model(name: str):
    """The path of one of the shared exports; skips the test where they are not at hand."""
    path = SHARED_MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("no shared/models/onnx beside the repository")
    return path


def prompt(length, vocabulary=100, seed=0):
    return np.random.default_rng(seed).integers(3, vocabulary, length)


def open_session(folder):
    return prefill_opt.session(folder, intra_op_num_threads=1, log_severity_level=4)


def whole(session, ids):
    """Outputs of a model without -chunk for the whole prompt, without the batch dimension."""
    feeds = {
        "input_ids": ids[None],
        "logits_to_keep": np.array([len(ids) - 1]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    inputs = {i.name for i in session.get_inputs()}
    values = session.run(None, {n: v for n, v in feeds.items() if n in inputs})
    return {o.name: v[0] for o, v in zip(session.get_outputs(), values, strict=True)}


def expect_equal(got, expected, where):
    assert set(expected) <= set(got), where
    assert not compare(list(expected), [got[n] for n in expected], list(expected.values()), where)


@pytest.mark.parametrize("name", PLAIN)
def test_chunks_equal_the_whole(name, compiled):
    model = shared_model(name)
    ids = prompt(LENGTH)
    expected = whole(open_session(compiled(model)), ids)
    folder = compiled(model, chunk="512")
    entry = json.loads((folder / "manifest.json").read_text())["chunk"]
    assert entry["exact"] is True and entry["size"] == 512 and entry["cache"] == "in place"
    session = open_session(folder)
    assert chunking.chunk_size(session) == 512
    caches = None
    for size in (1, 7, 16, LENGTH - 1, LENGTH, LENGTH + 1, None):
        got = prefill_opt.run_chunked(session, ids, size)
        expect_equal(got, expected, f"{name}, chunk {size}")
        mine = {n: v for n, v in got.items() if n not in expected}
        assert len(mine) == 4  # two layers
        caches = caches or mine
        expect_equal(mine, caches, f"{name}, chunk {size}")
    last = prefill_opt.run_chunked(session, ids, 7, keep="last")
    assert len(last["logits"]) == LENGTH % 7
    expect_equal({"logits": last["logits"]}, {"logits": expected["logits"][-(LENGTH % 7) :]}, "the last chunk")


def test_chunks_of_the_default_size(compiled):
    """512 rows at a time, as the models are compiled for."""
    model = shared_model(PLAIN[0])
    ids = prompt(600)
    expected = whole(open_session(compiled(model)), ids)
    session = open_session(compiled(model, chunk="512"))
    for size in (512, 600, 601):
        expect_equal(prefill_opt.run_chunked(session, ids, size), expected, f"chunk {size}")


@pytest.mark.parametrize("name", (*MASKED, "llama-hf-gen"))
def test_exports_with_a_mask(name, compiled):
    """Chunks without the mask, and the whole prompt with it."""
    model = shared_model(name)
    padding = {"padding": "none"} if name in MASKED else {}
    ids = prompt(LENGTH)
    expected = whole(open_session(compiled(model)), ids)
    folder = compiled(model, chunk="512", **padding)
    assert ("padding" in json.loads((folder / "manifest.json").read_text())) == bool(padding)
    session = open_session(folder)
    assert "attention_mask" not in {i.name for i in session.get_inputs()}
    for size in (1, 16, LENGTH):
        expect_equal(prefill_opt.run_chunked(session, ids, size), expected, f"{name}, chunk {size}")
    if padding:
        alone = open_session(compiled(model, **padding))
        expect_equal(whole(alone, ids), expected, f"{name}, without chunks")


def test_learned_positions_end(compiled):
    """A row of the table that does not exist is an error, not another row."""
    session = open_session(compiled(shared_model("gpt2-dynamo18"), chunk="512", padding="none"))
    places = 1 << 12
    with pytest.raises(Exception, match="out of data bounds"):
        prefill_opt.run_chunked(session, prompt(places), 512)


@pytest.mark.parametrize("name", CACHED)
def test_exports_with_a_cache(name, compiled):
    """These stay as they are; the runner hands their cache on."""
    model = shared_model(name)
    ids = prompt(LENGTH)
    folder = compiled(model, chunk="16")
    assert json.loads((folder / "manifest.json").read_text())["chunk"]["cache"] == "the model's own"
    session = open_session(folder)
    expected = prefill_opt.run_chunked(session, ids, LENGTH)
    assert expected["logits"].shape[0] == LENGTH and len(expected) == 5
    for size in (1, 7, 16, LENGTH - 1, LENGTH + 1):
        expect_equal(prefill_opt.run_chunked(session, ids, size), expected, f"{name}, chunk {size}")


@pytest.mark.parametrize(
    "name, message",
    [
        ("llama-dynamo18", "reads 'attention_mask'.*-padding=none"),
        ("gpt2-dynamo18", "reads 'attention_mask'"),
        ("llama-dynamo23-pos-nomask", "it has a mask or bias of its own"),
        ("bert-ts17", "-chunk: "),
    ],
)
def test_models_that_cannot_be_chunked(name, message, compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(shared_model(name), tmp_path / "out", chunk="16")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"chunk": "0"}, "-chunk=0: expected off or a number of rows, at least 1"),
        ({"chunk": "-5"}, "-chunk=-5: expected off"),
        ({"chunk": "many"}, "-chunk=many: expected off"),
        ({"chunk": "16:tail=pad"}, "no option but tail=dynamic"),
        ({"chunk": "16:order=layer"}, "all layers run on a chunk before the next one"),
        ({"chunk": "16", "pack": "ffd"}, "-chunk and -pack are not given together"),
        ({"chunk": "16", "logits": "last"}, "take -logits=rows"),
    ],
)
def test_wrong_options(options, message, compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match=message):
        prefill_opt.compile(shared_model("llama-dynamo18-nomask"), tmp_path / "out", **options)


def test_no_padding_and_a_cache(compiler, tmp_path):
    with pytest.raises(prefill_opt.CompileError, match="-padding=none: the model has a KV cache"):
        prefill_opt.compile(shared_model("llama-optimum"), tmp_path / "out", padding="none")
    with pytest.raises(prefill_opt.CompileError, match="is not understood as a KV cache"):
        prefill_opt.compile(shared_model("llama-genai"), tmp_path / "out", padding="none", chunk="16")


@pytest.mark.parametrize("logits", ("all", "rows"))
@pytest.mark.parametrize("name", [n for n in CACHED if n != "llama-hf-ort-past"])
def test_exports_whose_cache_is_replaced(name, logits, compiled):
    """Their cache, concatenated in every call, becomes one that is written in place."""
    model = shared_model(name)
    ids = prompt(LENGTH)
    expected = prefill_opt.run_chunked(open_session(compiled(model, chunk="16")), ids, LENGTH)
    folder = compiled(model, chunk="16", padding="none", logits=logits)
    assert json.loads((folder / "manifest.json").read_text())["chunk"]["cache"] == "in place"
    if logits == "rows":
        expected["logits"] = expected["logits"][-1:]
    session = open_session(folder)
    for size in (1, 16, LENGTH):
        expect_equal(prefill_opt.run_chunked(session, ids, size), expected, f"{name}, chunk {size}")
    cache = chunking.Cache(session, 100)
    work = [chunking.Rows(prompt(30, seed=1), 0), chunking.Rows(ids, 30)]
    expect_equal(cache.step(work)[1] | cache.view(30, LENGTH), expected, f"{name}, beside another")


def test_off_changes_nothing(compiled):
    model = shared_model("llama-dynamo18-nomask")
    off, without = compiled(model, chunk="off"), compiled(model)
    assert (off / "model.onnx").read_bytes() == (without / "model.onnx").read_bytes()
    assert "chunk" not in json.loads((off / "manifest.json").read_text())


def test_wrong_prompts(compiled):
    model = shared_model("llama-dynamo18-nomask")
    session = open_session(compiled(model, chunk="512"))
    for arguments, message in [
        (([],), "the prompt is empty"),
        (([[1]],), "expected a list of token ids, got 2 dimensions"),
        (([1.5],), "expected integers, got float64"),
        (([1, 2], 0), "chunk 0: expected at least one row"),
        (([1, 2, 3], 2, 2), "has 3 tokens, more than the capacity 2"),
        (([1], 1, 1, "some"), "keep 'some': expected all or last"),
    ]:
        with pytest.raises(ValueError, match=message):
            prefill_opt.run_chunked(session, *arguments)
    with pytest.raises(ValueError, match="a cache of 0 rows"):
        chunking.Cache(session, 0)
    without = open_session(compiled(model))
    with pytest.raises(ValueError, match="no KV cache: compile it with -chunk=512"):
        prefill_opt.run_chunked(without, [1, 2])
    # What the kernel finds: a slot that does not fit, or is somebody else's.
    cache = chunking.Cache(session, 8)
    ids = prompt(5)
    for work, message in [
        ([chunking.Rows(ids, 4, 0)], "its 5 new rows do not fit"),
        ([chunking.Rows(ids, 0, 0), chunking.Rows(ids[:3], 4, 0)], "segments 0 and 1 share rows"),
    ]:
        with pytest.raises(Exception, match=message):
            cache.step(work)
    with pytest.raises(ValueError, match="a KV cache of its own, which holds one request"):
        chunking.Cache(open_session(compiled(shared_model("llama-optimum"), chunk="16")), 8)


def test_cache_of_unknown_width(compiled):
    """onnxruntime-genai's models do not say how wide their cache is."""
    session = open_session(compiled(shared_model("llama-genai"), chunk="16"))
    with pytest.raises(ValueError, match="with the numbers of heads and width, got"):
        prefill_opt.run_chunked(session, prompt(5))


def test_prompt_of_one_token(compiled):
    model = shared_model("llama-dynamo18-nomask")
    expected = whole(open_session(compiled(model)), prompt(1))
    session = open_session(compiled(model, chunk="512"))
    for size in (1, 512):
        expect_equal(prefill_opt.run_chunked(session, prompt(1), size), expected, f"chunk {size}")


def test_exact_multiples_have_no_further_chunk(compiled):
    """llm.npu's runner adds a chunk of padding where the prompt is a multiple of the chunk, and leaves
    out the last one where their number is odd (mllm v1)."""
    session = open_session(compiled(shared_model("llama-dynamo18-nomask"), chunk="512"))

    class Counted(chunking.Cache):
        calls: list[int] = []

        def step(self, work):
            self.calls.append(len(work[0].ids))
            return super().step(work)

    original, chunking.Cache = chunking.Cache, Counted
    try:
        for length, calls in ((32, [16, 16]), (48, [16, 16, 16]), (16, [16]), (33, [16, 16, 1])):
            Counted.calls = []
            got = prefill_opt.run_chunked(session, prompt(length), 16)
            assert Counted.calls == calls and len(got["logits"]) == length
    finally:
        chunking.Cache = original


@pytest.mark.parametrize(
    "pattern, same",
    [
        # No estimate: what a row sees depends on its position alone.
        ("a-shape:init=64,local=128,dense-below=0", True),
        ("strided:init=64,local=128,stride=3,dense-below=0", True),
        # Every tile of rows is estimated by itself.
        ("block-topk:top-k=2,dense-below=0", True),
        ("block-topp:threshold=0.6,dense-below=0", True),
        ("sampled:stride=8,threshold=0.6,dense-below=0", True),
        ("infllm-v2:top-k=3,init=64,window=128,dense-below=0", True),
        # Keys are quantised less the mean of those so far.
        ("xattention:stride=8,threshold=0.6,dense-below=0", False),
        # The last rows stand for all: those of a chunk, or those of the prompt.
        ("vertical-slash:vertical=128,slash=64,last=32,dense-below=0", False),
        ("flexprefill:gamma=0.5,tau=0.1,min-budget=64,dense-below=0", False),
        ("grid:stride=16,init=0,last=16,dense-below=0", False),
        ("tri-shape:init=64,local=128,last=64,dense-below=0", False),
    ],
)
def test_sparse_patterns_in_chunks(pattern, same, compiled):
    """Chunks of whole tiles of rows."""
    model = shared_model("llama-dynamo18-nomask")
    ids = prompt(768)
    expected = whole(open_session(compiled(model, sparsify=pattern)), ids)
    folder = compiled(model, sparsify=pattern, chunk="256")
    assert json.loads((folder / "manifest.json").read_text())["chunk"]["exact"] is False
    got = prefill_opt.run_chunked(open_session(folder), ids)
    wrong = compare(["logits"], [got["logits"]], [expected["logits"]], pattern)
    dense = whole(open_session(compiled(model)), ids)
    assert compare(["logits"], [expected["logits"]], [dense["logits"]], "not sparse at all")
    assert bool(wrong) is not same


def test_estimates_see_the_chunk_and_what_is_before_it(compiled):
    """A chunk's result depends on its rows and on the cache, not on how the cache was filled: its estimate
    is that of the last rows of a shorter prompt that ends with it."""
    model = shared_model("llama-dynamo18-nomask")
    pattern = "vertical-slash:vertical=128,slash=64,last=32,dense-below=0"
    session = open_session(compiled(model, sparsify=pattern, chunk="256"))
    ids = prompt(768)
    all_of_it = prefill_opt.run_chunked(session, ids, 256)["logits"]
    shorter = prefill_opt.run_chunked(session, ids[:512], 256)["logits"]
    np.testing.assert_array_equal(all_of_it[:512], shorter)


def alone(session, ids, count):
    """Tokens and logits of greedy generation, the whole prompt anew for each."""
    tokens, logits = list(ids), []
    for _ in range(count):
        logits.append(whole(session, np.array(tokens))["logits"][-1:])
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(ids) :], logits


@pytest.mark.parametrize("budget, logits", ((1, "all"), (8, "all"), (64, "all"), (8, "rows")))
def test_hybrid_batches_equal_requests_alone(budget, logits, compiled):
    """Two prompts that are still read beside three requests that generate (and more that wait)."""
    model = shared_model("llama-dynamo18-nomask")
    folder = compiled(model, chunk="512", logits=logits)
    batch = prefill_opt.HybridBatch(
        folder, capacity=60, requests=5, budget=budget, intra_op_num_threads=1, log_severity_level=4
    )
    lengths = (3, 1, 9, 40, 33, 5, 20)
    given = [prompt(n, seed=n) for n in lengths]
    requests = [batch.add(ids, 6) for ids in given]
    batches = batch.run()
    assert max(batches) <= budget and sum(batches) == sum(n + 5 for n in lengths)
    if budget == 8:
        assert batches.count(8) > 5  # a chunk fills every batch up
    session = open_session(compiled(model))
    for request, ids in zip(requests, given, strict=True):
        tokens, logits = alone(session, ids, 6)
        assert request.generated == tokens
        where = f"a prompt of {len(ids)}"
        assert not compare(["logits"], [np.concatenate(request.logits)], [np.concatenate(logits)], where)


def test_the_cache_is_not_copied(compiled):
    """Rows that no request has written stay out of memory: 512 MB here."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    session = open_session(compiled(shared_model("llama-dynamo18-nomask"), chunk="512"))
    cache = chunking.Cache(session, 1 << 20)
    assert sum(a.nbytes for a in cache.arrays.values()) == 1 << 29
    before = resident()
    for begin in (0, 40):
        cache.step([chunking.Rows(prompt(40), 900_000, begin)])
    assert resident() - before < 100
    assert all(a[0, 0, 900_079].any() and not a[0, 0, 900_080].any() for a in cache.arrays.values())


@pytest.mark.parametrize("sparsify", ("dense", "block-topk:top-k=1,dense-below=0"))
def test_nothing_is_read_that_was_not_written(sparsify, compiled):
    """NaN in rows of the cache that nobody wrote, or that are another request's, changes nothing."""
    model = shared_model("llama-dynamo18-nomask")
    session = open_session(compiled(model, sparsify=sparsify, chunk="512"))
    ids, other = prompt(330), prompt(70, seed=1)
    results = []
    for filled in (0, np.nan):
        cache = chunking.Cache(session, 500)
        for array in cache.arrays.values():
            array[:] = filled
        parts = []
        for begin in range(0, 330, 150):
            work = [chunking.Rows(ids[begin : begin + 150], 100, begin)]
            if filled == 0:  # a neighbour, instead of NaN
                work.append(chunking.Rows(other[begin // 5 : begin // 5 + 30], 0, begin // 5))
            parts.append(cache.step(work)[0]["logits"])
        results.append(np.concatenate(parts))
    assert np.isfinite(results[1]).all()
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


def test_cancelled_and_wrong_requests(compiled):
    model = shared_model("llama-dynamo18-nomask")
    batch = prefill_opt.HybridBatch(
        compiled(model, chunk="512"), capacity=30, requests=2, budget=8, log_severity_level=4
    )
    for arguments, message in [
        (([],), "request 0 is empty"),
        (([1], 0), "expected at least one new token, got 0"),
        ((prompt(20), 12), "needs 31 rows of the cache, more than the capacity 30"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch.add(*arguments)
    first, second, third = (batch.add(prompt(20, seed=i), 4) for i in range(3))
    batch.step()
    first.cancelled = True  # in the middle of its prompt: its rows of the cache go to the third
    batch.run()
    assert not first.generated and len(second.generated) == len(third.generated) == 4
    tokens, _ = alone(open_session(compiled(model)), prompt(20, seed=2), 4)
    assert third.generated == tokens
    with pytest.raises(ValueError, match="capacity 0: expected at least one token"):
        prefill_opt.HybridBatch(compiled(model, chunk="512"), capacity=0)


def test_scheduler(compiled):
    folder = compiled(shared_model("llama-dynamo18-nomask"))
    scheduler = prefill_opt.Scheduler(folder, budget=16, max_requests=4)
    requests = [(30, 0, False), (5, 5, False), (20, 10, False), (9, 9, True), (7, 7, False)]
    assert scheduler.next(requests) == [4, 1, 10, 0, 1]
    assert scheduler.next([]) == []
    with pytest.raises(ValueError, match="no prompt or more computed"):
        scheduler.next([(2, 3, False)])
    for arguments, message in [
        ((0,), "budget 0: expected at least one row"),
        ((4, 5), "max_requests 5: expected 1 to the budget, 4"),
        ((4, 1, 0), "multiple 0: expected at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            prefill_opt.Scheduler(folder, *arguments)


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not exported: python -m prefill_opt.demo")
def test_smollm2_in_chunks(compiled):
    """Logits and KV of SmolLM2 as of the whole prompt, and beside other requests."""
    ids = prompt(97, smollm2.VOCABULARY)
    expected = whole(open_session(compiled(SMOLLM2)), ids)
    folder = compiled(SMOLLM2, chunk="512")
    session = open_session(folder)
    for size in (1, 7, 16, 97, 512):
        expect_equal(prefill_opt.run_chunked(session, ids, size), expected, f"chunk {size}")
    cache = chunking.Cache(session, 200)
    other = prompt(60, smollm2.VOCABULARY, seed=1)
    cache.step([chunking.Rows(other[:40], 0, 0, logits=False)])
    for begin, end in ((0, 50), (50, 97)):
        done = 40 + begin // 50
        work = [chunking.Rows(other[done : done + 1], 0, done), chunking.Rows(ids[begin:end], 100, begin)]
        result = cache.step(work)[1]
    expect_equal(result | cache.view(100, 97), expected, "beside another request")
