"""The kernels as a PyTorch operator, and as an attention of transformers."""

from __future__ import annotations

import logging
import math

import pytest

torch = pytest.importorskip("torch")
import prefill_opt.pytorch as pf  # noqa: E402
from prefill_opt.compiler import CompileError  # noqa: E402
from prefill_opt.library import KernelError  # noqa: E402
from prefill_opt.pytorch import huggingface, kernels  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiler")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def operands(hq=4, hk=2, s=70, t=70, d=32, e=32, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, hq, s, d), (batch, hk, t, d), (batch, hk, t, e))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def reference(q, k, v, causal=True, scale=None, window=None, softcap=None, key_mask=None, sinks=None, offset=None):
    """Attention in float64, rows without keys 0."""
    q, k, v = (x.double() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (scale or 1 / math.sqrt(q.shape[3]))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i = torch.arange(q.shape[2])[:, None] + (k.shape[2] - q.shape[2] if offset is None else offset)
    j = torch.arange(k.shape[2])[None]
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if causal:
        seen &= j <= i
    if window:
        seen &= j > i - window
    seen = seen[None, None].expand(q.shape[0], 1, -1, -1)
    if key_mask is not None:
        seen = seen & key_mask[:, None, None].bool()
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        column = sinks.double().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    lse = scores.logsumexp(-1)
    shares = (scores - lse[..., None]).exp().nan_to_num(0.0)
    return shares[..., : k.shape[2]] @ v, lse


def close(found, expected, dtype=torch.float32):
    error = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-3)
    assert error.max() <= TOLERANCE[dtype], float(error.max())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"window": 9},
        {"softcap": 3.0, "scale": 1e-5},
        {"softcap": 20.0, "scale": 0.5},
        {"q_offset": 0},
    ],
    ids=str,
)
def test_against_the_reference(options, dtype):
    q, k, v = operands(dtype=dtype, s=33, t=70, e=48)
    found, lse = pf.attention(q, k, v, sparsify="dense", return_lse=True, **options)
    expected, exact = reference(q, k, v, **{"offset" if n == "q_offset" else n: x for n, x in options.items()})
    assert found.shape == (2, 4, 33, 48) and found.dtype == dtype and lse.dtype == torch.float32
    close(found, expected, dtype)
    assert torch.allclose(lse.double(), exact, atol=1e-4 if dtype == torch.float32 else 1e-2)


def test_key_mask_and_sinks():
    q, k, v = operands()
    visible = torch.rand(2, 70, generator=torch.Generator().manual_seed(1)) < 0.7
    visible[0, :5] = False
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for mask in (visible, visible.long()):
        found, _ = pf.attention(q, k, v, key_mask=mask, sinks=sinks, sparsify="dense", return_lse=True)
        close(found, reference(q, k, v, key_mask=visible, sinks=sinks)[0])
    # Rows that see no key.
    assert not pf.attention(q, k, v, key_mask=visible, sparsify="dense")[0, :, :5].any()


@pytest.mark.parametrize("s, t", [(1, 1), (1, 200), (63, 63), (65, 129), (0, 5)])
def test_lengths_and_strides(s, t):
    q, k, v = operands(s=s, t=t)
    # As transformers hands them over: heads and rows swapped in memory; and every second element.
    swapped = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    spread = [torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in (q, k, v)]
    found = pf.attention(q, k, v, sparsify="dense")
    assert found.shape == (2, 4, s, 32)
    for other in (swapped, spread):
        assert torch.equal(pf.attention(*other, sparsify="dense"), found)
    if s:
        close(found, reference(q, k, v)[0])


def test_sparse_is_what_it_says():
    q, k, v = operands(s=512, t=512, d=64, e=64, batch=1)
    exact = pf.attention(q, k, v, sparsify="dense")
    assert torch.equal(pf.attention(q, k, v), exact), "auto runs short prompts dense"
    window = pf.attention(q, k, v, sparsify="a-shape:init=64,local=128,dense-below=0")
    assert not torch.equal(window, exact) and torch.equal(window[:, :, :128], exact[:, :, :128])


def test_refusals():
    q, k, v = operands()
    with pytest.raises(ValueError, match="element type torch.float64"):
        pf.attention(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="4 query heads over 3"):
        pf.attention(q, k[:, :1].expand(-1, 3, -1, -1), v[:, :1].expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="different types"):
        pf.attention(q, k.half(), v)
    with pytest.raises(ValueError, match="window needs causal"):
        pf.attention(q, k, v, causal=False, window=5)
    with pytest.raises(ValueError, match="layer 2 of 2"):
        pf.attention(q, k, v, layer=2, layers=2)
    with pytest.raises(CompileError, match="unknown pattern 'nonsense'"):
        pf.attention(q, k, v, sparsify="nonsense")
    with pytest.raises(CompileError, match="unknown pattern 'nonsense'"):
        pf.register("nonsense")
    with pytest.raises(KernelError, match="KEY_MASK"):
        pf.attention(q, k, v, key_mask=torch.ones(2, 69))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        pf.attention(q.requires_grad_(), k, v).sum().backward()


