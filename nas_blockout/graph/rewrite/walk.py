"""The walk over the original graph that writes the new one.

Every value of the original graph gets a counterpart, with a layout that says where its kept positions stand. Weighted
operations decide which rows are kept and in which order; everything else follows the layouts of what it reads, and asks
for a copy only where two of them disagree.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from nas_blockout.graph.analysis import GraphAnalysis
from nas_blockout.graph.operations import bound, name_of
from nas_blockout.graph.rewrite.bundles import Memberships
from nas_blockout.graph.rewrite.counterparts import (
    Counterparts,
    Result,
    batched_dims,
)
from nas_blockout.graph.rewrite.layout import Placed, Shape
from nas_blockout.graph.rewrite.moves import MOVES, Move, moved
from nas_blockout.graph.rewrite.training_layers import AttentionWithDropout, DropPath, batch_norm, dropout
from nas_blockout.graph.rewrite.unweighted import OPERATIONS, Handler, attention, unknown
from nas_blockout.graph.rewrite.weighted import weighted
from nas_blockout.graph.training import AttentionDropout, BatchStatistics, Dropout
from nas_blockout.graph.training import DropPath as DropsPaths

_WEIGHTED: Mapping[str, Handler] = dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), weighted)
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def rewritten(
    analysis: GraphAnalysis, memberships: Memberships, state: Mapping[str, Tensor]
) -> tuple[fx.GraphModule, int]:
    """Return the branched graph with its modules, and the multiply-accumulates an image of its weights.

    Args:
        analysis: The original graph.
        memberships: Which clusters its nodes belong to, and which nodes stay.
        state: State dict of the original network, masked weights in place.

    Raises:
        Unplaceable: Some nodes must be rigid, which the analysis did not know.
    """
    graph = Counterparts(analysis, memberships, state)
    for node in analysis.graph.nodes:
        # Constants and sizes are written where they are read.
        if node.op == "call_function" and not analysis.is_constant[node] and not graph.is_scalar(node):
            graph[node] = _counterpart(graph, node)
    return graph.emitter.module_graph(graph.whole(analysis.output)), graph.macs


def _counterpart(graph: Counterparts, node: fx.Node) -> Result:
    name = name_of(node)
    if name == "getitem":
        source, number = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(number, int)
        return graph.part(source, number)
    if node in graph.analysis.training:
        return _in_training(graph, node, name)
    if name in _DROPOUTS:  # of rate 0, or of a module that stays in evaluation
        return graph.value(graph.operands(node)[0])
    if handler := _WEIGHTED.get(name) or OPERATIONS.get(name):
        result: Result = handler(graph, node)
        return result
    active = [operand for operand in graph.operands(node) if not graph.analysis.is_constant[operand]]
    if name in MOVES and len(active) == 1:
        return moved(_move(graph, node, active[0]), graph.value(active[0]))
    return unknown(graph, node)


def _move(graph: Counterparts, node: fx.Node, source: fx.Node) -> Move:
    values = graph.analysis.values
    value, meta = values[node], node.meta["val"]
    results = zip(value, meta, strict=True) if isinstance(value, tuple | list) else [(value, meta)]
    return Move(
        graph.emitter,
        name_of(node),
        {name: fx.node.map_arg(argument, lambda each: values[each]) for name, argument in bound(node).items()},
        tuple(Shape(tuple(each.shape), batched_dims(exported)) for each, exported in results),
        lambda new: graph.repeated(node, {source: new}),
        lambda tensor, images: _replayed(graph, node, {source: tensor}, images),
        graph.nodes(source),
    )


def _replayed(graph: Counterparts, node: fx.Node, given: Mapping[fx.Node, Tensor], images: int) -> Any:
    """Run an operation on a tensor, as the original network does with so many images."""

    def known(argument: fx.Node) -> Any:
        if argument in given:
            return given[argument]
        value = graph.analysis.values[argument]
        return value * images if isinstance(argument.meta["val"], torch.SymInt) else value

    assert callable(node.target)
    # Not `view`: what an earlier move gave need not stand together in memory.
    is_view = name_of(node) in ("view", "_unsafe_view")
    target = torch.ops.aten.reshape.default if is_view else node.target
    return target(*fx.node.map_arg(node.args, known), **fx.node.map_arg(node.kwargs, known))


def _in_training(graph: Counterparts, node: fx.Node, name: str) -> Placed:
    """Add a module for an operation that does something else in training."""
    training, source = graph.analysis.training[node], graph.operands(node)[0]
    if isinstance(training, AttentionDropout):
        return _attention(graph, node, training)
    value = graph.exact(source)
    if value.is_empty:
        return graph.result(node, None, value.layout)
    if isinstance(training, BatchStatistics):
        return _batch_norm(graph, node, value, training)
    if isinstance(training, Dropout):
        layer = dropout(name, training.rate)
    else:
        assert isinstance(training, DropsPaths)
        layer = DropPath(training.rate, per_image=training.per_image, scale=training.scale)
    return graph.result(node, graph.emitter.module(_path(node), lambda: layer, value.node), value.layout)


def _batch_norm(graph: Counterparts, node: fx.Node, value: Placed, training: BatchStatistics) -> Placed:
    arguments = bound(node)
    named = {name: arguments[name] for name in ("weight", "bias", "running_mean", "running_var")}
    path = next((graph.analysis.parameter_of[each] for each in named.values() if each is not None), None)
    path = path.rpartition(".")[0] if path else _path(node)
    value = graph.for_module(path, value, graph.nodes(node))
    axis = value.layout[1]
    state = {}
    for name, parameter in named.items():
        of_all = graph.state_of(parameter)
        if of_all is not None:
            state[name] = of_all if axis is None else of_all[axis.order]
    if "running_mean" in state and f"{path}.num_batches_tracked" in graph.state:
        state["num_batches_tracked"] = graph.state[f"{path}.num_batches_tracked"]
    new = graph.emitter.module(
        path,
        lambda: batch_norm(
            state,
            dims=len(value.shape),
            width=value.sizes[1],
            eps=arguments["eps"],
            momentum=training.momentum,
        ),
        value.node,
    )
    return graph.result(node, new, value.layout)


def _attention(graph: Counterparts, node: fx.Node, training: AttentionDropout) -> Placed:
    """Add attention as in evaluation, then put the module that drops in its place."""
    result = attention(graph, node)
    assert isinstance(result, Placed)
    if result.node is None:
        return result
    arguments = bound(node)
    operands = [argument for argument in result.node.args[:4] if isinstance(argument, fx.Node)]
    if isinstance(result.node.kwargs.get("attn_mask"), fx.Node):
        operands.append(result.node.kwargs["attn_mask"])  # type: ignore[arg-type]  # as was asked
    layer = AttentionWithDropout(training.rate, is_causal=arguments["is_causal"], scale=arguments.get("scale"))
    new = graph.emitter.module(_path(node), lambda: layer, *operands)
    if not result.node.users:  # fx keeps what could draw, and would compute the attention twice
        result.node.graph.erase_node(result.node)
    return graph.result(node, new, result.layout)


def _path(node: fx.Node) -> str:
    """Return a path for a module without state: that of the module it came from, if any, and the name of the node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    owner = str(stack[-1][0]).removeprefix("L['self'].").removeprefix("L['self']") if stack else ""
    parts = [*(part for part in owner.split(".") if part.isidentifier() or part.isdigit()), node.name]
    return ".".join(parts)
