"""Operations that follow the layouts of what they read: elementwise ones, pooling, normalization, attention, joins."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from nas_blockout.graph.operations import bound, name_of
from nas_blockout.graph.rewrite.counterparts import Counterparts, Result
from nas_blockout.graph.rewrite.layout import REMOVED, Axis, Layout, Placed, Unplaceable, common

aten = torch.ops.aten


def elementwise(graph: Counterparts, node: fx.Node) -> Result:
    """Add an operation of each position by itself, over operands that broadcast."""
    return _together(graph, node, trailing=0)


def attention(graph: Counterparts, node: fx.Node) -> Result:
    """Add scaled dot-product attention: the heads are nodes, what is within a head is whole."""
    return _together(graph, node, trailing=2)


def product(graph: Counterparts, node: fx.Node) -> Result:
    """Add a product of matrices, one for each head; rows of the first and columns of the second may be nodes, too."""
    first, second = graph.operands(node)
    if first is second or min(len(graph.shape(first)), len(graph.shape(second))) < 2:
        return unknown(graph, node)
    rows, columns = graph.placed(first).layout[-2], graph.placed(second).layout[-1]
    if graph.is_empty(first) or graph.is_empty(second) or (rows is None and columns is None):
        return _together(graph, node, trailing=2)
    leading = common(
        [_broadcast(graph.placed(each), graph.shape(node), trailing=2)[:-2] for each in (first, second)],
        graph.shape(node)[:-2],
    )
    layout = (*leading, rows and rows.compact(), columns and columns.compact())
    placed = {
        operand: graph.with_layout(
            operand, (*_last(leading, graph.shape(operand)[:-2], graph.shape(node)[:-2]), *matrix)
        )
        for operand, matrix in ((first, (layout[-2], None)), (second, (None, layout[-1])))
    }
    return graph.followed(node, placed, layout)


def _together(graph: Counterparts, node: fx.Node, *, trailing: int) -> Result:
    """Add an operation over operands that broadcast, all in the same layout, but for some dims at the end."""
    shape, operands = graph.shape(node), graph.operands(node)
    layouts = [
        _broadcast(graph.placed(operand), shape, trailing=trailing)
        for operand in operands
        if not graph.is_cuttable(operand)
    ]
    layout = common(layouts, shape)
    if any(graph.is_empty(operand) for operand in operands) or any(
        axis is not None and axis.is_empty for axis in layout
    ):
        return graph.result(node, None, layout)
    leading = layout[: len(shape) - trailing]
    placed = {}
    for operand in operands:
        sizes = graph.shape(operand)
        want = _last(leading, sizes[: len(sizes) - trailing], shape[: len(shape) - trailing])
        placed[operand] = graph.with_layout(operand, (*want, *(None,) * min(trailing, len(sizes))))
    return graph.followed(node, placed, layout)


def _last(layout: Layout, sizes: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
    """Return the layout that an operand needs, of fewer dims, some of which are repeated."""
    first = len(shape) - len(sizes)
    return tuple(
        axis if size == full else None for axis, size, full in zip(layout[first:], sizes, shape[first:], strict=True)
    )


def _broadcast(value: Placed, shape: tuple[int, ...], *, trailing: int) -> Layout:
    """Return the layout of an operand as one of the result, None along dims in which it is repeated, and at the end."""
    missing, last = len(shape) - len(value.shape), len(shape) - trailing
    have = zip(value.layout, value.shape, strict=True)
    axes = (
        *(None,) * missing,
        *(axis if size == full else None for (axis, size), full in zip(have, shape[missing:], strict=True)),
    )
    return (*axes[:last], *(None,) * trailing)


def within_maps(graph: Counterparts, node: fx.Node) -> Result:
    """Add an operation within the maps of each node, as pooling."""
    source = graph.operands(node)[0]
    value = graph.exact(source)
    layout = []
    for axis, size, new in zip(value.layout, value.shape, graph.shape(node), strict=True):
        if axis is not None and size != new:
            raise Unplaceable(graph.nodes(source), f"{name_of(node)} over nodes")
        layout.append(axis)
    return graph.followed(node, {source: value}, tuple(layout))


def reduced(graph: Counterparts, node: fx.Node) -> Result:
    """Add a reduction over dims that are whole."""
    source, *others = graph.operands(node)
    if others:  # the larger of two tensors has the name of the largest entry of one
        return elementwise(graph, node)
    value, rank = graph.exact(source), len(graph.shape(source))
    dims = bound(node).get("dim")
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim % rank for dim in dims}
    if any(value.layout[dim] is not None for dim in gone):
        raise Unplaceable(graph.nodes(source), f"{name_of(node)} over nodes")
    keeps = len(graph.shape(node)) == rank
    layout = tuple(axis for dim, axis in enumerate(value.layout) if keeps or dim not in gone)
    return graph.followed(node, {source: value}, layout)


def normalized(graph: Counterparts, node: fx.Node) -> Result:
    """Add an operation that mixes some dims, which must be whole: softmax, layer and group normalization."""
    arguments = bound(node)
    source = graph.operands(node)[0]
    rank = len(graph.shape(source))
    if "normalized_shape" in arguments:
        mixed = set(range(rank - len(arguments["normalized_shape"]), rank))
    else:
        mixed = {1 if "num_groups" in arguments else arguments["dim"] % rank}
    value = graph.placed(source)
    layout = tuple(None if dim in mixed else axis and axis.compact() for dim, axis in enumerate(value.layout))
    value = graph.emitter.aligned(value, layout, graph.nodes(source))
    return graph.followed(node, {source: value}, layout)


def per_channel(graph: Counterparts, node: fx.Node) -> Result:
    """Add an operation with parameters for each channel, as PReLU or normalization that does not learn."""
    source, *parameters = graph.operands(node)
    value = graph.exact(source)
    if value.is_empty:
        return graph.result(node, None, value.layout)
    channels = graph.shape(source)[1]
    placed = {source: value}
    for parameter in parameters:
        axis = value.layout[1] if graph.shape(parameter) == (channels,) else None
        placed[parameter] = graph.with_layout(parameter, (axis,) * len(graph.shape(parameter)))
    return graph.followed(node, placed, value.layout)


def gated(graph: Counterparts, node: fx.Node) -> Result:
    """Add a gated linear unit: the second half of a dim gates the first."""
    source, arguments = graph.operands(node)[0], bound(node)
    value = graph.placed(source)
    if value.is_empty:
        return graph.result(node, None, value.layout)
    dim = arguments["dim"] % len(value.shape)
    layout, half = list(value.layout), value.shape[dim] // 2
    axis = value.axis(dim)
    first, second = axis.picked(torch.arange(half)), axis.picked(torch.arange(half) + half)
    result = common([(first,), (second,)], [half])[0]
    order = result.order if result is not None else torch.arange(half)
    layout[dim] = Axis.in_order(torch.cat([order, order + half]), 2 * half)
    both = graph.emitter.aligned(value, _compact_but(tuple(layout), dim), graph.nodes(source))
    layout = list(both.layout)
    layout[dim] = result
    return graph.followed(node, {source: both}, tuple(layout))


def concatenated(graph: Counterparts, node: fx.Node) -> Placed:
    """Add a concatenation; what is kept of each part stands after what is kept of the one before."""
    arguments = bound(node)
    operands, shape = arguments["tensors"], graph.shape(node)
    dim = arguments["dim"] % len(shape)
    values = [graph.placed(operand) for operand in operands]
    layout = list(
        common([(*value.layout[:dim], None, *value.layout[dim + 1 :]) for value in values if not value.is_empty], shape)
    )
    parts, places, offset = [], [], 0
    for operand, value in zip(operands, values, strict=True):
        if value.is_empty:
            places.append(torch.full((value.shape[dim],), REMOVED))
            continue
        layout[dim] = value.layout[dim] and value.axis(dim).compact()
        part = graph.emitter.aligned(value, tuple(layout), graph.nodes(operand))
        if part.node is not None:
            parts.append(part.node)
        axis = part.axis(dim)
        places.append(torch.where(axis.kept, axis.places + offset, axis.places))
        offset += axis.size
    layout[dim] = Axis(torch.cat(places), offset).compact()
    if not parts or any(axis is not None and axis.is_empty for axis in layout):
        return graph.result(node, None, tuple(layout))
    new = parts[0] if len(parts) == 1 else graph.emitter.call(aten.cat.default, parts, dim)
    return graph.result(node, new, tuple(layout))


def stacked(graph: Counterparts, node: fx.Node) -> Result:
    """Add a stack of values in one layout along a new dim."""
    arguments, shape = bound(node), graph.shape(node)
    operands = arguments["tensors"]
    dim = arguments["dim"] % len(shape)
    layout = common([graph.placed(operand).layout for operand in operands], (*shape[:dim], *shape[dim + 1 :]))
    placed = {operand: graph.with_layout(operand, layout) for operand in operands}
    if len({value.is_empty for value in placed.values()}) > 1:
        raise Unplaceable(graph.nodes(node), "stacked beside nodes of another layer")
    return graph.followed(node, placed, (*layout[:dim], None, *layout[dim:]))


def unknown(graph: Counterparts, node: fx.Node) -> Result:
    """Add an operation that is not known: what it reads must be whole, and what it gives is."""
    new, value = graph.repeated(node), graph.analysis.values[node]
    if not isinstance(value, tuple | list):
        return graph.result(node, new, (None,) * value.dim())
    return tuple(
        graph.result(node, graph.emitter.call(operator.getitem, new, number), (None,) * part.dim(), number)
        for number, part in enumerate(value)
    )


def _compact_but(layout: Layout, dim: int) -> Layout:
    return tuple(axis if other == dim else axis and axis.compact() for other, axis in enumerate(layout))


# Names as of the rules of labels; what these keep whole may be here as well.
_ELEMENTWISE = """
    abs add addcdiv addcmul bitwise_and bitwise_not bitwise_or celu clamp clamp_max clamp_min cos div elu eq erf exp
    expm1 floor ge gelu gt hardshrink hardsigmoid hardswish hardtanh le leaky_relu lerp log log1p log_sigmoid
    logical_and logical_not logical_or logsigmoid lt masked_fill maximum minimum mish mul ne neg pow reciprocal relu
    relu6 round rsqrt rsub selu sigmoid sign silu sin softplus softsign sqrt square sub tanh threshold to true_divide
    type_as where _to_copy
