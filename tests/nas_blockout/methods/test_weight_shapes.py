"""Weights of any shape under masks: plain, grouped and depthwise convolutions, against dense weights made by loops."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nas_blockout.graph.macs import count_macs
from nas_blockout.methods import blockout
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.masking import lazily_masked, masked_linear, masked_weight
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.networks import Connection, Network
from nas_blockout.nodes import Nodes

CLUSTERS = 3
SHAPES = {  # output nodes, input nodes, groups, window
    "linear": (6, 4, 1, ()),
    "plain": (6, 4, 1, (3, 3)),
    "grouped": (6, 4, 2, (3, 3)),
    "depthwise": (4, 4, 4, (3, 3)),
    "depthwise with multiplier": (8, 4, 4, (3, 3)),
    "grouped sequence": (6, 4, 2, (3,)),
    "grouped volume": (4, 4, 2, (1, 3, 1)),
}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memberships(nodes: int, *, seed: int, soft: bool) -> Tensor:
    p = torch.rand(nodes, CLUSTERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return p if soft else (p > 0.5).double()


def dense_masked(weight: Tensor, c_out: Tensor, c_in: Tensor, groups: int) -> Tensor:
    """The weight of all pairs of nodes, zero between groups, one entry and one cluster at a time."""
    outs, ins, clusters = len(c_out), len(c_in), c_out.shape[1]
    rows = []
    for o in range(outs):
        group = o // (outs // groups)
        row = []
        for n in range(ins):
            position = n - group * (ins // groups)
            entry = weight.new_zeros(weight.shape[2:])
            if 0 <= position < ins // groups:
                for cluster in range(clusters):
                    entry = entry + weight[o, position] * c_out[o, cluster] * c_in[n, cluster] / clusters
            row.append(entry)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def used(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    window = weight.dim() - 2
    return CONVOLUTIONS[window](x, weight, groups=groups) if window else F.linear(x, weight)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_masked_weight_computes_what_the_dense_one_does_in_value_and_gradient(name: str, soft: bool) -> None:
    outs, ins, groups, window = SHAPES[name]
    weight = random(outs, ins // groups, *window).requires_grad_()
    c_out, c_in = (memberships(n, seed=n, soft=soft).requires_grad_() for n in (outs, ins))
    x = random(2, ins, *(4 for _ in window), seed=1).requires_grad_()
    inputs = [x, weight, c_out, c_in]
    expected = used(x, dense_masked(weight, c_out, c_in, groups), 1)
    upstream = random(*expected.shape, seed=2)
    theirs = torch.autograd.grad(expected, inputs, upstream)
    for make in (masked_weight, lazily_masked):
        found = used(x, make(weight, c_out, c_in, groups=groups), groups)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        for one, other in zip(torch.autograd.grad(found, inputs, upstream), theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_every_filter_of_a_depthwise_weight_stays_its_own() -> None:
    weight = torch.arange(1.0, 5.0).reshape(4, 1, 1, 1)
    ones = torch.ones(4, 1)
    assert torch.equal(masked_weight(weight, ones, ones, groups=4), weight)


@pytest.mark.parametrize("make", [masked_weight, lazily_masked])
def test_memberships_that_do_not_fit_a_weight_are_refused(make) -> None:
    c = torch.ones(4, 2)
    with pytest.raises(
        ValueError, match=r"4 output and 4 input nodes .* groups=1, .*\(4, 4\).*got shape \(4, 1, 3, 3\)"
    ):
        make(torch.ones(4, 1, 3, 3), c, c)
    with pytest.raises(ValueError, match=r"groups=3, a weight that begins with the shape \(4, 1\)"):
        make(torch.ones(4, 1, 3, 3), c, c, groups=3)
    with pytest.raises(ValueError, match="2 and 1 clusters"):
        make(torch.ones(4, 4), c, torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"got shape \(4, 5\)"):
        masked_linear(torch.ones(1, 5), torch.ones(4, 5), None, c, c)


class Separable(Network):
    """A stem, a depthwise filter within it, a grouped and a multiplying convolution, two that are concatenated."""

    def __init__(self, *, grouped: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4 if grouped else 1)
        self.mixing = nn.Conv2d(4, 6, 1, groups=2 if grouped else 1)
        self.multiplying = nn.Conv2d(6, 12, 3, padding=1, groups=6 if grouped else 1)
        self.left, self.right = nn.Conv2d(12, 3, 1), nn.Conv2d(6, 2, 3, padding=1)
        self.classes = nn.Linear(5, 3)

    @property
    def connections(self) -> tuple[Connection, ...]:
        left, right = Nodes.slice("joined", 5, 0, 3), Nodes.slice("joined", 5, 3)
        return (
            Connection.of(self, "stem.weight", None, "stem", positions=16),
            Connection.of(self, "depthwise.weight", "stem", "stem", positions=16),
            Connection.of(self, "mixing.weight", "stem", "mixed", positions=16),
            Connection.of(self, "multiplying.weight", "mixed", "wide", positions=16),
            Connection.of(self, "left.weight", "wide", left, positions=16),
            Connection.of(self, "right.weight", Nodes.slice("wide", 12, 6), right, positions=16),
            Connection.of(self, "classes.weight", "joined", "classes"),
        )

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = torch.tanh(self.mixing(torch.tanh(self.depthwise(torch.tanh(self.stem(x))))))
        x = torch.tanh(self.multiplying(x))
        joined = torch.cat([self.left(x), self.right(x[:, 6:])], 1)
        return self.classes(torch.tanh(joined).mean((2, 3)))


def separable(**settings: object) -> Blockout:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = Separable()
        chosen = replace(PAPER, clusters=CLUSTERS, masked="all", **settings)  # type: ignore[arg-type]
        model = Blockout(network, network.connections, chosen)
        for value in model.logits.values():
            value.data.normal_()
    return model.double()


IMAGES = random(3, 2, 4, 4, seed=9)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_network_of_such_weights_computes_what_its_dense_twin_does(soft: bool) -> None:
    model, twin = separable(), Separable(grouped=False).double()
    c = {
        name: memberships(len(value), seed=seed, soft=soft).requires_grad_()
        for seed, (name, value) in enumerate(model.logits.items())
    }
    weights = dict(model.network.named_parameters())
    dense = dict(weights)
    dense["depthwise.weight"] = dense_masked(weights["depthwise.weight"], c["stem"], torch.ones_like(c["stem"]), 4)
    dense["mixing.weight"] = dense_masked(weights["mixing.weight"], c["mixed"], c["stem"], 2)
    dense["multiplying.weight"] = dense_masked(weights["multiplying.weight"], c["wide"], c["mixed"], 6)
    dense["left.weight"] = dense_masked(weights["left.weight"], c["joined"][:3], c["wide"], 1)
    dense["right.weight"] = dense_masked(weights["right.weight"], c["joined"][3:], c["wide"][6:], 1)
    dense["classes.weight"] = dense_masked(weights["classes.weight"], c["classes"], c["joined"], 1)
    expected, found = functional_call(twin, dense, (IMAGES,)), model.with_memberships(IMAGES, c)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert found.std() > 1e-3
    inputs = [*weights.values(), *c.values()]
    ours, theirs = (torch.autograd.grad(value.square().sum(), inputs) for value in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_such_a_network_trains_folds_and_costs_what_it_says() -> None:
    model = separable(rescale=True).train()
    x, y = IMAGES.double(), torch.tensor([0, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(x, y, generator)
        loss.backward()
        optimizer.step()
    moved = {name: float((value.detach() - before[name]).abs().max()) for name, value in model.named_parameters()}
    assert min(moved.values()) > 0
    model.eval()
    torch.testing.assert_close(model.fold()(x), model(x), rtol=0, atol=1e-14)
    assert model.dense_macs() == count_macs(copy.deepcopy(model.network).float(), x[:1].float())
    assert 0 < float(model.telemetry()["blockout/expected_macs"]) < 1  # type: ignore[arg-type]


def test_the_mean_over_many_draws_of_a_filter_of_each_node_alone_is_its_weight_in_eval() -> None:
    model = separable()
    p, weight = model.probabilities()["stem"].detach(), model.network.get_parameter("depthwise.weight").detach()
    draws, generator = 2_000, torch.Generator().manual_seed(1)
    total = torch.zeros_like(weight)
    for _ in range(draws):
        drawn = {"stem": torch.bernoulli(p, generator=generator)}
        total += model.masked_weights(drawn)["depthwise.weight"].detach()
    evaluated = model.masked_weights({"stem": p})["depthwise.weight"].detach()
    bound = 5 * float(weight.abs().max()) / 2 / math.sqrt(draws)  # a mask lies in 0..1, so its sd is at most 1/2
    assert float((total / draws - evaluated).abs().max()) < bound
    assert float((weight * (p - p.square()).mean(1)[:, None, None, None]).abs().max()) > 2 * bound  # P * P would not do


def test_initial_weights_are_rescaled_by_the_mean_mask_of_their_kind() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Separable()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    chosen = replace(PAPER, clusters=3, masked="all", first_probability=0.4, last_probability=0.4)
    Blockout(network, network.connections, chosen)
    torch.testing.assert_close(network.depthwise.weight, before["depthwise.weight"] / 0.4)
    torch.testing.assert_close(network.mixing.weight, before["mixing.weight"] / 0.4**2)


class Tiny(Network):
    """Few enough nodes to enumerate every draw: a depthwise and a residual convolution in one layer, a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.residual, self.grouped = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1, groups=2)
        self.classes = nn.Linear(2, 2)

    @property
    def connections(self) -> tuple[Connection, ...]:
        return (
            Connection.of(self, "stem.weight", None, "stem", positions=9),
            Connection.of(self, "depthwise.weight", "stem", "stem", positions=9),
            Connection.of(self, "residual.weight", "stem", "stem", positions=9),
            Connection.of(self, "grouped.weight", "stem", "features", positions=9),
            Connection.of(self, "classes.weight", "features", "classes"),
        )


