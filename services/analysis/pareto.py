"""Pareto fronts of arms that search for several objectives, and one number that compares them: the hypervolume."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, FiniteFloat

from nas_blockout.statistics.pareto_fronts import hypervolume, pareto_front
from services.analysis.seed_metrics import Strict
from services.search.constraints import could_win
from services.study_config.resolved_study import Arm, Study
from services.trial_record import Trial


class FrontTrial(Strict):
    """A search trial: its number, and its value in every objective, on validation data."""

    number: int
    values: dict[str, FiniteFloat]


class Front(Strict):
    """The search trials of an arm that no other of its trials dominates.

    ``hypervolume`` is the share, in [0, 1], of the box between ``reference_point`` (accuracy 0, and the highest costs
    among the complete search trials of all arms with these objectives) and the ideal (accuracy 1, costs 0) that the
    trials dominate, each cost taken as its share of the reference's. It is on validation data, and of one search.
    """

    objectives: list[str]
    trials: list[FrontTrial] = Field(description="By falling accuracy.")
    reference_point: dict[str, FiniteFloat]
    hypervolume: Annotated[float, Field(ge=0, le=1)]


def fronts(study: Study, trials: Mapping[str, Sequence[Trial]]) -> dict[str, Front]:
    """Return the front of every arm that has several objectives and a complete trial within its constraints.

    Args:
        study: The resolved study.
        trials: All trials by arm.
    """
    objectives = {name: arm.rules.objectives for name, arm in study.arms.items() if len(arm.rules.objectives) > 1}
    points = {name: _points(study.arms[name], trials[name]) for name in objectives}
    by_arm = {}
    for name, own in points.items():
        # Hypervolumes compare only under one reference point: that of all arms with the same objectives.
        alike = [other for other in points if set(objectives[other]) == set(objectives[name])]
        every = [point for other in alike for point in points[other].values()]
        if own:
            highest: dict[str, float] = {key: max(point[key] for point in every) for key in objectives[name]}
            by_arm[name] = _front(own, {**highest, "accuracy": 0.0})
    return by_arm


def _points(arm: Arm, trials: Sequence[Trial]) -> dict[int, dict[str, float]]:
    """Return the values of an arm's objectives, by number of the search trials that have them all."""
    points: dict[int, dict[str, float]] = {}
    for trial in trials:
        values = {name: trial.measured(name) for name in arm.rules.objectives}
        known: dict[str, float] = {name: float(value) for name, value in values.items() if value is not None}
        if could_win(trial, arm.rules.constraints) and len(known) == len(values):
            points[trial.number] = known
    return points


def _front(points: Mapping[int, Mapping[str, float]], reference: Mapping[str, float]) -> Front:
    numbers, values = list(points), list(points.values())
    signed = [[-point[name] if name == "accuracy" else point[name] for name in reference] for point in values]
    best = [FrontTrial(number=numbers[index], values=dict(values[index])) for index in pareto_front(signed)]
    return Front(
        objectives=list(reference),
        trials=sorted(best, key=lambda trial: (-trial.values["accuracy"], trial.number)),
        reference_point=dict(reference),
        hypervolume=hypervolume_share(values, reference),
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
