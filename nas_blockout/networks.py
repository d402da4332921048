"""What a method or an exporter can ask of a network beyond its logits."""

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.nodes import Nodes
from nas_blockout.randomness.draws import Randomness
from nas_blockout.serialization import closest
from nas_blockout.settings_fields import Conflict

Runtime = Literal["torch", "onnxruntime"]

LAST = re.compile(r"last ([1-9][0-9]*)")
_MOST_LISTED = 16
_BITS = 62  # clusters that fit into one number


@dataclass(frozen=True, slots=True)
class Connection:
    """A weight of a network and the nodes that it connects.

    Output o of the weight is position o of `target_nodes`. With groups, both sides are divided into equal shares in
    order: entry ``(o, i)`` of group g reads position ``g * source / groups + i`` of `source_nodes`. A depthwise
    filter has as many groups as source positions.

    Args:
        weight: Name of the parameter.
        shape: Its shape, ``(target, source / groups)`` and, of a convolution, the sides of its window.
        source_nodes: What it reads, or None for the image.
        target_nodes: What it ends in.
        groups: Groups of a convolution, 1 or more.
        positions: Spatial positions at which the weight is used for one image, 1 or more; 1 for a linear layer.

    Raises:
        ValueError: The name is empty, there are no positions or groups, or the weight has another shape than its nodes
            and groups ask for.
    """

    weight: str
    shape: tuple[int, ...]
    source_nodes: Nodes | None
    target_nodes: Nodes
    groups: int = 1
    positions: int = 1

    def __post_init__(self) -> None:
        if not self.weight:
            raise ValueError(f"weight must be a name, got an empty one in {self}")
        if self.positions < 1:
            raise ValueError(f"positions must be at least 1, got positions={self.positions} for {self.weight!r}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got groups={self.groups} for {self.weight!r}")
        sides = {"target": self.target_nodes} | ({"source": self.source_nodes} if self.source_nodes else {})
        for side, nodes in sides.items():
            if nodes.count % self.groups:
                raise ValueError(
                    f"groups must divide the nodes of both sides of {self.weight!r}, "
                    f"got groups={self.groups} for {nodes.count} {side} nodes"
                )
        read = self.source_nodes.count // self.groups if self.source_nodes else self.shape[1:2] and self.shape[1]
        if len(self.shape) < 2 or self.shape[:2] != (self.target_nodes.count, read):
            source = f"{self.source_nodes.count} nodes of {_quoted(self.sources)}" if self.source_nodes else "the image"
            window = ", window" if len(self.shape) != 2 else ""
            raise ValueError(
                f"a weight from {source} to {self.target_nodes.count} nodes of {_quoted(self.targets)} "
                f"in groups={self.groups} must have shape ({self.target_nodes.count}, {read or 'channels'}{window}); "
                f"{self.weight!r} has shape {self.shape}"
            )

    @classmethod
    def between(
        cls,
        weight: str,
        value: Tensor,
        source: str | Nodes | None,
        target: str | Nodes,
        *,
        groups: int = 1,
        positions: int = 1,
    ) -> "Connection":
        """Return the connection of a weight, whose shape tells how many nodes there are where only a layer is named.

        Args:
            weight: Name of the parameter.
            value: The parameter.
            source: What it reads: the name of a whole layer, or its nodes; None for the image.
            target: What it ends in, likewise.
            groups: Groups of a convolution, 1 or more.
            positions: Spatial positions at which it is used for one image, 1 or more.

        Raises:
            ValueError: The weight does not fit the nodes and the groups.
        """
        shape = tuple(value.shape)
        source_nodes = Nodes.whole(source, shape[1] * groups) if isinstance(source, str) else source
        target_nodes = Nodes.whole(target, shape[0]) if isinstance(target, str) else target
        return cls(weight, shape, source_nodes, target_nodes, groups, positions)

    @classmethod
    def of(
        cls, network: nn.Module, weight: str, source: str | Nodes | None, target: str | Nodes, *, positions: int = 1
    ) -> "Connection":
        """Return the connection of a weight of a network, with the groups of the module that holds it.

        Args:
            network: Holds the weight.
            weight: Name of the parameter.
            source: As of `between`.
            target: As of `between`.
            positions: As of `between`.

        Raises:
            ValueError: The weight does not fit the nodes, or it is that of a transposed convolution.
        """
        module = network.get_submodule(weight.rpartition(".")[0])
        value = network.get_parameter(weight)
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            raise ValueError(
                f"the shape of a weight must begin with its target nodes; {weight!r} is that of a transposed "
                f"convolution, whose shape {tuple(value.shape)} begins with its source nodes"
            )
        groups = module.groups if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
        return cls.between(weight, value, source, target, groups=groups, positions=positions)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the layers of nodes that it reads; none if it reads only the image."""
        return self.source_nodes.names if self.source_nodes else ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the layers of nodes that it ends in, one or more."""
        return self.target_nodes.names

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers that it connects, those that it reads first."""
        return tuple(dict.fromkeys((*self.sources, *self.targets)))

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix, without a window."""
        return len(self.shape) == 2

    @property
    def filters_each_node_alone(self) -> bool:
        """Whether each node is computed from itself alone, as by a depthwise convolution within one layer."""
        return self.source_nodes == self.target_nodes and self.groups == self.target_nodes.count


