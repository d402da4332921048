"""Augmentation: every image is made darker or brighter by a factor of its own."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from nas_blockout.data import Augmentation
from nas_blockout.settings_fields import Range, check


@dataclass(frozen=True, slots=True)
class ExposureSettings:
    """Settings of the exposure.

    Args:
        stops: An image gets at most 2 to the power of this times its light, and at least the inverse share of it.
    """

    stops: Annotated[float, Range(ge=0, le=4)] = 0.5

    def __post_init__(self) -> None:
        check(self)


def draw(settings: ExposureSettings, images: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return the stops of every image, shape ``(1, images)``, evenly from those that are allowed."""
    return settings.stops * (2 * torch.rand(1, images, generator=generator) - 1)


def expose(settings: ExposureSettings, images: Tensor, choices: Tensor) -> Tensor:
    """Return images, uint8, with as much more or less light."""
    light = choices[0].exp2()[:, None, None, None]
    return (images * light).round_().clamp_(0, 255).to(torch.uint8)


EXPOSURE = Augmentation(ExposureSettings, draw, expose, summary="images are made darker or brighter")