"""
_WITHIN_MAPS = """
    adaptive_avg_pool adaptive_max_pool avg_pool lp_pool max_pool reflection_pad replication_pad upsample_bicubic
    upsample_bilinear upsample_linear upsample_nearest upsample_nearest_exact upsample_trilinear _upsample_nearest_exact
"""
_REDUCTIONS = """
    all amax amin any linalg_vector_norm logsumexp max mean median min norm prod std std_mean sum var var_mean
"""
_MIXES = "cumprod cumsum log_softmax softmax softmin _log_softmax _softmax layer_norm rms_norm group_norm"

Handler = Callable[[Counterparts, fx.Node], Any]


def _table() -> Mapping[str, Handler]:
    table: dict[str, Handler] = dict.fromkeys(_ELEMENTWISE.split(), elementwise)
    for name in _WITHIN_MAPS.split():
        table |= {f"{name}{dims}d{suffix}": within_maps for dims in (1, 2, 3) for suffix in ("", "_with_indices")}
    table |= dict.fromkeys(_REDUCTIONS.split(), reduced)
    table |= dict.fromkeys(_MIXES.split(), normalized)
    table |= dict.fromkeys(("batch_norm", "instance_norm", "prelu"), per_channel)
    table |= dict.fromkeys(("cat", "concat", "concatenate"), concatenated)
    table |= dict.fromkeys(("matmul", "bmm", "mm"), product)
    return {**table, "scaled_dot_product_attention": attention, "stack": stacked, "glu": gated}


OPERATIONS = _table()
