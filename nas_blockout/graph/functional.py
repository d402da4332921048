"""The graph of an exported program without in-place operations, computations on constants, and dead code."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nas_blockout.graph.operations import SHAPED_LIKE, VIEWS, draws, name_of, place_of, written

# Tensors without values: only what is written into them counts, so they are no constants.
_UNSET = {"empty", "empty_like", "new_empty", "empty_strided"}
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "_guards_fn"}
_INNER = {
    "wrap_with_set_grad_enabled": "runs a part of itself under torch.no_grad()",
    "wrap_with_autocast": "runs a part of itself under torch.autocast",
    "cond": "decides by torch.cond what to compute",
}
# In-place operations that are called otherwise where they make something new.
_RENAMED = {"bernoulli_.float": "bernoulli.p"}


class Untraceable(ValueError):
    """A network that cannot be read as a graph of layers of nodes."""


@dataclass(frozen=True, slots=True, eq=False)
class Functional:
    """A graph of which every node is made once and never changed.

    Args:
        graph: Placeholders, calls and one output.
        image: The placeholder of the images.
        output: What the network returns.
        parameter_of: Placeholders of parameters and buffers, and their names in the state dict.
        constants: Placeholders of other tensors, and their values.
    """

    graph: fx.Graph
    image: fx.Node
    output: fx.Node
    parameter_of: Mapping[fx.Node, str]
    constants: Mapping[fx.Node, Tensor]


def make_functional(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> Functional:
    """Return the graph of an exported program; the program is changed.

    Args:
        program: Takes images, returns one tensor.
        names: What each parameter and buffer shall be called, by its name.

    Raises:
        Untraceable: The program contains another program, or writes into a part of a tensor, or into its weights.
    """
    graph, signature = program.graph, program.graph_signature
    states = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    parameter_of = {placeholders[name]: names[state] for name, state in states.items()}
    constants = {
        placeholders[name]: program.constants[attribute]
        for name, attribute in signature.inputs_to_lifted_tensor_constants.items()
    }
    image = placeholders[signature.user_inputs[0]]
    _require_calls(graph)
    _erase_checks(graph)
    _InPlace(graph, parameter_of).replace_all()
    _split_gates(graph)
    constants = _folded(graph, constants)
    _erase_unread(graph, image)
    left = set(graph.nodes)
    return Functional(
        graph,
        image,
        graph.output_node().args[0][0],
        {node: state for node, state in parameter_of.items() if node in left},
        constants,
    )


def _require_calls(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "get_attr":
            user = next(iter(node.users), node)
            what = getattr(user.target, "__name__", str(user.target))
            assert graph.owning_module is not None
            inner = graph.owning_module.get_submodule(str(node.target))
            calls = [each for each in inner.graph.nodes if each.op == "call_function"]  # type: ignore[union-attr]
            where = place_of(calls[0] if calls else user)
            raise Untraceable(
                f"a network must be one plain graph; at {where or 'its top'} it "
                f"{_INNER.get(what, f'runs another program inside ({what})')}. Take that out of its forward"
            )


def _erase_checks(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and name_of(node) in _CHECKS and not node.users:
            graph.erase_node(node)


def _split_gates(graph: fx.Graph) -> None:
    """Write gated linear units as halves that are multiplied, which are operations whose nodes can be told."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function" or name_of(node) != "glu":
            continue
        dim = node.args[1] if len(node.args) > 1 else -1

        def add(target: Any, *args: Any, node: fx.Node = node) -> fx.Node:
            with graph.inserting_before(node):
                made = graph.call_function(target, args)
            made.meta = {**node.meta, "val": target(*fx.node.map_arg(args, lambda each: each.meta["val"]))}
            return made

        halves = add(aten.chunk.default, node.args[0], 2, dim)
        value, gate = (add(operator.getitem, halves, number) for number in (0, 1))
        node.replace_all_uses_with(add(aten.mul.Tensor, value, add(aten.sigmoid.default, gate)))
        graph.erase_node(node)


