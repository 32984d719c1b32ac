"""Compiled kernels against the float64 reference: in ONNX Runtime and through the C ABI."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper
from support import plain_session, row_error, save_model

import prefill_opt

FLOAT = TensorProto.FLOAT
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
KINDS = {"float32": FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LIMIT = {"float32": 5e-6, "float16": 3e-3, "bfloat16": 2e-2}
SIZES = ((1, 1), (2, 2), (63, 63), (64, 64), (65, 65), (130, 130), (333, 333))


def attention_model(
    q_heads: int,
    kv_heads: int,
    dim: int,
    v_dim: int | None = None,
    dtype: str = "float32",
    past: bool = False,
    mask: int | None = None,
    kinds: int | None = None,
    **attributes,
) -> onnx.ModelProto:
    """One ai.onnx Attention-23 on 4-D tensors.

    Args:
        past: with past_key and past_value inputs and present outputs.
        mask: element type of a fourth input ``mask`` [b, 1, s, t]; None: no such input.
        kinds: element type of an input ``kinds`` [b, t] that no node has; None: no such input.
        attributes: of the op (is_causal, scale, softcap).
    """
    v_dim = v_dim or dim
    kind = KINDS[dtype]
    info = helper.make_tensor_value_info
    inputs = [
        info("q", kind, ["b", q_heads, "s", dim]),
        info("k", kind, ["b", kv_heads, "s", dim]),
        info("v", kind, ["b", kv_heads, "s", v_dim]),
    ]
    outputs = [info("o", kind, ["b", q_heads, "s", v_dim])]
    names, results = ["q", "k", "v"], ["o"]
    if mask is not None:
        inputs.append(info("mask", mask, ["b", 1, "s", "t"]))
    if mask is not None or past:
        names.append("mask" if mask is not None else "")
    if past:
        names += ["past_k", "past_v"]
        results += ["present_k", "present_v"]
        for x, d in (("k", dim), ("v", v_dim)):
            inputs.append(info(f"past_{x}", kind, ["b", kv_heads, "p", d]))
            outputs.append(info(f"present_{x}", kind, ["b", kv_heads, "t", d]))
    if kinds is not None:
        inputs.append(info("kinds", kinds, ["b", "t"]))
    node = helper.make_node("Attention", names, results, **attributes)
    graph = helper.make_graph([node], "attention", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.fixture(scope="module")
def build(compiler, tmp_path_factory):
    """A function (sparsify, **attention_model arguments) -> compiled folder, cached."""
    made: dict = {}

    def get(sparsify=None, **arguments):
        key = (sparsify, *sorted(arguments.items()))
        if key not in made:
            root = tmp_path_factory.mktemp("kernel")
            path = save_model(attention_model(**arguments), root / "model.onnx")
            modality = "kinds" if arguments.get("kinds") is not None else None
            made[key] = prefill_opt.compile(
                path, root / "out", sparsify=sparsify, modality=modality, timeout=60
            )
        return made[key]

    return get


def tensors(q_heads, kv_heads, s, t, dim, v_dim=None, batch=1, dtype="float32", seed=0):
    """Random q, k, v in a storage type."""
    rng = np.random.default_rng([seed, s, t, dim])
    shapes = ((q_heads, s, dim), (kv_heads, t, dim), (kv_heads, t, v_dim or dim))
    return [rng.standard_normal((batch, *shape)).astype(NUMPY[dtype]) for shape in shapes]


HEADS = ((4, 4, 64, 64), (9, 3, 64, 64), (4, 2, 128, 128), (2, 2, 80, 80), (2, 1, 96, 96),
         (1, 1, 256, 256), (4, 2, 16, 24), (3, 3, 40, 40), (2, 2, 32, 64), (8, 1, 8, 8))  # fmt: skip


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_in_onnxruntime(heads, causal, build):
    q_heads, kv_heads, dim, v_dim = heads
    arguments = {"q_heads": q_heads, "kv_heads": kv_heads, "dim": dim, "v_dim": v_dim}
    session = prefill_opt.session(build(**arguments, is_causal=causal), intra_op_num_threads=2)
    for s, t in SIZES:
        for batch in (1, 3):
            q, k, v = tensors(*heads[:2], s, t, dim, v_dim, batch)
            got = session.run(None, {"q": q, "k": k, "v": v})[0]
            expected, _ = oracle.attention(q, k, v, causal=bool(causal))
            assert row_error(got, expected) < LIMIT["float32"], f"s={s} batch={batch}"


@pytest.mark.parametrize("dtype", ["float16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_half_in_onnxruntime(dtype, dim, build):
    session = prefill_opt.session(
        build(q_heads=4, kv_heads=2, dim=dim, dtype=dtype, is_causal=1), intra_op_num_threads=2
    )
    for s, t in SIZES:
        q, k, v = tensors(4, 2, s, t, dim, dtype=dtype, batch=2)
        got = session.run(None, {"q": q, "k": k, "v": v})[0]
        expected, _ = oracle.attention(q, k, v, causal=True)
        assert row_error(got, expected) < LIMIT[dtype], f"s={s}"


@pytest.mark.parametrize(
    "options", [{"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.0, "softcap": 5.0}], ids=str
)
def test_scale_and_softcap(options, build):
    session = prefill_opt.session(build(q_heads=4, kv_heads=2, dim=32, is_causal=1, **options))
    for s, t in SIZES:
        q, k, v = tensors(4, 2, s, t, 32)
        got = session.run(None, {"q": q, "k": k, "v": v})[0]
        expected, _ = oracle.attention(q, k, v, causal=True, **options)
        # The softcap's tanh is approximated.
        assert row_error(got, expected) < 1e-5, f"s={s}"


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_mask_input(kind, causal, build):
    mask_kind = TensorProto.BOOL if kind == "bool" else FLOAT
    session = prefill_opt.session(build(q_heads=4, kv_heads=4, dim=32, is_causal=causal, mask=mask_kind))
    for s, t in ((1, 1), (64, 64), (65, 65), (200, 200)):
        q, k, v = tensors(4, 4, s, t, 32, batch=2)
        rng = np.random.default_rng(s)
        mask = rng.random((2, 1, s, t)) < 0.6
        mask[..., np.arange(s), np.arange(s)] = True
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(np.float32)
        got = session.run(None, {"q": q, "k": k, "v": v, "mask": mask})[0]
        expected, _ = oracle.attention(q, k, v, causal=bool(causal), bias=mask)
        assert row_error(got, expected) < 1e-5, f"s={s}"


def test_past(build):
    folder = build(q_heads=4, kv_heads=2, dim=64, is_causal=1, past=True)
    session = prefill_opt.session(folder)
    for s, p in ((1, 0), (1, 1), (1, 130), (65, 0), (65, 64), (65, 70), (3, 333)):
        q, k, v = tensors(4, 2, s, s, 64, batch=2)
        _, past_k, past_v = tensors(4, 2, s, p, 64, batch=2, seed=1)
        feeds = {"q": q, "k": k, "v": v, "past_k": past_k, "past_v": past_v}
        got, present_k, present_v = session.run(["o", "present_k", "present_v"], feeds)
        all_k, all_v = np.concatenate([past_k, k], 2), np.concatenate([past_v, v], 2)
        assert np.array_equal(present_k, all_k) and np.array_equal(present_v, all_v)
        expected, _ = oracle.attention(q, all_k, all_v, causal=True)
        assert row_error(got, expected) < LIMIT["float32"], f"s={s} past={p}"


# --- the C ABI ------------------------------------------------------------------------------


def call(folder, arrays, outputs=("o", "lse"), threads=1, isa_limit=0, block=64):
    """Runs the first kernel of a folder on q, k, v (BHSD); returns the named outputs."""
    q, k, v = arrays
    b, h, s, _ = q.shape
    t = k.shape[2]
    blocks = (b, h, -(-s // block), -(-t // block))
    made = {
        "o": np.full((b, h, s, v.shape[3]), 77, q.dtype),
        "lse": np.full((b, h, s), 77, np.float32),
        "density": np.full((b, h), 77, np.float32),
        "block_map": np.full(blocks, 77, np.uint8),
    }
    wanted = {name: made[name] for name in outputs}
    with prefill_opt.Library(folder, threads) as library:
        library.run(library.kernels[0], {"q": q, "k": k, "v": v}, wanted, isa_limit=isa_limit)
    return tuple(wanted.values())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_c_abi(dtype, threads, build):
    folder = build(q_heads=4, kv_heads=2, dim=64, dtype=dtype, is_causal=1)
    for s, t in SIZES:
        arrays = tensors(4, 2, s, t, 64, dtype=dtype, batch=2)
        out, lse = call(folder, arrays, threads=threads)
        expected, expected_lse = oracle.attention(*arrays, causal=True)
        assert row_error(out, expected) < LIMIT[dtype]
        assert np.allclose(lse, expected_lse, atol=1e-4, rtol=1e-5)


def test_instruction_sets_agree(build):
    folder = build(q_heads=4, kv_heads=2, dim=64, is_causal=1)
    arrays = tensors(4, 2, 200, 200, 64)
    expected, _ = oracle.attention(*arrays, causal=True)
    for limit in (2, 3, 4, 0):
        (out,) = call(folder, arrays, ("o",), isa_limit=limit)
        assert row_error(out, expected) < LIMIT["float32"], f"isa_limit={limit}"


def test_threads_agree_bit_for_bit(build):
    for pattern in (None, "vertical-slash:density=0.3,dense-below=0"):
        folder = build(pattern, q_heads=9, kv_heads=3, dim=64, is_causal=1)
        arrays = tensors(9, 3, 700, 700, 64)
        results = [call(folder, arrays, threads=n)[0].tobytes() for n in (1, 2, 3, 5)]
        assert len(set(results)) == 1


def test_strides(build):
    """[b, s, h, d] memory seen as [b, h, s, d], and padded rows: no copy is needed."""
    folder = build(q_heads=4, kv_heads=2, dim=64, is_causal=1)
    arrays = tensors(4, 2, 130, 130, 64, batch=2)
    (compact,) = call(folder, arrays, ("o",))
    turned = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in arrays]
    (strided,) = call(folder, turned, ("o",))
    assert np.array_equal(compact, strided)


def test_refusals(build):
    """Wrong arguments give a status and a message, not a crash."""
    folder = build(q_heads=4, kv_heads=2, dim=64, is_causal=1)
    q, k, v = tensors(4, 2, 64, 64, 64)
    out = np.empty_like(q)
    library = prefill_opt.Library(folder)
    name = library.kernels[0]
    wrong = [
        (name, {"q": q, "k": k}, {"o": out}),
        (name, {"q": q[..., :32].copy(), "k": k, "v": v}, {"o": out}),
        (name, {"q": q, "k": k[:, :1].copy(), "v": v}, {"o": out}),
        (name, {"q": q, "k": k[:, :, :10].copy(), "v": v}, {"o": out}),
        (name, {"q": q.astype(np.float64), "k": k, "v": v}, {"o": out}),
        (name, {"q": q, "k": k, "v": v}, {"o": out[:, :, :10].copy()}),
        (name, {"q": q, "k": k, "v": v}, {}),
        (name, {"q": q[0], "k": k, "v": v}, {"o": out}),
        ("no_such_kernel", {"q": q, "k": k, "v": v}, {"o": out}),
    ]
    for kernel, inputs, outputs in wrong:
        with pytest.raises(prefill_opt.KernelError) as caught:
            library.run(kernel, inputs, outputs)
        assert caught.value.status != 0 and len(str(caught.value)) > len(kernel) + 4


def test_empty(build):
    """No queries, no batch: nothing to do, no error."""
    folder = build(q_heads=4, kv_heads=2, dim=64, is_causal=1)
    q, k, v = tensors(4, 2, 5, 5, 64)
    assert call(folder, (q[:0], k[:0], v[:0]), ("o",))[0].shape[0] == 0
    assert call(folder, (q[:, :, :0], k[:, :, :0], v[:, :, :0]), ("o",))[0].size == 0


# --- sparse patterns ------------------------------------------------------------------------


def sparse(build, pattern, arrays, **extra):
    """o, lse, density and block map of a pattern, forced even where dense is cheaper."""
    q, k, _ = arrays
    folder = build(
        f"{pattern},dense-below=0",
        q_heads=q.shape[1],
        kv_heads=k.shape[1],
        dim=q.shape[3],
        is_causal=1,
        **extra,
    )
    return call(folder, arrays, ("o", "lse", "density", "block_map"))


def rows_of(block_map: np.ndarray) -> list[list[int]]:
    """Wholly visited blocks of one head's map, a list for each query block."""
    return [np.nonzero(row == 1)[0].tolist() for row in block_map]


