"""Which classes are confused: the arm that is compared with, and how every other differs from it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nas_blockout import plots
from nas_blockout.statistics.recalls import wilson
from services.analysis.comparison import ComparisonDocument, best_of
from services.report.figure import Picture, Remark, Shown, counted
from services.report.tables.accuracy_tables import points
from services.report.tables.report_table import Cell, Column, Table, count, table
from services.report.view import ABSENT, ReportView, in_order

MOST_LISTED = 3  # confusions of an arm
Counts = list[list[int]]


def confusions(view: ReportView, document: ComparisonDocument) -> dict[str, Counts]:
    """Return, by arm, test images by true and predicted class, added up over the retrained models."""
    by_arm = {}
    for name in in_order(document):
        counts = [trial.outcome["confusion"] for trial in view.models(name) if trial.outcome.get("confusion")]
        if counts:
            by_arm[name] = [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*counts, strict=True)]
    return by_arm


def reference_of(document: ComparisonDocument, matrices: Mapping[str, Counts]) -> str:
    """Return the arm that the confusions of others are compared with: the best of those that have some stored."""
    best = best_of(document)
    return best if best is not None and best in matrices else next(iter(matrices))


def confusion(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield how the best arm confuses classes and how the others differ, if confusions were stored."""
    matrices = confusions(view, document)
    if not matrices:
        return
    title = "Confused classes, and how the arms differ"
    if not any(sum(row) - row[true] for counts in matrices.values() for true, row in enumerate(counts)):
        yield Remark("confusion", title, "Every test image was classified correctly, by every model.")
        return
    reference = reference_of(document, matrices)
    names = view.names_of(len(matrices[reference]))
    models = [_models(view, name) for name in matrices]
    images = [sum(map(sum, counts)) for counts in matrices.values()]
    others = (
        f" Every other panel shows what an arm confuses more often than {reference} (orange, +) or less often (blue, "
        "\N{MINUS SIGN}), on one scale."
        if len(matrices) > 1
        else ""
    )
    seeds = "" if len(set(images)) == 1 else f", of as many predictions as {reference} has"
    yield Picture(
        "confusion",
        title,
        f"Rows are true classes, columns predicted classes, in the order of the data. The first panel shows the "
        f"mistakes of {reference}, the arm with the best test {document.metric_words}.{others} With up to twelve "
        f"classes the numbers are test predictions, added up over seeds{seeds}. Correct predictions (the "
        "diagonal) are left out.",
        f"{counted(models, 'seed')} and {counted(images, 'test prediction').removeprefix('n = ')} per arm",
        "the store, result.confusion",
        plots.figure_confusion(matrices, names, reference=reference),
    )


def confusion_tables(view: ReportView, document: ComparisonDocument) -> Iterator[Table]:
    """Yield the confusions of the best arm that are most frequent, and those in which the others differ most."""
    matrices = confusions(view, document)
    if not matrices:
        return
    reference = reference_of(document, matrices)
    names = view.names_of(len(matrices[reference]))
    yield table(
        "confusions",
        "Confusions",
        f"Of {reference} the most frequent confusions, of every other arm those in which it differs most from "
        f"{reference}. Shares are of the images of the true class, their interval is Wilson's for the images of one "
        "test set: seeds are tested on the same images.",
        [
            Column("arm"),
            Column("true class", is_text=True),
            Column("predicted class", is_text=True),
            "images",
            Column("share", "95% interval", unit="%"),
            f"points more than {reference}",
            "test predictions",
        ],
        [
            row
            for arm, counts in matrices.items()
            for row in _rows(names, arm, counts, matrices[reference], _models(view, arm))
        ],
    )


def _models(view: ReportView, arm: str) -> int:
    return sum(bool(trial.outcome.get("confusion")) for trial in view.models(arm))


def _share(share: float, images: int) -> Cell:
    low, high = wilson(share, max(1, images))
    return Cell(f"{share:.1%}", 100 * share, f"{100 * low:.1f} to {100 * high:.1f}", (100 * low, 100 * high))


def _rows(names: Sequence[str], arm: str, counts: Counts, reference: Counts, models: int) -> list[list[Cell]]:
    shares, (more, _) = plots.confusion_shares(counts), plots.confusion_differences(counts, reference)
    weights = np.abs(more) if counts is not reference else shares
    # Ties go by the order of the classes, so that the same study has the same report.
    order = np.argsort(-weights, axis=None, kind="stable")[:MOST_LISTED].tolist()
    total = count(sum(map(sum, counts)))
    rows = []
    for true, predicted in (divmod(place, len(names)) for place in order):
        if weights[true, predicted] == 0:
            continue
        share, difference = float(shares[true, predicted]), float(more[true, predicted])
        rows.append(
            [
                Cell(arm),
                Cell(names[true]),
                Cell(names[predicted]),
                count(int(counts[true][predicted])),
                _share(share, sum(counts[true]) // models),
                Cell(ABSENT) if counts is reference else Cell(points(difference), 100 * difference),
                total,
            ]
        )
    return rows or [[Cell(arm), Cell("none"), Cell("none"), *(Cell(ABSENT) for _ in range(3)), total]]
