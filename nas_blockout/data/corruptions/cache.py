"""Corrupted images that are made once and reused for many models."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nas_blockout.data.corruptions.registry import TESTING, corrupt
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.splits import AnyPart
from nas_blockout.data.subsets import balanced
from nas_blockout.data.tensor_dataset import BytePart

_IMAGES_AT_ONCE = 512


class CorruptedImages:
    """A class-balanced subset of a split under every kind of corruption that is for testing, kept as bytes.

    A byte a pixel, as in a file of an image, is a quarter of what normalized images take: 1,000 gray images of 28
    pixels at five severities need 59 MB.

    Args:
        part: Normalized images.
        preprocessing: With which they were normalized.
        images: Size of the subset, 1 or more; all, if there are fewer. Subsets of one seed are nested.
        severities: In 1..5.
        seed: Of the choice and of every corruption.

    Attributes:
        index: Numbers of the images in the split, shape (m,), int64.
        seconds: Time that making them took.
    """

    def __init__(
        self, part: AnyPart, preprocessing: Preprocessing, *, images: int, severities: Sequence[int], seed: int
    ) -> None:
        began = time.monotonic()
        labels = part.labels.cpu()  # corrupting is work for the processor, wherever the images are
        self.index = balanced(labels, min(images, len(part)), seed=seed)
        self.labels = labels[self.index]
        self._preprocessing = preprocessing
        batches = part.gather(torch.split(self.index, _IMAGES_AT_ONCE))
        plain = torch.cat([preprocessing.undo(normalized.cpu()) for normalized, _ in batches])
        self._bytes = {
            # A seed of its own for each: leaving out a severity changes no other one.
            (kind, severity): _corrupted(plain, kind, severity, seed=(100 * seed + 5 * number + severity) % 2**63)
            for number, kind in enumerate(TESTING)
            for severity in severities
        }
        self.seconds = time.monotonic() - began

    def __len__(self) -> int:
        return len(self.index)

    def parts(self) -> Iterator[tuple[str, int, BytePart]]:
        """Yield the kind, the severity and the images, normalized, kind by kind."""
        for (kind, severity), images in self._bytes.items():
            yield kind, severity, BytePart(images, self.labels, self._preprocessing)


def _corrupted(images: Tensor, kind: str, severity: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batches = torch.split(images, _IMAGES_AT_ONCE)
    corrupted = [corrupt(batch, kind, severity=severity, generator=generator) for batch in batches]
    return torch.cat([batch.mul(255).round_().to(torch.uint8) for batch in corrupted])
