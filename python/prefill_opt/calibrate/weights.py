"""How much a head's output error reaches the logits: measured with groups of sparse heads.

Small errors of different heads add up almost independently, so the Kullback-Leibler
divergence of the logits from the dense model's is modelled as sum over heads of w_h * e_h,
with e_h the squared output error that was measured on the head's own operands. Runs with one
group of layers sparse at a time give a weight a group; runs with random halves of all heads
correct it head by head (least squares, held near the group's weight where the runs say
little).
"""

from __future__ import annotations

import numpy as np


def groups_of(layers: int, runs: int) -> list[np.ndarray]:
    """The layers in at most `runs` groups of neighbours."""
    return np.array_split(np.arange(layers), min(layers, runs))


def random_half(heads: int, candidates: int, seed: int) -> np.ndarray:
    """For each head a candidate, or -1 (dense) for about half of them; the same every time."""
    rng = np.random.default_rng([seed, heads])
    plan = rng.integers(0, candidates, heads)
    return np.where(rng.random(heads) < 0.5, plan, -1)


def fit(
    group_loss: np.ndarray,
    group_error: np.ndarray,
    group_of_head: np.ndarray,
    run_loss: np.ndarray,
    run_error: np.ndarray,
    pull: float = 0.3,
) -> np.ndarray:
    """Weights of heads from both kinds of runs.

    Args:
        group_loss: [groups], divergence with one group sparse.
        group_error: [groups], summed error of the group's heads in that run.
        group_of_head: int [heads].
        run_loss: [runs], divergence of the runs with random heads.
        run_error: [runs, heads], each head's error in them (0: dense).
        pull: how strongly a head's weight is held near its group's.

    Returns [heads], positive.
    """
    group = np.maximum(group_loss, 0) / np.maximum(group_error, 1e-30)
    floor = 1e-3 * max(float(group.max()), 1e-30)
    prior = np.maximum(group, floor)[group_of_head]
    if len(run_loss) == 0:
        return prior
    # Unknown: factors x with w = prior * x, near 1. Relative residuals, since runs differ in size.
    rows = run_error * prior / np.maximum(run_loss, 1e-12)[:, None]
    heads = len(prior)
    # First one common factor: errors of many sparse layers compound.
    sums = rows.sum(1)
    common = max(float((sums.sum()) / max(float((sums**2).sum()), 1e-30)), 1e-3)
    rows = rows * common
    left = np.vstack([rows, np.sqrt(pull / heads) * np.eye(heads)])
    right = np.concatenate([np.ones(len(run_loss)), np.full(heads, np.sqrt(pull / heads))])
    factors = np.linalg.lstsq(left, right, rcond=None)[0]
    return prior * common * np.clip(factors, 0.1, 10.0)


def fit_both(
    error: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray, int],
    randoms: tuple[np.ndarray, np.ndarray],
    uniform: np.ndarray,
    rounds: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of heads and a factor of each candidate, in turns.

    A candidate's errors may reach the logits less (evenly spread over rows) or more (gathered
    in few rows) than another's of the same size; the runs with one candidate everywhere say
    how much.

    Args:
        error: [texts, heads, candidates], dense first.
        groups: (divergence [groups], group of each head, the candidate of these runs); run n was
            on text n modulo texts, here and with random heads.
        randoms: (divergence [runs], plans int [runs, heads]).
        uniform: [texts, candidates], divergence with the candidate everywhere; 0 for dense.

    Returns (weights [heads], factors [candidates]).
    """
    group_loss, of_head, probe = groups
    run_loss, plans = randoms
    texts, heads = len(error), np.arange(error.shape[1])
    factor = np.ones(error.shape[2])
    for _ in range(rounds):
        scaled = error * factor
        sums = np.bincount(of_head, scaled[of_head % texts, heads, probe], len(group_loss))
        rows = np.array([scaled[run % texts, heads, plan] for run, plan in enumerate(plans)])
        weight = fit(group_loss, sums, of_head, run_loss, rows.reshape(len(plans), len(heads)))
        predicted, found = np.einsum("h,thc->c", weight, error), uniform.sum(0)
        known = (predicted > 0) & (found > 0)
        factor[known] = np.clip(found[known] / predicted[known], 0.05, 20)
    return weight, factor