class _InPlace:
    """Replaces operations that write into their argument by ones that make something new.

    Args:
        graph: Is changed.
        parameter_of: Placeholders of parameters and buffers.
    """

    def __init__(self, graph: fx.Graph, parameter_of: Mapping[fx.Node, str]) -> None:
        self.graph = graph
        self.parameter_of = parameter_of
        self.fixed = _independent(graph)

    def replace_all(self) -> None:
        """Replace every in-place operation but those on constants whose other views are read later."""
        for node in list(self.graph.nodes):
            target = written(node) if node.op == "call_function" else None
            if target is None:
                continue
            root = _root(target)
            if root in self.parameter_of:
                self._counts_batches(node, self.parameter_of[root])
            elif any(user > node for user in self._other_readers(node, target, root)):
                self._require_constant(node, root)
            else:
                self._replace(node, target)

    def _counts_batches(self, node: fx.Node, state: str) -> None:
        if state.rpartition(".")[2] == "num_batches_tracked" and not node.users:
            self.graph.erase_node(node)
            return
        raise Untraceable(
            f"a network must leave its weights and buffers alone while it runs, but {state!r} is changed in place at "
            f"{place_of(node)}; only batch norm may"
        )

    def _other_readers(self, node: fx.Node, target: fx.Node, root: fx.Node) -> Iterator[fx.Node]:
        """Yield what reads the memory that a node writes otherwise than through its target."""
        for view in _views(root):
            # A view of the target that is made afterward will be one of the new value.
            if view is not target and view < node:
                yield from view.users

    def _require_constant(self, node: fx.Node, root: fx.Node) -> None:
        early = any(user < node and user not in self.fixed for view in _views(root) for user in view.users)
        if root not in self.fixed or early:
            raise _writes_a_part(node)

    def _replace(self, node: fx.Node, target: fx.Node) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        path = f"{node.target._schema.name.rpartition('::')[2]}.{node.target._overloadname}"
        packet, overload = _RENAMED.get(path, path.replace("_.", ".", 1)).split(".")
        made = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if made is None:
            raise Untraceable(
                f"{name_of(node)}_ at {place_of(node)} has no form that leaves its argument alone: use one"
            )
        for user in list(target.users):
            if user is not node and user > node:
                user.replace_input_with(target, node)  # it reads what has been written
        node.target = made


def _writes_a_part(node: fx.Node) -> Untraceable:
    return Untraceable(
        f"a network must not write into a part of a tensor, as {name_of(node)}_ does at {place_of(node)}: "
        "torch.where, torch.cat or multiplication by a mask make a new one"
    )


def _root(node: fx.Node) -> fx.Node:
    """Return the node that owns the memory of a view."""
    while node.op == "call_function" and name_of(node) in VIEWS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _views(root: fx.Node) -> Iterator[fx.Node]:
    """Yield a node and everything that may share its memory."""
    yield root
    for user in root.users:
        if user.op == "call_function" and name_of(user) in VIEWS and user.args[0] is root:
            yield from _views(user)


def _independent(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values depend on no image and on no parameter, shapes apart."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.name.startswith("c_"):
                found.add(node)
        elif node.op == "call_function":
            inputs = node.all_input_nodes[1:] if name_of(node) in SHAPED_LIKE else node.all_input_nodes
            if all(each in found for each in inputs):
                found.add(node)
    return found


def _folded(graph: fx.Graph, constants: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
    """Compute what depends on nothing, replace it by placeholders, and return their values."""
    values: dict[fx.Node, Any] = dict(constants)
    for node in graph.nodes:
        if node.op == "call_function" and _is_foldable(node, values):
            values[node] = _computed(node, values)
        elif node.op == "call_function" and written(node) is not None:
            raise _writes_a_part(node)  # into a constant of as many rows as images
    first = next(node for node in graph.nodes if node.op != "placeholder")
    folded: dict[fx.Node, Tensor] = {}
    for node in list(values):
        readers = [user for user in node.users if user not in values]
        if not readers or not isinstance(values[node], Tensor):
            continue
        with graph.inserting_before(first):
            placeholder = graph.placeholder(f"constant_{len(folded)}")
        placeholder.meta["val"] = values[node]
        for user in readers:
            user.replace_input_with(node, placeholder)
        folded[placeholder] = values[node]
    return folded


def _is_foldable(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    name = name_of(node)
    if draws(node) or name in _UNSET or name == "sym_size":
        return False
    inputs = list(node.all_input_nodes)
    if name in SHAPED_LIKE:
        inputs = inputs[1:]
        if name.endswith("_like") and not _is_static(node.meta.get("val")):
            return False  # as many values as images
    return all(each in values for each in inputs)


def _is_static(value: Any) -> bool:
    return isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)


def _computed(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    def value(each: fx.Node) -> Any:
        if each in values:
            return values[each]
        known = each.meta["val"]  # of which only shape and type are asked for
        shape = [size if isinstance(size, int) else 1 for size in known.shape]
        return torch.empty(shape, dtype=known.dtype, device=known.device)

    args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _erase_unread(graph: fx.Graph, image: fx.Node) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op != "output" and node is not image and not node.users:
            graph.erase_node(node)
