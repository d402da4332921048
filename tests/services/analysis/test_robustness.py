"""Corrupted test images: what a study may ask for, and what is concluded from errors made by hand."""

import json
from typing import Any

import pytest

from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument
from services.analysis.robustness import RobustnessResult
from services.study_config.errors import StudyError
from services.study_config.resolution import parse, resolve_document
from services.study_config.resolved_study import Study, parse_resolved
from services.study_config.schema import json_schema
from services.trial_record import Trial

SEEDS = [0, 1, 2, 3, 4]
ARMS = {"dense": {}, "dropout": {"method": {"name": "dropout"}}, "dropblock": {"method": {"name": "dropblock"}}}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 2,
        "name": "by-hand",
        "budget": {"trainings": 6},
        "retrain": {"seeds": SEEDS},
        "arms": ARMS,
        **changes,
    }


def study_of(**changes: Any) -> Study:
    return resolve_document(document(**changes), source="test")


def found(fog: float, snow: float, clean: float = 0.1, making: float = 0.0) -> dict[str, Any]:
    errors = {"fog": [fog - 0.05, fog + 0.05], "snow": [snow, snow]}
    return {
        "images": 200, "severities": [1, 5], "clean_error": clean, "errors": errors, "making_seconds": making,
        "seconds": 2.0,
    }  # fmt: skip


def trials(arm: str, robustness: list[dict[str, Any] | None]) -> list[Trial]:
    search = Trial(arm, "search", 0, 77, "complete", 100, 100, 1.0, score=0.9, result={"validation_accuracy": 0.9})
    models = []
    for seed, given in enumerate(robustness):
        result: dict[str, Any] = {"validation_accuracy": 0.9, "test_accuracy": 0.9 + seed / 1000}
        if given is not None:
            result["robustness"] = given
        models.append(Trial(arm, "retrain", seed, seed, "complete", 100, 100, 2.0, score=0.9, result=result))
    return [search, *models]


def by_hand() -> list[Trial]:
    wobble = [-0.01, 0.0, 0.01, 0.005, -0.005]
    return [
        *trials("dense", [found(0.4 + w, 0.2, making=3.0 * (w == 0.0)) for w in wobble]),
        *trials("dropout", [found(0.3 + w / 2, 0.1, clean=0.2) for w in wobble]),
        *trials("dropblock", [found(0.4 - w, 0.2) for w in wobble]),
    ]


@pytest.fixture(scope="module")
def result() -> RobustnessResult:
    compared = build(study_of(robustness={}), by_hand()).robustness
    assert compared is not None
    return compared


def test_errors_are_means_over_seeds_kinds_and_severities(result: RobustnessResult) -> None:
    dense, dropout = result.arms["dense"], result.arms["dropout"]
    assert (result.images, result.severities, result.baseline) == (200, [1, 5], "dense")
    assert dense.errors["fog"] == pytest.approx([0.35, 0.45])
    assert dense.by_kind == pytest.approx({"fog": 0.4, "snow": 0.2})
    assert dense.corruption_error.mean == pytest.approx(0.3)
    assert dense.corruption_error.per_seed["0"] == pytest.approx((0.39 + 0.2) / 2)
    assert dense.corruption_error.ci95 is not None
    assert (dense.relative, dropout.relative) == (pytest.approx(1), pytest.approx((0.3 / 0.4 + 0.1 / 0.2) / 2))
    assert (dropout.clean_error, dense.seconds) == (pytest.approx(0.2), pytest.approx(5 * 2 + 3))


def test_fewer_errors_are_better_in_the_family_of_the_study(result: RobustnessResult) -> None:
    verdicts = {(pair.a, pair.b): (round(pair.difference, 3), pair.verdict) for pair in result.pairs}
    assert verdicts == {
        ("dense", "dropout"): (-0.1, "worse"),
        ("dense", "dropblock"): (0.0, "no difference shown"),
        ("dropout", "dropblock"): (0.1, "better"),
    }
    assert all(pair.p_holm >= pair.p for pair in result.pairs)


def test_nothing_is_said_about_pairs_while_trials_run() -> None:
    running = [trial for trial in by_hand() if (trial.arm, trial.phase, trial.seed) != ("dense", "retrain", 4)]
    compared = build(study_of(robustness={}), running).robustness
    assert compared is not None
    assert compared.pairs == []
    assert list(compared.arms) == list(ARMS)


def test_without_a_dense_arm_and_without_errors_of_it_nothing_is_relative() -> None:
    faultless = {**found(0.05, 0.0, clean=0.0), "errors": {"fog": [0.0, 0.0], "snow": [0.1, 0.1]}}
    for arm in ("dense", "other"):
        compared = RobustnessResult.of({arm: {0: faultless}}, pairs=[])
        assert compared is not None
        assert compared.arms[arm].relative is None


def test_a_comparison_without_the_key_has_none_and_one_of_before_can_be_read() -> None:
    compared = build(study_of(), [trial for arm in ARMS for trial in trials(arm, [None] * 5)])
    assert compared.robustness is None
    before = json.loads(compared.model_dump_json())
    del before["robustness"]
    assert ComparisonDocument.model_validate(before) == compared


def test_the_key_is_resolved_kept_and_part_of_the_hash() -> None:
    plain, study = study_of(), study_of(robustness={"images": 50})
    assert "robustness" not in plain.to_json()  # as in the studies of a store from before the key
    assert study.to_json()["robustness"] == {"images": 50, "severities": [1, 2, 3, 4, 5]}
    assert parse_resolved(study.to_json()).hash == study.hash
    assert len({plain.hash, study.hash, study_of(robustness={"images": 50, "severities": [5]}).hash}) == 3
    assert "Robustness" in json_schema()["$defs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": 0}, r"robustness.images: must be greater than or equal to 1, got 0"),
        ({"severities": [0, 1]}, r"robustness.severities: must be some of 1, 2, 3, 4, 5 in ascending order, got \[0"),
        ({"severities": [2, 1]}, r"in ascending order, got \[2, 1\]"),
        ({"severities": []}, r"robustness.severities: list should have at least 1 item"),
        ({"image": 5}, r"robustness.image: no such key; (did you mean|the nearest is|.*)images"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse(document(robustness=given), source="test")
