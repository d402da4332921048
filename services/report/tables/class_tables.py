"""The tables of classes: balanced accuracy, and the accuracy of every class, with their intervals."""

from collections.abc import Iterator, Mapping, Sequence

from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.seed_metrics import ClassResult
from services.report.tables.accuracy_tables import accuracy_cell
from services.report.tables.report_table import Cell, Column, Table, count, table
from services.report.view import ABSENT, ReportView, in_order, percent


def balanced_tables(view: ReportView, document: ComparisonDocument) -> Iterator[Table]:
    """Yield the balanced accuracy of every arm and its hardest class, if confusions were recorded."""
    arms = _recorded(document)
    if not arms:
        return
    names = view.names_of(len(_classes(arms)[0]))
    yield table(
        "balanced-accuracy",
        "Balanced accuracy",
        "Balanced accuracy is the mean of the test accuracies of the classes, in %: rare classes count as much as "
        f"common ones. Mean over seeds, with a 95% interval by {document.t_words}. Data: comparison.json, "
        "arms.*.test_balanced_accuracy.",
        [Column("arm"), Column("balanced accuracy", "95% interval", unit="%"), Column("hardest class", is_text=True)],
        [[Cell(name), accuracy_cell(arm.test_balanced_accuracy), _hardest(arm, names)] for name, arm in arms.items()],
    )


def class_tables(view: ReportView, document: ComparisonDocument) -> Iterator[Table]:
    """Yield the accuracy of every arm on each class, the hardest class first, if confusions were recorded."""
    arms = _recorded(document)
    if not arms:
        return
    results = _classes(arms)
    names = view.names_of(len(results[0]))
    found = [(number, [of_arm[number] for of_arm in results]) for number in range(len(names))]
    found.sort(key=lambda row: (_mean(row[1]), row[0]))
    yield table(
        "accuracy-by-class",
        "Test accuracy by class",
        "Test accuracy in % of each class, mean over seeds, the hardest class first. The interval is Wilson's 95% for "
        "as many images as the class has: seeds are tested on the same images. It says nothing about differences "
        "between arms. Data: comparison.json, arms.*.classes.",
        [Column("class"), "test images", *(Column(name, "95% interval", unit="%") for name in arms)],
        [[Cell(names[number]), count(cells[0].images), *map(_cell, cells)] for number, cells in found],
    )


def _recorded(document: ComparisonDocument) -> Mapping[str, ArmResult]:
    arms = {name: arm for name, arm in in_order(document).items() if arm.classes}
    return arms if len({len(arm.classes or ()) for arm in arms.values()}) == 1 else {}


def _classes(arms: Mapping[str, ArmResult]) -> list[Sequence[ClassResult]]:
    return [arm.classes or [] for arm in arms.values()]


def _cell(result: ClassResult) -> Cell:
    if result.accuracy is None:
        return Cell(ABSENT, small="no test images")
    low, high = result.ci95 or (0.0, 1.0)
    text = f"{percent(low)} to {percent(high)}"
    return Cell(percent(result.accuracy.mean), 100 * result.accuracy.mean, text, (100 * low, 100 * high))


def _mean(results: Sequence[ClassResult]) -> float:
    known = [each.accuracy.mean for each in results if each.accuracy is not None]
    return sum(known) / len(known) if known else 2.0  # what is not known comes last


def _hardest(arm: ArmResult, names: Sequence[str]) -> Cell:
    known = [(each.accuracy.mean, n) for n, each in enumerate(arm.classes or ()) if each.accuracy is not None]
    if not known:
        return Cell(ABSENT)
    share, number = min(known)
    return Cell(f"{names[number]} ({percent(share)})")
