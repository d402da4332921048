"""Moves: operations that only rearrange a value. Most of them change the bookkeeping of a layout, not memory.

Each move of the original graph is given as a `Move`, with a way to repeat it in the new graph and a way to replay it on
numbers of positions, which tells what any of them does without knowing it.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from nas_blockout.graph.rewrite.emitter import Emitter
from nas_blockout.graph.rewrite.layout import (
    Axis,
    Deferred,
    Layout,
    Placed,
    Shape,
    Unplaceable,
    Value,
    written,
)
from nas_blockout.graph.rewrite.views import numbered, reshaped


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """An operation that rearranges one value.

    Args:
        emitter: Writes the new graph.
        name: Name of the operation.
        arguments: Its arguments by name, sizes for one image.
        results: Shapes of what it gives: one, or those of several parts.
        repeat: Adds the same operation on another value to the new graph.
        replay: Runs it on a tensor, with the sizes of a number of images.
        nodes: Of the value, to be made rigid if they cannot be moved.
    """

    emitter: Emitter
    name: str
    arguments: Mapping[str, Any]
    results: tuple[Shape, ...]
    repeat: Callable[[fx.Node], fx.Node]
    replay: Callable[[Tensor, int], Any]
    nodes: Tensor

    def placed(self, value: Placed, layout: Layout) -> Placed:
        """Return the result of the same operation on a value in the new graph."""
        assert value.node is not None
        shape = self.results[0]
        return Placed(self.repeat(value.node), shape.sizes, layout, shape.batched)

    def nothing(self) -> "Result":
        """Return the result of the same operation on a value of which nothing is kept."""
        parts = tuple(Placed(None, each.sizes, (None,) * len(each.sizes), each.batched) for each in self.results)
        return parts if self.name in _PARTS else parts[0]


Result = Value | tuple[Value, ...]


def moved(move: Move, value: Value) -> Result:
    """Return what a move makes of a value.

    Raises:
        Unplaceable: It mixes nodes in a way that no order of nodes says.
    """
    if move.name in _IN_PLACE_ALREADY:
        return value
    if isinstance(value, Deferred):
        return _moved_on(move, value)
    if value.is_empty:
        return _nothing(move, value)
    if move.name in _VIEWS:
        return reshaped(move.emitter, value, move.results[0], move.nodes)
    handler = _HANDLERS.get(move.name)
    if handler is not None:
        return handler(move, value)
    if value.is_whole and len(move.results) == 1:
        return move.placed(value, (None,) * len(move.results[0].sizes))
    return _moved_on(move, Deferred(value, numbered(value)))


def _nothing(move: Move, value: Placed) -> Result:
    """Return what a move makes of a value of which nothing is kept: nothing, unless channels are added to it."""
    if move.name in ("pad", "constant_pad_nd"):
        pads = move.arguments["pad"]
        for number in range(len(pads) // 2):
            along = move.nodes.movedim(len(value.shape) - 1 - number, 0)
            if pads[2 * number : 2 * number + 2] != [0, 0] and not torch.equal(along, along[:1].expand_as(along)):
                raise Unplaceable(move.nodes, "padded to more channels")
    return move.nothing()


# ---- moves of dims


def _permuted(move: Move, value: Placed) -> Result:
    marked = torch.empty([dim + 2 for dim in range(len(value.shape))])  # dims are told apart by their size
    dims = [size - 2 for size in move.replay(marked, 1).shape]
    return move.placed(value, tuple(value.layout[dim] for dim in dims))


def _expanded(move: Move, value: Placed) -> Result:
    shape = move.results[0]
    new = len(shape.sizes) - len(value.shape)
    layout: list[Axis | None] = [None] * new
    sizes: list[int | fx.Node] = []
    for dim, (size, grows) in enumerate(shape.dims):
        stays = dim >= new and value.shape[dim - new] == size and value.batched[dim - new] == grows
        if dim >= new:
            layout.append(value.layout[dim - new] if stays else None)
        sizes.append(-1 if stays else move.emitter.images(size) if grows else size)
    exact = move.emitter.exact(value)
    assert exact.node is not None
    node = move.emitter.call(torch.ops.aten.expand.default, exact.node, sizes)
    return Placed(node, shape.sizes, tuple(axis and axis.compact() for axis in layout), shape.batched)


def _repeated(move: Move, value: Placed) -> Result:
    shape, repeats = move.results[0], move.arguments["repeats"]
    new = len(repeats) - len(value.shape)
    for dim, axis in enumerate(value.layout):
        if axis is not None and repeats[new + dim] != 1:
            raise Unplaceable(move.nodes, "nodes that are repeated")
    exact = move.emitter.exact(value)
    return move.placed(exact, (*(None,) * (len(shape.sizes) - len(value.shape)), *exact.layout))


# ---- choices along one dim


def _picked(move: Move, value: Placed) -> Result:
    dim = _dim_of(move) % len(value.shape)
    drops = move.name in ("select", "unbind")
    if value.layout[dim] is None:
        return _repeated_picks(move, value, dim, drops=drops)
    axis = value.axis(dim)
    sizes = [1] * len(value.shape)
    sizes[dim] = len(axis.places)
    parts = move.replay(torch.arange(len(axis.places)).view(sizes), 1)
    parts = [parts] if isinstance(parts, Tensor) else parts
    results = tuple(
        _part(move, value, dim, axis.picked(part.flatten()), shape=shape, drops=drops)
        for part, shape in zip(parts, move.results, strict=True)
    )
    return results if len(move.results) > 1 or move.name in _PARTS else results[0]


def _repeated_picks(move: Move, value: Placed, dim: int, *, drops: bool) -> Result:
    kept = [axis for other, axis in enumerate(value.layout) if not (drops and other == dim)]
    if move.name not in _PARTS:
        return move.placed(value, tuple(kept))
    assert value.node is not None
    parts = move.repeat(value.node)
    return tuple(
        Placed(move.emitter.call(operator.getitem, parts, number), shape.sizes, tuple(kept), shape.batched)
        for number, shape in enumerate(move.results)
    )


def _part(move: Move, value: Placed, dim: int, axis: Axis, *, shape: Shape, drops: bool) -> Placed:
    """Return a value that has some positions of a dim: the same memory, unless it is a single position."""
    layout = list(value.layout)
    if not drops:
        layout[dim] = axis
        if len(axis.kept.nonzero()) != len(axis.places[axis.kept].unique()):
            raise Unplaceable(move.nodes, "nodes that are read twice")
        return Placed(None if axis.is_empty else value.node, shape.sizes, tuple(layout), shape.batched)
    del layout[dim]
    node = None if axis.is_empty else move.emitter.call(torch.ops.aten.select.int, value.node, dim, int(axis.places[0]))
    return Placed(node, shape.sizes, tuple(layout), shape.batched)


def _dim_of(move: Move) -> int:
    if move.name == "index":
        indexed = [dim for dim, index in enumerate(move.arguments["indices"]) if index is not None]
        return indexed[0]
    dims = move.arguments.get("dim", move.arguments.get("dims", 0))
    return int(dims if isinstance(dims, int) else dims[0])


def _indexed(move: Move, value: Placed) -> Result:
    indices = move.arguments["indices"]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if len(dims) == 1 and isinstance(indices[dims[0]], Tensor) and indices[dims[0]].dim() == 1:
        return _picked(move, value)
    if any(value.layout[dim] is not None for dim in dims) or dims != list(range(dims[0], dims[-1] + 1)):
        raise Unplaceable(move.nodes, "nodes that are chosen by an index")
    rank = len(move.results[0].sizes) - (len(value.shape) - len(dims))
    return move.placed(value, (*value.layout[: dims[0]], *(None,) * rank, *value.layout[dims[-1] + 1 :]))


def _rolled(move: Move, value: Placed) -> Result:
    dims = move.arguments.get("dims") or range(len(value.shape))
    dims = [dims] if isinstance(dims, int) else [dim % len(value.shape) for dim in dims]
    touched = [dim for dim in dims if value.layout[dim] is not None]
    if not touched:
        return move.placed(value, value.layout)
    if len(dims) > 1:
        raise Unplaceable(move.nodes, f"{move.name} over nodes")
    return _picked(move, value)


def _padded(move: Move, value: Placed) -> Result:
    pads = move.arguments["pad"]
    layout = list(value.layout)
    for number in range(len(pads) // 2):
        dim = len(value.shape) - 1 - number
        before, after = pads[2 * number : 2 * number + 2]
        axis = value.layout[dim]
        if axis is None or (before, after) == (0, 0):
            continue
        if move.arguments.get("mode", "constant") != "constant" or min(before, after) < 0:
            raise Unplaceable(move.nodes, "nodes that are padded with others")
        # What is padded is no node's: it stays until a sum shows which nodes it is added to.
        places = torch.where(axis.places >= 0, axis.places + before, axis.places)
        last = torch.arange(after) + before + axis.size
        layout[dim] = Axis(torch.cat([torch.arange(before), places, last]), before + axis.size + after)
    return move.placed(value, tuple(layout))


# ---- moves that are known only together with those that follow


def _moved_on(move: Move, value: Deferred) -> Result:
    parts = move.replay(value.origin, 2)
    whole = [parts] if isinstance(parts, Tensor) else parts

    @cache
    def forced(number: int) -> Placed:
        assert value.forced is not None
        result = moved(move, value.forced())
        part = result[number] if isinstance(result, tuple) else result
        return written(part, move.nodes)

    results = [
        _resolved(move, Deferred(value.base, part, value.forced and partial(forced, number)), shape)
        for number, (part, shape) in enumerate(zip(whole, move.results, strict=True))
    ]
    return results[0] if isinstance(parts, Tensor) else tuple(results)


def _resolved(move: Move, value: Deferred, shape: Shape) -> Value:
    """Return a deferred value as a choice of positions of one dim of its base, if that is all that was done."""
    base = value.base
    sizes = list(base.shape_for(2))
    numbers = numbered(base)
    for dim, axis in enumerate(base.layout):
        if axis is None or value.origin.numel() * sizes[dim] % numbers.numel() != 0:
            continue
        chosen = [*sizes]
        chosen[dim] = value.origin.numel() * sizes[dim] // numbers.numel()
        origin = value.origin.reshape(chosen)
        positions = (origin.movedim(dim, 0).flatten(1)[:, 0] // numbers.stride(dim)) % sizes[dim]
        if not torch.equal(numbers.index_select(dim, positions), origin):
            continue
        layout = tuple(axis.picked(positions) if other == dim else have for other, have in enumerate(base.layout))
        picked = tuple(len(positions) if other == dim else size for other, size in enumerate(base.shape))
        return reshaped(move.emitter, Placed(base.node, picked, layout, base.batched), shape, move.nodes)
    return value


_IN_PLACE_ALREADY = frozenset({"contiguous", "clone", "alias", "detach", "lift_fresh_copy", "lift_fresh"})
_VIEWS = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "_unsafe_view"})
_PARTS = frozenset({"chunk", "split", "split_with_sizes", "unbind", "tensor_split"})
_HANDLERS: Mapping[str, Callable[[Move, Placed], Result]] = {
    **dict.fromkeys(("permute", "transpose", "t", "movedim", "mT", "swapaxes", "swapdims"), _permuted),
    **dict.fromkeys(("expand", "expand_as"), _expanded),
    **dict.fromkeys(("slice", "narrow", "select", "index_select", *_PARTS), _picked),
    **dict.fromkeys(("roll", "flip"), _rolled),
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    "index": _indexed,
    "repeat": _repeated,
}
MOVES = _IN_PLACE_ALREADY | _VIEWS | frozenset(_HANDLERS) | {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}
