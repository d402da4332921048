"""Which of the complete trials of an arm is retrained."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.study_config.search_options import Selection
from services.trial_record import Trial

_ROUNDING = 1e-9  # 0.9 - 0.1 is not exactly 0.8: a trial on the edge of the tolerance counts as within it


def select(complete: Iterable[Trial], selection: Selection | None) -> Trial | None:
    """Return the trial with the best score, or, of those almost as good, the one with the least of an objective.

    Args:
        complete: Trials with a score.
        selection: The objective, and how far below the best score a trial may lie; None for the best score alone.
    """
    winner = Winner(selection)
    for trial in complete:
        winner.add(trial)
    return winner.trial


@dataclass(slots=True)
class Winner:
    """The trial that `select` chooses, kept up to date as trials are added.

    Only a trial that could still be chosen is remembered: once one has left the tolerance below the best score, it
    never comes back, since the best score never falls.

    Args:
        selection: See `select`.
    """

    selection: Selection | None = None
    trial: Trial | None = None
    _lowest: float = -float("inf")
    _near: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Consider another trial, which has a score."""
        if self.selection is None:
            self.trial = trial if self.trial is None else max(self.trial, trial, key=_rank)
            return
        score = _rank(trial)[0]
        if score < self._lowest:
            return
        self._near.append(trial)
        lowest = max(self._lowest, score - self.selection.tolerance - _ROUNDING)
        if lowest == self._lowest and self.trial is not None:
            self.trial = min(self.trial, trial, key=self._least_then_best)
            return
        self._lowest = lowest
        self._near = [near for near in self._near if _rank(near)[0] >= lowest]
        self.trial = min(self._near, key=self._least_then_best)

    def _least_then_best(self, trial: Trial) -> tuple[float, ...]:
        assert self.selection is not None
        amount = trial.measured(self.selection.objective)
        # A trial without the measurement comes last: it may have been searched before the objective was asked for.
        return (float("inf") if amount is None else amount, *(-part for part in _rank(trial)))


def _rank(trial: Trial) -> tuple[float, int]:
    assert trial.score is not None, "a complete trial has a score"
    return trial.score, -trial.number  # of equals the first
