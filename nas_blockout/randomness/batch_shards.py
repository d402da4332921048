"""Which rows of a batch a process computes where several processes share every batch, and how it draws for them.

A layer draws for the whole batch and keeps the rows that are its own. So the draws of a training, and with them its
numbers, do not depend on how many processes share it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_blockout.randomness.draws import Randomness, random_uniforms


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of a batch that one process computes.

    Args:
        first: The first of them, from 0.
        rows: How many, 1 or more.
        whole: Rows of the whole batch.
        counted: Whether they count. Where a batch has fewer rows than there are processes, those that are left over
            compute a row of another one, which counts for nothing, so that all take the same steps.
    """

    first: int
    rows: int
    whole: int
    counted: bool = True

    @property
    def weight(self) -> float:
        """The share in [0, 1] that the mean over these rows has in the mean over the batch."""
        return self.rows / self.whole if self.counted else 0.0

    def of(self, values: Tensor) -> Tensor:
        """Return the rows of this process of a tensor of all rows: a view."""
        return values[self.first : self.first + self.rows]


def shard_of(whole: int, *, rank: int, size: int) -> Shard:
    """Return the rows of a process: as even as can be, the first processes with one row more.

    Args:
        whole: Rows of the batch, 1 or more.
        rank: Number of the process, from 0.
        size: Number of processes.
    """
    if rank >= whole:
        return Shard(whole - 1, 1, whole, counted=False)
    each, more = divmod(whole, size)
    return Shard(rank * each + min(rank, more), each + (rank < more), whole)


class ShardGenerator(torch.Generator):
    """A generator of draws in one of several processes; all have one seed and draw alike.

    Attributes:
        shard: The rows of the batch for which is drawn next; None where it is the whole batch.
        total: Returns the sum of a tensor over all processes. All must call it, with tensors of one shape.
    """

    shard: Shard | None = None
    total: Callable[[Tensor], Tensor] = staticmethod(lambda values: values)


def shard_drawn_by(source: Randomness | None) -> Shard | None:
    """Return the rows for which a source of random numbers draws, None where it draws for the whole batch."""
    shard: Shard | None = getattr(source, "shard", None)  # of a `ShardGenerator`, or of what was drawn by one
    return shard


def whole_rows(rows: int, source: Randomness | None) -> int:
    """Return how many rows the whole batch has, of which this process computes so many."""
    shard = shard_drawn_by(source)
    return rows if shard is None else shard.whole


def whole_shape(shape: Sequence[int], source: Randomness | None) -> tuple[int, ...]:
    """Return the shape, rows first, that a draw for the whole batch has, of which this process computes `shape`."""
    return (whole_rows(shape[0], source), *shape[1:])


def empty_whole(like: Tensor, source: Randomness | None) -> Tensor:
    """Return an empty tensor for the whole batch: of the dtype, device and memory format of `like`, rows first."""
    own = torch.empty_like(like)
    if shard_drawn_by(source) is None:
        return own
    shape = whole_shape(like.shape, source)
    if own.stride(0) * len(own) == own.numel():  # rows one after another, in whatever format each of them is
        return own.new_empty_strided(shape, own.stride())
    return own.new_empty(shape)


def own_rows(drawn: Tensor, source: Randomness | None) -> Tensor:
    """Return the rows of this process of what was drawn for the whole batch."""
    shard = shard_drawn_by(source)
    return drawn if shard is None else shard.of(drawn)


def rows_count(source: Randomness | None) -> bool:
    """Return whether what this process computes counts, see `Shard`."""
    shard = shard_drawn_by(source)
    return shard is None or shard.counted


def total_of(values: Tensor, source: Randomness | None) -> Tensor:
    """Return the sum over the processes that share the batch; all of them must call it."""
    return source.total(values) if isinstance(source, ShardGenerator) and source.shard is not None else values


def uniform_rows(like: Tensor, source: Randomness) -> Tensor:
    """Return uniform draws in [0, 1) for the rows of this process, shaped as `like`."""
    return own_rows(random_uniforms(source, whole_shape(like.shape, source), like.dtype, like.device), source)
