"""Pareto fronts of arms that search for several objectives, and one number that compares them: the hypervolume."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, FiniteFloat

from nas_blockout.statistics.pareto_fronts import hypervolume, pareto_front
from services.analysis.seed_metrics import Strict
from services.search.constraints import could_win
from services.study_config.resolved_study import Arm, Study
from services.trial_record import SEARCH, Trial, TrialKey

Timed = tuple[float, tuple[float, float]]  # the median of rounds, and the quartiles around it


class FrontTrial(Strict):
    """A search trial: its number, and its value in every objective, on validation data.

    ``spreads`` has the middle half of the rounds for a value that was measured in rounds, of which ``values`` has the
    median.
    """

    number: int
    values: dict[str, FiniteFloat]
    spreads: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)


class Front(Strict):
    """The search trials of an arm that no other of its trials dominates.

    ``hypervolume`` is the share, in [0, 1], of the box between ``reference_point`` (accuracy 0, and the highest costs
    among the complete search trials of all arms with these objectives) and the ideal (accuracy 1, costs 0) that the
    trials dominate, each cost taken as its share of the reference's. It is on validation data, and of one search.

    A trial is left out only if another is shown to dominate it: spreads that overlap show nothing. Latencies without
    spreads were measured in each trial by itself and show no difference either; `is_measured_together` is then false.
    """

    objectives: list[str]
    trials: list[FrontTrial] = Field(description="By falling accuracy.")
    reference_point: dict[str, FiniteFloat]
    hypervolume: Annotated[float, Field(ge=0, le=1)]
    is_measured_together: bool = Field(False, description="Whether its latencies, if it has any, can be compared.")


def fronts(
    study: Study, trials: Mapping[str, Sequence[Trial]], latency: Mapping[TrialKey, Timed] | None = None
) -> dict[str, Front]:
    """Return the front of every arm that has several objectives and a complete trial within its constraints.

    Args:
        study: The resolved study.
        trials: All trials by arm.
        latency: Of search trials whose networks were measured together, the median and the quartiles; what else a
            trial measured by itself is replaced by it.
    """
    latency = latency or {}
    objectives = {name: arm.rules.objectives for name, arm in study.arms.items() if len(arm.rules.objectives) > 1}
    points = {name: _points(study.arms[name], trials[name], latency) for name in objectives}
    by_arm = {}
    for name, own in points.items():
        # Hypervolumes compare only under one reference point: that of all arms with the same objectives.
        alike = [other for other in points if set(objectives[other]) == set(objectives[name])]
        every = [point for other in alike for point in points[other].values()]
        if own:
            highest: dict[str, float] = {key: max(point[key] for point in every) for key in objectives[name]}
            spreads = {number: latency[name, SEARCH, number][1] for number in own if (name, SEARCH, number) in latency}
            by_arm[name] = _front(own, {**highest, "accuracy": 0.0}, spreads)
    return by_arm


def _points(arm: Arm, trials: Sequence[Trial], latency: Mapping[TrialKey, Timed]) -> dict[int, dict[str, float]]:
    """Return the values of an arm's objectives, by number of the search trials that have them all."""
    points: dict[int, dict[str, float]] = {}
    for trial in trials:
        values = {name: trial.measured(name) for name in arm.rules.objectives}
        if "latency_ms" in values and trial.key in latency:
            values["latency_ms"] = latency[trial.key][0]
        known: dict[str, float] = {name: float(value) for name, value in values.items() if value is not None}
        if could_win(trial, arm.rules.constraints) and len(known) == len(values):
            points[trial.number] = known
    return points


def _front(
    points: Mapping[int, Mapping[str, float]],
    reference: Mapping[str, float],
    spreads: Mapping[int, tuple[float, float]],
) -> Front:
    numbers, values = list(points), list(points.values())
    together = "latency_ms" not in reference or set(spreads) == set(points)
    ends = []
    for end in (0, 1):
        rows = [dict(point) for point in values]
        for number, row in zip(numbers, rows, strict=True):
            if "latency_ms" in row:
                # What was measured by itself may be anything: no trial is dominated because of it.
                row["latency_ms"] = spreads[number][end] if together else end * reference["latency_ms"]
        ends.append([[-row[name] if name == "accuracy" else row[name] for name in reference] for row in rows])
    best = [
        FrontTrial(
            number=numbers[index],
            values=dict(values[index]),
            spreads={"latency_ms": spreads[numbers[index]]} if numbers[index] in spreads else {},
        )
        for index in pareto_front(ends[0], highest=ends[1])
    ]
    return Front(
        objectives=list(reference),
        trials=sorted(best, key=lambda trial: (-trial.values["accuracy"], trial.number)),
        reference_point=dict(reference),
        hypervolume=hypervolume_share(values, reference),
        is_measured_together=together,
    )


def hypervolume_share(points: Sequence[Mapping[str, float]], reference: Mapping[str, float]) -> float:
    """Return the share, in [0, 1], of the box between the reference point and the ideal that points dominate.

    Args:
        points: With the objectives of the reference; none has a higher cost than it.
        reference: Accuracy 0, and the highest costs.
    """
    losses = [
        [1 - point[name] if name == "accuracy" else point[name] / most for name, most in reference.items()]
        for point in points
    ]
    return min(1.0, hypervolume(losses, [1.0] * len(reference)))  # rounding may lead beyond 1
