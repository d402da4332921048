"""Where the kept positions of a value stand in memory, one dim at a time.

A network that lost nodes computes smaller tensors, in another order. The original value has all positions; an
`Axis` says for each position of one dim where in memory it is, or that it is removed. Slices, chunks and channel
shuffles change only this bookkeeping: they cost no operation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

REMOVED = -1


class Unplaceable(Exception):
    """Raised where an operation needs nodes whole and in order that were to be removed or moved.

    Args:
        nodes: Numbers of the nodes.
        reason: Why, as it is shown beside the layer.
    """

    def __init__(self, nodes: Tensor, reason: str) -> None:
        super().__init__(reason)
        self.nodes = tuple(int(node) for node in nodes.unique().tolist() if node > 0)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Where each position of one dim stands in memory.

    Args:
        places: Place of each position, shape ``(positions,)``, `REMOVED` where it is removed; no place twice.
        size: Places in memory. There may be more than positions, so that a slice is only another `Axis`.
    """

    places: Tensor
    size: int

    @classmethod
    def identity(cls, positions: int) -> "Axis":
        """Return the axis of a dim that has all its positions in order."""
        return cls(torch.arange(positions), positions)

    @classmethod
    def none(cls, positions: int) -> "Axis":
        """Return the axis of a dim that has none of its positions."""
        return cls(torch.full((positions,), REMOVED), 0)

    @classmethod
    def in_order(cls, order: Tensor, positions: int) -> "Axis | None":
        """Return the axis whose memory holds the positions `order`, and only these; None if that is all, in order."""
        if len(order) == positions and torch.equal(order, torch.arange(positions)):
            return None
        places = torch.full((positions,), REMOVED)
        places[order] = torch.arange(len(order))
        return cls(places, len(order))

    @property
    def kept(self) -> Tensor:
        """Which positions are kept, shape ``(positions,)``."""
        return self.places >= 0

    @property
    def order(self) -> Tensor:
        """The kept positions in the order of their places."""
        kept = self.kept.nonzero().flatten()
        return kept[self.places[kept].argsort()]

    @property
    def is_exact(self) -> bool:
        """Whether memory holds nothing but kept positions."""
        return int(self.kept.sum()) == self.size

    @property
    def is_empty(self) -> bool:
        """Whether no position is kept."""
        return not bool(self.kept.any())

    def picked(self, positions: Tensor) -> "Axis":
        """Return the axis of a value that consists of some positions of this one, in the same memory."""
        return Axis(self.places[positions], self.size)

    def compact(self) -> "Axis | None":
        """Return the axis whose memory holds only the kept positions, in the same order; None for all in order."""
        return Axis.in_order(self.order, len(self.places))


