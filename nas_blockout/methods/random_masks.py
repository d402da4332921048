"""Random draws of the methods: masks from a generator that the caller passes, never from global state."""

import torch
from torch import Tensor, nn

_BITS = 32
_LOWEST_PAIR = -(2**63)  # from here up, `random_` fills all 64 bits: two integers of 32


def generator_for(layer: nn.Module, generator: torch.Generator | None) -> torch.Generator:
    """Return the generator of a layer in training.

    Args:
        layer: The layer that draws; the error names its class.
        generator: Argument of its forward pass.

    Raises:
        ValueError: It is None.
    """
    if generator is None:
        raise ValueError(
            f"{type(layer).__name__} needs a generator in training: "
            "call layer(x, generator=torch.Generator().manual_seed(0))"
        )
    return generator


def bernoulli_(target: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fill a tensor with ones, each with the given probability, and zeros.

    A one is a random 32-bit integer below a threshold, so the probability is met to within ``2**-33``. On a CPU this
    takes about a quarter of the time of `torch.Tensor.bernoulli_`, which draws a double for every entry.

    Args:
        target: Dense tensor of any shape, dtype and memory format.
        probability: Of a one, in [0, 1].
        generator: Source of randomness, on the device of `target`.

    Returns:
        `target`.
    """
    ones = round(probability * 2**_BITS)  # how many of the integers give a one
    if ones == 0:
        return target.zero_()
    pairs = torch.empty((target.numel() + 1) // 2, dtype=torch.int64, device=target.device)
    drawn = pairs.random_(_LOWEST_PAIR, None, generator=generator).view(torch.int32)
    drawn = drawn.as_strided(target.shape, target.stride())  # in the order of memory
    return torch.le(drawn, ones - 1 - 2 ** (_BITS - 1), out=target)


def keep_mask(like: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Draw a dropout mask: 0 with probability `rate`, else ``1 / (1 - rate)``, so that its expectation is one.

    Args:
        like: Tensor whose shape, dtype, device and memory format the mask gets.
        rate: Probability of a zero, in [0, 1).
        generator: Source of randomness, on the device of `like`.
    """
    return bernoulli_(torch.empty_like(like), 1 - rate, generator).mul_(1 / (1 - rate))


def checked_maps(layer: nn.Module, x: Tensor) -> Tensor:
    """Return feature maps as they came.

    Raises:
        ValueError: They do not have the four dimensions ``(batch, channels, height, width)``.
    """
    if x.dim() != 4:
        raise ValueError(
            f"{type(layer).__name__} reads maps of shape (batch, channels, height, width), got {tuple(x.shape)}; "
            "for features of shape (batch, features) use dropout"
        )
    return x
