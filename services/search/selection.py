"""Which of the complete trials of an arm is retrained."""

from collections.abc import Sequence

from services.search.trial_state import Entry
from services.study_config.search_options import Selection

_ROUNDING = 1e-9


def chosen_of(complete: Sequence[Entry], selection: Selection | None) -> Entry | None:
    """Return the trial with the best score, or the least of what is preferred among those almost as good.

    Args:
        complete: Trials with a score.
        selection: What should be least, and how far below the best score it may lie.
    """
    best = max(complete, key=_rank, default=None)
    if best is None or selection is None:
        return best
    assert best.score is not None
    lowest, objective = best.score - selection.tolerance, selection.objective
    near = [entry for entry in complete if entry.score is not None and entry.score >= lowest - _ROUNDING]
    return min(near, key=lambda entry: (_least(entry, objective), *(-part for part in _rank(entry))))


def _rank(entry: Entry) -> tuple[float, int]:
    assert entry.score is not None, "a complete trial has a score"
    return entry.score, -entry.number


def _least(entry: Entry, objective: str) -> float:
    found = entry.measured(objective)
    return float("inf") if found is None else found