Layout = tuple[Axis | None, ...]  # None: all positions in order


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of an original value for one image.

    Args:
        sizes: Of its dims.
        batched: For each dim whether its size grows with the number of images.
    """

    sizes: tuple[int, ...]
    batched: tuple[bool, ...]

    @property
    def dims(self) -> tuple[tuple[int, bool], ...]:
        """Size of each dim, and whether it grows."""
        return tuple(zip(self.sizes, self.batched, strict=True))

    def of(self, images: int) -> tuple[int, ...]:
        """Return the shape for a number of images."""
        return tuple(size * images if grows else size for size, grows in self.dims)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A value of the new graph and where the positions of the original value are in it.

    Args:
        node: Computes it; None if nothing of it is kept.
        shape: Shape of the original value for one image.
        layout: Its axes; they mean nothing where nothing is kept.
        batched: For each dim whether its size grows with the number of images.
    """

    node: fx.Node | None
    shape: tuple[int, ...]
    layout: Layout
    batched: tuple[bool, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is kept."""
        return self.node is None

    @property
    def is_whole(self) -> bool:
        """Whether all of it is kept, in order."""
        return all(axis is None for axis in self.layout)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes in memory for one image."""
        return tuple(size if axis is None else axis.size for size, axis in zip(self.shape, self.layout, strict=True))

    def axis(self, dim: int) -> Axis:
        """Return the axis of a dim, also if all positions are there in order."""
        return self.layout[dim] or Axis.identity(self.shape[dim])

    def shape_for(self, images: int) -> tuple[int, ...]:
        """Return the shape of the original value for a number of images."""
        return Shape(self.shape, self.batched).of(images)


@dataclass(frozen=True, slots=True, eq=False)
class Deferred:
    """A value that only moves another one, in a way that is no layout of axes, or none without a copy.

    The moves after may make it one. A channel shuffle splits the channels (here nodes of one group may be removed and
    their neighbors kept), transposes and joins them again: only the whole of it is an order of channels.

    Args:
        base: The value that is moved.
        origin: For each position of this value its number in `base`, for two images: a move that mixes images with
            anything else must not look like an order of nodes, as it does for one image.
        forced: Writes it with copies; None where it cannot be written.
    """

    base: Placed
    origin: Tensor
    forced: Callable[[], Placed] | None = None


Value = Placed | Deferred


def written(value: Value, nodes: Tensor) -> Placed:
    """Return a value that has a layout, if need be by copies.

    Args:
        value: Any value.
        nodes: Its nodes, to be made rigid if it cannot be written.

    Raises:
        Unplaceable: It cannot be written.
    """
    if isinstance(value, Placed):
        return value
    if value.forced is None:
        raise Unplaceable(nodes, "a view that mixes nodes")
    return value.forced()


def merged(axes: Sequence[Axis]) -> Axis:
    """Return the axis of dims joined into one, the last one running fastest."""
    places, size = axes[0].places, axes[0].size
    for axis in axes[1:]:
        both = places[:, None] * axis.size + axis.places
        places = torch.where((places[:, None] >= 0) & axis.kept, both, REMOVED).flatten()
        size *= axis.size
    return Axis(places, size)


def split(axis: Axis, sizes: Sequence[int]) -> tuple[Layout, Tensor] | None:
    """Return the axes of one dim divided into several, and the order of places that memory must have for it.

    None where the kept positions are not all combinations of kept positions of the dims.
    """
    places = axis.places.view(*sizes)
    kept = places >= 0
    lists = []
    for dim in range(len(sizes)):
        along = kept.movedim(dim, 0).flatten(1)
        positions = along.any(1).nonzero().flatten()
        first = torch.where(along, places.movedim(dim, 0).flatten(1), axis.size).amin(1)
        lists.append(positions[first[positions].argsort()])
    chosen = places[torch.meshgrid(*lists, indexing="ij")]
    if chosen.numel() != int(kept.sum()):
        return None
    layout = tuple(Axis.in_order(order, size) for order, size in zip(lists, sizes, strict=True))
    return layout, chosen.flatten()


def common(layouts: Sequence[Layout], sizes: Sequence[int]) -> Layout:
    """Return the layout of an elementwise operation: what all its operands have kept, in the order of the first.

    Args:
        layouts: Of the operands, each with as many axes as the result; None also where an operand is broadcast.
        sizes: Of the original result.
    """
    return tuple(_common([layout[dim] for layout in layouts], size) for dim, size in enumerate(sizes))


def _common(axes: Sequence[Axis | None], positions: int) -> Axis | None:
    there = [axis for axis in axes if axis is not None]
    if not there:
        return None
    kept = torch.stack([axis.kept for axis in there]).all(0)
    # A whole operand says nothing about the order. Of the others one that need not be cut itself goes first.
    exact = [axis for axis in there if axis.is_exact and torch.equal(axis.kept, kept)]
    order = (exact or there)[0].order
    return Axis.in_order(order[kept[order]], positions)


def dim_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which dims of a value become which dims of a view of it: the smallest groups of equal size.

    Raises:
        ValueError: The shapes do not hold as many positions.
    """
    groups: list[tuple[list[int], list[int]]] = []
    left, right = 0, 0
    while left < len(before) and right < len(after):
        inner, outer = [left], [right]
        here, there = before[left], after[right]
        while here != there:
            if here < there and inner[-1] + 1 < len(before):
                inner.append(inner[-1] + 1)
                here *= before[inner[-1]]
            elif here > there and outer[-1] + 1 < len(after):
                outer.append(outer[-1] + 1)
                there *= after[outer[-1]]
            else:
                raise ValueError(f"a view must hold as many positions, got {tuple(before)} and {tuple(after)}")
        groups.append((inner, outer))
        left, right = inner[-1] + 1, outer[-1] + 1
    # Dims of one position may be left over on either side.
    if groups:
        groups[-1][0].extend(range(left, len(before)))
        groups[-1][1].extend(range(right, len(after)))
    return groups
