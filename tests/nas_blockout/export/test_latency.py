"""Latency: equal networks come out equal, different ones do not, and the cost is bounded."""

import copy
import time

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.export import measure_together
from nas_blockout.export.latency import SECONDS_PER_MODEL

SHAPE = (1, 28, 28)


def network(width: int) -> nn.Module:
    layers = (nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return nn.Sequential(nn.Flatten(), *layers).eval()


class Slow(nn.Module):
    """Takes a tenth of a second."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        Slow.calls += 1
        time.sleep(0.1)
        return images


def test_copies_of_a_network_come_out_equal_and_a_larger_one_does_not() -> None:
    dense = network(300)
    models = {"dense": dense, "large": network(1200), "dropout": copy.deepcopy(dense)}
    found = measure_together(models, SHAPE, batches=(1, 64))
    for size in (1, 64):
        one, other, large = (found[name][size] for name in ("dense", "dropout", "large"))
        assert one.quartiles[0] <= other.quartiles[1]
        assert other.quartiles[0] <= one.quartiles[1]
        assert large.quartiles[0] > max(one.quartiles[1], other.quartiles[1])
        assert one.quartiles[0] <= one.median <= one.quartiles[1]
        assert one.rounds == other.rounds >= 7


def test_the_measurement_ends_in_time_and_slow_networks_get_few_rounds() -> None:
    began = time.monotonic()
    found = measure_together({"a": network(20), "b": network(20)}, SHAPE, batches=(1,), rounds=(2, 10**6), seconds=0.3)
    assert time.monotonic() - began < 2
    assert found["a"][1].rounds > 10
    Slow.calls = 0
    found = measure_together({"a": Slow()}, SHAPE, batches=(1,), rounds=(2, 50), seconds=0.0)
    assert (found["a"][1].rounds, Slow.calls) == (2, 4)  # one timed pass a round, after one that is not
    assert SECONDS_PER_MODEL < 1


def test_threads_are_left_alone_and_no_model_is_no_error() -> None:
    threads = torch.get_num_threads()
    assert measure_together({}, SHAPE) == {}
    with pytest.raises(RuntimeError):
        measure_together({"a": network(5)}, (1, 3, 3), rounds=(2, 2))
    assert torch.get_num_threads() == threads
