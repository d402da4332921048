"""Blur: a pixel takes part of its neighbors' values.

All functions take images of shape (n, channels, height, width) with values in [0, 1]. Lengths are in pixels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.data.corruptions.randomness import uniform


def gaussian_blur(images: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """Smooth with a Gaussian."""
    return smooth(images, sigma)


def defocus_blur(images: Tensor, generator: torch.Generator, radius: float) -> Tensor:
    """Spread every point over a disk, as a lens out of focus does; a pixel counts by its part inside the disk."""
    reach = math.ceil(radius)
    fine = 16  # points a pixel and direction
    points = (torch.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = (points[:, None].square() + points.square() <= radius**2).float()
    disk = F.avg_pool2d(inside[None, None], fine)[0, 0]
    return convolve(images, (disk / disk.sum()).to(images))


def glass_blur(
    images: Tensor, generator: torch.Generator, sigma: float, reach: float, share: float, rounds: float
) -> Tensor:
    """Smooth, swap a share of the pixels with others up to `reach` away, some rounds, smooth again: frosted glass."""
    count, channels, height, width = images.shape
    far = round(reach)
    # Swaps are followed as a permutation of positions, which is applied once at the end, to all channels alike.
    place = torch.arange(height * width).repeat(count, 1)
    rows, columns = range(height - 1, far - 1, -1), range(width - 1, far - 1, -1)
    for _ in range(round(rounds)):
        moves = torch.randint(-far, far, (len(rows), len(columns), 2, count, 1), generator=generator)
        moves *= torch.rand(len(rows), len(columns), 1, count, 1, generator=generator) < share
        # One after the other, as published: a pixel may be swapped on by later swaps. Only images are done at once.
        for row, moves_of_row in zip(rows, moves, strict=True):
            for column, (down, right) in zip(columns, moves_of_row, strict=True):
                other = ((row + down).clamp_(0, height - 1) * width + (column + right).clamp_(0, width - 1)).long()
                here = place[:, row * width + column, None].clone()
                place[:, row * width + column, None] = place.gather(1, other)
                place.scatter_(1, other, here)
    index = place.to(images.device)[:, None].expand(-1, channels, -1)
    swapped = smooth(images, sigma).flatten(2).gather(2, index).view_as(images)
    return smooth(swapped, sigma)


def motion_blur(images: Tensor, generator: torch.Generator, reach: float, sigma: float) -> Tensor:
    """Smear each image in its own direction, within 45 degrees of the horizontal."""
    angles = (uniform((len(images),), generator, images) - 0.5) * (math.pi / 2)
    return smear(images, angles, reach=reach, sigma=sigma)


def zoom_blur(images: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """Average over zooming in, in steps of 1%."""
    steps = round((largest - 1) * 100)
    total = images * 2  # the image itself, and the zoom by one
    for step in range(1, steps + 1):
        total = total + zoom(images, 1 + step / 100)
    return total / (steps + 2)


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Smooth with a Gaussian of four deviations to each side; outside, the border goes on."""
    reach = math.ceil(4 * sigma)
    weights = torch.arange(-reach, reach + 1).div(sigma).square().mul(-0.5).exp()
    line = (weights / weights.sum()).to(images)
    # A Gaussian is separable: two lines cost far less than one square.
    return convolve(convolve(images, line[None, :]), line[:, None])


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Apply a kernel, shape (odd, odd), to every channel; outside, the border goes on."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(images, (left, left, up, up), mode="replicate")
    single = padded.flatten(0, 1).unsqueeze(1)
    return F.conv2d(single, kernel[None, None]).view(images.shape)


def smear(images: Tensor, angles: Tensor, *, reach: float, sigma: float) -> Tensor:
    """Average along a line that starts at the pixel, with weights that fall like half a Gaussian.

    Args:
        images: Shape (n, channels, height, width).
        angles: Of the lines, in radians, shape (n,).
        reach: Length of half of the line.
        sigma: Deviation of the Gaussian.
    """
    length = min(2 * round(reach), math.ceil(4 * sigma))
    weights = torch.arange(length + 1).div(sigma).square().mul(-0.5).exp()
    weights = weights / weights.sum()
    total = images * float(weights[0])
    for distance in range(1, length + 1):
        shifts = torch.stack([distance * angles.cos(), distance * angles.sin()], 1)
        total = total + float(weights[distance]) * sample(images, shifts[:, None, None, :])
    return total


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge about the center and keep the size."""
    height, width = images.shape[2:]
    across = (torch.arange(width) - (width - 1) / 2) * (1 / factor - 1)
    down = (torch.arange(height) - (height - 1) / 2) * (1 / factor - 1)
    shifts = torch.stack([across.expand(height, width), down[:, None].expand(height, width)], -1)
    return sample(images, shifts[None].to(images))


def sample(images: Tensor, shifts: Tensor, *, outside: str = "border") -> Tensor:
    """Read every pixel from a shifted place, between pixels by bilinear interpolation.

    Args:
        images: Shape (n, channels, height, width).
        shifts: Across and down in pixels, shape (n or 1, height or 1, width or 1, 2).
        outside: `border` goes on with the border, `reflection` mirrors.
    """
    count, _, height, width = images.shape
    columns = torch.arange(width, device=images.device).expand(height, width)
    rows = torch.arange(height, device=images.device)[:, None].expand(height, width)
    places = torch.stack([columns, rows], -1).to(images) + shifts
    extent = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=images.dtype, device=images.device)
    # `grid_sample` counts from -1 at the center of the first pixel to 1 at that of the last.
    grid = (2 * places / extent - 1).expand(count, height, width, 2)
    return F.grid_sample(images, grid, padding_mode=outside, align_corners=True)
