"""Fronts and hypervolumes worked by hand, and the counts of what a search repeated and of what it was refused."""

from dataclasses import replace
from typing import Any

import pytest

from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument
from services.analysis.searches.pareto import hypervolume_share
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import Trial

PASSES = 4800
NOTHING: dict[str, Any] = {"values": {}, "distributions": {}, "exceeded": {}}
TWO = {"objectives": ["accuracy", "macs"]}


def study_of(arms: dict[str, Any]) -> Study:
    document = {
        "schema_version": 2,
        "name": "by-hand",
        "budget": {"sample_passes": 10 * PASSES},
        "retrain": {"seeds": [0]},
        "arms": arms,
    }
    return resolve_document(document, source="test")


def searched(arm: str, *points: tuple[float, int], state: str = "complete", **more: Any) -> list[Trial]:
    """Search trials of an arm with given accuracies and MACs."""
    return [
        Trial(
            arm,
            "search",
            number,
            number,
            state,
            PASSES,
            PASSES,
            score=accuracy if state == "complete" else None,
            result={"validation_accuracy": accuracy, "macs": macs, "parameters": 10 * macs},
            **more,
        )
        for number, (accuracy, macs) in enumerate(points)
    ]


def test_a_front_is_what_nothing_else_beats_in_everything() -> None:
    points = [(0.8, 100), (0.6, 50), (0.5, 100), (0.8, 120), (0.6, 50), (0.9, 300), (0.55, 50)]
    front = build(study_of({"a": TWO}), searched("a", *points)).arms["a"].front
    assert front is not None
    assert sorted(trial.number for trial in front.trials) == [0, 1, 4, 5]


def test_a_front_leaves_out_only_what_is_shown_to_be_slower() -> None:
    arm = {"objectives": ["accuracy", "latency_ms"]}
    trials = [
        replace(trial, result={**(trial.result or {}), "latency_ms": alone})
        for trial, alone in zip(
            searched("a", (0.9, 1), (0.8, 1), (0.7, 1), (0.6, 1)), (0.43, 0.31, 0.2, 0.5), strict=True
        )
    ]
    together = {
        ("a", "search", 0): (0.40, (0.38, 0.42)),
        ("a", "search", 1): (0.39, (0.37, 0.41)),  # not told apart from the first
        ("a", "search", 2): (0.50, (0.49, 0.51)),  # slower than the first, and less accurate
        ("a", "search", 3): (0.20, (0.19, 0.21)),
    }
    front = build(study_of({"a": arm}), trials, search_latency=together).arms["a"].front
    assert front is not None
    assert front.is_measured_together
    assert [trial.number for trial in front.trials] == [0, 1, 3]
    assert front.trials[0].values == {"accuracy": 0.9, "latency_ms": 0.40}
    assert front.trials[0].spreads == {"latency_ms": (0.38, 0.42)}
    assert front.reference_point["latency_ms"] == 0.50
    front = build(study_of({"a": arm}), trials).arms["a"].front
    assert front is not None
    assert not front.is_measured_together
    assert [trial.number for trial in front.trials] == [0, 1, 2, 3], "what was measured alone shows nothing"


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([(0.8, 100)], 0.8 * 0.5),  # of a box of 1 x 200
        ([(0.8, 100), (0.6, 50)], 0.8 * 0.5 + 0.6 * 0.25),  # the second adds what lies between 50 and 100
        ([(0.8, 100), (0.6, 50), (0.5, 100)], 0.55),  # what is dominated adds nothing
        ([(0.8, 100), (0.8, 100)], 0.4),
        ([(0.8, 200)], 0.0),  # on the edge of the box
        ([], 0.0),
    ],
)
def test_hypervolumes_in_two_objectives_worked_by_hand(points: list[tuple[float, int]], volume: float) -> None:
    values = [{"accuracy": accuracy, "macs": float(macs)} for accuracy, macs in points]
    assert hypervolume_share(values, {"accuracy": 0.0, "macs": 200.0}) == pytest.approx(volume)


