"""Digital: what cameras, screens and files do to images.

All functions take images of shape (n, channels, height, width) with values in [0, 1].
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.data.corruptions.blur import sample, smooth
from nas_blockout.data.corruptions.randomness import uniform

# Quantization tables of the JPEG standard (ITU-T T.81, annex K), for luma and chroma.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def contrast(images: Tensor, generator: torch.Generator, kept: float) -> Tensor:
    """Bring every channel nearer to its mean over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


def saturate(images: Tensor, generator: torch.Generator, factor: float, added: float) -> Tensor:
    """Change the saturation and keep hue and value; gray pixels, which have no hue, stay."""
    value = images.amax(1, keepdim=True)
    saturation = (value - images.amin(1, keepdim=True)) / value.clamp_min(1e-6)
    changed = (factor * saturation + added).clamp(0, 1)
    ratio = torch.where(saturation > 1e-6, changed / saturation.clamp_min(1e-6), 1.0)
    return value - (value - images) * ratio


def pixelate(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Shrink by averaging, and enlarge by repeating pixels."""
    height, width = images.shape[2:]
    rows, columns = (averaging(side, max(1, int(side * share))).to(images) for side in (height, width))
    small = rows @ images @ columns.T
    return F.interpolate(small, size=(height, width), mode="nearest-exact")


def elastic_transform(
    images: Tensor, generator: torch.Generator, strength: float, smoothness: float, skew: float
) -> Tensor:
    """Skew, and stretch and squeeze small regions; all three in shares of the side; outside, the image is mirrored."""
    count, _, height, width = images.shape
    side = min(height, width)
    shifts = _skewed(images, skew * side, generator)
    if strength:
        field = 2 * uniform((count, 2, height, width), generator, images) - 1
        shifts = shifts + strength * side * smooth(field, smoothness * side).permute(0, 2, 3, 1)
    return sample(images, shifts, outside="reflection")


def jpeg_compression(images: Tensor, generator: torch.Generator, quality: float) -> Tensor:
    """Do what a JPEG file does: color at half the resolution, cosines of 8x8 blocks rounded."""
    levels = images.mul(255).round()
    if images.shape[1] == 1:
        return _compressed(levels - 128, _LUMA_TABLE, quality).add(128).round().div(255)
    to_ycc, to_rgb = (torch.tensor(matrix, dtype=images.dtype, device=images.device) for matrix in (_TO_YCC, _TO_RGB))
    luma, chroma = torch.einsum("oc,nchw->nohw", to_ycc, levels).round().split([1, 2], 1)
    height, width = images.shape[2:]
    halved = F.avg_pool2d(_padded(chroma, 2, 16), 2).round()  # libjpeg pads columns before it halves, rows after
    halved = _compressed(halved, _CHROMA_TABLE, quality)[:, :, :, : -(-width // 2)]
    doubled = F.interpolate(halved, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :height, :width]
    luma = _compressed(luma - 128, _LUMA_TABLE, quality) + 128
    return torch.einsum("oc,nchw->nohw", to_rgb, torch.cat([luma, doubled], 1)).round().div(255)


def averaging(count: int, fewer: int) -> Tensor:
    """Return the matrix, shape (fewer, count), that averages those neighbors whose center lies in a larger cell."""
    centers = (torch.arange(fewer, dtype=torch.float64)[:, None] + 0.5) * count / fewer
    distance = (torch.arange(count, dtype=torch.float64) + 0.5 - centers) * fewer / count
    inside = ((distance > -0.5) & (distance <= 0.5)).double()
    return inside / inside.sum(1, keepdim=True)


def _skewed(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Return the shifts of a linear map that moves three points about the center by up to `most` pixels each."""
    count, _, height, width = images.shape
    center = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    away = min(height, width) // 3
    points = center + away * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    moves = most * (2 * torch.rand(count, 3, 2, generator=generator, dtype=torch.float64) - 1)
    moved = torch.cat([points + moves, torch.ones(count, 3, 1, dtype=torch.float64)], 2)
    back = torch.linalg.solve(moved, points.expand(count, 3, 2))  # from where a pixel is seen to where it is read
    columns, rows = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    places = torch.stack([columns, rows, torch.ones_like(rows)], -1).double()
    return (torch.einsum("hwi,nio->nhwo", places, back) - places[..., :2]).to(images)


def _compressed(channels: Tensor, table: tuple[tuple[int, ...], ...], quality: float) -> Tensor:
    """Round the cosine coefficients of 8x8 blocks to multiples of the table's entries."""
    count, depth, height, width = channels.shape
    padded = _padded(channels, 8, 8)
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.view(count, depth, rows, 8, columns, 8).transpose(3, 4)
    cosines = _cosines().to(channels)
    steps = _steps(table, quality).to(channels)
    coefficients = (cosines @ blocks @ cosines.T / steps).round() * steps
    restored = (cosines.T @ coefficients @ cosines).transpose(3, 4).reshape(padded.shape)
    return restored[:, :, :height, :width].round().clamp(-128, 127)


def _padded(images: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of `rows` and `columns`."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % columns, 0, -height % rows), mode="replicate")


def _steps(table: tuple[tuple[int, ...], ...], quality: float) -> Tensor:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table, dtype=torch.float64) * scale + 50) / 100).floor().clamp(1, 255)


def _cosines() -> Tensor:
    """Return the orthonormal matrix of the discrete cosine transform of eight values."""
    places = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi / 8 * (places + 0.5) * places[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
