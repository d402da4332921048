"""The moving average is that of `torch.optim.swa_utils`, and an exchange loses nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nas_blockout.training.recipes.weight_averaging import WeightAverage


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def trained(model: nn.Module, average: WeightAverage, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_it_is_the_average_of_torch(decay: float) -> None:
    model, theirs = network(), network()
    expected = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average, generator = WeightAverage(model, decay), torch.Generator().manual_seed(1)
    trained(model, average, 7)
    for _ in range(7):
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        expected.update_parameters(theirs)
    average.exchange()
    for found, wanted in zip(model.parameters(), expected.module.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_an_exchange_goes_both_ways_with_the_statistics_of_normalization() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    trained(model, average, 3)
    weights = copy.deepcopy(model.state_dict())
    average.exchange()
    assert average.in_use
    model[1].running_mean.fill_(7.0)  # type: ignore[union-attr,operator]  # estimated for the averaged network
    assert not torch.equal(model[0].weight, weights["0.weight"])  # type: ignore[arg-type]
    average.exchange()
    assert not average.in_use
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    average.exchange()
    assert torch.equal(model[1].running_mean, torch.full((5,), 7.0))  # type: ignore[arg-type]


def test_state_continues_an_average() -> None:
    straight = network()
    average = WeightAverage(straight, 0.9)
    trained(straight, average, 2)
    average.exchange()
    saved = copy.deepcopy((straight.state_dict(), average.state()))
    average.exchange()
    trained(straight, average, 2)
    average.exchange()
    other = network()
    resumed = WeightAverage(other, 0.9)
    other.load_state_dict(saved[0])
    resumed.load(saved[1])
    assert resumed.in_use
    resumed.exchange()
    trained(other, resumed, 2)
    resumed.exchange()
    for name, value in straight.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_frozen_weights_are_not_held_twice() -> None:
    model = network()
    model[0].requires_grad_(requires_grad=False)
    assert not {"0.weight", "0.bias"} & set(WeightAverage(model, 0.9).state())
