"""Blockout against loop oracles written from the paper's equations, and the laws that its modes and estimators keep."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.masking import expected_share, masked_weight
from nas_blockout.methods.memberships.blockout_settings import PAPER, BlockoutSettings
from nas_blockout.methods.memberships.description import collapse_of
from nas_blockout.methods.random_masks import draw_memberships
from nas_blockout.networks import Connection

SEED = 20


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TwoLayers(nn.Module):
    """Features, one hidden layer, classes: the smallest network with a shared C."""

    def __init__(self, features: int = 5, hidden: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def connections_of(network: nn.Module) -> tuple[Connection, ...]:
    return (
        Connection.of(network, "first.weight", "features", "hidden"),
        Connection.of(network, "second.weight", "hidden", "classes"),
    )


def two_layers(**settings: object) -> Blockout:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = TwoLayers().double()
        model = Blockout(network, connections_of(network), replace(PAPER, **settings)).double()  # type: ignore[arg-type]
        for value in model.logits.values():
            value.data += torch.randn_like(value)
    return model


def oracle_weight(weight: Tensor, c_out: Tensor, c_in: Tensor) -> Tensor:
    """Eq. 3, one parameter and one cluster at a time."""
    k = c_out.shape[1]
    rows = []
    for t in range(weight.shape[0]):
        row = []
        for s in range(weight.shape[1]):
            total = weight.new_zeros(weight.shape[2:])
            for cluster in range(k):
                total = total + c_in[s, cluster] * c_out[t, cluster] * weight[t, s]
            row.append(total / k)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
@pytest.mark.parametrize("soft", [False, True])
def test_masked_weight_equals_eq3_in_value_and_gradient(shape: tuple[int, ...], soft: bool) -> None:
    generator = seeded()
    weight = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    p_out, p_in = (torch.rand(nodes, 3, generator=generator, dtype=torch.float64) for nodes in shape[:2])
    c_out, c_in = (p if soft else (p > 0.5).double() for p in (p_out, p_in))
    inputs = [weight, c_out.requires_grad_(), c_in.requires_grad_()]
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    found, expected = masked_weight(*inputs), oracle_weight(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_gradients_of_the_whole_network_equal_eq8_and_eq9_written_out() -> None:
    model = two_layers(clusters=2, rescale=False)
    x, y = torch.randn(7, 5, generator=seeded(), dtype=torch.float64), torch.arange(7) % 3
    model.train()
    model.loss(x, y, seeded(1)).backward()
    p = {name: value.detach() for name, value in model.probabilities().items()}
    generator = seeded(1)
    c = {name: torch.bernoulli(value, generator=generator) for name, value in p.items()}
    first, second = model.network.first, model.network.second
    w1 = oracle_weight(first.weight.detach(), c["hidden"], c["features"])
    w2 = oracle_weight(second.weight.detach(), c["classes"], c["hidden"])
    a1 = torch.tanh(x @ w1.T + first.bias.detach())
    delta2 = (torch.softmax(a1 @ w2.T + second.bias.detach(), 1) - F.one_hot(y, 3)) / len(x)
    delta1 = (delta2 @ w2) * (1 - a1**2)
    by_w1, by_w2 = delta1.T @ x, delta2.T @ a1  # dL/dW, eq. 8 left
    k = 2
    torch.testing.assert_close(first.weight.grad, by_w1 * (c["hidden"] @ c["features"].T) / k)
    torch.testing.assert_close(second.weight.grad, by_w2 * (c["classes"] @ c["hidden"].T) / k)
    by_c = {
        "features": (first.weight.detach() * by_w1).T @ c["hidden"] / k,
        "hidden": (first.weight.detach() * by_w1) @ c["features"] / k
        + (second.weight.detach() * by_w2).T @ c["classes"] / k,  # C_j is shared: both sides add up
        "classes": (second.weight.detach() * by_w2) @ c["hidden"] / k,
    }
    for name, gradient in by_c.items():
        by_p = gradient * c[name]  # eq. 9
        torch.testing.assert_close(model.logits[name].grad, by_p * p[name] * (1 - p[name]))


def test_inference_uses_the_expected_mask_of_eq5() -> None:
    model = two_layers(clusters=3).eval()
    p = model.probabilities()
    x = torch.randn(4, 5, generator=seeded(), dtype=torch.float64)
    w1 = oracle_weight(model.network.first.weight, p["hidden"], p["features"])
    w2 = oracle_weight(model.network.second.weight, p["classes"], p["hidden"])
    expected = torch.tanh(x @ w1.T + model.network.first.bias) @ w2.T + model.network.second.bias
    torch.testing.assert_close(model(x), expected)


def test_mean_over_many_draws_approaches_the_weight_of_eq5() -> None:
    p_out, p_in = (torch.rand(nodes, 2, generator=seeded(nodes), dtype=torch.float64) for nodes in (5, 4))
    weight = torch.randn(5, 4, generator=seeded(), dtype=torch.float64)
    generator, draws = seeded(3), 20_000
    total = torch.zeros_like(weight)
    for _ in range(draws):
        total += masked_weight(
            weight, torch.bernoulli(p_out, generator=generator), torch.bernoulli(p_in, generator=generator)
        )
    sd_of_mean = weight.abs().max() / 2 / math.sqrt(draws)  # a mask lies in 0..1, so its sd is at most 1/2
    assert (total / draws - masked_weight(weight, p_out, p_in)).abs().max() < 5 * sd_of_mean


def test_fold_is_the_same_function_as_a_plain_network() -> None:
    model = two_layers(clusters=3).eval()
    folded = model.fold()
    x = torch.randn(4, 5, generator=seeded(), dtype=torch.float64)
    assert type(folded) is TwoLayers
    assert torch.equal(folded(x), model(x))
    assert not torch.equal(folded.first.weight, model.network.first.weight)


def test_soft_mode_draws_nothing_and_learns_through_p() -> None:
    model = two_layers(clusters=2, mode="soft-learned").train()
    x, y = torch.randn(6, 5, generator=seeded(), dtype=torch.float64), torch.arange(6) % 3
    generator = seeded()
    before = generator.get_state()
    loss = model.loss(x, y, generator)
    loss.backward()
    assert torch.equal(generator.get_state(), before)
    torch.testing.assert_close(loss, F.cross_entropy(model.eval()(x), y))
    assert all(value.grad.abs().min() > 0 for value in model.logits.values())


def test_fixed_mode_keeps_its_probabilities() -> None:
    model = two_layers(clusters=2, mode="hard-fixed").train()
    x, y = torch.randn(6, 5, generator=seeded(), dtype=torch.float64), torch.arange(6) % 3
    model.loss(x, y, seeded()).backward()
    assert all(value.grad is None for value in model.logits.values())
    assert len(model.parameter_groups()) == 2


def test_one_cluster_is_dropout_of_inputs_and_outputs() -> None:
    weight = torch.randn(6, 4, generator=seeded(), dtype=torch.float64)
    p = torch.full((10, 1), 0.5, dtype=torch.float64)
    c = draw_memberships(p, seeded(7))
    c_out, c_in = c[:6], c[6:]
    x = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    dropped = (x * c_in[:, 0]) @ weight.T * c_out[:, 0]
    torch.testing.assert_close(x @ masked_weight(weight, c_out, c_in).T, dropped)


def test_a_cluster_a_node_gives_element_wise_masks_as_in_dropconnect() -> None:
    nodes = 5
    weight = torch.randn(nodes, nodes, generator=seeded(), dtype=torch.float64)
    generator = seeded(2)
    for _ in range(20):
        element_wise = torch.bernoulli(torch.full((nodes, nodes), 0.5, dtype=torch.float64), generator=generator)
        # cluster l holds input node l alone, so output t reads input l where it belongs to cluster l
        found = masked_weight(weight, element_wise, torch.eye(nodes, dtype=torch.float64))
        torch.testing.assert_close(found * nodes, weight * element_wise)


def exact_gradient(model: Blockout, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradient of the expected loss by enumerating every C of a tiny network."""
    names = model.layers
    p = model.probabilities()
    sizes = [value.numel() for value in p.values()]
    total = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        flat = torch.tensor(bits, dtype=torch.float64)
        parts = dict(zip(names, flat.split(sizes), strict=True))
        c = {name: part.view_as(p[name]) for name, part in parts.items()}
        chance = torch.stack([torch.where(c[name] > 0, p[name], 1 - p[name]).prod() for name in names]).prod()
        total = total + chance * F.cross_entropy(model.with_memberships(x, c), y)
    return list(torch.autograd.grad(total, list(model.logits.values())))


