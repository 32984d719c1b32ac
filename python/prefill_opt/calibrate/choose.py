"""The choice of a candidate per head: least weighted error at a given cost, and its search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def fit_costs(seconds: np.ndarray, dense: np.ndarray, density: np.ndarray) -> tuple[float, float]:
    """Splits a candidate's time into estimate and attention: t / t_dense = a + b * density.

    Args:
        seconds, dense: [layers], the candidate's and the dense kernel's time.
        density: [layers], mean over heads.

    Returns (a, b), both >= 0, in units of dense attention time, rounded to a percent so that
    the noise of a repetition seldom changes a choice. Where all layers have the same density
    the split cannot be seen: b = 1 is taken, as the dense kernel's blocks cost.
    """
    ratio = seconds / dense
    spread = density - density.mean()
    slope = 1.0
    if (spread**2).sum() > 1e-4 * len(density):
        slope = float((spread * ratio).sum() / (spread**2).sum())
    slope = float(np.clip(slope, 0.0, 3.0))
    offset = float(np.median(ratio - slope * density))
    if offset < 0:
        offset, slope = 0.0, float((ratio * density).sum() / (density**2).sum())
    return round(offset, 2), round(slope, 2)


def best_at(weighted: np.ndarray, cost: np.ndarray, price: float) -> np.ndarray:
    """The candidate of each head that minimises weighted error + price x cost.

    Args:
        weighted, cost: [heads, candidates].
        price: the Lagrange multiplier, >= 0.

    Returns int [heads]; ties go to the earlier candidate.
    """
    return np.argmin(weighted + price * cost, axis=1)


def plans(weighted: np.ndarray, cost: np.ndarray, count: int = 400) -> list[np.ndarray]:
    """All plans that a sweep of the multiplier gives, dearest first, without repetition.

    They are the corners of the lower convex hull of (cost, error); a greedy choice that always
    takes the best gain for its cost walks through the same ones.
    """
    positive = weighted[weighted > 0]
    if positive.size == 0:
        return [best_at(weighted, cost, 1.0)]
    prices = np.geomspace(positive.min() * 1e-3, positive.max() * 1e4, count)
    found: list[np.ndarray] = []
    for price in [0.0, *prices]:
        plan = best_at(weighted, cost, price)
        if not found or not np.array_equal(plan, found[-1]):
            found.append(plan)
    return found


def cost_of(plan: np.ndarray, cost: np.ndarray) -> float:
    """Mean cost of a plan over heads."""
    return float(cost[np.arange(len(plan)), plan].mean())


def over_texts(weighted: np.ndarray) -> np.ndarray:
    """What heads are chosen by, [heads, candidates], of errors [texts, heads, candidates]: the
    mean. (The maximum loses up to 3 % more on texts that were left out, docs/Calibration.md.)"""
    return weighted.mean(0)


def dearest_within(sequence: Sequence[np.ndarray], cost: np.ndarray, limit: float) -> np.ndarray:
    """The dearest plan of a sequence that costs no more than `limit`, or else the cheapest."""
    for plan in sequence:
        if cost_of(plan, cost) <= limit:
            return plan
    return sequence[-1]


#: Student's quantile that five of six draws (84 %, one standard error) stay below, for 1, 2, ...
#: degrees of freedom.
_STUDENT = (1.84, 1.32, 1.20, 1.14, 1.11, 1.09, 1.08, 1.07, 1.06, 1.05)


def spread_of(candidates: Sequence[Sequence[dict]]) -> float:
    """How much texts differ: the standard deviation between them of a loss, as a share of the
    divergence that it comes with.

    Four losses of one plan say little of their spread, and nothing where they are within the
    error of their rows. So it is pooled over candidates that were used for all heads (no text
    had a say in them), [candidates][texts] of runs with loss, error and divergence. What the
    rows' errors explain is taken off; candidates whose divergence is below that error count
    little, for nothing but the error is seen of them.
    """
    shares, counts = [], []
    for runs in candidates:
        divergence = np.mean([run["divergence"] for run in runs])
        if len(runs) < 2 or divergence <= 0:
            continue
        rows = np.mean(np.square([run["error"] for run in runs]))
        between = np.var([run["loss"] for run in runs], ddof=1) - rows
        shares.append(between / divergence**2)
        counts.append((1 + rows / divergence**2) ** -2)
    return float(np.sqrt(max(0.0, np.average(shares, weights=counts)))) if shares else 0.0


def held(runs: Sequence[dict], spread: float = 0.0) -> float:
    """The loss that is compared with a budget, of a plan's runs on each text.

    What about five of six other texts of the kind stay below: the mean, and a margin from the
    spread between the texts, less what their rows' standard errors explain of it, and from the
    uncertainty of the mean itself. `spread` (`spread_of`) times the divergence is the least that
    texts are taken to differ by. One text has no spread: its loss and its standard error.

    It is never less than the mean divergence, the loss on a text that is as the dense model
    expects texts to be. A real one loses that and what the change happens to do to the tokens that
    came instead, which may be a gain, but one that another text need not have.
    """
    loss = np.array([run["loss"] for run in runs])
    rows = np.mean(np.square([run["error"] for run in runs]))
    divergence = np.mean([run["divergence"] for run in runs])
    if len(runs) == 1:
        return float(max(loss[0] + np.sqrt(rows), divergence))
    total = loss.var(ddof=1)
    expected = (spread * divergence) ** 2
    between = max(0.0, total - rows, expected)
    of_mean = max(total, rows, between + rows if expected else 0.0) / len(runs)
    student = _STUDENT[min(len(runs) - 1, len(_STUDENT)) - 1]
    return float(max(loss.mean() + student * np.sqrt(between + of_mean), divergence))


def cheapest_within(
    sequence: Sequence[np.ndarray],
    loss: Callable[[np.ndarray], float],
    limit: float,
    steps: int,
    first: int | None = None,
) -> int:
    """Index of the cheapest plan of a sequence (dearest first) whose loss is within `limit`.

    Bisects, because loss grows along the sequence but for noise; `first` is where to look
    first. After `steps` evaluations the cheapest one found good is returned. Plan 0 is taken
    to be good: it is dense.
    """
    good, bad = 0, len(sequence)
    probe = first
    for _ in range(steps):
        if bad - good <= 1:
            break
        if probe is None or not good < probe < bad:
            probe = (good + bad) // 2
        if loss(sequence[probe]) <= limit:
            good = probe
        else:
            bad = probe
        probe = None
    return good
