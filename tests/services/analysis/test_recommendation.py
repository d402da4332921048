"""Which model to ship: named by validation, decided by one equivalence test, and honest about what is not known."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument
from services.analysis.latency import Latency
from services.analysis.recommendation import Candidate, Recommendation, recommend, recommendation_rows
from services.analysis.seed_metrics import Accuracy, PairResult
from services.analysis.verdict import ship_heading, ship_rows
from services.execution.extension import additions
from services.store import StudyConflict
from services.study_config.errors import StudyError
from services.study_config.resolution import parse, resolve
from services.study_config.resolved_study import Study, parse_resolved
from tests.services.analysis.test_comparison import ARMS, SEEDS, study_of, trials, trials_of
from tests.services.analysis.test_verdict import arm as arm_result
from tests.services.analysis.test_verdict import document, pair

FAST = Latency(batch_1=0.25, batch_256=9, batch_1_quartiles=(0.24, 0.27), batch_256_quartiles=(8, 10), rounds=5)
NEAR = (0.902, 0.9005, 0.899, 0.901, 0.8985)
LARGE = (0.901, 0.9, 0.9, 0.9, 0.899)


def accuracy(values: Sequence[float]) -> Accuracy:
    return Accuracy.of(dict(enumerate(values)))


def candidate(
    name: str,
    validation: Sequence[float],
    test: Sequence[float] | None = None,
    *,
    macs: int | None = 1000,
    parameters: int | None = 100,
) -> Candidate:
    return Candidate(name, accuracy(validation), accuracy(test or validation), 3, macs, parameters, FAST)


def chosen(*candidates: Candidate, margin: float = 0.005, **options: Any) -> Recommendation:
    found = recommend({one.name: one for one in candidates}, options.pop("pairs", []), margin=margin, **options)
    assert found is not None
    return found


def test_the_most_accurate_on_validation_data_is_recommended_whatever_the_test_says() -> None:
    found = chosen(candidate("a", [0.95] * 5, [0.90, 0.91, 0.9, 0.9, 0.9]), candidate("b", [0.94] * 5, [0.99] * 5))
    assert (found.arm, found.model, found.seed) == ("a", "models/a", 3)
    assert found.test_accuracy == pytest.approx(0.902)
    assert found.why == (
        "highest validation accuracy of 2 arms (95.00%); no smaller model is within 0.5 points of it on validation data"
    )


def test_a_smaller_model_is_recommended_once_the_test_shows_that_it_is_as_good() -> None:
    found = chosen(
        candidate("large", [0.95] * 5, LARGE), candidate("small", [0.948] * 5, NEAR, macs=400, parameters=40)
    )
    assert found.arm == "small"
    assert found.equivalence is not None
    assert (found.equivalence.smaller, found.equivalence.larger) == ("small", "large")
    assert found.equivalence.equivalent
    assert found.why.startswith("40% of the MACs of large, which has the highest validation accuracy (95.00%), and")
    assert "shown to be equal to it within 0.5 points of test accuracy (+0.02 points, 90% interval" in found.why


def test_where_the_margin_is_not_shown_the_most_accurate_is_recommended_and_that_is_said() -> None:
    noisy = (0.93, 0.88, 0.90, 0.87, 0.92)
    found = chosen(candidate("large", [0.95] * 5, LARGE), candidate("small", [0.948] * 5, noisy, macs=400))
    assert found.arm == "large"
    assert found.equivalence is not None
    assert not found.equivalence.not_worse
    assert found.not_known[0].startswith("whether small, with 40% of the MACs, is as good within 0.5 points: not shown")


def test_a_smaller_model_that_is_much_better_on_the_test_images_is_not_worse() -> None:
    found = chosen(
        candidate("large", [0.95] * 5, LARGE), candidate("small", [0.948] * 5, [v + 0.05 for v in NEAR], macs=400)
    )
    assert found.arm == "small"
    assert found.equivalence is not None
    assert not found.equivalence.equivalent
    assert "shown to be not worse than it within 0.5 points" in found.why


def test_only_the_smallest_model_within_the_margin_on_validation_data_is_tested() -> None:
    found = chosen(
        candidate("large", [0.95] * 5, LARGE),
        candidate("smaller", [0.947] * 5, NEAR, macs=600),
        candidate("smallest", [0.9451] * 5, [0.7, 0.9, 0.8, 0.75, 0.85], macs=500),
        candidate("outside", [0.944] * 5, NEAR, macs=100),
    )
    assert found.equivalence is not None
    assert (found.arm, found.equivalence.smaller) == ("large", "smallest")


def test_the_margin_is_that_of_the_study() -> None:
    pair_of = (candidate("large", [0.95] * 5, LARGE), candidate("small", [0.93] * 5, NEAR, macs=400))
    assert chosen(*pair_of).arm == "large"
    assert chosen(*pair_of, margin=0.03).arm == "small"


def test_of_equals_the_smallest_is_recommended() -> None:
    ties = [candidate("a", [0.95] * 5, macs=900), candidate("b", [0.95] * 5, macs=800, parameters=9)]
    found = chosen(*ties, candidate("c", [0.95] * 5, macs=800, parameters=8), candidate("d", [0.95] * 5, macs=None))
    assert found.arm == "c"
    assert "of equals the smallest" in found.why


def test_one_arm_one_seed_and_unknown_costs() -> None:
    found = chosen(Candidate("a", accuracy([0.9]), accuracy([0.8]), 0, None, None, None, (1, 2)))
    assert found.why == "the only arm with a retrained model"
    assert (found.ci95, found.seeds, found.equivalence) == (None, 1, None)
    assert found.not_known == [
        "how much its accuracy varies from training to training: one seed, or seeds without a spread",
        "its accuracy for seeds 1, 2, which gave no model",
        "its latency, which was not measured",
    ]
    assert dict(recommendation_rows(found)) == {
        "model": "models/a (seed 0)",
        "why": "the only arm with a retrained model",
        "test accuracy": "80.00%, mean of 1 seed",
        "cost": "-",
        "not known": "; ".join(found.not_known),
    }


def test_the_cost_has_the_latency_with_its_spread() -> None:
    told = dict(recommendation_rows(chosen(candidate("a", [0.9] * 3))))
    assert told["cost"] == "1,000 MACs an image, 100 parameters, 0.25 (0.24 to 0.27) ms for one image"


def test_means_are_over_the_seeds_that_all_have() -> None:
    lucky = Candidate("lucky", accuracy([0.95]), accuracy([0.9]), 0, 10, 1, FAST)
    steady = candidate("steady", [0.96, 0.90, 0.90, 0.90, 0.90])
    assert chosen(lucky, steady).arm == "steady"


def test_without_a_seed_in_common_each_has_its_own_mean_and_no_test() -> None:
    other = Candidate("other", Accuracy.of({7: 0.949}), Accuracy.of({7: 0.9}), 7, 10, 1, FAST)
    found = chosen(other, candidate("large", [0.95] * 5))
    assert (found.arm, found.equivalence) == ("large", None)


def test_what_is_not_known_names_the_arms_that_it_was_not_shown_to_beat_and_those_that_beat_it() -> None:
    pairs = [pair(name, 0.0, "no difference shown") for name in ("b", "c")] + [pair("d", -0.02, "worse")]
    named = [PairResult.model_validate({**one.model_dump(), "a": "a"}) for one in pairs]
    candidates = [candidate("a", [0.95] * 5, LARGE), *(candidate(name, [0.9] * 5) for name in "bcd")]
    found = chosen(*candidates, pairs=named, unlike="spending differs")
    assert found.not_known == [
        "which arm is better, since they are not ranked: spending differs",
        "whether it is the best choice: d is shown to be better on the test images, by which nothing is selected",
        "whether it is more accurate than b, c: no difference shown",
    ]


def test_nothing_is_recommended_without_a_model() -> None:
    assert recommend({}, [], margin=0.005) is None
    none = build(study_of(), [])
    assert ship_heading(none).startswith("No model to ship: ")
    assert ship_rows(none) == []


# -- in the comparison of a study


def test_a_study_recommends_by_validation_accuracy() -> None:
    # In these studies validation accuracy is 1 minus test accuracy: thin has the lowest test accuracy of all.
    found = build(study_of(), trials())
    assert found.recommendation is not None
    assert found.recommendation.arm == "thin"
    assert ship_heading(found) == "Ship thin"
    assert json.loads(found.model_dump_json())["recommendation"]["model"] == "models/thin"


def test_a_failed_arm_is_no_candidate() -> None:
    found = build(study_of(), trials(thin=[None] * 5))
    assert found.ranking is None
    assert found.recommendation is not None
    assert found.recommendation.arm == "dense"
    assert any("no retrained model in thin" in text for text in found.recommendation.not_known)


def test_spending_that_differs_forbids_a_ranking_and_not_a_model() -> None:
    unequal = [
        trial for arm in ARMS for trial in trials_of(arm, [0.9, 0.91, 0.9, 0.92, 0.9], 4800 * (1 + (arm == "thin")))
    ]
    found = build(study_of(), unequal)
    assert found.ranking is None
    assert found.recommendation is not None
    assert found.recommendation.not_known[0].startswith("which arm is better, since they are not ranked: spending")


def test_nothing_is_recommended_before_all_trials_have_ended() -> None:
    running = [trial for trial in trials() if (trial.arm, trial.seed) != ("dense", SEEDS[-1])]
    found = build(study_of(), running)
    assert (found.recommendation, found.shipped) == (None, None)
    assert ship_heading(found).startswith("No model to ship: ")


def test_the_margin_of_the_study_file_is_in_the_comparison_and_fixed_with_the_study() -> None:
    def with_margin(margin: dict[str, float]) -> Study:
        document = {
            "schema_version": 2, "name": "by-hand", "budget": {"sample_passes": 28800}, "retrain": {"seeds": SEEDS},
            "arms": dict(ARMS), **margin,
        }  # fmt: skip
        return resolve(parse(document, source="test"), source="test")

    plain, wide = with_margin({}), with_margin({"equivalence_margin": 0.02})
    assert build(plain, trials()).equivalence_margin == 0.005
    assert build(wide, trials()).equivalence_margin == 0.02
    assert parse_resolved(wide.to_json()).config.equivalence_margin == 0.02
    assert plain.to_json()["equivalence_margin"] == 0.005
    # Studies from before there was a margin keep their hash; another margin is another study.
    assert with_margin({"equivalence_margin": 0.005}).hash == plain.hash != wide.hash
    with pytest.raises(StudyConflict, match=r"another equivalence_margin: 0\.005 there, 0\.02 here"):
        additions(plain, wide)
    for refused in (0.0, 1.0, 5.0):
        with pytest.raises(StudyError, match="equivalence_margin"):
            with_margin({"equivalence_margin": refused})


def test_a_document_without_a_recommendation_gets_the_one_that_follows_from_it() -> None:
    older = document({"dense": arm_result("baseline", 0.9), "thin": arm_result("ablation", 0.8)}, [])
    assert older.recommendation is None
    assert older.shipped is not None
    assert older.shipped.arm == "dense"
    again: Mapping[str, Any] = build(study_of(), trials()).model_dump(mode="json")
    assert ComparisonDocument.model_validate(again).shipped == build(study_of(), trials()).recommendation
