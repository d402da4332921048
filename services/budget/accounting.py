"""What arms have spent, what ended their searches, and whether their spending can be compared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from nas_blockout.statistics import significance
from services.budget.limits import FAILURES_IN_A_ROW, WORDS, Unit, ended_by, trials_left
from services.budget.tally import Tally
from services.study_config.resolved_study import Arm, Study
from services.trial_record import RETRAIN, SEARCH, Trial

End = Literal["sample_passes", "seconds", "trainings", "space", "failures", "match"]
END_WORDS: Mapping[End, str] = {
    "sample_passes": WORDS["sample_passes"],
    "seconds": WORDS["seconds"],
    "trainings": WORDS["trainings"],
    "space": "nothing left to try",
    "failures": "failures in a row",
    "match": "nothing to match",
}


def stale(trials: Iterable[Trial]) -> list[Trial]:
    """Return the retrainings that a later one of the same arm and seed has replaced.

    A study that is extended may find another winner, which is retrained in its place. What retraining the earlier
    winner cost is not held against the arm: the larger study would not have paid it.
    """
    newest: dict[tuple[str, int], int] = {}
    retrainings = [trial for trial in trials if trial.phase == RETRAIN]
    for trial in retrainings:
        newest[trial.arm, trial.seed] = max(newest.get((trial.arm, trial.seed), -1), trial.number)
    return [trial for trial in retrainings if trial.number < newest[trial.arm, trial.seed]]


def current(trials: Sequence[Trial]) -> list[Trial]:
    """Return all trials but those `stale`."""
    replaced = {trial.key for trial in stale(trials)}
    return [trial for trial in trials if trial.key not in replaced]


def ends(study: Study, trials: Mapping[str, Sequence[Trial]]) -> dict[str, End | None]:
    """Return by arm what ended its search, None while it goes on.

    Args:
        study: The resolved study.
        trials: All trials, by arm, each in the order in which they were proposed.
    """
    ended = {name: _end(study, arm, trials[name]) for name, arm in study.arms.items()}
    for name, arm in study.arms.items():
        if arm.match is not None and ended[name] is None and ended[arm.match] is not None:
            matched = [trial for trial in trials[arm.match] if trial.phase == SEARCH]
            if not any(trial.state == "complete" for trial in matched):
                ended[name] = "match"
    return ended


def compared_in(
    spent: Mapping[Unit, Mapping[str, float]], ended: Mapping[str, End | None], tolerance: float
) -> tuple[Unit, str | None]:
    """Return the unit in which the spending of arms is compared, and why it cannot be compared, or None if it can.

    The unit is that of the limit that ended all arms. If different limits ended them, it is the first unit of the
    budget in which their spending agrees.

    Args:
        spent: By unit of the budget and arm.
        ended: What ended each arm.
        tolerance: Largest relative difference.
    """
    budgeted = list(spent)
    units = [unit for unit in budgeted if unit in ended.values()] or budgeted[:1]
    reasons = {unit: significance.budget_disagreement(spent[unit], tolerance, unit=WORDS[unit]) for unit in budgeted}
    if len(units) == 1:
        return units[0], reasons[units[0]]
    if (agreed := next((unit for unit in budgeted if reasons[unit] is None), None)) is not None:
        return agreed, None
    by = ", ".join(f"{arm} by {END_WORDS[end]}" for arm, end in ended.items() if end is not None)
    return units[0], f"different limits ended the arms ({by}), and they agree in none of them"


def _end(study: Study, arm: Arm, trials: Sequence[Trial]) -> End | None:
    search = [trial for trial in trials if trial.phase == SEARCH]
    if not search or any(not trial.ended for trial in search):
        return None
    cost = max(trial.planned for trial in search)  # of one full training; 0 if only an exhausted search is recorded
    seeds = len(study.config.retrain.seeds)
    if cost and (end := ended_by(trials_left(study.config.budget, Tally.of(search), cost=cost, retrainings=seeds))):
        return end
    if any(trial.planned == 0 for trial in search):  # stands for a proposal that no constraint allowed
        return "space"
    latest = [trial.state for trial in search[-FAILURES_IN_A_ROW:]]
    if len(latest) == FAILURES_IN_A_ROW and set(latest) == {"failed"}:
        return "failures"
    # The budget would pay for more, and yet it retrains: its grid is exhausted.
    return "space" if any(trial.phase == RETRAIN for trial in trials) else None
