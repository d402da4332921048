"""Noise: every channel of every pixel is disturbed independently of its neighbors.

All functions take images of shape (n, channels, height, width) with values in [0, 1].
"""

import torch
from torch import Tensor

from nas_blockout.data.corruptions.randomness import normal, uniform


def gaussian_noise(images: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Add normal noise, as low light does."""
    return images + deviation * normal(images.shape, generator, images)


def shot_noise(images: Tensor, generator: torch.Generator, photons: float) -> Tensor:
    """Count photons, on average `photons` for a white pixel: the noise of light itself."""
    # On the processor like all draws, so that every device has the same images.
    return torch.poisson(images.cpu() * photons, generator=generator).to(images) / photons


def impulse_noise(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Set a share of the values to black or white, half to each, as broken bits do."""
    draw = uniform(images.shape, generator, images)
    return images.where(draw >= share, (draw < share / 2).to(images))


def speckle_noise(images: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Add normal noise in proportion to the value."""
    return images * (1 + deviation * normal(images.shape, generator, images))
