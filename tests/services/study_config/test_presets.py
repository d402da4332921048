"""The recipe is the default: a study that only names blockout trains a good network."""

from dataclasses import replace
from typing import Any

import pytest

from nas_blockout.data import Loader, load
from nas_blockout.experiment import Run
from nas_blockout.training import evaluate
from services.study_config.resolution import resolve_document

CARD: dict[str, Any] = {"method": {"name": "blockout"}, "distillation": {"target_macs": 0.5}}


def accuracy_of(arm: dict[str, Any]) -> float:
    document = {
        "schema_version": 2,
        "name": "card",
        "data": {"name": "digits", "train_samples": 300},
        "budget": {"trainings": 9},
        "arms": {"arm": arm},
    }
    experiment = replace(resolve_document(document, source="card").arms["arm"].experiment, seed=2)
    splits = load(experiment.data)
    run = Run(experiment, splits)
    for _ in run:
        pass
    assert run.outcome is not None
    return evaluate(run.outcome.model, Loader(splits.test(), 256)).accuracy


def test_the_snippet_of_the_card_trains_well_and_the_paper_s_recipe_does_not() -> None:
    assert accuracy_of(CARD) == pytest.approx(0.894, abs=0.04)
    assert accuracy_of({**CARD, "method": {"name": "blockout", "preset": "paper", "masked": "all"}}) < 0.8
