"""What a training reads and what it leaves: sources of images, checkpoints, epoch records, evaluations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_blockout.training_protocol import TelemetryValue


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
    """The data that training may read: training and validation images, never the test images.

    Args:
        train: Training images.
        validation: Validation images.
        class_counts: Training images of each class; needed by mixup, CutMix and weights of classes.
    """

    train: Batches
    validation: Batches
    class_counts: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything needed to resume a training with the same numbers; holds references, so save it at once.

    Args:
        epochs_done: Epochs trained so far.
        sample_passes: What they were charged.
        seconds: Wall-clock of training and validation so far.
        model: State of the network that is evaluated: with a moving average of weights, the averaged one.
        optimizer: State of the optimizer.
        generator: State of the generator of the model's draws.
        trained: Where weights are averaged, those that are trained, and how many steps were averaged.
    """

    epochs_done: int
    sample_passes: int
    seconds: float
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    generator: Tensor
    trained: Mapping[str, Tensor] | None = None

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
