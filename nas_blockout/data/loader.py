"""Batches of a split: one permutation an epoch, one look-up a batch, and no worker processes where it is in memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nas_blockout.data.augment import RESIZED_CROP, Variation, draw_pass, variations_of
from nas_blockout.data.data_settings import AUGMENTATIONS
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.splits import AnyPart
from nas_blockout.data.streaming import StreamedPart
from nas_blockout.data.subsets import drawn_alike
from nas_blockout.data.tensor_dataset import Part
from nas_blockout.plugins.options import misnamed
from nas_blockout.settings_fields import PlainMapping, refuse

SAMPLE_BATCH = 256  # in larger batches the maps of small networks leave the cache, which takes half as long again


class Loader:
    """Batches of images and labels, on the device of the part.

    Args:
        part: One split, in memory or streamed: both give the same batches.
        batch_size: Images a batch, 1 or more.
        augment: How images are varied, one of `AUGMENTATIONS` or a plug-in; only where a generator is given.
        augment_options: Settings of a plug-in.
        preprocessing: How the images of a `Part` were normalized, where the augmentation is one of pixels; the other
            parts know it.
        balanced: Whether a pass with a generator draws its images with replacement, every class as often as any other.
        rows: Numbers of the images of the part that are loaded, shape ``(m,)``, int64, on the processor; None for all.

    Raises:
        ValueError: `batch_size` is below 1, `augment` is unknown, it cuts images that are not read from files, or it
            needs `preprocessing`.
    """

    def __init__(
        self,
        part: AnyPart,
        batch_size: int,
        *,
        augment: str = "none",
        augment_options: PlainMapping = PlainMapping(),  # noqa: B008  # it is immutable
        preprocessing: Preprocessing | None = None,
        balanced: bool = False,
        rows: Tensor | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        options = augment_options
        refuse(misnamed("augmentation", AUGMENTATIONS, augment, options, key="augment", options_key="augment_options"))
        self._variations = variations_of(augment, options)
        if RESIZED_CROP in self._variations and not isinstance(part, StreamedPart):
            raise ValueError(f"augment {augment!r} cuts whole images of files, got {type(part).__name__} in memory")
        self.part = part
        self.batch_size = batch_size
        self._rows = rows
        labels = part.labels.cpu() if balanced else None
        self._labels = labels if labels is None or rows is None else labels[rows]
        preprocessing = preprocessing if isinstance(part, Part) else part.preprocessing
        self._normalize = preprocessing.on(part.device) if preprocessing else None
        if self._normalize is None and any(variation.of_pixels for variation in self._variations):
            raise ValueError(f"the augmentation {augment!r} is one of pixels: give the loader their preprocessing")
        background = torch.tensor(part.background or (0.0,), dtype=part.images.dtype).view(-1, 1, 1)
        # Asked once, on the processor: to ask an accelerator whether a batch has one would wait for it.
        self._background = background.to(part.device) if background.any() else None

    def __len__(self) -> int:
        """Return the number of images in one pass."""
        return len(self.part) if self._rows is None else len(self._rows)

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(images, labels)`: shuffled and augmented with a generator, in order and plain without one.

        Every image comes exactly once a pass, unless a shuffled one is balanced; then as many are drawn. In a shuffled
        pass a last batch of a single image, on which batch normalization cannot train, joins the batch before it.

        Args:
            generator: On the processor; the pass depends on its state alone.
            first: Number of the first batch that is yielded; of those before it no image is read.
        """
        count = len(self)
        if generator is None:
            yield from self.part.gather(torch.split(self._numbers(torch.arange(count)), self.batch_size)[first:])
            return
        if self._labels is None:
            order = torch.randperm(count, generator=generator)
        else:
            order = drawn_alike(self._labels, generator)
        sizes = batch_sizes(count, self.batch_size)
        batches = torch.split(self._numbers(order), sizes)[first:]
        if not self._variations:
            yield from self.part.gather(batches)
            return
        height, width = self.part.images.shape[2:]
        drawn = draw_pass(self._variations, sizes, (height, width), generator)
        choices = dict(zip(self._variations, drawn, strict=True))
        crops = choices.pop(RESIZED_CROP, None)
        chosen = {variation: every.to(self.part.device).split(sizes, 1) for variation, every in choices.items()}
        cuts = None if crops is None else crops.split(sizes, 1)[first:]
        for number, (images, labels) in enumerate(self._gathered(batches, cuts), first):
            for variation, of_batch in chosen.items():
                images = self._varied(images, variation, of_batch[number])
            yield images, labels

    def _numbers(self, order: Tensor) -> Tensor:
        """Return which images of the part stand at places among those that are loaded."""
        return order if self._rows is None else self._rows[order]

    def _gathered(self, batches: Sequence[Tensor], crops: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        if crops is None:
            return self.part.gather(batches)
        assert isinstance(self.part, StreamedPart)
        return self.part.gather(batches, crops)

    def _varied(self, images: Tensor, variation: Variation, choices: Tensor) -> Tensor:
        assert variation.apply is not None
        if not variation.of_pixels:
            return variation.apply(images, choices, self._background)
        assert self._normalize is not None
        return self._normalize(variation.apply(self._normalize.pixels(images), choices, self._background))

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield batches of images drawn at random, each at most once and plain.

        A prefix would be no sample: files often lie by class. Every batch has images from all over what was drawn, in
        the order of the split, so that a sample of all images in one batch is the same whatever the generator.

        Args:
            images: How many; all, if the split has fewer.
            generator: On the processor; the sample depends on its state alone.
        """
        chosen = self._numbers(torch.randperm(len(self), generator=generator)[:images].sort().values)
        parts = -(-len(chosen) // SAMPLE_BATCH)
        yield from (batch for batch, _ in self.part.gather([chosen[first::parts] for first in range(parts)]))


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of a shuffled pass: no last batch of one image, if there is one before it."""
    full, rest = divmod(samples, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    return [*sizes[:-2], batch_size + 1] if rest == 1 and full else sizes