def test_a_refusal_is_not_compiled_again(monkeypatch):
    calls = []
    real = kernels.run_compiler
    monkeypatch.setattr(kernels, "run_compiler", lambda *a: calls.append(a) or real(*a))
    for _ in range(3):
        with pytest.raises(CompileError, match="unknown pattern 'nobody'"):
            pf.attention(*operands(), sparsify="nobody")
    assert len(calls) == 1


def test_operator_is_well_formed():
    q, k, v = operands(s=20, t=20)
    torch.library.opcheck(torch.ops.prefill.sparse_attention, (q, k, v), {"sparsify": "dense"})


def test_compile_and_export():
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return pf.attention(q * 2, k, v, sparsify="dense") + 1

    q, k, v = operands(s=20, t=20)
    expected = reference(q * 2, k, v)[0] + 1
    close(torch.compile(Module(), backend="aot_eager", fullgraph=True)(q, k, v), expected)
    exported = torch.export.export(Module(), (q, k, v))
    assert "prefill.sparse_attention" in str(exported.graph)
    close(exported.module()(q, k, v), expected)


def test_layers_get_their_own_patterns(tmp_path):
    file = tmp_path / "plan.json"
    heads = {str(h): {"type": "a_shape", "n_init": 64, "n_local": 64} for h in range(4)}
    file.write_text('{"version": 1, "dense_below": 0, "layers": [{"dense": true}, {"heads": %s}]}' % str(heads).replace("'", '"'))
    q, k, v = operands(s=400, t=400, d=64, e=64, batch=1)
    exact = pf.attention(q, k, v, sparsify="dense")
    first, second = (
        pf.attention(q, k, v, sparsify=f"config:{file}", layer=i, layers=2) for i in range(2)
    )
    assert torch.equal(first, exact) and not torch.equal(second, exact)
    with pytest.raises(CompileError, match="layer"):
        pf.attention(q, k, v, sparsify=f"config:{file}", layer=0, layers=3)


# transformers


@pytest.fixture(scope="module")
def transformers():
    found = pytest.importorskip("transformers", minversion="5.0")
    pf.register("dense", "prefill_opt_dense")
    pf.register()
    return found


@pytest.fixture
def said(monkeypatch, caplog):
    """Reasons for fallbacks that were logged."""
    monkeypatch.setattr(huggingface, "_reasons", huggingface._Reasons())
    caplog.set_level(logging.WARNING, "prefill_opt")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "prefill_opt"]


SIZES = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    pad_token_id=0,
)
MODELS = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 7}),
    "gemma2": ("Gemma2Config", {"sliding_window": 7}),
    "gpt_oss": ("GptOssConfig", {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
}


def build(transformers, name: str, attention: str):
    config, more = MODELS[name]
    config = getattr(transformers, config)(**SIZES, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():  # some start at zero
            p.copy_(torch.randn_like(p) * 0.2)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("padded", [False, True])
def test_models_of_transformers(name, padded, transformers, said):
    ids = torch.randint(1, 97, (2, 40), generator=torch.Generator().manual_seed(0))
    visible = torch.ones_like(ids)
    if padded:
        visible[1, :13] = 0
    with torch.no_grad():
        expected, found = (
            build(transformers, name, kind)(ids, attention_mask=visible).logits
            for kind in ("eager", "prefill_opt_dense")
        )
    difference = (found - expected).abs()[visible.bool()].max() / expected.abs().max()
    assert difference < 2e-5 and not said()


def test_generation_with_a_cache(transformers, said):
    ids = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    visible = torch.ones_like(ids)
    visible[0, :4] = 0
    for cache in (None, "static"):
        options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache}
        expected, found = (
            build(transformers, "mistral", kind).generate(ids, attention_mask=visible, **options)
            for kind in ("eager", "prefill_opt_dense")
        )
        assert torch.equal(found, expected)


def test_falls_back_and_says_so_once(transformers, said):
    ids = torch.randint(1, 97, (1, 40), generator=torch.Generator().manual_seed(0))
    model, plain = (build(transformers, "gemma2", kind) for kind in ("prefill_opt_dense", "eager"))
    # Gradients.
    for each in (model, plain):
        each(ids, labels=ids).loss.backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    assert len(said()) == 1 and "gradients are wanted" in said()[0]
    # Two sequences in one row: positions start again.
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    model, plain = (build(transformers, "llama", kind) for kind in ("prefill_opt_dense", "eager"))
    with torch.no_grad():
        found, expected = (each(ids, position_ids=positions, use_cache=False).logits for each in (model, plain))
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert len(said()) == 2 and "a mask that is not causal" in said()[1]
    # Other types.
    with torch.no_grad():
        found, expected = (build(transformers, "mistral", k).double()(ids).logits for k in ("prefill_opt", "eager"))
    assert torch.allclose(found, expected, atol=1e-5) and "torch.float64" in said()[2] and len(said()) == 3


def test_auto_is_sparse_on_long_prompts(transformers):
    config = transformers.LlamaConfig(**(SIZES | {"head_dim": 64}), max_position_embeddings=4096)
    torch.manual_seed(0)
    ids = torch.randint(1, 97, (1, 1600))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="prefill_opt_dense").eval()
    with torch.no_grad():
        exact = model(ids).logits
        model.set_attn_implementation("prefill_opt")
        sparse = model(ids).logits
    assert not torch.equal(sparse, exact)
    assert (sparse - exact).norm() / exact.norm() < 0.1
