"""What a training reads and what it leaves: sources of images, checkpoints, epoch records, evaluations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_blockout.training_protocol import TelemetryValue


class Batches(Protocol):
    """A source of labeled images."""

    def __len__(self) -> int:
        """Return the number of images in one pass."""

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images, labels)``: shuffled and augmented with a generator, in order and plain without one.

        Args:
            generator: On the processor; what is yielded depends on its state alone.
            first: Number of the batch to begin with, as a training does that goes on inside an epoch.
        """

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
class EpochProgress:
    """What a training has come to inside an epoch, between two steps of its optimizer.

    Args:
        batches: Trained on so far.
        images: Those of these batches.
        losses: Sum of the losses of their images, of each rank the part that it has computed.
        layers: Of each rank what its layers have noted, see `TrainableLayer.epoch_state`.
    """

    batches: int
    images: int
    losses: Sequence[float]
    layers: Sequence[Sequence[Any]]

    def part_of(self, rank: int, size: int) -> tuple[float, list[list[Any]]]:
        """Return what a rank goes on with: its sum of losses, and for each layer what was noted.

        It is what the rank had itself; if there are more or fewer ranks than there were, the first takes it all.

        Args:
            rank: Number of the rank.
            size: Number of ranks.
        """
        if size == len(self.losses):
            return self.losses[rank], [[state] for state in self.layers[rank]]
        if rank:
            return 0.0, [[] for _ in self.layers[0]]
        return sum(self.losses), [list(states) for states in zip(*self.layers, strict=True)]

    def to_state(self) -> dict[str, Any]:
        """Return a dictionary of plain types and tensors."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything needed to resume a training with the same numbers; holds references, so save it at once.

    Args:
        epochs_done: Epochs trained so far.
        sample_passes: What they were charged.
        seconds: Wall-clock of training and validation so far.
        model: State of the network that is evaluated: with a moving average of weights, the averaged one. Inside an
            epoch that of the network that is trained.
        optimizer: State of the optimizer.
        generator: State of the generator of the model's draws.
        trained: Where weights are averaged, those that are trained, and how many steps were averaged. Inside an epoch
            the averaged ones.
        progress: In the epoch that comes after `epochs_done`; None between epochs.
    """

    epochs_done: int
    sample_passes: int
    seconds: float
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    generator: Tensor
    trained: Mapping[str, Tensor] | None = None
    progress: EpochProgress | None = None

    def to_state(self) -> dict[str, Any]:
        """Return a dictionary that `torch.save` writes and ``torch.load(weights_only=True)`` reads."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return state | {"progress": self.progress.to_state() if self.progress else None}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Checkpoint":
        """Read a checkpoint back from what `to_state` returned; it may be of an older version."""
        progress = state.get("progress")
        return cls(**{**state, "progress": EpochProgress(**progress) if progress else None})


@dataclass(frozen=True, slots=True)
class Saving:
    """Checkpoints inside epochs, between two steps of the optimizer.

    Args:
        due: Returns whether to make one now; asked after every step, by several ranks after every few dozen.
        save: Takes one, which holds references to tensors that the next step changes.
    """

    due: Callable[[], bool]
    save: Callable[[Checkpoint], None]


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
        validation_balanced_accuracy: Mean of the accuracies of the classes; None if the training diverged.
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
    validation_balanced_accuracy: float | None = None
    telemetry: Mapping[str, TelemetryValue] = field(default_factory=dict)
    failure: str | None = None
    checkpoint: Checkpoint | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types, without the checkpoint."""
        record = {name: getattr(self, name) for name in self.__slots__ if name != "checkpoint"}
        return record | {"telemetry": dict(self.telemetry)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model does on a split.

    Args:
        loss: Mean cross-entropy.
        accuracy: Share of the images, [0, 1].
        predictions: The predicted class of every image, shape ``(images,)``.
        balanced_accuracy: Mean over the classes of the share of their images that are right, [0, 1].
    """

    loss: float
    accuracy: float
    predictions: Tensor = field(repr=False, compare=False)
    balanced_accuracy: float
