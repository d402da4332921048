"""Corrupted test images in a report: how the errors grow with the severity."""

from collections.abc import Iterator

from nas_blockout import plots
from nas_blockout.serialization import count_of
from services.analysis.comparison import ComparisonDocument
from services.analysis.robustness import ArmRobustness
from services.report.figure import Picture, counted
from services.report.view import in_order


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
