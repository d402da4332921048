"""The branched network of any graph: nodes removed, weights cut to what they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor, fx

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.graph.analysis import CLASSES, GraphAnalysis
from nas_blockout.graph.forms.fused import FusedGraph, fused_graph
from nas_blockout.graph.forms.terms import Division
from nas_blockout.graph.rewrite.bundles import BundledOperation, ConstantNodes, Memberships
from nas_blockout.graph.rewrite.layout import Unplaceable
from nas_blockout.graph.rewrite.walk import rewritten
from nas_blockout.networks import Connection, Network, Runtime
from nas_blockout.nodes import Nodes
from nas_blockout.randomness.draws import Randomness


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


@dataclass(frozen=True, slots=True, eq=False)
class WholeNetwork:
    """What a branched network knows of the one that it was made from, beside its nodes; a copy is the value itself.

    Args:
        shape: Of one image.
        layers: Names and widths of its layers, the classes last.
        connections: Its weights between layers of nodes.
        scales: Its factors of normalization for each node, by name.
        parameters: Names of its parameters and buffers.
        graph_hash: What is equal for equal graphs, 16 hexadecimal digits.
    """

    shape: tuple[int, ...]
    layers: Mapping[str, int]
    connections: tuple[Connection, ...]
    scales: Mapping[str, Nodes]
    parameters: frozenset[str]
    graph_hash: str

    @classmethod
    def of(cls, analysis: GraphAnalysis) -> "WholeNetwork":
        """Return what the analysis of a network says of it."""
        layers = {layer.name: layer.width for layer in analysis.layers}
        names = frozenset(analysis.parameter_of.values())
        return cls(analysis.shape, layers, analysis.connections, analysis.scales, names, analysis.graph_hash)

    @property
    def channels(self) -> int:
        """Channels of an image, as far as a weight reads them all; 1 where none does."""
        return max((each.shape[1] for each in self.connections if each.source_nodes is None), default=1)

    def __deepcopy__(self, memo: dict[int, object]) -> "WholeNetwork":
        return self


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
        whole: The network that it was made from.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        layers: Sequence[LayerGroups],
        edges: Sequence[tuple[str | None, str]],
        *,
        clusters: int,
        macs: int,
        whole: WholeNetwork,
    ) -> None:
        super().__init__()
        self.body = body
        self.whole = whole
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

    def for_inference(
        self, *, operations: Division = "fastest", runtime: Runtime = "torch", batch: int | None = None
    ) -> FusedGraph:
        """Return a copy to be run, not trained: normalization folded in, operations divided by expected time.

        It computes what this network computes in eval mode, to rounding.

        Args:
            operations: How weighted operations are divided: ``whole`` for one that has zeros between its branches,
                ``split`` for as few as need no zeros, ``grouped`` for branches that share nothing as groups of one
                convolution, filled up to the largest, or ``fastest`` for what is expected to take least time.
            runtime: What is expected to run it: PyTorch, or ``onnxruntime`` once it is exported, where calls cost less
                and copies more. Either runs all.
            batch: Images that are expected at a time, 1 or more; None for one as well as many. Any number can be run.

        Raises:
            ValueError: There are no such operations or no such runtime, or `batch` is below 1.
        """
        for name, value, known in (("operations", operations, Division), ("runtime", runtime, Runtime)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1, or None for one image as well as many, got {batch}")
        return fused_graph(self.body, self.whole.shape, division=operations, runtime=runtime, batch=batch)

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
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
            not rigid and have no cluster are removed. A layer that is left out belongs to every cluster.
        state: State dict of the original network, with masked weights in place: each times the share of the clusters
            that its two nodes have in common, times 1 where it reads no node.

    Raises:
        ValueError: The memberships are not those of the analysis, or the network does with the number of images what no
            branched network can.
    """
    first = next(iter(memberships.values()))
    clusters = first.shape[1]
    given = {
        layer.name: memberships.get(layer.name, first.new_ones(layer.width, clusters)) for layer in analysis.layers
    }
    body, macs, rigid = _rewritten(analysis, analysis.memberships(given).cpu() > 0, state)
    _convert_constants(body, analysis, state)
    layers, whole = layer_groups(analysis, given, rigid), WholeNetwork.of(analysis)
    network = BranchedGraph(body, layers, analysis.edges, clusters=clusters, macs=macs, whole=whole)
    return network.to(next(iter(state.values())).device)  # indices, which the rewriting makes on the CPU


def _convert_constants(body: fx.GraphModule, analysis: GraphAnalysis, state: Mapping[str, Tensor]) -> None:
    """Give the constants of a graph, which have the precision in which it was traced, that of the state."""
    precision = {
        analysis.values[node].dtype: state[name].dtype
        for node, name in analysis.parameter_of.items()
        if state[name].is_floating_point()
    }
    for name, value in list(body.named_buffers(recurse=False)):
        if value.dtype in precision:
            setattr(body, name, value.to(precision[value.dtype]))


