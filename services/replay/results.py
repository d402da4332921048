"""Results of replays: best accuracy so far against budget and simulated time, and the time to a target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_blockout.statistics.search_curves import Band, Curve, best_so_far, cost_to_reach, quartile_band
from services.replay.simulation import Ended
from services.trial_record import Trial

GRID_POINTS = 41  # of a curve: steps of 2.5% of the longest replay

Quartiles = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of the replays of one arm with one number of workers.

    Args:
        arm: Name of the arm whose recorded trials were used.
        workers: Number of trials that run at the same time.
        repeats: Number of replays.
        trials: Number of recorded trials; every replay runs each of them once.
        proposals: Number of proposals in all replays; randomly drawn trials are not proposals.
        exact: Number of proposals that are equal to the recorded trial used for them.
        distance: Mean distance between a proposal and the recorded trial used for it, in [0, 1]; None if there are no
            proposals.
        seconds: Quartiles of the simulated duration of a replay, in seconds.
        target: Validation accuracy to reach.
        reached: Number of replays that reached it.
        target_seconds: Quartiles of the simulated seconds until the target was reached; None for a quartile if too few
            replays reached it.
        target_passes: Quartiles of the sample passes until the target was reached, likewise.
        by_time: Best accuracy so far against simulated seconds.
        by_budget: Best accuracy so far against sample passes.
    """

    arm: str
    workers: int
    repeats: int
    trials: int
    proposals: int
    exact: int
    distance: float | None
    seconds: Quartiles
    target: float
    reached: int
    target_seconds: Quartiles
    target_passes: Quartiles
    by_time: Band
    by_budget: Band

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types; unknown values are null."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("by_time", "by_budget")}
        return {**plain, "by_time": _band_json(self.by_time), "by_budget": _band_json(self.by_budget)}


def outcome(
    arm: str, pool: Sequence[Trial], replays: Sequence[Sequence[Ended]], *, workers: int, target: float
) -> Outcome:
    """Summarize the replays of one arm.

    Args:
        arm: Name of the arm.
        pool: Recorded trials of the arm.
        replays: The trials of each replay, in the order in which they ended.
        workers: Number of trials that run at the same time.
        target: Validation accuracy to reach.
    """
    times = [_time_curve(pool, replay) for replay in replays]
    budgets = [
        best_so_far([pool[e.trial.index].sample_passes for e in replay], [_score(pool, e) for e in replay])
        for replay in replays
    ]
    apart = [ended.trial.distance for replay in replays for ended in replay]
    distances = [distance for distance in apart if distance is not None]  # None: drawn at random, not proposed
    reached = [cost_to_reach(curve, target) for curve in times]
    return Outcome(
        arm=arm,
        workers=workers,
        repeats=len(replays),
        trials=len(pool),
        proposals=len(distances),
        exact=distances.count(0.0),
        distance=math.fsum(distances) / len(distances) if distances else None,
        seconds=_quartiles([curve.cost[-1] for curve in times]),
        target=target,
        reached=sum(cost is not None for cost in reached),
        target_seconds=_quartiles(reached),
        target_passes=_quartiles([cost_to_reach(curve, target) for curve in budgets]),
        by_time=quartile_band(times, _grid(times)),
        by_budget=quartile_band(budgets, _grid(budgets)),
    )


def _time_curve(pool: Sequence[Trial], replay: Sequence[Ended]) -> Curve:
    # `best_so_far` adds up costs, which is wrong for trials that run at the same time: only its accuracies are used.
    best = best_so_far([0.0] * len(replay), [_score(pool, ended) for ended in replay]).best
    return Curve(np.array([ended.finished for ended in replay], dtype=np.float64), best)


def _grid(curves: Sequence[Curve]) -> list[float]:
    # The same grid for all replays of an arm, up to the end of the longest, so that quartiles are of all of them.
    longest = max(float(curve.cost[-1]) for curve in curves)
    return [longest * step / (GRID_POINTS - 1) for step in range(GRID_POINTS)]


def _score(pool: Sequence[Trial], ended: Ended) -> float:
    score = pool[ended.trial.index].score
    return math.nan if score is None else score


def _quartiles(values: Sequence[float | None]) -> Quartiles:
    """Return the quartiles; replays that never reached the target (None) count as slower than all others."""
    # Not `np.quantile`: between a number and infinity it interpolates to NaN.
    ordered = np.sort([math.inf if value is None else value for value in values])

    def quantile(share: float) -> float | None:
        place = share * (len(ordered) - 1)
        low, high = float(ordered[math.floor(place)]), float(ordered[math.ceil(place)])
        if math.isinf(high):
            return None
        return low + (place % 1) * (high - low)

    return quantile(0.25), quantile(0.5), quantile(0.75)


def _band_json(band: Band) -> dict[str, list[float | None]]:
    columns = {"at": band.grid, "lower": band.lower, "median": band.median, "upper": band.upper}
    return {name: [None if math.isnan(x) else float(x) for x in values] for name, values in columns.items()}
