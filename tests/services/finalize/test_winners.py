"""Latency as a finished study measures it: equal networks of a study come out equal."""

import copy
from typing import Any

import torch

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import rebuild
from services.analysis.latency import overlap
from services.finalize.winners import latencies, search_latencies
from services.study_config.resolution import parse, resolve
from services.study_config.resolved_study import Study
from services.trial_record import Trial


def study_of(**arms: Any) -> Study:
    document = {
        "schema_version": 2,
        "name": "equal",
        "data": {"name": "digits", "train_samples": 50},
        "backbone": {"name": "convnet", "channels": [8], "hidden": [16]},
        "budget": {"sample_passes": 500},
        "retrain": {"seeds": [0]},
        "arms": arms,
    }
    return resolve(parse(document, source="test"), source="test")


def data() -> Splits:
    return load(DataSettings(train_samples=50))


def test_the_same_network_of_two_arms_takes_the_same_time() -> None:
    study, splits = study_of(dense={}, dropout={"method": {"name": "dropout"}}), data()
    models = {name: rebuild(arm.experiment, None, splits).eval() for name, arm in study.arms.items()}
    models["twin"] = copy.deepcopy(models["dense"])
    found = latencies(models, splits)
    assert set(found) == {"dense", "dropout", "twin"}
    dense = found["dense"]
    assert dense.rounds is not None
    assert dense.rounds >= 7
    for other in (found["dropout"], found["twin"]):
        for one, spread in ((dense.batch_1_quartiles, other.batch_1_quartiles),
                            (dense.batch_256_quartiles, other.batch_256_quartiles)):  # fmt: skip
            assert one is not None
            assert spread is not None
            assert overlap(one, spread)
    assert torch.get_num_threads() >= 1


def test_search_trials_are_measured_together_where_latency_is_sought_and_equal_ones_once() -> None:
    sought = {"space": ["training"], "searcher": "tpe", "objectives": ["accuracy", "latency_ms"]}
    study, splits = study_of(fast=sought, plain={"space": ["training"]}), data()
    document = study.arms["fast"].experiment.to_json()
    trials = [
        Trial(arm, "search", number, number, state, score=0.5, experiment=document, result={"latency_ms": 9.0})
        for arm, number, state in (
            ("fast", 0, "complete"), ("fast", 1, "complete"), ("fast", 2, "failed"), ("plain", 0, "complete"),
        )
    ]  # fmt: skip
    found = search_latencies(study, trials, splits)
    assert set(found) == {("fast", "search", 0), ("fast", "search", 1)}
    assert found["fast", "search", 0] == found["fast", "search", 1]
    median, (low, high) = found["fast", "search", 0]
    assert 0 < low <= median <= high < 9
