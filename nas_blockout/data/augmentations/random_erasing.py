"""Random erasing: a rectangle of half of the images becomes the mean.

References:
    Zhong, Zheng, Kang, Li, Yang. Random Erasing Data Augmentation. AAAI 2020, algorithm 1.
"""

import math

import torch
from torch import Tensor

PROBABILITY = 0.5
AREA = (0.02, 0.33)  # of the rectangle, as a share of the image
RATIO = (0.3, 3.3)  # of its height to its width
_TRIES = 10


def draw_rectangles(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return a rectangle for every image: top, left, height and width in pixels; all 0 where nothing is erased.

    Area and ratio are drawn until the rectangle is smaller than the image both ways, at most ten times.

    Args:
        count: Number of images.
        side: Height and width of the images.
        generator: On the processor.

    Returns:
        Shape (4, count), float32.

    Differs from the paper in: the logarithm of the ratio is drawn evenly, and tries are limited, both as torchvision
    does.
    """
    height, width = side
    erased = torch.rand(count, generator=generator) < PROBABILITY
    area = _between(AREA, count, generator) * (height * width)
    ratio = _between((math.log(RATIO[0]), math.log(RATIO[1])), count, generator).exp()
    high, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (high < height) & (wide < width)
    first = fits.int().argmax(0, keepdim=True)
    high, wide = high.gather(0, first)[0], wide.gather(0, first)[0]
    # Every place in the image is as likely as any other; `rand` is below 1, but its product may be rounded up.
    top = (torch.rand(count, generator=generator) * (height - high + 1)).floor().minimum(height - high)
    left = (torch.rand(count, generator=generator) * (width - wide + 1)).floor().minimum(width - wide)
    rectangles = torch.stack((top, left, high, wide))
    return rectangles.where(erased & fits.any(0), 0.0)


def _between(limits: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Return numbers of the tries for every image, shape (tries, count)."""
    low, high = limits
    return low + (high - low) * torch.rand(_TRIES, count, generator=generator)


def erase(images: Tensor, rectangles: Tensor, background: Tensor | None = None) -> Tensor:
    """Set a rectangle of every image to 0, the mean of normalized images.

    Args:
        images: Shape (n, channels, height, width), normalized.
        rectangles: As `draw_rectangles` returns them, on the device of the images.
        background: Not used.
    """
    top, left, high, wide = rectangles[:, :, None]
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside_rows = (rows >= top) & (rows < top + high)
    inside_columns = (columns >= left) & (columns < left + wide)
    return images.masked_fill(inside_rows[:, None, :, None] & inside_columns[:, None, None, :], 0)
