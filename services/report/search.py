"""The figures of the searched parameters: their importance, and parallel coordinates of the trials."""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from nas_blockout import plots
from services.analysis.comparison import ComparisonDocument
from services.analysis.searches.importance import MOST_TRIALS
from services.report.figure import Picture, counted
from services.report.view import ReportView, in_order
from services.trial_record import SEARCH, Trial

FEWEST_TRIALS = 4
MOST_BARS, MOST_PANELS = 48, 6  # per figure, so that it fits on a printed page
Arm = TypeVar("Arm")


def importance(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield the importance of the searched parameters of each arm, if it was computed."""
    importances = [
        plots.Importances(name, arm.role, min(_complete(view, name), MOST_TRIALS), view.importance[name])
        for name, arm in in_order(document).items()
        if view.importance.get(name)
    ]
    absent = [name for name in document.arms if not view.importance.get(name)]
    cut = any(_complete(view, arm.arm) > MOST_TRIALS for arm in importances)
    for number, of, part in _parts(importances, [1 + len(arm.shares) for arm in importances], most=MOST_BARS):
        yield Picture(
            _name("importance", number),
            f"Importance of the searched parameters{_part(number, of)}",
            "Importance of each searched parameter for being among the best quarter of the trials of a search "
            "(PED-ANOVA, Optuna). The vertical line is the level of chance: the largest share in 19 searches with the "
            "same trials and shuffled scores. Only filled bars exceed it."
            + (f" Of searches with more, {MOST_TRIALS:,} trials at equal distances are used." if cut else "")
            + (f" Arms with too few trials or parameters: {', '.join(absent)}." if absent else ""),
            counted([arm.trials for arm in part], "complete trial per arm", "complete trials per arm"),
            "trials.csv, phase search, param.* and validation_accuracy",
            plots.figure_importance(part),
        )


def _complete(view: ReportView, arm: str) -> int:
    return sum(trial.score is not None and trial.state == "complete" for trial in _trials(view, arm))


def _trials(view: ReportView, arm: str) -> list[Trial]:
    return [t for t in view.trials if (t.arm, t.phase) == (arm, SEARCH) and t.ended and t.values]


def parallel(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield the trials of each arm's search as lines through their parameters."""
    searches = []
    for name, arm in in_order(document).items():
        trials = _trials(view, name)
        names = list(dict.fromkeys(key for trial in trials for key in trial.values))
        if len(trials) < FEWEST_TRIALS or len(names) < 2:
            continue
        values = {key: [_plain(trial.values.get(key)) for trial in trials] for key in names}
        scores = [t.score if t.state == "complete" and t.score is not None else float("nan") for t in trials]
        if not all(map(math.isnan, scores)):
            searches.append(plots.Searched(name, arm.role, values, scores))
    limits = plots.limits_of(searches)
    for number, of, part in _parts(searches, [1] * len(searches), most=MOST_PANELS):
        yield Picture(
            _name("parallel", number),
            f"Trials of the searches{_part(number, of)}",
            "Each line is a trial, from its parameters to the validation accuracy it reached. Accuracy is the last "
            "axis and has the same scale in all panels. Every other axis runs from the smallest to the largest value "
            "tried, on a logarithmic scale if these are far apart. Thick lines are the best quarter of the trials; "
            "dashed lines that end early are failed or pruned trials."
            + (f" Of more trials the best {plots.MOST_LINES} are drawn." if _is_cut(part) else ""),
            counted([len(search.scores) for search in part], "trial per arm", "trials per arm"),
            "trials.csv, phase search, param.* and validation_accuracy",
            plots.figure_parallel(part, limits=limits),
        )


def _is_cut(searches: Sequence[plots.Searched]) -> bool:
    return any(len(search.scores) > plots.MOST_LINES for search in searches)


def _parts(arms: Sequence[Arm], heights: Sequence[int], *, most: int) -> Iterator[tuple[int, int, list[Arm]]]:
    """Yield the arms in parts that fit on a page: the number of the part, how many there are, and its arms."""
    parts: list[list[Arm]] = []
    room = 0
    for arm, height in zip(arms, heights, strict=True):
        if not parts or height > room:
            parts.append([])
            room = most
        parts[-1].append(arm)
        room -= height
    yield from ((number, len(parts), part) for number, part in enumerate(parts, start=1))


def _name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _part(number: int, of: int) -> str:
    return f", part {number} of {of}" if of > 1 else ""


def _plain(value: object) -> bool | int | float | str | None:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
