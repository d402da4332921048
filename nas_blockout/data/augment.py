"""Random variation of training images: all choices of an epoch are drawn at once, and applied a batch at a time.

Every choice is drawn from the generator that is passed, on the processor whatever the device of the images is, so
that a run on an accelerator sees the same variations. They are copied there once an epoch, and no batch waits.

References:
    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.data.augmentations.automatic_augment import augment_pixels, draw_randaugment, draw_trivialaugment
from nas_blockout.data.augmentations.plugin_augmentation import Applied, Augmentation, read
from nas_blockout.data.augmentations.random_erasing import draw_rectangles, erase
from nas_blockout.data.data_settings import AUGMENTATIONS, COMBINED, DataSettings
from nas_blockout.data.data_settings import RESIZED_CROP as RESIZED_CROP_FLIP
from nas_blockout.data.streaming.random_crops import draw_crops
from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.options import settings_from
from nas_blockout.serialization import to_json
from nas_blockout.settings_fields import PlainMapping


@dataclass(frozen=True, slots=True)
class Variation:
    """One kind of variation, divided into its choices and what they do.

    Args:
        draw: Returns the choices for some images, shape (choices, n), float32 on the processor, from the number of the
            images, their height and width, and the generator.
        apply: Returns images varied by their choices, from the images, shape (n, channels, height, width), the choices
            on the same device, and the background: what comes in from outside, shape (channels, 1, 1), or None for 0.
            None for what only the reader of image files can do.
        of_pixels: Whether it is applied to pixels, uint8 in 0..255, in place of normalized images.
    """

    draw: Callable[[int, tuple[int, int], torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None
    of_pixels: bool = False


def draw_pass(
    variations: Sequence[Variation], sizes: Sequence[int], side: tuple[int, int], generator: torch.Generator
) -> list[Tensor]:
    """Return, for each variation, the choices for all images of a pass, shape (choices, images).

    Args:
        variations: In the order in which they are applied.
        sizes: Images a batch. They are drawn batch by batch, which gives the numbers that drawing each batch on its
            own would.
        side: Height and width of the images.
        generator: On the processor.
    """
    drawn = [[variation.draw(size, side, generator) for variation in variations] for size in sizes]
    return [torch.cat(choices, 1) for choices in zip(*drawn, strict=True)]


def _draw_shift(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    tops, lefts = (torch.randint(2 * (length // 8) + 1, (count,), generator=generator) for length in side)
    return torch.stack((tops, lefts)).float()


def _shifted(images: Tensor, choices: Tensor, background: Tensor | None) -> Tensor:
    """Move every image by up to an eighth of its side, independently in both directions: a crop after padding."""
    count, _, height, width = images.shape
    down, right = height // 8, width // 8
    # Padding fills with 0, so the background is made 0 and put back at the end.
    centered = images if background is None else images - background
    padded = F.pad(centered, (right, right, down, down))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all crops, of which one an image is copied
    tops, lefts = choices.long()
    moved = windows[torch.arange(count, device=images.device), :, tops, lefts]
    return moved if background is None else moved.add_(background)


def _draw_flip(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator).lt(0.5).float()[None]


def _flipped(images: Tensor, choices: Tensor, background: Tensor | None) -> Tensor:
    """Mirror every image left to right with probability one half."""
    return torch.where(choices[0].bool()[:, None, None, None], images.flip(-1), images)


def _draw_cutout(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    # The middle lies anywhere in the image, so that a band may begin before it or end after it, as in the paper.
    return torch.stack([torch.randint(length, (count, 1), generator=generator)[:, 0] for length in side]).float()


def _cut_out(images: Tensor, choices: Tensor, background: Tensor | None) -> Tensor:
    """Set a square of a quarter of the side to 0, the mean of normalized images; it may lie partly outside."""
    height, width = images.shape[2:]
    size = max(1, min(height, width) // 4)
    rows, columns = (
        _band(middles, length, size) for middles, length in zip(choices.long(), (height, width), strict=True)
    )
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


def _band(middles: Tensor, length: int, size: int) -> Tensor:
    starts = middles[:, None] - size // 2
    positions = torch.arange(length, device=middles.device)
    return (positions >= starts) & (positions < starts + size)


SHIFT = Variation(_draw_shift, _shifted)
FLIP = Variation(_draw_flip, _flipped)
CUTOUT = Variation(_draw_cutout, _cut_out)
RESIZED_CROP = Variation(draw_crops, None)

RANDAUGMENT = Variation(draw_randaugment, augment_pixels, of_pixels=True)
TRIVIALAUGMENT = Variation(draw_trivialaugment, augment_pixels, of_pixels=True)
RANDOM_ERASING = Variation(draw_rectangles, erase)

_PARTS: Mapping[str, tuple[Variation, ...]] = {
    "": (),
    "shift": (SHIFT,),
    "shift-flip": (SHIFT, FLIP),
    RESIZED_CROP_FLIP: (RESIZED_CROP, FLIP),
    "randaugment": (RANDAUGMENT,),
    "trivialaugment": (TRIVIALAUGMENT,),
    "cutout": (CUTOUT,),
    "random-erasing": (RANDOM_ERASING,),
}
AUGMENT: Mapping[str, tuple[Variation, ...]] = {
    name: (*_PARTS[move], *_PARTS[policy], *_PARTS[cover])
    for name, (move, policy, cover) in zip(AUGMENTATIONS, product(*COMBINED), strict=True)
}
AUGMENTATION_CHOICES: Choices[tuple[Variation, ...] | Augmentation] = Choices(
    "augmentation", AUGMENT, read, key="data.augment"
)


def variations_of(augment: str, options: Mapping[str, Any]) -> tuple[Variation, ...]:
    """Return the variations of an augmentation, in the order in which they are applied; a plug-in is imported.

    Args:
        augment: Its name.
        options: Settings of a plug-in.

    Raises:
        Conflict: There is none of that name, or the plug-in cannot be used, or refuses its settings.
    """
    found = AUGMENTATION_CHOICES.named(augment)
    if not isinstance(found, Augmentation):
        return found
    own = Applied(augment, found, settings_from(found.settings, options, where="data.augment_options"))
    return (Variation(own.draw, own.apply, of_pixels=True),)


def with_augmentation(settings: DataSettings) -> DataSettings:
    """Return settings with the one name of their augmentation, and with every setting of a plug-in's.

    Raises:
        Conflict: As of `variations_of`.
    """
    found = AUGMENTATION_CHOICES.named(settings.augment)
    if not isinstance(found, Augmentation):
        return settings
    own = settings_from(found.settings, settings.augment_options, where="data.augment_options")
    name = AUGMENTATION_CHOICES.canonical(settings.augment)
    return replace(settings, augment=name, augment_options=PlainMapping(to_json(own)))
