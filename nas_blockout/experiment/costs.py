"""What the network that an experiment ends in will cost, as far as that is known before it is trained."""

from dataclasses import replace

import torch
from torch import nn

from nas_blockout.backbones.branched import BranchedNetwork, Sites
from nas_blockout.experiment.branchable import with_new_weights
from nas_blockout.experiment.builder import built, plain
from nas_blockout.experiment.config import Experiment
from nas_blockout.graph.branched import BranchedGraph
from nas_blockout.graph.macs import count_macs
from nas_blockout.graph.network import nodes_of
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.structure.branching import GroupCost, LayerCost, Place, Structure, structure_of
from nas_blockout.structure.group_costs import group_costs


def known_network(experiment: Experiment, *, shape: tuple[int, int, int], classes: int) -> nn.Module | None:
    """Return the plain network that an experiment will end in, untrained and in eval mode.

    Args:
        experiment: Not yet run.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Returns:
        None where the network is known only once something is learned: with a derivation, or a path for every image.
    """
    if experiment.derivation is not None or isinstance(experiment.method, BlockDropSettings):
        return None
    return _plain(experiment, shape, classes)


def known_costs(experiment: Experiment, *, shape: tuple[int, int, int], classes: int) -> dict[str, int]:
    """Return ``parameters`` and ``macs`` of what an experiment will end in, each left out where it is not known yet.

    Of a network that is distilled or pruned to a share of its dense parent's multiply-accumulates, that share is known.

    Args:
        experiment: Not yet run.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """
    experiment = replace(experiment, backbone=with_new_weights(experiment.backbone))  # which cost the same
    with torch.device("meta"):  # costs are counted: weights need a shape, and no memory
        image = torch.zeros(1, *shape)
        if (network := known_network(experiment, shape=shape, classes=classes)) is not None:
            return {"parameters": parameters_of(network), "macs": count_macs(network, image)}
        share = getattr(experiment.derivation, "target_macs", None)
        if share is None:
            return {}
        dense = _plain(plain(experiment, None), shape, classes)
        return {"macs": int(share * count_macs(dense, image))}


def structure_of_network(network: nn.Module) -> Structure | None:
    """Return how far a network branches, with what that costs; None for one that was not built from groups of nodes."""
    if isinstance(network, BranchedGraph):
        whole = network.whole
        groups = costs_by_group(network)
        return structure_of(network.architecture, inputs=whole.channels, groups=groups, widths=whole.layers)
    if not isinstance(network, BranchedNetwork):
        return None
    costs = [
        # Normalization has two parameters for every node, a stage without it has a bias.
        LayerCost(stage.width, stage.kernel**2, stage.positions, 2 if stage.activation else 1)
        for stage in network.plan
    ]
    return structure_of(network.full, costs=costs, inputs=network.channels)


def costs_by_group(network: BranchedGraph) -> dict[Place, GroupCost]:
    """Return what the weights cost that end in each group of a branched network, with the parameters of its nodes."""
    architecture, whole = network.architecture, network.whole
    nodes, names = nodes_of(architecture), whole.parameters
    return group_costs(architecture, nodes, whole.connections, scales=whole.scales, parameters=names)


def parameters_of(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _plain(experiment: Experiment, shape: tuple[int, int, int], classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return built(experiment, shape, classes, Sites()).eval()
