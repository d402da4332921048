"""One step of the optimizer: learning rate, loss, backward, update, with places for recipes and ranks to enter."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas_blockout.training.optimizers import set_learning_rate
from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import TrainableModel

BatchTransform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor, torch.Generator], Tensor]
Hook = Callable[[], None]


class DivergedError(RuntimeError):
    """The model failed while it computed its loss, and a parameter of it is infinite or not a number."""


class Step:
    """One step of the optimizer on a batch.

    Args:
        model: What is trained.
        optimizer: Made by `make_optimizer`; its learning rates are set anew for every step.
        settings: How to train.

    Attributes:
        loss: Gives the loss of a batch with gradient, a scalar; the model's own until something replaces it, such as a
            compiled form or one in which several ranks take part.
        transforms: Applied in order to images and labels before the loss, with the generator of the model's draws.
        after_backward: Called in order between the backward pass and the update, as to change gradients.
        after_step: Called in order after the update, as to average weights.
    """

    def __init__(self, model: TrainableModel, optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> None:
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.loss: LossFunction = model.loss
        self.transforms: list[BatchTransform] = []
        self.after_backward: list[Hook] = []
        self.after_step: list[Hook] = []

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator, *, done_epochs: float) -> Tensor:
        """Train on a batch and return its loss, a scalar without gradient on the device.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            y: Labels, shape ``(batch,)``.
            generator: Of all draws, on the device of `x`.
            done_epochs: Epochs trained so far, with the fraction of the one that is running.

        Raises:
            DivergedError: The model has diverged and failed for it, as from probabilities of NaN.
        """
        set_learning_rate(self.optimizer, self.settings, done_epochs)
        for transform in self.transforms:
            x, y = transform(x, y, generator)
        loss = self._loss(x, y, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for hook in self.after_backward:
            hook()
        self.optimizer.step()
        for hook in self.after_step:
            hook()
        return loss.detach()

    def _loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        try:
            return self.loss(x, y, generator)
        except (RuntimeError, ValueError) as error:
            if _finite(self.model):
                raise
            raise DivergedError(str(error)) from error


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
