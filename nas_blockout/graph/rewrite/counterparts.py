"""What each value of the original graph is in the new one."""

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from nas_blockout.graph.analysis import GraphAnalysis
from nas_blockout.graph.operations import bound, name_of
from nas_blockout.graph.rewrite.bundles import Memberships
from nas_blockout.graph.rewrite.emitter import Emitter
from nas_blockout.graph.rewrite.layout import Layout, Placed, Unplaceable, Value, written

NOBODY = torch.zeros(0, dtype=torch.long)

Result = Value | tuple[Value, ...]


class Counterparts:
    """Values of the new graph by the nodes of the original one.

    Args:
        analysis: The original graph.
        memberships: Which clusters its nodes belong to, and which nodes stay.
        state: State dict of the original network, masked weights in place.

    Attributes:
        emitter: Writes the new graph.
        macs: Multiply-accumulates an image of the weighted operations written so far.
    """

    def __init__(self, analysis: GraphAnalysis, memberships: Memberships, state: Mapping[str, Tensor]) -> None:
        self.analysis, self.memberships, self.state = analysis, memberships, state
        self.emitter = Emitter(analysis.shape)
        self.macs = 0
        self._results: dict[fx.Node, Result] = {analysis.image: self.emitter.image}
        self._writers = _writers(analysis)
        self._users = _users(analysis)
        self._inputs: dict[str, tuple[Placed, Any, Tensor]] = {}
        _require_whole_modules(self._users, analysis)

    # ---- the original graph

    def is_scalar(self, node: fx.Node) -> bool:
        """Whether a node is a number, as a size."""
        return isinstance(self.analysis.values[node], int | float | bool)

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensors that an operation reads."""
        return [operand for operand in node.all_input_nodes if not self.is_scalar(operand)]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of an original value for one image; of several, that of the first."""
        value = self.analysis.values[node]
        return tuple((value[0] if isinstance(value, tuple | list) else value).shape)

    def nodes(self, node: fx.Node) -> Tensor:
        """Return the nodes of an original value, to be made rigid if it cannot be placed."""
        labels = self.analysis.labels[node]
        return labels if isinstance(labels, Tensor) else NOBODY

    def is_written_once(self, nodes: Tensor) -> bool:
        """Whether no node of a layer is written by a second weight, which would need the same order."""
        return all(self._writers[node] <= 1 for node in set(nodes.tolist()))

    # ---- the new graph

    def __setitem__(self, node: fx.Node, result: Result) -> None:
        self._results[node] = result

    def part(self, node: fx.Node, number: int) -> Value:
        """Return one of the values of an operation that gives several."""
        parts = self._results[node]
        assert isinstance(parts, tuple), f"{node} gives several values"
        return parts[number]

    def value(self, node: fx.Node) -> Value:
        """Return the counterpart of a value; a constant is written when it is first read."""
        if node not in self._results:
            self._results[node] = self._constant(node)
        result = self._results[node]
        assert not isinstance(result, tuple), f"the values of {node} are read one by one"
        return result

    def placed(self, node: fx.Node) -> Placed:
        """Return the counterpart of a value.

        Raises:
            Unplaceable: It is known only as a move of another value.
        """
        self._results[node] = value = written(self.value(node), self.nodes(node))
        return value

    def whole(self, node: fx.Node) -> Placed:
        """Return the counterpart of a value with all positions in order.

        Raises:
            Unplaceable: Some of its positions are removed.
        """
        value = self.placed(node)
        if value.is_empty:
            raise Unplaceable(self.nodes(node), "read whole by an operation")
        return self.emitter.aligned(value, (None,) * len(value.layout), self.nodes(node))

    def exact(self, node: fx.Node) -> Placed:
        """Return the counterpart of a value with nothing in memory but what is kept."""
        return self.emitter.exact(self.placed(node))

    def result(self, node: fx.Node, new: fx.Node | None, layout: Layout, part: int | None = None) -> Placed:
        """Return the counterpart that an operation has written; with no `new`, nothing of it is kept."""
        original, meta = self.analysis.values[node], node.meta["val"]
        if part is not None:
            original, meta = original[part], meta[part]
        batched = batched_dims(meta)
        return Placed(new, tuple(original.shape), layout, batched)

    def repeated(self, node: fx.Node, operands: Mapping[fx.Node, fx.Node] | None = None) -> fx.Node:
        """Add the same operation to the new graph, with some operands given and the others whole."""

        def new(argument: fx.Node) -> Any:
            if operands and argument in operands:
                return operands[argument]
            if self.is_scalar(argument):
                return self._scalar(argument)
            return self.whole(argument).node

        args, kwargs = fx.node.map_arg(node.args, new), fx.node.map_arg(node.kwargs, new)
        assert callable(node.target)
        return self.emitter.call(node.target, *args, **kwargs)

    def followed(self, node: fx.Node, operands: Mapping[fx.Node, Placed], layout: Layout) -> Result:
        """Add the same operation on operands that are in place already; none if nothing of one of them is kept.

        If it gives several values, all have the same layout.
        """
        kept = {original: operand.node for original, operand in operands.items() if operand.node is not None}
        empty = any(operand.is_empty for operand in operands.values())
        new = None if empty else self.repeated(node, kept)
        several = self.analysis.values[node]
        if not isinstance(several, tuple | list):
            return self.result(node, new, layout)
        parts = [new and self.emitter.call(operator.getitem, new, number) for number in range(len(several))]
        return tuple(self.result(node, part, layout, number) for number, part in enumerate(parts))

    def with_layout(self, node: fx.Node, layout: Layout) -> Placed:
        """Return the counterpart of a value in a layout.

        A parameter that is read once is held in this layout, instead of being brought into it for each batch.

        Raises:
            Unplaceable: It has not all positions of the layout.
        """
        if not self.is_cuttable(node):
            return self.emitter.aligned(self.placed(node), layout, self.nodes(node))
        value = self.state[self.analysis.parameter_of[node]]
        for dim, axis in enumerate(layout):
            if axis is not None:
                value = value.index_select(dim, axis.order.to(value.device))
        return self.result(node, self._parameter(node, value), layout)

    def is_empty(self, node: fx.Node) -> bool:
        """Whether nothing of a value is kept."""
        return not self.analysis.is_constant[node] and self.placed(node).is_empty

    def is_cuttable(self, node: fx.Node) -> bool:
        """Whether a node is a parameter that is read once."""
        name = self.analysis.parameter_of.get(node)
        return name is not None and len(self._users[name]) == 1

    def is_shared(self, node: fx.Node) -> bool:
        """Whether a parameter has several users."""
        return len(self._users[self.analysis.parameter_of[node]]) > 1

    def for_module(self, path: str, value: Placed, nodes: Tensor, called: Any = None) -> Placed:
        """Return what a module reads; if it is called again, in the layout of the first time.

        Args:
            path: Of the module.
            value: What it reads.
            nodes: Of the value, to be made rigid if not the same of it is kept as the first time.
            called: How it is called; the same every time.

        Raises:
            Unplaceable: It was called otherwise, or for other nodes.
        """
        first, before, nodes_before = self._inputs.setdefault(path, (value, called, nodes))
        if called != before:
            raise Unplaceable(NOBODY, f"two uses of {path!r} that differ in stride, padding or dilation")
        if any(
            not torch.equal(value.axis(dim).kept, first.axis(dim).kept)
            for dim, axes in enumerate(zip(value.layout, first.layout, strict=True))
            if axes != (None, None)
        ):
            raise Unplaceable(torch.cat([nodes.flatten(), nodes_before.flatten()]), "shared weight")
        return self.emitter.aligned(value, first.layout)

    def state_of(self, node: fx.Node | None) -> Tensor | None:
        """Return the value of a parameter in the state, None for no node.

        Raises:
            Unplaceable: It is computed from others.
        """
        if node is None:
            return None
        if node not in self.analysis.parameter_of:
            raise Unplaceable(NOBODY, "a computed parameter")
        return self.state[self.analysis.parameter_of[node]]

    def _constant(self, node: fx.Node) -> Placed:
        value, batched = self.analysis.values[node], batched_dims(node.meta["val"])
        assert self.analysis.is_constant[node], f"{node} is read before it is written"
        if node in self.analysis.parameter_of:
            new = self._parameter(node, self.state[self.analysis.parameter_of[node]])
        elif not value.is_meta and not any(batched):
            new = self.emitter.constant(value)
        else:
            new = self.repeated(node)
        return self.result(node, new, (None,) * value.dim())

    def _parameter(self, node: fx.Node, value: Tensor) -> fx.Node:
        learned = node.name.startswith("p_")  # as export names placeholders of parameters; those of buffers are b_
        return self.emitter.parameter(self.analysis.parameter_of[node], value, learned=learned)

    def _scalar(self, node: fx.Node) -> fx.Node | float:
        value, meta = self.analysis.values[node], node.meta["val"]
        if not isinstance(meta, torch.SymInt):
            return value  # type: ignore[no-any-return]  # a number
        if not _is_multiple_of_images(meta, value):
            raise Unplaceable(NOBODY, "a size that is no multiple of the number of images")
        return self.emitter.images(value)


