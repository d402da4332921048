"""Corrupted test images in a report: a figure, and the tables of arms and of kinds of corruption."""

from collections.abc import Iterator
from dataclasses import dataclass

from nas_blockout import plots
from nas_blockout.serialization import count_of
from services.analysis.comparison import ComparisonDocument
from services.analysis.robustness import ArmRobustness
from services.report.figure import Picture, counted
from services.report.view import ABSENT, in_order, interval, percent


@dataclass(frozen=True, slots=True)
class RobustRow:
    """An arm on corrupted images, as texts."""

    arm: str
    clean: str
    error: str
    interval: str
    relative: str
    seconds: str


@dataclass(frozen=True, slots=True)
class KindRow:
    """A kind of corruption, as texts: the mean error of every arm, and whether it is the lowest."""

    kind: str
    errors: tuple[tuple[str, bool], ...]


def robust_rows(document: ComparisonDocument) -> list[RobustRow]:
    """Return the errors of every arm on clean and on corrupted images."""
    return [
        RobustRow(
            arm=name,
            clean=percent(arm.clean_error),
            error=percent(arm.corruption_error.mean),
            interval=interval(arm.corruption_error),
            relative=ABSENT if arm.relative is None else f"{arm.relative:.3f}",
            seconds=f"{arm.seconds:,.1f}",
        )
        for name, arm in _arms(document).items()
    ]


def kind_rows(document: ComparisonDocument) -> list[KindRow]:
    """Return the mean error of every arm by kind of corruption, in the order of `robust_rows`."""
    by_arm = [arm.by_kind for arm in _arms(document).values()]
    rows = []
    for kind in by_arm[0] if by_arm else ():
        texts = [percent(errors[kind]) for errors in by_arm]
        lowest = min(texts, key=float)  # of the texts: errors that look equal are all marked
        rows.append(KindRow(kind.replace("_", " "), tuple((text, text == lowest) for text in texts)))
    return rows


def corruption(document: ComparisonDocument) -> Iterator[Picture]:
    """Yield the error of every arm by severity, if retrained models were tested on corrupted images."""
    robust = document.robustness
    if robust is None:
        return
    arms = _arms(document)
    seeds = [len(arm.corruption_error.per_seed) for arm in arms.values()]
    yield Picture(
        "corruption",
        "Error by severity of corruption",
        "Mean over kinds and seeds; the hollow mark is the error on the same images without corruption. The colored "
        "line is the arm of the panel, gray lines are the others. Intervals are in the table.",
        f"{counted(seeds, 'seed')} per arm, {robust.images:,} images, "
        f"{count_of(len(next(iter(arms.values())).errors), 'kind')}",
        "comparison.json, robustness.arms",
        plots.figure_corruption(
            [
                plots.Corrupted(name, document.arms[name].role, arm.clean_error, _by_severity(arm, robust.severities))
                for name, arm in arms.items()
            ]
        ),
    )


def _arms(document: ComparisonDocument) -> dict[str, ArmRobustness]:
    known = document.robustness.arms if document.robustness else {}
    return {name: known[name] for name in in_order(document) if name in known}


def _by_severity(arm: ArmRobustness, severities: list[int]) -> tuple[tuple[int, float], ...]:
    columns = zip(*arm.errors.values(), strict=True)
    return tuple((severity, sum(errors) / len(errors)) for severity, errors in zip(severities, columns, strict=True))
