"""Which of the complete trials of an arm is retrained."""

from collections.abc import Sequence

from services.study_config.search_options import Selection
from services.trial_record import Trial

_ROUNDING = 1e-9  # 0.9 - 0.1 is not exactly 0.8: a trial on the edge of the tolerance counts as within it


def select(complete: Sequence[Trial], selection: Selection | None) -> Trial | None:
    """Return the trial with the best score, or, of those almost as good, the one with the least of an objective.

    Args:
        complete: Trials with a score.
        selection: The objective, and how far below the best score a trial may lie; None for the best score alone.
    """
    best = max(complete, key=_rank, default=None)
    if best is None or selection is None:
        return best
    lowest = _rank(best)[0] - selection.tolerance - _ROUNDING
    near = [trial for trial in complete if _rank(trial)[0] >= lowest]

    def least_then_best(trial: Trial) -> tuple[float, ...]:
        amount = trial.measured(selection.objective)
        # A trial without the measurement comes last: it may have been searched before the objective was asked for.
        return (float("inf") if amount is None else amount, *(-part for part in _rank(trial)))

    return min(near, key=least_then_best)


def _rank(trial: Trial) -> tuple[float, int]:
    assert trial.score is not None, "a complete trial has a score"
    return trial.score, -trial.number  # of equals the first
