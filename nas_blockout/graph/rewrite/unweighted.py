"""Operations that follow the layouts of what they read: elementwise ones, pooling, normalization, attention, joins."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from nas_blockout.graph.operations import bound, name_of
from nas_blockout.graph.rewrite.counterparts import Counterparts, Result
from nas_blockout.graph.rewrite.layout import Axis, Layout, Placed, Unplaceable, common

aten = torch.ops.aten


def elementwise(graph: Counterparts, node: fx.Node) -> Placed:
    """Add an operation of each position by itself, over operands that broadcast."""
    return _together(graph, node, trailing=0)


def attention(graph: Counterparts, node: fx.Node) -> Result:
    """Add a product of matrices, one for each head: the heads are nodes, the matrices are whole."""
    if any(len(graph.shape(operand)) < 2 for operand in graph.operands(node)):
        return unknown(graph, node)
    return _together(graph, node, trailing=2)


def _together(graph: Counterparts, node: fx.Node, *, trailing: int) -> Placed:
    """Add an operation over operands that broadcast, all in the same layout, but for some dims at the end."""
    shape, operands = graph.shape(node), graph.operands(node)
    over = len(shape) - trailing
    layouts = [
        tuple(axis if dim < over else None for dim, axis in enumerate(_broadcast(graph.placed(operand), shape)))
        for operand in operands
        if not graph.is_cuttable(operand)
    ]
    layout = common(layouts, shape)
    if any(axis is not None and axis.is_empty for axis in layout):
        return graph.result(node, None, layout)
    placed = {}
    for operand in operands:
        sizes = graph.shape(operand)
        last = layout[len(shape) - len(sizes) :]
        want = tuple(
            axis if size == full else None
            for axis, size, full in zip(last, sizes, shape[len(shape) - len(sizes) :], strict=True)
        )
        # The matrices of a product have other sizes than the result, and are whole.
        want = (*want[: len(sizes) - trailing], *(None,) * trailing)[: len(sizes)]
        placed[operand] = graph.with_layout(operand, want)
    return graph.followed(node, placed, layout)


def _broadcast(value: Placed, shape: tuple[int, ...]) -> Layout:
    """Return the layout of an operand as one of the result, None along dims in which it is repeated."""
    missing = len(shape) - len(value.shape)
    return (
        *(None,) * missing,
        *(
            axis if size == full else None
            for axis, size, full in zip(value.layout, value.shape, shape[missing:], strict=True)
        ),
    )


def within_maps(graph: Counterparts, node: fx.Node) -> Placed:
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
    source = graph.operands(node)[0]
    value, rank = graph.exact(source), len(graph.shape(source))
    dims = bound(node).get("dim")
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim % rank for dim in dims}
    if any(value.layout[dim] is not None for dim in gone):
        raise Unplaceable(graph.nodes(source), f"{name_of(node)} over nodes")
    keeps = len(graph.shape(node)) == rank
    layout = tuple(axis for dim, axis in enumerate(value.layout) if keeps or dim not in gone)
    return graph.followed(node, {source: value}, layout)


def normalized(graph: Counterparts, node: fx.Node) -> Placed:
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


def per_channel(graph: Counterparts, node: fx.Node) -> Placed:
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


def gated(graph: Counterparts, node: fx.Node) -> Placed:
    """Add a gated linear unit: the second half of a dim gates the first."""
    source, arguments = graph.operands(node)[0], bound(node)
    value = graph.placed(source)
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
    layout = list(common([(*value.layout[:dim], None, *value.layout[dim + 1 :]) for value in values], shape))
    parts, places, offset = [], [], 0
    for operand, value in zip(operands, values, strict=True):
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


def stacked(graph: Counterparts, node: fx.Node) -> Placed:
    """Add a stack of values in one layout along a new dim."""
    arguments, shape = bound(node), graph.shape(node)
    operands = arguments["tensors"]
    dim = arguments["dim"] % len(shape)
    layout = common([graph.placed(operand).layout for operand in operands], (*shape[:dim], *shape[dim + 1 :]))
    placed = {operand: graph.with_layout(operand, layout) for operand in operands}
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


_UNARY = """
    relu relu6 hardtanh hardswish silu gelu sigmoid hardsigmoid tanh elu selu celu leaky_relu mish softplus softsign
    logsigmoid log_sigmoid hardshrink threshold rrelu neg to _to_copy exp expm1 log log1p sqrt rsqrt abs pow clamp
    clamp_min clamp_max square reciprocal sin cos erf sign round floor ceil type_as
"""
_BINARY = "add sub mul div maximum minimum where rsub masked_fill addcmul addcdiv lerp eq ne gt ge lt le"
_WITHIN_MAPS = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d
"""

Handler = Callable[[Counterparts, fx.Node], Any]
OPERATIONS: Mapping[str, Handler] = {
    **dict.fromkeys((_UNARY + _BINARY).split(), elementwise),
    **dict.fromkeys(("matmul", "bmm", "scaled_dot_product_attention"), attention),
    **dict.fromkeys(_WITHIN_MAPS.split(), within_maps),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "logsumexp", "prod", "var", "std"), reduced),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "layer_norm", "group_norm"), normalized),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), per_channel),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenated),
    "stack": stacked,
    "glu": gated,
}
