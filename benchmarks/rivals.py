"""Every rival once against an independent implementation, on equal terms: is ours what papers and libraries have?

Ours is trained by the project's own code. The independent side is a network written here in plain PyTorch, with the
method of torch, torchvision or Torch-Pruning, or written by hand, in the place that its paper names, in a training loop
of its own. Equal are: the initial weights, the order of the images, optimizer, learning rates, epochs, and the
evaluation, for which the statistics of batch normalization are estimated anew on all training images with the method
off. The masks differ. `none` is the control: both sides have to agree to the last image.

Run: ``python benchmarks/rivals.py [--data digits] [--seeds 8] [--only dropout ...] [--rows rivals.csv]``; prints a
Markdown table and writes a row a training. Nothing is selected, so the accuracy is over validation and test images
together. `pruned` needs Torch-Pruning, which is no dependency of the project: ``pip install --target FOLDER
torch-pruning --no-deps`` and ``PYTHONPATH=FOLDER``; without it that row is left out.
"""

import argparse
import copy
import csv
import importlib.util
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import Experiment, Run, build, count_macs, split_epochs
from nas_blockout.experiment.derivation import STAGE_SEED
from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.methods import method_from_json
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings

EPOCH_STRIDE = 1_000_003  # between the seeds of the orders of two epochs, as in `nas_blockout.training`
MASK_SEED = 1_000_000_007  # keeps the masks of the independent side apart from its initial weights
CALIBRATION_IMAGES = 128


class Scheduled(nn.Module):
    """A layer that is told of every epoch, and may ask to see training images in eval mode."""

    asks = False

    def prepare(self, epoch: int, epochs: int) -> None:
        """Take note of an epoch, counted from 0."""


class RampedDropBlock(Scheduled):
    """torchvision's DropBlock, its rate raised from epoch to epoch, as ours is by default."""

    def __init__(self, rate: float, block_size: int) -> None:
        super().__init__()
        self.rate, self.layer = rate, torchvision.ops.DropBlock2d(rate, block_size)

    def prepare(self, epoch: int, epochs: int) -> None:
        self.layer.p = self.rate * (epoch + 1) / epochs

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.layer(x)
        return dropped


class DropConnectByHand(nn.Linear):
    """A mask for every sample and weight, one after the other; Wan et al. 2013, with the mean weights in eval."""

    rate = 0.5

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        rows = [F.linear(sample, F.dropout(self.weight, self.rate), self.bias) for sample in x]
        return torch.stack(rows)


class DropClusterByHand(Scheduled):
    """Clusters by scikit-learn's k-means, one channel after the other, dropped for every sample on their own."""

    def __init__(self, rate: float = 0.1, cluster_size: float = 10.0, every: int = 2, ramp: int = 4) -> None:
        super().__init__()
        self.rate, self.cluster_size, self.every, self.ramp = rate, cluster_size, every, ramp
        self.now, self.labels = 0.0, torch.empty(0, 0, dtype=torch.int64)

    def prepare(self, epoch: int, epochs: int) -> None:
        self.now, self.asks = self.rate * min(1.0, (epoch + 1) / self.ramp), epoch % self.every == 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            if self.asks:
                self.labels, self.asks = self._clustered(x), False
            return x
        batch, channels = x.shape[:2]
        kept = (torch.rand(batch, channels, int(self.labels.max()) + 1) >= self.now).to(x.dtype)
        mask = kept.gather(2, self.labels.expand(batch, -1, -1)).view_as(x)
        return x * mask * (mask.numel() / mask.sum())

    def _clustered(self, activations: Tensor) -> Tensor:
        from sklearn.cluster import KMeans

        labels = []
        for maps in activations.flatten(2).unbind(1):  # of one channel: (images, positions)
            centered = maps - maps.mean(0)
            length = centered.norm(dim=0)
            described = torch.where(length > 1e-6 * length.max().clamp_min(1e-30), centered / length, 0.0).t()
            clusters = max(1, round(len(described) / self.cluster_size))
            with warnings.catch_warnings():  # dead channels have fewer different positions than clusters
                warnings.simplefilter("ignore")
                labels.append(KMeans(clusters, n_init=1, random_state=0).fit_predict(described.numpy()))
        return torch.stack([torch.from_numpy(each) for each in labels]).to(torch.int64)


@dataclass(frozen=True)
class Places:
    """What enters the independent network, and where.

    Args:
        maps: Makes the layer after the ReLU of a convolution.
        last_maps: Of how many of the last convolutions.
        features: Makes the layer after the pooling.
        hidden: Makes the layer after the ReLU of a hidden layer.
        linear: Makes a hidden layer's weights.
    """

    maps: Callable[[], nn.Module] = nn.Identity
    last_maps: int = 99
    features: Callable[[], nn.Module] = nn.Identity
    hidden: Callable[[], nn.Module] = nn.Identity
    linear: Callable[..., nn.Linear] = nn.Linear


