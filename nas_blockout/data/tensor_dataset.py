"""Images in memory: as their source has them, and normalized."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_blockout.data.preprocessing import Preprocessing

_IMAGES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Labeled:
    """Images as their source has them, and their classes.

    Args:
        images: Shape (n, channels, height, width); uint8 in 0..255, or float32 in [0, 1].
        labels: Shape (n,), int64, numbers of classes.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> "Labeled":
        """Return the images and labels at an index, shape (m,), int64."""
        return Labeled(self.images.index_select(0, index), self.labels.index_select(0, index))

    def loaded(self) -> "Labeled":
        """Return itself: it is in memory."""
        return self

    def scaled(self) -> Iterator[Tensor]:
        """Yield all images in batches, float32 in [0, 1]."""
        yield from map(scaled, torch.split(self.images, _IMAGES_AT_ONCE))

    def normalized(self, preprocessing: Preprocessing) -> "Part":
        """Return the images as a network reads them."""
        images = torch.empty(self.images.shape, dtype=torch.float32)
        for batch, normalized in zip(self.scaled(), torch.split(images, _IMAGES_AT_ONCE), strict=True):
            normalized.copy_(preprocessing.apply(batch))
        return Part(images, self.labels, preprocessing.background)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One split in memory, normalized.

    Args:
        images: Shape (n, channels, height, width), float32.
        labels: Shape (n,), int64.
        background: What a pixel outside the image is worth, for each channel; None for 0.
    """

    images: Tensor
    labels: Tensor
    background: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.ndim != 1 or len(self.images) != len(self.labels):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"images must be (n, channels, height, width) and labels (n,), got {shapes}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Part":
        """Return the part with its tensors on a device."""
        return Part(self.images.to(device), self.labels.to(device), self.background)

    def gather(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels for each batch of numbers, shape (m,), int64."""
        for index in batches:
            chosen = index.to(self.images.device)
            yield self.images.index_select(0, chosen), self.labels.index_select(0, chosen)


def scaled(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images
