"""What arms have spent, what ended their searches, and whether their spending can be compared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from nas_blockout.statistics import significance
from services.budget.limits import WORDS, Charge, Unit, ended_by, trials_left
from services.study_config.schema import Arm, Study

End = Literal["sample_passes", "seconds", "trainings", "space", "failures", "match"]
END_WORDS: Mapping[End, str] = {
    "sample_passes": WORDS["sample_passes"],
    "seconds": WORDS["seconds"],
    "trainings": WORDS["trainings"],
    "space": "nothing left to try",
    "failures": "failures in a row",
    "match": "nothing to match",
}
FAILURES_IN_A_ROW = 8  # after so many an arm is given up
TERMINAL = frozenset({"complete", "failed", "pruned"})


class Spender(Protocol):
    """A trial as the store and the comparison have it."""

    @property
    def phase(self) -> str:
        """``search`` or ``retrain``."""

    @property
    def state(self) -> str:
        """State in the store."""

    @property
    def planned(self) -> int:
        """Sample passes that it was meant to cost."""

    @property
    def sample_passes(self) -> int:
        """What it has cost."""

    @property
    def seconds(self) -> float:
        """Measured training time."""

    @property
    def suggest_seconds(self) -> float:
        """What proposing it took."""

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it ended in."""


def charged_seconds(trial: Spender) -> float:
    """Return the measured seconds that a trial is charged with: training, proposing it, and handing over."""
    return trial.seconds + trial.suggest_seconds + float((trial.result or {}).get("overhead_seconds") or 0.0)


class Retrained(Spender, Protocol):
    """A trial of which it is known what it belongs to."""

    @property
    def arm(self) -> str:
        """Name of the contestant."""

    @property
    def number(self) -> int:
        """Position among the trials of the arm and phase."""

    @property
    def seed(self) -> int:
        """Seed of its experiment."""


AnyTrial = TypeVar("AnyTrial", bound=Retrained)


def stale(trials: Iterable[AnyTrial]) -> list[AnyTrial]:
    """Return the retrainings that a later one of the same arm and seed has taken the place of.

    A study that is extended may find another winner, which is retrained anew. What the earlier winner's retrainings
    cost is not held against the arm: the larger study would not have paid it.
    """
    last: dict[tuple[str, int], int] = {}
    found = [trial for trial in trials if trial.phase == "retrain"]
    for trial in found:
        key = (trial.arm, trial.seed)
        last[key] = max(last.get(key, -1), trial.number)
    return [trial for trial in found if trial.number < last[trial.arm, trial.seed]]


def current(trials: Sequence[AnyTrial]) -> list[AnyTrial]:
    """Return all trials but those `stale`."""
    gone = {(trial.arm, trial.number) for trial in stale(trials)}
    return [trial for trial in trials if trial.phase != "retrain" or (trial.arm, trial.number) not in gone]


def ends(study: Study, trials: Mapping[str, Sequence[Spender]]) -> dict[str, End | None]:
    """Return by arm what ended its search; None while it goes on.

    Args:
        study: The resolved study.
        trials: All trials, by arm, each in the order in which they were proposed.
    """
    found = {name: _end(study, arm, trials[name]) for name, arm in study.arms.items()}
    for name, arm in study.arms.items():
        if arm.match is not None and found[name] is None and found[arm.match] is not None:
            searched = [trial for trial in trials[arm.match] if trial.phase == "search"]
            if not any(trial.state == "complete" for trial in searched):
                found[name] = "match"
    return found


def compared_in(
    spent: Mapping[Unit, Mapping[str, float]], ended: Mapping[str, End | None], tolerance: float
) -> tuple[Unit, str | None]:
    """Return the unit in which the spending of arms is compared, and why it cannot be, or None if it can.

    That is the unit of the limit that ended them all. If different limits did, it is the first one of the budget in
    which they agree.

    Args:
        spent: By unit of the budget and arm.
        ended: What ended each arm.
        tolerance: Largest relative difference.
    """
    given = list(spent)
    units = [unit for unit in given if unit in ended.values()] or given[:1]
    reasons = {unit: significance.budget_disagreement(spent[unit], tolerance, unit=WORDS[unit]) for unit in given}
    if len(units) == 1:
        return units[0], reasons[units[0]]
    if (agreed := next((unit for unit in given if reasons[unit] is None), None)) is not None:
        return agreed, None
    by = ", ".join(f"{arm} by {END_WORDS[end]}" for arm, end in ended.items() if end is not None)
    return units[0], f"different limits ended the arms ({by}), and they agree in none of them"


def _end(study: Study, arm: Arm, trials: Sequence[Spender]) -> End | None:
    search = [trial for trial in trials if trial.phase == "search"]
    if not search or any(trial.state not in TERMINAL for trial in search):
        return None
    charges = [Charge(True, trial.planned, trial.sample_passes, charged_seconds(trial)) for trial in search]
    cost = max(trial.planned for trial in search)
    seeds = len(study.config.retrain.seeds)
    if cost and (end := ended_by(trials_left(study.config.budget, charges, cost=cost, retrainings=seeds))):
        return end
    if any(trial.planned == 0 for trial in search):  # stands for what could not be proposed within the constraints
        return "space"
    last = [trial.state for trial in search[-FAILURES_IN_A_ROW:]]
    if len(last) == FAILURES_IN_A_ROW and set(last) == {"failed"}:
        return "failures"
    nothing_left = any(trial.planned == 0 for trial in search)  # the last proposal could not be trained
    return "space" if nothing_left or any(trial.phase == "retrain" for trial in trials) else None