class Independent(nn.Module):
    """The convnet of the project, written anew: its state has the same values in the same order."""

    def __init__(self, channels: int, settings: ConvNetSettings, classes: int, places: Places) -> None:
        super().__init__()
        convolutions, hidden = settings.channels, settings.hidden
        self.weighted = nn.ModuleList()
        for before, after in zip((channels, *convolutions), convolutions, strict=False):
            self.weighted += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        for before, after in zip((convolutions[-1], *hidden), hidden, strict=False):
            self.weighted += [places.linear(before, after, bias=False), nn.BatchNorm1d(after)]
        self.weighted.append(nn.Linear((*convolutions, *hidden)[-1], classes))
        first = len(convolutions) - places.last_maps
        self.maps = nn.ModuleList(places.maps() if n >= first else nn.Identity() for n in range(len(convolutions)))
        self.features = places.features()
        self.hidden = nn.ModuleList(places.hidden() for _ in hidden)

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(self.weighted)
        for number, after in enumerate(self.maps, 1):
            x = after(F.relu(_normalized(layers, x)))
            if number < len(self.maps) and min(x.shape[2:]) >= 4:
                x = F.max_pool2d(x, 2)
        x = self.features(x.mean((2, 3)))
        for after in self.hidden:
            x = after(F.relu(_normalized(layers, x)))
        logits: Tensor = next(layers)(x)
        return logits


def _normalized(layers: Iterator[nn.Module], x: Tensor) -> Tensor:
    weighted, norm = next(layers), next(layers)
    y: Tensor = norm(weighted(x))
    return y


def taken_over(network: Independent, ours: nn.Module) -> Independent:
    """Give the independent network the initial weights of ours."""
    names = [name for name in network.state_dict() if name.startswith("weighted.")]
    network.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)), strict=False)
    return network


