"""What a method or an exporter can ask of a network beyond its logits."""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nas_blockout.serialization import closest

Runtime = Literal["torch", "onnxruntime"]

LAST = re.compile(r"last ([1-9][0-9]*)")
_MOST_LISTED = 16


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of a layer that a weight reads or ends in: all of them, or those of a slice.

    Args:
        layer: Name of the layer of nodes.
        width: Nodes of the whole layer, 1 or more.
        start: First node of the slice.
        stop: Node after the last one of the slice; None for the end of the layer.

    Raises:
        ValueError: The name is empty, or the slice is empty or leaves the layer.
    """

    layer: str
    width: int
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if not self.layer:
            raise ValueError(f"layer must be a name, got an empty one in {self}")
        if not 0 <= self.start < self.end <= self.width:
            raise ValueError(
                f"a slice of layer {self.layer!r} must hold nodes and lie in 0..{self.width}, "
                f"got start={self.start} and stop={self.stop}"
            )

    @property
    def end(self) -> int:
        """Node after the last one."""
        return self.width if self.stop is None else self.stop

    @property
    def count(self) -> int:
        """Number of nodes, 1 or more."""
        return self.end - self.start

    def of(self, values: Tensor) -> Tensor:
        """Return the rows of these nodes; of a whole layer the tensor itself.

        Args:
            values: One row for each node of the layer, such as memberships, shape ``(width, ...)``.
        """
        return values if self.count == self.width else values[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Connection:
    """A weight of a network and the nodes that it connects.

    Output node o of the weight is node o of `target_nodes`. With groups, both sides are divided into equal shares in
    order: entry ``(o, i)`` of group g reads node ``g * source / groups + i`` of `source_nodes`. A depthwise filter has
    as many groups as source nodes.

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
            source = f"{self.source_nodes.count} nodes of {self.source!r}" if self.source_nodes else "the image"
            window = ", window" if len(self.shape) != 2 else ""
            raise ValueError(
                f"a weight from {source} to {self.target_nodes.count} nodes of {self.target!r} in groups={self.groups} "
                f"must have shape ({self.target_nodes.count}, {read or 'channels'}{window}); "
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
        source_nodes = Nodes(source, shape[1] * groups) if isinstance(source, str) else source
        target_nodes = Nodes(target, shape[0]) if isinstance(target, str) else target
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
    def source(self) -> str | None:
        """Name of the layer of nodes that it reads, or None for the image."""
        return self.source_nodes.layer if self.source_nodes else None

    @property
    def target(self) -> str:
        """Name of the layer of nodes that it ends in."""
        return self.target_nodes.layer

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
            width = widths.setdefault(nodes.layer, nodes.width)
            told = first.setdefault(nodes.layer, connection.weight)
            if width != nodes.width:
                raise ValueError(
                    f"layer {nodes.layer!r} must have as many nodes for every weight: "
                    f"it has {width} for {told!r}, {nodes.width} for {connection.weight!r}"
                )
    return widths


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
        if connection.source is not None:
            ordered.pop(connection.target, None)
            ordered[connection.target] = None
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
        ValueError: The network has no such layer, or a name is given twice.
    """
    able = [connection for connection in connections if connection.source is not None]
    if masked in ("head", "all"):
        chosen = [connection for connection in able if masked == "all" or connection.is_linear]
        if not chosen:
            raise ValueError(f"masked: {network} has no such weight between two layers of nodes, got {masked!r}")
        return tuple(chosen)
    names = _chosen_layers(connections, masked, network)
    return tuple(connection for connection in able if connection.target in names)


def _chosen_layers(connections: Sequence[Connection], masked: str | Sequence[str], network: str) -> tuple[str, ...]:
    known = maskable_layers(connections)
    layers = f"layers that can be masked on {network}: {_listed(known)}"
    if isinstance(masked, str):
        last = LAST.fullmatch(masked)
        number = int(last[1]) if last else 0
        if not 1 <= number <= len(known):
            raise ValueError(f"masked: N of 'last N' must lie in 1..{len(known)}, got {masked!r}; {layers}")
        return known[-number:]
    for name in masked:
        if name in known:
            continue
        if name in {connection.target for connection in connections}:
            raise ValueError(
                f"masked: a layer that reads the image, which has no memberships, cannot be masked, got {name!r}; "
                f"{layers}"
            )
        match = closest(name, known)
        remedy = f"did you mean {match!r}? {layers}" if match else layers
        raise ValueError(f"masked: each name must be a layer whose weights can be masked, got {name!r}; {remedy}")
    if len(set(masked)) < len(masked):
        raise ValueError(f"masked: each layer must be named once, got {list(masked)}")
    return tuple(masked)


def _listed(names: Sequence[str]) -> str:
    """Return names as a text; of many only the first and the last."""
    shown = names if len(names) <= _MOST_LISTED else (*names[:4], "...", *names[-8:])
    return ", ".join(shown)


class Network(nn.Module):
    """A backbone's network: called as ``network(x, generator)``, it gives logits."""

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

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits, shape ``(batch, classes)``.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            generator: Of the draws of a method's layers in training, on the device of `x`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it computes")
