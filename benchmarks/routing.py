"""One path an image: a small router names a group of classes, and only what serves these is run.

A network with learned branches is cut to each of several groups of classes (`nas_blockout.experiment.subset_of`),
without training. Groups are those of average linkage over the share of the last hidden nodes that classes share.
The router is a logistic regression on the features that enter the head, fitted on the training images; its weights and
those of the whole trunk count for every image. Beside it: random groups of the same sizes (placebo), and the same
recipe with smaller targets, which runs all of a smaller network for every image.

Validation images only: hypotheses, not verdicts.

Run: ``python -m benchmarks.routing [--data digits] [--recipe NAME...] [--target .3 .2] [--seeds 0 1]``; prints a table.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import cast

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.branching import experiment_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.data import Loader, Splits, load
from nas_blockout.data.loader import AnyPart
from nas_blockout.experiment import Experiment, Run, subset_of

RECIPES = ("disjoint 3 + to .5 late", "disjoint 5 + to .5 late")
PARTS = (2, 3, 5)
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What one way of running a network costs an image on average, and its accuracy."""

    recipe: str
    target: float
    way: str
    accuracy: float
    routed: float | None
    parameters: float
    macs: float


@dataclass(frozen=True, slots=True)
class Images:
    """Features that enter the head, logits of the whole network, labels."""

    features: Tensor
    logits: Tensor
    labels: Tensor


def rows_of(data: str, recipe: str, target: float, seed: int, splits: Splits) -> Iterator[Row]:
    """Train one network; yield the row of the whole one and those of its parts."""
    document = experiment_of(data, recipe, target=target, epochs=None, seed=seed)
    run = Run(Experiment.from_json(document), splits)
    for _ in run:
        pass
    assert run.outcome is not None
    network = cast(BranchedNetwork, run.outcome.model).eval()
    training, validation = (_images(network, split) for split in (splits.train, splits.validation))
    whole, macs = _head(network), run.outcome.macs
    trunk = sum(p.numel() for p in network.parameters()) - whole
    found = (validation.logits.argmax(1) == validation.labels).float().mean().item()
    yield Row(recipe, target, "whole", found, None, trunk + whole, macs)
    classes = len(splits.class_names)
    for parts in PARTS:
        groups = _grouped(network, classes, parts)
        for way, chosen in (("learned", groups), ("random", _shuffled(groups, classes, seed))):
            heads = [
                _head(subset_of(network, splits.shape, classes, group).network) if len(group) > 1 else 0
                for group in chosen
            ]
            router = training.features.shape[1] * len(chosen)
            taken = _route(training, chosen).predict(_scaled(training, validation))
            names = _names(chosen, classes)
            right = _right(validation, chosen, taken)
            head = mean(heads[group] for group in taken)
            routed = float((names[validation.labels.numpy()] == taken).mean())
            yield Row(
                recipe, target, f"{len(chosen)} {way} groups", right, routed, trunk + router + head,
                macs - whole + router + head,
            )  # fmt: skip


def _images(network: BranchedNetwork, split: AnyPart) -> Images:
    entered: list[Tensor] = []
    first = next(stage for name, stage in network.stages.items() if name.startswith("hidden"))
    hook = first.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].flatten(1)))
    logits, labels = [], []
    with torch.no_grad():
        for x, y in Loader(split, 256).batches():
            logits.append(network(x))
            labels.append(y)
    hook.remove()
    return Images(torch.cat(entered), torch.cat(logits), torch.cat(labels))


def _head(network: nn.Module) -> int:
    """Count the weights of fully connected layers: as many multiply-accumulates as an image needs there."""
    return sum(p.numel() for p in network.parameters() if p.dim() == 2)


def _grouped(network: BranchedNetwork, classes: int, parts: int) -> Groups:
    layer, last = network.architecture.layers[-1], network.architecture.layers[-2]
    columns = []
    for group in last.groups:
        reached = {label for other in layer.groups if other.overlap(group) for label in other.classes or ()}
        columns += [[number in reached for number in range(classes)]] * group.width
    served = np.asarray(columns, dtype=bool).T
    both = (served[:, None] & served[None]).sum(2)
    either = np.maximum((served[:, None] | served[None]).sum(2), 1)
    distances = squareform(1 - both / either, checks=False)
    found = fcluster(linkage(distances, "average"), parts, "maxclust")
    return tuple(tuple(np.flatnonzero(found == part).tolist()) for part in np.unique(found))


def _shuffled(groups: Groups, classes: int, seed: int) -> Groups:
    order = np.random.default_rng(seed).permutation(classes).tolist()
    sizes = np.cumsum([0, *map(len, groups)])
    return tuple(tuple(sorted(order[a:b])) for a, b in pairwise(sizes))


def _names(groups: Groups, classes: int) -> np.ndarray:
    names = np.zeros(classes, dtype=int)
    for number, group in enumerate(groups):
        names[list(group)] = number
    return names


def _scaled(training: Images, images: Images) -> np.ndarray:
    return cast(np.ndarray, StandardScaler().fit(training.features.numpy()).transform(images.features.numpy()))


def _route(training: Images, groups: Groups) -> LogisticRegression:
    names = _names(groups, training.logits.shape[1])
    router = LogisticRegression(C=0.1, max_iter=1000)
    return router.fit(_scaled(training, training), names[training.labels.numpy()])


def _right(images: Images, groups: Groups, taken: Sequence[int]) -> float:
    """Return the accuracy where each image is told apart within the group that it was sent to alone."""
    allowed = torch.zeros(len(groups), images.logits.shape[1])
    for number, group in enumerate(groups):
        allowed[number, list(group)] = 1
    logits = images.logits.masked_fill(allowed[torch.as_tensor(taken)] == 0, -torch.inf)
    return (logits.argmax(1) == images.labels).float().mean().item()


def main() -> None:
    """Train, route, and print the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipe", nargs="+", default=list(RECIPES))
    parser.add_argument("--target", type=float, nargs="+", default=[0.3, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = load(Experiment.from_json(experiment_of(options.data, "dense", target=1, epochs=None, seed=0)).data)
    print("| recipe | target | run | seeds | accuracy % | sd | right group % | active parameters | active MACs |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for recipe in options.recipe:
        for target in options.target:
            found = [list(rows_of(options.data, recipe, target, seed, splits)) for seed in options.seeds]
            for rows in zip(*found, strict=True):
                _print(rows)


def _print(rows: Sequence[Row]) -> None:
    accuracies, routed = [row.accuracy for row in rows], [row.routed for row in rows if row.routed is not None]
    cells = [
        *(rows[0].recipe, str(rows[0].target), rows[0].way, str(len(rows))),
        *(f"{mean(accuracies):.2%}", f"{np.std(accuracies, ddof=1):.2%}", f"{mean(routed):.1%}" if routed else ""),
        *(f"{mean(row.parameters for row in rows):,.0f}", f"{mean(row.macs for row in rows):,.0f}"),
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
