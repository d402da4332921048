"""DropConnect: weights are dropped instead of nodes."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.methods.random_masks import generator_for, keep_mask
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import Range, check


@dataclass(frozen=True, slots=True)
class DropConnectSettings:
    """Settings of DropConnect.

    Args:
        rate: Probability that a weight is dropped.
        placement: ``hidden`` drops the weights of the fully connected hidden layers, as the paper does; ``classifier``
            those of the classifier; ``all`` those of every linear layer.
        masks: One random mask per ``sample``, as in the paper, or one for the whole ``batch``, which takes less time
            and memory.
    """

    rate: Annotated[float, Range(ge=0, lt=1)] = 0.5
    placement: Literal["hidden", "classifier", "all"] = "hidden"
    masks: Literal["sample", "batch"] = "sample"

    def __post_init__(self) -> None:
        check(self)


def dropconnect(weight: Tensor, *, rate: float, generator: Randomness, by_sample: bool = False) -> Tensor:
    r"""Drop every weight on its own and scale the rest up, so that the expectation stays.

    .. math:: W' = \frac{1}{1 - p} M \odot W, \qquad M_{ij} \sim \mathrm{Bernoulli}(1 - p)

    Args:
        weight: W, any shape; expanded over the samples for a mask each.
        rate: p, in [0, 1).
        generator: Source of randomness, on the device of `weight`.
        by_sample: Whether the weight is expanded over the samples.

    Returns:
        Shaped as `weight`.

    References:
        Wan, Zeiler, Zhang, LeCun, Fergus. Regularization of Neural Networks using DropConnect. ICML 2013, eq. 2.
    """
    return weight * keep_mask(weight, rate, generator, by_row=by_sample)


class DropConnect(nn.Module):
    """A linear layer whose weights are dropped in training; in eval the plain linear layer.

    It takes over the parameters of the linear layer under their names, so that its state is that of the plain layer.

    Args:
        settings: The rate, and for what a mask is drawn.
        linear: The layer whose weights are dropped; its bias is kept.

    Raises:
        ValueError: It is called in training without a generator.

    References:
        Wan, Zeiler, Zhang, LeCun, Fergus. Regularization of Neural Networks using DropConnect. ICML 2013.

    Differs from the paper in: the bias is kept, and eval uses the mean weights where the paper samples pre-activations
    from a Gaussian that matches their moments; masks shared by a batch are a setting.
    """

    bias: Tensor | None

    def __init__(self, settings: DropConnectSettings, linear: nn.Linear) -> None:
        super().__init__()
        self.rate, self.masks = settings.rate, settings.masks
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Map ``(batch, in)`` to ``(batch, out)``, under draws of the weights in training."""
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        generator = generator_for(self, generator)
        if self.masks == "batch":
            return F.linear(x, dropconnect(self.weight, rate=self.rate, generator=generator), self.bias)
        weights = self.weight.expand(len(x), -1, -1)
        weights = dropconnect(weights, rate=self.rate, generator=generator, by_sample=True)
        y = torch.bmm(weights, x.unsqueeze(2)).squeeze(2)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, rate={self.rate}, masks={self.masks}"
