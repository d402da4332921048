"""What no mask makes smaller is counted with all else: recurrent layers, computed weights, products written by hand."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.graph.macs import count_macs
from nas_blockout.graph.network import GraphNetwork
from nas_blockout.graph.unmasked import UnmaskedOperation
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from tests.nas_blockout.graph.masked_networks import analyzed, dense_enough, masked, masked_network, prepared
from tests.nas_blockout.graph.networks import CLASSES, SHAPE


class Rest(nn.Module):
    """Two convolutions, something that is no connection over four positions of their maps, and the classes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(SHAPE[0], 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.part, self.fc = part, nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.second(self.first(x).relu()).relu(), 2)
        made = self.part(x.flatten(2).transpose(1, 2))
        logits: Tensor = self.fc((made[0] if isinstance(made, tuple) else made).mean(1))
        return logits


class ByHand(nn.Module):
    """A product with a parameter, ``how`` it is asked for."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.randn(6, 6)), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.weight)


AREA = 4
PARTS: Mapping[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "gru": (lambda: nn.GRU(6, 6, batch_first=True), 3 * 2 * 36, ("part.weight_ih_l0", "part.weight_hh_l0")),
    "lstm": (lambda: nn.LSTM(6, 6, batch_first=True), 4 * 2 * 36, ("part.weight_ih_l0", "part.weight_hh_l0")),
    "einsum": (lambda: ByHand(lambda x, w: torch.einsum("bti,io->bto", x, w)), 36, ("part.weight",)),
    "matmul": (lambda: ByHand(lambda x, w: x @ w), 36, ("part.weight",)),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        36,
        ("part.parametrizations.weight.original1", "part.parametrizations.weight.original0"),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_they_are_listed_with_their_weights_and_cost_and_belong_to_every_share(name: str) -> None:
    make, each, weights = PARTS[name]
    torch.manual_seed(0)
    network, analysis = prepared(Rest(make()))
    (found,) = analysis.unmasked
    assert (found.macs, found.weights) == (each * AREA, weights)
    assert found.reason.startswith(("read by", "is a product", "product"))
    graph = GraphNetwork(network, analysis)
    image = torch.zeros(1, *SHAPE, dtype=torch.float64)
    assert graph.macs_under({}) == count_macs(network, image)
    memberships = dense_enough(analysis)
    branched = masked_network(network, analysis, memberships).branched
    assert graph.macs_under(memberships) == count_macs(branched, image) < graph.macs_under({})
    model = Blockout(graph, graph.connections, replace(PAPER, clusters=2, masked="all"))
    assert model.dense_macs() == graph.macs_under({})
    drawn = {layer: memberships[layer].float() for layer in model.layers}
    assert round(float(model.expected_macs(drawn))) == graph.macs_under(drawn)


@pytest.mark.parametrize("name", ["grouped", "attention-apart", "attention-module", "token-mixer"])
def test_what_is_kept_costs_what_the_branched_network_is_measured_to_cost(name: str) -> None:
    network, analysis = analyzed(name)
    graph, memberships = GraphNetwork(network, analysis), dense_enough(analysis)
    image = torch.zeros(1, *SHAPE, dtype=torch.float64)
    assert graph.macs_under({}) == count_macs(network, image)
    assert graph.macs_under(memberships) == count_macs(masked(name, memberships).branched.eval(), image)


def test_an_attention_costs_less_without_a_head() -> None:
    _, analysis = analyzed("attention-apart")
    assert any(each.weights == () and "whole nodes" in each.reason for each in analysis.unmasked)
    heads = [macs for layer, macs in analysis.other_macs.items() if layer is not None]
    assert heads
    assert all(len(set(macs.tolist())) == 1 for macs in heads)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(6, 4, batch_first=True), 5 * 4 * 4 * (6 + 4)),
        (nn.GRU(6, 4, batch_first=True), 5 * 3 * 4 * (6 + 4)),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 5 * 6 * (4 * 6 + 2 * 8) + 2 * 5 * 5 * 6),
    ],
    ids=["lstm", "gru", "transformer"],
)
def test_fast_kernels_are_not_free(layer: nn.Module, macs: int) -> None:
    assert count_macs(layer.eval(), torch.zeros(1, 5, 6)) == macs
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_products_of_a_matrix_and_a_vector_are_counted() -> None:
    assert count_macs(ByHand(lambda x, w: w @ x), torch.zeros(6)) == 36
    assert count_macs(ByHand(lambda x, w: w[0] @ x), torch.zeros(6)) == 6


def test_what_is_computed_from_weights_alone_is_said_to_be() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.fc = (
                nn.Parameter(torch.randn(6, 2)),
                nn.Parameter(torch.randn(2, 3)),
                nn.Linear(6, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((2, 3))
            logits: Tensor = self.fc(nn.functional.linear(mean, self.up @ self.down))
            return logits

    network, analysis = prepared(LowRank())
    product, linear = analysis.unmasked
    assert product == UnmaskedOperation("matmul", ("up", "down"), 36, "is computed from weights alone")
    assert (linear.operation, linear.weights, linear.macs) == ("linear", ("up", "down"), 18)
    whole = GraphNetwork(network, analysis).macs_under({})
    assert whole == count_macs(network, torch.zeros(1, *SHAPE, dtype=torch.float64)) == 36 + 18 + 24
