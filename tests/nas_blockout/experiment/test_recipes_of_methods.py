"""Every method with every recipe of training: it works and changes the training, or it is refused; none is ignored."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import Experiment, Run, Snapshot, build
from nas_blockout.experiment.knowledge_distillation import StudentWithTeacher
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.settings_fields import Conflict
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import EpochRecord, TrainingSettings, evaluate, sample_passes
from nas_blockout.training.recipes.criterion import CrossEntropy
from nas_blockout.training_protocol import TrainableModel, trainable

IMAGES = 40
DATA = DataSettings(train_samples=IMAGES, validation_samples=40)
PLAIN = Experiment(
    data=DATA,
    backbone=ConvNetSettings((4,), (6,)),
    training=TrainingSettings(epochs=2, batch_size=10, learning_rate=0.01),
)


def blockdrop(**settings: Any) -> Experiment:
    method = BlockDropSettings(**{"pretrain_fraction": 0.0, "policy_fraction": 0.0, **settings})
    return replace(PLAIN, backbone=ResNetSettings(depth=8, width=0.25), method=method)


def blockout(**settings: Any) -> Experiment:
    return replace(PLAIN, method=BlockoutSettings(clusters=2, masked="all", **settings))


LEARNING = {
    "blockdrop, reinforce": blockdrop(),
    "blockdrop, gumbel": blockdrop(estimator="gumbel"),
    "blockdrop, straight-through": blockdrop(estimator="straight-through"),
    "blockdrop, one path": blockdrop(policy="static"),
}
METHOD_ROWS: dict[str, Experiment] = {
    **{
        name: replace(PLAIN, method=method.settings())
        for name, method in METHODS.items()
        if name not in ("blockout", "blockdrop")
    },
    "blockout": blockout(),
    "blockout, arm": blockout(estimator="arm"),
    "blockout, charged": blockout(cost_penalty=1.0, cost_target=0.3),
    **LEARNING,
    "blockdrop, first blocks": blockdrop(policy="first"),
    "distillation": replace(blockout(), distillation=DistillationSettings(threshold=0.1)),
    "knowledge distillation": replace(
        blockout(), distillation=DistillationSettings(threshold=0.1, soft_target_weight=0.5)
    ),
    "pruning": replace(PLAIN, pruning=PruningSettings(target_macs=0.8)),
    "confusion": replace(PLAIN, confusion=ConfusionSettings()),
}
RECIPES: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.2},
    "mixup": {"mixup": 0.5},
    "cutmix": {"cutmix": 1.0},
    "class_weights": {"class_weights": "balanced"},
    "sampling": {"sampling": "balanced"},
    "gradient_clip": {"gradient_clip": 0.01},
    "accumulation": {"accumulation": 3},
    "ema": {"ema": 0.7},
    "step": {"schedule": "step"},
    "linear": {"schedule": "linear"},
    "one-cycle": {"schedule": "one-cycle"},
    "no_decay": {"no_decay": ()},
}
AUGMENTATIONS = ("randaugment", "shift-trivialaugment", "random-erasing")
MIXING = ("mixup", "cutmix")
# The rows that have a loss of their own, or none but the criterion; the others train like one of these.
LOSSES = (
    *("none", "dropcluster", "blockout", "blockout, arm", "blockdrop, reinforce", "blockdrop, gumbel"),
    *("blockdrop, first blocks", "knowledge distillation"),
)
TOGETHER = ("label_smoothing", "class_weights", "gradient_clip", "accumulation", "ema", "one-cycle")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return unequal()


@cache
def unequal() -> Splits:
    """Digits of which class 0 is rare, so that balancing the classes changes something."""
    splits = load(DATA)
    rare = (splits.train.labels != 0).nonzero().flatten()
    kept = torch.cat(((splits.train.labels == 0).nonzero().flatten()[:2], rare)).sort().values
    splits.train = splits.train.at(kept)
    return splits


def with_recipe(experiment: Experiment, *recipes: str, **others: Any) -> Experiment:
    values = {key: value for recipe in recipes for key, value in RECIPES[recipe].items()}
    return replace(experiment, training=replace(experiment.training, **{**values, **others}))


def finished(experiment: Experiment, start: Snapshot | None = None) -> Run:
    run = Run(experiment, unequal(), start=start)
    for _ in run:
        pass
    assert run.failure is None
    assert run.outcome is not None
    return run


def timeless(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0, checkpoint=None, telemetry=counted(record)) for record in records]


def counted(record: EpochRecord) -> dict[str, Any]:
    """Telemetry without what a method measures of its own time."""
    return {name: value for name, value in record.telemetry.items() if "clustering" not in name}


@cache
def plain(method: str) -> list[EpochRecord]:
    return timeless(finished(with_recipe(METHOD_ROWS[method], weight_decay=0.5)).records)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", LOSSES)
def test_a_recipe_changes_the_training_or_is_refused(method: str, recipe: str) -> None:
    experiment = METHOD_ROWS[method]
    if method in LEARNING and recipe in MIXING:
        return  # refused: see below
    found = timeless(finished(with_recipe(experiment, recipe, weight_decay=0.5)).records)
    assert found != plain(method)
    assert [record.sample_passes for record in found] == [record.sample_passes for record in plain(method)]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("method", ["none", "blockout", "blockdrop, reinforce", "knowledge distillation"])
def test_an_augmentation_changes_the_training(method: str, augment: str) -> None:
    experiment = with_recipe(METHOD_ROWS[method], weight_decay=0.5)
    found = timeless(finished(replace(experiment, data=replace(DATA, augment=augment))).records)
    assert found != plain(method)
    assert [record.sample_passes for record in found] == [record.sample_passes for record in plain(method)]


@pytest.mark.parametrize("method", METHOD_ROWS)
def test_with_all_recipes_at_once_a_resumed_run_is_the_uninterrupted_one(method: str, splits: Splits) -> None:
    recipes = [*TOGETHER, *(() if method in LEARNING else MIXING)]
    experiment = with_recipe(METHOD_ROWS[method], *recipes, epochs=4, warmup_epochs=1.0)
    experiment = replace(experiment, data=replace(DATA, augment="shift-trivialaugment-random-erasing"))
    whole = finished(experiment)
    assert whole.outcome is not None
    for stop_after in (1, 3):  # with a derivation, in either of its stages
        part = Run(experiment, splits)
        for _ in range(stop_after):
            next(part)
        resumed = finished(experiment, part.snapshot())
        assert timeless(resumed.records) == timeless(whole.records)
        assert resumed.outcome is not None
        for name, value in whole.outcome.model.state_dict().items():
            assert torch.equal(value, resumed.outcome.model.state_dict()[name]), name
    stages = [2, 2] if experiment.derivation else [4]
    trained = len(splits.train)
    expected = sum(sample_passes(replace(experiment.training, epochs=epochs), trained) for epochs in stages)
    backbone_has_norms = any("running_mean" in name for name in whole.outcome.model.state_dict())
    assert whole.records[-1].sample_passes == (expected if backbone_has_norms else 4 * trained)


@pytest.mark.parametrize("recipe", MIXING)
@pytest.mark.parametrize("method", LEARNING)
def test_a_policy_that_learns_refuses_mixed_images(method: str, recipe: str) -> None:
    rule = f"training.{recipe}: must be 0 where a policy of blockdrop learns, .*; leave it out or take a policy"
    with pytest.raises(Conflict, match=rule):
        with_recipe(METHOD_ROWS[method], recipe)


@pytest.mark.parametrize("method", METHOD_ROWS)
def test_what_is_left_of_a_run_is_the_averaged_network(method: str, splits: Splits) -> None:
    run = Run(with_recipe(METHOD_ROWS[method], "ema"), splits)
    for _ in run:
        checkpoint = run.snapshot().checkpoint
    assert run.outcome is not None
    checked = evaluate(run.outcome.model, Loader(splits.validation, 512))
    assert checked.accuracy == run.records[-1].validation_accuracy
    assert checked.loss == pytest.approx(run.records[-1].validation_loss, rel=1e-5)
    assert checkpoint.trained is not None
    averaged = checkpoint.model  # a network without hooks of its own is trained in a wrapper, under longer names
    trained = {name if name in averaged else name.removeprefix("network."): v for name, v in checkpoint.trained.items()}
    changed = [name for name, value in averaged.items() if name in trained and not torch.equal(value, trained[name])]
    weights = [name for name in trained if name.endswith("weight")]
    assert set(weights) & set(changed)
    if method.startswith("blockout"):
        assert any("logits" in name for name in changed), "the memberships are averaged too"


@dataclass
class Recorded:
    """A criterion that keeps what it was given."""

    criterion: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        self.values: list[Tensor] = []
        self.given: list[tuple[Tensor, Tensor]] = []

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        self.given.append((logits.detach(), target))
        self.values.append(self.criterion(logits, target))
        return self.values[-1]


SMOOTH = CrossEntropy(0.3, torch.linspace(0.5, 2.0, 10))


def loss_of(model: TrainableModel, splits: Splits, criterion: CrossEntropy) -> tuple[float, Recorded]:
    recorded = Recorded(criterion)
    model.criterion = recorded
    x, y = next(Loader(splits.train, 20).batches())
    loss = model.train().loss(x, y, torch.Generator().manual_seed(7))
    return float(loss.detach()), recorded


@pytest.mark.parametrize("method", [name for name in METHOD_ROWS if name != "knowledge distillation"])
def test_the_loss_of_a_method_takes_the_error_of_its_logits_from_the_criterion(method: str, splits: Splits) -> None:
    """Under the same draws the loss differs by what the two criteria say of the same logits."""
    found = {}
    for criterion in (CrossEntropy(), SMOOTH):
        model = trainable(build(METHOD_ROWS[method], splits))
        model.prepare_epoch(1, 2)
        found[criterion] = loss_of(model, splits, criterion)
    (plain_loss, first), (smooth_loss, second) = found.values()
    assert torch.equal(first.given[0][0], second.given[0][0])
    assert smooth_loss - plain_loss == pytest.approx((second.values[0] - first.values[0]).item(), abs=1e-4)
    assert abs(smooth_loss - plain_loss) > 1e-3
    assert first.values[0].requires_grad


def test_a_student_takes_the_error_of_labels_from_the_criterion(splits: Splits) -> None:
    found = {}
    for criterion in (CrossEntropy(), SMOOTH):
        student, teacher = build(PLAIN, splits), build(replace(PLAIN, seed=1), splits)
        found[criterion] = loss_of(StudentWithTeacher(student, teacher, weight=0.3, temperature=2.0), splits, criterion)
    (plain_loss, first), (smooth_loss, second) = found.values()
    assert smooth_loss - plain_loss == pytest.approx(0.7 * (second.values[0] - first.values[0]).item(), abs=1e-5)


def test_a_pattern_of_no_decay_that_fits_nothing_is_refused_when_the_network_is_built(splits: Splits) -> None:
    with pytest.raises(Conflict, match=r"training\.no_decay: every pattern must fit a parameter"):
        build(with_recipe(PLAIN, no_decay=("haed.*",)), splits)
