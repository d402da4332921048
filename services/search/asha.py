"""Early stopping of trials: asynchronous successive halving (ASHA), decided from the recorded curves alone.

References:
    Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. A System for Massively Parallel
    Hyperparameter Tuning. MLSys 2020.

Differs from the paper in: trials are not paused and promoted later. A trial trains on until a rung stops it for good
(the "stopping" variant, as in Ray Tune and Syne Tune), so a checkpoint never has to outlive its worker.
"""

from collections.abc import Iterable, Sequence

from services.study_config.search_options import Pruner
from services.trial_record import Trial


def is_promoted(value: float, reached: Sequence[float], reduction_factor: int) -> bool:
    """Return whether a trial trains beyond a rung.

    Args:
        value: Its validation accuracy at the rung.
        reached: Validation accuracies of all trials that have reached the rung so far, this one included.
        reduction_factor: The best ``1 / reduction_factor`` are promoted, at least one, and all that tie with the last.
    """
    places = max(1, len(reached) // reduction_factor)  # with fewer trials than the factor, only the best goes on
    return value >= sorted(reached, reverse=True)[places - 1]


def reason_to_stop(trial: Trial, others: Iterable[Trial], pruner: Pruner, *, since: int) -> tuple[int, str] | None:
    """Return the rung at which a trial is to be stopped and why, or None if it trains on.

    Args:
        trial: The trial, with its curve so far.
        others: The search trials of its arm; it may be among them.
        pruner: With its rungs.
        since: Number of epochs that were recorded before the latest report; rungs below it were decided then.
    """
    other_curves = [other.curve for other in others if other.number != trial.number]
    for rung in pruner.rungs or ():
        # `since` itself is included: a driver that died after recording the epoch has not decided on it yet.
        if not since <= rung <= len(trial.curve):
            continue
        value = trial.curve[rung - 1]
        # Stopped and failed trials count as well: they reached the rung, and to drop them would lower the bar.
        reached = [value, *(curve[rung - 1] for curve in other_curves if len(curve) >= rung)]
        if not is_promoted(value, reached, pruner.reduction_factor):
            better = sum(other > value for other in reached)
            return rung, (
                f"stopped early after {rung} epochs: validation accuracy {value:.4f}, {better} of the {len(reached)} "
                f"trials that reached this rung are better, 1 in {pruner.reduction_factor} goes on"
            )
    return None
