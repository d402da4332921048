"""Images in memory: as their source has them, and as a network reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nas_blockout.data.placement import Placement
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

    def normalized(self, preprocessing: Preprocessing) -> "Part | BytePart":
        """Return the images as a network reads them: bytes stay bytes, which take a quarter of the memory."""
        if self.images.dtype == torch.uint8:
            return BytePart(self.images, self.labels, preprocessing)
        return Part(preprocessing.apply(self.images), self.labels, preprocessing.background)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One split in memory, normalized.

    Args:
        images: Shape (n, channels, height, width), float32.
        labels: Shape (n,), int64, on the device of the batches; the images are there too, or on the processor.
        background: What a pixel outside the image is worth, for each channel; None for 0.
    """

    images: Tensor
    labels: Tensor
    background: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _require_shapes(self.images, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    def at(self, index: Tensor) -> "Part":
        """Return the images and labels at an index, shape (m,), int64."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: str | torch.device) -> "Part":
        """Return the part with its tensors on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def placed(self, placement: Placement) -> "Part":
        """Return the part with its labels on a device, and its images as well if they fit."""
        return replace(self, images=placement.of_images(self.images), labels=self.labels.to(placement.device))

    def gather(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels for each batch of numbers, shape (m,), int64."""
        return _gathered(self.images, self.labels, batches)


@dataclass(frozen=True, slots=True, eq=False)
class BytePart:
    """One split in memory, a byte a value, normalized a batch at a time; offers what `Part` does.

    Args:
        pixels: Shape (n, channels, height, width), uint8.
        labels: Shape (n,), int64, on the device of the batches; the pixels are there too, or on the processor.
        preprocessing: Applied to each batch, on its device.
    """

    pixels: Tensor
    labels: Tensor
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        _require_shapes(self.pixels, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    @property
    def images(self) -> "NormalizedImages":
        """Images, normalized when they are indexed."""
        return NormalizedImages(self)

    @property
    def background(self) -> tuple[float, ...]:
        """What a pixel outside the image is worth, for each channel."""
        return self.preprocessing.background

    def at(self, index: Tensor) -> "BytePart":
        """Return the images and labels at an index, shape (m,), int64."""
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: str | torch.device) -> "BytePart":
        """Return the part with its tensors on a device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def placed(self, placement: Placement) -> "BytePart":
        """Return the part with its labels on a device, and its pixels as well if they fit."""
        return replace(self, pixels=placement.of_images(self.pixels), labels=self.labels.to(placement.device))

    def gather(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels for each batch of numbers, shape (m,), int64."""
        normalize = self.preprocessing.on(self.device)
        for pixels, labels in _gathered(self.pixels, self.labels, batches):
            yield normalize(pixels), labels


@dataclass(frozen=True, slots=True, eq=False)
class NormalizedImages:
    """Images that are normalized when they are indexed: stands in for the images of a `Part`."""

    part: BytePart

    @property
    def shape(self) -> torch.Size:
        """Shape (n, channels, height, width)."""
        return self.part.pixels.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.part.device

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Return images normalized, shape (m, channels, height, width), float32."""
        return self.part.preprocessing.on(self.device)(self.part.pixels[chosen].to(self.device))


def scaled(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def _require_shapes(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"images must be (n, channels, height, width) and labels (n,), got {shapes}")


def _gathered(images: Tensor, labels: Tensor, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels for each batch of numbers, on the device of the labels."""
    numbers = moved(batches, labels.device)
    if images.device == labels.device:
        for chosen in numbers:
            yield images.index_select(0, chosen), labels.index_select(0, chosen)
        return
    for batch, chosen in zip(batches, numbers, strict=True):
        yield _copied(images, batch, labels.device), labels.index_select(0, chosen)


def moved(batches: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Return the numbers of all batches on a device, in one copy: with one a batch, a device waits for each."""
    if device.type == "cpu" or not batches:
        return batches
    return torch.split(torch.cat(tuple(batches)).to(device), [len(batch) for batch in batches])


def _copied(images: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Return images of the processor on an accelerator; the copy runs while the network computes."""
    # torch keeps pinned memory for the next batch, and does not hand it out before the copy has ended.
    pinned = device.type == "cuda"
    rows = torch.empty((len(index), *images.shape[1:]), dtype=images.dtype, pin_memory=pinned)
    return torch.index_select(images, 0, index, out=rows).to(device, non_blocking=pinned)
