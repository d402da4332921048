"""Structured pruning by magnitude: the nodes to keep of a trained dense network, as memberships like Blockout's.

A node's magnitude takes the place of its membership in a single cluster, so that the threshold, the clean-up, the
transplant of the weights and the proof of equality are those of distillation. Torch-Pruning, given the same network,
removes the same nodes (``benchmarks/rivals.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from nas_blockout.networks import Branchable, Connection, Network, layer_widths
from nas_blockout.nodes import Nodes
from nas_blockout.settings_fields import Range
from nas_blockout.structure.two_stages import TwoStageSettings

_LEAST_MAGNITUDE = 1e-3  # of a node as a multiple of its layer's mean: dead ones would be all the variance there is
_LEAST_DEVIATION = 1e-4  # of logarithms of magnitudes: less is rounding


@dataclass(frozen=True, slots=True)
class PruningSettings(TwoStageSettings):
    """Settings of pruning: how a trained dense network becomes a narrower one.

    Args:
        target_macs: Largest share of the dense MACs that is kept.
    """

    target_macs: Annotated[float, Range(gt=0, le=1)] = 0.5


@torch.no_grad()
def magnitudes(network: Branchable, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    r"""Return the importance of every node of a dense network, comparable between layers.

    It is the mean of the squared norms of all that stands or falls with the node: of its part of every weight that
    writes it, of every scale of normalization, and of its part of every weight that reads it. In a chain:

    .. math:: I_t = \tfrac{1}{3} \left( \|W_{t,\cdot}\|^2 + \gamma_t^2 + \|W'_{\cdot,t}\|^2 \right)

    divided by its mean over the layer, where W are the weights that the node ends, :math:`\gamma` is its scale in
    batch normalization and W' are the weights that read it.

    Args:
        network: Dense.
        weights: Values in the place of the network's own, by name, such as those under masks.

    Returns:
        For every layer ``I / (1 + I)``, in [0, 1], shape ``(nodes, 1)``; ones for the classes and for rigid layers,
        which are all kept.

    References:
        Fang, Ma, Song, Mi, Wang. DepGraph: Toward Any Structural Pruning. CVPR 2023, section 3.3 (the group of
        parameters that stand or fall together), there with the magnitudes of He, Zhang, Sun and of Li et al. (2017).
    """
    relative, example = relative_magnitudes(network, weights), next(iter(network.parameters()))
    ones = {name: example.new_ones(width, 1) for name, width in network.layers.items()}
    return ones | {name: (value / (1 + value))[:, None] for name, value in relative.items()}


@torch.no_grad()
def relative_magnitudes(network: Network, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the I of `magnitudes`, the magnitude of every node as a multiple of the mean of its layer.

    Args:
        network: Dense. Of one that does not know its factors of normalization, only the weights count.
        weights: As of `magnitudes`.

    Returns:
        For every layer but the classes and the rigid ones, which are all kept; shape ``(nodes,)``, 0 or more.
    """
    values = {**dict(network.named_parameters()), **(weights or {})}
    graph = network if isinstance(network, Branchable) else None
    widths = graph.layers if graph else layer_widths(network.connections)
    written, scaled, read = ({name: list[Tensor]() for name in widths} for _ in range(3))
    for connection in network.connections:
        value = values[connection.weight]
        _share(value.flatten(1).square().sum(1), connection.target_nodes, written)
        if connection.source_nodes is not None and not connection.filters_each_node_alone:
            _share(_columns(value, connection).flatten(1).square().sum(1), connection.source_nodes, read)
    for name, nodes in (graph.scales if graph else {}).items():
        _share(values[name].square(), nodes, scaled)
    kept = {*(graph.rigid if graph else ()), list(widths)[-1]}
    found: dict[str, Tensor] = {}
    for name in widths:
        if name not in kept:
            importance = torch.stack([*written[name], *scaled[name], *read[name]]).mean(0)
            found[name] = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
    return found


def standardized_magnitudes(network: Network) -> dict[str, Tensor]:
    """Return the logarithms of `relative_magnitudes` in standard deviations from their mean over the layer.

    Magnitudes of a network that was trained briefly differ by a few percent, of others by orders of magnitude.

    Args:
        network: Dense.

    Returns:
        As of `relative_magnitudes`; zeros where all nodes of a layer have the same.
    """
    found = {}
    for name, magnitude in relative_magnitudes(network).items():
        logarithms = magnitude.clamp_min(_LEAST_MAGNITUDE).log()
        centered = logarithms - logarithms.mean()
        found[name] = centered / centered.square().mean().sqrt().clamp_min(_LEAST_DEVIATION)
    return found


def _columns(value: Tensor, connection: Connection) -> Tensor:
    """Return a weight by the position that is read, shape ``(source, target / groups, ...)``."""
    by_group: Tensor = value.unflatten(0, (connection.groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def _share(values: Tensor, nodes: Nodes, parts: Mapping[str, list[Tensor]]) -> None:
    """Add one value for each node, summed over its positions, to the parts of its layer."""
    for (name, _), value in zip(nodes.layers, nodes.sums(values), strict=True):
        parts[name].append(value)