def macs_under(model: Blockout, c: dict[str, list[set[int]]]) -> int:
    """Multiply-accumulates after a draw, entry by entry; `c` holds the clusters of every node."""
    masked, total = {m.weight for m in model.masked_connections}, 0
    read_always = {m.sources[0] for m in model.connections if m.weight not in masked and m.sources}
    for m in model.connections:
        outs, ins = m.shape[:2]
        each = math.prod(m.shape[2:]) * m.positions
        for o, i in itertools.product(range(outs), range(ins)):
            if m.weight in masked:
                assert m.sources
                total += each * bool(c[m.targets[0]][o] & c[m.sources[0]][i + o // (outs // m.groups) * ins])
            else:
                total += each * bool(m.targets[0] not in c or m.targets[0] in read_always or c[m.targets[0]][o])
    return total


@pytest.mark.parametrize("masked", ["all", "head", "last 2", ("features",), ("stem", "classes")])
def test_expected_macs_are_the_mean_over_every_draw(masked: object) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = Tiny()
        model = Blockout(network, network.connections, replace(PAPER, clusters=2, masked=masked)).double()  # type: ignore[arg-type]
        for value in model.logits.values():
            value.data.normal_()
    p = {name: value.detach() for name, value in model.probabilities().items()}
    chances, total = torch.cat([value.flatten() for value in p.values()]).tolist(), 0.0
    for bits in itertools.product((False, True), repeat=len(chances)):
        chance = math.prod(q if bit else 1 - q for q, bit in zip(chances, bits, strict=True))
        pairs = iter(zip(bits[::2], bits[1::2], strict=True))
        c = {
            name: [{cluster for cluster, bit in enumerate(next(pairs)) if bit} for _ in range(len(value))]
            for name, value in p.items()
        }
        total += chance * macs_under(model, c)
    assert float(model.expected_macs(p)) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("masked", ["all", "head", ("features",), ("stem", "classes")])
def test_expected_macs_by_sets_of_clusters_are_those_of_every_entry_in_value_and_gradient(
    masked: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Tiny()
    model = Blockout(network, network.connections, replace(PAPER, clusters=2, masked=masked)).double()  # type: ignore[arg-type]
    p = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
        for name, value in model.probabilities().items()
    }
    found = model.expected_macs(p)
    ours = torch.autograd.grad(found, list(p.values()))
    monkeypatch.setattr(blockout, "MOST_CLUSTERS", 0)
    expected = model.expected_macs(p)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for one, other in zip(ours, torch.autograd.grad(expected, list(p.values())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-9)
