"""The methods once more, one entry at a time, from the equations of their papers: slow, obvious, what tests trust.

An oracle draws the same ones and zeros in the same order as the layer, and does everything else in loops. Without a
generator it computes eval.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas_blockout.methods.random_masks import bernoulli_

Oracle = Callable[[nn.Module, Tensor, torch.Generator | None], Tensor]


def drawn(shape: tuple[int, ...], probability: float, generator: torch.Generator) -> Tensor:
    return bernoulli_(torch.empty(shape, dtype=torch.float64), probability, generator)


def entries(x: Tensor) -> itertools.product:
    return itertools.product(*map(range, x.shape))


def stacked(values: dict[tuple[int, ...], Tensor], like: Tensor) -> Tensor:
    return torch.stack([values[place] for place in entries(like)]).view(like.shape)


def dropout(layer: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return x
    kept = drawn(tuple(x.shape), 1 - layer.rate, generator)
    return stacked({i: x[i] / (1 - layer.rate) if kept[i] else 0 * x[i] for i in entries(x)}, x)


def spatial_dropout(layer: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return x
    kept = drawn(tuple(x.shape[:2]), 1 - layer.rate, generator)
    return stacked({i: x[i] / (1 - layer.rate) if kept[i[:2]] else 0 * x[i] for i in entries(x)}, x)


def dropconnect(layer: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    weight, bias, rate = layer.weight, layer.bias, layer.rate
    draws = len(x) if layer.masks == "sample" else 1
    shape = (draws, *weight.shape)
    kept = torch.ones(shape) if generator is None else drawn(shape, 1 - rate, generator)
    scale = 1.0 if generator is None else 1 / (1 - rate)
    rows = []
    for number, sample in enumerate(x):
        for out in range(len(weight)):
            total = bias[out]
            for source in range(len(sample)):
                if kept[number % draws, out, source]:
                    total = total + scale * weight[out, source] * sample[source]
            rows.append(total)
    return torch.stack(rows).view(len(x), len(weight))


def scaled_up(x: Tensor, kept: dict[tuple[int, ...], bool]) -> Tensor:
    """Keep the given entries, multiplied by how many there are over how many are kept."""
    scale = x.numel() / max(1, sum(kept.values()))
    return stacked({i: scale * x[i] if kept[i] else 0 * x[i] for i in entries(x)}, x)


def dropblock(layer: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Ghiasi et al., algorithm 1: each drawn corner drops a square, unless the drop rate is 0."""
    if generator is None:
        return x
    (batch, channels, height, width), block = x.shape, layer.settings.block_size
    places = (height - block + 1, width - block + 1)
    rate = layer.settings.rate * layer.ramp
    gamma = rate / block**2 * height * width / (places[0] * places[1])
    corners = drawn((batch, channels, *places), gamma, generator)
    kept = dict.fromkeys(entries(x), True)
    for n, c, row, column in entries(corners):
        if corners[n, c, row, column]:
            for down, across in itertools.product(range(block), repeat=2):
                kept[n, c, row + down, column + across] = False
    return scaled_up(x, kept)


def dropcluster(layer: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return x
    labels, settings = layer.labels, layer.settings
    clusters = settings.clusters(x.shape[2] * x.shape[3])
    samples = len(x) if settings.masks == "sample" else 1
    keep = drawn((samples, x.shape[1], clusters), 1 - settings.rate * layer.ramp, generator)
    kept = {}
    for n, c, row, column in entries(x):
        sample = n if settings.masks == "sample" else 0
        kept[n, c, row, column] = bool(keep[sample, c, labels[c, row, column]])
    return scaled_up(x, kept)


def rena(points: Tensor, clusters: int, height: int, width: int) -> list[set[int]]:
    """Recursive nearest agglomeration of one channel, in sets of positions; ties in distance are not handled."""
    groups = [{place} for place in range(height * width)]
    while len(groups) > clusters:
        means = [points[sorted(group)].mean(0) for group in groups]
        pairs = set()
        for first, group in enumerate(groups):
            beside = [other for other in range(len(groups)) if touching(group, groups[other], width)]
            nearest = min(beside, key=lambda other: float((means[first] - means[other]).square().sum()))
            pairs.add((min(first, nearest), max(first, nearest)))
        by_distance = sorted(pairs, key=lambda pair: float((means[pair[0]] - means[pair[1]]).square().sum()))
        for first, second in by_distance[: len(groups) - clusters]:
            merged = groups[first] | groups[second]
            for member, group in enumerate(groups):
                if group <= merged:
                    groups[member] = merged
        groups = [group for place, group in enumerate(groups) if group not in groups[:place]]
    return groups


def touching(first: set[int], second: set[int], width: int) -> bool:
    if first == second:
        return False
    return any(abs(a // width - b // width) + abs(a % width - b % width) == 1 for a in first for b in second)
