"""A supernet is trained, its most probable architecture is derived within its target, and trained on."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import Experiment, Run, dense_macs, unbuildable
from nas_blockout.methods import NoneSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.settings_fields import conflicts_in
from nas_blockout.structure.distill import DistillationSettings, Placebo, Weights
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings
from tests.nas_blockout.training.shared_trainings import Kept

DERIVED = DistillationSettings(target_macs=0.5, trim_by="probability")
SMALL = Experiment(
    data=DataSettings(train_samples=96, validation_samples=40),
    backbone=ConvNetSettings((6, 8), (12,), normalize_logits=True),
    method=DartsSettings(branches=2, shared=0.2),
    distillation=DERIVED,
    training=TrainingSettings(epochs=4, batch_size=16, learning_rate=0.01),
    seed=3,
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(SMALL.data)


def finished(experiment: Experiment, splits: Splits, **options: Any) -> Run:
    run = Run(experiment, splits, **options)
    for _ in run:
        pass
    return run


@pytest.mark.parametrize(
    "experiment",
    [
        SMALL,
        replace(SMALL, method=replace(SMALL.method, relaxation="gumbel", split_layers=2, weight_steps=2)),
        replace(SMALL, backbone=ResNetSettings(depth=8, width=0.25), distillation=replace(DERIVED, target_macs=0.7)),
    ],
    ids=["chain", "gumbel", "residual"],
)
def test_the_derived_network_is_a_fixed_hierarchy_within_its_target(experiment: Experiment, splits: Splits) -> None:
    run = finished(experiment, splits)
    assert [record.stage for record in run.records] == ["learn", "learn", "finetune", "finetune"]
    outcome = run.outcome
    assert outcome is not None
    assert outcome.derivation is not None
    assert experiment.distillation is not None
    assert outcome.macs <= experiment.distillation.target_macs * dense_macs(experiment, splits)
    architecture = outcome.derivation.architecture
    classes = architecture.layers[-1].groups
    assert sorted(label for group in classes for label in group.classes) == list(range(10))
    for entry in outcome.derivation.equality.values():
        assert entry["max_abs_difference"] <= entry["bound"] < entry["spread"]
    assert set(outcome.derivation.gap) == {"soft", "raw", "hard", "inherited"}
    probabilities = outcome.derivation.probabilities
    assert all(sorted(row) == [0, 1] for row in probabilities[architecture.layers[-1].name])


def test_sample_passes_are_those_of_a_plain_training(splits: Splits) -> None:
    found = finished(SMALL, splits)
    plain = finished(replace(SMALL, method=NoneSettings(), distillation=None, pruning=PruningSettings()), splits)
    assert found.records[-1].sample_passes == plain.records[-1].sample_passes


def test_images_of_the_architecture_are_training_images_that_no_weight_sees(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas_blockout.methods.supernet.darts import Darts

    seen: dict[str, list[Tensor]] = {"weights": [], "architecture": []}
    loss = Darts.loss
    monkeypatch.setattr(Darts, "loss", lambda self, x, y, g: (seen[self.turn].append(x), loss(self, x, y, g))[1])
    finished(replace(SMALL, distillation=None, training=replace(SMALL.training, epochs=2)), splits)
    weights, architecture = ({row.numpy().tobytes() for row in torch.cat(seen[turn])} for turn in seen)
    every = {row.numpy().tobytes() for row in splits.train.images}
    assert weights.isdisjoint(architecture)
    assert weights | architecture == every
    assert (len(weights), len(architecture)) == (48, 48)


def test_a_run_is_reproducible_and_another_seed_holds_other_images(splits: Splits) -> None:
    first, again, other = (finished(replace(SMALL, seed=seed), splits) for seed in (3, 3, 4))
    assert first.outcome is not None
    assert again.outcome is not None
    assert first.outcome.derivation is not None
    assert again.outcome.derivation is not None
    assert first.outcome.derivation.probabilities == again.outcome.derivation.probabilities
    for one, two in zip(*(run.outcome.model.parameters() for run in (first, again)), strict=True):
        assert torch.equal(one, two)
    assert first.records[0].train_loss != other.records[0].train_loss


def test_what_is_resumed_after_the_last_epoch_of_the_search_derives_the_same(splits: Splits) -> None:
    kept = Kept()
    straight = finished(SMALL, splits, saving=kept.saving)
    run = Run(SMALL, splits)
    next(run)
    next(run)
    kept.take(run.snapshot())
    resumed = finished(SMALL, splits, start=kept.at(-1))
    assert resumed.outcome is not None
    assert straight.outcome is not None
    assert resumed.outcome.derivation is not None
    assert straight.outcome.derivation is not None
    assert resumed.outcome.derivation.probabilities == straight.outcome.derivation.probabilities
    assert resumed.records[-1].validation_loss == straight.records[-1].validation_loss


@pytest.mark.parametrize(
    ("placebo", "weights"), [("classes", "inherited"), ("random", "scratch"), ("unbranched", "inherited")]
)
def test_placebos_and_ablations_are_derived_from_it(placebo: Placebo, weights: Weights, splits: Splits) -> None:
    settings = replace(DERIVED, placebo=placebo, weights=weights, target_macs=0.6)
    outcome = finished(replace(SMALL, distillation=settings), splits).outcome
    assert outcome is not None
    assert outcome.macs <= 0.6 * dense_macs(SMALL, splits)


def test_without_derivation_the_mixture_is_folded(splits: Splits) -> None:
    run = finished(replace(SMALL, distillation=None), splits)
    assert run.outcome is not None
    assert run.outcome.macs == dense_macs(SMALL, splits)
    (x, y), *_ = Loader(splits.validation, 100).batches()
    right = (run.outcome.model(x).argmax(1) == y).float().mean()
    assert float(right) == pytest.approx(run.records[-1].validation_accuracy, abs=1e-6)


def test_it_is_not_pruned() -> None:
    with pytest.raises(ValueError, match="leave out the architecture and the method darts") as caught:
        replace(SMALL, distillation=None, pruning=PruningSettings())
    assert conflicts_in(caught.value)[0].keys[0] == "pruning"


def test_an_architecture_is_not_given(splits: Splits) -> None:
    architecture = finished(SMALL, splits).outcome.architecture
    with pytest.raises(ValueError, match="the method darts learns its own architecture"):
        replace(SMALL, architecture=architecture, distillation=None)


UNBUILDABLE: list[tuple[dict[str, Any], str, str]] = [
    ({"branches": 11}, "branches must lie in 2..10", "method.branches"),
    ({"split_layers": 4}, "split_layers must lie in 1..3", "method.split_layers"),
    ({"widths": (0.9, 1.0)}, "with the smallest of method.widths, all layers still cost", "distillation.target_macs"),
]


@pytest.mark.parametrize(("settings", "rule", "key"), UNBUILDABLE)
def test_what_cannot_be_built_or_derived_is_said_before_training(
    settings: dict[str, Any], rule: str, key: str, splits: Splits
) -> None:
    experiment = replace(SMALL, method=replace(SMALL.method, **settings))
    (found,) = unbuildable(experiment, shape=splits.shape, classes=10)
    assert rule in str(found)
    assert found.keys[0] == key
    with pytest.raises(ValueError, match=rule):
        Run(experiment, splits).__next__()


def test_too_few_batches_are_an_error_before_the_first_step(splits: Splits) -> None:
    experiment = replace(SMALL, training=replace(SMALL.training, batch_size=96))
    with pytest.raises(ValueError, match="an epoch needs 2 batches or more"):
        next(Run(experiment, splits))
