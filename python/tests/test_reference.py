"""The NumPy references themselves: golden vectors and properties."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

COLUMNS = [0, 5, 70, 130, 300]
SLASHES = [0, 1, 64, 200, 210, 330]
TOKENS = 512

MINFERENCE = [
    ([0], []),
    ([0, 64], []),
    ([64, 128], [0, 5]),
    ([0, 128, 192], [70]),
    ([46, 110, 192, 256], [0, 5]),
    ([0, 110, 174, 256, 320], [70]),
    ([54, 174, 238, 320, 384], [0, 5, 130]),
    ([118, 238, 302, 384, 448], [0, 5, 70]),
]
RELATIVE = [
    ([0], []),
    ([0, 1], []),
    ([1, 2], [0, 5]),
    ([0, 2, 3], [70]),
    ([0, 1, 3, 4], [130]),
    ([0, 1, 2, 4, 5], []),
    ([0, 1, 2, 3, 5, 6], [300]),
    ([1, 2, 3, 4, 6, 7], [0, 5]),
]


def test_relative_form_golden():
    assert oracle.relative_distances(SLASHES) == [0, 1, 3, 4, 5, 6]
    rows = oracle.slash_blocks(SLASHES, TOKENS, TOKENS)
    columns = oracle.live_columns(COLUMNS, rows, TOKENS, TOKENS)
    assert list(zip(rows, columns, strict=True)) == RELATIVE


def test_minference_conversion_golden():
    assert oracle.minference_rows(COLUMNS, SLASHES, TOKENS) == MINFERENCE


def random_index(rng, t):
    columns = np.unique(rng.integers(0, t, 12))
    slashes = np.unique(np.append(rng.integers(0, t, 9), 0))
    return columns, slashes


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("s,t", [(512, 512), (130, 130), (64, 200), (1, 300), (100, 355)])
def test_vertical_slash_properties(seed, s, t):
    rng = np.random.default_rng(seed)
    columns, slashes = random_index(rng, t)
    rows = oracle.slash_blocks(slashes, s, t)
    single = oracle.live_columns(columns, rows, s, t)
    allowed = oracle.allowed_from(rows, single, s, t)
    causal = oracle.visibility(s, t, causal=True)
    for kept, lone in zip(rows, single, strict=True):
        assert kept == sorted(set(kept))
        assert not {j // 64 for j in lone} & set(kept)
    # Everything chosen is kept: diagonals exactly, columns for rows of earlier blocks.
    position = np.arange(s) + t - s
    for delta in slashes:
        inside = position >= delta
        assert allowed[np.nonzero(inside)[0], position[inside] - delta].all()
    for j in columns:
        assert allowed[(position // 64 * 64 > j) & (position - np.arange(s) % 64 > j), j].all()
    assert (allowed & causal).any(-1).all()


def test_relative_equals_row_by_row():
    rng = np.random.default_rng(3)
    _, slashes = random_index(rng, 1024)
    distances = oracle.relative_distances(slashes)
    rows = oracle.slash_blocks(slashes, 1024, 1024)
    assert rows == [[i - d for d in reversed(distances) if d <= i] for i in range(16)]


def test_all_blocks_is_dense_and_lse_orders():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, h, 200, 16)) for h in (4, 2, 2))
    dense, dense_lse = oracle.attention(q, k, v, causal=True)
    full = oracle.allowed_from([[0, 1, 2, 3]] * 4, [[]] * 4, 200, 200)
    same, same_lse = oracle.attention(q, k, v, causal=True, allowed=full)
    assert np.array_equal(dense, same) and np.array_equal(dense_lse, same_lse)
    rows = oracle.a_shape(200, 200, 64, 64)
    some = oracle.allowed_from(rows, [[]] * 4, 200, 200)
    _, sparse_lse = oracle.attention(q, k, v, causal=True, allowed=some)
    assert (sparse_lse <= dense_lse + 1e-12).all()


def test_a_and_tri_shape():
    assert oracle.a_shape(320, 320, 64, 64) == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert oracle.tri_shape(320, 320, 64, 64, 70)[3:] == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert oracle.a_shape(64, 320, 1, 1) == [[0, 4]]


def test_ties_go_to_the_lower_index():
    assert oracle.top_k(np.array([1.0, 2, 2, 2, 0]), 2).tolist() == [1, 2]
    assert oracle.top_k(np.zeros(5), 3).tolist() == [0, 1, 2]


def test_vertical_slash_scores_sum_to_the_rows():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((70, 8)), rng.standard_normal((100, 8))
    vertical, slash = oracle.vertical_slash_scores(q, k)
    assert np.isclose(vertical.sum(), 64) and np.isclose(slash.sum(), 64)
    columns, distances = oracle.vertical_slash_select(vertical, slash, 35, 102)
    assert columns[:30].tolist() == list(range(30)) and len(columns) == 35
    assert distances.tolist()[:100] == list(range(100)) and len(distances) == 100


def test_attention_against_a_loop():
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((1, h, n, 8)) for h, n in ((4, 5), (2, 9), (2, 9)))
    sinks = rng.standard_normal(4)
    out, lse = oracle.attention(q, k, v, causal=True, window_left=3, softcap=2.0, sinks=sinks, scale=0.7)
    for h in range(4):
        for i in range(5):
            position = i + 4
            weights = {}
            for j in range(max(0, position - 3), position + 1):
                score = q[0, h, i] @ k[0, h // 2, j] * 0.7
                weights[j] = np.exp(2 * np.tanh(score / 2))
            total = sum(weights.values()) + np.exp(sinks[h])
            expected = sum(w * v[0, h // 2, j] for j, w in weights.items()) / total
            assert np.allclose(out[0, h, i], expected)
            assert np.isclose(lse[0, h, i], np.log(total))


def test_masked_rows_are_zero():
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((2, 1, 6, 4)) for _ in range(3))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    out, lse = oracle.attention(q, k, v, causal=True, key_mask=mask)
    assert (out[0, 0, :2] == 0).all() and np.isneginf(lse[0, 0, :2]).all()
    assert np.isfinite(lse[1]).all() and np.isfinite(lse[0, 0, 2:]).all()
    segments = np.array([[0, 0, 0, 1, 1, 1]] * 2)
    split, _ = oracle.attention(q, k, v, causal=True, q_segment=segments, k_segment=segments)
    alone, _ = oracle.attention(q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], causal=True)
    assert np.allclose(split[:, :, 3:], alone)
