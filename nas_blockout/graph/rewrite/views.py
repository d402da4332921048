"""Views of a value with another shape: dims are joined and divided, and so are their axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nas_blockout.graph.rewrite.emitter import Emitter
from nas_blockout.graph.rewrite.layout import (
    Axis,
    Deferred,
    Layout,
    Placed,
    Shape,
    Unplaceable,
    Value,
    dim_groups,
    merged,
    split,
)

_IMAGES = 7919  # stands for the number of images where dims are told apart by their size: a prime that no size has


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Dims that become other dims.

    Args:
        inner: Dims of the value.
        outer: Dims of the view.
        axis: Of the dims of the value, joined; None if all of it is there in order.
    """

    inner: list[int]
    outer: list[int]
    axis: Axis | None

    def divided(self, shape: Shape) -> tuple[Layout, Tensor] | None:
        """Return the axes of the dims of the view and the order of places that they need; None where there is none."""
        if self.axis is None:
            return (None,) * len(self.outer), torch.zeros(0)
        if len(self.outer) == 1:
            return (self.axis,), torch.arange(self.axis.size)
        return split(self.axis, [shape.sizes[dim] for dim in self.outer])


def reshaped(emitter: Emitter, value: Placed, shape: Shape, nodes: Tensor) -> Value:
    """Return a view of a value with another shape; deferred if a dim is cut between kept and removed nodes.

    Args:
        emitter: Writes the new graph.
        value: What is viewed.
        shape: Of the result.
        nodes: To be made rigid where images and nodes are joined in another order than images first.

    Raises:
        Unplaceable: Images and nodes are mixed.
    """
    groups = _groups(value, shape, nodes)
    pieces = [group.divided(shape) for group in groups]
    found = [piece for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        return _deferred(emitter, value, shape, nodes)
    layout: list[Axis | None] = [None] * len(shape.sizes)
    for group, (axes, _) in zip(groups, found, strict=True):
        for dim, axis in zip(group.outer, axes, strict=True):
            layout[dim] = axis
    unordered = [
        (group, order)
        for group, (_, order) in zip(groups, found, strict=True)
        if group.axis is not None and not torch.equal(order, torch.arange(group.axis.size))
    ]

    def copied() -> Placed:
        ordered = value
        for group, order in unordered:
            ordered = _ordered(emitter, ordered, group, order, nodes)
        return _viewed(emitter, ordered, shape, tuple(layout))

    # A copy only brings nodes into an order in which they can be divided: it can wait for the moves that follow.
    return _deferred(emitter, value, shape, nodes, cache(copied)) if unordered else copied()


def numbered(value: Placed) -> Tensor:
    """Return the positions of a value, numbered, for two images."""
    sizes = value.shape_for(2)
    return torch.arange(math.prod(sizes)).view(sizes)


def _groups(value: Placed, shape: Shape, nodes: Tensor) -> list[_Group]:
    groups = []
    for inner, outer in dim_groups(value.shape_for(_IMAGES), shape.of(_IMAGES)):
        if all(value.layout[dim] is None for dim in inner):
            groups.append(_Group(inner, outer, None))
            continue
        # Axes are those of one image. They are those of many as long as images are the outermost of what is joined.
        if any(value.batched[dim] for dim in inner[1:]) or any(shape.batched[dim] for dim in outer[1:]):
            raise Unplaceable(nodes, "a view that mixes images and nodes")
        axis = value.layout[inner[0]] if len(inner) == 1 else merged([value.axis(dim) for dim in inner])
        groups.append(_Group(inner, outer, axis))
    return groups


def _ordered(emitter: Emitter, value: Placed, group: _Group, order: Tensor, nodes: Tensor) -> Placed:
    """Bring the places of a dim into the order in which it can be divided."""
    dim, *others = group.inner
    if others or value.batched[dim]:
        raise Unplaceable(nodes, "a view that joins nodes and divides them again")
    assert value.node is not None
    axis = Axis(torch.arange(len(order)), len(order))  # the caller knows what is where
    layout = tuple(axis if other == dim else have for other, have in enumerate(value.layout))
    return Placed(emitter.select(value.node, dim, order), value.shape, layout, value.batched)


def _viewed(emitter: Emitter, value: Placed, shape: Shape, layout: Layout) -> Placed:
    assert value.node is not None
    result = Placed(value.node, shape.sizes, layout, shape.batched)
    if sum(shape.batched) > 1:
        raise Unplaceable(torch.zeros(0), "a view with two dims that count images")
    if shape == Shape(value.shape, value.batched):
        return result
    sizes = [-1 if grows else size for size, grows in zip(result.sizes, shape.batched, strict=True)]
    # Not `view`: what was cut out of a tensor does not stand together in memory.
    node = emitter.call(torch.ops.aten.reshape.default, value.node, sizes)
    return Placed(node, shape.sizes, layout, shape.batched)


def _deferred(
    emitter: Emitter, value: Placed, shape: Shape, nodes: Tensor, forced: Callable[[], Placed] | None = None
) -> Deferred:
    """Return the view as numbers of positions of the value, whose dims are joined first as far as they are in it."""
    groups = dim_groups(value.shape_for(_IMAGES), shape.of(_IMAGES))
    base: Value = value
    if any(len(inner) > 1 for inner, _ in groups):
        sizes = tuple(math.prod(value.shape[dim] for dim in inner) for inner, _ in groups)
        batched = tuple(any(value.batched[dim] for dim in inner) for inner, _ in groups)
        base = reshaped(emitter, value, Shape(sizes, batched), nodes)
    assert isinstance(base, Placed), "joining dims divides none"
    return Deferred(base, numbered(base).reshape(shape.of(2)), forced)