def layer_widths(connections: Iterable[Connection]) -> dict[str, int]:
    """Return the nodes of every layer of nodes, in the order of the forward pass.

    Raises:
        ValueError: Two weights do not agree on the nodes of a layer.
    """
    widths: dict[str, int] = {}
    first: dict[str, str] = {}
    for connection in connections:
        for nodes in filter(None, (connection.source_nodes, connection.target_nodes)):
            for layer, width in nodes.layers:
                known = widths.setdefault(layer, width)
                told = first.setdefault(layer, connection.weight)
                if known != width:
                    raise ValueError(
                        f"layer {layer!r} must have as many nodes for every weight: "
                        f"it has {known} for {told!r}, {width} for {connection.weight!r}"
                    )
    return widths


def masked_widths(connections: Sequence[Connection], masked: Sequence[Connection]) -> dict[str, int]:
    """Return the nodes of every layer that carries memberships, in the order of the forward pass.

    Args:
        connections: All weights of a network.
        masked: Those of them that are masked.
    """
    widths = layer_widths(connections)
    carrying = [layer for connection in masked for layer in connection.layers]
    return {layer: widths[layer] for layer in dict.fromkeys(carrying)}


def require_weights(network: nn.Module, connections: Iterable[Connection]) -> None:
    """Refuse connections that are not those of a network.

    Raises:
        ValueError: A weight has another shape in the network than its connection says.
    """
    parameters = dict(network.named_parameters())
    for connection in connections:
        actual = tuple(parameters[connection.weight].shape) if connection.weight in parameters else None
        if actual != connection.shape:
            shown = f"shape {actual}" if actual else "no such weight"
            raise ValueError(f"{connection.weight!r} must have shape {connection.shape}, the network has {shown}")


def maskable_layers(connections: Iterable[Connection]) -> tuple[str, ...]:
    """Return the layers whose weights can be masked: those that read a layer of nodes rather than the image.

    A layer is named by the nodes that its weights end in. The layers are in the order in which the last weight of each
    is used, so that ``last 2`` means the last two of them.
    """
    ordered: dict[str, None] = {}
    for connection in connections:
        for layer in connection.targets if connection.sources else ():
            ordered.pop(layer, None)
            ordered[layer] = None
    return tuple(ordered)


def masked_connections(
    connections: Sequence[Connection], masked: str | Sequence[str], *, network: str = "the network"
) -> tuple[Connection, ...]:
    """Return the connections whose weights a method masks.

    Args:
        connections: All weights between layers of nodes, in the order of the forward pass.
        masked: ``head`` for linear layers, ``all`` for all layers, ``last N`` for the last N of `maskable_layers`, or
            names of these.
        network: What the network is called in errors.

    Raises:
        Conflict: The network has no such layer, or a name is given twice.
    """
    able = [connection for connection in connections if connection.sources]
    if masked in ("head", "all"):
        chosen = [connection for connection in able if masked == "all" or connection.is_linear]
        if not chosen:
            raise _unmaskable(f"{network} has no such weight between two layers of nodes, got {masked!r}")
        return tuple(chosen)
    names = set(_chosen_layers(connections, masked, network))
    return tuple(connection for connection in able if not names.isdisjoint(connection.targets))


