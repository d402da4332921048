"""Spatial dropout: whole channels are dropped, so that no dropped value can be inferred from its neighbors."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from nas_blockout.methods.random_masks import checked_maps, generator_for, keep_mask
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import Range, check


@dataclass(frozen=True, slots=True)
class SpatialDropoutSettings:
    """Settings of spatial dropout.

    Args:
        rate: Probability that a channel of a sample is dropped.
        last_stages: How many of the last convolution stages it follows, at most; the last one, as in the paper, or None
            for all.
    """

    rate: Annotated[float, Range(ge=0, lt=1)] = 0.1
    last_stages: Annotated[int, Range(ge=1)] | None = 1

    def __post_init__(self) -> None:
        check(self)


def spatial_dropout(x: Tensor, *, rate: float, generator: Randomness) -> Tensor:
    r"""Drop whole channels of every sample on their own and scale the rest up, so that the expectation stays.

    .. math:: y_{nchw} = \frac{m_{nc}}{1 - p} x_{nchw}, \qquad m_{nc} \sim \mathrm{Bernoulli}(1 - p)

    Args:
        x: Feature maps, shape ``(batch, channels, height, width)``.
        rate: p, in [0, 1).
        generator: Source of randomness, on the device of `x`.

    Returns:
        Shaped as `x`, in its memory format.

    References:
        Tompson, Goroshin, Jain, LeCun, Bregler. Efficient Object Localization Using Convolutional Networks. CVPR 2015,
        section 3.2.
    """
    return x * keep_mask(x.new_empty(*x.shape[:2], 1, 1), rate, generator)


class SpatialDropout(nn.Module):
    """Drop whole channels of every sample in training; the identity in eval.

    Args:
        settings: The rate.

    Raises:
        ValueError: It is called in training without a generator, or with an input that is no feature map.

    References:
        Tompson, Goroshin, Jain, LeCun, Bregler. Efficient Object Localization Using Convolutional Networks. CVPR 2015.

    Differs from the paper in: the place. The paper drops before its last 1x1 convolutions; here the layer follows every
    convolution stage of the backbone.
    """

    def __init__(self, settings: SpatialDropoutSettings) -> None:
        super().__init__()
        self.rate = settings.rate

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return `x`, shape ``(batch, channels, height, width)``, with channels dropped in training."""
        if not self.training:
            return x
        return spatial_dropout(checked_maps(self, x), rate=self.rate, generator=generator_for(self, generator))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
