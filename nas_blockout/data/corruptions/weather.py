"""Weather: snow, frost, fog, brightness, and spatter on the lens.

All functions take images of shape (n, channels, height, width) with values in [0, 1], gray or color.
"""

import math

import torch
from torch import Tensor

from nas_blockout.data.corruptions.blur import smear, smooth, zoom
from nas_blockout.data.corruptions.randomness import normal, plasma, uniform

_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.85, 0.95, 1.0)
_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)


def snow(  # noqa: PLR0913  # the paper has as many
    images: Tensor,
    generator: torch.Generator,
    mean: float,
    deviation: float,
    enlarged: float,
    threshold: float,
    reach: float,
    sigma: float,
    kept: float,
) -> Tensor:
    """Let flakes fall: enlarged noise above a threshold, smeared downwards, on a whitened image."""
    count, _, height, width = images.shape
    flakes = zoom(mean + deviation * normal((count, 1, height, width), generator, images), enlarged)
    flakes = flakes.where(flakes >= threshold, 0).clamp(0, 1)
    angles = -math.pi / 2 + (uniform((count,), generator, images) - 0.5) * (math.pi / 2)
    flakes = smear(flakes, angles, reach=reach, sigma=sigma)
    whitened = kept * images + (1 - kept) * images.maximum(luma(images) * 1.5 + 0.5)
    # Once more upside down, which doubles the flakes without another draw; as published.
    return whitened + flakes + flakes.rot90(2, (2, 3))


def procedural_frost(images: Tensor, generator: torch.Generator, ice: float) -> Tensor:
    """Cover with ice whose texture is computed: bright ridges where cloudy fields cross their middle."""
    ridges = [1 - (2 * plasma(images, decay, generator) - 1).abs() for decay in (1.3, 1.7)]
    cover = ice * (0.35 + 0.65 * (ridges[0] * ridges[1]).square())
    return images + cover * (tint(_ICE, images) - images)


def fog(images: Tensor, generator: torch.Generator, density: float, decay: float) -> Tensor:
    """Add a cloudy field, and take back the brightness that it brings."""
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + density * plasma(images, decay, generator)) * brightest / (brightest + density)


def brightness(images: Tensor, generator: torch.Generator, added: float) -> Tensor:
    """Raise the value of every pixel (its largest channel) and keep hue and saturation."""
    value = images.amax(1, keepdim=True)
    raised = (value + added).clamp(0, 1)
    # All channels by the same factor, which keeps hue and saturation; black has none, and becomes gray.
    return torch.where(value > 0, images * raised / value.clamp_min(1e-6), raised)


def spatter(
    images: Tensor, generator: torch.Generator, share: float, sigma: float, strength: float, mud: float
) -> Tensor:
    """Splash a share of the image with water (`mud` 0), which brightens, or with mud (`mud` 1), which covers."""
    count, _, height, width = images.shape
    liquid = smooth(normal((count, 1, height, width), generator, images), sigma)
    threshold = liquid.flatten(1).quantile(1 - share, dim=1).view(-1, 1, 1, 1)
    drops = smooth((liquid > threshold).to(images), 0.5)
    return images + strength * drops * (tint(_MUD, images) - images if mud else tint(_WATER, images))


def luma(images: Tensor) -> Tensor:
    """Return the brightness that the eye sees, shape (n, 1, height, width); of gray images the images."""
    if images.shape[1] == 1:
        return images
    return (images * tint(_LUMA, images)).sum(1, keepdim=True)


def tint(color: tuple[float, float, float], like: Tensor) -> Tensor:
    """Return a color, or for gray images its brightness, shape (1, channels, 1, 1)."""
    values = torch.tensor(color, dtype=like.dtype, device=like.device)
    if like.shape[1] == 1:
        values = (values * torch.tensor(_LUMA, dtype=like.dtype, device=like.device)).sum()[None]
    return values.view(1, -1, 1, 1)
