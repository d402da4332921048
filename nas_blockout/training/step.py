"""One step of the optimizer: learning rate, loss, backward, update, with places for recipes and ranks to enter."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas_blockout.randomness.draws import Randomness
from nas_blockout.training.optimizers import set_learning_rate
from nas_blockout.training.precision import CompiledLoss, autocast
from nas_blockout.training.rank_errors import RanksEndedError
from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import TrainableLayer, TrainableModel

BatchTransform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # with gradient, in the precision of the settings
Hook = Callable[[], None]


class DivergedError(RuntimeError):
    """The model failed while it computed its loss, and a parameter of it is infinite or not a number."""


class Step:
    """One step of the optimizer on a batch.

    Args:
        model: What is trained.
        optimizer: Made by `make_optimizer`; its learning rates are set anew for every step.
        settings: How to train.
        device: Where the model is.

    Attributes:
        loss: Gives the loss of a batch with gradient, a scalar: the model's own in the precision of the settings, or
            its compiled form, until something replaces it, such as one in which several ranks take part.
        transforms: Applied in order to images and labels before the loss, with the generator of the model's draws.
        after_backward: Called in order between the backward pass and the update, as to change gradients.
        after_step: Called in order after the update, as to average weights.
    """

    def __init__(
        self,
        model: TrainableModel,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.device = torch.device(device)
        self.loss: LossFunction = self._own_loss
        self._compiled: CompiledLoss | None = None
        if settings.compile:
            self.loss = self._compiled = CompiledLoss(model, self.device, settings.precision)
        self._told = [
            layer
            for layer in model.modules()
            if isinstance(layer, TrainableLayer) and type(layer).after_batch is not TrainableLayer.after_batch
        ]
        self.transforms: list[BatchTransform] = []
        self.after_backward: list[Hook] = []
        self.after_step: list[Hook] = []
        self._batches = self._images = 0  # since the last update

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator, *, done_epochs: float) -> Tensor:
        """Train on a batch and return its loss, a scalar without gradient on the device.

        With accumulation the weights change after so many batches; call `update` after the last batch of an epoch.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            y: Labels, shape ``(batch,)``.
            generator: Of all draws, on the device of `x`.
            done_epochs: Epochs trained so far, with the fraction of the one that is running.

        Raises:
            DivergedError: The model has diverged and failed for it, as from probabilities of NaN.
        """
        if not self._batches:
            set_learning_rate(self.optimizer, self.settings, done_epochs)
            self.optimizer.zero_grad(set_to_none=True)
        images = len(y)  # of the whole batch: a transform may leave one rank's rows
        for transform in self.transforms:
            x, y = transform(x, y, generator)
        loss = self._loss(x, y, generator)
        accumulates = self.settings.accumulation > 1
        (loss * (images / self.settings.batch_size) if accumulates else loss).backward()
        for layer in self._told:
            layer.after_batch()
        self._batches += 1
        self._images += images
        if self._batches == self.settings.accumulation:
            self.update()
        return loss.detach()

    @property
    def accumulates(self) -> bool:
        """Whether there are gradients of batches by which the weights were not changed yet."""
        return self._batches > 0

    def update(self) -> None:
        """Change the weights by the gradients of the batches since the last update; nothing if there are none."""
        if not self._batches:
            return
        if self.settings.accumulation > 1:  # the mean over all images of these batches, of which the last may be small
            gradients = [each.grad for group in self.optimizer.param_groups for each in group["params"]]
            torch._foreach_mul_(
                [gradient for gradient in gradients if gradient is not None], self.settings.batch_size / self._images
            )
        self._batches = self._images = 0
        for hook in self.after_backward:
            hook()
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        for hook in self.after_step:
            hook()

    def begin_epoch(self) -> None:
        """Make ready for an epoch, once the layers are prepared for it."""
        if self._compiled is not None:
            self._compiled.forget()

    def _own_loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        with autocast(self.settings.precision, self.device):
            return self.model.loss(x, y, generator)

    def _loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        try:
            return self.loss(x, y, generator)
        except (DivergedError, RanksEndedError):  # of another rank
            raise
        except (RuntimeError, ValueError) as error:
            if _finite(self.model):
                raise
            raise DivergedError(str(error)) from error


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