def _chosen_layers(connections: Sequence[Connection], masked: str | Sequence[str], network: str) -> tuple[str, ...]:
    known = maskable_layers(connections)
    layers = f"layers that can be masked on {network}: {listed(known)}"
    if isinstance(masked, str):
        last = LAST.fullmatch(masked)
        number = int(last[1]) if last else 0
        if not 1 <= number <= len(known):
            raise _unmaskable(f"N of 'last N' must lie in 1..{len(known)}, got {masked!r}; {layers}")
        return known[-number:]
    for name in masked:
        if name in known:
            continue
        if any(name in connection.targets for connection in connections):
            raise _unmaskable(
                f"a layer that reads the image, which has no memberships, cannot be masked, got {name!r}; {layers}"
            )
        match = closest(name, known)
        remedy = f"did you mean {match!r}? {layers}" if match else layers
        raise _unmaskable(f"each name must be a layer whose weights can be masked, got {name!r}; {remedy}")
    if len(set(masked)) < len(masked):
        raise _unmaskable(f"each layer must be named once, got {list(masked)}")
    return tuple(masked)


def _unmaskable(message: str) -> Conflict:
    return Conflict(f"masked: {message}", "masked")


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def listed(names: Sequence[str]) -> str:
    """Return names as a text, of many only the first and the last ones."""
    shown = names if len(names) <= _MOST_LISTED else (*names[:4], "...", *names[-8:])
    return ", ".join(shown)


class Network(nn.Module):
    """A backbone's network: called as ``network(x, generator)``, it gives logits.

    Attributes:
        notes: What should be known about how it was made, one sentence each.
    """

    notes: tuple[str, ...] = ()

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The weights that a method may mask, in the order of the forward pass.

        Raises:
            NotImplementedError: The network does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} must say which layers of nodes its weights connect")

    def for_inference(self, *, runtime: Runtime = "torch", batch: int | None = None) -> nn.Module:
        """Return a copy that computes the same in eval mode, in the form that is expected to run fastest.

        Args:
            runtime: What will run it.
            batch: Images at a time, 1 or more; None for one image as well as many.
        """
        return copy.deepcopy(self)

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits, shape ``(batch, classes)``.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            generator: Of the draws of a method's layers in training, on the device of `x`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it computes")


