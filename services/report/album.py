"""Thumbnails of a study's images for its report."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nas_blockout.data import AnyPart, Splits

Image = NDArray[np.uint8]
MOST_PIXELS = 48  # per side, which keeps the report small


class Album:
    """Thumbnails of the validation images of a class, and of test images by number.

    The test images are loaded on first use. A report does so only after all arms have been compared, and only to show
    images: nothing is measured on them.

    Args:
        splits: The data of the study.
    """

    def __init__(self, splits: Splits) -> None:
        self._splits = splits

    def of_class(self, label: int, count: int) -> list[Image]:
        """Return the first validation images of a class."""
        part = self._splits.validation
        return self._thumbnails(part, (part.labels == label).nonzero().flatten()[:count])

    @cached_property
    def test_labels(self) -> NDArray[np.int64]:
        """True classes of the test images, in their order."""
        labels: NDArray[np.int64] = self._test.labels.numpy()
        return labels

    def of_test(self, numbers: Sequence[int]) -> list[Image]:
        """Return test images by their numbers."""
        return self._thumbnails(self._test, torch.tensor(list(numbers), dtype=torch.int64))

    @cached_property
    def _test(self) -> AnyPart:
        return self._splits.test()

    def _thumbnails(self, part: AnyPart, index: Tensor) -> list[Image]:
        if not len(index):
            return []
        # One by one: a streamed part reads slices only.
        images = torch.cat([part.images[int(number) : int(number) + 1] for number in index])
        originals = self._splits.preprocessing.undo(images.clone())
        sides = min(originals.shape[-2], MOST_PIXELS), min(originals.shape[-1], MOST_PIXELS)
        pixels = (255 * adaptive_avg_pool2d(originals, sides)).round().to(torch.uint8)
        return [image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy() for image in pixels]
