"""NumPy references in float64: attention with every option, and the sparse selections.

Shapes: q [b, hq, s, d], k [b, hk, t, d], v [b, hk, t, e]; query head h uses KV head
h // (hq / hk). The key position of query row i is ``i + (t - s)`` unless an offset is given;
key j is visible to it under a causal mask iff j is not larger. A row without visible keys
gives zeros and lse = -inf.
"""

from __future__ import annotations

import numpy as np


def visibility(
    s: int,
    t: int,
    *,
    causal: bool = False,
    window_left: int | None = None,
    window_right: int | None = None,
    offset: int | None = None,
) -> np.ndarray:
    """bool [s, t]: which keys a row may see by position.

    Args:
        window_left: key position >= row position - window_left. None: unbounded.
        window_right: key position <= row position + window_right. `causal` is the same as 0.
        offset: key position of row 0; None: t - s.
    """
    rows = np.arange(s)[:, None] + (t - s if offset is None else offset)
    keys = np.arange(t)[None, :]
    seen = np.ones((s, t), bool)
    if causal:
        seen &= keys <= rows
    if window_left is not None:
        seen &= keys >= rows - window_left
    if window_right is not None:
        seen &= keys <= rows + window_right
    return seen


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    causal: bool = False,
    window_left: int | None = None,
    window_right: int | None = None,
    offset: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: np.ndarray | None = None,
    key_mask: np.ndarray | None = None,
    kv_lengths: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    q_segment: np.ndarray | None = None,
    k_segment: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns o [b, hq, s, e] and lse [b, hq, s] (natural logarithm), both float64.

    Args:
        scale: of q.k; None: 1 / sqrt(d).
        softcap: c > 0: scores become c * tanh(score / c), before any mask or bias.
        sinks: [hq]; a logit a head that joins the denominator and has no value.
        key_mask: [b, t]; zero: the key is invisible.
        kv_lengths: [b]; keys at or past it are invisible.
        bias: broadcast to [b, hq, s, t]; bool (true: visible) or added after the softcap.
        q_segment, k_segment: [b, s], [b, t]; a row sees keys of its own segment only.
        allowed: broadcast to [b, hq, s, t]; what a sparse index keeps.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    _, hq, s, d = q.shape
    hk, t = k.shape[1:3]
    group = hq // hk
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("bhsd,bhtd->bhst", q, k) * (d**-0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    seen = np.broadcast_to(
        visibility(
            s,
            t,
            causal=causal,
            window_left=window_left,
            window_right=window_right,
            offset=offset,
        ),
        scores.shape,
    ).copy()
    if key_mask is not None:
        seen &= (np.asarray(key_mask) != 0)[:, None, None, :]
    if kv_lengths is not None:
        seen &= (np.arange(t) < np.asarray(kv_lengths).reshape(-1, 1))[:, None, None, :]
    if q_segment is not None:
        seen &= (q_segment[:, :, None] == k_segment[:, None, :])[:, None]
    if allowed is not None:
        seen &= np.asarray(allowed, bool)
    if bias is not None:
        bias = np.asarray(bias)
        if bias.dtype == np.bool_:
            seen &= bias
        else:
            scores = scores + bias.astype(np.float64)
            seen &= ~np.isneginf(np.broadcast_to(bias, scores.shape))
    scores = np.where(seen, scores, -np.inf)
    peak = scores.max(-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        sink = np.asarray(sinks, np.float64).reshape(1, hq, 1, 1)
        peak = np.maximum(peak, sink)
    safe = np.where(np.isfinite(peak), peak, 0)
    weights = np.exp(scores - safe)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sink - safe)
    empty = ~seen.any(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, np.log(total) + safe, -np.inf)[..., 0]
    lse = np.where(empty[..., 0], -np.inf, lse)
    out = np.einsum("bhst,bhte->bhse", weights / np.where(total > 0, total, 1), v)
    return np.where(empty, 0, out), lse


# --- selections -----------------------------------------------------------------------------


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest of a vector, ascending; ties go to the lower index."""
    k = min(k, len(scores))
    order = np.argsort(-np.asarray(scores), kind="stable")[:k]
    return np.sort(order)


def vertical_slash_scores(
    q: np.ndarray, k: np.ndarray, last: int = 64, scale: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Column and diagonal sums of the last rows' causal attention, for one head.

    Args: q [s, d], k [t, d]; `last` query rows are used (fewer if s is smaller).
    Returns vertical [t] (sum over rows of a key's probability) and slash [t] (sum over rows
    of the probability of the key at distance delta).
    """
    s, t = len(q), len(k)
    last = min(last, s)
    rows = np.asarray(q, np.float64)[s - last :]
    scores = rows @ np.asarray(k, np.float64).T * (q.shape[1] ** -0.5 if scale is None else scale)
    position = np.arange(t - last, t)
    scores = np.where(np.arange(t)[None] <= position[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    slash = np.zeros(t)
    for row, place in zip(weights, position, strict=True):
        # row[j] lies at distance place - j.
        slash[: place + 1] += row[place::-1]
    return weights.sum(0), slash


def vertical_slash_select(
    vertical: np.ndarray,
    slash: np.ndarray,
    count_vertical: int,
    count_slash: int,
    forced_vertical: int = 30,
    forced_slash: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """The kept columns and distances (both ascending), with MInference's forced ones.

    At least 30 columns and 50 distances are taken, as MInference does; the first
    `forced_vertical` keys and the `forced_slash` nearest diagonals always come first.
    """
    t = len(vertical)
    vertical, slash = vertical.copy(), slash.copy()
    vertical[:forced_vertical] = np.inf
    slash[:forced_slash] = np.inf
    return top_k(vertical, min(t, max(count_vertical, 30))), top_k(slash, min(t, max(count_slash, 50)))


def slash_blocks(slashes, s: int, t: int, block: int = 64) -> list[list[int]]:
    """Key blocks that the kept diagonals touch, a list (ascending) for each query block.

    With a first position that is a multiple of `block` this is the relative form: block i
    keeps {i - t} for the distances t = floor(d / block), ceil(d / block). The diagonal is
    always kept.
    """
    offset = t - s
    result = []
    for first in range(0, s, block):
        low, high = offset + first, offset + first + block - 1
        kept = set()
        for delta in {0, *(int(x) for x in slashes)}:
            kept |= {(low - delta) // block, (high - delta) // block}
        last_key = (min(high, t - 1)) // block
        result.append(sorted(x for x in kept if 0 <= x <= last_key))
    return result


def relative_distances(slashes, block: int = 64) -> list[int]:
    """The block distances of the relative form (positions aligned to blocks)."""
    kept = {0}
    for delta in slashes:
        kept |= {int(delta) // block, -(-int(delta) // block)}
    return sorted(kept)


def live_columns(columns, rows: list[list[int]], s: int, t: int, block: int = 64) -> list[list[int]]:
    """Kept single keys of each query block: before its first row and in no kept block."""
    offset = t - s
    return [
        [int(j) for j in columns if j < offset + i * block and int(j) // block not in set(kept)]
        for i, kept in enumerate(rows)
    ]


def allowed_from(
    rows: list[list[int]], columns: list[list[int]], s: int, t: int, block: int = 64
) -> np.ndarray:
    """bool [s, t] of an index in blocks and columns (causality is not applied)."""
    allowed = np.zeros((s, t), bool)
    for i, (kept, single) in enumerate(zip(rows, columns, strict=True)):
        part = allowed[i * block : (i + 1) * block]
        for j in kept:
            part[:, j * block : (j + 1) * block] = True
        part[:, single] = True
    return allowed


def a_shape(s: int, t: int, init: int, local: int, block: int = 64) -> list[list[int]]:
    """Blocks of the A-shape: the first `init` keys and the last `local` positions, whole blocks."""
    offset = t - s
    result = []
    for first in range(0, s, block):
        low = offset + first
        high = min(low + block - 1, t - 1)
        kept = set(range(max(0, low - local + 1) // block, high // block + 1))
        if init > 0:
            kept |= set(range(min((init - 1) // block, high // block) + 1))
        result.append(sorted(kept))
    return result


def tri_shape(s: int, t: int, init: int, local: int, last: int, block: int = 64) -> list[list[int]]:
    """The A-shape with the query blocks of the last `last` rows dense."""
    result = a_shape(s, t, init, local, block)
    offset = t - s
    for i in range(len(result)):
        if min((i + 1) * block, s) > s - last:
            result[i] = list(range(min(offset + (i + 1) * block - 1, t - 1) // block + 1))
    return result


def block_sparse(q: np.ndarray, k: np.ndarray, count: int, block: int = 64) -> list[list[int]]:
    """Blocks with the largest products of block means, `count` a query block, for one head.

    q [s, d], k [t, d] with t - s a multiple of `block`. The diagonal block is always one of them.
    """
    offset = (len(k) - len(q)) // block

    def pool(x):
        return np.stack([x[i : i + block].mean(0) for i in range(0, len(x), block)])

    scores = pool(np.asarray(q, np.float64)) @ pool(np.asarray(k, np.float64)).T
    result = []
    for i, row in enumerate(scores):
        visible = row[: offset + i + 1].copy()
        visible[-1] = np.inf
        result.append(top_k(visible, count).tolist())
    return result


def keep_top_p(
    mass: np.ndarray, first_own: int, tau: float, near: int = 0, forced: list[int] | None = None
) -> list[int]:
    """The kept blocks of a tile, by the mass of every visible block (the last one is its own).

    Block 0, `forced`, the tile's own blocks (`first_own` on) and `near` before them come
    first; then those of greatest mass while those before hold less than tau of it; ties: the lower block.
    """
    kept = {0, *range(max(first_own - near, 0), len(mass)), *(forced or [])}
    total, used = mass.sum(), mass[sorted(kept)].sum()
    for block in np.argsort(-mass, kind="stable"):
        if used >= tau * total:
            break
        if block not in kept:
            kept.add(int(block))
            used += mass[block]
    return sorted(kept)


def xattention(q: np.ndarray, k: np.ndarray, stride: int, tau: float, block: int = 64) -> list[list[int]]:
    """The blocks that XAttention keeps (arXiv:2503.16428), for one head; scale 1/sqrt(d).

    q [s, d], k [t, d], both in signed bytes, a strided row of q with one scale; past the end
    there are zeros, and query row i stands at position t - s + i. Block 0 and a row's own
    blocks are kept first, then the ones of greatest estimated mass while those before hold less
    than tau of it; ties: the lower block.
    """
    (s, d), t = q.shape, len(k)
    offset = t - s
    rows, keys = -(-s // stride), -(-t // stride)
    qs, ks = np.zeros((rows * stride, d), np.float32), np.zeros((keys * stride, d), np.int64)
    qs[:s] = q
    qs, of_row = quantised_rows(qs.reshape(rows, stride, d)[:, ::-1].reshape(rows, -1), 127)
    ks[:t], of_key = quantised_keys(k, 127, block)
    x = (qs @ ks.reshape(keys, -1).T) * np.outer(of_row, of_key[::stride]) / (np.sqrt(d) * stride)
    last = offset + (np.arange(rows) + 1) * stride - 1
    x[np.arange(keys)[None] * stride > last[:, None]] = -np.inf
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    result = []
    for first in range(0, s, block):
        end = min(first + block, s)
        seen = (offset + end - 1) // block + 1
        own = (offset + first) // block
        part = p[first // stride : -(-end // stride)].sum(0)
        mass = np.array([part[b * block // stride : (b + 1) * block // stride].sum() for b in range(seen)])
        result.append(keep_top_p(mass, own, tau))
    return result


def pooled_probabilities(q: np.ndarray, k: np.ndarray, block: int = 64) -> list[np.ndarray]:
    """Softmax of every query block's mean over the mean keys of the blocks it sees, for one head."""
    offset = len(k) - len(q)

    def pool(x):
        return np.stack([x[i : i + block].mean(0) for i in range(0, len(x), block)])

    scores = pool(np.asarray(q, np.float64)) @ pool(np.asarray(k, np.float64)).T * q.shape[1] ** -0.5
    result = []
    for i, row in enumerate(scores):
        seen = (offset + min((i + 1) * block, len(q)) - 1) // block + 1
        weights = np.exp(row[:seen] - row[:seen].max())
        result.append(weights / weights.sum())
    return result


def block_top_p(q: np.ndarray, k: np.ndarray, tau: float, block: int = 64) -> list[list[int]]:
    """The blocks with tau of the softmax of pooled products, for one head."""
    offset = len(k) - len(q)
    return [
        keep_top_p(mass, (offset + i * block) // block, tau)
        for i, mass in enumerate(pooled_probabilities(q, k, block))
    ]


def block_sums(values: np.ndarray, block: int) -> np.ndarray:
    """Sums of a vector over runs of `block` elements; the last may be shorter."""
    return np.add.reduceat(values, np.arange(0, len(values), block))


def causal_probabilities(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Softmax [s, t] of one head's causal attention; query row i stands at t - s + i."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    scores = np.where(visibility(len(q), len(k), causal=True), q @ k.T * q.shape[1] ** -0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def looked_at(s: int, stride: int, block: int = 64) -> np.ndarray:
    """Rows that estimates with a stride look at: the last of each run of a block, and of all."""
    chosen = np.arange(s) % block % stride == min(stride, block) - 1
    chosen[-1] = True
    return chosen


def weighed_shares(p: np.ndarray, v: np.ndarray | None, block: int = 64) -> np.ndarray:
    """Each row's share of each block, from probabilities [r, t]; with v [t, e] times |o - u|.

    u is the mean value of the block, o the sum of them all by their shares; at least 1/32 of
    the length of (o, u).
    """
    shares = np.add.reduceat(p, np.arange(0, p.shape[1], block), axis=1)
    if v is None:
        return shares
    means = np.stack([v[j : j + block].mean(0, dtype=np.float64) for j in range(0, len(v), block)])
    output = shares @ means
    far = np.linalg.norm(output[:, None] - means[None], axis=2)
    sizes = np.sqrt((output**2).sum(1)[:, None] + (means**2).sum(1)[None])
    return shares * np.maximum(far, sizes / 32)


def sampled(
    q: np.ndarray,
    k: np.ndarray,
    stride: int,
    tau: float,
    local: int = 0,
    v: np.ndarray | None = None,
    block: int = 64,
) -> list[list[int]]:
    """The blocks with tau of the attention of every stride-th query row, for one head.

    See looked_at and weighed_shares.
    """
    s, t = len(q), len(k)
    offset = t - s
    p, rows = causal_probabilities(q, k), looked_at(s, stride, block)
    result = []
    for first in range(0, s, block):
        end = min(first + block, s)
        seen = (offset + end - 1) // block + 1
        mass = weighed_shares(p[first:end][rows[first:end]], v, block).sum(0)[:seen]
        result.append(keep_top_p(mass, (offset + first) // block, tau, -(-local // block)))
    return result


def quantised_keys(k: np.ndarray, limit: int, block: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Integers [t, d] of one head's keys less their mean, and the size [t] of 1 in them.

    float32 as the runtime's, so that the integers are the same; a scale for every `block` of keys.
    """
    k = np.asarray(k, np.float32)
    mean = np.add.accumulate(k, axis=0, dtype=np.float32)[-1] * (np.float32(1) / np.float32(len(k)))
    k = k - mean
    most = np.array([np.abs(k[i : i + block]).max() for i in range(0, len(k), block)], np.float32)
    most = np.repeat(most, block)[: len(k)]
    limit = np.float32(limit)
    return np.rint(k * (limit / most)[:, None]).astype(np.int64), (most / limit).astype(np.float64)


def quantised_rows(q: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers of rows [s, n], and the size [s] of 1 in them: a scale for every row."""
    q, limit = np.asarray(q, np.float32), np.float32(limit)
    most = np.abs(q).max(1)
    return np.rint(q * (limit / most)[:, None]).astype(np.int64), (most / limit).astype(np.float64)


def quantised_scores(q: np.ndarray, k: np.ndarray, bits: int, block: int = 64) -> np.ndarray:
    """Causal scores [s, t] of one head in signed bytes, scale 1/sqrt(d), -inf where hidden."""
    limit = 7 if bits == 4 else 127
    rows, of_row = quantised_rows(q, limit)
    keys, of_key = quantised_keys(k, limit, block)
    scores = (rows @ keys.T) * np.outer(of_row, of_key) * q.shape[1] ** -0.5
    return np.where(visibility(len(q), len(k), causal=True), scores, -np.inf)


def sale(
    q: np.ndarray,
    k: np.ndarray,
    threshold: float = 0.0,
    top_p: float = 0.0,
    bits: int = 8,
    init: int = 32,
    local: int = 128,
    stride: int = 1,
    v: np.ndarray | None = None,
    block: int = 64,
) -> list[list[int]]:
    """The blocks that SALE keeps (arXiv:2505.24179), for one head.

    A block stays if for one row exp(score - m) / l > threshold, where m and l are the maximum
    and the sum of exponentials of the row's first `init` and last `local` keys. With top_p: the
    blocks with that share of the softmax of all scores, of rows and weighed as of `sampled`. Blocks with one of the `init` or `local`
    keys, and a tile's own, are always kept.
    """
    s, t = len(q), len(k)
    offset = t - s
    scores = quantised_scores(q, k, bits, block)
    row, key = np.arange(s)[:, None] + offset, np.arange(t)[None]
    if top_p:
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    else:
        near = np.where((key < init) | (key > row - local), scores, -np.inf)
        m = near.max(-1, keepdims=True)
        wanted = scores > m + np.log(threshold * np.exp(near - m).sum(-1, keepdims=True))
    result = []
    for first in range(0, s, block):
        end = min(first + block, s)
        seen = (offset + end - 1) // block + 1
        from_block = max(0, (offset + first - local + 1) // block)
        if top_p:
            own = (offset + first) // block
            rows = weights[first:end][looked_at(s, stride, block)[first:end]]
            mass = weighed_shares(rows, v, block).sum(0)[:seen]
            result.append(keep_top_p(mass, own, top_p, own - from_block))
        else:
            hit = {int(j) // block for j in np.flatnonzero(wanted[first:end].any(0))}
            forced = {*range(-(-init // block)), *range(from_block, seen)}
            result.append(sorted(b for b in hit | forced if b < seen))
    return result


def count_to(values: np.ndarray, share: float) -> int:
    """How many of the greatest values hold no more than `share` of the sum, and one."""
    running = np.cumsum(np.sort(values)[::-1])
    return min(int((running <= share * values.sum()).sum()) + 1, len(values))


def flexprefill(
    q: np.ndarray,
    k: np.ndarray,
    gamma: float,
    tau: float,
    min_budget: int,
    last: int = 64,
    block: int = 64,
) -> tuple[list[list[int]], float]:
    """FlexPrefill's blocks (arXiv:2502.20766) for one head, and its Jensen-Shannon distance.

    t - s is a multiple of `block`. Below tau the head is query-aware: gamma of every query
    block's pooled softmax, else as many blocks of columns and diagonals as reach gamma.
    """
    t, offset = len(k), (len(k) - len(q)) // block
    columns, diagonals = vertical_slash_scores(q, k, last)
    vertical, slash = block_sums(columns, block), block_sums(diagonals, block)
    recent = np.asarray(q, np.float64)[-last:].mean(0)
    means = np.stack([k[i : i + block].astype(np.float64).mean(0) for i in range(0, t, block)])
    pooled = np.exp(means @ recent * q.shape[1] ** -0.5)
    a, b = pooled / pooled.sum(), vertical / vertical.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * np.log(2 * x / (a + b)), 0).sum() / 2 for x in (a, b)]
    distance = float(np.sqrt(sum(terms)))
    aware = distance < tau
    n_vertical = n_slash = -(-max(min_budget, 1) // block)
    if not aware:
        n_vertical = max(n_vertical, count_to(columns, gamma) // block + 1)
        n_slash = max(n_slash, count_to(diagonals, gamma) // block + 1)
    vertical[0] = slash[0] = np.inf
    chosen, distances = set(top_k(vertical, n_vertical)), set(top_k(slash, n_slash))
    result = []
    for i, mass in enumerate(pooled_probabilities(q, k, block)):
        top = offset + i
        forced = {top} | chosen | {top - x for x in distances}
        forced = sorted(int(x) for x in forced if 0 <= x <= top)
        result.append(keep_top_p(mass, top, gamma if aware else 0.0, forced=forced))
    return result, distance


def infllm(
    q: np.ndarray, k: np.ndarray, count: int, init: int, local: int, block: int = 64
) -> list[list[int]]:
    """InfLLM v2's blocks (arXiv:2506.07900) for the query heads q [g, s, d] of a KV head k [t, d].

    Probabilities over means of 32 keys, one every 16, summed over heads and the rows of a
    query block; t - s is a multiple of `block`.
    """
    (heads, s, d), t = q.shape, len(k)
    starts = np.arange(0, t - 31, 16)
    mass = np.zeros((s, len(starts)))
    if len(starts):
        means = np.stack([k[i : i + 32].astype(np.float64).mean(0) for i in starts])
        seen = starts + 31 <= np.arange(t - s, t)[:, None]
        for head in np.asarray(q, np.float64):
            scores = np.where(seen, head @ means.T * d**-0.5, -np.inf)
            peak = np.maximum(scores.max(-1, keepdims=True), -1e30)
            weights = np.exp(scores - peak)
            mass += weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    result = []
    for i, first in enumerate(range(0, s, block)):
        top = (t - s) // block + i
        column = mass[first : first + block].sum(0)
        score = np.zeros(top + 1)
        for b in range(top + 1):
            touching = (starts < (b + 1) * block) & (starts + 32 > b * block)
            score[b] = column[touching].max(initial=0)
        forced = (np.arange(top + 1) * block < init) | (np.arange(top + 1) >= top - -(-local // block))
        score[forced] = np.inf
        result.append(top_k(score, max(count, int(forced.sum()))).tolist())
    return result


def grid_cost(stride: int, rows: int, offset: int, lines: dict, init: int, block: int = 64) -> int:
    """Blocks that a grid of one stride visits for `rows` rows, were all views of one length."""
    views, length, past = min(stride, rows), -(-rows // stride), -(-offset // stride)
    view = line = 0
    for done in range(0, length, block):
        end = min(done + block, length)
        view += -(-(past + end if lines["slash"] else block) // block)
        view += -(-((past + end if lines["vline"] else 0) + init) // block)
        line += -(-(offset + min(end * stride, rows)) // block)
    return view * (views - 1) + line if lines["hline"] else view * views


def grid(
    q: np.ndarray,
    k: np.ndarray,
    tau: float = 0.9,
    stride: int = 0,
    init: int = 64,
    last: int = 64,
    vline: int = 1,
    hline: int = 1,
    slash: int = 1,
    block: int = 64,
) -> tuple[int, int, np.ndarray]:
    """MMInference's grid (arXiv:2504.16083) for one head: stride, phase and what is allowed [s, t].

    Of all strides, each with the phase whose keys get the most of the last rows' attention, the
    cheapest that keeps a share tau of it at half of dense attention's blocks or less; stride 0: none, the head is dense. A given stride is
    taken whatever it keeps. Raises if rounding could change the outcome.
    """
    s, t = len(q), len(k)
    offset, last = t - s, min(last, s)
    lines = {"vline": vline, "hline": hline, "slash": slash}
    allowed = np.ones((s, t), bool)
    rows = max(0, s - last) // block * block
    if not rows:
        return 0, 0, allowed
    p = causal_probabilities(q, k)[s - last :]
    first = min(init, t)
    sums, diagonals = p[:, first:].sum(0), np.zeros(t)
    for x, place in zip(p, range(t - last, t), strict=True):
        diagonals[: place - first + 1] += x[first : place + 1][::-1]
    columns = np.concatenate([np.zeros(first), sums])
    dense = sum((offset + min(i + block, s) - 1) // block + 1 for i in range(0, s, block))
    best = None
    for each in [stride] if stride else range(2, min(1024, t // 4) + 1):
        mass = np.bincount(np.arange(t) % each, columns)
        phase = int(mass.argmax())
        kept = last - columns.sum() + (mass[phase] if vline else 0)
        kept += diagonals[::each].sum() if slash else diagonals[0]
        if not stride:
            assert abs(kept / last - tau) > 1e-6, "too near to the threshold to test"
        if stride or kept >= tau * last:
            cost = grid_cost(each, rows, offset, lines, init, block)
            if (best is None or cost < best[0]) and (stride or 2 * cost <= dense):
                best = cost, each, phase
    if best is None or best[1] == 1:
        return 0, 0, allowed
    _, each, phase = best
    key, place = np.arange(t)[None], np.arange(s)[:, None] + offset
    same = key % each == place % each
    # Without the slash a tile of a view sees the blocks of its own rows.
    tile = (np.arange(s)[:, None] // each // block * block * each) + np.arange(s)[:, None] % each + offset
    own = key // each >= tile // each // block * block
    allowed = (same & (own | bool(slash))) | (key < first)
    if vline:
        allowed |= key % each == phase
    if hline:
        allowed |= place % each == phase
    allowed[rows:] = True
    return each, phase, allowed


def modality_runs(kinds: np.ndarray, block: int = 64) -> list[tuple[int, int]]:
    """First row and end of runs of one modality, cut into `block` rows at most."""
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    return [
        (i, min(i + block, end))
        for begin, end in zip(edges[:-1], edges[1:], strict=True)
        for i in range(begin, end, block)
    ]


def boundary(
    q: np.ndarray,
    k: np.ndarray,
    modality: np.ndarray,
    vertical: int,
    slash: int,
    init: int = 30,
    local: int = 100,
    last: int = 64,
    pairs: bool = False,
    block: int = 64,
) -> np.ndarray:
    """MMInference's Q- and 2D-boundary (arXiv:2504.16083) for one head: what is allowed [s, t].

    Rows of a modality [t] keep the columns and diagonals that `last` rows of it attend to: of its
    last run of so many, or its longest. With `pairs` each modality of keys has its own share, and
    its diagonals keep the blocks that hold keys of it.
    """
    s, t = len(q), len(k)
    offset = t - s
    p = causal_probabilities(q, k)
    of_row = modality[offset:]
    edges = [0, *(np.flatnonzero(np.diff(of_row)) + 1).tolist(), s]
    kept: dict = {}
    for kind in np.unique(of_row):
        best = (0, 0)
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            if of_row[begin] == kind and min(end - begin, last) >= best[1] - best[0]:
                best = (end - min(end - begin, last), end)
        columns, distances = set(), {}
        for of_key in np.unique(modality) if pairs else [None]:
            mine = np.ones(t, bool) if of_key is None else modality == of_key
            column, diagonal = np.full(t, -np.inf), np.zeros(t)
            column[mine] = p[best[0] : best[1], mine].sum(0)
            for i in range(*best):
                place = i + offset
                diagonal[: place + 1] += np.where(mine, p[i], 0)[place::-1]
            forced = mine & (np.arange(t) < init)
            column[forced] = np.inf
            near = min(max(local, 1), t)
            diagonal[:near] = np.inf
            chosen = top_k(column, max(vertical, int(forced.sum())))
            columns |= {int(j) for j in chosen if column[j] > -np.inf}
            distances[of_key] = top_k(diagonal, max(slash, near))
        kept[kind] = sorted(columns), distances
    allowed = np.zeros((s, t), bool)
    for begin, end in modality_runs(of_row, block):
        columns, distances = kept[of_row[begin]]
        first, final = offset + begin, offset + end - 1
        blocks = set(range(first // block, final // block + 1))
        for of_key, chosen in distances.items():
            for delta in chosen:
                for b in range((first - delta) // block, (final - delta) // block + 1):
                    part = modality[b * block : (b + 1) * block] if b >= 0 else ()
                    if len(part) and (of_key is None or (part == of_key).any()):
                        blocks.add(b)
        for b in blocks:
            allowed[begin:end, b * block : (b + 1) * block] = True
        allowed[begin:end, columns] = True
    return allowed


def left_over(
    q: np.ndarray, k: np.ndarray, rows: list[list[int]], below: float, block: int = 64
) -> list[list[int]]:
    """Of the blocks that each tile of a head visits in order, those that `skip=below` leaves.

    A block goes where in every row its largest score is less than ln(below) above the largest
    of the blocks before it that stayed.
    """
    (s, d), t = q.shape, len(k)
    scores = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T * d**-0.5
    scores = np.where(visibility(s, t, causal=True), scores, -np.inf)
    result = []
    for tile, blocks in enumerate(rows):
        part = scores[tile * block : (tile + 1) * block]
        largest = np.full(len(part), -3e38)
        stay = []
        for b in blocks:
            here = part[:, b * block : (b + 1) * block].max(1)
            if (here - largest >= np.log(below)).any():
                stay.append(b)
                largest = np.maximum(largest, here)
        result.append(stay)
    return result


def dissimilar(x: np.ndarray, below: float, block: int = 64) -> np.ndarray:
    """bool: runs of `block` rows of x [n, d] whose mean cosine, of all pairs, is less than `below`."""
    unit = np.asarray(x, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    parts = [unit[i : i + block] for i in range(0, len(x), block)]
    return np.array([(part @ part.T).mean() < below for part in parts])


def minference_rows(columns, slashes, s: int, block: int = 64) -> list[tuple[list[int], list[int]]]:
    """MInference's conversion of columns and diagonals (reference only; q_len = kv_len).

    Returns for each query block the start tokens of its 64-key ranges and its columns. The
    ranges follow the diagonals without being aligned to blocks, and a range that overlaps
    the open one makes it grow by a whole block.
    """
    columns = sorted(int(x) for x in columns)
    descending = sorted((int(x) for x in slashes), reverse=True)
    result = []
    for first in range(0, s, block):
        end = first + block
        ends = [max(end - delta, block) for delta in descending if delta < end]
        starts: list[int] = []
        single: list[int] = []
        waiting = list(columns)

        def flush(low, high, starts=starts, single=single, waiting=waiting):
            while waiting and waiting[0] < high:
                column = waiting.pop(0)
                if column < low:
                    single.append(column)
            starts.extend(range(low, high, block))

        low, high = ends[0] - block, ends[0]
        for new in ends[1:]:
            if new > high + block:
                flush(low, high)
                low, high = new - block, new
            elif new > high:
                high += block
        flush(low, high)
        result.append((starts, single))
    return result
