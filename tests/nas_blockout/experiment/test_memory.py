"""What a run no longer needs is freed: the network and the optimizer of its first stage, and what it started from."""

import gc
import io
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_blockout.data import Splits, load
from nas_blockout.experiment import Experiment, Run, Snapshot
from nas_blockout.methods.blockout import Blockout

EPOCHS, HALF = 6, 3
DOCUMENT: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "method": {"name": "blockout", "clusters": 2, "masked": "all"},
    "training": {"epochs": EPOCHS, "batch_size": 16},
}


def experiment(**distillation: Any) -> Experiment:
    return Experiment.from_json({**DOCUMENT, "distillation": {"learn_fraction": 0.5, **distillation}})


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(experiment().data)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [each for part in parts for each in tensors(part)]


def learning_networks() -> int:
    gc.collect()
    return sum(isinstance(each, Blockout) for each in gc.get_objects())


@pytest.mark.parametrize("weight", [0.0, 0.5], ids=["alone", "with a teacher"])
def test_the_first_stage_is_freed_in_the_second(splits: Splits, weight: float) -> None:
    before, run = learning_networks(), Run(experiment(soft_target_weight=weight), splits)
    for _ in range(HALF):
        assert next(run).stage == "learn"
    assert learning_networks() == before + 1
    checkpoint = run.snapshot().checkpoint
    held = [weakref.ref(each) for each in (*tensors(dict(checkpoint.model)), *tensors(checkpoint.optimizer["state"]))]
    del checkpoint
    assert len(held) > 20
    assert all(reference() is not None for reference in held)
    assert next(run).stage == "finetune"
    assert learning_networks() == before
    assert not any(reference() is not None for reference in held)


@pytest.mark.parametrize("epochs", [1, HALF, HALF + 1], ids=["first stage", "between", "second stage"])
def test_a_run_drops_the_snapshot_that_it_started_from(splits: Splits, epochs: int) -> None:
    run, file = Run(experiment(), splits), io.BytesIO()
    for _ in range(epochs):
        next(run)
    torch.save(run.snapshot().to_state(), file)
    file.seek(0)
    snapshot = Snapshot.from_state(torch.load(file, weights_only=True))
    held = [weakref.ref(each) for each in tensors(dict(snapshot.checkpoint.model))]
    resumed = Run(experiment(), splits, start=snapshot)
    del snapshot
    assert all(reference() is not None for reference in held)
    next(resumed)
    gc.collect()
    assert not any(reference() is not None for reference in held)
    assert len([*resumed]) == EPOCHS - epochs - 1
    assert resumed.outcome is not None


def test_only_the_latest_record_of_a_run_holds_a_checkpoint(splits: Splits) -> None:
    run = Run(experiment(), splits)
    for number, _ in enumerate(run):
        assert [record.checkpoint is not None for record in run.records] == [False] * number + [True]