def test_a_hypervolume_in_three_objectives_worked_by_hand() -> None:
    points = [{"accuracy": 0.5, "macs": 5.0, "parameters": 20.0}, {"accuracy": 0.25, "macs": 2.5, "parameters": 30.0}]
    reference = {"accuracy": 0.0, "macs": 10.0, "parameters": 40.0}
    # boxes of 1/2 x 1/2 x 1/2 and 1/4 x 3/4 x 1/4, which share 1/4 x 1/2 x 1/4
    assert hypervolume_share(points, reference) == pytest.approx(1 / 8 + 3 / 64 - 1 / 32)


def test_fronts_of_arms_with_the_same_objectives_have_one_reference_point() -> None:
    study = study_of({"a": TWO, "b": TWO, "c": {}, "d": {"objectives": ["accuracy", "parameters"]}})
    trials = [
        *searched("a", (0.8, 100), (0.6, 50), (0.5, 100)),
        *searched("b", (0.7, 200)),
        *searched("c", (0.9, 999)),
        *searched("d", (0.9, 999)),
    ]
    arms = build(study, trials).arms
    a, b = arms["a"].front, arms["b"].front
    assert a is not None
    assert b is not None
    assert a.reference_point == b.reference_point == {"accuracy": 0.0, "macs": 200.0}
    assert [(trial.number, trial.values) for trial in a.trials] == [
        (0, {"accuracy": 0.8, "macs": 100.0}),
        (1, {"accuracy": 0.6, "macs": 50.0}),
    ]
    assert (a.hypervolume, b.hypervolume) == (pytest.approx(0.55), 0.0)
    assert arms["c"].front is None
    assert arms["d"].front is not None
    assert arms["d"].front.objectives == ["accuracy", "parameters"]
    document = build(study, trials)
    assert ComparisonDocument.model_validate_json(document.model_dump_json()) == document


def test_what_did_not_complete_or_exceeds_a_constraint_is_on_no_front() -> None:
    study = study_of({"a": {**TWO, "constraints": {"macs": 150}}, "b": TWO})
    trials = [*searched("a", (0.8, 100), (0.9, 151)), *searched("b", (0.9, 10), state="pruned")]
    arms = build(study, trials).arms
    assert arms["a"].front is not None
    assert [trial.number for trial in arms["a"].front.trials] == [0]
    assert arms["b"].front is None


def test_replicates_and_refusals_are_counted() -> None:
    first, *rest = searched("a", (0.8, 100), (0.7, 90), (0.6, 80), replicate_of=0, params={"infeasible": [NOTHING] * 3})
    document = build(study_of({"a": {}}), [first, *rest])
    assert (document.arms["a"].replicates, document.arms["a"].infeasible) == (3, 9)


def test_an_arm_whose_trials_all_exceed_a_constraint_waits_for_no_retraining() -> None:
    study = study_of({"a": {"constraints": {"parameters": 5}}})
    reason = build(study, searched("a", (0.8, 100))).reason
    assert reason is not None
    assert "have not ended" not in reason
    assert "no retrained model in a" in reason


def test_what_stopping_early_left_over_is_not_held_against_its_arm_but_no_more() -> None:
    study = study_of({"a": {}, "b": {}})
    whole = [*searched("a", *[(0.8, 100)] * 10)]
    some = [
        *searched("b", *[(0.8, 100)] * 9),
        Trial("b", "search", 9, 9, "pruned", PASSES // 10, PASSES),
        Trial("b", "search", 10, 10, "pruned", PASSES // 10, PASSES),
    ]
    reason = build(study, [*whole, *some]).reason
    assert reason is not None
    assert "less" not in reason
    fewer = build(study, [*whole, *some[1:]]).reason
    assert fewer is not None
    assert "less" in fewer
