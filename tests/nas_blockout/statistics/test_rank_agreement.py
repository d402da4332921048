"""Rank correlations equal values worked by hand and scipy's, and their intervals cover what they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from nas_blockout.statistics.rank_agreement import rank_agreement


def test_one_exchanged_pair_of_five_worked_by_hand() -> None:
    found = rank_agreement([0.1, 0.2, 0.3, 0.4, 0.5], [1, 3, 2, 4, 5])
    assert found.n == 5
    assert found.tau == pytest.approx((9 - 1) / 10)
    assert found.spearman == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert found.tau_ci95 is not None
    assert found.tau_ci95[0] < 0.8 <= found.tau_ci95[1] == 1.0


def test_ties_count_in_neither_direction_worked_by_hand() -> None:
    found = rank_agreement([1, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    assert found.tau == pytest.approx(9 / np.sqrt(9 * 10))  # nine pairs agree, one is a tie of the first score


@given(st.integers(5, 30).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n)] * 2)))
@settings(max_examples=60, deadline=None)
def test_values_are_those_of_scipy(scores: tuple[list[int], list[int]]) -> None:
    first, second = scores
    found = rank_agreement(first, second, resamples=100)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert (found.tau, found.spearman, found.tau_ci95) == (None, None, None)
        return
    assert found.tau == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_fewer_than_five_say_nothing_and_the_same_seed_says_the_same() -> None:
    assert rank_agreement([1, 2, 3, 4], [1, 2, 3, 4]).tau is None
    draws = np.random.default_rng(1)
    first, second = draws.normal(size=(2, 20))
    assert rank_agreement(first, second) == rank_agreement(first, second)
    with pytest.raises(ValueError, match="of the same things"):
        rank_agreement([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        rank_agreement([1.0, float("nan")], [1.0, 2.0])


def test_intervals_of_unrelated_scores_contain_zero_nearly_always() -> None:
    draws = np.random.default_rng(0)
    found = [rank_agreement(*draws.normal(size=(2, 25)), resamples=200, seed=n).tau_ci95 for n in range(100)]
    assert 0.85 <= np.mean([each is not None and each[0] <= 0 <= each[1] for each in found]) <= 1.0
