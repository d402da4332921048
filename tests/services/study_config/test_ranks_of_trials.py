"""How many processes train a trial, and what of it is refused before a study starts."""

from typing import Any

import pytest

from nas_blockout.data import Dimensions
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve
from services.study_config.validation import check_against_dimensions
from tests.services.study_config.test_schema import changed, parse


def workers(**settings: Any) -> Any:
    return parse(changed("workers", settings), source="x").workers


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [({}, 1), ({"gpus": 0.5}, 1), ({"gpus": 1}, 1), ({"gpus": 4}, 4), ({"ranks": 2}, 2), ({"gpus": 2, "ranks": 2}, 2)],
)
def test_a_trial_has_a_rank_for_each_gpu_or_as_many_as_it_says(settings: dict[str, Any], ranks: int) -> None:
    assert workers(**settings).ranks_of_trial == ranks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 1.5}, "gpus above 1 must be a whole number, one for each rank of a trial, got 1.5"),
        ({"gpus": 4, "ranks": 2}, "ranks must be as many as gpus, one for each, got ranks: 2 and gpus: 4"),
        ({"gpus": 0.5, "ranks": 2}, "ranks must be as many as gpus, one for each, got ranks: 2 and gpus: 0.5"),
    ],
)
def test_gpus_that_cannot_be_divided_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        workers(**settings)


def test_a_training_that_ranks_cannot_share_is_refused() -> None:
    document = changed("training", {"class_weights": "balanced", "epochs": 1})
    data = Dimensions((1, 8, 8), 10, 60)
    check_against_dimensions(resolve(parse(document, source="x"), source="x"), data, source="x")
    document["workers"] = {"ranks": 2}
    with pytest.raises(StudyError, match=r"training\.class_weights: must be none where several ranks train a trial"):
        check_against_dimensions(resolve(parse(document, source="x"), source="x"), data, source="x")
