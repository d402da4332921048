"""The dense oracle of branched graphs: the original network, run with its weights masked."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas_blockout.graph.analysis import GraphAnalysis, analyze
from nas_blockout.graph.branched import BranchedGraph, branch, settled
from nas_blockout.graph.rewrite.training_layers import AttentionWithDropout
from nas_blockout.networks import Connection
from tests.nas_blockout.graph.networks import NETWORKS, SHAPE, analysis_of

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """A network under memberships: the original one, the state with masked weights, and the branched one."""

    network: nn.Module
    analysis: GraphAnalysis
    state: State
    branched: BranchedGraph

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.network, dict(self.state), (images,))
        return logits


@cache
def analyzed(name: str) -> tuple[nn.Module, GraphAnalysis]:
    """A small network in double precision, none of whose parameters are what they are set to at first."""
    torch.manual_seed(0)
    return moved(NETWORKS[name]()), settled(analysis_of(name))


def prepared(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[nn.Module, GraphAnalysis]:
    """A network in double precision, none of whose parameters are what they are set to at first, and its analysis."""
    return moved(network), settled(analyze(network, shape))


def moved(network: nn.Module) -> nn.Module:
    """The network in double precision, with other parameters."""
    network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def masked(name: str, memberships: Mapping[str, Tensor]) -> Masked:
    """Mask the weights of a small network, estimate the statistics of its batch norms anew, and branch it."""
    network, analysis = analyzed(name)
    # A network of its own: training changes its statistics.
    return masked_network(copy.deepcopy(network), analysis, memberships)


def masked_network(network: nn.Module, analysis: GraphAnalysis, memberships: Mapping[str, Tensor]) -> Masked:
    """Mask the weights of any network, which is changed, and branch it."""
    state = {**network.state_dict(), **masked_weights(analysis.connections, memberships, network.state_dict())}
    with estimating(network):
        functional_call(network, state, (images(64, seed=1, shape=analysis.shape),))
    return Masked(network, analysis, state, branch(analysis, memberships, state).eval())


def masked_weights(connections: Sequence[Connection], memberships: Mapping[str, Tensor], state: State) -> State:
    """Every weight times the share of the clusters that its nodes have in common, times 1 where it reads no node."""
    weights = {}
    for connection in connections:
        weight = state[connection.weight]
        if connection.source_nodes is not None and not connection.filters_each_node_alone:
            weight = weight * shares(connection, memberships).to(weight)
        weights[connection.weight] = weight.clone()
    return weights


def shares(connection: Connection, memberships: Mapping[str, Tensor]) -> Tensor:
    assert connection.source_nodes is not None
    targets = connection.target_nodes.of(memberships).double()
    sources = connection.source_nodes.of(memberships).double()
    mask = targets @ sources.T / targets.shape[1]
    mask[:, [node is None for node in connection.source_nodes.identities]] = 1
    rows, columns = len(targets) // connection.groups, len(sources) // connection.groups
    mask = torch.cat(
        [mask[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(connection.groups)]
    )
    return mask.view(*mask.shape, *(1,) * (len(connection.shape) - 2))


class estimating:  # noqa: N801  # a context
    """In which a forward pass sets the running statistics to those of its batch, and nothing is dropped."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        self.momenta = [norm.momentum for norm in self.norms]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.train()
            norm.momentum = 1.0

    def __exit__(self, *_: object) -> None:
        self.network.eval()
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum


def train_without_drops(network: nn.Module) -> nn.Module:
    """Put a network into training mode, but for what drops at random."""
    network.train()
    for module in network.modules():
        if "Drop" in type(module).__name__ and not isinstance(module, AttentionWithDropout):
            module.eval()
        if isinstance(module, AttentionWithDropout):
            module.eval()
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return network


def images(number: int, *, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_memberships(
    analysis: GraphAnalysis, clusters: int, densities: Iterator[float], *, seed: int
) -> dict[str, Tensor]:
    """Memberships drawn independently; the density is another one for each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer.name: (torch.rand(layer.width, clusters, generator=generator) < density).double()
        for layer, density in zip(analysis.layers, densities, strict=False)
    }


def dense_enough(analysis: GraphAnalysis, *, clusters: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Memberships of which hardly any node is left out: two thirds of the clusters, and at least one of them."""
    generator = torch.Generator().manual_seed(seed)
    memberships = {}
    for layer in analysis.layers:
        drawn = torch.rand(layer.width, clusters, generator=generator) < 0.6
        drawn[torch.arange(layer.width), torch.randint(clusters, (layer.width,), generator=generator)] = True
        memberships[layer.name] = drawn.double()
    return memberships
