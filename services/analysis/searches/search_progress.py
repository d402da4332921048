"""How the search of each arm went on, and what it had spent when it first had what the search of another ended with."""

from collections.abc import Iterable, Mapping

from pydantic import Field

from nas_blockout.statistics.search_curves import Curve, best_so_far, cost_to_reach
from services.analysis.seed_metrics import Count, Share, Strict
from services.trial_record import SEARCH, Trial


class SearchProgress(Strict):
    """The search of an arm: its best score on validation images, and how soon it had what other searches ended with.

    Each arm is searched once, on validation images on which the best of many trials is chosen: a hint, no verdict.
    """

    best_validation_score: Share | None = Field(
        description="Of its complete search trials, in the metric of the study; null if it has none."
    )
    sample_passes: Count = Field(description="What the search cost, trials that failed or were stopped included.")
    reaches: dict[str, Count | None] = Field(
        description="By arm, the sample passes after which this search first had what that arm's search ended with; "
        "null if it never had."
    )


def search_curves(trials: Iterable[Trial]) -> dict[str, Curve]:
    """Return, by arm, the best validation accuracy so far over the sample passes of its search."""
    searches: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.phase == SEARCH and trial.ended:
            searches.setdefault(trial.arm, []).append(trial)
    return {
        arm: best_so_far([trial.sample_passes for trial in search], [_score_or_nan(trial) for trial in search])
        for arm, search in searches.items()
    }


def progress_of(trials: Iterable[Trial]) -> dict[str, SearchProgress]:
    """Return how the search of each arm went on, for arms that tried more than one trial.

    Args:
        trials: Of all arms; those that have not ended do not count.
    """
    curves = {arm: curve for arm, curve in search_curves(trials).items() if len(curve.cost) > 1}
    ends = {arm: best for arm, curve in curves.items() if (best := _end(curve)) is not None}
    return {arm: _progress(arm, curve, ends) for arm, curve in curves.items()}


def _progress(arm: str, curve: Curve, ends: Mapping[str, float]) -> SearchProgress:
    reached = {other: cost_to_reach(curve, best) for other, best in ends.items() if other != arm}
    return SearchProgress(
        best_validation_score=ends.get(arm),
        sample_passes=round(float(curve.cost[-1])),
        reaches={other: None if cost is None else round(cost) for other, cost in reached.items()},
    )


def _end(curve: Curve) -> float | None:
    best = float(curve.best[-1])
    return None if best != best else best  # NaN where no trial is complete


def _score_or_nan(trial: Trial) -> float:
    return trial.score if trial.state == "complete" and trial.score is not None else float("nan")
