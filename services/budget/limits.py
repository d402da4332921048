"""What an arm may still spend: sample passes, seconds and trainings, whichever ends first, with retraining paid for."""

from collections.abc import Mapping
from typing import Literal, get_args

from services.budget.tally import Tally
from services.study_config.schema import Budget

Unit = Literal["sample_passes", "seconds", "trainings"]
UNITS: tuple[Unit, ...] = get_args(Unit)
WORDS: Mapping[Unit, str] = {"sample_passes": "sample passes", "seconds": "seconds", "trainings": "trainings"}
RETRAINING_MARGIN = 1.1  # a retraining is assumed to be this much slower than the mean of the search
FAILURES_IN_A_ROW = 8  # after so many the search of an arm ends


def limits(budget: Budget) -> dict[Unit, float]:
    """Return the limits that a budget sets, by unit."""
    amounts = {unit: getattr(budget, unit) for unit in UNITS}
    return {unit: limit for unit, limit in amounts.items() if limit is not None}


def trials_left(budget: Budget, search: Tally, *, cost: int, retrainings: int) -> dict[Unit, int]:
    """Return how many more full search trials each limit pays for, once all retrainings are paid for.

    Seconds are predicted from the arm's own mean seconds per sample pass, with a margin of a tenth for retrainings.
    Until something has been measured, one trial at a time may run.

    Args:
        budget: Of every arm.
        search: Counts of the arm's search trials so far.
        cost: Sample passes of one full training.
        retrainings: Number of retrainings that the arm will get.
    """
    left: dict[Unit, int] = {}
    for unit, limit in limits(budget).items():
        if unit == "sample_passes":
            # A running trial counts with what it is planned to cost, one that has ended with what it did cost.
            trials = (limit - retrainings * cost - search.charged_passes) // cost
        elif unit == "trainings":
            trials = limit - retrainings - len(search)
        else:
            trials = _by_seconds(limit, search, cost=cost, retrainings=retrainings)
        left[unit] = max(0, int(trials))
    return left


def ended_by(left: Mapping[Unit, int]) -> Unit | None:
    """Return the first limit that pays for no further search trial, or None if all of them do."""
    return next((unit for unit, trials in left.items() if trials == 0), None)


def shares(budget: Budget, spent: Mapping[Unit, float]) -> dict[Unit, float]:
    """Return the share of each limit that is spent."""
    return {unit: spent[unit] / limit for unit, limit in limits(budget).items()}


def _by_seconds(limit: float, search: Tally, *, cost: int, retrainings: int) -> float:
    passes, seconds, running = search.ended_passes, search.ended_seconds, len(search) - search.ended
    if passes == 0 or seconds == 0:
        # Nothing to predict from: a second trial beside the first could cost more than the whole budget.
        return 0 if running or seconds >= limit else 1
    training = seconds / passes * cost
    return (limit - retrainings * RETRAINING_MARGIN * training - seconds - training * running) // training
