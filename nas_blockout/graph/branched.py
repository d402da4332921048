"""The branched network of any graph: nodes removed, weights cut to what they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.graph.analysis import CLASSES, GraphAnalysis
from nas_blockout.graph.rewrite.bundles import BundledOperation, ConstantNodes, Memberships
from nas_blockout.graph.rewrite.layout import Unplaceable
from nas_blockout.graph.rewrite.walk import rewritten
from nas_blockout.networks import Network

_MOST_ATTEMPTS = 40


@dataclass(frozen=True, slots=True)
class GroupNodes:
    """Nodes of a layer with the same memberships.

    Args:
        clusters: That they belong to, ascending.
        nodes: Their numbers in the layer, ascending.
        constant: Whether no writer of them reads anything.
    """

    clusters: tuple[int, ...]
    nodes: tuple[int, ...]
    constant: bool


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """A layer as the branched network has it.

    Args:
        name: Of the layer.
        groups: Of its kept nodes, in the order of their first nodes.
        rigid: Why it is kept whole; None where it need not.
    """

    name: str
    groups: tuple[GroupNodes, ...]
    rigid: str | None


class BranchedGraph(Network):
    """A network without the nodes that have no cluster, in which a weight reads only nodes with a common cluster.

    Parameters have the path of the original weight and the number of the bundle, as
    ``body.layer1.0.conv1.bundles.0.weight``.

    Args:
        body: The graph and its modules.
        layers: What each layer of nodes consists of.
        edges: Source layer, None for the image, and target layer of each connection.
        clusters: Number of clusters.
        macs: Multiply-accumulates an image of the weighted operations.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        layers: Sequence[LayerGroups],
        edges: Sequence[tuple[str | None, str]],
        *,
        clusters: int,
        macs: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.layers, self.edges, self.clusters = tuple(layers), tuple(edges), clusters
        self._macs = macs

    @property
    def nodes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """For each layer the numbers of the nodes of each of its groups."""
        return {layer.name: tuple(group.nodes for group in layer.groups) for layer in self.layers}

    @cached_property
    def architecture(self) -> Architecture:
        """The layers as groups that share clusters.

        Raises:
            ValueError: They are no valid architecture, as when a group is read by nothing: memberships have to be
                cleaned up before.
        """
        return architecture_of(self.layers, self.edges, self.clusters)

    @property
    def bundle_count(self) -> int:
        """Number of operations that the weights are divided into, without depthwise ones and constants."""
        return sum(len(module.bundles) for module in self.modules() if isinstance(module, BundledOperation))

    @property
    def constant_count(self) -> int:
        """Number of nodes that read nothing."""
        operations = [module.constants for module in self.modules() if isinstance(module, BundledOperation)]
        alone = [module.shape[module.dim] for module in self.modules() if isinstance(module, ConstantNodes)]
        return sum(operations) + sum(alone)

    def macs(self) -> int:
        """Return the multiply-accumulates an image of the weighted operations."""
        return self._macs

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits in the order of the classes, shape ``(batch, classes)``.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            generator: Not used: layers that draw do so as in the original network.
        """
        logits: Tensor = self.body(x)
        return logits


def branch(analysis: GraphAnalysis, memberships: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> BranchedGraph:
    """Return the branched network that computes what the original computes under masked weights.

    Args:
        analysis: Of the original network.
        memberships: For each layer the clusters of its nodes, 0 or 1, shape ``(nodes, k)``. Nodes of a layer that is
            not rigid and have no cluster are removed.
        state: State dict of the original network, with masked weights in place: each times the share of the clusters
            that its two nodes have in common, times 1 where it reads no node.

    Raises:
        ValueError: The memberships are not those of the analysis.
    """
    analysis, new = _settled(analysis, memberships, state)
    clusters = next(iter(memberships.values())).shape[1]
    body, macs = new
    return BranchedGraph(body, layer_groups(analysis, memberships), analysis.edges, clusters=clusters, macs=macs)


def _settled(
    analysis: GraphAnalysis, memberships: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[GraphAnalysis, tuple[fx.GraphModule, int]]:
    """Return the new graph; what turns out to be needed whole stays, and the rest is tried again."""
    values = analysis.memberships(memberships) > 0
    for _ in range(_MOST_ATTEMPTS):
        rigid = analysis.rigid_nodes
        kept = values.any(1) | rigid
        kept[0] = True  # what is no node's
        try:
            return analysis, rewritten(analysis, Memberships(values, kept, rigid), state)
        except Unplaceable as problem:
            more = {node: problem.reason for node in problem.nodes if not rigid[node]}
            if not more:
                raise
            before = analysis
            analysis = analysis.with_rigid(more)
            values = analysis.memberships(memberships) > 0
            assert before is not analysis
    raise AssertionError(f"a network settles in {_MOST_ATTEMPTS} attempts")


def layer_groups(analysis: GraphAnalysis, memberships: Mapping[str, Tensor]) -> tuple[LayerGroups, ...]:
    """Return the groups of the kept nodes of each layer.

    Args:
        analysis: Of the original network.
        memberships: For each layer the clusters of its nodes, shape ``(nodes, k)``.
    """
    sources: dict[str, list[str | None]] = {}
    for source, target in analysis.edges:
        sources.setdefault(target, []).append(source)
    layers = []
    for layer in analysis.layers:
        rigid = layer.rigid or (layer.name == CLASSES and "the classes") or None
        by_clusters: dict[tuple[int, ...], list[int]] = {}
        for node, row in enumerate((memberships[layer.name] > 0).tolist()):
            clusters = tuple(cluster for cluster, member in enumerate(row) if member)
            if clusters or rigid:
                by_clusters.setdefault(clusters, []).append(node)
        groups = tuple(
            GroupNodes(clusters, tuple(nodes), _reads_nothing(clusters, sources.get(layer.name, []), memberships))
            for clusters, nodes in by_clusters.items()
        )
        layers.append(LayerGroups(layer.name, groups, rigid))
    return tuple(layers)


def _reads_nothing(clusters: Sequence[int], sources: Sequence[str | None], memberships: Mapping[str, Tensor]) -> bool:
    return not any(source is None or bool((memberships[source][:, list(clusters)] > 0).any()) for source in sources)


def architecture_of(
    layers: Sequence[LayerGroups], edges: Sequence[tuple[str | None, str]], clusters: int
) -> Architecture:
    """Return the architecture of layers of groups.

    Raises:
        ValueError: They are no valid architecture.
    """
    del edges
    return Architecture(
        clusters,
        tuple(
            Layer(
                layer.name,
                tuple(
                    Group(
                        group.clusters,
                        len(group.nodes),
                        group.nodes if layer.name == CLASSES else None,
                        group.constant,
                    )
                    for group in layer.groups
                ),
            )
            for layer in layers
        ),
    )
