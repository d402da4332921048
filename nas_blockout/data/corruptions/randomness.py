"""Draws and fields that the corruptions share: on the processor from the given generator, then moved to the images."""

import torch
from torch import Tensor


def uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw from [0, 1)."""
    return torch.rand(shape, generator=generator).to(like)


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw from the standard normal distribution."""
    return torch.randn(shape, generator=generator).to(like)


def plasma(images: Tensor, decay: float, generator: torch.Generator) -> Tensor:
    """Draw cloudy fields with values in [0, 1] by the diamond-square algorithm, one an image.

    From a coarse grid to a fine one, every new point is the mean of its four neighbors plus a uniform draw whose
    range shrinks by `decay` squared at each step; the field wraps around at its borders.

    Args:
        images: Shape (n, channels, height, width).
        decay: Above 1; clouds are the smoother the larger it is.
        generator: Source of the draws.

    Returns:
        Shape (n, 1, height, width).
    """
    count, _, height, width = images.shape
    size = 1 << (max(height, width) - 1).bit_length()
    field = torch.zeros(count, size, size)
    step, wobble = size, 1.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        centers = _around(corners, (1, 2), -1) / 4 + _wobble(corners, wobble, generator)
        field[:, half::step, half::step] = centers
        for rows, columns, axis in ((0, half, 2), (half, 0, 1)):  # the points between two corners and two centers
            beside = corners + corners.roll(-1, axis) + centers + centers.roll(1, 3 - axis)
            field[:, rows::step, columns::step] = beside / 4 + _wobble(corners, wobble, generator)
        step, wobble = half, wobble / decay**2
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low))[:, None, :height, :width].to(images)


def _around(grid: Tensor, axes: tuple[int, int], shift: int) -> Tensor:
    first = grid + grid.roll(shift, axes[0])
    return first + first.roll(shift, axes[1])


def _wobble(like: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return size * (2 * torch.rand(like.shape, generator=generator) - 1)