@pytest.mark.parametrize("tokens", [64, 200, 640, 1000])
@pytest.mark.parametrize(
    "pattern,rows",
    [
        ("a-shape:init=64,local=128", lambda n: oracle.a_shape(n, n, 64, 128)),
        ("a-shape:init=1,local=64", lambda n: oracle.a_shape(n, n, 1, 64)),
        ("a-shape:init=130,local=200", lambda n: oracle.a_shape(n, n, 130, 200)),
        ("tri-shape:init=64,local=128,last=100", lambda n: oracle.tri_shape(n, n, 64, 128, 100)),
    ],
)
def test_static_patterns(pattern, rows, tokens, build):
    arrays = tensors(4, 2, tokens, tokens, 32)
    out, lse, density, block_map = sparse(build, pattern, arrays)
    wanted = rows(tokens)
    for head in range(4):
        assert rows_of(block_map[0, head]) == wanted
    allowed = oracle.allowed_from(wanted, [[]] * len(wanted), tokens, tokens)
    expected, expected_lse = oracle.attention(*arrays, causal=True, allowed=allowed)
    assert row_error(out, expected) < LIMIT["float32"]
    assert np.allclose(lse, expected_lse, atol=1e-4)
    blocks = len(wanted)
    share = sum(map(len, wanted)) / (blocks * (blocks + 1) / 2)
    assert np.allclose(density, share, atol=1e-6)


