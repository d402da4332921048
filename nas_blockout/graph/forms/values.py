"""What is known of a branched graph before any form is chosen: shapes, and weights with normalization folded in."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas_blockout.graph.forms.folded_operations import Filters, Folded, folded


class _Recorder(fx.Interpreter):
    """Runs a graph without values and records the shapes."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(copy.deepcopy(body).to("meta"))
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A branched graph in eval mode.

    Args:
        body: The graph and its modules.
        shape: Of one image.
        shapes: Of each tensor, for one image.
        operations: The weighted operations.
        gone: Batch norms that are folded in, and their operations.
        modules: By path.
    """

    body: fx.GraphModule
    shape: tuple[int, ...]
    shapes: Mapping[fx.Node, tuple[int, ...]]
    operations: Mapping[fx.Node, Folded | Filters]
    gone: Mapping[fx.Node, fx.Node]
    modules: Mapping[str, nn.Module]

    def numbers(self, node: fx.Node, dim: int) -> int:
        """Return how many numbers there are of each node, for one image."""
        shape = self.shapes[node]
        return math.prod(shape) // max(1, shape[dim])


def program_of(body: fx.GraphModule, shape: tuple[int, ...]) -> Program:
    """Return what is known of a branched graph.

    Args:
        body: The graph and its modules.
        shape: Of one image.
    """
    recorder = _Recorder(body)
    dtype = next((each.dtype for each in body.parameters() if each.is_floating_point()), torch.get_default_dtype())
    recorder.run(torch.empty(1, *shape, device="meta", dtype=dtype))
    shapes = {node: recorder.shapes[node.name] for node in body.graph.nodes if node.name in recorder.shapes}
    operations, gone = folded(body, {node: len(sizes) for node, sizes in shapes.items()})
    return Program(body, shape, shapes, operations, gone, dict(body.named_modules()))
