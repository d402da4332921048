"""What arms traded among several objectives: a Pareto front for each, and one number that compares them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from services.study_config.schema import Arm, Study


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Searched(Protocol):
    """A trial as the comparison has it."""

    @property
    def phase(self) -> str:
        """``search`` or ``retrain``."""

    @property
    def state(self) -> str:
        """State in the store."""

    @property
    def number(self) -> int:
        """Position among the trials of its arm and phase."""

    @property
    def score(self) -> float | None:
        """Validation accuracy of a complete trial."""

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it ended in."""


class Traded(_Strict):
    """A search trial: its number, and its value in every objective, on validation data."""

    number: int
    values: dict[str, FiniteFloat]


class Front(_Strict):
    """The search trials of an arm that no other of its trials is better than in every objective.

    ``hypervolume`` is the share, 0..1, of the box between ``reference_point`` (accuracy 0, and the highest costs among
    the complete search trials of all arms with these objectives) and the ideal (accuracy 1, costs 0) that lies behind
    them, each cost taken as its share of the reference's. It is on validation data, and of one search.
    """

    objectives: list[str]
    trials: list[Traded] = Field(description="By falling accuracy.")
    reference_point: dict[str, FiniteFloat]
    hypervolume: Annotated[float, Field(ge=0, le=1)]


def could_win(arm: Arm, trial: Searched) -> bool:
    """Return whether a trial could be retrained: it searched, is complete, and ended within the constraints."""
    if trial.phase != "search" or trial.state != "complete" or trial.score is None:
        return False
    constraints, found = arm.rules.constraints, trial.result or {}
    after = {name for name in constraints.limits if name != "latency_ms" or arm.experiment.derivation is not None}
    return not constraints.exceeded({name: found.get(name) for name in after})


def fronts(study: Study, trials: Mapping[str, Sequence[Searched]]) -> dict[str, Front]:
    """Return the front of every arm that has several objectives and a complete trial within its constraints.

    Args:
        study: The resolved study.
        trials: All trials by arm.
    """
    objectives = {name: arm.rules.objectives for name, arm in study.arms.items()}
    points = {name: _points(arm, trials[name]) for name, arm in study.arms.items() if len(objectives[name]) > 1}
    found = {}
    for name, own in points.items():
        rivals = [other for other in points if set(objectives[other]) == set(objectives[name])]
        every = [point for other in rivals for point in points[other].values()]
        if own:
            highest: dict[str, float] = {key: max(point[key] for point in every) for key in objectives[name]}
            found[name] = _front(own, {**highest, "accuracy": 0.0})
    return found


def _points(arm: Arm, trials: Sequence[Searched]) -> dict[int, dict[str, float]]:
    """Return the values of an arm's objectives, by number of the search trials that have them all."""
    found: dict[int, dict[str, float]] = {}
    for trial in trials:
        values = {**(trial.result or {}), "accuracy": trial.score}
        if could_win(arm, trial) and all(values.get(name) is not None for name in arm.rules.objectives):
            found[trial.number] = {name: float(values[name]) for name in arm.rules.objectives}
    return found


def _front(points: Mapping[int, Mapping[str, float]], reference: Mapping[str, float]) -> Front:
    from services.analysis.pareto import front, hypervolume  # Optuna takes a while to import, and few studies need it

    numbers, values = list(points), list(points.values())
    best = [Traded(number=numbers[place], values=dict(values[place])) for place in front(values)]
    return Front(
        objectives=list(reference),
        trials=sorted(best, key=lambda trial: (-trial.values["accuracy"], trial.number)),
        reference_point=dict(reference),
        hypervolume=min(1.0, hypervolume(values, reference)),
    )
