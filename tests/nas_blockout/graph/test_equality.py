"""A branched graph computes what the original network computes under masked weights."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from nas_blockout.graph.branched import branch
from tests.nas_blockout.graph.masked_networks import (
    Masked,
    analyzed,
    dense_enough,
    images,
    masked,
    masked_weights,
    random_memberships,
    train_without_drops,
)
from tests.nas_blockout.graph.networks import NETWORKS

every_network = pytest.mark.parametrize("name", NETWORKS)
DENSITIES = (0.0, 0.15, 0.4, 0.7, 1.0)
SPREAD = 1e-4  # of logits over images: below, equality would say nothing


def spread(logits: Tensor) -> float:
    return float(logits.std(0).max())


def in_training(case: Masked, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of one forward pass in training of the masked and of the branched network, which changes statistics."""
    train_without_drops(case.network)
    train_without_drops(case.branched)
    return case.logits(batch), case.branched(batch)


@every_network
def test_masked_equals_branched_in_eval_and_in_training_and_the_logits_tell_images_apart(name: str) -> None:
    _, analysis = analyzed(name)
    case = masked(name, dense_enough(analysis))
    batch = images(5)
    with torch.no_grad():
        expected = case.logits(batch)
        torch.testing.assert_close(case.branched(batch), expected, rtol=0, atol=1e-10)
        trained, branched = in_training(case, batch)
        case.network.eval()
        after, branched_after = case.logits(batch), case.branched.eval()(batch)
    torch.testing.assert_close(branched, trained, rtol=0, atol=1e-10)
    torch.testing.assert_close(branched_after, after, rtol=0, atol=1e-10)  # the statistics moved alike
    assert spread(expected) > SPREAD
    assert spread(trained) > SPREAD


@every_network
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    clusters=st.integers(1, 4),
    densities=st.lists(st.sampled_from(DENSITIES), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_equality_holds_for_any_memberships(name: str, clusters: int, densities: list[float], seed: int) -> None:
    _, analysis = analyzed(name)
    endless: Iterator[float] = itertools.cycle(densities)
    case = masked(name, random_memberships(analysis, clusters, endless, seed=seed))
    batch = images(3, seed=seed)
    with torch.no_grad():
        torch.testing.assert_close(case.branched(batch), case.logits(batch), rtol=0, atol=1e-10)
        trained, branched = in_training(case, batch)
    torch.testing.assert_close(branched, trained, rtol=0, atol=1e-10)


@every_network
def test_another_membership_or_weight_makes_them_differ(name: str) -> None:
    _, analysis = analyzed(name)
    memberships = dense_enough(analysis)
    case = masked(name, memberships)
    batch = images(5)
    last = [layer.name for layer in analysis.layers][-1]
    rows = memberships[last].clone()
    rows[0] = torch.tensor([0.0, 1.0]) if rows[0, 0] else torch.tensor([1.0, 0.0])
    state = {
        **case.state,
        **masked_weights(analysis.connections, memberships | {last: rows}, case.network.state_dict()),
    }
    weight = analysis.connections[0].weight
    moved = {**case.state, weight: case.state[weight] * 1.01}
    with torch.no_grad():
        branched = case.branched(batch)
        other = functional_call(case.network, state, (batch,))
        scaled = functional_call(case.network, moved, (batch,))
    assert float((other - branched).abs().max()) > SPREAD
    assert float((scaled - branched).abs().max()) > SPREAD


@every_network
def test_gradients_are_those_of_the_masked_network(name: str) -> None:
    _, analysis = analyzed(name)
    case = masked(name, dense_enough(analysis, seed=3))
    train_without_drops(case.network)
    train_without_drops(case.branched)
    batch = images(6)
    learned = [name for name, _ in case.network.named_parameters()]
    leaves = {name: value.detach().clone().requires_grad_() for name, value in case.state.items() if name in learned}
    functional_call(case.network, {**case.state, **leaves}, (batch,)).square().mean().backward()
    case.branched(batch).square().mean().backward()
    masks = {each.weight: case.state[each.weight] != 0 for each in analysis.connections}
    expected = {
        name: float((leaf.grad * masks.get(name, torch.ones(()))).square().sum())
        for name, leaf in leaves.items()
        if leaf.grad is not None
    }
    actual = dict.fromkeys(expected, 0.0)
    for name, parameter in case.branched.named_parameters():
        assert parameter.grad is not None, f"{name} is not trained"
        actual[original_name(name, learned)] += float(parameter.grad.square().sum())
    assert actual == pytest.approx(expected, rel=1e-6, abs=1e-12)


def original_name(name: str, originals: list[str]) -> str:
    """The parameter of the original network whose entries a parameter of the branched one holds."""
    path = name.removeprefix("body.")
    if path in originals:
        return path
    owner, _, last = path.rpartition(".")
    owner = owner.partition(".bundles.")[0]
    kind = "weight" if last == "weight" else "bias"
    if owner in originals:  # torch's attention has no module for its first weight
        return owner if kind == "weight" else owner.replace("weight", "bias")
    return f"{owner}.{kind}"


@pytest.mark.parametrize("name", ["residual", "mobile", "fused-attention"])
def test_equality_holds_in_single_precision(name: str) -> None:
    _, analysis = analyzed(name)
    memberships = dense_enough(analysis)
    case = masked(name, memberships)
    state = {key: value.float() if value.is_floating_point() else value for key, value in case.state.items()}
    branched = branch(analysis, memberships, state).eval()
    batch = images(5)
    with torch.no_grad():
        expected = functional_call(case.network.float(), state, (batch.float(),))
        actual = branched(batch.float())
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().max()) < 1e-4 * float(expected.abs().max())
