"""Running counts of trials: what a budget, the progress and the turns of the arms are computed from."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Self

from services.trial_record import Trial


@dataclass(slots=True)
class Tally:
    """States and usage of a set of trials, added up; a trial that changes is removed as it was and added as it is.

    Seconds are added exactly. Floating-point sums depend on the order of the terms, and a driver that resumes a study
    reads its trials in another order than that in which they ended: it might decide differently on the next trial.

    Attributes:
        states: Number of trials in each state.
        sample_passes: Sample passes so far, of all of them.
        charged_passes: Sample passes that are spent or committed, see `Trial.charged_passes`.
        ended: Number of trials that have ended.
        ended_passes: Sample passes of these.
    """

    states: Counter[str] = field(default_factory=Counter)
    sample_passes: int = 0
    charged_passes: int = 0
    ended: int = 0
    ended_passes: int = 0
    _seconds: Fraction = Fraction(0)

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Self:
        """Count trials."""
        tally = cls()
        for trial in trials:
            tally.add(trial)
        return tally

    def __len__(self) -> int:
        return self.states.total()

    @property
    def ended_seconds(self) -> float:
        """Seconds that the trials that have ended are charged with, see `Trial.charged_seconds`."""
        return float(self._seconds)

    @property
    def all_ended(self) -> bool:
        """Whether no trial is queued or running."""
        return self.ended == len(self)

    def add(self, trial: Trial) -> None:
        """Count a trial."""
        self._count(trial, 1)

    def remove(self, trial: Trial) -> None:
        """Count a trial no longer; it must be equal to what was added."""
        self._count(trial, -1)

    def _count(self, trial: Trial, sign: int) -> None:
        self.states[trial.state] += sign
        self.sample_passes += sign * trial.sample_passes
        self.charged_passes += sign * trial.charged_passes
        if trial.ended:
            self.ended += sign
            self.ended_passes += sign * trial.sample_passes
            self._seconds += sign * Fraction(trial.charged_seconds)
