"""What each group of an architecture costs in a network that is a graph of layers, counted weight by weight."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from nas_blockout.architecture import Architecture, Layer
from nas_blockout.networks import Connection, Nodes, layer_widths
from nas_blockout.structure.branching import GroupCost, Place


def group_costs(
    architecture: Architecture,
    nodes: Mapping[str, Sequence[Tensor | Sequence[int]]],
    connections: Sequence[Connection],
    *,
    scales: Mapping[str, Nodes],
    parameters: Collection[str] = (),
) -> dict[Place, GroupCost]:
    """Return what the weights cost that end in each group, with the parameters of its nodes.

    Args:
        architecture: Of all layers.
        nodes: Which nodes of the dense network each group has, by layer, in the order of the groups.
        connections: All weights of the dense network.
        scales: Its factors of normalization for each node, by name.
        parameters: Names of its parameters, among which the biases beside weights and factors are looked for.
    """
    widths, names = layer_widths(connections), set(parameters)
    memberships, alive = dict[str, Tensor](), dict[str, Tensor]()
    for layer in architecture.layers:
        whole = layer.rigid or layer is architecture.layers[-1]
        memberships[layer.name], alive[layer.name] = _rows_of(
            layer, nodes[layer.name], (widths[layer.name], architecture.clusters), whole=whole
        )
    zeros = {name: torch.zeros(width, dtype=torch.float64) for name, width in widths.items()}
    macs, weights = zeros, {name: value.clone() for name, value in zeros.items()}
    for connection in connections:
        entries = _entries(connection, memberships, alive) * math.prod(connection.shape[2:])
        _add(entries * connection.positions, connection.target_nodes, macs)
        biases = float(_bias_of(connection.weight) in names) * connection.target_nodes.of(alive)[:, 0]
        _add(entries + biases, connection.target_nodes, weights)
    for name, each in scales.items():
        _add((1.0 + (_bias_of(name) in names)) * each.of(alive)[:, 0], each, weights)
    return {
        (number, position): GroupCost(*(int(total[layer.name][index].sum()) for total in (macs, weights)))
        for number, layer in enumerate(architecture.layers)
        for position, index in enumerate(map(torch.as_tensor, nodes[layer.name]))
    }


def _rows_of(
    layer: Layer, groups: Sequence[Tensor | Sequence[int]], shape: tuple[int, int], *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Return the memberships of all nodes of a layer of the dense network, and which of them there are, as numbers."""
    memberships, alive = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], 1, dtype=torch.float64)
    for group, numbers in zip(layer.groups, groups, strict=True):
        index = torch.as_tensor(numbers)
        memberships[index[:, None], torch.tensor(group.clusters, dtype=torch.long)] = 1.0
        alive[index] = float(whole or bool(group.clusters))  # without clusters: the placeholder of an empty layer
    return memberships, alive


def _entries(connection: Connection, memberships: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Tensor:
    """Return how many entries of each row of a weight are kept, windows counted once, shape ``(target,)``."""
    rows = connection.target_nodes.of(alive)[:, 0]
    if connection.source_nodes is None or connection.filters_each_node_alone:
        return rows * connection.shape[1]
    out, into = connection.target_nodes.of(memberships), connection.source_nodes.of(memberships)
    none = torch.tensor([each is None for each in connection.source_nodes.identities])
    if connection.groups > 1:
        out, into = (side.unflatten(0, (connection.groups, -1)) for side in (out, into))
        kept: Tensor = (torch.einsum("gok,gik->goi", out, into) > 0).sum(2).flatten()
        of_none: Tensor = none.unflatten(0, (connection.groups, -1)).sum(1)
        of_none = of_none.repeat_interleave(len(rows) // connection.groups)
    else:
        kinds, counts = into.unique(dim=0, return_counts=True)  # of many nodes there are few kinds
        kept, of_none = (out @ kinds.T > 0).double() @ counts.double(), none.sum()
    return kept + rows * of_none


def _add(values: Tensor, nodes: Nodes, totals: Mapping[str, Tensor]) -> None:
    for name, value in zip(nodes.names, nodes.sums(values), strict=True):
        totals[name] += value


def _bias_of(parameter: str) -> str:
    return f"{parameter.rpartition('.')[0]}.bias"
