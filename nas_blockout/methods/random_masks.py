"""Random draws of the methods: masks from a generator that the caller passes, never from global state."""

from typing import Literal

import torch
from torch import Tensor, nn

from nas_blockout.randomness.batch_shards import empty_whole, own_rows
from nas_blockout.randomness.draws import Randomness, random_bits, random_uniforms

Estimator = Literal["masked", "straight-through", "arm"]

_BITS = 32


def generator_for(layer: nn.Module, generator: Randomness | None) -> Randomness:
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


def threshold_of(probability: float) -> int:
    """Return the largest of the 2**32 integers of 32 bits that gives a one; the least of them where hardly any does.

    Args:
        probability: Of a one, in [0, 1]; met to within ``2**-33``, and ``2**-32`` at least.
    """
    ones = max(1, round(probability * (1 << _BITS)))
    return ones - 1 - (1 << (_BITS - 1))


def bernoulli_(target: Tensor, probability: float | Tensor, generator: Randomness) -> Tensor:
    """Fill a tensor with ones, each with the given probability, and zeros.

    A one is a random 32-bit integer up to a threshold, so the probability is met to within ``2**-33``. On a CPU this
    takes about a quarter of the time of `torch.Tensor.bernoulli_`, which draws a double for every entry.

    Args:
        target: Dense tensor of any shape, dtype and memory format.
        probability: Of a one, in [0, 1]; or, where it changes between calls of a compiled function, its `threshold_of`
            as a tensor, int32, a scalar on the device of `target`.
        generator: Source of randomness, on the device of `target`.

    Returns:
        `target`.
    """
    if not isinstance(probability, Tensor):
        if round(probability * 2**_BITS) == 0:
            return target.zero_()
        probability = threshold_of(probability)
    drawn = random_bits(generator, target.numel(), target.device)
    drawn = drawn.as_strided(target.shape, target.stride())  # in the order of memory
    return torch.le(drawn, probability, out=target)


def keep_mask(like: Tensor, rate: float, generator: Randomness, *, by_row: bool = True) -> Tensor:
    """Draw a dropout mask: 0 with probability `rate`, else ``1 / (1 - rate)``, so that its expectation is one.

    Args:
        like: Tensor whose shape, dtype, device and memory format the mask gets.
        rate: Probability of a zero, in [0, 1).
        generator: Source of randomness, on the device of `like`.
        by_row: Whether `like` has a row for each sample; else it is something that all samples share.
    """
    mask = empty_whole(like, generator) if by_row else torch.empty_like(like)
    bernoulli_(mask, 1 - rate, generator).mul_(1 / (1 - rate))
    return own_rows(mask, generator) if by_row else mask


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


def draw_memberships(p: Tensor, generator: Randomness, *, estimator: Estimator = "masked") -> Tensor:
    """Draw hard memberships C from their probabilities.

    Args:
        p: P_j, shape ``(nodes, k)``, in [0, 1].
        generator: Source of randomness, on the device of `p`.
        estimator: ``masked`` lets the gradient through where a membership was drawn (eq. 9), ``straight-through``
            everywhere.

    Returns:
        Zeros and ones, shaped as `p`; NaN where `p` is, so that a run that has diverged ends by its loss.
    """
    drawn = (random_uniforms(generator, tuple(p.shape), p.dtype, p.device) < p).to(p.dtype)
    nothing = p - p.detach()  # with the gradient of p
    return drawn + nothing if estimator == "straight-through" else torch.addcmul(drawn, drawn, nothing)