def settled(analysis: GraphAnalysis, *, clusters: int = 3, seed: int = 0) -> GraphAnalysis:
    """Return the analysis in which layers are rigid, too, that turn out so when the graph is rewritten.

    It is rewritten for two random memberships, without values. A layer that turns out rigid for others only stays
    whole in the branched network all the same.

    Args:
        analysis: Of the original network.
        clusters: Number of clusters to try.
        seed: Of the memberships.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: analysis.values[node] for node, name in analysis.parameter_of.items()}
    for density in (0.2, 0.5):
        while True:
            values = torch.rand(len(analysis.rigid_nodes), clusters, generator=generator) < density
            _, _, rigid = _rewritten(analysis, values, state)
            if not rigid:
                break
            analysis = analysis.with_rigid(rigid)
    return analysis


def _rewritten(
    analysis: GraphAnalysis, values: Tensor, state: Mapping[str, Tensor]
) -> tuple[fx.GraphModule, int, dict[int, str]]:
    """Return the new graph, its multiply-accumulates, and the nodes that turned out to be needed whole, and why.

    With a node its whole layer stays: the layers remain those of the analysis.
    """
    why: dict[int, str] = {}
    layer_of = torch.cat([torch.full((layer.width,), number) for number, layer in enumerate(analysis.layers)])
    layer_of = torch.cat([torch.tensor([-1]), layer_of])
    rigid = analysis.rigid_nodes.clone()
    while True:
        kept = values.any(1) | rigid
        kept[0] = True  # what is no node's
        try:
            body, macs = rewritten(analysis, Memberships(values, kept, rigid), state)
        except Unplaceable as problem:
            wanted = torch.isin(layer_of, layer_of[list(problem.nodes)]) & ~rigid
            if not bool(wanted.any()):
                raise ValueError(f"the network cannot be branched: it has {problem.reason}") from problem
            why |= dict.fromkeys(wanted.nonzero().flatten().tolist(), problem.reason)
            rigid |= wanted
        else:
            return body, macs, why


def layer_groups(
    analysis: GraphAnalysis, memberships: Mapping[str, Tensor], rigid: Mapping[int, str]
) -> tuple[LayerGroups, ...]:
    """Return the groups of the kept nodes of each layer.

    Args:
        analysis: Of the original network.
        memberships: For each layer the clusters of its nodes, shape ``(nodes, k)``.
        rigid: Why layers stay whole of which the analysis does not know it, by numbers of nodes.
    """
    sources: dict[str, list[str | None]] = {}
    for source, target in analysis.edges:
        sources.setdefault(target, []).append(source)
    layers = []
    for layer in analysis.layers:
        reason = layer.rigid or rigid.get(analysis.node_of(layer.name, 0))
        stays = reason is not None or layer.name == CLASSES
        by_clusters: dict[tuple[int, ...], list[int]] = {}
        for node, row in enumerate((memberships[layer.name] > 0).tolist()):
            clusters = tuple(cluster for cluster, member in enumerate(row) if member)
            if clusters or stays:
                by_clusters.setdefault(clusters, []).append(node)
        groups = tuple(
            GroupNodes(clusters, tuple(nodes), _reads_nothing(clusters, sources.get(layer.name, []), memberships))
            for clusters, nodes in by_clusters.items()
        )
        layers.append(LayerGroups(layer.name, groups, reason))
    return tuple(layers)


def _reads_nothing(clusters: Sequence[int], sources: Sequence[str | None], memberships: Mapping[str, Tensor]) -> bool:
    return not clusters or not any(
        source is None or bool((memberships[source][:, list(clusters)] > 0).any()) for source in sources
    )


def architecture_of(
    layers: Sequence[LayerGroups], edges: Sequence[tuple[str | None, str]], clusters: int
) -> Architecture:
    """Return the architecture of layers of groups.

    Raises:
        ValueError: They are no valid architecture.
    """
    return Architecture(clusters, tuple(_layer(layer) for layer in layers), tuple(edges))


def _layer(layer: LayerGroups) -> Layer:
    if not layer.groups:  # an architecture has no layer without groups: a node that nothing reads stands for it
        return Layer(layer.name, (Group((), 1, constant=True, nodes=(0,)),))
    groups = (
        Group(group.clusters, len(group.nodes), classes=group.nodes, constant=group.constant)
        if layer.name == CLASSES
        else Group(group.clusters, len(group.nodes), constant=group.constant, nodes=group.nodes)
        for group in layer.groups
    )
    return Layer(layer.name, tuple(groups), layer.rigid is not None)
