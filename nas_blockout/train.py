"""The training loop, a generator of epoch records that depends on no method, and the checkpoints it resumes from."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.batch_statistics import (
    estimate_statistics,
    normalizations,
    statistics_images,
    statistics_passes,
)
from nas_blockout.settings_fields import Range, check
from nas_blockout.training_protocol import TelemetryValue, TrainableLayer, TrainableModel, trainable

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]
Statistics = Literal["estimated", "running"]

CALIBRATION_IMAGES = 256
# Primes: the shuffling seeds of two runs, or of their samples, meet only if their seeds are that far apart.
_EPOCH_STRIDE = 1_000_003
_SAMPLE_STRIDE = 1_000_033


class Batches(Protocol):
    """A source of labeled images."""

    def __len__(self) -> int:
        """Return the number of images in one pass."""

    def batches(self, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images, labels)``: shuffled and augmented with a generator, in order and plain without one."""

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield batches of as many images, all if there are fewer, drawn at random, each at most once, plain."""


@dataclass(frozen=True, slots=True)
class Loaders:
    """The data that training may read: training and validation images, never the test images."""

    train: Batches
    validation: Batches


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Settings of training.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step; batch normalization needs at least 2.
        optimizer: ``sgd`` with Nesterov momentum, or ``adamw``.
        learning_rate: Peak learning rate.
        weight_decay: Decay of weights with two or more dimensions.
        momentum: Momentum of ``sgd``; unused by ``adamw``.
        schedule: ``cosine`` decays to zero over all steps; ``constant`` does not decay.
        warmup_epochs: Epochs over which the learning rate rises linearly from zero.
        evaluation_statistics: Statistics of batch normalization in evaluation: ``estimated`` after each epoch from
            training images, as the evaluated network computes them, or ``running``, as training gathered them under
            its masks, which scores another network than the one that is evaluated; for studies of version 1.
    """

    epochs: Annotated[int, Range(ge=1)] = 10
    batch_size: Annotated[int, Range(ge=2)] = 64
    optimizer: Optimizer = "adamw"
    learning_rate: Annotated[float, Range(gt=0)] = 2e-3
    weight_decay: Annotated[float, Range(ge=0)] = 1e-4
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9
    schedule: Schedule = "cosine"
    warmup_epochs: Annotated[float, Range(ge=0)] = 0.0
    evaluation_statistics: Statistics = "estimated"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything needed to resume a training with the same numbers; holds references, so save it at once."""

    epochs_done: int
    sample_passes: int
    seconds: float
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    generator: Tensor

    def to_state(self) -> dict[str, Any]:
        """Return a dictionary that `torch.save` writes and ``torch.load(weights_only=True)`` reads."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """The record of one epoch.

    Args:
        epoch: Number of the epoch, from 0.
        sample_passes: Images trained on so far, and a third of those from which statistics were estimated.
        seconds: Wall-clock of training and validation so far.
        learning_rate: Of the last step.
        train_loss: Mean over the epoch; None if it diverged.
        validation_loss: Mean cross-entropy after the epoch; None if the training diverged.
        validation_accuracy: Share in [0, 1] after the epoch; None if the training diverged.
        stage: Part of the experiment that the epoch belongs to.
        telemetry: Values that the model reports, by name.
        failure: Why training cannot go on, or None.
        checkpoint: Continues the training after this epoch; valid until the next record is requested.
    """

    epoch: int
    sample_passes: int
    seconds: float
    learning_rate: float
    train_loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    stage: str = "train"
    telemetry: Mapping[str, TelemetryValue] = field(default_factory=dict)
    failure: str | None = None
    checkpoint: Checkpoint | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types, without the checkpoint."""
        record = {name: getattr(self, name) for name in self.__slots__ if name != "checkpoint"}
        return record | {"telemetry": dict(self.telemetry)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross-entropy, accuracy in [0, 1], and the predicted class of every image, shape ``(images,)``."""

    loss: float
    accuracy: float
    predictions: Tensor = field(repr=False, compare=False)


def sample_passes(settings: TrainingSettings, images: int) -> int:
    """Return what a whole training on so many images is charged: its epochs, each with its estimate of statistics."""
    epochs = settings.epochs
    if settings.evaluation_statistics == "running":
        return epochs * images
    return sum(images + statistics_passes(min(images, statistics_images(epoch, epochs))) for epoch in range(epochs))


def fit(
    model: nn.Module,
    loaders: Loaders,
    settings: TrainingSettings,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    start: Checkpoint | None = None,
) -> Iterator[EpochRecord]:
    """Train a model and yield a record after every epoch.

    Args:
        model: Gives logits by ``model(x, generator)``. A `TrainableModel` has a loss and parameter groups of its own;
            every `TrainableLayer` in it is prepared for each epoch and reports after it.
        loaders: Training and validation images.
        settings: How to train.
        seed: Decides the order of the images, their augmentation and all draws of the model.
        device: Where to train.
        start: Continue after this checkpoint, with the numbers of a training that was never stopped.

    Yields:
        One record an epoch. The last one carries a `failure` if the loss became infinite or not a number.
    """
    model.to(device)
    learner = trainable(model)
    layers = [module for module in model.modules() if isinstance(module, TrainableLayer)]
    optimizer = _optimizer(learner, settings)
    generator = torch.Generator(device).manual_seed(seed)
    first, passes, seconds = 0, 0, 0.0
    if start is not None:
        first, passes, seconds = start.epochs_done, start.sample_passes, start.seconds
        model.load_state_dict(start.model)
        optimizer.load_state_dict(dict(start.optimizer))
        generator.set_state(start.generator.cpu())
    calibration_batch: Tensor | None = None  # read on first use: most models need none
    for epoch in range(first, settings.epochs):
        began = time.perf_counter()
        for layer in layers:
            layer.prepare_epoch(epoch, settings.epochs)
        if any(layer.needs_calibration for layer in layers):
            if calibration_batch is None:  # always the same images, also in a resumed run
                calibration_batch = torch.cat([*loaders.train.sample(CALIBRATION_IMAGES, _drawing(seed, 0))]).to(device)
            model.eval()
            with torch.no_grad():
                model(calibration_batch)
        order = torch.Generator().manual_seed(seed + _EPOCH_STRIDE * (epoch + 1))
        total, trained = _train_epoch(
            learner, optimizer, loaders.train, settings, epoch=epoch, order=order, generator=generator, device=device
        )
        passes += trained
        failure = None if math.isfinite(total) else f"the training loss became {total} in epoch {epoch}"
        checked = None
        if failure is None:
            passes += _fit_statistics(model, loaders.train, settings, seed=seed, epoch=epoch, device=device)
            checked = evaluate(model, loaders.validation, device=device)
            if not math.isfinite(checked.loss):
                failure, checked = f"the validation loss became {checked.loss} in epoch {epoch}", None
        seconds += time.perf_counter() - began
        yield EpochRecord(
            epoch=epoch,
            sample_passes=passes,
            seconds=seconds,
            learning_rate=optimizer.param_groups[0]["lr"],
            train_loss=None if failure else total / max(1, trained),
            validation_loss=checked.loss if checked else None,
            validation_accuracy=checked.accuracy if checked else None,
            telemetry={} if failure else {key: value for layer in layers for key, value in layer.telemetry().items()},
            failure=failure,
            checkpoint=Checkpoint(
                epoch + 1, passes, seconds, model.state_dict(), optimizer.state_dict(), generator.get_state()
            ),
        )
        if failure:
            return


@torch.no_grad()
def evaluate(model: nn.Module, loader: Batches, *, device: str | torch.device = "cpu") -> Evaluation:
    """Return loss, accuracy and predictions of a model in eval mode over one pass; its mode is left as it was."""
    was_training = model.training
    model.eval()
    losses, hits, predictions = 0.0, 0, []
    for x, y in loader.batches():
        logits, labels = model(x.to(device)), y.to(device)
        losses += float(F.cross_entropy(logits, labels, reduction="sum"))
        chosen = logits.argmax(1)
        hits += int((chosen == labels).sum())
        predictions.append(chosen.cpu())
    model.train(was_training)
    return Evaluation(losses / len(loader), hits / len(loader), torch.cat(predictions))


def _train_epoch(
    model: TrainableModel,
    optimizer: torch.optim.Optimizer,
    loader: Batches,
    settings: TrainingSettings,
    *,
    epoch: int,
    order: torch.Generator,
    generator: torch.Generator,
    device: str | torch.device,
) -> tuple[float, int]:
    """Train for one epoch; return the sum of the losses over its images, not finite if it diverged, and their number.

    Args:
        model: What is trained.
        optimizer: Its learning rates are set anew for every step.
        loader: Training images.
        settings: How to train.
        epoch: Number of the epoch, from 0.
        order: Of the images and their augmentation, on the CPU whatever the device.
        generator: Of the draws of the model, on the device.
        device: Where the model is.
    """
    steps = -(-len(loader) // settings.batch_size)
    total, trained = torch.zeros((), device=device), 0
    model.train()
    for step, (images, labels) in enumerate(loader.batches(order)):
        _set_learning_rate(optimizer, settings, epoch + step / steps)
        x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        try:
            loss = model.loss(x, y, generator)
        except (RuntimeError, ValueError):
            if all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
                raise
            return math.nan, trained + len(y)  # a diverged model may fail while it draws, as from probabilities of NaN
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(y)  # stays on the device: to read it would wait for every step
        trained += len(y)
    return float(total), trained


def _set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainingSettings, done_epochs: float) -> None:
    # The first step of a warmup has a rate just above 0, so that every rate of a training is positive.
    scale = min(1.0, (done_epochs + 1e-8) / settings.warmup_epochs) if settings.warmup_epochs else 1.0
    if settings.schedule == "cosine":
        scale *= 0.5 * (1 + math.cos(math.pi * done_epochs / settings.epochs))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * scale * group["lr_multiplier"]


def _optimizer(model: TrainableModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    groups = []
    for group in model.parameter_groups():
        parameters = [parameter for parameter in group["params"] if parameter.requires_grad]
        decay = settings.weight_decay if group["weight_decay"] else 0.0
        if parameters:
            scale = group["lr_multiplier"]
            groups.append({"params": parameters, "weight_decay": decay, "lr_multiplier": scale})
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True, fused=True)


def _fit_statistics(
    model: nn.Module,
    images: Batches,
    settings: TrainingSettings,
    *,
    seed: int,
    epoch: int,
    device: str | torch.device,
) -> int:
    """Estimate the statistics with which a model is evaluated after an epoch; return the sample passes that it costs.

    In training every batch is normalized by its own statistics, so what is written here changes no training step.
    """
    if settings.evaluation_statistics == "running" or not normalizations(model):
        return 0
    wanted = statistics_images(epoch, settings.epochs)
    sample = images.sample(wanted, _drawing(seed, epoch + 1))
    estimate_statistics(model, (batch.to(device) for batch in sample))
    return statistics_passes(min(wanted, len(images)))


def _drawing(seed: int, number: int) -> torch.Generator:
    """Return the generator that draws a sample of training images: the same in a resumed run."""
    return torch.Generator().manual_seed(seed + _SAMPLE_STRIDE * (number + 1))
