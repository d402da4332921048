"""Budgets to the other's final accuracy, on curves whose answers are seen at a glance."""

import math

import pytest

from nas_blockout.statistics.convergence import budget_to_final

SLOW = [(10, 0.2), (20, 0.4), (30, 0.5), (40, 0.6)]
FAST = [(10, 0.4), (20, 0.6), (30, 0.7), (40, 0.7)]


def test_half_the_budget_is_half() -> None:
    found = budget_to_final({0: FAST, 1: FAST}, {0: SLOW, 1: SLOW, 2: SLOW})
    assert (found.reached, found.own) == ({0: 20, 1: 20}, {0: 40, 1: 40})
    assert (found.median, found.never) == (0.5, 0)
    assert budget_to_final({0: SLOW}, {0: SLOW}).median == 1


def test_who_never_gets_there_needs_without_end_and_does_not_vanish_from_the_median() -> None:
    found = budget_to_final({0: FAST, 1: SLOW, 2: SLOW}, {0: SLOW, 1: FAST, 2: FAST})
    assert found.reached == {0: 20, 1: None, 2: None}
    assert (found.median, found.never) == (math.inf, 2)


def test_an_unsteady_rival_counts_from_when_it_first_had_what_it_ends_with() -> None:
    unsteady = [(10, 0.2), (20, 0.65), (30, 0.5), (40, 0.6)]
    assert budget_to_final({0: FAST}, {0: unsteady}).median == 1


@pytest.mark.parametrize(
    ("curves", "others", "message"),
    [
        ({0: FAST}, {1: SLOW}, r"share a seed, got seeds \[0\] and \[1\]"),
        ({0: []}, {0: SLOW}, r"must be positive and rise .*got \[\]"),
        ({0: FAST}, {0: [(10, 0.1), (10, 0.2)]}, r"must be positive and rise .*got \[10, 10\]"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(curves, others, message) -> None:
    with pytest.raises(ValueError, match=message):
        budget_to_final(curves, others)
