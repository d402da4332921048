"""What the settings of a training add to its steps: the criterion, mixed images, averaged weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nas_blockout.training.recipes.criterion import criterion_of, require_counts
from nas_blockout.training.recipes.mixing import Mixing
from nas_blockout.training.recipes.weight_averaging import WeightAverage
from nas_blockout.training.step import Step
from nas_blockout.training.training_settings import TrainingSettings


class Recipes:
    """Adds to the steps of a training what its settings ask for, and nothing where they ask for nothing.

    Args:
        step: Of the model, which is on its device.
        settings: How to train.
        class_counts: Training images of each class, if they are known.
        seed: Of the training.
        device: Where the model is.

    Raises:
        ValueError: The settings need the images of each class, which are not known.
    """

    def __init__(
        self,
        step: Step,
        settings: TrainingSettings,
        class_counts: Sequence[int] | None,
        *,
        seed: int,
        device: str | torch.device,
    ) -> None:
        if (criterion := criterion_of(settings, class_counts, device=device)) is not None:
            step.model.criterion = criterion
        self._mixing: Mixing | None = None
        if settings.mixup or settings.cutmix:
            classes = len(require_counts(class_counts, "mixup" if settings.mixup else "cutmix"))
            self._mixing = Mixing(settings, classes, seed=seed)
            step.transforms.append(self._mixing)
        self._average: WeightAverage | None = None
        if settings.ema is not None:
            self._average = WeightAverage(step.model, settings.ema)
            step.after_step.append(self._average.update)

    def begin(self, epoch: int, batch: int = 0) -> None:
        """Make ready for an epoch, or to go on with a batch of it: the network has the weights that are trained."""
        if self._mixing is not None:
            self._mixing.begin(epoch, batch)
        if self._average is not None and self._average.in_use:
            self._average.exchange()

    def end(self) -> None:
        """End an epoch: the network has the weights that are evaluated."""
        if self._average is not None:
            self._average.exchange()

    def trained(self) -> Mapping[str, Tensor] | None:
        """Return what continues the training beside the evaluated network; None if nothing does."""
        return None if self._average is None else self._average.state()

    def load(self, trained: Mapping[str, Tensor] | None) -> None:
        """Read back what `trained` returned, once the network has its state of the same moment."""
        if self._average is not None:
            assert trained is not None, "the checkpoint is of a training with the same settings"
            self._average.load(trained)
