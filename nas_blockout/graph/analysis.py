"""Layers of nodes of any network, and the weights between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas_blockout.graph.training import Training

CLASSES = "classes"
NO_NODE = -1


@dataclass(frozen=True, slots=True)
class Nodes:
    """Stand-in of the coordinator's Nodes."""

    layers: tuple[tuple[str, int], ...]
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """Stand-in of the coordinator's Connection."""

    weight: str
    shape: tuple[int, ...]
    source_nodes: Nodes | None
    target_nodes: Nodes
    groups: int = 1
    positions: int = 1


@dataclass(frozen=True, slots=True)
class NodeLayer:
    """Nodes with the same writers and readers.

    Args:
        name: Of the layer.
        width: Number of nodes, 1 or more.
        rigid: Why they stay whole and in order; None where they need not.
        writers: Weights that make them.
        readers: Weights that read them.
    """

    name: str
    width: int
    rigid: str | None
    writers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GraphAnalysis:
    """A network's graph, its layers of nodes and its connections."""

    shape: tuple[int, ...]
    classes: int
    layers: tuple[NodeLayer, ...]
    connections: tuple[Connection, ...]
    edges: tuple[tuple[str | None, str], ...]
    scales: Mapping[str, Nodes]
    graph_hash: str
    graph: fx.Graph
    image: fx.Node
    output: fx.Node
    values: Mapping[fx.Node, Any]
    labels: Mapping[fx.Node, Any]
    is_constant: Mapping[fx.Node, bool]
    parameter_of: Mapping[fx.Node, str]
    weight_of: Mapping[fx.Node, str]
    training: Mapping[fx.Node, Training]
    rigid_nodes: Tensor

    def node_of(self, layer: str, index: int) -> int:
        """Return the global number of a node."""
        raise NotImplementedError

    def memberships(self, of_layers: Mapping[str, Tensor]) -> Tensor:
        """Return the memberships of all nodes, ``(nodes + 1, k)``; row 0 is zeros."""
        raise NotImplementedError

    def with_rigid(self, nodes: Mapping[int, str]) -> "GraphAnalysis":
        """Return the analysis in which some more nodes stay whole."""
        raise NotImplementedError


def analyze(module: nn.Module, shape: tuple[int, ...], *, names: Mapping[str, str] | None = None) -> GraphAnalysis:
    """Return the layers of nodes of a network."""
    raise NotImplementedError(torch.__version__)
