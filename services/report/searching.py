"""The figures of what was searched: which parameters decided, and the trials as lines through them."""

from collections.abc import Iterator

from nas_blockout import plots
from services.comparison import ComparisonDocument
from services.report.picture import Picture, counted
from services.report.view import ReportView, TrialView, in_order
from services.spending import TERMINAL

FEWEST_TRIALS = 4


def importance(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield what the searched parameters of each arm decided, if it was computed."""
    found = [
        plots.Importances(name, arm.role, _complete(view, name), view.importance[name])
        for name, arm in in_order(document).items()
        if view.importance.get(name)
    ]
    if not found:
        return
    absent = [name for name in document.arms if not view.importance.get(name)]
    yield Picture(
        "importance",
        "Which parameters decided",
        "How much each searched parameter decided whether a trial was among the best quarter of its search (PED-ANOVA, "
        "Optuna). The upright line is what chance makes of it: the largest share in 19 searches with the same trials "
        "and shuffled scores. Only filled bars are beyond it; there is no band."
        + (f" Too few trials or parameters: {', '.join(absent)}." if absent else ""),
        counted([each.trials for each in found], "complete trial an arm", "complete trials an arm"),
        "trials.csv, phase search, param.* and validation_accuracy",
        plots.figure_importance(found),
    )


def _complete(view: ReportView, arm: str) -> int:
    return sum(trial.score is not None and trial.state == "complete" for trial in _trials(view, arm))


def _trials(view: ReportView, arm: str) -> list[TrialView]:
    return [t for t in view.trials if (t.arm, t.phase) == (arm, "search") and t.state in TERMINAL and t.params]


def parallel(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield the trials of each arm's search as lines through their parameters."""
    found = []
    for name, arm in in_order(document).items():
        trials = _trials(view, name)
        names = list(dict.fromkeys(key for trial in trials for key in trial.params))
        if len(trials) < FEWEST_TRIALS or len(names) < 2:
            continue
        values = {key: [_plain(trial.params.get(key)) for trial in trials] for key in names}
        scores = [t.score if t.state == "complete" and t.score is not None else float("nan") for t in trials]
        if any(score == score for score in scores):
            found.append(plots.Searched(name, arm.role, values, scores))
    if not found:
        return
    yield Picture(
        "parallel",
        "Trials of the searches",
        "Each line is a trial, from the parameters it was given to the validation accuracy it reached, which is the "
        "last axis and has one scale in all panels. Each other axis runs from the smallest to the largest value that "
        "was tried, by logarithms where these are far apart. Thick lines are the best quarter of the "
        "trials, dashed ones that end early are failed or pruned trials. There is no band.",
        counted([len(each.scores) for each in found], "trial an arm", "trials an arm"),
        "trials.csv, phase search, param.* and validation_accuracy",
        plots.figure_parallel(found),
    )


def _plain(value: object) -> bool | int | float | str | None:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
