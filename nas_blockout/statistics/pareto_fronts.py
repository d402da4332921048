"""Pareto fronts and dominated hypervolumes, in any number of objectives.

All objectives are losses: lower is better. Whoever maximizes one negates it or takes its distance to the ideal.

References:
    Zitzler, Thiele. Multiobjective Optimization Using Evolutionary Algorithms: A Comparative Case Study. PPSN V, 1998.
    While, Hingston, Barone, Huband. A Faster Algorithm for Calculating Hypervolume. IEEE Transactions on Evolutionary
    Computation 10, 2006.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


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
    no_worse = (upper[:, None] <= points).all(axis=2)  # [i, j]: i is no worse than j
    better = (upper[:, None] < points).any(axis=2)
    return tuple(np.flatnonzero(~(no_worse & better).any(axis=0)).tolist())


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
    """Return the hypervolume of points below the corner: slices along the last objective, down to two objectives."""
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    if len(corner) == 2:
        points = np.unique(points[list(pareto_front(points))], axis=0)  # sorted by the first objective
        heights = np.concatenate([corner[1:], points[:-1, 1]]) - points[:, 1]
        return float((corner[0] - points[:, 0]) @ heights)
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.diff(points[:, -1], append=corner[-1])
    # Within a slice lie all points that begin at or before it.
    return sum(
        float(depth) * _volume(points[: index + 1, :-1], corner[:-1]) for index, depth in enumerate(depths) if depth > 0
    )


def _points(losses: ArrayLike) -> Array:
    points = np.asarray(losses, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, 0)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"needs finite losses, one row per point, got {points.tolist()}")
    return points
