"""Worker processes that decode images ahead of the network that trains on them."""

import os
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas_blockout.data.errors import DataCorrupt

Read = Callable[[int, Tensor | None], Tensor]
Wanted = tuple[list[int], NDArray[np.float32] | None]  # numbers of images, and the choices of their crops, (n, choices)

# The loaders of all decoders, by the number of the object that owns each. A loader must not be part of a cycle of
# garbage: the collector would close the pipes to its processes before it is asked to end them, and each would be
# waited for. Decoders often are, being part of a training, so they hold a number and this holds the loader.
_LOADERS: "dict[int, DataLoader[Tensor]]" = {}


class Decoders:
    """Processes that read images of one split; they stay between passes, and end with this object.

    Args:
        read: Returns an image, shape (3, side, side), uint8, from its number and the choices of its crop, or None.
        workers: Processes, 0 or more; with 0 the calling process reads. No more are started than there are processors.
        pinned: Whether batches are moved to memory from which an accelerator copies by itself.
        stays: Whether the processes outlive a pass.
    """

    def __init__(self, read: Read, workers: int, *, pinned: bool = False, stays: bool = True) -> None:
        self.read = read
        self.workers = min(workers, _processors())
        self.pinned = pinned
        self.stays = stays and workers > 0
        self._order: list[Wanted] = []
        self._busy = False
        weakref.finalize(self, _end, id(self), os.getpid())

    def __reduce__(self) -> tuple[Callable[..., "Decoders"], tuple[Read, int, bool, bool]]:
        """Travel to another process without the processes, which belong to this one."""
        return _decoders, (self.read, self.workers, self.pinned, self.stays)

    def batches(self, numbers: Sequence[Tensor], crops: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
        """Yield images for each batch of numbers, shape (n, 3, side, side), uint8, in that order.

        Args:
            numbers: Of the images of each batch, shape (n,), int64.
            crops: Choices of their crops, shape (choices, n) each; None for the middle of every image.

        Raises:
            DataCorrupt: A file is not an image, is truncated or is gone; the message names it.
        """
        if self._busy:  # a second pass while a first one runs
            yield from Decoders(self.read, self.workers, pinned=self.pinned, stays=False).batches(numbers, crops)
            return
        choices = [None] * len(numbers) if crops is None else [each.T.contiguous().numpy() for each in crops]
        self._order[:] = [(index.tolist(), each) for index, each in zip(numbers, choices, strict=True)]
        self._busy = True
        try:
            yield from self._loaded()
            return
        except DataCorrupt as error:  # of a worker: its message begins with the worker's own traceback
            problem = str(error).rpartition(f"{DataCorrupt.__name__}: ")[2].strip()
            error.__traceback__ = None  # its frames hold the workers, which would live on until they are collected
            _LOADERS.pop(id(self), None)
        finally:
            self._busy = False
            if not self.stays:
                _LOADERS.pop(id(self), None)
        raise DataCorrupt(problem)

    def _loaded(self) -> DataLoader[Tensor]:
        if id(self) not in _LOADERS:
            _LOADERS[id(self)] = DataLoader(
                _Images(self.read),
                # The order is the caller's, the same as from memory; the loader may only decode ahead. It reads the
                # list anew in every pass.
                batch_sampler=self._order,  # type: ignore[arg-type]  # batches of numbers, with the choices of crops
                num_workers=self.workers,
                collate_fn=_whole,  # type: ignore[arg-type]  # a batch is made in one piece
                pin_memory=self.pinned,
                persistent_workers=self.stays,
                generator=torch.Generator(),  # else the loader would draw from the global one
            )
        return _LOADERS[id(self)]


class _Images(Dataset[Tensor]):
    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitems__(self, wanted: Wanted) -> Tensor:
        """Return a batch; the loader calls this with what its sampler yields."""
        numbers, crops = wanted
        if crops is None:
            return torch.stack([self.read(number, None) for number in numbers])
        choices = torch.from_numpy(crops)
        return torch.stack([self.read(number, each) for number, each in zip(numbers, choices, strict=True)])


def _end(number: int, process: int) -> None:
    """End the processes of decoders that are gone, unless this is a copy of the process to which they belong."""
    if os.getpid() == process:
        _LOADERS.pop(number, None)


def _processors() -> int:
    # Of this process, where the system says so: torch warns of more.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole(batch: Tensor) -> Tensor:
    return batch


def _decoders(read: Read, workers: int, pinned: bool, stays: bool) -> Decoders:
    return Decoders(read, workers, pinned=pinned, stays=stays)
