import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.resnet import ResNet
from nas_blockout.data import DataSettings, Loader, load
from nas_blockout.methods.blockdrop import (
    BlockDrop,
    BlockDropSettings,
    bounded,
    fixed_path,
    gumbel_gates,
    phase_of,
    policy_loss,
    rewards,
    straight_through_gates,
)
from nas_blockout.methods.paths.block_routes import (
    compacted_route,
    masked_route,
)
from nas_blockout.training import Checkpoint, Loaders, TrainingSettings, fit
from tests.nas_blockout.methods.skipping import dropping, generator, images, labels, network

ALL_PATHS = torch.tensor(list(itertools.product([False, True], repeat=3)))


# The mathematics, by hand


def test_reward_pays_for_unused_blocks_only_where_the_prediction_is_right():
    keep = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    right = torch.tensor([True, True, True, False])
    assert rewards(keep, right, penalty=5.0).tolist() == [0.75, 0.0, 1.0, -5.0]


def test_bounded_probabilities_by_hand():
    found = bounded(torch.tensor([0.0, 0.5, 0.9, 1.0]), 0.8)
    torch.testing.assert_close(found, torch.tensor([0.2, 0.5, 0.74, 0.8]))


def test_policy_loss_by_hand():
    s = torch.tensor([[0.5, 0.8, 0.25]])
    keep = torch.tensor([[True, False, False]])
    free = torch.tensor([False, True, True])
    log_probability = math.log(0.2) + math.log(0.75)
    uncertainty = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    found = policy_loss(s, keep, torch.tensor([2.0]), free, entropy=0.1)
    assert float(found) == pytest.approx(-(2 * log_probability + 0.1 * uncertainty), rel=1e-6)


def test_a_better_path_than_the_baseline_becomes_likelier_and_a_worse_one_rarer():
    s = torch.full((2, 2), 0.5, requires_grad=True)
    keep = torch.tensor([[True, False], [True, False]])
    policy_loss(s, keep, torch.tensor([1.0, -1.0]), torch.ones(2).bool(), entropy=0.0).backward()
    assert (torch.sign(-s.grad) == torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).all()


def test_phases_share_the_epochs():
    chosen = BlockDropSettings(pretrain_fraction=0.5, policy_fraction=0.25)
    assert [phase_of(epoch, 8, chosen) for epoch in (0, 3, 4, 5, 6, 7)] == [
        ("pretrain", 0), ("pretrain", 3), ("policy", 0), ("policy", 1), ("joint", 0), ("joint", 1),
    ]  # fmt: skip
    control = BlockDropSettings(policy="first", kept_blocks=1)
    assert [phase_of(epoch, 8, control)[0] for epoch in range(8)] == ["pretrain"] * 4 + ["joint"] * 4


