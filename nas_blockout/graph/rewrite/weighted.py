"""Weighted operations of the new graph: which rows are kept, in which order, and what reads what."""

from dataclasses import dataclass

from torch import Tensor, fx

from nas_blockout.graph.operations import bound
from nas_blockout.graph.rewrite.bundles import (
    BundledOperation,
    Call,
    ConstantNodes,
    DepthwiseOperation,
    bundles_of,
    divide,
    row_order,
)
from nas_blockout.graph.rewrite.counterparts import (
    Counterparts,
    Result,
    along,
    channel_dim,
    is_depthwise,
)
from nas_blockout.graph.rewrite.layout import Axis, Layout, Placed
from nas_blockout.graph.rewrite.unweighted import unknown


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A weighted operation of the original graph.

    Args:
        path: Of the module that takes its place: that of the weight without the last name.
        weight: Masked, shape ``(rows, inputs / groups)`` and the window.
        bias: Shape ``(rows,)``, or None.
        call: How it is called.
        groups: Of a convolution.
        targets: Node of each row.
        sources: Node of each input, 0 where it is none.
        dim: Dim of the nodes.
        positions: At which it is used for one image.
    """

    path: str
    weight: Tensor
    bias: Tensor | None
    call: Call
    groups: int
    targets: Tensor
    sources: Tensor
    dim: int
    positions: int

    def bias_of(self, rows: Tensor) -> Tensor | None:
        """Return the bias of some rows."""
        return None if self.bias is None else self.bias[rows]

    def macs(self, rows: int, columns: int) -> int:
        """Return the multiply-accumulates an image of some rows that read some columns."""
        return self.positions * rows * columns * self.weight[0, 0].numel()


def weighted(graph: Counterparts, node: fx.Node) -> Result:
    """Add a convolution or linear operation: one operation a bundle of its kept rows."""
    if node not in graph.analysis.weight_of:
        return _between_positions(graph, node)
    operation, value = _read(graph, node), graph.placed(bound(node)["input"])
    if graph.is_shared(bound(node)["weight"]) and not value.is_empty:
        value = graph.for_module(operation.path, graph.emitter.exact(value), operation.sources, operation.call)
    if is_depthwise(operation.targets, operation.sources, operation.groups):
        return _depthwise(graph, node, operation, value)
    dim = operation.dim
    axis = value.axis(dim) if value.node else Axis.none(value.shape[dim])
    set_of, reads = divide(graph.memberships, operation.targets, operation.sources, axis, groups=operation.groups)
    alone = graph.is_written_once(operation.targets)
    order = row_order(graph.memberships, operation.targets, set_of if alone else None)
    layout = tuple(
        Axis.in_order(order, len(operation.targets)) if other == dim else have and have.compact()
        for other, have in enumerate(value.layout)
    )
    if not len(order):
        return graph.result(node, None, layout)
    bundles = bundles_of(set_of, reads, order, axis, groups=operation.groups)
    graph.macs += sum(operation.macs(len(bundle.rows), len(bundle.places)) for bundle in bundles)
    if not len(bundles[0].places):
        return _constant(graph, node, operation.path, operation.bias_of(order), layout)
    # Bundles read what they need of the inputs, but the other dims hold nothing that is removed.
    read = graph.emitter.aligned(value, (*layout[:dim], value.layout[dim], *layout[dim + 1 :]))
    new = graph.emitter.module(
        operation.path,
        lambda: BundledOperation(
            operation.call,
            bundles,
            operation.weight,
            operation.bias,
            axis=axis,
            order=order,
            groups=operation.groups,
        ),
        read.node,
    )
    return graph.result(node, new, layout)


def _between_positions(graph: Counterparts, node: fx.Node) -> Result:
    """Add an operation whose weight is not between nodes: its own dim is whole, others may hold nodes."""
    dim, source = channel_dim(node), bound(node)["input"]
    if dim != -1 or not isinstance(source, fx.Node):
        return unknown(graph, node)
    value = graph.placed(source)
    layout = (*(axis and axis.compact() for axis in value.layout[:-1]), None)
    value = graph.emitter.aligned(value, layout, graph.nodes(source))
    return graph.followed(node, {source: value}, layout)


def _read(graph: Counterparts, node: fx.Node) -> Weighted:
    arguments, name = bound(node), graph.analysis.weight_of[node]
    weight = graph.state[name]
    window = weight.dim() - 2
    options = tuple(arguments[option] for option in ("stride", "padding", "dilation")) if window else ()
    dim = channel_dim(node) % len(graph.shape(node))
    return Weighted(
        path=name.removesuffix(".weight"),
        weight=weight,
        bias=graph.state_of(arguments["bias"]),
        call=Call(window, options),
        groups=arguments.get("groups", 1),
        targets=along(graph.nodes(node), dim),
        sources=along(graph.nodes(arguments["input"]), dim),
        dim=dim,
        positions=graph.analysis.values[node].numel() // len(weight),
    )


def _depthwise(graph: Counterparts, node: fx.Node, operation: Weighted, value: Placed) -> Placed:
    value = graph.emitter.exact(value)
    if value.is_empty or value.node is None:
        return graph.result(node, None, value.layout)
    rows = value.axis(operation.dim).order
    graph.macs += operation.macs(len(rows), 1)
    new = graph.emitter.module(
        operation.path,
        lambda: DepthwiseOperation(operation.call, operation.weight[rows], operation.bias_of(rows)),
        value.node,
    )
    return graph.result(node, new, value.layout)


def _constant(graph: Counterparts, node: fx.Node, path: str, bias: Tensor | None, layout: Layout) -> Placed:
    """Add nodes that read nothing, without what they would read: nothing of it may be left."""
    result = graph.result(node, graph.emitter.image.node, layout)
    dim = channel_dim(node) % len(result.shape)
    images = result.batched.index(True)
    new = graph.emitter.module(
        path, lambda: ConstantNodes(bias, result.sizes, dim=dim, batch_dim=images), graph.emitter.image.node
    )
    return graph.result(node, new, layout)
