"""What the training loop asks of a model, as two base classes whose defaults are those of a plain network.

A layer that needs to know of epochs, or has something to report, is a `TrainableLayer`; a model with a loss or learning
rates of its own is a `TrainableModel`. Any other `torch.nn.Module` is trained too: `trainable` adapts it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.randomness.draws import Randomness

TelemetryValue = float | list[float]
Criterion = Callable[[Tensor, Tensor], Tensor]


class ParameterGroup(TypedDict):
    """Parameters that are trained alike.

    Args:
        params: The parameters; those that require no gradient are left out by the training loop.
        lr_multiplier: Their learning rate in units of the training's, 0 or more.
        weight_decay: Whether they decay as the training settings say; False for not at all.
        norms_and_biases: Whether they do not decay for this reason alone, which the settings may decide otherwise.
    """

    params: list[nn.Parameter]
    lr_multiplier: float
    weight_decay: bool
    norms_and_biases: NotRequired[bool]


class TrainableLayer(nn.Module):
    """A module that the training loop calls between epochs, wherever in a model it is.

    Attributes:
        needs_calibration: Whether the module must see a batch of training images before the epoch. If it is true of
            any module once all are prepared, the model is run on such a batch in eval mode without gradient; the
            module sets it back in its forward pass.
    """

    needs_calibration: bool = False

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Adapt to an epoch before it begins; by default nothing changes.

        A training that goes on inside an epoch calls it too, and gives parameters and buffers back afterwards.

        Args:
            epoch: Number of the epoch, from 0.
            epochs: How many there are in all.
        """

    def know(self, seen: nn.Module) -> None:
        """Take over what a copy has learned of its inputs' shapes in a step that was not computed; by default nothing.

        Args:
            seen: The copy, of the same type.
        """

    def after_batch(self) -> None:
        """Take note of a batch that was trained on; by default nothing. Not part of what is compiled."""

    def epoch_state(self) -> Any:
        """Return what was noted of an epoch so far and is neither parameter nor buffer; by default nothing.

        Returns:
            Plain types and tensors.
        """
        return None

    def load_epoch_state(self, states: Sequence[Any]) -> None:
        """Go on inside an epoch that the module was prepared for; by default there is nothing to go on with.

        Args:
            states: What `epoch_state` returned, of each process whose part this one goes on with; may be empty.
        """

    def gather_counts(self, gather: Callable[[Any], list[Any]]) -> None:
        """Put together what was counted in an epoch by processes that share its batches; by default nothing is.

        Args:
            gather: Takes what this process has counted, of plain types and tensors on the processor, and returns what
                each has counted, in one order everywhere; all processes call it.
        """

    def telemetry(self) -> dict[str, TelemetryValue]:
        """Return what to record after an epoch, under names that no other module uses; by default nothing."""
        return {}


class TrainableModel(TrainableLayer):
    """A model, called as ``model(x, generator)``, that gives logits.

    Attributes:
        criterion: The mean error of logits, shape ``(batch, classes)``, against labels, shape ``(batch,)``, or
            probabilities of classes, shape ``(batch, classes)``. The training loop sets it where the training asks for
            smoothed labels or weighted classes, so a loss of its own must compute the error of its logits with it.
    """

    criterion: Criterion = staticmethod(F.cross_entropy)

    def loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Return the loss of a training batch, a scalar with gradient; by default that of the criterion.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            y: Labels, shape ``(batch,)``; of mixed images the probability of each class, ``(batch, classes)``.
            generator: Of all draws, on the device of `x`; in a compiled step, numbers that were drawn before it.
        """
        return self.criterion(self(x, generator), y)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters by how they are trained; by default only those of two or more dimensions decay."""
        return plain_groups(self)


class PlainModel(TrainableModel):
    """Any network as a `TrainableModel`: what it computes, with the defaults for all else.

    Args:
        network: Called as ``network(x, generator)``; gives logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return the logits of the network, shape ``(batch, classes)``."""
        logits: Tensor = self.network(x, generator)
        return logits


def trainable(model: nn.Module) -> TrainableModel:
    """Return a model as the training loop needs it: itself, or wrapped where it is a plain network.

    Names of parameters differ in a wrapped one, so checkpoints are made of `model` itself.
    """
    return model if isinstance(model, TrainableModel) else PlainModel(model)


def plain_groups(network: nn.Module) -> list[ParameterGroup]:
    """Return the weights of a network, which decay, and its biases and normalization parameters, which do not."""
    parameters = list(network.parameters())
    small = [p for p in parameters if p.dim() <= 1]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "lr_multiplier": 1.0, "weight_decay": True},
        {"params": small, "lr_multiplier": 1.0, "weight_decay": False, "norms_and_biases": True},
    ]


def is_held_batch(number: int, every: int, accumulation: int = 1) -> bool:
    """Return whether a batch of an epoch is of the images that are held for the architecture parameters of a supernet.

    Args:
        number: Of the batch, from 0.
        every: One step of the optimizer in so many is held, the last of them; 2 or more.
        accumulation: Batches of one step.
    """
    return number // accumulation % every == every - 1
