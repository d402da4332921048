"""Studies made by hand: what is compared, what is ranked, and what is refused."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from pydantic import ValidationError

from services.analysis.compare import build, family, role
from services.analysis.comparison import ComparisonDocument, asked, best_of
from services.analysis.latency import Latency
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import Trial

SEEDS = [0, 1, 2, 3, 4]
PASSES = 4800
ARMS: dict[str, Any] = {
    "dense": {"description": "the whole network"},
    "dropout": {"method": {"name": "dropout"}},
    "blockout": {"method": {"name": "blockout", "clusters": 4}, "distillation": {"target_macs": 0.5}},
    "placebo-nodes": {"extends": "blockout", "distillation": {"placebo": "nodes"}},
    "widths": {"method": {"name": "blockout", "clusters": 1}, "distillation": {"target_macs": 0.5}},
    "thin": {"match": {"arm": "blockout", "quantity": "macs"}},
}
# Test accuracies of five seeds: blockout is far ahead of all but its placebo.
SCORES = {
    "dense": [0.900, 0.903, 0.898, 0.901, 0.899],
    "dropout": [0.905, 0.904, 0.906, 0.903, 0.907],
    "blockout": [0.931, 0.933, 0.929, 0.930, 0.932],
    "placebo-nodes": [0.930, 0.934, 0.928, 0.932, 0.930],
    "widths": [0.910, 0.912, 0.911, 0.909, 0.913],
    "thin": [0.890, 0.893, 0.889, 0.892, 0.888],
}


def study_of(
    arms: Mapping[str, Any] = ARMS,
    seeds: list[int] = SEEDS,
    budget: Mapping[str, float] | None = None,
    **more: Any,
) -> Study:
    document = {
        "schema_version": 2,
        "name": "by-hand",
        "budget": {"tolerance": 0.02, **(budget or {"sample_passes": 6 * PASSES})},
        "retrain": {"seeds": seeds},
        "arms": dict(arms),
        **more,
    }
    return resolve_document(document, source="test")


def retrained(arm: str, seed: int, test: float | None) -> Trial:
    trial = Trial(arm, "retrain", seed, seed, "complete", PASSES, PASSES, 2.0)
    if test is None:
        return replace(trial, state="failed", sample_passes=PASSES // 2)
    validation = round(1 - test, 6)  # the other way round, so that a selection by test accuracy would be seen
    result = {
        "validation_accuracy": validation,
        "test_accuracy": test,
        "parameters": 1000 + seed,
        "macs": 5000 + seed,
        "architecture_hash": f"hash-{arm}-{seed}",
        "overhead_seconds": 0.25,
    }
    return replace(trial, score=validation, experiment={"seed": seed}, result=result)


def trials_of(arm: str, scores: list[float | None], passes: int = PASSES) -> list[Trial]:
    search = Trial(arm, "search", 0, 77, "complete", passes, passes, 1.0, 0.5, 0.9, result={"validation_accuracy": 0.9})
    return [search, *(retrained(arm, seed, score) for seed, score in enumerate(scores))]


def trials(**changes: Any) -> list[Trial]:
    """All trials of the study, with other scores for the arms named (``_`` for ``-``)."""
    scores = SCORES | {arm.replace("_", "-"): values for arm, values in changes.items()}
    return [trial for arm in ARMS for trial in trials_of(arm, list(scores[arm]))]


def verdicts(document: ComparisonDocument) -> dict[str, str]:
    return {pair.b: pair.verdict for pair in document.pairs if pair.a == "blockout"}


def test_a_true_difference_is_shown_and_its_absence_is_not() -> None:
    document = build(study_of(), trials())
    assert verdicts(document) == {
        "dense": "better",
        "dropout": "better",
        "placebo-nodes": "no difference shown",
        "widths": "better",
        "thin": "better",
    }
    assert document.reason is None
    assert document.ranking is not None
    assert set(document.ranking[:2]) == {"blockout", "placebo-nodes"}
    assert document.ranking[2:] == ["widths", "dropout", "dense", "thin"]
    assert document.ranking_seeds == SEEDS


def test_the_document_has_the_keys_that_programs_rely_on() -> None:
    document = json.loads(build(study_of(), trials()).model_dump_json())
    assert set(document) >= {"schema_version", "study", "budget", "arms", "pairs", "ranking", "reason"}
    assert document["budget"] == {
        "unit": "sample_passes",
        "per_arm": 6 * PASSES,
        "tolerance": 0.02,
        "limits": {"sample_passes": 6 * PASSES},
    }
    assert document["arms"]["blockout"]["ended_by"] == "sample_passes"
    arm = document["arms"]["blockout"]
    assert arm["cost"] == {
        "search": {"sample_passes": PASSES, "seconds": 1.0},
        "retrain": {"sample_passes": 5 * PASSES, "seconds": 10.0},
        "overhead_seconds": 0.5 + 5 * 0.25,
        "forfeited_sample_passes": 0,
        "stale": {"sample_passes": 0, "seconds": 0.0},
    }
    assert set(arm["test_accuracy"]) == {"mean", "std", "ci95", "per_seed"}
    assert arm["test_accuracy"]["per_seed"]["3"] == 0.93
    assert (arm["trials"], arm["failed"], arm["latency_ms"]) == (6, 0, None)
    assert set(document["pairs"][0]) >= {"a", "b", "difference", "ci95", "p_holm", "verdict"}


def test_a_document_is_read_back_as_it_was_written() -> None:
    document = build(study_of(), trials(), latency={"thin": Latency(batch_1=0.5, batch_256=20.0)})
    assert document.arms["thin"].latency_ms is not None
    assert ComparisonDocument.model_validate_json(document.model_dump_json()) == document


def test_the_exported_model_is_chosen_by_validation_accuracy() -> None:
    arm = build(study_of(), trials()).arms["blockout"]
    worst_in_test = 2
    assert arm.exported_seed == worst_in_test
    assert (arm.architecture, arm.macs, arm.parameters) == ("hash-blockout-2", 5002, 1002)
    assert arm.settings == {"seed": 2}
    assert arm.macs_per_seed == {str(seed): 5000 + seed for seed in SEEDS}


# -- spending


def test_an_arm_that_quietly_spends_more_is_refused_a_ranking_and_a_comparison() -> None:
    found = [
        replace(t, sample_passes=t.sample_passes * 2) if (t.arm, t.phase) == ("thin", "search") else t for t in trials()
    ]
    document = build(study_of(), found)
    assert document.ranking is None
    assert document.reason is not None
    assert document.reason.startswith("spending differs by more than 2.0% from thin (33,600 sample passes)")
    assert "blockout 14.3% less (28,800)" in document.reason
    assert verdicts(document).keys() == {"dense", "dropout", "placebo-nodes", "widths"}


def test_spending_within_the_tolerance_is_ranked() -> None:
    found = [
        replace(t, sample_passes=t.sample_passes + 500) if (t.arm, t.phase) == ("thin", "search") else t
        for t in trials()
    ]
    assert build(study_of(), found).ranking is not None


def test_failed_and_pruned_trials_are_counted_and_charged() -> None:
    extra = [
        Trial("dense", "search", 1, 5, "failed", 300, 1000, 0.5),
        Trial("dense", "search", 2, 6, "pruned", 200, 1000, 0.25, 0.125),
    ]
    arm = build(study_of(), [*trials(), *extra]).arms["dense"]
    assert (arm.trials, arm.failed, arm.pruned) == (8, 1, 1)
    assert arm.cost.search.sample_passes == PASSES + 500
    assert arm.cost.forfeited_sample_passes == 700 + 800  # what stopping saves and no whole trial costs is forfeited
    assert arm.cost.overhead_seconds == 0.5 + 0.125 + 5 * 0.25


def test_what_a_failed_trial_forfeits_is_not_held_against_its_arm_and_no_more() -> None:
    diverged = trials(thin=[0.89, None, 0.889, 0.892, 0.888])
    assert build(study_of(), diverged).reason is None
    unplanned = [replace(t, planned=t.sample_passes) for t in diverged]
    reason = build(study_of(), unplanned).reason
    assert reason is not None
    assert reason.endswith("thin 8.3% less (26,400)")


def slow(factor: float, arm: str = "thin") -> list[Trial]:
    """All trials, those of one arm slower."""
    return [replace(t, seconds=factor * t.seconds) if t.arm == arm else t for t in trials()]


def test_an_arm_that_quietly_takes_longer_is_refused_a_ranking_where_seconds_are_the_budget() -> None:
    budget = {"seconds": 10.0}  # 8.25 of them kept for retraining, which takes 11.25
    fair = build(study_of(budget=budget), trials())
    assert (fair.ranking is None, fair.budget.unit, fair.budget.per_arm) == (False, "seconds", 10.0)
    assert {arm.ended_by for arm in fair.arms.values()} == {"seconds"}
    document = build(study_of(budget=budget), slow(1.1))
    assert document.ranking is None
    assert document.reason is not None
    assert document.reason.startswith("spending differs by more than 2.0% from thin (13.85 seconds): dense")
    assert verdicts(document).keys() == {"dense", "dropout", "placebo-nodes", "widths"}
    assert build(study_of(), slow(1.1)).ranking is not None  # with sample passes as the budget it may take its time


def test_an_arm_that_quietly_trains_more_often_is_refused_a_ranking_where_trainings_are_the_budget() -> None:
    budget = {"trainings": 6}
    assert build(study_of(budget=budget), trials()).ranking is not None
    extra = replace(trials_of("thin", [])[0], number=1, sample_passes=0)
    document = build(study_of(budget=budget), [*trials(), extra])
    assert document.reason is not None
    assert document.reason.startswith("spending differs by more than 2.0% from thin (7 trainings)")


def test_arms_that_different_limits_ended_are_compared_where_they_agree_or_not_at_all() -> None:
    both = {"sample_passes": 7 * PASSES, "seconds": 30.0}
    found = [replace(t, seconds=2.0) if (t.arm, t.phase) == ("dense", "search") else t for t in slow(4.0)]
    document = build(study_of(budget=both), found)
    assert {name: arm.ended_by for name, arm in document.arms.items() if name in ("dense", "thin")} == {
        "dense": "space",
        "thin": "seconds",
    }
    more = [replace(t, number=1) for t in trials() if t.phase == "search" and t.arm != "thin"]
    document = build(study_of(budget=both), [*slow(4.0), *more])
    assert document.ranking is None
    assert document.reason is not None
    assert document.reason.startswith(
        "different limits ended the arms (dense by sample passes, dropout by sample passes, blockout by sample passes, "
        "placebo-nodes by sample passes, widths by sample passes, thin by seconds), and they agree in none of them"
    )
    assert verdicts(document).keys() == {"dense", "dropout", "placebo-nodes", "widths"}
    shorter = [replace(t, number=1, sample_passes=0) for t in more]
    agreeing = build(study_of(budget={**both, "sample_passes": 6 * PASSES}), [*slow(4.0), *shorter])
    assert (agreeing.reason, agreeing.budget.unit) == (None, "sample_passes")


def test_what_ended_an_arm_is_said() -> None:
    def ended(found: list[Trial], arm: str) -> str | None:
        return build(study_of(), found).arms[arm].ended_by

    assert ended(trials(), "thin") == "sample_passes"
    assert ended([], "thin") is None
    searching = [replace(t, state="running", result=None) if t.phase == "search" else t for t in trials()]
    assert ended(searching, "thin") is None
    failures = [Trial("blockout", "search", number, number, "failed", 0, PASSES) for number in range(8)]
    assert ended(failures, "blockout") == "failures"
    assert ended(failures, "thin") == "match"
    assert ended(failures, "dense") is None


# -- seeds


def test_a_seed_that_diverged_leaves_pairs_and_ranking_to_the_others() -> None:
    document = build(study_of(), trials(thin=[0.89, None, 0.889, 0.892, 0.888]))
    assert document.arms["thin"].missing_seeds == [1]
    assert document.arms["thin"].failed == 1
    assert document.ranking is not None
    assert document.ranking_seeds == [0, 2, 3, 4]
    assert {pair.b: pair.seeds for pair in document.pairs} == {
        "dense": 5,
        "dropout": 5,
        "placebo-nodes": 5,
        "widths": 5,
        "thin": 4,
    }


def test_an_arm_whose_retrainings_all_failed_stops_the_ranking() -> None:
    document = build(study_of(), trials(thin=[None] * 5))
    assert document.arms["thin"].test_accuracy is None
    assert document.reason == "no retrained model in thin"
    assert "thin" not in verdicts(document)


def test_one_seed_gives_neither_ranking_nor_interval_nor_difference() -> None:
    found = [trial for trial in trials() if trial.phase == "search" or trial.seed == 0]
    document = build(study_of(seeds=[0]), found)
    assert document.reason is not None
    assert document.reason.startswith("fewer than 2 seeds in blockout, dense")
    assert set(verdicts(document).values()) == {"no difference shown"}
    accuracy = document.arms["dense"].test_accuracy
    assert accuracy is not None
    assert (accuracy.std, accuracy.ci95) == (None, None)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_study_that_still_runs_gives_no_verdicts(state: str) -> None:
    found = trials()
    found[-1] = replace(found[-1], state=state, result=None)
    document = build(study_of(), found)
    assert document.pairs == []
    assert document.reason is not None
    assert "1 trial has not ended" in document.reason


def test_retrainings_that_were_never_begun_count_as_not_ended() -> None:
    document = build(study_of(), trials()[:-2])
    assert document.pairs == []
    assert document.reason is not None
    assert "2 trials have not ended" in document.reason


def test_an_empty_study_says_so() -> None:
    document = build(study_of(), [])
    assert document.ranking is None
    assert document.reason is not None
    assert "no retrained model in dense, dropout" in document.reason


# -- the family and its roles


def test_roles_follow_from_settings() -> None:
    more = {
        "hard-fixed": {"method": {"name": "blockout", "mode": "hard-fixed"}},
        "scratch": {"extends": "blockout", "distillation": {"weights": "scratch"}},
        "placebo-random": {"extends": "blockout", "distillation": {"weights": "scratch", "placebo": "random"}},
        "unbranched": {"extends": "blockout", "distillation": {"placebo": "unbranched"}},
        "pruned": {"pruning": {}, "match": {"arm": "blockout"}},
        "confusion": {"confusion": {}},
    }
    study = study_of({**ARMS, **more})
    assert {name: role(arm) for name, arm in study.arms.items()} == {
        "dense": "baseline",
        "dropout": "ablation",
        "blockout": "learned",
        "placebo-nodes": "placebo",
        "widths": "ablation",
        "thin": "ablation",
        "hard-fixed": "ablation",
        "scratch": "ablation",
        "placebo-random": "placebo",
        "unbranched": "ablation",
        "pruned": "ablation",
        "confusion": "baseline",
    }


def test_the_family_holds_all_pairs_those_of_learned_arms_first() -> None:
    pairs = family(study_of())
    assert pairs[:5] == [("blockout", name) for name in ARMS if name != "blockout"]
    assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in combinations(ARMS, 2)}
    assert len(pairs) == 15
    two = study_of({"a": ARMS["blockout"], "b": {}, "c": ARMS["blockout"]})
    assert family(two) == [("a", "c"), ("a", "b"), ("c", "b")]


def test_a_study_that_learns_no_structure_tests_all_pairs() -> None:
    assert family(study_of({"a": {}, "b": {}, "c": {}})) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_all_pairs_are_corrected_together_and_those_of_the_best_are_shown() -> None:
    best = [0.951, 0.953, 0.949, 0.950, 0.952]
    document = build(study_of(), trials(dropout=best))
    assert best_of(document) == "dropout"
    assert len(document.pairs) == 15
    raw = [pair.p for pair in document.pairs]
    # Holm's correction by its definition: p times the number of those not smaller, and never less than a smaller one.
    by_hand = [min(1.0, max(q * sum(r >= q for r in raw) for q in raw if q <= p)) for p in raw]
    assert [pair.p_holm for pair in document.pairs] == pytest.approx(by_hand)
    shown = {frozenset((pair.a, pair.b)) for pair in asked(document)}
    assert {frozenset(("dropout", name)) for name in ARMS if name != "dropout"} <= shown
    assert {frozenset(("blockout", name)) for name in ARMS if name != "blockout"} <= shown


def test_two_seeds_give_no_verdict_and_no_detectable_difference() -> None:
    study = study_of(seeds=[0, 1])
    document = build(study, [trial for trial in trials() if trial.phase == "search" or trial.seed < 2])
    assert {(pair.seeds, pair.verdict, pair.smallest_effect) for pair in document.pairs} == {
        (2, "no difference shown", None)
    }


# -- what is refused


def test_trials_of_an_unknown_arm_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'other'; known are"):
        build(study_of(), [Trial("other", "search", 0, 0, "complete")])


def test_a_seed_that_was_tested_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="seed 4 of thin twice"):
        build(study_of(), [*trials(), retrained("thin", 4, 0.9)])


def test_a_retrained_model_without_a_test_accuracy_is_refused() -> None:
    found = trials()
    found[-1] = replace(found[-1], result={"validation_accuracy": 0.5})
    with pytest.raises(ValueError, match="has a test_accuracy, seed 4 of thin has none"):
        build(study_of(), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "Extra inputs"),
        ({"reason": "because"}, "either a ranking or the reason"),
        ({"ranking": None}, "either a ranking or the reason"),
        ({"ranking": ["dense"]}, "names every arm once"),
        ({"schema_version": 3}, "Input should be 2"),
    ],
)
def test_documents_that_contradict_themselves_are_refused(change: dict[str, Any], message: str) -> None:
    document = build(study_of(), trials()).model_dump(mode="json")
    with pytest.raises(ValidationError, match=message):
        ComparisonDocument.model_validate(document | change)


def test_numbers_that_are_none_are_refused() -> None:
    document = build(study_of(), trials()).model_dump(mode="json")
    document["pairs"][0]["difference"] = math.nan
    with pytest.raises(ValidationError, match="finite"):
        ComparisonDocument.model_validate(document)
    document["pairs"][0]["difference"], document["pairs"][0]["a"] = 0.0, "nobody"
    with pytest.raises(ValidationError, match="got \\['nobody'\\]"):
        ComparisonDocument.model_validate(document)
