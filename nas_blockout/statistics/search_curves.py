"""Best score so far against cost: the curve of a search, and quartiles over searches.

Scores are higher-is-better, costs lower-is-better, both in any unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Best score so far, ``best``, after each cumulated ``cost``; NaN until a trial has succeeded."""

    cost: Array
    best: Array


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Quartiles of several curves on a grid of costs; NaN where too few of them have a score."""

    grid: Array
    lower: Array
    median: Array
    upper: Array
    searches: int


def best_so_far(costs: ArrayLike, scores: ArrayLike) -> Curve:
    """Follow the best score of one search, trial by trial in the order they ended.

    Args:
        costs: what each trial cost, not negative, (trials,); failed trials cost too.
        scores: its score, (trials,), NaN for a failed trial.
    """
    cost, score = np.asarray(costs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if (
        cost.shape != score.shape
        or cost.ndim != 1
        or not ((cost >= 0) & (cost < np.inf)).all()
        or np.isinf(score).any()
    ):
        raise ValueError(f"needs as many finite costs >= 0 as scores, got {cost.tolist()} and {score.tolist()}")
    # fmax, unlike maximum, passes over the NaN of failed trials
    return Curve(np.cumsum(cost), np.fmax.accumulate(score) if score.size else score)


def _at(curve: Curve, grid: Array) -> Array:
    before = np.searchsorted(curve.cost, grid, side="right")
    # -inf, the first entry, is the best score before any trial has ended
    return np.concatenate([[-np.inf], np.where(np.isnan(curve.best), -np.inf, curve.best)])[before]


def quartile_band(curves: Sequence[Curve], grid: ArrayLike) -> Band:
    """Give the quartiles over searches of the best score so far, at each cost of the grid.

    A search that has no score yet counts as worse than all others instead of being left out, which would flatter the
    start; a finished search keeps its best. A quartile that falls on a search without a score is NaN.
    """
    if not curves:
        raise ValueError("a band needs at least one curve, got none")
    costs = np.asarray(grid, dtype=np.float64)
    ordered = np.sort(np.stack([_at(curve, costs) for curve in curves]), axis=0)

    # np.quantile would interpolate between -inf and a score, and give NaN where the lower neighbor alone is missing.
    def quantile(share: float) -> Array:
        place = share * (len(curves) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        known = np.isfinite(low)
        start = np.where(known, low, 0.0)
        return np.where(known, start + (place % 1) * (np.where(known, high, 0.0) - start), np.nan)

    return Band(costs, quantile(0.25), quantile(0.5), quantile(0.75), len(curves))


def cost_to_reach(curve: Curve, score: float) -> float | None:
    """Give the cost after which a search first had ``score`` or better; ``None`` if it never had."""
    reached = np.flatnonzero(curve.best >= score)
    return float(curve.cost[reached[0]]) if reached.size else None
