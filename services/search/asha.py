"""Which trials are stopped early: asynchronous successive halving, decided from the store and from nothing else.

References:
    Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. A System for Massively Parallel
    Hyperparameter Tuning. MLSys 2020.
"""

from collections.abc import Iterable, Sequence

from services.search.trial_state import Entry
from services.study_config.search_options import Pruner


def goes_on(value: float, reached: Sequence[float], reduction_factor: int) -> bool:
    """Return whether a trial goes on from a rung.

    Args:
        value: Its validation accuracy there.
        reached: Those of all trials that have reached the rung until now, its own among them.
        reduction_factor: One in so many goes on, and never fewer than one; of equals all.
    """
    places = max(1, len(reached) // reduction_factor)
    return value >= sorted(reached, reverse=True)[places - 1]


def reason_to_stop(entry: Entry, others: Iterable[Entry], pruner: Pruner, *, since: int) -> tuple[int, str] | None:
    """Return the rung at which a trial is to be stopped and why, or None if it goes on.

    Args:
        entry: The trial, with its curve so far.
        others: The search trials of its arm; it may be among them.
        pruner: With its rungs.
        since: Epochs that had been recorded before; a rung that the trial had left behind is not looked at again.
    """
    rivals = [other.curve for other in others if other.number != entry.number]
    for rung in pruner.rungs or ():
        if not since <= rung <= len(entry.curve):
            continue
        value = entry.curve[rung - 1]
        reached = [value, *(curve[rung - 1] for curve in rivals if len(curve) >= rung)]
        if not goes_on(value, reached, pruner.reduction_factor):
            better = sum(other > value for other in reached)
            return rung, (
                f"stopped early after {rung} epochs: validation accuracy {value:.4f}, {better} of the {len(reached)} "
                f"trials that reached this rung are better, 1 in {pruner.reduction_factor} goes on"
            )
    return None
