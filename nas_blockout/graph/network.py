"""A network of any kind whose graph is known: what Blockout masks, and what branches are derived from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.graph.analysis import GraphAnalysis
from nas_blockout.graph.branched import BranchedGraph, branch
from nas_blockout.networks import Branchable, Connection, Network
from nas_blockout.nodes import Nodes
from nas_blockout.randomness.draws import Randomness

_PREFIX = "module."


class GraphNetwork(Branchable):
    """A network and what its graph says of its nodes. It computes what the network computes.

    Args:
        module: Takes a batch of images, or is a `Network`. It is not copied.
        analysis: Of this module.
    """

    def __init__(self, module: nn.Module, analysis: GraphAnalysis) -> None:
        super().__init__()
        self.module = module
        self.analysis = analysis

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The weights between layers of nodes, in the order of the forward pass, by their names in this network."""
        return tuple(replace(each, weight=_PREFIX + each.weight) for each in self.analysis.connections)

    @property
    def layers(self) -> Mapping[str, int]:
        """Names and widths of all layers of nodes, the classes last."""
        return {layer.name: layer.width for layer in self.analysis.layers}

    @property
    def edges(self) -> tuple[tuple[str | None, str], ...]:
        """Which layer reads which; a residual stream is read by layers that write it."""
        return self.analysis.edges

    @property
    def rigid(self) -> Mapping[str, str]:
        """The layers that stay whole, with the reason."""
        return {layer.name: layer.rigid for layer in self.analysis.layers if layer.rigid is not None}

    @property
    def scales(self) -> Mapping[str, Nodes]:
        """The factors that normalization learns for each node, by their names in this network."""
        return {_PREFIX + name: nodes for name, nodes in self.analysis.scales.items()}

    @property
    def other_macs(self) -> Mapping[str | None, Tensor]:
        """What operations cost that are no connections, such as attention, recurrent layers, computed weights."""
        return self.analysis.other_macs

    def branched(
        self, architecture: Architecture, nodes: Mapping[str, Sequence[Tensor]], state: Mapping[str, Tensor]
    ) -> BranchedGraph:
        """Return the branched network that computes what this one does with only these nodes and connections."""
        inside = {name.removeprefix(_PREFIX): value for name, value in state.items()}
        network = branch(self.analysis, memberships_of(architecture, self.layers, nodes), inside)
        network.architecture = architecture  # as it was decided, with what the clean-up knows of its constants
        return network

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits, shape ``(batch, classes)``."""
        result: Tensor = self.module(x, generator) if isinstance(self.module, Network) else self.module(x)
        return result


def memberships_of(
    architecture: Architecture, layers: Mapping[str, int], nodes: Mapping[str, Sequence[Tensor]] | None = None
) -> dict[str, Tensor]:
    """Return the memberships that an architecture describes, as zeros and ones, shape ``(nodes, clusters)`` by layer.

    Args:
        architecture: Of all layers; where its groups do not say which nodes they are, they take the next ones.
        layers: Names and widths of the layers of the whole network.
        nodes: For every layer the nodes of each group, if that is known better.

    Raises:
        ValueError: The architecture has other layers, or more nodes than one of them.
    """
    names = [layer.name for layer in architecture.layers]
    if names != list(layers):
        raise ValueError(f"an architecture of this network must have the layers {list(layers)}, got {names}")
    with torch.device("cpu"):  # memberships have values, also where weights have none
        return _memberships_of(architecture, layers, nodes)


def _memberships_of(
    architecture: Architecture, layers: Mapping[str, int], nodes: Mapping[str, Sequence[Tensor]] | None
) -> dict[str, Tensor]:
    found, described = {}, nodes_of(architecture)
    for layer in architecture.layers:
        rows = torch.zeros(layers[layer.name], architecture.clusters)
        given = nodes.get(layer.name) if nodes else None
        for position, group in enumerate(layer.groups):
            members = torch.tensor(described[layer.name][position]) if given is None else given[position].cpu()
            if int(members.max()) >= len(rows):
                raise ValueError(f"layer {layer.name!r} has {len(rows)} nodes, the architecture asks for {layer.width}")
            rows[members[:, None], torch.tensor(group.clusters, dtype=torch.long)] = 1.0
        found[layer.name] = rows
    return found


def nodes_of(architecture: Architecture) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return by layer which nodes of the whole network each group has: those that it names, or else the next ones."""
    found = {}
    for layer in architecture.layers:
        groups, taken = list[tuple[int, ...]](), 0
        for group in layer.groups:
            groups.append(group.classes or group.nodes or tuple(range(taken, taken + group.width)))
            taken += group.width
        found[layer.name] = tuple(groups)
    return found
