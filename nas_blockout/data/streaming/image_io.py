"""Image files as a model takes them: upright, without transparency, with values in [0, 1].

What a file can hold beyond eight bits a channel, and what becomes of it:

- a transparent pixel lets a background show through, which a setting names; the color hidden below it is never seen;
- 16 bits: the upper 8 of them, so that images of one folder keep their brightness relative to each other;
- whole numbers of 32 bits that do not fit into 16, and floating-point numbers that are not all in [0, 1]: the range of
  the image itself, its smallest value black and its largest white. What is not finite counts as the smallest value.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from nas_blockout.data.errors import DataCorrupt
from nas_blockout.data.streaming.random_crops import middle

DROPPED = "dropped"  # transparency is ignored, and the colors below it show, as in version 1
BACKGROUNDS: Mapping[str, int] = {"white": 255, "black": 0, "gray": 128}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files


def read_image(
    path: Path, channels: int, size: tuple[int, int], *, background: str = "white", resize_size: int | None = None
) -> Tensor:
    """Return an image file as a tensor; one of another size is scaled until it covers `size`, and its middle cut out.

    Args:
        path: A file that Pillow reads.
        channels: 1 for gray, 3 for color.
        size: Height and width.
        background: What transparent pixels show: one of `BACKGROUNDS`, or ``dropped``.
        resize_size: Shorter side to which an image is scaled before its middle is cut out, in pixels; None to cover
            `size`.

    Returns:
        Shape ``(channels, height, width)``, float32 in [0, 1].

    Raises:
        DataCorrupt: The file is no image or is truncated.
        ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (color), got channels={channels}")
    try:
        with Image.open(path) as file:
            image = opaque(file, background).convert("L" if channels == 1 else "RGB")
    except UNREADABLE as error:
        raise DataCorrupt(f"{path} must be a whole image, got: {error}; name a PNG or JPEG file") from error
    height, width = size
    if resize_size is not None:
        whole = resized(image, resize_size)
        top, left, _, _ = middle(whole.height, whole.width, size)
        image = whole.crop((left, top, left + width, top + height))
    elif image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(image)).reshape(height, width, channels)
    return values.permute(2, 0, 1).contiguous().float() / 255


def resized(image: Image.Image, shorter: int) -> Image.Image:
    """Return an image scaled to a shorter side of so many pixels, with its ratio of width and height."""
    least = min(image.size)
    width, height = (int(shorter * length / least) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def opaque(image: Image.Image, background: str) -> Image.Image:
    """Return an image upright, with eight bits a channel, and with a background where it is transparent.

    Args:
        image: As it was opened.
        background: One of `BACKGROUNDS`, or ``dropped``.
    """
    upright = _eight_bits(ImageOps.exif_transpose(image))
    if background == DROPPED or not upright.has_transparency_data:
        return upright
    layer = upright.convert("RGBA")
    shade = BACKGROUNDS[background]
    return Image.alpha_composite(Image.new("RGBA", layer.size, (shade, shade, shade, 255)), layer).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with more than eight bits a pixel in eight, any other as it is."""
    # Pillow's own conversion to "L" or "RGB" clips at 255 instead of scaling.
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
        within = values.min() >= 0 and values.max() <= 1
        return _gray(values if within else _by_its_range(values))
    if image.mode.startswith("I"):
        numbers = np.asarray(image)
        if numbers.min() >= 0 and numbers.max() < 2**16:
            return Image.fromarray((numbers >> 8).astype(np.uint8))
        return _gray(_by_its_range(numbers.astype(np.float64)))
    return image


def _by_its_range(values: NDArray[Any]) -> NDArray[Any]:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _gray(shares: NDArray[Any]) -> Image.Image:
    return Image.fromarray((255 * shares).round().astype(np.uint8))
