"""Early stopping of trials: asynchronous successive halving (ASHA), decided from the recorded curves alone.

References:
    Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. A System for Massively Parallel
    Hyperparameter Tuning. MLSys 2020.

Differs from the paper in: trials are not paused and promoted later. A trial trains on until a rung stops it for good
(the "stopping" variant, as in Ray Tune and Syne Tune), so a checkpoint never has to outlive its worker.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from nas_blockout.serialization import count_of
from services.study_config.search_options import Pruner
from services.trial_record import Trial


def is_promoted(value: float, reached: Sequence[float], reduction_factor: int) -> bool:
    """Return whether a trial trains beyond a rung.

    Args:
        value: Its validation accuracy at the rung.
        reached: Validation accuracies of all trials that have reached the rung so far, this one included, rising.
        reduction_factor: The best ``1 / reduction_factor`` are promoted, at least one, and all that tie with the last.
    """
    places = max(1, len(reached) // reduction_factor)  # with fewer trials than the factor, only the best goes on
    return value >= reached[-places]


class Rungs:
    """The validation accuracies with which the search trials of an arm have reached each rung, in order.

    Stopped and failed trials count as well: they reached the rung, and to drop them would lower the bar.

    Args:
        pruner: With its rungs.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._values: dict[int, dict[int, float]] = {rung: {} for rung in pruner.rungs or ()}  # by rung and number
        self._rising: dict[int, list[float]] = {rung: [] for rung in pruner.rungs or ()}

    def update(self, trial: Trial) -> None:
        """Take note of the rungs that a trial has reached."""
        for rung, values in self._values.items():
            value = trial.curve[rung - 1] if rung <= len(trial.curve) else None
            before = values.get(trial.number)
            if value == before:
                continue
            rising = self._rising[rung]
            if before is not None:
                del values[trial.number], rising[bisect_left(rising, before)]
            if value is not None:
                values[trial.number] = value
                insort(rising, value)

    def reason_to_stop(self, trial: Trial, *, since: int) -> tuple[int, str] | None:
        """Return the rung at which a trial is to be stopped and why, or None if it trains on.

        Args:
            trial: The trial, with its curve so far.
            since: Number of epochs that were recorded before the latest report; rungs below it were decided then.
        """
        self.update(trial)
        for rung, reached in self._rising.items():
            # `since` itself is included: a driver that died after recording the epoch has not decided on it yet.
            if not since <= rung <= len(trial.curve):
                continue
            value = trial.curve[rung - 1]
            if not is_promoted(value, reached, self._pruner.reduction_factor):
                better = len(reached) - bisect_right(reached, value)
                return rung, (
                    f"stopped early after {count_of(rung, 'epoch')}: validation accuracy {value:.4f}, {better} of the "
                    f"{len(reached)} trials that reached this rung are better, 1 in {self._pruner.reduction_factor} "
                    "goes on"
                )
        return None