def tiny(estimator: str) -> Blockout:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = TwoLayers(2, 2, 2).double()
        network.first.weight.data *= 3
        network.second.weight.data *= 3
        return Blockout(
            network, connections_of(network), replace(PAPER, clusters=1, estimator=estimator, rescale=False)
        ).double()  # type: ignore[arg-type]


def mean_gradient(model: Blockout, x: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    generator = seeded(11)
    found = []
    for _ in range(draws):
        model.zero_grad()
        model.loss(x, y, generator).backward()
        found.append(torch.cat([value.grad.flatten() for value in model.logits.values()]))
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.std(0) / math.sqrt(draws)


def test_arm_is_unbiased_and_the_papers_estimator_is_not() -> None:
    x, y = torch.randn(4, 2, generator=seeded(5), dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    draws, errors = 1500, 2.75  # a bias of 7% of a draw's spread is found, as it is with 4.5 of them over 4,000 draws
    arm, masked = tiny("arm").train(), tiny("masked").train()
    exact = torch.cat([gradient.flatten() for gradient in exact_gradient(arm, x, y)])
    mean, error = mean_gradient(arm, x, y, draws)
    assert ((mean - exact).abs() < errors * error + 1e-12).all()
    biased, error = mean_gradient(masked, x, y, draws // 3)
    assert ((biased - exact).abs() > errors * error).any()


def test_straight_through_reaches_unselected_memberships() -> None:
    p = torch.full((4, 3), 0.5, dtype=torch.float64, requires_grad=True)
    masked = draw_memberships(p, seeded())
    (by_p,) = torch.autograd.grad(masked.sum(), p)
    assert torch.equal(by_p, masked)
    straight = draw_memberships(p, seeded(), estimator="straight-through")
    assert torch.equal(straight, masked)
    assert torch.equal(torch.autograd.grad(straight.sum(), p)[0], torch.ones_like(p))


def test_expected_share_is_the_chance_that_two_nodes_meet() -> None:
    p_out, p_in = (torch.rand(nodes, 2, generator=seeded(nodes), dtype=torch.float64) for nodes in (3, 2))
    for t, s in itertools.product(range(3), range(2)):
        apart = 1.0
        for cluster in range(2):
            apart *= 1 - float(p_out[t, cluster] * p_in[s, cluster])
        assert float(expected_share(p_out, p_in)[t, s]) == pytest.approx(1 - apart)
    alone = 1 - (1 - p_out[:, 0]) * (1 - p_out[:, 1])
    torch.testing.assert_close(expected_share(p_out, None)[:, 0], alone)


def test_charge_pulls_expected_macs_down_to_its_target() -> None:
    model = two_layers(clusters=2, cost_penalty=10.0, cost_target=0.3, cost_warmup=0.0, structure_lr_multiplier=1.0)
    optimizer = torch.optim.SGD(model.logits.values(), lr=0.2)
    shares = []
    for _ in range(200):
        optimizer.zero_grad()
        model.penalty().backward()
        optimizer.step()
        shares.append(float(model.expected_macs(model.probabilities()).detach()) / model.dense_macs())
    assert shares[0] > 0.4
    assert shares[-1] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("sides", "low", "high"), [("above", 0.0, 0.1), ("both", 0.25, 0.45)])
def test_a_charge_on_both_sides_holds_the_cost_that_polarization_would_carry_away(
    sides: str, low: float, high: float
) -> None:
    model = two_layers(clusters=2, cost_penalty=10.0, cost_target=0.35, cost_penalty_sides=sides, polarization=8.0)
    for value in model.logits.values():
        value.data = torch.randn(value.shape, generator=seeded(1), dtype=value.dtype) * 0.1 - 0.2
    optimizer = torch.optim.SGD(model.logits.values(), lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        model.penalty().backward()
        optimizer.step()
    share = float(model.expected_macs(model.probabilities()).detach()) / model.dense_macs()
    assert low <= share <= high


def test_charge_ramps_up_linearly_over_the_first_epochs() -> None:
    model = two_layers(clusters=2, cost_penalty=1.0, cost_warmup=0.5)
    ramps = []
    for epoch in range(8):
        model.prepare_epoch(epoch, 8)
        ramps.append(model.ramp)
    assert ramps == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_polarization_and_balance_are_zero_where_they_should_be() -> None:
    polarized = two_layers(clusters=2, polarization=1.0, cost_warmup=0.0)
    for value in polarized.logits.values():
        value.data = torch.where(value > 0, 40.0, -40.0).double()
    assert float(polarized.penalty().detach()) == pytest.approx(0, abs=1e-12)
    balanced = two_layers(clusters=2, balance=1.0)
    for value in balanced.logits.values():
        value.data.zero_()
    assert float(balanced.penalty().detach()) == 0
    balanced.logits["hidden"].data[:, 0] = 3
    assert float(balanced.penalty().detach()) > 0


def test_initial_probabilities_fall_with_depth_and_weights_are_rescaled() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TwoLayers()
    before = network.first.weight.detach().clone()
    model = Blockout(
        network, connections_of(network), replace(PAPER, clusters=2, first_probability=0.9, last_probability=0.5)
    )
    means = [float(p.detach().mean()) for p in model.probabilities().values()]
    assert means == pytest.approx([0.9, 0.7, 0.5])
    torch.testing.assert_close(network.first.weight, before / (0.9 * 0.7))


def test_head_masks_linear_layers_only_and_convolutions_join_on_request() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 6, 3), "head": nn.Linear(6, 4)})
    head = Connection.of(network, "head.weight", "features", "classes")
    connections = (Connection.of(network, "conv.weight", None, "features", positions=16), head)
    wide = (Connection.of(network, "conv.weight", "stem", "features", positions=16), head)
    assert Blockout(network, connections, PAPER).layers == ("features", "classes")
    assert Blockout(network, wide, replace(PAPER, clusters=3, masked="all")).layers == ("stem", "features", "classes")
    assert Blockout(network, wide, replace(PAPER, clusters=3)).dense_macs() == 6 * 3 * 9 * 16 + 24


