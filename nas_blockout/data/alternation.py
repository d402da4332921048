"""Batches of two kinds of images in turn: for the weights of a supernet, and for its architecture parameters."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nas_blockout.data.loader import Loader, batch_sizes
from nas_blockout.settings_fields import Conflict
from nas_blockout.training_protocol import is_held_batch

_SEED = 15_485_863  # keeps the division of the images apart from their order


class AlternatingLoader:
    """Batches, those of every so many-th step of images that are held, and the others of those that are not.

    A pass has as many batches as one of all images has, of the same sizes, and every image is in one of them.

    Args:
        whole: Loads all images.
        loading: Makes a loader that differs from `whole` in loading these rows alone.
        every: One step of the optimizer in so many reads held images, the last of them; 2 or more.
        seed: Decides which images are held, the same ones in every pass.
        accumulation: Batches of one step.

    Raises:
        Conflict: A pass has too few batches for a step on held images.
    """

    def __init__(
        self, whole: Loader, loading: Callable[[Tensor], Loader], *, every: int, seed: int, accumulation: int = 1
    ) -> None:
        require_held_batch(len(whole), whole.batch_size, every=every, accumulation=accumulation)
        sizes = batch_sizes(len(whole), whole.batch_size)
        self._kinds = [is_held_batch(number, every, accumulation) for number in range(len(sizes))]
        held = sum(size for size, kind in zip(sizes, self._kinds, strict=True) if kind)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed + _SEED))
        self.held, self.others = order[:held].sort().values, order[held:].sort().values
        """Numbers of the images that are held, and of the others."""
        self._whole = whole
        self._loaders = loading(self.others), loading(self.held)

    def __len__(self) -> int:
        """Return the number of images in one pass."""
        return len(self._whole)

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(images, labels)` of both kinds in turn, each shuffled; without a generator all images in order.

        Args:
            generator: On the processor; the pass depends on its state alone.
            first: Number of the first batch that is yielded.
        """
        if generator is None:
            yield from self._whole.batches(None, first)
            return
        seeds = torch.randint(2**62, (2,), generator=generator).tolist()
        passes = [
            loader.batches(torch.Generator().manual_seed(seed), self._kinds[:first].count(kind))
            for loader, seed, kind in zip(self._loaders, seeds, (False, True), strict=True)
        ]
        for kind in self._kinds[first:]:
            yield next(passes[kind])

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield batches of images of both kinds, drawn as by `Loader.sample`."""
        yield from self._whole.sample(images, generator)


def require_held_batch(images: int, batch_size: int, *, every: int, accumulation: int = 1) -> None:
    """Refuse a pass that has too few batches for a step on held images.

    Args:
        images: Of the pass.
        batch_size: Of its batches.
        every: One step of the optimizer in so many reads held images, the last of them; 2 or more.
        accumulation: Batches of one step.

    Raises:
        Conflict: It has.
    """
    batches, fewest = len(batch_sizes(images, batch_size)), accumulation * (every - 1) + 1
    if batches < fewest:
        message = (
            f"training.batch_size: an epoch needs {fewest} batches or more, the last of them for the architecture "
            f"parameters, got {batches} of {images} images; make batches smaller"
        )
        raise Conflict(message, "training.batch_size", "method.weight_steps", "method.name", "data")
