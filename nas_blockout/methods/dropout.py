"""Dropout: every node is dropped on its own."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from nas_blockout.methods.random_masks import generator_for, keep_mask
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import Range, check


@dataclass(frozen=True, slots=True)
class DropoutSettings:
    """Settings of dropout.

    Args:
        rate: Probability that a node is dropped.
        placement: ``hidden`` drops the outputs of the fully connected hidden layers, as the paper does; ``classifier``
            drops what the classifier reads, which without a hidden layer is the pooled features; ``all`` drops what
            every linear layer reads, pooled features included.
    """

    rate: Annotated[float, Range(ge=0, lt=1)] = 0.5
    placement: Literal["hidden", "classifier", "all"] = "hidden"

    def __post_init__(self) -> None:
        check(self)


def dropout(x: Tensor, *, rate: float, generator: Randomness) -> Tensor:
    r"""Drop every entry on its own and scale the rest up, so that the expectation stays.

    .. math:: y_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    Args:
        x: Any shape.
        rate: p, in [0, 1).
        generator: Source of randomness, on the device of `x`.

    Returns:
        Shaped as `x`, in its memory format.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov. Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting. JMLR 2014, section 4.
    """
    return x * keep_mask(x, rate, generator)


class Dropout(nn.Module):
    """Drop every node on its own in training; the identity in eval.

    Args:
        settings: The rate.

    Raises:
        ValueError: It is called in training without a generator.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov. Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting. JMLR 2014.

    Differs from the paper in: activations are scaled up in training instead of weights down in eval, which computes the
    same expectation; `torch.nn.Dropout` does so too.
    """

    def __init__(self, settings: DropoutSettings) -> None:
        super().__init__()
        self.rate = settings.rate

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return `x`, any shape, with nodes dropped in training."""
        if not self.training:
            return x
        return dropout(x, rate=self.rate, generator=generator_for(self, generator))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
