"""Curves and fronts against cases worked by hand and against slow oracles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.statistics.search_curves import best_so_far, cost_to_reach, quartile_band


def test_the_best_so_far_never_falls_and_failures_cost() -> None:
    curve = best_so_far([10, 10, 5, 20], [math.nan, 0.5, 0.4, 0.7])
    assert curve.cost.tolist() == [10, 20, 25, 45]
    np.testing.assert_array_equal(curve.best, [math.nan, 0.5, 0.5, 0.7])


@pytest.mark.parametrize(
    ("costs", "scores"),
    [([1.0], [0.5, 0.6]), ([-1.0], [0.5]), ([math.nan], [0.5]), ([math.inf], [0.5]), ([1.0], [math.inf])],
)
def test_impossible_curves_are_refused(costs: list[float], scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite costs"):
        best_so_far(costs, scores)


def test_a_band_holds_the_quartiles_over_searches() -> None:
    curves = [best_so_far([1, 1], [0.1 * k, 0.2 * k]) for k in range(1, 6)]
    band = quartile_band(curves, [1, 1.5, 2, 99])
    np.testing.assert_allclose(band.lower, [0.2, 0.2, 0.4, 0.4])
    np.testing.assert_allclose(band.median, [0.3, 0.3, 0.6, 0.6])
    np.testing.assert_allclose(band.upper, [0.4, 0.4, 0.8, 0.8])
    assert band.searches == 5


def test_a_search_without_a_score_yet_counts_as_the_worst() -> None:
    band = quartile_band([best_so_far([1], [0.5]), best_so_far([1], [0.7]), best_so_far([3], [0.9])], [0.5, 1, 3])
    np.testing.assert_allclose(band.median, [math.nan, 0.5, 0.7])
    np.testing.assert_allclose(band.lower, [math.nan, math.nan, 0.6])
    np.testing.assert_allclose(band.upper, [math.nan, 0.6, 0.8])


def test_searches_that_only_failed_have_no_quartiles() -> None:
    band = quartile_band([best_so_far([1], [math.nan]), best_so_far([], [])], [5])
    assert np.isnan([band.lower, band.median, band.upper]).all()


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_band_over_complete_searches_is_that_of_numpy(searches: list[list[float]]) -> None:
    band = quartile_band([best_so_far([1.0] * len(scores), scores) for scores in searches], [4.0])
    expected = np.quantile([max(scores) for scores in searches], [0.25, 0.5, 0.75])
    np.testing.assert_allclose([band.lower[0], band.median[0], band.upper[0]], expected, atol=1e-12)


def test_a_band_needs_a_search() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        quartile_band([], [1.0])


def test_the_cost_to_reach_a_score_is_that_of_the_first_trial_that_had_it() -> None:
    curve = best_so_far([10, 10, 5], [math.nan, 0.5, 0.7])
    assert (cost_to_reach(curve, 0.5), cost_to_reach(curve, 0.6), cost_to_reach(curve, 0.8)) == (20, 25, None)
