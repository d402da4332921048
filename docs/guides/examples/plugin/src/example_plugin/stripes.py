"""A source of data: gray images of stripes, made here instead of read; the class is their direction."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from nas_blockout.data import Collection, DataSource, Dimensions, Labeled, stratified
from nas_blockout.settings_fields import Range, check

_DIRECTIONS = ("horizontal", "vertical", "rising", "falling")
_SHARES = (0.6, 0.2)  # training and validation; the test set gets the rest


@dataclass(frozen=True, slots=True)
class StripesSettings:
    """Settings of images of stripes.

    Args:
        side: Height and width of an image, in pixels.
        images: Images of each class, in all splits together.
        noise: Standard deviation of the noise, of values in [0, 1].
    """

    side: Annotated[int, Range(ge=4, le=256)] = 8
    images: Annotated[int, Range(ge=5, le=100_000)] = 100
    noise: Annotated[float, Range(ge=0, le=1)] = 0.2

    def __post_init__(self) -> None:
        check(self)


def read(settings: StripesSettings, split_seed: int, root: Path | None) -> Collection:
    """Make the images and divide them; nothing is downloaded, so the root is not used."""
    generator = torch.Generator().manual_seed(0)  # the images are always the same: the seed only divides them
    rows, columns = torch.meshgrid(torch.arange(settings.side), torch.arange(settings.side), indexing="ij")
    places = torch.stack([rows, columns, rows + columns, rows - columns])
    labels = torch.arange(len(_DIRECTIONS)).repeat_interleave(settings.images)
    phases = torch.rand(len(labels), 1, 1, generator=generator) * 2 * torch.pi
    noise = settings.noise * torch.randn(len(labels), settings.side, settings.side, generator=generator)
    values = 0.5 + 0.4 * torch.sin(1.5 * places[labels] + phases) + noise
    images = values.clamp(0, 1).mul(255).byte().unsqueeze(1)
    parts = [Labeled(images[index], labels[index]) for index in stratified(labels, _SHARES, seed=split_seed)]
    return Collection(parts[0], parts[1], lambda: parts[2], _DIRECTIONS, notes=(f"stripes, noise {settings.noise}",))


def dimensions(settings: StripesSettings) -> Dimensions:
    """Return what is known before the images are made."""
    return Dimensions((1, settings.side, settings.side), len(_DIRECTIONS))


STRIPES = DataSource(StripesSettings, read, summary="gray stripes in four directions", dimensions=dimensions)
