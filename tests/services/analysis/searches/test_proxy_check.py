"""How early rungs rank the trials that reached the end, on made-up curves with values worked by hand."""

from dataclasses import replace
from typing import Any

import pytest

from services.analysis.compare import build
from services.analysis.searches.proxy_check import RungRanking, rung_rankings, told, winners_ranking
from services.report.tables.cost_tables import search_tables
from services.report.tables.report_table import flat_columns
from services.report.view import ReportView
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import Trial

PRUNER = {"name": "asha", "rungs": [1, 3], "reduction_factor": 2}
# Score after the first epoch, after the third, and at the end; the end exchanges one pair of the first rung.
CURVES = [(0.1, 0.5, 0.5), (0.2, 0.4, 0.7), (0.3, 0.3, 0.6), (0.4, 0.2, 0.8), (0.5, 0.1, 0.9)]


def study(arms: dict[str, Any], **changes: Any) -> Study:
    document = {
        "schema_version": 2,
        "name": "example",
        "training": {"epochs": 9},
        "budget": {"trainings": 20},
        "retrain": {"seeds": [0]},
        "arms": arms,
        **changes,
    }
    return resolve_document(document, source="x")


def ended(number: int, curve: tuple[float, ...], state: str = "complete", arm: str = "a") -> Trial:
    return Trial(
        arm, "search", number, number, state, 100, 100, score=curve[-1] if state == "complete" else None,
        params={"values": {}, "distributions": {}}, curve=curve, result={},
    )  # fmt: skip


def whole(first: float, third: float, end: float) -> tuple[float, ...]:
    return (first, 0.0, third, *[0.0] * 5, end)


def trials_of(arm: str = "a") -> list[Trial]:
    complete = [ended(number, whole(*curve), arm=arm) for number, curve in enumerate(CURVES)]
    stopped = [ended(5 + place, (0.05 * place,), "pruned", arm) for place in range(3)]
    failed = [ended(8, (0.9, 0.9, 0.9), "failed", arm)]
    return [*complete, *stopped, *failed]


def test_rungs_are_compared_with_the_end_over_the_trials_that_reached_it() -> None:
    given = study({"a": {"space": ["training"], "pruner": PRUNER}, "b": {"space": ["training"]}})
    found = rung_rankings(given, [*trials_of(), *trials_of("b")], lambda trial: trial.curve)
    assert list(found) == ["a"]  # b stops nothing
    first, third = found["a"]
    assert (first.epochs, first.reached, first.n) == (1, 9, 5)
    assert first.tau == pytest.approx(0.8)  # one of ten pairs is exchanged
    assert first.spearman == pytest.approx(0.9)
    assert (third.epochs, third.reached, third.n) == (3, 6, 5)
    assert third.tau == pytest.approx(-0.8)
    assert told("a", found["a"]).startswith("a: the first rung, after 1 epoch, ranks as the end: tau 0.80 [")
    assert told("a", found["a"]).endswith("1.00], n 5")


def test_of_fewer_than_five_nothing_is_said() -> None:
    given = study({"a": {"space": ["training"], "pruner": PRUNER}})
    (first, _) = rung_rankings(given, trials_of()[1:], lambda trial: trial.curve)["a"]
    assert (first.n, first.tau, first.spearman_ci95) == (4, None, None)
    assert told("a", [first]) == (
        "a: whether the first rung, after 1 epoch, ranks as the end cannot be said: fewer than 5 trials reached the end"
    )


def test_pruners_that_decide_after_every_epoch_are_shown_at_four_of_them() -> None:
    given = study({"a": {"space": ["training"], "pruner": {"name": "median", "n_startup_trials": 1}}})
    found = rung_rankings(given, trials_of(), lambda trial: trial.curve)["a"]
    assert [rung.epochs for rung in found] == [1, 3, 6, 8]


def test_winners_are_ranked_with_their_retrainings() -> None:
    names = ["a", "b", "c", "d", "e"]
    given = study({name: {"space": ["training"]} for name in names})
    trials = [
        trial
        for place, name in enumerate(names)
        for trial in (ended(0, (0.01,), arm=name), ended(1, (0.5 + 0.1 * place,), arm=name))
    ]
    retrained = dict(zip(names, [0.1, 0.3, 0.2, 0.4, 0.5], strict=True))
    found = winners_ranking(given, trials, retrained)
    assert found is not None
    assert found.tau == pytest.approx(0.8)
    assert winners_ranking(given, trials, {"a": 0.5}) is None


def test_the_report_has_a_row_for_each_rung() -> None:
    given = study({"a": {"space": ["training"], "pruner": PRUNER}})
    trials = trials_of()
    rungs = rung_rankings(given, trials, lambda trial: trial.curve)
    document = build(given, trials, rungs=rungs)
    assert document.arms["a"].rungs == rungs["a"]
    assert type(document).model_validate_json(document.model_dump_json()) == document
    view = ReportView(document.model_dump(mode="json"), given.to_json(), {}, trials)
    (shown,) = [each for each in search_tables(view, document) if each.name == "rungs"]
    assert [[cell.text for cell in row] for row in shown.rows] == [
        ["a", "after 1 epoch", "9", "5", "0.80", "0.90"],
        ["a", "after 3 epochs", "6", "5", "\N{MINUS SIGN}0.80", "\N{MINUS SIGN}0.90"],
    ]
    assert "as a rule be higher" in shown.caption
    headings = [heading for heading, _, _, _ in flat_columns(shown)]
    assert headings[4:7] == ["Kendall's tau", "95% interval of tau", "95% interval of tau"]
    without = build(given, trials)
    assert [each.name for each in search_tables(replace(view, comparison=without), without)] == ["searches"]


def test_a_score_that_is_the_same_for_all_cannot_be_ranked() -> None:
    level = RungRanking(n=6, tau=None, tau_ci95=None, spearman=None, spearman_ci95=None, epochs=1, reached=6)
    assert told("a", [level]).endswith("cannot be said: one of both scores is the same for all 6 trials")