class Branchable(Network):
    """A dense network that says enough of itself for its nodes to be removed and separated into branches.

    Memberships, where they are asked for, are by layer, as zeros and ones or booleans, shape ``(nodes, clusters)``. A
    layer that is left out belongs to every cluster. Nodes without a cluster are removed, but for those of the classes
    and of rigid layers, which read only what is not masked.
    """

    @property
    def layers(self) -> Mapping[str, int]:
        """Names and widths of all layers of nodes, in the order in which they are first made, the classes last."""
        return layer_widths(self.connections)

    @property
    def edges(self) -> tuple[tuple[str | None, str], ...]:
        """Which layer reads which: pairs of a source, None for the image, and a target; no layer reads itself alone."""
        pairs = {
            (source, target): None
            for connection in self.connections
            if not connection.filters_each_node_alone
            for source in _sources_or_image(connection)
            for target in connection.targets
        }
        return tuple(pairs)

    @property
    def rigid(self) -> Mapping[str, str]:
        """The layers that stay whole and in order whatever their memberships are, with the reason."""
        return {}

    @property
    def scales(self) -> Mapping[str, Nodes]:
        """The factors that normalization learns for each node, by name of the parameter."""
        return {}

    @property
    def other_macs(self) -> Mapping[str | None, Tensor]:
        """Multiply-accumulates an image of what is no connection: of each node of a layer, as long as it is there.

        Shape ``(nodes,)`` by the name of the layer, and ``(1,)`` under None for what always stays.
        """
        return {}

    def macs_under(self, memberships: Mapping[str, Tensor]) -> int:
        """Return the multiply-accumulates an image of the weights between nodes that share a cluster, and all others.

        What is no connection, `other_macs`, is counted for the nodes that there are.
        """
        kept = zip(self.connections, self._kept_under(memberships), strict=True)
        between = sum(count * math.prod(each.shape[2:]) * each.positions for each, count in kept)
        others = 0.0
        for name, macs in self.other_macs.items():
            droppable = None if name is None or name in self._whole else memberships.get(name)
            others += float((macs if droppable is None else macs[droppable.cpu().bool().any(1)]).sum())
        return between + round(others)

    def weights_under(self, memberships: Mapping[str, Tensor]) -> int:
        """Return the number of weights between nodes that share a cluster."""
        kept = zip(self.connections, self._kept_under(memberships), strict=True)
        return sum(count * math.prod(each.shape[2:]) for each, count in kept)

    @property
    def _whole(self) -> frozenset[str]:
        """Layers whose nodes stay without a cluster, too, and see what has no masks."""
        return frozenset({*self.rigid, list(self.layers)[-1]})

    def _kept_under(self, memberships: Mapping[str, Tensor]) -> Iterator[int]:
        """Yield how many entries of each weight, windows counted once, are between nodes that share a cluster."""
        first, widths = next(iter(memberships.values()), torch.ones(1, 1)), self.layers
        every = {
            name: memberships[name].bool() if name in memberships else first.new_ones(width, first.shape[1]).bool()
            for name, width in widths.items()
        }
        whole = self._whole
        alive = {name: value.any(1) | (name in whole) for name, value in every.items()}
        # Of many nodes there are few kinds: which of these share a cluster is found once. Kind 0 is no node.
        rows, kind = _kinds(torch.cat(list(every.values())))
        rows = torch.cat([torch.zeros_like(rows[:1]), rows]).float()
        kinds = dict(zip(every, (kind + 1).split([len(value) for value in every.values()]), strict=True))
        shared = rows @ rows.T > 0
        for connection in self.connections:
            yield _kept(connection, kinds, shared, alive)

    def branched(
        self, architecture: Architecture, nodes: Mapping[str, Sequence[Tensor]], state: Mapping[str, Tensor]
    ) -> Network:
        """Return the branched network that computes what this one does with only these nodes and connections.

        Args:
            architecture: Groups of all layers.
            nodes: For every layer the nodes that make up each group, in the order of its groups.
            state: Parameters and buffers by the names of this network; weights as they are under the memberships.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it is branched")


def _sources_or_image(connection: Connection) -> tuple[str | None, ...]:
    nodes = connection.source_nodes
    return (*connection.sources, *(() if nodes is not None and nodes.are_all else (None,)))


def _kinds(memberships: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different rows of memberships, and the number of each row among them."""
    clusters = torch.arange(memberships.shape[1], device=memberships.device)
    if len(clusters) > _BITS:
        rows, kind = memberships.unique(dim=0, return_inverse=True)
        return rows, kind
    codes, kind = (memberships.long() << clusters).sum(1).unique(return_inverse=True)  # numbers are sorted faster
    return codes[:, None] >> clusters & 1, kind


def _kept(connection: Connection, kinds: Mapping[str, Tensor], shared: Tensor, alive: Mapping[str, Tensor]) -> int:
    """Return how many entries of a weight, windows counted once, lie between nodes that share a cluster.

    Args:
        connection: Of the weight.
        kinds: By layer the number of each node's memberships among all that there are; 0 is no node's.
        shared: Which kinds share a cluster, shape ``(kinds, kinds)``.
        alive: Which nodes there are at all, by layer.
    """
    present, groups = connection.target_nodes.of(alive), connection.groups
    if connection.source_nodes is None or connection.filters_each_node_alone:
        return int(present.sum()) * connection.shape[1]
    out, into = connection.target_nodes.of(kinds), connection.source_nodes.of(kinds)
    of_none = 0  # entries that read what is no node's, which every node does that there is
    if not connection.source_nodes.are_all:
        by_group = (side.unflatten(0, (groups, -1)).sum(1) for side in (present, into == 0))
        of_none = int(torch.stack(list(by_group)).prod(0).sum())
    if groups > 1:
        out, into = out.unflatten(0, (groups, -1)), into.unflatten(0, (groups, -1))
        return int(shared[out[:, :, None], into[:, None, :]].sum()) + of_none
    (of_out, outs), (of_into, intos) = (side.unique(return_counts=True) for side in (out, into))
    return int(outs.double() @ shared[of_out][:, of_into].double() @ intos.double()) + of_none
