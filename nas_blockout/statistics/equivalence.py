"""Equivalence of two arms: whether their difference is shown to lie within a margin that was fixed in advance.

"No difference shown" is not "the same". Two one-sided tests turn the question round: the null hypothesis is a
difference of the margin or more, and a small p-value is evidence that it is smaller.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from nas_blockout.statistics.significance import Interval, inflation, paired

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Difference a - b over the ``n`` seeds both have, tested against a margin.

    Args:
        difference: Mean of the differences seed by seed.
        margin: What may lie between two arms that count as equally good, above 0.
        ci90: Interval that lies within the margin exactly if the test shows equivalence at .05; None without a spread.
        p_not_worse: p-value of "a is worse than b by the margin or more".
        p_not_better: p-value of "a is better than b by the margin or more".
        n: Seeds behind it.
    """

    difference: float
    margin: float
    ci90: Interval | None
    p_not_worse: float
    p_not_better: float
    n: int

    @property
    def p_value(self) -> float:
        """The larger of the two: that of the equivalence test."""
        return max(self.p_not_worse, self.p_not_better)

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is shown to lie within the margin, at .05."""
        return self.p_value <= ALPHA

    @property
    def is_not_worse(self) -> bool:
        """Whether a is shown not to be worse than b by the margin or more, at .05."""
        return self.p_not_worse <= ALPHA


def equivalence(a: Mapping[int, float], b: Mapping[int, float], *, margin: float, overlap: float = 0.0) -> Equivalence:
    r"""Test whether two arms are equivalent on the seeds they share, by two one-sided paired t-tests.

    .. math:: p_{not\ worse} = P(T_{n-1} > (\bar d + margin) \sqrt n / s),
        p_{not\ better} = P(T_{n-1} < (\bar d - margin) \sqrt n / s)

    Both must be at most .05, which needs no further correction: the null hypothesis is rejected as a whole only if
    both are. Where all differences are the same number there is no t, and p is that of the sign test: of n differences
    on one side of the margin, each has at most an even chance to be there; of seeds that overlap it is 1. The standard
    error of these is larger by `inflation`.

    Args:
        a: Score of each seed of the first arm.
        b: Score of each seed of the second.
        margin: Largest difference at which the arms count as equally good, above 0, in the unit of the scores.
        overlap: Of the trainings behind the seeds, as in `nas_blockout.statistics.significance.inflation`.

    Returns:
        The difference a - b and both p-values; one shared seed gives p-values of 1 and no interval.

    Raises:
        ValueError: The margin is not positive, the arms share no seed, or a score is not finite.

    References:
        Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for assessing the
        equivalence of average bioavailability", Journal of Pharmacokinetics and Biopharmaceutics, 1987.
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"margin must be positive and finite, got {margin}: arms are never shown to be exactly equal")
    test = paired(a, b, overlap=overlap)
    mean, n = test.difference, test.n
    if not test.std:
        sign = 0.5**n if n > 1 and not overlap else 1.0
        not_worse, not_better = (sign if inside else 1.0 for inside in (mean > -margin, mean < margin))
        return Equivalence(mean, margin, None, not_worse, not_better, n)
    error = test.std / math.sqrt(n) * inflation(n, overlap)
    half = float(stdtrit(n - 1, 1 - ALPHA)) * error
    not_worse = float(stdtr(n - 1, -(mean + margin) / error))
    not_better = float(stdtr(n - 1, (mean - margin) / error))
    return Equivalence(mean, margin, (mean - half, mean + half), not_worse, not_better, n)