def trained(network: nn.Module, splits: Splits, training: TrainingSettings, seed: int) -> nn.Module:
    """Train by AdamW, in a loop of its own."""
    parameters = list(network.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
    loader = Loader(splits.train, training.batch_size)
    steps = math.ceil(len(splits.train) / training.batch_size)
    drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[:CALIBRATION_IMAGES]
    for epoch in range(training.epochs):
        layers = [layer for layer in network.modules() if isinstance(layer, Scheduled)]
        for layer in layers:
            layer.prepare(epoch, training.epochs)
        if any(layer.asks for layer in layers):
            with torch.no_grad():
                network.eval()(splits.train.images[drawn])
        network.train()
        order = torch.Generator().manual_seed(seed + EPOCH_STRIDE * (epoch + 1))
        for step, (x, y) in enumerate(loader.batches(order)):
            done = (epoch + step / steps) / training.epochs
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1.0
                group["lr"] = training.learning_rate * decay
            loss = F.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


@torch.no_grad()
def accuracy(network: nn.Module, splits: Splits, seed: int) -> float:
    """Return the accuracy in percent over validation and test images, with statistics of all training images."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for x, _ in Loader(splits.train, 256).batches(torch.Generator().manual_seed(seed)):
        network(x)
    network.eval()
    hits = total = 0
    for part in (splits.validation, splits.test()):
        for x, y in Loader(part, 512).batches():
            hits, total = hits + int((network(x).argmax(1) == y).sum()), total + len(y)
    return 100 * hits / total


@dataclass(frozen=True)
class Rival:
    """A rival on both sides.

    Args:
        settings: Of our method.
        implementation: The independent one, in words.
        package: Where it is from, for the version.
        places: What enters the independent network.
        pruning: Of our second stage; its independent side is Torch-Pruning's.
    """

    settings: Mapping[str, Any]
    implementation: str
    package: str
    places: Places = field(default_factory=Places)
    pruning: PruningSettings | None = None


RIVALS: Mapping[str, Rival] = {
    "none": Rival({"name": "none"}, "no method, plain PyTorch", "torch"),
    "dropout": Rival({"name": "dropout", "rate": 0.5}, "`nn.Dropout`", "torch", Places(hidden=lambda: nn.Dropout(0.5))),
    "dropout, version 1": Rival(
        {"name": "dropout", "rate": 0.5, "placement": "all"},
        "`nn.Dropout`, pooled features as well",
        "torch",
        Places(features=lambda: nn.Dropout(0.5), hidden=lambda: nn.Dropout(0.5)),
    ),
    "dropconnect": Rival(
        {"name": "dropconnect", "rate": 0.5},
        "by hand, `F.dropout` of the weights for every sample",
        "torch",
        Places(linear=DropConnectByHand),
    ),
    "spatial_dropout": Rival(
        {"name": "spatial_dropout", "rate": 0.1},
        "`nn.Dropout2d`",
        "torch",
        Places(maps=lambda: nn.Dropout2d(0.1), last_maps=1),
    ),
    "dropblock": Rival(
        {"name": "dropblock", "rate": 0.1, "block_size": 3},
        "`torchvision.ops.DropBlock2d`",
        "torchvision",
        Places(maps=lambda: RampedDropBlock(0.1, 3), last_maps=2),
    ),
    "dropcluster": Rival(
        {"name": "dropcluster", "rate": 0.1},
        "by hand, scikit-learn's `KMeans` by channel",
        "scikit-learn",
        Places(maps=DropClusterByHand),
    ),
    "pruned": Rival(
        {"name": "none"},
        "`BasePruner` with `GroupMagnitudeImportance`",
        "torch-pruning",
        pruning=PruningSettings(target_macs=0.5),
    ),
}


def pruned(network: nn.Module, splits: Splits, share: float) -> nn.Module:
    """Return the network with as many nodes as a share of its MACs allows: the ones of largest group magnitude."""
    import torch_pruning  # type: ignore[import-not-found,unused-ignore]  # no dependency of the project

    image = splits.train.images[:1]
    limit = share * count_macs(network.eval(), image)

    def without(nodes: int, total: int) -> nn.Module:
        copied = copy.deepcopy(network)
        pruner = torch_pruning.pruner.BasePruner(
            copied,
            image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            global_pruning=True,
            pruning_ratio=nodes / total,
            ignored_layers=[copied.weighted[-1]],
        )
        pruner.step()
        return copied.eval()

    total = sum(layer.weight.shape[0] for layer in network.weighted[:-1:2])
    low, high = 0, total - 1
    while high - low > 1:  # the fewest nodes to remove
        middle = (low + high) // 2
        low, high = (low, middle) if count_macs(without(middle, total), image) <= limit else (middle, high)
    return without(high, total)


@dataclass(frozen=True)
class Row:
    """One training."""

    data: str
    rival: str
    side: str
    seed: int
    accuracy: float
    seconds: float


def rows_of(rival: str, experiment: Experiment, splits: Splits) -> Iterator[Row]:
    """Train both sides of a rival with the seed of the experiment."""
    entry, seed, began = RIVALS[rival], experiment.seed, time.perf_counter()

    def row(side: str, network: nn.Module) -> Row:
        seconds = time.perf_counter() - began
        return Row(experiment.data.name, rival, side, seed, accuracy(network, splits, seed), seconds)

    initial = build(experiment, splits)  # without a method
    classes = len(splits.class_names)
    network = taken_over(Independent(splits.shape[0], experiment.backbone, classes, entry.places), initial)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + MASK_SEED)
        if entry.pruning is None:
            independent = trained(network, splits, experiment.training, seed)
        else:
            first, second = split_epochs(experiment.training, entry.pruning)
            dense = trained(network, splits, first, seed)
            independent = trained(pruned(dense, splits, entry.pruning.target_macs), splits, second, seed + STAGE_SEED)
    yield row("independent", independent)
    began = time.perf_counter()
    method = method_from_json(entry.settings)
    run = Run(
        Experiment(experiment.data, experiment.backbone, method, experiment.training, seed=seed, pruning=entry.pruning),
        splits,
    )
    for _ in run:
        pass
    assert run.outcome is not None, run.failure
    yield row("ours", run.outcome.model)


def table(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the Markdown table."""
    from scipy.stats import t

    yield "| rival | independent implementation | independent, % (sd) | ours, % (sd) | n | ours - independent (95%) |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        sides = {side: [r for r in rows if (r.rival, r.side) == (name, side)] for side in ("independent", "ours")}
        theirs, ours = ([r.accuracy for r in sides[side]] for side in ("independent", "ours"))
        differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
        count = len(differences)
        words = [_mean_and_deviation(values) for values in (theirs, ours)]
        mean = f"{statistics.mean(differences):+.2f}"
        if count > 1:
            margin = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
            mean += f" ({statistics.mean(differences) - margin:+.2f} .. {statistics.mean(differences) + margin:+.2f})"
        entry = RIVALS[name]
        source = f"{entry.implementation} ({entry.package} {version(entry.package)})"
        yield f"| {name} | {source} | {words[0]} | {words[1]} | {count} | {mean} |"


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the trainings to a CSV file, one a row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows([r.data, r.rival, r.side, r.seed, round(r.accuracy, 4), round(r.seconds, 1)] for r in rows)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a source of images")
    parser.add_argument("--samples", type=int, default=400, help="training images")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS), help="rivals")
    parser.add_argument("--rows", type=Path, help="CSV file for the trainings, one a row")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both sides of every rival with every seed and print the table."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    names = list(options.only)
    if "pruned" in names and importlib.util.find_spec("torch_pruning") is None:
        print("pruned is left out: Torch-Pruning is not installed\n")
        names.remove("pruned")
    data = DataSettings(options.data, train_samples=options.samples)
    splits = load(data)
    training = TrainingSettings(epochs=options.epochs, learning_rate=options.learning_rate)
    backbone = ConvNetSettings(tuple(options.channels), tuple(options.hidden))
    rows: list[Row] = []
    for seed in range(options.seeds):
        for name in names:
            for row in rows_of(name, Experiment(data, backbone, training=training, seed=seed), splits):
                rows.append(row)
                print(f"{row.rival} {row.side} {seed}: {row.accuracy:.2f}% {row.seconds:.1f} s", flush=True)
        if options.rows:
            write(rows, options.rows)
    print("", *table(rows, names), sep="\n")


if __name__ == "__main__":
    main()