@given(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_every_epoch_has_a_phase_and_phases_do_not_return(epochs, first, second):
    chosen = BlockDropSettings(pretrain_fraction=first, policy_fraction=(1 - first) * second)
    order = ["pretrain", "policy", "joint"]
    found = [order.index(phase_of(epoch, epochs, chosen)[0]) for epoch in range(epochs)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("policy", "kept", "path"),
    [
        ("all", None, [1, 1, 1, 1, 1, 1]),
        ("first", 2, [1, 1, 0, 0, 0, 0]),
        ("spread", 2, [0, 1, 0, 0, 1, 0]),
        ("spread", 3, [0, 1, 0, 1, 0, 1]),
        ("spread", 6, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_paths_of_controls_by_hand(policy, kept, path):
    assert fixed_path(policy, 6, kept).int().tolist() == path


def test_random_control_keeps_as_many_as_asked_and_depends_on_its_seed():
    found = [fixed_path("random", 20, 7, seed=seed) for seed in (1, 1, 2)]
    assert [int(path.sum()) for path in found] == [7, 7, 7]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# The estimator


def _exact_gradient(logits: Tensor, reward: Tensor) -> Tensor:
    """Gradient of minus the expected reward, summed over all paths; `reward[u, i]` is that of path u for image i."""
    logits = logits.detach().requires_grad_()
    s = bounded(torch.sigmoid(logits), 0.8)
    expected = torch.zeros(())
    for path, row in zip(ALL_PATHS, reward, strict=True):
        probability = torch.where(path, s, 1 - s).prod(1)
        expected = expected + (probability * row).mean()
    return torch.autograd.grad(-expected, logits)[0]


def _undecided(built: ResNet, x: Tensor) -> Tensor:
    """Shift the classes so that predictions depend on the path; return those of the path 1, 0, 1 as labels."""
    with torch.no_grad():
        logits = torch.stack([masked_route(built, x, path.expand(len(x), -1)) for path in ALL_PATHS])
        built.head.linears[0].bias -= logits.mean((0, 1))
        found = masked_route(built, x, ALL_PATHS[5].expand(len(x), -1)).argmax(1)
    changes = (logits - logits.mean((0, 1))).argmax(2) != found
    assert 0.2 < changes.float().mean() < 0.8
    return found


def _rewards_of_all_paths(built: ResNet, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        found = []
        for path in ALL_PATHS:
            keep = path.expand(len(x), -1)
            found.append(rewards(keep, masked_route(built, x, keep).argmax(1) == y, penalty=2.0))
    return torch.stack(found)


def test_the_expected_gradient_over_all_paths_is_the_exact_one():
    built, x = network().double().eval(), images(5).double()
    y = _undecided(built, x)
    reward = _rewards_of_all_paths(built, x, y).double()
    logits = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    greedy = (logits >= 0).int() @ torch.tensor([4, 2, 1], dtype=torch.int32)
    baseline = reward[greedy.long(), torch.arange(5)]
    estimate = torch.zeros_like(logits)
    for path, row in zip(ALL_PATHS, reward, strict=True):
        leaf = logits.clone().requires_grad_()
        s = bounded(torch.sigmoid(leaf), 0.8)
        loss = policy_loss(s, path.expand(5, -1), row - baseline, torch.ones(3).bool(), entropy=0.0)
        probability = torch.where(path, s, 1 - s).prod(1, keepdim=True).detach()
        estimate += probability * torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(estimate, _exact_gradient(logits, reward), rtol=1e-10, atol=1e-12)


def test_the_mean_gradient_of_the_loss_approaches_the_exact_one():
    model = dropping(policy="static", penalty=2.0, entropy=0.0, initial_keep=0.4)
    model.phase = "policy"
    model.train()
    x = images(6)
    y = _undecided(model.network, x)
    reward = _rewards_of_all_paths(model.network, x, y)
    exact = _exact_gradient(model.policy.logits.expand(6, -1), reward).sum(0)
    assert exact.max() - exact.min() > 0.05  # blocks differ in what they are worth
    model.loss(x.repeat(3000, 1, 1, 1), y.repeat(3000), generator()).backward()
    torch.testing.assert_close(model.policy.logits.grad, exact, rtol=0, atol=0.01)  # 18,000 draws: sd .003


def test_a_draw_that_is_the_greedy_path_teaches_nothing():
    model = dropping(policy="static", entropy=0.0, alpha=0.999999)
    model.policy.logits.data = torch.tensor([20.0, -20.0, 20.0])
    model.phase = "policy"
    model.train()
    loss = model.loss(images(16), labels(16), generator())
    assert loss.item() == 0.0


def _loss(phase: str, **values) -> float:
    model = dropping(policy="static", **values).train()
    model.policy.logits.data = torch.tensor([1.0, -1.0, 1.0])
    model.phase = phase
    return model.train().loss(images(16), labels(16), generator()).item()


def test_entropy_is_rewarded_only_while_the_policy_learns_alone():
    s = [0.8 * p + 0.2 * (1 - p) for p in (1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 1 / (1 + math.exp(-1)))]
    uncertainty = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in s)
    gained = _loss("policy", entropy=0.0) - _loss("policy", entropy=0.5)
    assert gained == pytest.approx(0.5 * uncertainty, rel=1e-4)
    assert _loss("joint", entropy=0.0) == _loss("joint", entropy=0.5)


def test_gates_pay_the_price_of_the_squared_share_of_blocks():
    paid = _loss("joint", estimator="straight-through", cost_penalty=1.5) - _loss(
        "joint", estimator="straight-through", cost_penalty=0.0
    )
    assert paid == pytest.approx(1.5 * (2 / 3) ** 2, rel=1e-4)


def test_policy_learns_to_drop_blocks_that_do_not_help():
    model = dropping(policy="static", classes=4, entropy=0.0, alpha=0.8)
    model.phase = "policy"
    model.train()
    with torch.no_grad():
        model.network.head.linears[0].weight.zero_()
        model.network.head.linears[0].bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    optimizer, draws = torch.optim.Adam(model.policy.parameters(), lr=0.1), generator()
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(images(16), torch.ones(16).long(), draws).backward()
        optimizer.step()
    assert (model.probabilities(images(1)) < 0.2).all()


def test_gates_are_hard_with_the_gradient_of_the_soft_ones():
    logits = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    gates = straight_through_gates(logits)
    assert gates.tolist() == [[0.0, 1.0, 1.0]]
    soft = torch.sigmoid(logits.detach())
    torch.testing.assert_close(torch.autograd.grad(gates.sum(), logits)[0], soft * (1 - soft))


def test_gumbel_gates_are_drawn_with_the_policys_probability():
    logits = torch.tensor([-2.0, 0.0, 1.0]).expand(40_000, 3).clone().requires_grad_()
    gates = gumbel_gates(logits, generator(), temperature=0.7)
    assert set(gates.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(gates.mean(0), torch.sigmoid(logits[0]), rtol=0, atol=0.01)  # sd at most .0025
    assert (torch.autograd.grad(gates.sum(), logits)[0] >= 0).all()


# The module


@pytest.mark.parametrize("estimator", ["reinforce", "straight-through", "gumbel"])
def test_only_the_policy_learns_in_its_phase(estimator):
    model = dropping(estimator=estimator, pretrain_fraction=0.0, policy_fraction=1.0, blocks_per_epoch=3)
    model.prepare_epoch(0, 4)
    before = copy.deepcopy(model.network.state_dict())
    model.train()
    model.loss(images(12), labels(12), generator()).backward()
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert all(parameter.grad is not None for parameter in model.policy.parameters())
    assert all(torch.equal(value, model.network.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("estimator", ["reinforce", "straight-through", "gumbel"])
def test_gradient_reaches_every_learned_parameter_in_the_joint_phase(estimator):
    model = dropping(estimator=estimator, initial_keep=0.9).train()  # hard gates of 0 let no gradient through a block
    model.loss(images(64), labels(64), generator()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_curriculum_keeps_the_first_blocks_and_gives_their_logits_no_gradient():
    model = dropping(depth=14, policy="static", pretrain_fraction=0.0, policy_fraction=1.0, blocks_per_epoch=1)
    model.policy.logits.data.fill_(-3.0)
    for epoch in range(8):
        model.prepare_epoch(epoch, 8)
        free = min(6, epoch + 1)
        assert model.decide(images(2)).int().tolist() == [[1] * (6 - free) + [0] * free] * 2
    model.prepare_epoch(1, 8)
    model.train()
    model.loss(images(32), labels(32), generator()).backward()
    assert not model.policy.logits.grad[:4].any()
    assert model.policy.logits.grad[4:].all()


def test_pretraining_runs_the_plain_network_whatever_the_policy_says():
    model = dropping(policy="static")
    model.policy.logits.data.fill_(-3.0)
    model.prepare_epoch(0, 10)
    plain = copy.deepcopy(model.network)
    x, y = images(8), labels(8)
    expected = F.cross_entropy(plain.train()(x), y)
    torch.testing.assert_close(model.train().loss(x, y, generator()), expected)
    torch.testing.assert_close(model.network.state_dict(), plain.state_dict())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_running_statistics_follow_the_paths_of_inference():
    model = dropping(depth=14, policy="static").train()
    model.policy.logits.data = torch.tensor([2.0, -2.0, 2.0, 2.0, -2.0, 2.0])
    twin, x = copy.deepcopy(model.network).train(), images(32)
    model.loss(x, labels(32), generator())
    with torch.no_grad():
        compacted_route(twin, x, model.decide(x))
    for (name, ours), theirs in zip(model.network.named_buffers(), twin.buffers(), strict=True):
        if name.endswith(("mean", "var")):
            torch.testing.assert_close(ours, theirs)


def test_controls_train_on_their_own_path():
    model = dropping(policy="first", kept_blocks=1, pretrain_fraction=0.0)
    model.prepare_epoch(0, 4)
    model.train().loss(images(16), labels(16), generator()).backward()
    first, *others = model.network.blocks
    assert all(parameter.grad.any() for parameter in first.parameters())
    assert all(parameter.grad is None for block in others for parameter in block.residual.parameters())
    assert not list(model.policy.parameters())


@pytest.mark.parametrize("inference", ["compacted", "grouped", "masked"])
@pytest.mark.parametrize("policy", ["learned", "static", "spread"])
def test_eval_equals_its_masked_oracle_and_is_deterministic(policy, inference):
    kept = 3 if policy == "spread" else None
    model = dropping(depth=14, policy=policy, inference=inference, kept_blocks=kept).eval()
    x = images(32)
    with torch.no_grad():
        keep = torch.sigmoid(model.policy(x)) >= 0.5
        found = model(x)
        torch.testing.assert_close(found, masked_route(model.network, x, keep), rtol=1e-5, atol=1e-5)
        assert torch.equal(found, model(x))


def test_keeping_all_blocks_is_the_plain_network():
    model = dropping(policy="all")
    x = images(9)
    torch.testing.assert_close(model.eval()(x), model.network(x))
    twin = copy.deepcopy(model.network).train()
    torch.testing.assert_close(model.train()(x), twin(x))


@pytest.mark.parametrize("estimator", ["reinforce", "straight-through", "gumbel"])
def test_draws_depend_on_the_generator_alone(estimator):
    model = dropping(depth=14, estimator=estimator).train()
    state = torch.get_rng_state()
    outputs = [
        (model(images(24), generator(seed)), model.loss(images(24), labels(24), generator(seed))) for seed in (1, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    if estimator != "gumbel":  # the second loss saw the statistics that the first had moved
        torch.testing.assert_close(outputs[0], outputs[1])
    other = model(images(24), generator(2))
    assert torch.equal(outputs[1][0], other) == (estimator == "straight-through")


def test_training_without_a_generator_is_refused():
    with pytest.raises(ValueError, match=r"BlockDrop needs a generator in training: call layer\(x, generator="):
        dropping().train()(images(2))


def test_double_precision_copy_and_round_trip():
    model, again = dropping().double().eval(), dropping().double().eval()
    model.prepare_epoch(6, 10)  # the curriculum is part of the state
    again.load_state_dict(model.state_dict())
    x = images(8).double()
    assert model(x).dtype == torch.float64
    for other in (copy.deepcopy(model), again):
        assert torch.equal(other(x), model(x))
    assert int(model.controlled.sum()) == 2


@pytest.mark.parametrize("policy", ["learned", "static", "spread"])
def test_export_in_eval_gives_the_same_logits_for_any_batch(policy):
    kept = 3 if policy == "spread" else None
    model, x = dropping(depth=14, policy=policy, kept_blocks=kept).eval(), images(12)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(4),), dynamic_shapes={"x": {0: batch}}, strict=False)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)
    assert (len(model.decide(x).unique(dim=0)) > 1) == (policy == "learned")
    operators = {node.target.name() for node in program.graph.nodes if hasattr(node.target, "name")}
    assert operators
    assert not [name for name in operators if name.startswith("aten::_")]  # which loading an exported model refuses


def test_flops_count_policy_blocks_and_the_rest():
    model = dropping().train()
    flops = model.flops(images(1))
    assert model.training
    by_hand = 2 * 4 * 4 * 9 * 64 + 2 * (4 * 4 * 9 + 4 * 4 * 9) * 64  # stem and block of 4 channels, 8x8
    by_hand += 2 * (4 * 6 * 9 + 6 * 6 * 9 + 4 * 6) * 16 + 2 * 6 * 3  # block of 6 channels, 4x4, and the linear layer
    assert flops.policy == by_hand - 2 * 3 * 4 * 9 * 64  # the image has one channel, not four
    keep = torch.tensor([[True, False, True]])
    assert int(flops.of(keep)) == flops.policy + flops.full - flops.blocks[1]


@pytest.mark.parametrize("policy", ["static", "all"])
def test_a_path_that_is_the_same_for_all_images_costs_nothing_to_decide(policy):
    assert dropping(policy=policy).flops(images(1)).policy == 0


def test_telemetry_tells_what_the_policy_did_in_the_epoch():
    model = dropping(policy="static", penalty=3.0)
    model.policy.logits.data = torch.tensor([1.0, -1.0, 1.0])
    model.prepare_epoch(9, 10)
    assert model.telemetry() == {"blockdrop/controlled": 3.0}
    model.train()
    model.loss(images(10), labels(10), generator())
    found = model.telemetry()
    assert found["blockdrop/blocks/mean"] == 2.0
    assert found["blockdrop/blocks/sd"] == 0.0
    assert found["blockdrop/blocks/kept"] == [1.0, 0.0, 1.0]
    assert found["blockdrop/paths"] == 1.0
    right = (found["blockdrop/reward"] + 3.0) / (3.0 + 1 - (2 / 3) ** 2)  # share of right predictions behind the mean
    assert right * 10 == pytest.approx(round(right * 10))
    model.prepare_epoch(9, 10)
    assert model.telemetry() == {"blockdrop/controlled": 3.0}


def test_parameter_groups_hold_every_parameter_once_and_spare_the_policy_decay():
    model = dropping(policy_lr_multiplier=0.5)
    groups = model.parameter_groups()
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert [group["weight_decay"] for group in groups] == [True, False, False]
    assert [group["lr_multiplier"] for group in groups] == [1.0, 1.0, 0.5]


def test_policy_network_starts_near_the_probability_asked_for():
    model = dropping(initial_keep=0.9, policy_pool=2).eval()
    assert model.probabilities(images(64)).mean().item() == pytest.approx(0.9, abs=0.1)


def _digits() -> Loaders:
    splits = load(DataSettings(train_samples=80, validation_samples=40))
    return Loaders(Loader(splits.train, 20), Loader(splits.validation, 40))


def _training(start: Checkpoint | None = None, **values) -> list:
    model = dropping(classes=10, pretrain_fraction=0.25, policy_fraction=0.5, **values)
    chosen, records = TrainingSettings(epochs=4, batch_size=20), []
    for record in fit(model, _digits(), chosen, seed=3, start=start):
        state = copy.deepcopy(record.checkpoint.to_state())
        records.append((record.to_json() | {"seconds": 0.0}, Checkpoint(**state)))
    return records


@pytest.mark.parametrize("values", [{}, {"policy": "random", "kept_blocks": 2}, {"estimator": "gumbel"}])
def test_the_training_loop_runs_all_phases_and_resumes_with_the_same_numbers(values):
    whole = _training(**values)
    controlled = [row["telemetry"]["blockdrop/controlled"] for row, _ in whole]
    assert controlled == ([0, 2, 3, 3] if not values.get("kept_blocks") else [0, 3, 3, 3])
    for stop in (1, 2):
        resumed = _training(start=whole[stop][1], **values)
        assert [row for row, _ in resumed] == [row for row, _ in whole[stop + 1 :]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "best"}, r"policy must be one of learned, static, all, first, random, spread, got 'best'"),
        ({"estimator": "arm"}, r"estimator must be one of reinforce, straight-through, gumbel, got 'arm'"),
        ({"inference": "fast"}, r"inference must be one of compacted, grouped, masked, got 'fast'"),
        ({"kept_blocks": 2, "policy": "static"}, r"kept_blocks belongs to .* got kept_blocks=2 for policy='static'"),
        ({"target_macs": 9}, r"target_macs belongs to .* got target_macs=9 for policy='learned'"),
        ({"target_macs": 9, "policy": "all"}, r"target_macs belongs to .* got target_macs=9 for policy='all'"),
        (
            {"target_macs": 9, "kept_blocks": 1, "policy": "first"},
            r"set one of them, got kept_blocks=1 and target_macs=9",
        ),
        ({"kept_blocks": 2}, r"kept_blocks belongs to .* got kept_blocks=2 for policy='learned'"),
        ({"alpha": 1.0}, r"alpha must be in \(0\.5, 1\), got alpha=1\.0"),
        ({"initial_keep": 0.0}, r"initial_keep must be in \(0, 1\), got initial_keep=0\.0"),
        ({"penalty": -1.0}, r"penalty must be at least 0, got penalty=-1\.0"),
        ({"temperature": 0.0}, r"temperature must be above 0, got temperature=0\.0"),
        (
            {"policy_fraction": 0.6},
            r"policy_fraction must be at most 0\.5, what pretrain_fraction leaves, got policy_fraction=0\.6",
        ),
        ({"blocks_per_epoch": 0}, r"blocks_per_epoch must be at least 1, got blocks_per_epoch=0"),
        ({"policy_widths": ()}, r"policy_widths must be a list of 1 to 64, got policy_widths=\(\)"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BlockDropSettings(**values)


def test_more_kept_blocks_than_the_network_has_are_refused():
    with pytest.raises(
        ValueError, match=r"kept_blocks must lie in 1\.\.3, the blocks of the network, got kept_blocks=4"
    ):
        dropping(policy="first", kept_blocks=4)


def test_a_network_without_blocks_is_refused():
    empty = nn.Module()
    empty.blocks = nn.ModuleList()
    with pytest.raises(ValueError, match="needs a network of 1 or more blocks, got none"):
        BlockDrop(empty, BlockDropSettings(), shape=(1, 8, 8))
