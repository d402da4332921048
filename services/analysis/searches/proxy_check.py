"""Whether a short training ranks as a long one: what early stopping relies on, checked on the trials that went on.

Only trials that reached the end can be compared there, and a pruner has chosen them by their early score. Among trials
that were good early the early score differs less, so the agreement over all trials would as a rule be higher.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import Field

from nas_blockout.serialization import count_of
from nas_blockout.statistics.rank_agreement import LEAST_PAIRS, RankAgreement, rank_agreement
from services.analysis.seed_metrics import Count, Strict
from services.search.constraints import could_win
from services.search.selection import Winner
from services.search.stopping_rules import early_stopping
from services.study_config.resolved_study import Study
from services.trial_record import SEARCH, Trial

MOST_RUNGS = 4  # that are shown: some pruners decide after every epoch
_OF_RANKS = "in [-1, 1]; null where it cannot be said"


class Ranking(Strict):
    """How alike two scores rank the same trials."""

    n: Count = Field(description="Number of trials.")
    tau: float | None = Field(description=f"Kendall's tau-b, {_OF_RANKS}.")
    tau_ci95: tuple[float, float] | None = Field(description="Its 95% interval, from resampled trials.")
    spearman: float | None = Field(description=f"Spearman's rho, {_OF_RANKS}.")
    spearman_ci95: tuple[float, float] | None = Field(description="Its 95% interval, from resampled trials.")


class RungRanking(Ranking):
    """How alike the validation score after an early rung and that at the end rank the trials that reached the end."""

    epochs: Count = Field(description="Epochs of the rung.")
    reached: Count = Field(description="Search trials that reached the rung, stopped and failed ones included.")


def rung_rankings(
    study: Study, trials: Iterable[Trial], curve_of: Callable[[Trial], Sequence[float]]
) -> dict[str, list[RungRanking]]:
    """Return how early rungs rank the trials of each arm that stops trials early, the earliest rung first.

    Args:
        study: The resolved study.
        trials: Of all arms.
        curve_of: Returns the metric of the study on validation images of a trial after each of its epochs.
    """
    searches: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.phase == SEARCH and trial.ended and trial.is_suggested:
            searches.setdefault(trial.arm, []).append(trial)
    found = {}
    for name, arm in study.arms.items():
        if arm.rules.pruner is None or name not in searches:
            continue
        stopping = early_stopping(arm.rules.pruner)
        rungs = _spread(sorted({rung for trial in searches[name] for rung in stopping.rungs(trial.number)}))
        curves = [(trial, curve_of(trial)) for trial in searches[name]]
        if ranked := [_at(rung, curves) for rung in rungs]:
            found[name] = ranked
    return found


def winners_ranking(study: Study, trials: Iterable[Trial], retrained: Mapping[str, float]) -> Ranking | None:
    """Return how alike the score of the winning trial and that of its retrainings rank the arms.

    Args:
        study: The resolved study.
        trials: Of all arms.
        retrained: By arm, the mean of the metric of the study on validation images over its retrained models.

    Returns:
        None with fewer than two arms that have both.
    """
    winners = {name: Winner(arm.rules.selection) for name, arm in study.arms.items()}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if could_win(trial, study.arms[trial.arm].rules.constraints):
            winners[trial.arm].add(trial)
    pairs = [
        (found.score, retrained[name])
        for name, winner in winners.items()
        if name in retrained and (found := winner.trial) is not None and found.score is not None
    ]
    if len(pairs) < 2:
        return None
    return Ranking(**_values(rank_agreement([pair[0] for pair in pairs], [pair[1] for pair in pairs])))


def told(arm: str, rungs: Sequence[RungRanking]) -> str:
    """Return in a sentence how the first rung of an arm ranks."""
    first = rungs[0]
    rung = f"the first rung, after {count_of(first.epochs, 'epoch')},"
    if first.tau is None:
        few = f"fewer than {LEAST_PAIRS} trials reached the end"
        why = few if first.n < LEAST_PAIRS else f"one of both scores is the same for all {first.n} trials"
        return f"{arm}: whether {rung} ranks as the end cannot be said: {why}"
    interval = "" if first.tau_ci95 is None else f" [{first.tau_ci95[0]:.2f}, {first.tau_ci95[1]:.2f}]"
    return f"{arm}: {rung} ranks as the end: tau {first.tau:.2f}{interval}, n {first.n}"


def _at(rung: int, curves: Sequence[tuple[Trial, Sequence[float]]]) -> RungRanking:
    reached = [(trial, curve) for trial, curve in curves if len(curve) >= rung]
    ends = [
        (float(curve[rung - 1]), trial.score)
        for trial, curve in reached
        if trial.state == "complete" and trial.score is not None
    ]
    found = rank_agreement([early for early, _ in ends], [late for _, late in ends])
    return RungRanking(**_values(found), epochs=rung, reached=len(reached))


def _values(found: RankAgreement) -> dict[str, object]:
    names = ("n", "tau", "tau_ci95", "spearman", "spearman_ci95")
    return {name: getattr(found, name) for name in names}


def _spread(rungs: Sequence[int]) -> list[int]:
    """Return at most `MOST_RUNGS` of some rungs, with the first and the last."""
    if len(rungs) <= MOST_RUNGS:
        return list(rungs)
    last = len(rungs) - 1
    return [rungs[round(place * last / (MOST_RUNGS - 1))] for place in range(MOST_RUNGS)]
