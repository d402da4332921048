"""How long networks take to run, measured like an accuracy: in interleaved rounds, with a spread.

Measured one after another, two copies of one network can differ by a third, since a processor's clock and whatever else
runs change within seconds. Here every round times every network once, in an order drawn anew, so that all of them meet
the same conditions. Each round times a fresh copy: where weights lie in memory changes the time by a few percent, which
is no property of a network and therefore belongs to the spread.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import numpy as np
import torch
from torch import Tensor, nn

from nas_blockout.networks import Network, Runtime

BATCHES = (1, 256)
ROUNDS = (7, 50)  # at least, whatever they take; at most
SECONDS_PER_MODEL = 0.5  # no round begins later than this times the number of models
_PASSES = 5  # of one network in one round, after one that is not timed
_PASS_SECONDS = 0.02  # no further pass is timed after these


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one forward pass over the rounds of a measurement.

    Args:
        median: Of the rounds.
        quartiles: Between which the middle half of the rounds lies.
        rounds: How many there were.
    """

    median: float
    quartiles: tuple[float, float]
    rounds: int


def for_inference(
    network: nn.Module,
    *,
    runtime: Runtime = "torch",
    batch: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return a copy of a network, in eval mode on a device, in the form that a runtime is expected to run fastest."""
    if isinstance(network, Network):
        return network.for_inference(runtime=runtime, batch=batch).to(device).eval()
    return copy.deepcopy(network).to(device).eval()


@torch.no_grad()
def measure_together(
    models: Mapping[str, nn.Module],
    shape: tuple[int, int, int],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: tuple[int, int] = ROUNDS,
    seconds: float | None = None,
) -> dict[str, dict[int, Timing]]:
    """Return the time of one eager forward pass of every model by batch size, on one thread.

    A network is measured in the form that is exported, with normalization folded in where it can be. The measurement
    ends with the round in which `seconds` are over, or after the largest number of rounds.

    Args:
        models: In eval mode, by name.
        shape: Channels, height and width of an image.
        batches: Images a pass.
        rounds: Least and largest number of rounds, 2 or more.
        seconds: After which no further round begins, unless there were too few; `SECONDS_PER_MODEL` times the number
            of models if None.
    """
    limit = SECONDS_PER_MODEL * len(models) if seconds is None else seconds
    to_run = {name: for_inference(model) for name, model in models.items()}
    images = {size: torch.zeros(size, *shape) for size in batches}
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batches} for name in models}
    names, draws = list(models), np.random.default_rng(0)
    with _one_thread():
        began = time.perf_counter()
        for number in range(rounds[1] if models else 0):
            if number >= rounds[0] and time.perf_counter() - began >= limit:
                break
            for name in (names[position] for position in draws.permutation(len(names))):
                model = copy.deepcopy(to_run[name])
                for size in batches:
                    times[name][size].append(1000 * median(_passes(model, images[size])))
    return {name: {size: _timing(found) for size, found in by_size.items()} for name, by_size in times.items()}


@torch.no_grad()
def measure_latency(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    batches: Sequence[int] = BATCHES,
    repeats: int = 15,
    batch: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[int, float]:
    """Return the median milliseconds of one eager forward pass of one model by batch size, on one thread.

    On an accelerator a pass begins when all before it has been computed, and ends when its own logits have been.

    For a model that is looked at alone, as against a limit. Times of several models are comparable only if they come
    from `measure_together`.

    Args:
        model: In eval mode.
        shape: Channels, height and width of an image.
        batches: Images a pass.
        repeats: Timed passes, 1 or more, after three that are not.
        batch: Images that the form expects at a time, as in `ModelDescription`.
        device: Where it is measured, on images that are there.
    """
    to_run = for_inference(model, batch=batch, device=device)
    images = {size: torch.zeros(size, *shape, device=device) for size in batches}
    with _one_thread():
        return {
            size: 1000 * median(_passes(to_run, images[size], untimed=3, timed=repeats, seconds=None))
            for size in batches
        }


def _passes(
    model: nn.Module, images: Tensor, *, untimed: int = 1, timed: int = _PASSES, seconds: float | None = _PASS_SECONDS
) -> list[float]:
    """Return the seconds of each timed pass: as many as asked for, or fewer if they take long."""
    for _ in range(untimed):
        model(images)
    taken: list[float] = []
    while len(taken) < timed and (seconds is None or sum(taken) < seconds):
        began = _now(images.device)
        model(images)
        taken.append(_now(images.device) - began)
    return taken


def _now(device: torch.device) -> float:
    """Return the seconds of a clock, on an accelerator once it has computed all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _timing(milliseconds: Sequence[float]) -> Timing:
    low, middle, high = quantiles(milliseconds, n=4, method="inclusive")
    return Timing(middle, (low, high), len(milliseconds))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
