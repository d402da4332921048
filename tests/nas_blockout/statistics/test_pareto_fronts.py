"""Pareto fronts and hypervolumes: cases worked by hand, and brute force over a grid of cells."""

import math
import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.statistics.pareto_fronts import hypervolume, pareto_front
from tests.services.function_calls import calls

SIDE = 5
POINTS = st.integers(1, 4).flatmap(
    lambda objectives: st.lists(st.tuples(*[st.integers(0, SIDE)] * objectives), min_size=1, max_size=9)
)


def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@given(POINTS)
@settings(max_examples=200, deadline=None)
def test_the_front_is_what_no_point_dominates(points: list[tuple[int, ...]]) -> None:
    expected = [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert list(pareto_front(points)) == expected


@given(POINTS)
@settings(max_examples=200, deadline=None)
def test_the_hypervolume_counts_the_dominated_cells(points: list[tuple[int, ...]]) -> None:
    objectives = len(points[0])
    cells = sum(
        any(all(x <= corner for x, corner in zip(point, cell, strict=True)) for point in points)
        for cell in product(range(SIDE), repeat=objectives)
    )
    assert hypervolume(points, [SIDE] * objectives) == pytest.approx(cells)


@given(st.integers(2, 4), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_hypervolume_is_that_of_inclusion_and_exclusion(objectives: int, count: int, seed: int) -> None:
    """Independent of any order of the points: volumes of intersections of boxes, added and subtracted."""
    points = np.random.default_rng(seed).random((min(count, 8), objectives))
    volume = 0.0
    for chosen in product([False, True], repeat=len(points)):
        if any(chosen):
            box = np.prod(1 - points[list(chosen)].max(axis=0))
            volume += (-1) ** (sum(chosen) + 1) * box
    assert hypervolume(points, np.ones(objectives)) == pytest.approx(volume, abs=1e-9)


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_of_intervals_only_what_is_shown_to_be_worse_is_left_out(seed: int, objectives: int, count: int) -> None:
    draws = np.random.default_rng(seed)
    low = draws.integers(0, 6, (count, objectives))
    high = low + draws.integers(0, 3, (count, objectives))
    shown = [
        index
        for index in range(count)
        if not any((high[i] <= low[index]).all() and (high[i] < low[index]).any() for i in range(count))
    ]
    assert list(pareto_front(low, highest=high)) == shown


def test_a_front_of_many_points_takes_memory_in_proportion_to_them() -> None:
    peaks = {}
    for count in (2_000, 8_000):
        points = np.random.default_rng(0).random((count, 2))
        tracemalloc.start()
        pareto_front(points)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[8_000] < 5 * peaks[2_000]  # all with all: 16 times


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_volume_of_a_long_front_does_not_take_its_square(objectives: int) -> None:
    """All of these points are on the front: they share the sum of their losses."""
    made = {}
    for count in (200, 800):
        draws = np.random.default_rng(0).dirichlet(np.ones(objectives), count)
        made[count] = calls(lambda draws=draws: hypervolume(draws, np.ones(objectives)))
    assert made[800] < 6 * made[200]


def test_cases_worked_by_hand() -> None:
    assert pareto_front([[-0.9, 10], [-0.8, 5], [-0.85, 7], [-0.9, 12]]) == (0, 1, 2)
    # (0.8 - 0.5) * (7 - 5) + (0.9 - 0.5) * (10 - 7), and a point outside the reference
    assert hypervolume([[-0.8, 5], [-0.9, 7], [-0.95, 11]], [-0.5, 10]) == pytest.approx(0.6 + 1.2)
    assert hypervolume([[-0.5, 1], [-0.9, 10]], [-0.5, 10]) == 0.0  # no better than the reference in one objective
    assert (pareto_front([]), hypervolume([], [1.0, 1.0])) == ((), 0.0)


@pytest.mark.parametrize("losses", [[0.5, 1.0], [[math.nan, 1.0]], [[0.5, math.inf]]])
def test_fronts_of_impossible_points_are_refused(losses: Any) -> None:
    with pytest.raises(ValueError, match="finite losses, one row per point"):
        pareto_front(losses)


def test_a_reference_of_other_objectives_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 finite objectives"):
        hypervolume([[0.5, 1.0]], [1.0])
