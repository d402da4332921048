"""Image files as a model takes them: of its size and colors, values in [0, 1]."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nas_blockout.data.errors import DataCorrupt


def read_image(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """Return an image file as a tensor; one of another size is scaled until it covers `size`, and its middle cut out.

    Args:
        path: A file that Pillow reads.
        channels: 1 for gray, 3 for color.
        size: Height and width.

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
            image = eight_bits(ImageOps.exif_transpose(file)).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"{path} must be a whole image, got: {error}; name a PNG or JPEG file") from error
    height, width = size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(image)).reshape(height, width, channels)
    return values.permute(2, 0, 1).contiguous().float() / 255


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits a pixel with the upper 8 of them, any other as it is."""
    if image.mode.startswith("I"):  # Pillow's own conversion to "L" or "RGB" clips at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image
