"""Folds in a study: a seed for each of them, none twice, and other hashes for nobody who has none."""

from typing import Any

import pytest

from nas_blockout.data import load
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study, parse_resolved
from services.study_config.validation import cautions


def study(data: dict[str, Any], **top: Any) -> Study:
    document = {
        "schema_version": 2,
        "name": "folded",
        "data": {"name": "digits", **data},
        "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
        "training": {"epochs": 1},
        "budget": {"trainings": 21},
        "arms": {"dense": {}},
        **top,
    }
    return resolve_document(document, source="x")


def test_a_study_of_folds_has_a_seed_for_each_unless_it_names_some() -> None:
    assert study({"folds": 3}).config.retrain.seeds == [0, 1, 2]
    assert study({"folds": 3}, retrain={"seeds": [9, 4]}).config.retrain.seeds == [9, 4]
    assert study({}).config.retrain.seeds == [0, 1, 2, 3, 4]


def test_a_resolved_study_says_which_fold_the_search_holds_out() -> None:
    found = study({"folds": 3})
    assert (found.data.fold, found.arms["dense"].experiment.data.fold) == (0, 0)
    assert study({"folds": 3, "fold": 2}).data.fold == 2
    again = parse_resolved(found.to_json())
    assert (again.data, again.config.retrain.seeds, again.hash) == (found.data, [0, 1, 2], found.hash)
    assert [found.position_of(seed) for seed in (0, 2)] == [0, 2]


def test_a_study_without_folds_keeps_its_hash_and_one_with_folds_has_another() -> None:
    plain = study({})
    document = plain.to_json()
    for settings in (document["data"], document["arms"]["dense"]["experiment"]["data"]):
        del settings["folds"], settings["fold"]  # as it was recorded before there were folds
    assert parse_resolved(document).hash == plain.hash
    assert len({plain.hash, study({"folds": 5}).hash, study({"folds": 5, "fold": 1}).hash}) == 3


def test_more_seeds_than_folds_are_refused() -> None:
    with pytest.raises(StudyError, match=r"retrain.seeds: must be at most 3, the folds of the data.*got 4 seeds"):
        study({"folds": 3}, retrain={"seeds": [0, 1, 2, 3]})


@pytest.mark.parametrize("folds", [1, 21, "five", True, 2.5])
def test_folds_out_of_range_are_an_error_of_the_data(folds: Any) -> None:
    with pytest.raises(StudyError, match=r"data.*folds") as raised:
        study({"folds": folds})
    assert len(raised.value.violations) == 1


def test_fewer_seeds_than_folds_are_told() -> None:
    few = study({"folds": 4}, retrain={"seeds": [0, 1]})
    assert "2 seeds for 4 folds: only folds 0 to 1 are held out by a retraining" in cautions(few, load(few.data))
    whole = study({"folds": 4})
    assert not [text for text in cautions(whole, load(whole.data)) if "folds" in text]
