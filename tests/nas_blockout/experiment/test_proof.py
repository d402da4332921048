"""The proof in a derivation: against the memberships as they were thresholded, and against what is left of them."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Derivation, Experiment, Run, build, count_macs
from nas_blockout.experiment.derivation import derive
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.training import TrainingSettings

LEARNED = Experiment(
    data=DataSettings(train_samples=100, validation_samples=100),
    backbone=ConvNetSettings((6, 8), (10,)),
    method=replace(
        PAPER, clusters=4, masked="all", first_probability=0.35, last_probability=0.35, logit_noise=1.0, rescale=False
    ),
    training=TrainingSettings(epochs=4, batch_size=25),
    distillation=DistillationSettings(threshold=0.4),
    seed=3,
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(LEARNED.data)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"placebo": "nodes"},
        {"placebo": "classes"},
        {"placebo": "unbranched"},
        {"placebo": "random", "weights": "scratch", "target_macs": 0.3},
        {"target_macs": 0.2},
        {"target_macs": 0.2, "trim_by": "probability"},
        {"target_macs": 0.2, "fill_target": True},
        {"thresholds": (0.3, 0.4, 0.5), "trim_by": "probability", "target_macs": 0.3},
        {"min_group_size": 3},
        {"clean_up": False},
        {"clean_up": False, "min_group_size": 2, "target_macs": 0.3},
    ],
    ids=str,
)
def test_equality_is_proved_against_the_memberships_as_thresholded_too(
    splits: Splits, changes: dict[str, object]
) -> None:
    settings = DistillationSettings(**{"threshold": 0.4, **changes})  # type: ignore[arg-type]
    experiment = replace(LEARNED, distillation=settings)
    learned = _with_statistics(build(experiment, splits), splits)
    found, _ = derive(experiment, learned, splits, device="cpu")
    assert set(found.equality) == {"float64", "float32", "raw_float64", "raw_float32"}
    for entry in found.equality.values():
        assert entry["max_abs_difference"] <= entry["bound"]
        assert entry["spread"] > 1e-4, "networks that compute nothing are equal for nothing"
    assert Derivation.from_json(json.loads(json.dumps(found.to_json()))).equality == found.equality


def test_the_raw_memberships_are_those_of_the_threshold_and_the_hard_ones_are_less(splits: Splits) -> None:
    def derived(**changes: Any) -> Derivation:
        settings = DistillationSettings(threshold=0.6, **changes)
        experiment = replace(LEARNED, distillation=settings)
        return derive(experiment, _with_statistics(build(experiment, splits), splits), splits, device="cpu")[0]

    def spread(found: Derivation, precision: str) -> float:
        return found.equality[precision]["spread"]

    cleaned, exact, trimmed = derived(), derived(clean_up=False), derived(target_macs=0.1)
    assert any(group.constant for layer in exact.architecture.layers for group in layer.groups)
    assert not any(group.constant for layer in cleaned.architecture.layers for group in layer.groups)
    assert cleaned.gap["raw"] == exact.gap["raw"] == exact.gap["hard"] == trimmed.gap["raw"]
    raw = spread(exact, "float64")
    assert raw == spread(exact, "raw_float64") == spread(cleaned, "raw_float64") == spread(trimmed, "raw_float64")
    assert len({raw, spread(cleaned, "float64"), spread(trimmed, "float64")}) == 3, "three networks"


def test_a_network_with_constants_is_trained_and_resumed(splits: Splits) -> None:
    settings = replace(LEARNED.distillation, threshold=0.6, clean_up=False)
    experiment = replace(LEARNED, distillation=settings)
    straight = Run(experiment, splits)
    for _ in straight:
        pass
    interrupted = Run(experiment, splits)
    for _ in range(3):
        next(interrupted)
    resumed = Run(experiment, splits, start=interrupted.snapshot())
    for _ in resumed:
        pass
    assert straight.outcome is not None
    assert resumed.outcome is not None
    architecture = straight.outcome.architecture
    assert architecture is not None
    assert any(group.constant for layer in architecture.layers for group in layer.groups)
    assert resumed.outcome.architecture == architecture
    assert straight.outcome.macs == count_macs(straight.outcome.model, splits.validation.images[:1])
    for ours, theirs in zip(resumed.outcome.model.parameters(), straight.outcome.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert straight.records[-1].train_loss < straight.records[-2].train_loss, "it learns"


def _with_statistics(learned: nn.Module, splits: Splits) -> Blockout:
    """Train nothing, but let normalization see images under draws of the masks, and move every bias."""
    assert isinstance(learned, Blockout)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in learned.named_parameters():
            if "normalize.bias" in name:
                value.uniform_(-0.2, 0.5, generator=generator)
        learned.train()
        for _ in range(20):
            learned(splits.train.images[:100], generator)
    return learned.eval()


def test_a_record_from_before_the_proof_against_raw_memberships_is_read(splits: Splits) -> None:
    found, _ = derive(LEARNED, build(LEARNED, splits), splits, device="cpu")
    document = found.to_json()
    older = {
        **document,
        "gap": {name: value for name, value in found.gap.items() if name != "raw"},
        "equality": {name: {"max_abs_difference": 1e-15, "bound": 1e-10} for name in ("float64", "float32")},
    }
    assert set(Derivation.from_json(older).equality) == {"float64", "float32"}
