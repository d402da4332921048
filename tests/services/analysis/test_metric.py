"""Studies that go by balanced accuracy: what is selected, ranked and told, and what studies from before are."""

from dataclasses import replace
from typing import Any

import pytest

from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument, best_of
from services.analysis.verdict import BALANCED_COLUMN, arm_table, sentence
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study, parse_resolved
from services.trial_record import Trial

SEEDS = [0, 1, 2, 3, 4]
# True x predicted, of 90 images of a common class and 10 of a rare one, by seed: `common` always guesses the first.
CONFUSIONS = {
    "common": [[[90 - seed % 2, seed % 2], [10, 0]] for seed in SEEDS],
    "rare": [[[76 + seed % 3, 14 - seed % 3], [1, 9]] for seed in SEEDS],
}


def study_of(**changes: Any) -> Study:
    document = {
        "schema_version": 2,
        "name": "uneven",
        "budget": {"sample_passes": 6000},
        "retrain": {"seeds": SEEDS},
        "arms": {"common": {}, "rare": {"method": {"name": "dropout"}}},
        **changes,
    }
    return resolve_document(document, source="test")


def shares(confusion: list[list[int]]) -> tuple[float, float]:
    right = [row[label] for label, row in enumerate(confusion)]
    recalls = [count / sum(row) for count, row in zip(right, confusion, strict=True)]
    return sum(right) / sum(map(sum, confusion)), sum(recalls) / len(recalls)


def trials_of(arm: str) -> list[Trial]:
    search = Trial(arm, "search", 0, 7, "complete", 1000, 1000, 1.0, score=0.5, result={"validation_accuracy": 0.5})
    models = []
    for seed, confusion in enumerate(CONFUSIONS[arm]):
        accuracy, balanced = shares(confusion)
        result = {
            "validation_accuracy": accuracy,
            "validation_balanced_accuracy": balanced,
            "test_accuracy": accuracy,
            "test_balanced_accuracy": balanced,
            "confusion": confusion,
            "parameters": 10,
            "macs": 10,
        }
        trial = Trial(arm, "retrain", seed, seed, "complete", 1000, 1000, 1.0, score=balanced, result=result)
        models.append(replace(trial, experiment={"seed": seed}))
    return [search, *models]


def compared(**changes: Any) -> ComparisonDocument:
    return build(study_of(**changes), [trial for arm in CONFUSIONS for trial in trials_of(arm)])


def test_the_metric_decides_ranking_verdict_and_recommendation() -> None:
    plain, balanced = compared(), compared(metric="balanced_accuracy")
    assert (plain.ranking, balanced.ranking) == (["common", "rare"], ["rare", "common"])
    assert (best_of(plain), best_of(balanced)) == ("common", "rare")
    (one,), (other,) = plain.pairs, balanced.pairs
    assert one.difference > 0 > other.difference
    assert other.difference == pytest.approx(
        sum(shares(a)[1] - shares(b)[1] for a, b in zip(*CONFUSIONS.values(), strict=True)) / 5
    )
    assert plain.shipped is not None
    assert balanced.shipped is not None
    assert (plain.shipped.arm, balanced.shipped.arm) == ("common", "rare")
    assert "by mean test balanced accuracy: rare 87.67%" in sentence(balanced)
    assert "by mean test accuracy: common 89.60%" in sentence(plain)


def test_both_are_in_the_document_and_classes_have_intervals() -> None:
    arm = compared().arms["rare"]
    assert arm.test_balanced_accuracy is not None
    assert arm.test_balanced_accuracy.mean == pytest.approx((0.9 + (76.8 / 90)) / 2)
    assert arm.classes is not None
    assert [each.images for each in arm.classes] == [90, 10]
    rare = arm.classes[1]
    assert rare.accuracy is not None
    assert rare.accuracy.mean == pytest.approx(0.9)
    assert rare.ci95 == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Wilson, of 9 in 10, not of 45 in 50


def test_the_table_has_balanced_accuracy_where_it_says_something_else() -> None:
    columns, rows = arm_table(compared())
    assert columns[2] == BALANCED_COLUMN
    assert [row[0] for row in rows] == ["common", "rare"]
    assert rows[0][2].startswith("49.78")


def test_models_from_before_have_the_balanced_accuracy_of_their_confusions() -> None:
    trials = [trial for arm in CONFUSIONS for trial in trials_of(arm)]
    old = [
        replace(trial, result={key: value for key, value in (trial.result or {}).items() if "balanced" not in key})
        for trial in trials
    ]
    arm = build(study_of(), old).arms["common"]
    assert arm.validation_balanced_accuracy is None
    assert arm.test_balanced_accuracy == compared().arms["common"].test_balanced_accuracy


def test_the_metric_is_part_of_the_identity_of_a_study_unless_it_is_accuracy() -> None:
    study = study_of(metric="balanced_accuracy")
    assert study.hash != study_of().hash == study_of(metric="accuracy").hash
    assert "metric" not in study_of().to_json()
    assert parse_resolved(study.to_json()).config.metric == "balanced_accuracy"
    assert parse_resolved(study_of().to_json()).config.metric == "accuracy"


def test_a_stopped_trial_has_the_metric_of_its_study() -> None:
    stopped = Trial("a", "search", 0, 0, "pruned", result={"validation_balanced_accuracy": 0.4, "stopped_after": 2})
    assert stopped.stopped_at == (2, 0.4)