def _users(analysis: GraphAnalysis) -> Mapping[str, list[fx.Node]]:
    """Return what reads each parameter, under whichever of its names."""
    users: dict[str, list[fx.Node]] = {}
    for node, name in analysis.parameter_of.items():
        users.setdefault(name, []).extend(node.users)
    return users


def _require_whole_modules(users: Mapping[str, list[fx.Node]], analysis: GraphAnalysis) -> None:
    """Refuse parameters that would be cut for one user and not for another: they would no longer be one in training.

    Raises:
        Unplaceable: A weight, or what belongs to one, is read by something else, too.
    """
    for name, readers in users.items():
        owners = {analysis.weight_of.get(reader, _norm_of(reader, analysis)) for reader in readers}
        if len(owners) > 1:
            raise Unplaceable(NOBODY, f"parameters {name!r} that are shared by different operations")


def _norm_of(node: fx.Node, analysis: GraphAnalysis) -> str | None:
    """Return the name of a parameter of a batch norm, which stands for the module; None for any other operation."""
    if name_of(node) != "batch_norm":
        return None
    given = bound(node)
    parameter = given["running_mean"] if given["running_mean"] is not None else given["weight"]
    return analysis.parameter_of.get(parameter)


def batched_dims(meta: Any) -> tuple[bool, ...]:
    """Return for each dim of an exported value whether its size grows with the number of images."""
    return tuple(isinstance(size, torch.SymInt) for size in meta.shape)


