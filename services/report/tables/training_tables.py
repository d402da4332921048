"""How soon the trainings of one arm reach what those of another end with."""

import math
from collections.abc import Iterator, Mapping

from nas_blockout.statistics.convergence import Convergence, Curve, budget_to_final
from services.analysis.comparison import ComparisonDocument
from services.report.tables.report_table import Cell, Column, Table, table
from services.report.view import ABSENT, ReportView, in_order

NEVER = "never"


def convergence_tables(view: ReportView, document: ComparisonDocument) -> Iterator[Table]:
    """Yield after which share of the budget each arm first has the final accuracy of every other.

    Nothing for one arm, or for trainings of one epoch, which all end where they begin.
    """
    curves = {name: found for name in in_order(document) if (found := _curves(view, name))}
    if len(curves) < 2 or all(len(curve) == 1 for of in curves.values() for curve in of.values()):
        return
    yield table(
        "convergence-budget",
        "Budget until a training has what another ends with",
        "Sample passes after which the retrained models of the row first have the final validation accuracy of those "
        "of the column, as a share of the passes after which these first have it themselves: below 1 the row is there "
        "sooner. The median over the seeds that both have; in small print how many of them never get there, which "
        "counts as infinite. Costs of learning are part of it, those of a search are not. Data: the store, epochs of "
        "the retrained trials.",
        [Column("arm"), *(Column(name, small=f"{name}, never") for name in curves)],
        [
            [Cell(name), *(_cell(of, other, name == also) for also, other in curves.items())]
            for name, of in curves.items()
        ],
    )


def _curves(view: ReportView, arm: str) -> Mapping[int, Curve]:
    """Return the validation accuracy after each epoch against the passes so far, by seed."""
    found = {}
    for trial in view.models(arm):
        known = [record for record in view.epochs_of(trial) if record.get("validation_accuracy") is not None]
        if known:
            found[trial.seed] = [(float(r["sample_passes"]), float(r["validation_accuracy"])) for r in known]
    return found


def _cell(curves: Mapping[int, Curve], others: Mapping[int, Curve], is_same: bool) -> Cell:
    if is_same or not curves.keys() & others.keys():
        return Cell("" if is_same else ABSENT)
    return _shown(budget_to_final(curves, others))


def _shown(found: Convergence) -> Cell:
    small = f"{found.never} of {len(found.reached)} never" if found.never else ""
    if math.isinf(found.median):
        return Cell(NEVER, small=small, small_value=found.never)
    return Cell(f"{found.median:.2f}", found.median, small=small, small_value=found.never if small else None)