@pytest.mark.parametrize(
    ("p", "alarm"),
    [
        (torch.full((9, 3), 0.99), "all ones"),
        (torch.full((9, 3), 0.01), "all zeros"),
        (torch.tensor([[0.9, 0.001, 0.001]] * 9), "one cluster"),
        (torch.full((9, 3), 0.5), "none"),
        (torch.eye(3).repeat(3, 1), "none"),
        (torch.full((9, 1), 0.5), "none"),
    ],
)
def test_alarm_names_the_collapse(p: Tensor, alarm: str) -> None:
    assert collapse_of(p) == alarm


def test_telemetry_of_known_probabilities() -> None:
    model = two_layers(clusters=2)
    for value in model.logits.values():
        value.data.zero_()
    record = model.telemetry()
    assert record["blockout/mean/hidden"] == 0.5
    assert record["blockout/entropy/hidden"] == pytest.approx(1.0)
    assert record["blockout/separated/hidden"] == 0
    assert record["blockout/clusters/hidden"] == 1
    assert record["blockout/effective_parameters"] == pytest.approx((5 * 4 + 4 * 3) / 4)
    assert record["blockout/expected_macs"] == pytest.approx(1 - 0.75**2)
    density = record["blockout/density/hidden"]
    assert isinstance(density, list)
    assert sum(density) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"clusters": 0}, "clusters=0"),
        ({"mode": "hard"}, "mode must be one of"),
        ({"first_probability": 1.0}, r"in \(0, 1\), got first_probability=1\.0"),
        ({"cost_target": 1.5}, r"in \[0, 1\], got cost_target=1\.5"),
        ({"structure_lr_multiplier": -1.0}, "must be at least 0, got"),
        ({"balance": math.nan}, "balance must be a finite number, got"),
        ({"estimator": "arm", "mode": "hard-fixed"}, "needs mode='hard-learned'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        BlockoutSettings(**settings)  # type: ignore[arg-type]


def test_more_clusters_than_nodes_are_refused() -> None:
    network = TwoLayers()
    with pytest.raises(
        ValueError, match=r"clusters must lie in 1\.\.nodes, got clusters=4 for nodes=3 in layer 'classes'"
    ):
        Blockout(network, connections_of(network), replace(PAPER, clusters=4))


def test_training_without_a_generator_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="needs a generator in training"):
        two_layers(clusters=2)(torch.zeros(1, 5, dtype=torch.float64))


def test_copies_and_states_carry_everything() -> None:
    model = two_layers(clusters=2).train()
    twin = copy.deepcopy(model)
    other = two_layers(clusters=2)
    for value in other.logits.values():
        value.data.zero_()
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 5, generator=seeded(), dtype=torch.float64)
    assert torch.equal(model(x, seeded()), twin(x, seeded()))
    assert torch.equal(model(x, seeded()), other(x, seeded()))
