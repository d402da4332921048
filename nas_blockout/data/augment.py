"""Random variation of training images, a whole batch at a time.

Every choice is drawn from the generator that is passed, on the processor whatever the device of the images is, so
that a run on an accelerator sees the same variations.

References:
    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor, torch.Generator, Tensor], Tensor]


def shift(images: Tensor, generator: torch.Generator, background: Tensor) -> Tensor:
    """Move every image by up to an eighth of its side, independently in both directions: a crop after padding.

    Args:
        images: Shape (n, channels, height, width).
        generator: Source of the draws.
        background: What comes in from outside, shape (channels, 1, 1).
    """
    count, _, height, width = images.shape
    down, right = height // 8, width // 8
    # Padding fills with 0, so the background is made 0 and put back at the end.
    centered = images - background if background.any() else images
    padded = F.pad(centered, (right, right, down, down))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all crops, of which one an image is copied
    tops = torch.randint(2 * down + 1, (count,), generator=generator).to(images.device)
    lefts = torch.randint(2 * right + 1, (count,), generator=generator).to(images.device)
    moved = windows[torch.arange(count, device=images.device), :, tops, lefts]
    return moved.add_(background)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with probability one half; shape (n, channels, height, width)."""
    mirrored = torch.rand(len(images), generator=generator).lt(0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a square of a quarter of the side to 0, the mean of normalized images; it may lie partly outside.

    Args:
        images: Shape (n, channels, height, width), normalized.
        generator: Source of the draws.
    """
    count, _, height, width = images.shape
    side = max(1, min(height, width) // 4)
    rows = _band(count, height, side, generator).to(images.device)[:, None, :, None]
    columns = _band(count, width, side, generator).to(images.device)[:, None, None, :]
    return images.masked_fill(rows & columns, 0)


def _band(count: int, length: int, side: int, generator: torch.Generator) -> Tensor:
    # The middle lies anywhere in the image, so that the band may begin before it or end after it, as in the paper.
    starts = torch.randint(length, (count, 1), generator=generator) - side // 2
    positions = torch.arange(length)
    return (positions >= starts) & (positions < starts + side)


def _shift_flip(images: Tensor, generator: torch.Generator, background: Tensor) -> Tensor:
    return flip(shift(images, generator, background), generator)


def _shift_flip_cutout(images: Tensor, generator: torch.Generator, background: Tensor) -> Tensor:
    return cutout(_shift_flip(images, generator, background), generator)


AUGMENT: Mapping[str, Augmentation | None] = {
    "none": None,
    "shift": shift,
    "shift-flip": _shift_flip,
    "shift-flip-cutout": _shift_flip_cutout,
}
