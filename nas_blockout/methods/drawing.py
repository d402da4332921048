"""How the methods draw: a generator that must be given, and masks of ones and zeros. No global random state is read."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def generator_for(layer: nn.Module, generator: torch.Generator | None) -> torch.Generator:
    """Return the generator of a layer in training.

    Args:
        layer: Who draws; its class is named in the error.
        generator: What the caller gave.

    Raises:
        ValueError: None was given.
    """
    if generator is None:
        raise ValueError(
            f"{type(layer).__name__} needs a generator in training: "
            "call layer(x, generator=torch.Generator().manual_seed(0))"
        )
    return generator


def checked_rate(rate: float) -> None:
    """Check a probability to drop.

    Raises:
        ValueError: It does not lie in 0..1, 1 exclusive.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in 0..1, 1 exclusive, got rate={rate}")


def keep_mask(shape: Sequence[int], rate: float, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ones with probability ``1 - rate``, else zeros, independently.

    Args:
        shape: Of the mask.
        rate: Probability of a zero, in 0..1.
        like: Tensor whose dtype and device the mask gets.
        generator: Source of randomness, on the device of `like`.
    """
    mask = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    return mask.bernoulli_(1 - rate, generator=generator)
