"""BlockDrop's curriculum, what its policies cost, and along which paths statistics and the network are trained."""

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.methods.blockdrop import (
    BlockDrop,
    BlockDropSettings,
    controlled_blocks,
    curriculum_epochs,
    phase_of,
)
from nas_blockout.methods.paths.block_routes import (
    compacted_route,
)
from tests.nas_blockout.methods.skipping import dropping, generator, images, labels


def test_curriculum_at_a_given_pace_frees_as_many_blocks_an_epoch_as_it_is_told():
    found = [controlled_blocks(epoch, 4, epochs=6, per_epoch=1) for epoch in range(6)]
    assert found == [1, 2, 3, 4, 4, 4]
    assert [controlled_blocks(epoch, 15, epochs=4, per_epoch=6) for epoch in range(4)] == [6, 12, 15, 15]


def test_curriculum_is_scaled_to_its_phase_by_hand():
    assert [controlled_blocks(epoch, 15, epochs=5) for epoch in range(5)] == [3, 6, 9, 12, 15]
    assert [controlled_blocks(epoch, 3, epochs=5) for epoch in range(5)] == [1, 2, 2, 3, 3]
    assert controlled_blocks(0, 15, epochs=1) == 15


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_curriculum_ends_with_every_block_under_control_whatever_the_length_of_its_phase(blocks, epochs, first, second):
    chosen = BlockDropSettings(pretrain_fraction=first, policy_fraction=(1 - first) * second)
    phases = [phase_of(epoch, epochs, chosen) for epoch in range(epochs)]
    length = curriculum_epochs(epochs, chosen)
    assert [number for phase, number in phases if phase == "policy"] == list(range(length))
    controlled = [controlled_blocks(epoch, blocks, epochs=length) for epoch in range(length)]
    assert controlled == sorted(controlled)
    if controlled:
        assert controlled[0] >= 1
        assert controlled[-1] == blocks
        steps = [after - before for before, after in itertools.pairwise([0, *controlled])]
        assert max(steps) - min(steps) <= 1  # evenly, as far as blocks are whole


def test_fifteen_blocks_in_twenty_epochs_are_all_controlled_before_the_joint_phase():
    model = dropping(depth=32, policy="static")
    controlled = {}
    for epoch in range(20):
        model.prepare_epoch(epoch, 20)
        controlled.setdefault(model.phase, []).append(int(model.controlled.sum()))
    assert controlled == {"pretrain": [0] * 10, "policy": [3, 6, 9, 12, 15], "joint": [15] * 5}


@pytest.mark.parametrize("inference", ["compacted", "grouped", "masked"])
def test_statistics_are_estimated_along_the_paths_of_eval_however_it_skips(inference):
    model = dropping(depth=14, policy="static", inference=inference, initial_keep=0.6).eval()
    model.policy.logits.data = torch.tensor([2.0, -2.0, 2.0, 2.0, -2.0, 2.0])
    twin, x = copy.deepcopy(model.network), images(32)
    for module in (*model.network.modules(), *twin.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        model(x)
        compacted_route(twin, x, model.decide(x), estimating=True)
    torch.testing.assert_close(model.network.state_dict(), twin.state_dict())


def test_a_learned_policy_of_default_size_costs_a_twentieth_at_most_and_says_so():
    model = BlockDrop(ResNet(ResNetSettings(depth=32), (3, 32, 32), 10), BlockDropSettings(), shape=(3, 32, 32))
    flops = model.flops(torch.zeros(1, 3, 32, 32))
    assert 0.02 < flops.policy_share <= 0.05
    assert model.policy_share == pytest.approx(flops.policy_share)
    assert model.telemetry()["blockdrop/policy_share"] == model.policy_share
    given = BlockDropSettings(policy_widths=(16, 32, 64), policy_pool=1)  # as it always was before
    assert BlockDrop(ResNet(ResNetSettings(depth=8), (3, 32, 32), 10), given, shape=(3, 32, 32)).policy_share > 0.5


@functools.cache
def learned_of(depth):
    """A learned policy of default size, whose size takes half a second to find."""
    return dropping(depth=depth, policy_widths=None).eval()


@pytest.mark.parametrize("depth", [14, 32])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
@pytest.mark.parametrize("policy", ["static", "first", "random", "spread"])
def test_controls_cost_what_the_learned_policy_costs(depth, share, policy):
    learned = learned_of(depth)
    x = images(64)
    keep = torch.rand(64, len(learned.controlled), generator=generator()) < share
    flops = learned.flops(x[:1])
    target = float(flops.of(keep).mean()) / 2  # the policy is counted in
    model = dropping(depth=depth, policy=policy, target_macs=round(target)).eval()
    counted = model.flops(x[:1])
    assert target < counted.full / 2
    spent = float(counted.of(model.decide(x)).mean()) / 2
    assert counted.policy == 0
    assert abs(spent - target) <= max(flops.blocks) / 4 + 1  # half a block


def test_static_paths_of_a_cost_learn_which_blocks_to_keep():
    model = dropping(depth=14, policy="static", target_macs=30_000)
    model.phase = "joint"
    before, kept = model.policy.logits.clone(), int(model.decide(images(1)).sum())
    assert 0 < kept < 6
    model.train().loss(images(64), labels(64), generator()).backward()
    assert model.policy.logits.grad.any()
    model.policy.logits.data = before + 5.0  # all alike: the cost stays
    assert int(model.decide(images(1)).sum()) == kept


@pytest.mark.parametrize("paths", ["inference", "sampled"])
def test_the_network_learns_on_the_paths_it_is_told_to(paths):
    model = dropping(policy="static", finetune_paths=paths, alpha=0.7).train()
    model.policy.logits.data = torch.tensor([3.0, -3.0, 3.0])
    model.loss(images(64), labels(64), generator()).backward()
    dropped = model.network.blocks[1].residual
    assert all(
        (parameter.grad is not None and parameter.grad.any()) == (paths == "sampled")
        for parameter in dropped.parameters()
    )


@pytest.mark.parametrize("policy", ["first", "random", "spread"])
def test_a_fixed_policy_that_is_not_told_how_much_to_keep_keeps_half(policy):
    assert [int(dropping(depth=depth, policy=policy).decide(images(1)).sum()) for depth in (8, 14)] == [2, 3]


def test_a_cost_that_does_not_pay_for_one_block_is_refused():
    least = dropping(policy="all").flops(images(1))
    least = (least.fixed + min(least.blocks)) // 2
    with pytest.raises(ValueError, match=rf"target_macs must be at least {least}, .* got target_macs={least - 1}"):
        dropping(policy="first", target_macs=least - 1)
    assert dropping(policy="random", target_macs=least).decide(images(1)).sum() == 1