def along(nodes: Tensor, dim: int) -> Tensor:
    """Return the nodes of a value along one dim; at all positions of the others they are the same, or none."""
    own = dim % nodes.dim()
    for other in range(nodes.dim()):
        if other != own:  # repeated entries, which share memory, are not looked at one by one
            nodes = nodes.narrow(other, 0, 1) if nodes.stride(other) == 0 else nodes.amax(other, keepdim=True)
    return nodes.flatten()


def is_depthwise(nodes: Tensor, sources: Tensor, groups: int) -> bool:
    """Whether a convolution from one dim of nodes to another filters each node alone."""
    return groups == len(nodes) == len(sources) > 1


def channel_dim(node: fx.Node) -> int:
    """Return the dim of the nodes in what a weighted operation reads and gives."""
    return -1 if name_of(node) == "linear" else 1


def _is_multiple_of_images(size: torch.SymInt, factor: int) -> bool:
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    return len(symbols) == 1 and expression == factor * symbols[0]


def _writers(analysis: GraphAnalysis) -> Counter[int]:
    writers: Counter[int] = Counter()
    for node in analysis.weight_of:
        dim = channel_dim(node)
        source, _, *_ = node.all_input_nodes
        nodes, sources = (_along_labels(analysis, each, dim) for each in (node, source))
        if not is_depthwise(nodes, sources, bound(node).get("groups", 1)):
            writers.update(set(nodes.tolist()))
    return writers


def _along_labels(analysis: GraphAnalysis, node: fx.Node, dim: int) -> Tensor:
    labels = analysis.labels[node]
    assert isinstance(labels, Tensor), "a weight reads one value and gives one"
    return along(labels, dim)
