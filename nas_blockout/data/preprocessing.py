"""What turns images into what a network reads: measured on the images trained on, recorded with every model."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nas_blockout.data.errors import DataUnsuitable

_CONSTANT = 1e-6  # a standard deviation below this is rounding


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What turns an image with values in [0, 1] into what a network reads: `(image - mean) / std` for each channel.

    Args:
        channels: 1 for gray, 3 for red, green and blue.
        height: In pixels.
        width: In pixels.
        mean: For each channel, over the images trained on.
        std: Likewise the standard deviation, above 0.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values, one a channel, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {self.std}")

    @property
    def background(self) -> tuple[float, ...]:
        """What a black pixel becomes, for each channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    def apply(self, images: Tensor) -> Tensor:
        """Normalize images, shape (n, channels, height, width), float with values in [0, 1]."""
        return images.sub(_per_channel(self.mean, images)).div_(_per_channel(self.std, images))

    def on(self, device: str | torch.device) -> "Normalization":
        """Return what does the same on a device, also to bytes."""
        mean, std = (torch.tensor(values).view(-1, 1, 1).to(device) for values in (self.mean, self.std))
        # Of an accelerator's tensor: what is divided by a number of the processor is multiplied there by its inverse,
        # which is rounded.
        highest = 255 if torch.device(device).type == "cpu" else torch.tensor(255.0).to(device)
        return Normalization(mean, std, highest)

    def undo(self, images: Tensor) -> Tensor:
        """Return normalized images as values in [0, 1], for corrupting or drawing them."""
        return images.mul(_per_channel(self.std, images)).add_(_per_channel(self.mean, images)).clamp_(0, 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Preprocessing":
        """Build from what `to_json` returned."""
        channels, height, width = (int(document[key]) for key in ("channels", "height", "width"))
        return cls(channels, height, width, mean=tuple(document["mean"]), std=tuple(document["std"]))


@dataclass(frozen=True, slots=True, eq=False)
class Normalization:
    """Normalizes images on one device, with the numbers of `Preprocessing.apply` to the last bit.

    Args:
        mean: Shape (channels, 1, 1).
        std: Likewise.
        highest: What the highest value of a byte is divided by to become 1.
    """

    mean: Tensor
    std: Tensor
    highest: Tensor | int

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize images, shape (n, channels, height, width): uint8 in 0..255, or float32 in [0, 1]."""
        if images.dtype == torch.uint8:
            return images.to(torch.float32).div_(self.highest).sub_(self.mean).div_(self.std)
        return images.sub(self.mean).div_(self.std)

    def pixels(self, images: Tensor) -> Tensor:
        """Return normalized images as the nearest bytes, from which normalizing makes them again."""
        return images.mul(self.std).add_(self.mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def measure(batches: Iterable[Tensor]) -> Preprocessing:
    """Measure mean and standard deviation of every channel; that of a channel that never varies is taken as 1.

    Args:
        batches: Images, each of shape (n, channels, height, width), float with values in [0, 1].

    Raises:
        DataUnsuitable: No channel varies.
    """
    shape, pixels, total = (0, 0, 0), 0, torch.zeros(2, 1, dtype=torch.float64)
    for images in batches:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        values = images.double()
        total = total + torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        pixels += len(images) * shape[1] * shape[2]
    mean, square = total / pixels  # float64: the difference of squares below loses half of the digits
    std = (square - mean.square()).clamp_min(0).sqrt()
    if std.max() < _CONSTANT:
        raise DataUnsuitable(f"training images must vary, got the same values everywhere: {mean.tolist()}")
    std = std.where(std >= _CONSTANT, 1.0)  # such as a color channel that is 0 everywhere: it stays 0
    return Preprocessing(*shape, tuple(mean.tolist()), tuple(std.tolist()))


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
