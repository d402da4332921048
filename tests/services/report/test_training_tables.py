"""Convergence as a budget: who has sooner what another ends with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from services.analysis.comparison import ComparisonDocument
from services.report import ReportView
from services.report.tables.report_table import Table
from services.report.tables.training_tables import convergence_tables
from services.trial_record import TrialKey

MadeUp = Callable[..., ReportView]
CURVES = {
    ("dense", 0): [0.2, 0.4, 0.6, 0.8],
    ("dense", 1): [0.2, 0.8, 0.7, 0.7],
    ("dropout", 0): [0.3, 0.8, 0.8, 0.9],
    ("dropout", 1): [0.1, 0.2, 0.3, 0.4],
}


def shown(made_up: MadeUp, curves: Mapping[tuple[str, int], list[float]]) -> list[Table]:
    view = made_up(arms=["dense", "dropout"], seeds=2)
    records: dict[TrialKey, list[dict[str, Any]]] = {
        trial.key: [
            {"epoch": index, "stage": None, "sample_passes": 100 * (index + 1), "validation_accuracy": value}
            for index, value in enumerate(curves[trial.arm, trial.seed])
        ]
        for arm in ("dense", "dropout")
        for trial in view.models(arm)
        if (trial.arm, trial.seed) in curves
    }
    view = replace(view, epochs=records)
    return list(convergence_tables(view, ComparisonDocument.model_validate(view.comparison)))


def test_shares_are_medians_over_seeds_of_the_passes_that_each_needs(made_up: MadeUp) -> None:
    (table,) = shown(made_up, CURVES)
    cells = {
        (row[0].text, column.name): cell for row in table.rows for column, cell in zip(table.columns, row, strict=True)
    }
    # Seed 0: dropout has dense's .8 after 200 of dense's 400 passes; seed 1: dense's .7, which it has after 200, never.
    assert (cells["dropout", "dense"].text, cells["dropout", "dense"].small) == ("never", "1 of 2 never")
    # Seed 0: dense never has .9; seed 1: it has .4 after 200 of 400.
    assert cells["dense", "dropout"].small == "1 of 2 never"
    assert cells["dense", "dense"].text == ""


def test_a_median_is_a_number_where_most_seeds_get_there(made_up: MadeUp) -> None:
    (table,) = shown(made_up, {**CURVES, ("dropout", 1): [0.75, 0.7, 0.7, 0.4]})
    row = next(row for row in table.rows if row[0].text == "dropout")
    cell = row[[column.name for column in table.columns].index("dense")]
    assert (cell.text, cell.value, cell.small) == ("0.50", 0.5, "")


def test_nothing_is_shown_without_curves_or_for_a_single_epoch(made_up: MadeUp) -> None:
    assert shown(made_up, {}) == []
    assert shown(made_up, {key: values[:1] for key, values in CURVES.items()}) == []
    assert shown(made_up, {key: values for key, values in CURVES.items() if key[0] == "dense"}) == []
