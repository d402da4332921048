"""The new graph while it is written: its operations, its modules, and the copies that bring values into an order."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas_blockout.graph.rewrite.layout import Layout, Placed, Unplaceable


class Emitter:
    """Writes a graph beside the modules that it calls.

    Args:
        shape: Shape of one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        image = self.graph.placeholder("x")
        self.image = Placed(image, (1, *shape), (None,) * (len(shape) + 1), (True, *(False,) * len(shape)))
        self._indices = 0

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def module(self, path: str, build: Callable[[], nn.Module], *args: Any) -> fx.Node:
        """Add a call of a module that is held under a path; what is there already is called again.

        Where the path leads to what was held below it before, as the indices of an operation of a network that is
        branched already, the module is held one step further down.
        """
        if type(self._held(path)) is nn.Module:
            path += ".operation"
        if not self.holds(path):
            self._hold(path, build())
        return self.graph.call_module(path, args)

    def holds(self, path: str) -> bool:
        """Whether there is a module, a parameter or a buffer of this path."""
        return self._held(path) is not None

    def _held(self, path: str) -> Any:
        found: Any = self.root
        for name in path.split("."):
            found = getattr(found, name, None)
        return found

    def parameter(self, path: str, value: Tensor, *, learned: bool) -> fx.Node:
        """Add a parameter, or a buffer of the state, under the path that it had in the original network."""
        if not self.holds(path):
            self._hold(path, nn.Parameter(value.clone(), requires_grad=learned) if learned else value.clone())
        return self.graph.get_attr(path)

    def constant(self, value: Tensor) -> fx.Node:
        """Add a tensor that is part of the graph, not of the state."""
        name = f"constant_{self._indices}"
        self._indices += 1
        self.root.register_buffer(name, value, persistent=False)
        return self.graph.get_attr(name)

    def images(self, factor: int = 1) -> fx.Node:
        """Add the number of images, times a factor."""
        number = self.call(torch.ops.aten.sym_size.int, self.image.node, 0)
        return number if factor == 1 else self.call(operator.mul, number, factor)

    def select(self, node: fx.Node, dim: int, places: Tensor) -> fx.Node:
        """Add the choice of some places of one dim: a view where they follow each other."""
        if len(places) and torch.equal(places, torch.arange(len(places)) + places[0]):
            return self.call(torch.narrow, node, dim, int(places[0]), len(places))
        return self.call(torch.index_select, node, dim, self.constant(places.clone()))

    def aligned(self, value: Placed, layout: Layout, nodes: Tensor | None = None) -> Placed:
        """Return a value in another layout, whose positions it must have.

        Args:
            value: Any value.
            layout: One axis a dim.
            nodes: Of the value, to be made rigid where it cannot be had.

        Raises:
            Unplaceable: A position of the layout is removed, or the dim also counts images.
        """
        node = value.node
        if node is None:
            return value
        for dim, axis in enumerate(layout):
            have = value.layout[dim]
            if have is axis:
                continue
            places = have.places if have is not None else torch.arange(value.shape[dim])
            if axis is not None:
                places = places[axis.order]
            size = have.size if have is not None else value.shape[dim]
            if len(places) == size and torch.equal(places, torch.arange(size)):
                continue
            blame = torch.zeros(0) if nodes is None else nodes
            if bool((places < 0).any()):
                raise Unplaceable(blame, "read whole by an operation")
            if value.batched[dim]:
                raise Unplaceable(blame, "counted together with images")
            node = self.select(node, dim, places)
        return Placed(node, value.shape, layout, value.batched)

    def exact(self, value: Placed) -> Placed:
        """Return a value whose memory holds nothing but what is kept."""
        if all(axis is None or axis.is_exact for axis in value.layout):
            return value
        return self.aligned(value, tuple(axis and axis.compact() for axis in value.layout))

    def module_graph(self, output: Placed) -> fx.GraphModule:
        """Return the finished graph with its modules, without what nothing reads."""
        self.graph.output(output.node)
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
        module.delete_all_unused_submodules()
        return module

    def _hold(self, path: str, value: nn.Module | Tensor) -> None:
        *parents, name = path.split(".")
        owner: nn.Module = self.root
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        if isinstance(value, nn.Module):
            owner.add_module(name, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(name, value)
        else:
            owner.register_buffer(name, value)
