"""Two one-sided tests against scipy's one-sided tests, a calculation by hand, and their own error rate."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nas_blockout.statistics.equivalence import equivalence


def seeds(values: Any) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("shift", [-0.02, -0.004, 0.0, 0.003, 0.02])
def test_both_p_values_are_those_of_one_sided_t_tests(n: int, shift: float) -> None:
    draws = np.random.default_rng(n)
    b = 0.9 + draws.normal(0, 0.01, n)
    a = b + shift + draws.normal(0, 0.002, n)
    found = equivalence(seeds(a), seeds(b), margin=0.005)
    assert found.p_not_worse == pytest.approx(stats.ttest_rel(a + 0.005, b, alternative="greater").pvalue, rel=1e-9)
    assert found.p_not_better == pytest.approx(stats.ttest_rel(a - 0.005, b, alternative="less").pvalue, rel=1e-9)
    interval = stats.t.interval(0.9, n - 1, (a - b).mean(), stats.sem(a - b))
    assert found.ci90 == pytest.approx(interval)
    within = interval[0] > -0.005 and interval[1] < 0.005
    assert (found.is_equivalent, found.n) == (within, n)


def test_a_calculation_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, error 1/sqrt(3); t is -(5 - 2) sqrt(3) = -5.196 with 2 degrees
    # of freedom, of which p = (1 - t / sqrt(2 + t^2)) / 2.
    found = equivalence({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0, 9: 5.0}, margin=5.0)
    t = 3 * math.sqrt(3)
    assert found.difference == 2.0
    assert found.p_value == found.p_not_better == pytest.approx((1 - t / math.sqrt(2 + t * t)) / 2)
    assert found.is_equivalent


def test_much_better_is_not_worse_and_not_equivalent() -> None:
    found = equivalence(seeds([0.95, 0.951, 0.949, 0.95]), seeds([0.9, 0.9, 0.9, 0.901]), margin=0.005)
    assert found.is_not_worse
    assert not found.is_equivalent


def test_no_difference_shown_is_not_equivalence() -> None:
    noisy = equivalence(seeds([0.90, 0.93, 0.88, 0.91, 0.89]), seeds([0.91, 0.89, 0.92, 0.90, 0.90]), margin=0.005)
    assert abs(noisy.difference) < 0.005
    assert not noisy.is_equivalent
    assert not noisy.is_not_worse


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 0.25), (4, 0.0625), (5, 0.03125)])
def test_seeds_that_all_differ_alike_are_judged_by_their_signs(n: int, p: float) -> None:
    found = equivalence(seeds([0.9] * n), seeds([0.9] * n), margin=0.005)
    assert (found.ci90, found.p_not_worse, found.p_not_better) == (None, p, p)
    outside = equivalence(seeds([0.8] * n), seeds([0.9] * n), margin=0.005)
    assert (outside.p_not_worse, outside.is_equivalent) == (1.0, False)


def test_arms_that_differ_by_the_margin_are_called_equivalent_once_in_twenty_studies() -> None:
    draws = np.random.default_rng(0)
    noise = draws.normal(0, 1, (4000, 5))
    called = sum(equivalence(seeds(row - 4.0), seeds(np.zeros(5)), margin=4.0).is_equivalent for row in noise)
    assert called / 4000 == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("margin", [0.0, -0.1, math.inf, math.nan])
def test_a_margin_is_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be positive and finite"):
        equivalence({0: 0.5}, {0: 0.5}, margin=margin)


def test_folds_have_a_larger_standard_error() -> None:
    # By hand: differences .003 .001 -.001 .002 0, mean .001, variance 2.5e-6; 1/5 + 1/4 in the place of 1/5.
    a = dict(enumerate([0.903, 0.901, 0.899, 0.902, 0.9]))
    b = dict.fromkeys(range(5), 0.9)
    error = math.sqrt(2.5e-6 * (1 / 5 + 1 / 4))
    found = equivalence(a, b, margin=0.005, overlap=0.25)
    assert found.p_not_worse == pytest.approx(stats.t.sf(0.006 / error, 4))
    assert found.p_not_better == pytest.approx(stats.t.sf(0.004 / error, 4))
    half = stats.t.ppf(0.95, 4) * error
    assert found.ci90 == pytest.approx((0.001 - half, 0.001 + half))
    assert equivalence(a, b, margin=0.005, overlap=0.0) == equivalence(a, b, margin=0.005)
    same = equivalence(b, b, margin=0.005, overlap=0.25)
    assert (same.p_not_worse, same.p_not_better) == (1.0, 1.0)
