"""Images of a program as one tensor, channels first, as bytes or as floats; what is refused is told with a remedy."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nas_blockout.data.errors import DataUnsuitable

Channels = Literal["first", "last"]
CHANNELS = (1, 3)
_GRAY_MODES = ("1", "L")
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa", "La")

_Array = NDArray[Any]


def images_of(found: Any, *, split: str, channels: Channels | None, in_unit_range: bool) -> Tensor:
    """Return images as a tensor of shape ``(n, channels, height, width)``: uint8 in 0..255, or finite float32.

    Args:
        found: An array or a tensor of all images, or a sequence of arrays, tensors or images of Pillow, all of one
            size. Without channels they are gray.
        split: Name of the split, for errors.
        channels: Whether channels come before height and width or after them; None to tell it by their number.
        in_unit_range: Whether floats must lie in [0, 1].

    Raises:
        DataUnsuitable: There is none, they differ in size, or their type, their range or their channels are not clear.
    """
    array = _array_of(found, split)
    if array.ndim not in (3, 4) or not len(array):
        raise DataUnsuitable(
            f"images of {split} must be of shape (n, height, width), (n, channels, height, width) or (n, height, "
            f"width, channels) with n of 1 or more, got {array.shape}"
            + ("; reshape rows of pixels to images first" if array.ndim == 2 else "")
        )
    values = _values(array, split, in_unit_range=in_unit_range)
    return torch.from_numpy(np.ascontiguousarray(_channels_first(values, split, channels)))


def _array_of(found: Any, split: str) -> _Array:
    if isinstance(found, Tensor):
        return found.detach().cpu().numpy()
    if isinstance(found, Sequence) and len(found):
        if any(isinstance(each, Image.Image) for each in found):
            return _of_pictures(found, split)
        return _stacked(
            [_array_of(each, split) if isinstance(each, Tensor) else np.asarray(each) for each in found], split
        )
    return np.asarray(found)


def _of_pictures(found: Sequence[Any], split: str) -> _Array:
    """Return images of Pillow as bytes: gray if all of them are, else in color."""
    for number, each in enumerate(found):
        if not isinstance(each, Image.Image):
            raise DataUnsuitable(
                f"image {number} of {split} must be of Pillow, as others are, got {type(each).__name__}"
            )
        if each.mode in _TRANSPARENT_MODES or "transparency" in each.info:
            raise DataUnsuitable(
                f"image {number} of {split} is transparent (mode {each.mode}), and nothing says what shows through; "
                "put it on a background first, such as by image.convert('RGB')"
            )
    gray = all(each.mode in _GRAY_MODES for each in found)
    return _stacked([np.asarray(each.convert("L" if gray else "RGB")) for each in found], split)


def _stacked(arrays: Sequence[_Array], split: str) -> _Array:
    shapes = {each.shape: number for number, each in reversed(list(enumerate(arrays)))}
    if len(shapes) > 1:
        told = " and ".join(
            f"{shape} (image {number})" for shape, number in sorted(shapes.items(), key=lambda x: x[1])[:2]
        )
        raise DataUnsuitable(
            f"all images of {split} must have one shape, got {len(shapes)}: {told}; resize them first, or put them "
            "into folders and use the source imagefolder with image_size"
        )
    return np.stack(arrays)


def _values(array: _Array, split: str, *, in_unit_range: bool) -> _Array:
    """Return bytes or finite float32.

    Raises:
        DataUnsuitable: The values are of another kind, or out of range.
    """
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    if kind in "iu":
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 255:
            raise DataUnsuitable(
                f"whole numbers as images of {split} must lie in 0..255, got {low}..{high} of type {array.dtype}; "
                "scale them to floats in [0, 1], such as by dividing by 65535.0"
            )
        return array.astype(np.uint8)
    if kind != "f":
        raise DataUnsuitable(f"images of {split} must be numbers, got the type {array.dtype}")
    values = array.astype(np.float32, copy=False)
    bad = ~np.isfinite(values)
    if bad.any():
        number = int(np.argwhere(bad)[0][0])
        count = int(bad.reshape(len(bad), -1).any(1).sum())
        raise DataUnsuitable(
            f"images of {split} must be finite, got NaN or infinity in {count} of {len(values)} images, the first "
            f"of them image {number}; remove or repair them"
        )
    if in_unit_range:
        _require_unit_range(values, split)
    return values


def _require_unit_range(values: _Array, split: str) -> None:
    low, high = float(values.min()), float(values.max())
    if low < 0:
        remedy = "give them as they were before they were normalized: that is measured on the training images"
    else:
        remedy = f"divide them by {255 if 16 < high <= 255 else f'{high:g}'}, or give bytes (uint8)"
    if low < 0 or high > 1:
        raise DataUnsuitable(f"floats as images of {split} must lie in [0, 1], got {low:g} to {high:g}; {remedy}")


def _channels_first(values: _Array, split: str, channels: Channels | None) -> _Array:
    if values.ndim == 3:
        return values[:, None]
    first, last = values.shape[1], values.shape[3]
    if channels is None:
        if first in CHANNELS and last in CHANNELS:
            raise DataUnsuitable(
                f"images of {split} have the shape {values.shape}, in which channels may come first or last; say "
                "channels='first' or channels='last'"
            )
        channels = "first" if first in CHANNELS else "last"
    moved = values if channels == "first" else np.moveaxis(values, 3, 1)
    if moved.shape[1] not in CHANNELS:
        hint = "; drop the transparency (the fourth channel)" if moved.shape[1] == 4 or first == 4 else ""
        raise DataUnsuitable(
            f"images of {split} must have 1 channel (gray) or 3 (color), first or last, got the shape "
            f"{values.shape}{hint}"
        )
    return moved
