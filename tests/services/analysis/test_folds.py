"""Comparisons over folds: every interval and p is by the corrected t, and whoever reads one is told so."""

import math
from typing import Any

import pytest
from scipy.stats import t as student

from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument
from services.analysis.recommendation import Candidate, recommend
from services.analysis.seed_metrics import Accuracy
from services.analysis.verdict import sentence
from services.report.tables.accuracy_tables import pairs_tables
from tests.services.analysis.test_comparison import SCORES, SEEDS, study_of, trials

FOLDED = {"name": "digits", "folds": 5}


def over_folds(**more: Any) -> ComparisonDocument:
    return build(study_of(data=FOLDED), trials(), **more)


def test_pairs_and_intervals_are_by_the_corrected_t() -> None:
    plain, folded = build(study_of(), trials()), over_folds()
    assert (plain.folds, folded.folds) == (None, 5)
    accuracy = folded.arms["dropout"].test_accuracy
    assert accuracy is not None
    assert accuracy.std is not None
    half = student.ppf(0.975, 4) * accuracy.std * math.sqrt(1 / 5 + 1 / 4)
    assert accuracy.ci95 == pytest.approx((accuracy.mean - half, accuracy.mean + half))
    assert accuracy.std == plain.arms["dropout"].test_accuracy.std  # type: ignore[union-attr]
    for one, other in zip(plain.pairs, folded.pairs, strict=True):
        assert (one.a, one.b, one.difference) == (other.a, other.b, other.difference)
        differences = [a - b for a, b in zip(SCORES[one.a], SCORES[one.b], strict=True)]
        mean = sum(differences) / 5
        error = math.sqrt(sum((each - mean) ** 2 for each in differences) / 4 * (1 / 5 + 1 / 4))
        assert other.p == pytest.approx(2 * student.sf(abs(mean) / error, 4))
        assert other.smallest_effect == pytest.approx((one.smallest_effect or 0) * 1.5)  # sqrt(1 + 5 / 4)
        assert (one.p_permutation is None, other.p_permutation is None) == (False, True)


def test_a_verdict_of_independent_seeds_is_none_of_folds() -> None:
    close = [0.930, 0.937, 0.931, 0.934, 0.932]  # better by 0 to .4 points: t is 3.3, and 2.2 over folds
    answers = [
        next(pair.verdict for pair in build(study_of(pairs_of_two(), **more), two(close)).pairs)
        for more in ({}, {"data": FOLDED})
    ]
    assert answers == ["better", "no difference shown"]


def pairs_of_two() -> dict[str, Any]:
    return {"dense": {}, "dropout": {"method": {"name": "dropout"}}}


def two(scores: list[float]) -> list[Any]:
    others = [0.930, 0.933, 0.929, 0.931, 0.930]
    return [trial for trial in trials(dense=scores, dropout=others) if trial.arm in ("dense", "dropout")]


def test_equivalence_is_tested_over_folds_too() -> None:
    small, large = (
        Candidate(name, Accuracy.of(values), Accuracy.of(values), 0, macs, 1, None)
        for name, values, macs in (
            ("small", dict(enumerate([0.930, 0.933, 0.929, 0.931, 0.930])), 10),
            ("large", dict(enumerate([0.931, 0.937, 0.931, 0.934, 0.932])), 20),
        )
    )
    both = {"small": small, "large": large}
    one, other = (recommend(both, [], margin=0.005, overlap=overlap) for overlap in (0.0, 0.25))
    assert one is not None
    assert other is not None
    assert one.equivalence is not None
    assert other.equivalence is not None
    assert one.equivalence.ci90 is not None
    assert other.equivalence.ci90 is not None
    widths = [found.ci90[1] - found.ci90[0] for found in (one.equivalence, other.equivalence) if found.ci90]
    assert widths[1] == pytest.approx(1.5 * widths[0])
    assert (one.arm, one.equivalence.not_worse) == ("small", True)


def test_whoever_reads_the_result_is_told_of_the_folds() -> None:
    folded = over_folds()
    assert "over 5 folds, with the corrected t" in sentence(folded)
    assert "folds" not in sentence(build(study_of(), trials()))
    few = build(study_of(data={"name": "digits", "folds": 7}), trials())
    assert "over 5 of 7 folds, with the corrected t" in sentence(few)
    (table,) = pairs_tables(folded)
    assert "p, sign-flip test" not in [column.name for column in table.columns]
    assert "over 5 folds, with the corrected t" in table.caption
    (table,) = pairs_tables(build(study_of(), trials()))
    assert "p, sign-flip test" in [column.name for column in table.columns]


def test_a_document_of_folds_is_read_back_and_recommends_the_same() -> None:
    folded = over_folds()
    again = ComparisonDocument.model_validate_json(folded.model_dump_json())
    assert again == folded
    without = folded.model_dump(mode="json")
    del without["recommendation"]  # as before there were recommendations: it follows from the rest
    assert ComparisonDocument.model_validate(without).shipped == folded.recommendation
    assert folded.ranking_seeds == SEEDS
