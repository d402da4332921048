"""Pareto fronts and dominated hypervolumes, in any number of objectives.

All objectives are losses: lower is better. Whoever maximizes one negates it or takes its distance to the ideal.

References:
    Zitzler, Thiele. Multiobjective Optimization Using Evolutionary Algorithms: A Comparative Case Study. PPSN V, 1998.
    While, Hingston, Barone, Huband. A Faster Algorithm for Calculating Hypervolume. IEEE Transactions on Evolutionary
    Computation 10, 2006.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Rows = TypeVar("Rows", Array, NDArray[np.int_])
_CHUNK = 256  # points that are compared at once: all with all would take gigabytes for ten thousand


def pareto_front(losses: ArrayLike, *, highest: ArrayLike | None = None) -> tuple[int, ...]:
    """Return the indices of the points that no other point dominates, in their order.

    A point dominates another if it is no worse in every objective and better in one; of equal points all are kept.
    Where a loss is only known to lie in an interval, it is no worse than another if the intervals do not overlap: a
    point is dominated only where that is shown.

    Args:
        losses: Finite, (points, objectives); with `highest` the lower ends of intervals.
        highest: The upper ends, likewise; None where losses are exact.

    Raises:
        ValueError: The losses are not finite, or not one row per point.
    """
    points = _points(losses)
    upper = points if highest is None else _points(highest)
    if not len(points):
        return ()
    # Whatever dominates a point is dominated by, or is, one of the best upper ends: these alone need be compared with.
    best = _minimal(upper)
    kept = [chunk[~_is_dominated(points[chunk], best)] for chunk in _chunks(np.arange(len(points)))]
    return tuple(np.concatenate(kept).tolist())


def _minimal(points: Array) -> Array:
    """Return the distinct points that no other dominates: with few of them, in little more time than sorting takes."""
    # Whatever dominates a point comes before it in lexicographic order, so that a point that was kept stays.
    ordered = np.unique(points, axis=0)
    found = ordered[:0]
    for chunk in _chunks(ordered):
        left = chunk[~_is_dominated(chunk, found)]
        found = np.concatenate([found, left[~_is_dominated(left, left)]])
    return found


def _is_dominated(points: Array, by: Array) -> BoolArray:
    """Return for each point whether one of others dominates it, (points,); takes memory of their product."""
    no_worse = (by[:, None] <= points).all(axis=2)  # [i, j]: i is no worse than j
    better = (by[:, None] < points).any(axis=2)
    dominated: BoolArray = np.logical_or.reduce(no_worse & better, axis=0)
    return dominated


def _chunks(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    r"""Return the volume between the points and a reference point, exactly.

    .. math:: \lambda \left( \bigcup_i \, [y_{i1}, r_1] \times \dots \times [y_{im}, r_m] \right)

    ``losses`` are the y, ``reference`` is r.

    Args:
        losses: Finite, (points, objectives). Points that are not below the reference in every objective add nothing.
        reference: Finite, (objectives,).

    Raises:
        ValueError: The losses are not finite, or the reference has another number of objectives.
    """
    points, corner = _points(losses), np.asarray(reference, dtype=np.float64)
    if not len(points):
        return 0.0
    if corner.shape != points.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(f"the reference needs {points.shape[1]} finite objectives, got {corner.tolist()}")
    return _volume(points[(points < corner).all(axis=1)], corner)


def _volume(points: Array, corner: Array) -> float:
    """Return the hypervolume of points below the corner: slices along the last objective, down to three objectives."""
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    points = _minimal(points)  # what is dominated adds nothing
    if len(corner) == 2:
        heights = np.concatenate([corner[1:], points[:-1, 1]]) - points[:, 1]  # points rise in the first objective
        return float((corner[0] - points[:, 0]) @ heights)
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.diff(points[:, -1], append=corner[-1])
    if len(corner) == 3:
        area = _Area(float(corner[0]), float(corner[1]))
        added = zip(points[:, :2].tolist(), depths.tolist(), strict=True)
        return float(sum(depth * area.add(x, y) for (x, y), depth in added))
    # Within a slice lie all points that begin at or before it.
    return sum(
        float(depth) * _volume(points[: index + 1, :-1], corner[:-1]) for index, depth in enumerate(depths) if depth > 0
    )


class _Area:
    """The area that points in two dimensions dominate below a corner, kept up to date as points are added.

    Args:
        right: The corner in the first dimension.
        top: In the second.
    """

    def __init__(self, right: float, top: float) -> None:
        self._top, self._area = top, 0.0
        # Steps of the points that no other dominates: x rises and y falls. The last one is the end of the area.
        self._x, self._y = [right], [-math.inf]

    def add(self, x: float, y: float) -> float:
        """Add a point below the corner; return the area."""
        first = end = bisect_left(self._x, x)
        left, height = x, self._y[first - 1] if first else self._top
        if height <= y:
            return self._area
        while height > y:  # what lies between the point and the steps so far, one step after the other
            self._area += (self._x[end] - left) * (height - y)
            left, height = self._x[end], self._y[end]
            end += height >= y
        self._x[first:end], self._y[first:end] = [x], [y]
        return self._area


def _points(losses: ArrayLike) -> Array:
    points = np.asarray(losses, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, 0)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"needs finite losses, one row per point, got {points.tolist()}")
    return points
