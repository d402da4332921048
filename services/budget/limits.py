"""What an arm may still spend: sample passes, seconds and trainings, whichever ends first, with retraining paid for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from services.study_config.schema import Budget

Unit = Literal["sample_passes", "seconds", "trainings"]
UNITS: tuple[Unit, ...] = get_args(Unit)
WORDS: Mapping[Unit, str] = {"sample_passes": "sample passes", "seconds": "seconds", "trainings": "trainings"}
RETRAINING_MARGIN = 1.1  # a retraining is reckoned this much slower than the mean of the search


@dataclass(frozen=True, slots=True)
class Charge:
    """What a search trial has cost its arm.

    Args:
        ended: Whether it has ended.
        planned: Sample passes that it is meant to cost.
        spent: Sample passes that it has cost.
        seconds: Measured seconds that it has cost, proposing it and handing its structure over included.
    """

    ended: bool
    planned: int
    spent: int
    seconds: float

    @property
    def passes(self) -> int:
        """Sample passes that are gone: of an ended trial what it cost, of any other what it may cost."""
        return self.spent if self.ended else self.planned


def limits(budget: Budget) -> dict[Unit, float]:
    """Return the limits that a budget sets, by unit."""
    given = {unit: getattr(budget, unit) for unit in UNITS}
    return {unit: limit for unit, limit in given.items() if limit is not None}


def trials_left(budget: Budget, search: Sequence[Charge], *, cost: int, retrainings: int) -> dict[Unit, int]:
    """Return how many more full search trials each limit pays for, once all retrainings are paid for.

    Seconds are reckoned by the arm's own mean seconds a sample pass, and for retrainings by a tenth more. Until
    something is measured, one trial at a time may run.

    Args:
        budget: Of every arm.
        search: The arm's search trials so far.
        cost: Sample passes of one full training.
        retrainings: How many the arm will get.
    """
    found: dict[Unit, int] = {}
    for unit, limit in limits(budget).items():
        if unit == "sample_passes":
            left = (limit - retrainings * cost - sum(charge.passes for charge in search)) // cost
        elif unit == "trainings":
            left = limit - retrainings - len(search)
        else:
            left = _by_seconds(limit, search, cost=cost, retrainings=retrainings)
        found[unit] = max(0, int(left))
    return found


def ended_by(left: Mapping[Unit, int]) -> Unit | None:
    """Return the limit that pays for no further search trial, the first of several; None if all do."""
    return next((unit for unit, trials in left.items() if trials == 0), None)


def shares(budget: Budget, spent: Mapping[Unit, float]) -> dict[Unit, float]:
    """Return which share of each limit is spent."""
    return {unit: spent[unit] / limit for unit, limit in limits(budget).items()}


def _by_seconds(limit: float, search: Sequence[Charge], *, cost: int, retrainings: int) -> float:
    ended = [charge for charge in search if charge.ended]
    passes, seconds = sum(charge.spent for charge in ended), sum(charge.seconds for charge in ended)
    if passes == 0 or seconds == 0:
        return 0 if len(search) > len(ended) or seconds >= limit else 1
    training = seconds / passes * cost
    running = training * (len(search) - len(ended))
    return (limit - retrainings * RETRAINING_MARGIN * training - seconds - running) // training
