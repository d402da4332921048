"""The dense networks from which branches are made: built from stages, or any other through its graph."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import backbone_of
from nas_blockout.backbones.branched import BranchedNetwork, Sites
from nas_blockout.backbones.module import ModuleNetwork, ModuleSettings
from nas_blockout.graph.analysis import GraphAnalysis, analyze
from nas_blockout.graph.branched import BranchedGraph, settled
from nas_blockout.graph.network import GraphNetwork, memberships_of
from nas_blockout.graph.trace import COUNTERS
from nas_blockout.methods.masking import common_clusters
from nas_blockout.networks import Branchable, Network

Shape = tuple[int, int, int]

_SHARES = 256  # the widths of a narrowed network are tried in steps of one 256th


def build_branchable(backbone: Any, shape: Shape, classes: int, sites: Sites) -> Branchable:
    """Return the dense network of a backbone as one whose nodes can be removed and separated.

    Weights are drawn from PyTorch's global generator.

    Args:
        backbone: Settings of a registered backbone.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        sites: Where a method enters; nowhere in a network that is known by its graph.

    Raises:
        ValueError: The network cannot be built for these images, or its graph cannot be traced.
    """
    network = backbone_of(backbone).build(backbone, shape, classes, None, sites)
    return (
        network
        if isinstance(network, Branchable)
        else GraphNetwork(_inside(network), analysis_of(backbone, shape, classes))
    )


@lru_cache(maxsize=32)  # the arms of a study share it, and so do the checks of a study and its trials
def outline(backbone: Any, shape: Shape, classes: int) -> Branchable:
    """Return `build_branchable` on the device ``meta``, where weights have a shape and no values."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build_branchable(backbone, shape, classes, Sites())


def with_new_weights(backbone: Any) -> Any:
    """Return the settings of a backbone without the pretrained weights that it may have."""
    return replace(backbone, weights=None) if isinstance(backbone, ModuleSettings) else backbone


def analysis_of(backbone: Any, shape: Shape, classes: int) -> GraphAnalysis:
    """Return what the graph of a backbone's network says; weights do not matter to it.

    Args:
        backbone: Settings of a registered backbone.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        ValueError: The network cannot be built for these images, or its graph cannot be traced.
    """
    return _analysis_of(with_new_weights(backbone), shape, classes)  # one for a pretrained network and what follows it


@lru_cache(maxsize=32)
def _analysis_of(backbone: Any, shape: Shape, classes: int) -> GraphAnalysis:
    # A service checks studies of built-in networks, however wide, and drivers those of any: on `meta` weights take no
    # memory. What a factory makes may need values: of buffers that say which positions go where, or of a table.
    if backbone_of(backbone).from_factory:
        with suppress(Exception):  # whatever code of others raises without values is told from where it has them
            found = _analyzed(backbone, shape, classes, device="meta")
            if found is not None and not found.trace.lacks_values:
                return found
    device = "cpu" if backbone_of(backbone).from_factory else "meta"
    found = _analyzed(backbone, shape, classes, device=device)
    assert found is not None, "only buffers of networks from factories are asked for"
    return found


def _analyzed(backbone: Any, shape: Shape, classes: int, *, device: str) -> GraphAnalysis | None:
    """Return the analysis of a network that is built on a device; None where buffers lack values that it needs."""
    registered = backbone_of(backbone)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        network = registered.build(backbone, shape, classes, None, Sites())
    if registered.from_factory and device == "meta" and _has_numbers(network):
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            names = {each.weight: each.targets[0] for each in network.connections}
        except NotImplementedError:
            names = {}  # layers of networks that do not name them are called by the paths of their modules
        return settled(analyze(_inside(network), shape, names=names))


def _has_numbers(network: nn.Module) -> bool:
    """Whether a network has buffers of whole numbers, such as indices, beside those that count batches."""
    return any(not value.is_floating_point() and not name.endswith(COUNTERS) for name, value in network.named_buffers())


def _inside(network: Network) -> nn.Module:
    return network.module if isinstance(network, ModuleNetwork) else network


def dense_macs_of(network: Branchable) -> int:
    """Return the multiply-accumulates an image of all weights of a dense network."""
    return network.macs_under({})


def architecture_of(network: nn.Module) -> Architecture | None:
    """Return the architecture of a network, of its dense form as well; None for one that was not built from any."""
    if isinstance(network, BranchedNetwork):
        return network.full
    return network.architecture if isinstance(network, BranchedGraph) else None


def from_scratch(network: GraphNetwork, architecture: Architecture) -> BranchedGraph:
    """Return the network of an architecture with initial weights.

    A node that reads fewer others than in the dense network would start with smaller values: its weights are scaled as
    initial weights are, by the square root of the number of inputs.

    Args:
        network: Dense, with initial weights.
        architecture: Of all its layers.
    """
    with torch.device("cpu"):  # numbers of nodes have values, also where weights have none
        return _from_scratch(network, architecture)


def _from_scratch(network: GraphNetwork, architecture: Architecture) -> BranchedGraph:
    memberships = memberships_of(architecture, network.layers)
    state: dict[str, Tensor] = dict(network.state_dict())
    for connection in network.connections:
        if connection.source_nodes is None or connection.filters_each_node_alone:
            continue
        target, source = connection.target_nodes.of(memberships), connection.source_nodes.of(memberships)
        read = (common_clusters(target, source, groups=connection.groups) > 0).float().mean(1)
        weight = state[connection.weight]
        scale = read.clamp_min(1 / connection.shape[1]).rsqrt().to(weight)
        state[connection.weight] = weight * scale[(...,) + (None,) * (weight.dim() - 1)]
    return network.branched(architecture, {}, state)


@lru_cache(maxsize=32)
def narrowed(backbone: Any, macs: int, shape: Shape, classes: int) -> Architecture:
    """Return the architecture without branches that keeps the same share of every layer and comes nearest to a cost.

    Args:
        backbone: Settings of a backbone that is known by its graph.
        macs: Multiply-accumulates an image of its weights; more than those of the dense network are not reached.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """
    network = outline(backbone, shape, classes)

    def kept(step: int) -> dict[str, int]:
        whole = {*network.rigid, list(network.layers)[-1]}
        return {
            name: width if name in whole else max(1, round(width * step / _SHARES))
            for name, width in network.layers.items()
        }

    @cache
    def cost(step: int) -> int:
        rows = {name: torch.arange(network.layers[name]) < nodes for name, nodes in kept(step).items()}
        return network.macs_under({name: row[:, None].float() for name, row in rows.items()})

    # The smallest share that costs as much, by bisection, or the one below it.
    low, high = 1, _SHARES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) >= macs else (middle + 1, high)
    return _of_widths(network, kept(min((max(1, low - 1), low), key=lambda step: abs(cost(step) - macs))))


def _of_widths(network: Branchable, widths: Mapping[str, int]) -> Architecture:
    *hidden, last = widths
    layers = [Layer(name, (Group((0,), widths[name]),), name in network.rigid) for name in hidden]
    layers.append(Layer(last, (Group((0,), widths[last], tuple(range(widths[last]))),)))
    return Architecture(1, tuple(layers), network.edges)
