"""The settings of a training, and what it is charged."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nas_blockout.batch_statistics import statistics_images, statistics_passes
from nas_blockout.settings_fields import Range, check

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]
Statistics = Literal["estimated", "running"]


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


def sample_passes(settings: TrainingSettings, images: int) -> int:
    """Return what a whole training on so many images is charged: its epochs, each with its estimate of statistics."""
    epochs = settings.epochs
    if settings.evaluation_statistics == "running":
        return epochs * images
    return sum(images + statistics_passes(min(images, statistics_images(epoch, epochs))) for epoch in range(epochs))
