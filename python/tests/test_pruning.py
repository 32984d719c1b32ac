"""Token pruning (LazyLLM): the rows, logits and KV of an independent implementation, and its limits."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from support import SHARED_MODELS, plain_session
from test_models import PATHS

import prefill_opt
from prefill_opt.demo import smollm2

SMOLLM2 = smollm2.models_dir() / "smollm2" / "export" / "model.onnx"
HUGGING_FACE = smollm2.models_dir() / "smollm2" / "hf"
SMALL = PATHS["llama-dynamo18-nomask"]
needs_smollm2 = pytest.mark.skipif(
    not SMOLLM2.exists(), reason="SmolLM2 is not exported: python -m prefill_opt.demo"
)


def run(folder, feeds, **options) -> dict[str, np.ndarray]:
    session = prefill_opt.session(folder, log_severity_level=4, **options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def with_scores(folder, tmp_path):
    """A session that also gives every token score that the model computes."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    found = []
    for node in model.graph.node:
        if node.op_type == "SelectRows":
            found.append(node.input[0])
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, [None, None])
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(folder / "libprefill_model.so"))
    return onnxruntime.InferenceSession(model.SerializeToString(), options), found


def pruned_in_torch(ids: np.ndarray, layers: tuple[int, ...], keep: float, protected):
    """SmolLM2 with rows left out after `layers`, written on Hugging Face's modules.

    Returns the last row's logits, (rows, K, V) of every layer, and the scores per stage.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = transformers.AutoModelForCausalLM.from_pretrained(
        HUGGING_FACE, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    dim = config.hidden_size // heads
    rows = np.arange(ids.shape[1])
    caches, scores = [], []
    with torch.no_grad():
        x = model.model.embed_tokens(torch.from_numpy(ids))
        for number, layer in enumerate(model.model.layers, 1):
            n = len(rows)
            y = layer.input_layernorm(x)
            at = layer.self_attn

            def split(value, count):
                return value.view(1, n, count, dim).transpose(1, 2)

            q, k, v = (
                split(p(y), c)
                for p, c in ((at.q_proj, heads), (at.k_proj, groups), (at.v_proj, groups))
            )
            cos, sin = model.model.rotary_emb(x, torch.from_numpy(rows)[None])
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            caches.append((rows.copy(), k.numpy(), v.numpy()))
            full = k.repeat_interleave(heads // groups, 1), v.repeat_interleave(heads // groups, 1)
            s = q @ full[0].transpose(2, 3) * dim**-0.5
            s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
            p = s.softmax(-1)
            x = x + at.o_proj((p @ full[1]).transpose(1, 2).reshape(1, n, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if number in layers:
                score = p[0, :, -1].mean(0).numpy()
                scores.append(score)
                order = np.argsort(-score, kind="stable")
                fixed = [i for i in range(n) if rows[i] in protected]
                kept = set(fixed)
                for i in order:
                    if len(kept) >= int(np.ceil(round(keep * 1e6) * n / 1e6)):
                        break
                    kept.add(int(i))
                stay = np.array(sorted(kept))
                x, rows = x[:, stay], rows[stay]
        logits = model.lm_head(model.model.norm(x[:, -1:]))
    return logits.numpy(), caches, scores


@needs_smollm2
@pytest.mark.parametrize("layers, keep, n", [((9, 19, 28), 0.7, 301), ((2, 3), 0.05, 80)])
def test_smollm2_is_what_torch_gives(compiled, layers, keep, n):
    folder = compiled(SMOLLM2, prune=f"lazyllm:layers={'+'.join(map(str, layers))},keep={keep}")
    ids = np.random.default_rng(n).integers(0, smollm2.VOCABULARY, (1, n))
    found = run(folder, {"input_ids": ids, "logits_to_keep": np.array([-1])})
    logits, caches, _ = pruned_in_torch(ids, layers, keep, {0, 1, 2, 3, n - 1})
    for layer in layers:
        np.testing.assert_array_equal(found[f"prefill.rows.{layer}"][0], caches[layer][0])
    for number, (_, k, v) in enumerate(caches):
        for name, expected in (("key", k), ("value", v)):
            mine = found[f"present.{number}.{name}"]
            assert mine.shape == expected.shape
            np.testing.assert_allclose(mine, expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(found["logits"], logits, atol=2e-3 * np.abs(logits).max())
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["exact"] is False
    assert entry["prune"]["layers"] == list(layers)
    assert entry["prune"]["exact"] is False
    assert entry["prune"]["keep"] == keep


@needs_smollm2
def test_nothing_left_out_is_the_model_itself(compiled):
    """keep=1 changes nothing; with every row protected the pruned graph gives the same."""
    ids = np.random.default_rng(3).integers(0, smollm2.VOCABULARY, (2, 130))
    feeds = {"input_ids": ids, "logits_to_keep": np.array([129, 5, -3])}
    plain = run(compiled(SMOLLM2), feeds)
    kept = compiled(SMOLLM2, prune="lazyllm:layers=9+19+28,keep=1")
    assert json.loads((kept / "manifest.json").read_text())["exact"] is True
    assert (kept / "model.onnx").read_bytes() == (compiled(SMOLLM2) / "model.onnx").read_bytes()
    every = run(compiled(SMOLLM2, prune="lazyllm:layers=9+19+28,keep=0.5", protect="rows:0-9999"), feeds)
    for name, value in plain.items():
        np.testing.assert_array_equal(every[name], value, err_msg=name)
    np.testing.assert_array_equal(every["prefill.rows.28"], np.tile(np.arange(130), (2, 1)))


def small(compiled, **options):
    return compiled(SMALL, **{"logits": "last", "prune": "lazyllm:layers=1,keep=0.5", **options})


@pytest.mark.parametrize("n", (1, 2, 3, 5, 8, 64, 65, 200))
@pytest.mark.parametrize("batch", (1, 3))
def test_counts_and_protected_rows(compiled, tmp_path, n, batch):
    """ceil(keep n) rows, or the protected ones; ascending; each the best of its prompt."""
    session, scores = with_scores(small(compiled), tmp_path)
    ids = np.random.default_rng(n).integers(0, 100, (batch, n))
    rows, score = session.run(["prefill.rows.1", *scores], {"input_ids": ids})
    count = max(-(-n // 2), min(n, 5))
    assert rows.shape == (batch, count)
    assert (np.diff(rows, axis=1) > 0).all()
    fixed = {i for i in range(n) if i < 4 or i == n - 1}
    for entry, values in zip(rows, score, strict=True):
        assert fixed <= set(entry.tolist())
        np.testing.assert_allclose(values.sum(), 1, atol=1e-5)
        rest = [i for i in np.argsort(-values, kind="stable") if i not in fixed]
        assert set(entry.tolist()) == fixed | set(rest[: count - len(fixed)])


def test_same_rows_alone_and_in_a_batch(compiled):
    folder = small(compiled)
    ids = np.random.default_rng(9).integers(0, 100, (4, 90))
    together = run(folder, {"input_ids": ids})
    for i in range(4):
        alone = run(folder, {"input_ids": ids[i : i + 1]})
        np.testing.assert_array_equal(alone["prefill.rows.1"][0], together["prefill.rows.1"][i])
        np.testing.assert_allclose(alone["logits"][0], together["logits"][i], atol=1e-5)


def test_prompt_without_tokens(compiled):
    """Its last row, which stays whatever happens, does not exist."""
    with pytest.raises(Exception, match="row -1 is asked for, the prompt has 0"):
        run(small(compiled), {"input_ids": np.zeros((1, 0), np.int64)})


def test_rows_that_are_asked_for_stay(compiled):
    folder = small(compiled, logits="rows", prune="lazyllm:layers=1,keep=0.1", protect="last:1")
    ids = np.random.default_rng(2).integers(0, 100, (1, 60))
    wanted = np.array([59, 7, -20, 7])
    found = run(folder, {"input_ids": ids, "logits_rows": wanted})
    assert {59, 7, 40} <= set(found["prefill.rows.1"][0].tolist())
    alone = run(folder, {"input_ids": ids, "logits_rows": wanted[:1]})
    assert found["logits"].shape[1] == 4
    np.testing.assert_array_equal(found["logits"][:, 1], found["logits"][:, 3])
    assert alone["logits"].shape[1] == 1
    with pytest.raises(Exception, match="row 60 is asked for, the prompt has 60"):
        run(folder, {"input_ids": ids, "logits_rows": np.array([60])})


def test_a_row_that_nobody_attends_to_goes_first(compiled):
    """Padding in front is seen by nobody: it goes before any token, and nothing changes."""
    path = PATHS["llama-dynamo18"]
    folder = compiled(path, logits="last", prune="lazyllm:layers=1,keep=0.999", protect="last:1")
    original = plain_session(path)
    ids = np.random.default_rng(4).integers(1, 100, (2, 40))
    mask = np.ones_like(ids)
    mask[0, :12] = 0
    mask[1, :15] = 0
    feeds = {"input_ids": ids, "attention_mask": mask}
    names = [o.name for o in original.get_outputs()]
    expected = original.run(None, feeds)[names.index("logits")][:, -1:]
    found = run(folder, feeds)
    rows = found["prefill.rows.1"]
    assert rows.shape == (2, 28)
    assert (rows[0] == np.arange(12, 40)).all()
    assert set(range(15, 40)) <= set(rows[1].tolist())
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)


@pytest.mark.parametrize("span", [(0, 16), (20, 30)])
def test_attack_on_protected_rows(compiled, tmp_path, span):
    """A suffix searched to minimise the score of a system prompt never drops a row of it.

    Without the protection the same suffix does drop some: the test can fail.
    """
    low, high = span
    rng = np.random.default_rng(low)
    prefix = rng.integers(0, 100, high)
    options = {"prune": "lazyllm:layers=1,keep=0.3"}
    session, (score,) = with_scores(small(compiled, protect="system,last:1", **options), tmp_path)
    open_folder = small(compiled, protect="last:1", **options)
    bare = prefill_opt.session(open_folder, log_severity_level=4, intra_op_num_threads=1)
    suffix = rng.integers(0, 100, 24)
    mask = np.zeros((1, high + 24), bool)
    mask[0, low:high] = True
    best, dropped = np.inf, 0
    for _ in range(500):
        trial = suffix.copy()
        trial[rng.integers(0, 24, rng.integers(1, 4))] = rng.integers(0, 100)
        ids = np.concatenate([prefix, trial])[None]
        rows, values = session.run(
            ["prefill.rows.1", score], {"input_ids": ids, "protected_rows": mask}
        )
        assert set(range(low, high)) <= set(rows[0].tolist())
        assert rows[0, -1] == high + 23
        if values[0, low:high].sum() < best:
            best, suffix = values[0, low:high].sum(), trial
            (free,) = bare.run(["prefill.rows.1"], {"input_ids": ids})
            dropped = max(dropped, len(set(range(low, high)) - set(free[0].tolist())))
    assert dropped > 0, "the attack found nothing to drop even without protection"


def test_token_ids_are_protected(compiled):
    folder = small(compiled, prune="lazyllm:layers=1,keep=0.1", protect="ids:3-5,ids:90")
    ids = np.random.default_rng(0).integers(0, 100, (2, 150))
    rows = run(folder, {"input_ids": ids})["prefill.rows.1"]
    for entry, tokens in zip(rows, ids, strict=True):
        fixed = np.flatnonzero(((tokens >= 3) & (tokens <= 5)) | (tokens == 90))
        assert len(fixed) > 3
        assert set(fixed.tolist()) | {149} <= set(entry.tolist())


def test_with_sparse_attention(compiled):
    """Prune first, then index: sparse layers see the rows that are left."""
    folder = small(compiled, sparsify="a-shape:init=16,local=32,dense-below=0")
    ids = np.random.default_rng(6).integers(0, 100, (1, 300))
    found = run(folder, {"input_ids": ids})
    assert found["prefill.rows.1"].shape == (1, 150)
    assert np.isfinite(found["logits"]).all()
    # The score does not depend on the index.
    dense = run(small(compiled), {"input_ids": ids})
    np.testing.assert_array_equal(found["prefill.rows.1"], dense["prefill.rows.1"])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("llama-dynamo18-nomask", {"prune": "lazyllm:keep=0"}, "keep=0: expected the share of rows that stays"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:keep=-0.5"}, "keep=-0.5: expected the share"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:keep=1.5"}, "keep=1.5: expected the share"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:keep=nan"}, "keep=nan: expected the share"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=99"}, "layer 99 is not there: the model has"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=0"}, "expected ascending layer numbers from 1 on"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=2+1"}, "expected ascending layer numbers from 1 on"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:positions=compact"}, "expected preserve"),
        ("llama-dynamo18-nomask", {"prune": "magic"}, "unknown method 'magic'"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:depth=3"}, "unknown option 'depth=3'"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1"}, "ask for -logits=last or -logits=rows"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1", "protect": "last:0"}, "a number from 1 on"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1", "protect": "ids:5-3"}, "'ids:5-3': expected"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1", "protect": "template"}, "does not know the chat template"),
        ("llama-dynamo18-nomask", {"protect": "bos:4"}, "protects rows from -prune, which is not given"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1", "accuracy": "exact"}, "-accuracy=exact refuses -prune"),
        ("llama-dynamo18-nomask", {"sparsify": "vertical-slash", "accuracy": "exact"}, "-accuracy=exact refuses -sparsify"),
        ("llama-dynamo18-nomask", {"accuracy": "some"}, "expected exact or lossy"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1", "logits": "last", "pack": "ffd"}, "-prune with -pack"),
        ("llama-dynamo18-nomask", {"prune": "lazyllm:layers=1", "logits": "rows", "chunk": "64"}, "-prune with -chunk"),
        ("llama-dynamo18-pos-past", {"prune": "lazyllm:layers=1", "logits": "last"}, "a KV cache is not pruned"),
        ("bert-dynamo18", {"prune": "lazyllm:layers=1"}, "it is not causal"),
    ],
)  # fmt: skip
def test_what_is_refused(compiler, tmp_path, name, options, message):
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(SHARED_MODELS / f"{name}.onnx", tmp_path / "out", **options)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
