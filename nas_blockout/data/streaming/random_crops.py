"""Random resized crops: which part of an image is trained on, drawn for all images of a pass at once.

The choices of an image are uniform numbers, from which its crop follows once its size is known: they can be drawn
before a file is opened, and mean the same whichever process opens it.

References:
    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6; as `RandomResizedCrop` of torchvision.
"""

import math

import torch
from torch import Tensor

SCALE = (0.08, 1.0)  # share of the area of an image
RATIO = (3 / 4, 4 / 3)  # of width and height
ATTEMPTS = 10
CHOICES = 2 * ATTEMPTS + 2  # for each attempt an area and a ratio, and a place for the one that fits

Box = tuple[int, int, int, int]  # top, left, height, width


def draw_crops(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return the choices for some images, shape (CHOICES, n), float32 in [0, 1).

    Args:
        count: Number of images.
        side: Height and width that they get; unused.
        generator: On the processor.
    """
    return torch.rand(CHOICES, count, generator=generator)


def crop_of(choices: Tensor, height: int, width: int) -> Box:
    """Return the crop of an image: the first attempt that fits into it, else its middle at the nearest allowed ratio.

    Args:
        choices: Of the image, shape (CHOICES,).
        height: Of the image, in pixels.
        width: Likewise.
    """
    numbers = choices.tolist()
    for area, ratio in zip(numbers[0 : 2 * ATTEMPTS : 2], numbers[1 : 2 * ATTEMPTS : 2], strict=True):
        pixels = height * width * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        shape = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
        wide, high = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < wide <= width and 0 < high <= height:
            return int(numbers[-2] * (height - high + 1)), int(numbers[-1] * (width - wide + 1)), high, wide
    high, wide = height, width
    if width / height < RATIO[0]:
        high = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def middle(height: int, width: int, size: tuple[int, int]) -> Box:
    """Return the middle of an image, of a height and width that it has or exceeds: what it is evaluated on."""
    return round((height - size[0]) / 2), round((width - size[1]) / 2), *size
