"""Early stopping of trials: asynchronous successive halving (ASHA), decided from the recorded curves alone.

References:
    Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. A System for Massively Parallel
    Hyperparameter Tuning. MLSys 2020.

Differs from the paper in: trials are not paused and promoted later. A trial trains on until a rung stops it for good
(the "stopping" variant, as in Ray Tune and Syne Tune), so a checkpoint never has to outlive its worker.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from services.search.early_stopping import EarlyStopping
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


class Rungs(EarlyStopping):
    """The validation accuracies with which the search trials of an arm have reached each rung, in order.

    Stopped and failed trials count as well: they reached the rung, and to drop them would lower the bar.

    Args:
        rungs: Epochs after which trials are compared, rising.
        reduction_factor: As of `is_promoted`.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: int) -> None:
        self._factor = reduction_factor
        self._values: dict[int, dict[int, float]] = {rung: {} for rung in rungs}  # by rung and number
        self._rising: dict[int, list[float]] = {rung: [] for rung in rungs}

    def rungs(self, number: int) -> tuple[int, ...]:
        """Return the epochs after which a trial is compared."""
        return tuple(self._rising)

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

    def reason_at(self, trial: Trial, rung: int) -> str | None:
        """Return why a trial that has reached a rung is stopped there, or None if it trains on."""
        value, reached = trial.curve[rung - 1], self._rising[rung]
        if is_promoted(value, reached, self._factor):
            return None
        better = len(reached) - bisect_right(reached, value)
        return f"{better} of the {len(reached)} trials that reached this rung are better, 1 in {self._factor} goes on"
