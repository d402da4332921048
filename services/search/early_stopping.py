"""What decides whether trials are stopped early: the interface of every kind, from the recorded curves alone."""

from abc import ABC, abstractmethod

from nas_blockout.serialization import count_of
from services.trial_record import Trial


class EarlyStopping(ABC):
    """Early stopping of the search trials of an arm.

    It holds nothing that the trials do not give back: a driver that starts again decides as the one before.
    """

    @abstractmethod
    def rungs(self, number: int) -> tuple[int, ...]:
        """Return the epochs, rising, after which the trial of a number waits for a decision."""

    @abstractmethod
    def update(self, trial: Trial) -> None:
        """Take note of a trial, or of its new state."""

    @abstractmethod
    def reason_at(self, trial: Trial, rung: int) -> str | None:
        """Return why a trial is stopped after an epoch, or None if it trains on.

        Args:
            trial: The trial, of which `update` knows, with its curve.
            rung: One of its `rungs`, which it has reached.
        """

    def bracket(self, number: int) -> int | None:
        """Return the bracket of the trial of a number; None where there are no brackets."""
        return None

    def reason_to_stop(self, trial: Trial, *, since: int, metric: str = "accuracy") -> tuple[int, str] | None:
        """Return the epoch after which a trial is to be stopped and why, or None if it trains on.

        Args:
            trial: The trial, of which `update` knows, with its curve so far.
            since: Number of epochs that were recorded before the latest report; rungs below it were decided then.
            metric: What the curves are of, in words.
        """
        for rung in self.rungs(trial.number):
            # `since` itself is included: a driver that died after recording the epoch has not decided on it yet.
            if since <= rung <= len(trial.curve) and (why := self.reason_at(trial, rung)) is not None:
                at = f"stopped early after {count_of(rung, 'epoch')}: validation {metric} {trial.curve[rung - 1]:.4f}"
                return rung, f"{at}, {why}"
        return None
