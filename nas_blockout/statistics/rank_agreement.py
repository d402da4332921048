"""Whether two scores rank alike: Kendall's tau-b and Spearman's rho, with intervals from resampled pairs.

References:
    M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33, 1945.

    C. Spearman, "The proof and measurement of association between two things", American Journal of Psychology 15, 1904.

    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall, 1993, chapter 13.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

LEAST_PAIRS = 5
RESAMPLES = 1000
_MOST_WORK = 200_000_000  # pairs of pairs in all resamples together: of very many pairs, fewer resamples are drawn


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """How alike two scores rank the same things, in [-1, 1]: 1 in the same order, -1 in the opposite one.

    Args:
        n: Number of things.
        tau: Kendall's tau-b, None with fewer than `LEAST_PAIRS` things, or where one score is the same for all.
        tau_ci95: Its 95% interval from resampled things, None where there is no tau.
        spearman: Spearman's rho, with mean ranks for ties; None like tau.
        spearman_ci95: Its 95% interval.
    """

    n: int
    tau: float | None = None
    tau_ci95: Interval | None = None
    spearman: float | None = None
    spearman_ci95: Interval | None = None


def rank_agreement(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> RankAgreement:
    """Compare how two scores rank the same things.

    The intervals are percentiles over resamples of the things. They hold for things that were drawn independently; of
    very few, they are rough.

    Args:
        first: One score of each thing.
        second: The other score, in the same order.
        resamples: How often the things are drawn again, with replacement.
        seed: Of the draws.

    Raises:
        ValueError: There are not as many of one score as of the other, or one is not finite.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"both scores must be of the same things, got {a.shape} and {b.shape} of them")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("scores must be finite")
    n = len(a)
    tau, rho = (_tau_b(a, b), _spearman(a, b)) if n >= LEAST_PAIRS else (None, None)
    if tau is None or rho is None:
        return RankAgreement(n)
    draws = np.random.default_rng(seed)
    rows = [draws.integers(n, size=n) for _ in range(max(100, min(resamples, _MOST_WORK // n**2)))]
    return RankAgreement(n, tau, _interval(_tau_b, a, b, rows), rho, _interval(_spearman, a, b, rows))


def _tau_b(a: Array, b: Array) -> float | None:
    """Return concordant minus discordant pairs, over the geometric mean of the pairs that are no ties in either."""
    signs_a, signs_b = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    scale = float(np.sqrt(np.square(signs_a).sum() * np.square(signs_b).sum()))
    return float((signs_a * signs_b).sum()) / scale if scale > 0 else None


def _spearman(a: Array, b: Array) -> float | None:
    """Return Pearson's correlation of the ranks."""
    ranks_a, ranks_b = (_ranks(each) - (len(each) - 1) / 2 for each in (a, b))
    scale = float(np.sqrt(np.square(ranks_a).sum() * np.square(ranks_b).sum()))
    return float((ranks_a * ranks_b).sum()) / scale if scale > 0 else None


def _ranks(values: Array) -> Array:
    """Return ranks from 0, equal values with the mean of theirs."""
    unique: Any = np.unique(values, return_inverse=True, return_counts=True)
    _, places, counts = unique
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts + 1) / 2)[places]
    return ranks


def _interval(
    of: Callable[[Array, Array], float | None], a: Array, b: Array, rows: Sequence[NDArray[np.int64]]
) -> Interval | None:
    found = [value for row in rows if (value := of(a[row], b[row])) is not None]  # none where all drawn are equal
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