@pytest.mark.parametrize("tokens", [200, 640, 1000])
@pytest.mark.parametrize("vertical,slash", [(30, 100), (60, 120), (100, 300)])
def test_vertical_slash(vertical, slash, tokens, build):
    arrays = tensors(4, 2, tokens, tokens, 32, batch=2)
    # Some keys that many rows like: the columns must show.
    arrays[1][:, :, :: max(tokens // 9, 1)] += arrays[0][:, ::2, -8:].mean(2, keepdims=True) * 2
    pattern = f"vertical-slash:vertical={vertical},slash={slash}"
    out, lse, density, block_map = sparse(build, pattern, arrays)
    for b in range(2):
        for head in range(4):
            q, k, v = arrays[0][b, head], arrays[1][b, head // 2], arrays[2][b, head // 2]
            scores = oracle.vertical_slash_scores(q, k)
            columns, slashes = oracle.vertical_slash_select(*scores, vertical, slash)
            rows = oracle.slash_blocks(slashes, tokens, tokens)
            assert rows_of(block_map[b, head]) == rows, f"batch {b}, head {head}"
            single = oracle.live_columns(columns, rows, tokens, tokens)
            allowed = oracle.allowed_from(rows, single, tokens, tokens)
            expected, expected_lse = oracle.attention(
                q[None, None], k[None, None], v[None, None], causal=True, allowed=allowed
            )
            assert row_error(out[b, head], expected[0, 0]) < 2e-5
            assert np.allclose(lse[b, head], expected_lse[0, 0], atol=1e-4)
            assert 0 < density[b, head] <= 1.3


@pytest.mark.parametrize("tokens", [256, 640, 1000])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_block_sparse(count, tokens, build):
    arrays = tensors(4, 2, tokens, tokens, 32)
    out, _, _, block_map = sparse(build, f"block-sparse:top-k={count}", arrays)
    for head in range(4):
        q, k, v = arrays[0][0, head], arrays[1][0, head // 2], arrays[2][0, head // 2]
        rows = oracle.block_sparse(q, k, count)
        assert rows_of(block_map[0, head]) == rows, f"head {head}"
        allowed = oracle.allowed_from(rows, [[]] * len(rows), tokens, tokens)
        expected, _ = oracle.attention(
            q[None, None], k[None, None], v[None, None], causal=True, allowed=allowed
        )
        assert row_error(out[0, head], expected[0, 0]) < LIMIT["float32"]


def check_blocks(build, pattern, arrays, select):
    """`select` of every head's q and k gives the visited blocks; the output is over just those."""
    heads = arrays[0].shape[1]
    s, t = arrays[0].shape[2], arrays[1].shape[2]
    out, _, _, block_map = sparse(build, pattern, arrays)
    for head in range(heads):
        group = head * arrays[1].shape[1] // heads
        q, k, v = arrays[0][0, head], arrays[1][0, group], arrays[2][0, group]
        rows = select(q, k, v)
        assert rows_of(block_map[0, head]) == rows, f"head {head}"
        allowed = oracle.allowed_from(rows, [[]] * len(rows), s, t)
        expected, _ = oracle.attention(
            q[None, None], k[None, None], v[None, None], causal=True, allowed=allowed
        )
        assert row_error(out[0, head], expected[0, 0]) < LIMIT["float32"]


@pytest.mark.parametrize("sizes", [(256, 256), (640, 640), (1001, 1001), (200, 640), (100, 333)], ids=str)
@pytest.mark.parametrize("stride,tau", [(8, 0.9), (16, 0.7), (2, 0.5), (64, 0.95), (4, 1.0)])
def test_xattention(stride, tau, sizes, build):
    s, t = sizes
    arrays = tensors(4, 2, s, t, 32)
    arrays[0] *= 2  # so that blocks differ
    pattern = f"xattention:stride={stride},threshold={tau}"
    check_blocks(build, pattern, arrays, lambda q, k, v: oracle.xattention(q, k, stride, tau))


@pytest.mark.parametrize("sizes", [(256, 256), (640, 640), (1001, 1001), (200, 640), (100, 333)], ids=str)
@pytest.mark.parametrize("stride,tau", [(8, 0.9), (16, 0.7), (2, 0.5), (64, 0.95), (1, 0.8)])
def test_sampled(stride, tau, sizes, build):
    s, t = sizes
    arrays = tensors(4, 2, s, t, 32)
    arrays[0] *= 3  # so that blocks differ
    for local, values in ((0, 0), (64, 1)):
        pattern = f"sampled:stride={stride},threshold={tau},local={local},values={values}"
        check_blocks(
            build,
            pattern,
            arrays,
            lambda q, k, v, local=local, values=values: oracle.sampled(
                q, k, stride, tau, local, v if values else None
            ),
        )


@pytest.mark.parametrize("sizes", [(256, 256), (640, 640), (1001, 1001), (200, 640), (100, 333)], ids=str)
@pytest.mark.parametrize("tau", [0.3, 0.9, 1.0])
def test_block_top_p(tau, sizes, build):
    s, t = sizes
    arrays = tensors(4, 2, s, t, 32)
    arrays[0] += 2 * np.sign(arrays[0][:, :, :1])  # so that means differ
    arrays[1] *= 2
    check_blocks(
        build, f"block-topp:threshold={tau}", arrays, lambda q, k, v: oracle.block_top_p(q, k, tau)
    )


@pytest.mark.parametrize("sizes", [(256, 256), (640, 640), (1001, 1001), (200, 640), (100, 333)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "share",
    [
        {"threshold": 0.4},
        {"threshold": 0.8},
        {"top_p": 0.6, "values": 0},
        {"top_p": 0.6, "values": 1},
        {"top_p": 0.9, "stride": 8, "values": 0},
        {"top_p": 0.7, "stride": 4, "local": 64, "values": 1},
    ],
    ids=str,
)
def test_sale(share, bits, sizes, build):
    s, t = sizes
    arrays = tensors(4, 2, s, t, 32)
    arrays[0] *= 2  # so that blocks differ
    arrays[1][:, :, :, 3] += 5  # the same for all keys: no row should care
    pattern = ",".join(f"{name.replace('_', '-')}={x}" for name, x in share.items())
    known = {name: x for name, x in share.items() if name != "values"}
    check_blocks(
        build,
        f"sale:{pattern},bits={bits}",
        arrays,
        lambda q, k, v: oracle.sale(q, k, **known, bits=bits, v=v if share.get("values") else None),
    )


@pytest.mark.parametrize("sizes", [(256, 256), (640, 640), (1024, 1024), (1001, 1001), (192, 640)], ids=str)
@pytest.mark.parametrize("gamma,tau,budget", [(0.5, 0.0, 64), (0.9, 0.0, 200), (0.6, 1.0, 64), (0.3, 0.3, 0)])
def test_flexprefill(gamma, tau, budget, sizes, build):
    s, t = sizes
    arrays = tensors(4, 2, s, t, 32)
    arrays[0][:, 1::2] *= 3  # two heads of each kind
    arrays[0][:, ::2] += np.sign(arrays[0][:, ::2, :1])
    distances = []

    def select(q, k, v):
        rows, distance = oracle.flexprefill(q, k, gamma, tau, budget)
        distances.append(distance)
        return rows

    check_blocks(build, f"flexprefill:gamma={gamma},tau={tau},min-budget={budget}", arrays, select)
    assert all(abs(x - tau) > 1e-4 for x in distances)


@pytest.mark.parametrize("sizes", [(256, 256), (640, 640), (1001, 1001), (192, 640)], ids=str)
@pytest.mark.parametrize("count,init,window", [(4, 64, 128), (1, 0, 0), (6, 100, 1)])
def test_infllm(count, init, window, sizes, build):
    """All query heads of a KV head visit the same blocks."""
    s, t = sizes
    arrays = tensors(4, 2, s, t, 32)
    arrays[0] *= 3
    out, _, _, block_map = sparse(
        build, f"infllm-v2:top-k={count},init={init},window={window}", arrays
    )
    for head in range(4):
        group = head // 2
        rows = oracle.infllm(arrays[0][0, 2 * group : 2 * group + 2], arrays[1][0, group], count, init, window)
        assert rows_of(block_map[0, head]) == rows, f"head {head}"


def planted_grid(s, t, dim=32, stride=24, phase=5, strength=6.0, seed=0):
    """Two query heads on one KV head: rows like keys of their own phase, and those of `phase`."""
    q, k, v = tensors(2, 1, s, t, dim, seed=seed)
    rng = np.random.default_rng(seed)
    codes = rng.standard_normal((stride, dim))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    of_key, of_row = np.arange(t) % stride, (np.arange(s) + t - s) % stride
    scale = strength * dim**0.25
    k[0, 0] = 0.3 * k[0, 0] + scale * codes[of_key]
    q[0, :] = 0.3 * q[0] + scale * (codes[of_row] + codes[phase])
    return q, k, v


def check_grid(build, options, arrays, block=64):
    """Every head attends to just what the oracle allows; returns strides and densities."""
    q, k, v = arrays
    named = ",".join(f"{name}={x}" for name, x in options.items())
    out, lse, density, block_map = sparse(build, f"grid:{named}", arrays)
    known = {"tau" if name == "threshold" else name: x for name, x in options.items()}
    strides = []
    for b in range(q.shape[0]):
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            one = q[b, head], k[b, group], v[b, group]
            stride, phase, allowed = oracle.grid(one[0], one[1], **known)
            strides.append((stride, phase))
            expected, expected_lse = oracle.attention(
                *(x[None, None] for x in one), causal=True, allowed=allowed
            )
            assert row_error(out[b, head], expected[0, 0]) < 2e-5, f"{stride} {phase}"
            assert np.allclose(lse[b, head], expected_lse[0, 0], atol=1e-4)
            seen = allowed & oracle.visibility(*allowed.shape, causal=True)
            s, t = seen.shape
            padded = np.zeros((-(-s // block) * block, -(-t // block) * block), bool)
            padded[:s, :t] = seen
            touched = padded.reshape(padded.shape[0] // block, block, -1, block).any((1, 3))
            assert np.array_equal(block_map[b, head] != 0, touched)
    return strides, density


GRID_SIZES = ((256, 256), (640, 640), (1001, 1001), (200, 640), (100, 333), (2, 2), (65, 65))


@pytest.mark.parametrize("sizes", GRID_SIZES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 16},
        {"stride": 1},
        {"stride": 7, "init": 3, "last": 1},
        {"stride": 5000, "last": 2},
        {"stride": 10, "hline": 0},
        {"stride": 10, "vline": 0},
        {"stride": 10, "slash": 0, "init": 1},
        {"stride": 3, "slash": 0, "vline": 0, "hline": 0, "init": 0},
        {"threshold": 0.9},
        {"threshold": 0.5, "init": 1},
    ],
    ids=str,
)
def test_grid(options, sizes, build):
    s, t = sizes
    check_grid(build, options, tensors(4, 2, s, t, 32, batch=2))


@pytest.mark.parametrize("sizes", [(1500, 1500), (1900, 2000)], ids=str)
def test_grid_is_found(sizes, build):
    """A planted grid is what the estimate picks, at a fraction of the keys."""
    strides, density = check_grid(build, {"init": 1}, planted_grid(*sizes))
    assert strides == [(24, 5)] * 2
    assert (density < 0.6).all()


def kinds_of(layout, t, batch):
    """Modalities [batch, t] int64: of one kind, in turns, or runs of the given lengths."""
    if layout == "one":
        kinds = np.full(t, 7)
    elif layout == "turns":
        kinds = np.arange(t) % 2
    else:
        lengths = np.resize(layout, t)
        kinds = np.repeat(np.arange(t) % 3 * 5 - 5, lengths)[:t]
    return np.stack([np.roll(kinds, 31 * b) for b in range(batch)]).astype(np.int64)


@pytest.mark.parametrize("sizes", [(256, 256), (1001, 1001), (200, 640), (100, 333), (2, 2)], ids=str)
@pytest.mark.parametrize("layout", ["one", "turns", (70, 130, 5), (300, 20)], ids=str)
@pytest.mark.parametrize("name", ["q-boundary", "2d-boundary"])
@pytest.mark.parametrize(
    "options",
    [{"vertical": 40, "slash": 120}, {"vertical": 0, "slash": 0, "init": 3, "local": 1, "last": 16}],
    ids=str,
)
def test_boundaries(options, name, layout, sizes, build):
    s, t = sizes
    q, k, v = tensors(4, 2, s, t, 32, batch=2)
    q *= 2
    kinds = kinds_of(layout, t, 2)
    text = ",".join(f"{key}={x}" for key, x in options.items())
    folder = build(
        f"{name}:{text},dense-below=0", q_heads=4, kv_heads=2, dim=32, is_causal=1, kinds=TensorProto.INT64
    )
    out, lse = np.empty_like(q), np.empty(q.shape[:3], np.float32)
    density = np.empty((2, 4), np.float32)
    with prefill_opt.Library(folder, 1) as library:
        library.run(
            library.kernels[0],
            {"q": q, "k": k, "v": v, "modality": kinds},
            {"o": out, "lse": lse, "density": density},
        )
    for b in range(2):
        for head in range(4):
            one = q[b, head], k[b, head // 2], v[b, head // 2]
            allowed = oracle.boundary(one[0], one[1], kinds[b], **options, pairs=name == "2d-boundary")
            expected, expected_lse = oracle.attention(
                *(x[None, None] for x in one), causal=True, allowed=allowed
            )
            assert row_error(out[b, head], expected[0, 0]) < 2e-5, f"batch {b}, head {head}"
            assert np.allclose(lse[b, head], expected_lse[0, 0], atol=1e-4)
    assert (density > 0).all()


def test_modality_in_onnxruntime(build):
    """The input reaches the kernel, and wrong ones are refused."""
    folder = build(
        "q-boundary:vertical=40,slash=120,dense-below=0",
        q_heads=4, kv_heads=2, dim=32, is_causal=1, kinds=TensorProto.INT32,
    )  # fmt: skip
    session = prefill_opt.session(folder)
    q, k, v = tensors(4, 2, 640, 640, 32)
    kinds = kinds_of((70, 130, 5), 640, 1).astype(np.int32)
    got = session.run(None, {"q": q, "k": k, "v": v, "kinds": kinds})[0]
    for head in range(4):
        one = q[0, head], k[0, head // 2], v[0, head // 2]
        allowed = oracle.boundary(one[0], one[1], kinds[0], 40, 120)
        expected, _ = oracle.attention(*(x[None, None] for x in one), causal=True, allowed=allowed)
        assert row_error(got[0, head], expected[0, 0]) < 2e-5
    with pytest.raises(Exception, match="MODALITY: expected .1,640., got .1,600."):
        session.run(None, {"q": q, "k": k, "v": v, "kinds": kinds[:, :600]})
    many = np.arange(640, dtype=np.int32)[None]
    with pytest.raises(Exception, match="at most 8 different ids"):
        session.run(None, {"q": q, "k": k, "v": v, "kinds": many})
    with prefill_opt.Library(folder) as library, pytest.raises(prefill_opt.KernelError, match="MODALITY"):
        library.run(library.kernels[0], {"q": q, "k": k, "v": v}, {"o": np.empty_like(q)})


def test_modality_from_tokens(tmp_path):
    """token:ID,ID makes a modality of input_ids; the pattern gets it in ONNX Runtime."""
    model = attention_model(4, 2, 32, kinds=TensorProto.INT64, is_causal=1)
    model.graph.input[-1].name = "input_ids"
    path = save_model(model, tmp_path / "model.onnx")
    spec = "2d-boundary:vertical=40,slash=120,dense-below=0"
    folder = prefill_opt.compile(path, tmp_path / "out", sparsify=spec, modality="token:3,5")
    q, k, v = tensors(4, 2, 640, 640, 32)
    ids = np.arange(640) % 3
    ids[100:260], ids[400:500] = 3, 5
    feeds = {"q": q, "k": k, "v": v, "input_ids": ids[None]}
    got = prefill_opt.session(folder).run(None, feeds)[0]
    for head in range(4):
        one = q[0, head], k[0, head // 2], v[0, head // 2]
        allowed = oracle.boundary(one[0], one[1], np.isin(ids, [3, 5]), 40, 120, pairs=True)
        expected, _ = oracle.attention(*(x[None, None] for x in one), causal=True, allowed=allowed)
        assert row_error(got[0, head], expected[0, 0]) < 2e-5


@pytest.mark.parametrize("pattern", ["block-topk:top-k=2", "sampled:threshold=0.3", "infllm-v2:top-k=2,window=0"])
def test_guard(pattern, build):
    """Blocks of keys or queries that are not alike are visited besides."""
    arrays = tensors(4, 2, 640, 640, 32)
    arrays[1][:, :, 128:256] += 3
    arrays[1][:, :, 384:576] -= 2
    arrays[0][:, :, :448] += 2
    _, _, _, plain = sparse(build, pattern, arrays)
    _, _, _, guarded = sparse(build, pattern + ",similarity=0.5", arrays)
    triangle = np.tri(10, dtype=bool)
    for head in range(4):
        keys = arrays[1][0, head // 2].astype(np.float64)
        keys = oracle.dissimilar(keys - keys.mean(0), 0.5)
        queries = oracle.dissimilar(arrays[0][0, head], 0.5)
        assert 0 < keys.sum() < 10 and 0 < queries.sum() < 10
        expected = (keys[None] | queries[:, None]) & triangle
        got = guarded[0, head] == 1
        assert (got >= expected).all()
        if not pattern.startswith("sampled"):  # a top-p leaves guarded blocks out of the sum
            assert (got == (expected | (plain[0, head] == 1))).all()


@pytest.mark.parametrize("sizes", [(640, 640), (600, 1001)], ids=str)
@pytest.mark.parametrize("below", [1e-6, 1e-2, 0.3])
@pytest.mark.parametrize("pattern", ["dense", "block-topk:top-k=6", "xattention:threshold=0.9"])
def test_skip(pattern, below, sizes, build):
    """Blocks that no row needs are visited, but have no part in the result."""
    arrays = tensors(4, 2, *sizes, 32)
    arrays[0] *= 4
    arrays[1][:, :, 128:256] *= 0.02
    arrays[1][:, :, 320:384] *= 0.5
    separator = "," if ":" in pattern else ":"
    out, lse, _, block_map = sparse(build, f"{pattern}{separator}skip={below}", arrays)
    left_out = 0
    for head in range(4):
        q, k, v = arrays[0][0, head], arrays[1][0, head // 2], arrays[2][0, head // 2]
        rows = rows_of(block_map[0, head])
        stay = oracle.left_over(q, k, rows, below)
        left_out += sum(map(len, rows)) - sum(map(len, stay))
        allowed = oracle.allowed_from(stay, [[]] * len(stay), *sizes)
        expected, expected_lse = oracle.attention(
            q[None, None], k[None, None], v[None, None], causal=True, allowed=allowed
        )
        assert row_error(out[0, head], expected[0, 0]) < LIMIT["float32"]
        assert np.allclose(lse[0, head], expected_lse[0, 0], atol=1e-4)
    assert left_out > 0 if below > 1e-3 else left_out == 0


def test_skip_leaves_short_prompts_exact(build):
    folder = build("dense:skip=0.5,dense-below=200", q_heads=4, kv_heads=2, dim=32, is_causal=1)
    dense = build(q_heads=4, kv_heads=2, dim=32, is_causal=1)
    for s, exact in ((1, True), (199, True), (200, False)):
        arrays = tensors(4, 2, s, s, 32)
        arrays[0] *= 4
        arrays[1][:, :, 64:128] *= 0.02
        assert np.array_equal(call(folder, arrays)[0], call(dense, arrays)[0]) == exact


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 1.0])
def test_density_budget(density, build):
    """What is kept is near the budget, the output is the attention over what is kept."""
    tokens = 2048
    arrays = tensors(4, 2, tokens, tokens, 64)
    out, lse, got, block_map = sparse(build, f"vertical-slash:density={density}", arrays)
    dense = build(q_heads=4, kv_heads=2, dim=64, is_causal=1)
    dense_out, dense_lse = call(dense, arrays)
    assert (lse <= dense_lse + 1e-4).all()
    diagonal = np.arange(tokens // 64)
    assert (block_map[:, :, diagonal, diagonal] == 1).all()
    if density == 1.0:
        assert row_error(out, dense_out) < 1e-5
    else:
        # The 100 diagonals that are always kept are 18 % of the blocks at this length.
        assert (got <= max(density * 1.15, 0.18)).all(), got
        assert (got >= density * 0.5).all(), got


def test_sparse_with_past(build):
    """q_len < kv_len: the a-shape lies at the end of the keys."""
    arrays = tensors(4, 2, 256, 640, 32)
    folder = build(
        "a-shape:init=64,local=128,dense-below=0",
        q_heads=4,
        kv_heads=2,
        dim=32,
        is_causal=1,
        past=True,
    )
    session = prefill_opt.session(folder)
    q, k, v = arrays
    past_k, new_k = k[:, :, :384].copy(), k[:, :, 384:].copy()
    past_v, new_v = v[:, :, :384].copy(), v[:, :, 384:].copy()
    feeds = {"q": q, "k": new_k, "v": new_v, "past_k": past_k, "past_v": past_v}
    got = session.run(["o"], feeds)[0]
    rows = oracle.a_shape(256, 640, 64, 128)
    allowed = oracle.allowed_from(rows, [[]] * len(rows), 256, 640)
    expected, _ = oracle.attention(q, k, v, causal=True, allowed=allowed)
    assert row_error(got, expected) < LIMIT["float32"]


@pytest.mark.parametrize("pattern", ["vertical-slash", "a-shape", "block-sparse", "tri-shape", "xattention"])
def test_short_prompts_run_dense(pattern, build):
    """By itself a short prompt or a single row is exact, whatever was asked for."""
    folder = build(pattern, q_heads=4, kv_heads=2, dim=64, is_causal=1)
    dense = build(q_heads=4, kv_heads=2, dim=64, is_causal=1)
    for s in (1, 2, 64, 130):
        arrays = tensors(4, 2, s, s, 64)
        assert np.array_equal(call(folder, arrays)[0], call(dense, arrays)[0])


def test_statistics_in_onnxruntime(build):
    folder = build("a-shape:init=64,local=128,dense-below=0", q_heads=4, kv_heads=2, dim=32, is_causal=1)
    session = prefill_opt.session(folder, statistics=True)
    q, k, v = tensors(4, 2, 640, 640, 32)
    (entry,) = prefill_opt.attention_statistics(session, {"q": q, "k": k, "v": v})
    assert entry["block_map"].shape == (1, 4, 10, 10)
    assert rows_of(entry["block_map"][0, 0]) == oracle.a_shape(640, 640, 64, 128)
    assert np.allclose(entry["density"], (entry["block_map"][0] == 1).sum((1, 2)) / 55)


def test_reference_models_run_in_onnxruntime():
    """The models of this file are valid: ONNX Runtime's own Attention agrees with the oracle."""
    session = plain_session(attention_model(4, 2, 32, is_causal=1).SerializeToString())
    q, k, v = tensors(4, 2, 65, 65, 32)
    expected, _ = oracle.attention(q, k, v, causal=True)
    assert row_error(session.run(None, {"q": q, "k": k, "v": v})[0], expected) < 1e-5
