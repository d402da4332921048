"""A pretrained network made smaller: what is learned, beside pruning, Torch-Pruning's criteria, and a thin network.

All arms have the same seeds, images, order of images, learning rate, epochs and, where they start from them, pretrained
weights. What is derived or pruned divides the epochs between a first stage on the whole network and a second on the
smaller one, after a quarter of them. `frozen` is `blockout` whose P is not learned, `one-cluster` has no branches, and
`hard` is that of one cluster whose P is 0 or 1 from the start. Torch-Pruning's networks are trained by the loop of the
project, as all others are. `thin-long` trains the thin network for the epochs of the pretraining as well.

Run: ``python benchmarks/compress.py --weights FILE [--seeds 3] [--shares .5 .25] [--only blockout ...] [--rows FILE]``
after ``nas-blockout run compress-pretrain``, or with ``--factory benchmarks/compress.py:SmallResidual``, which is
pretrained first where there is no FILE; prints a Markdown table and writes a row a training, and goes on with the rows
that the file has already. The arms `tp-...` need Torch-Pruning, which is no dependency of the project: ``pip install
--target FOLDER torch-pruning --no-deps`` and ``PYTHONPATH=FOLDER``; without it they are left out.
"""

import argparse
import copy
import csv
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.batch_statistics import STATISTICS_IMAGES, estimate_statistics
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import Experiment, Run, build, count_macs, dense_macs, split_epochs
from nas_blockout.experiment.derivation import EVALUATION_BATCH, STAGE_SEED
from nas_blockout.export import save_weights
from nas_blockout.methods import METHODS
from nas_blockout.statistics.significance import paired, summary
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import Loaders, TrainingSettings, evaluate, fit

NETWORK = f"{Path(__file__).parents[1]}/search_spaces/studies/compress.py:resnet18"
GRADIENT_BATCHES = 8  # from which Taylor's criterion has its gradients
_BISECTIONS = 8


def _blockout(experiment: Experiment, share: float, **settings: Any) -> Experiment:
    preset = METHODS["blockout"].presets["pretrained"]
    distillation = DistillationSettings(**{**preset.distillation, "target_macs": share, "draws": 1, **settings})
    return replace(experiment, method=replace(preset.settings, cost_target=share), distillation=distillation)


def _hard(experiment: Experiment, share: float) -> Experiment:
    """Return the arm whose P is 0 or 1 from the first step, as magnitudes say: pruned before it is trained on."""
    arm = _frozen(experiment, share)
    return replace(arm, method=replace(arm.method, clusters=1, magnitude_spread=60.0, logit_noise=0.0))


def _frozen(experiment: Experiment, share: float) -> Experiment:
    """Return the arm whose P stays what the magnitudes say."""
    arm = _blockout(experiment, share)
    return replace(arm, method=replace(arm.method, structure_lr_multiplier=0.0))


def _one_cluster(experiment: Experiment, share: float) -> Experiment:
    arm = _blockout(experiment, share)
    return replace(arm, method=replace(arm.method, clusters=1, logit_noise=0.0))


def _pruned(experiment: Experiment, share: float) -> Experiment:
    return replace(experiment, pruning=PruningSettings(target_macs=share, learn_fraction=0.25))


def _thin(experiment: Experiment, share: float) -> Experiment:
    return replace(experiment, target_macs=round(share * _dense_macs(experiment)))


def _dense_macs(experiment: Experiment) -> int:
    return dense_macs(experiment, load(experiment.data))


OURS: Mapping[str, Callable[[Experiment, float], Experiment]] = {
    "dense": lambda experiment, _: experiment,
    "blockout": _blockout,
    "frozen": _frozen,
    "hard": _hard,
    "one-cluster": _one_cluster,
    "unbranched": lambda experiment, share: _blockout(experiment, share, placebo="unbranched"),
    "pruned": _pruned,
    "thin": _thin,
    "thin-long": _thin,
}
TORCH_PRUNING = {"tp-norm": "GroupMagnitudeImportance", "tp-taylor": "GroupTaylorImportance"}


@dataclass(frozen=True, slots=True)
class Row:
    """One training; accuracies in percent, `macs` as a share of those of the dense network."""

    arm: str
    target: float
    seed: int
    macs: float
    parameters: int
    validation: float
    test: float
    images: int
    epochs: int
    seconds: float


def ours(arm: str, experiment: Experiment, splits: Splits, share: float, pretraining: int) -> nn.Module:
    """Return the network of an arm of the project, trained."""
    wanted = OURS[arm](experiment, share)
    if arm == "thin-long":
        wanted = replace(wanted, training=replace(wanted.training, epochs=wanted.training.epochs + pretraining))
    run = Run(wanted, splits)
    for _ in run:
        pass
    assert run.outcome is not None, run.failure
    return run.outcome.model


def torch_pruned(arm: str, experiment: Experiment, splits: Splits, share: float) -> nn.Module:
    """Return the network that Torch-Pruning makes of the pretrained one, trained as `pruned` is."""
    first, second = split_epochs(experiment.training, _pruned(experiment, share).pruning or PruningSettings())
    loaders = Loaders(Loader(splits.train, first.batch_size), Loader(splits.validation, EVALUATION_BATCH))
    network = build(experiment, splits)
    for _ in fit(network, loaders, first, seed=experiment.seed):
        pass
    small = smaller(network, splits, share, TORCH_PRUNING[arm], seed=experiment.seed)
    generator = torch.Generator().manual_seed(experiment.seed)
    estimate_statistics(small, list(Loader(splits.train, EVALUATION_BATCH).sample(STATISTICS_IMAGES, generator)))
    for _ in fit(small, loaders, second, seed=experiment.seed + STAGE_SEED):
        pass
    return small


def smaller(network: nn.Module, splits: Splits, share: float, criterion: str, *, seed: int) -> nn.Module:
    """Return a copy with as many channels, of all layers together, as a share of the MACs allows."""
    import torch_pruning  # type: ignore[import-not-found,unused-ignore]  # no dependency of the project

    image = splits.train.images[:1]
    limit = share * count_macs(network.eval(), image)
    classes = len(splits.class_names)

    def without(ratio: float) -> nn.Module:
        copied = copy.deepcopy(network)
        last = [layer for layer in copied.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
        pruner = torch_pruning.pruner.BasePruner(
            copied,
            image,
            importance=getattr(torch_pruning.importance, criterion)(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=last,
        )
        if criterion == TORCH_PRUNING["tp-taylor"]:
            generator = torch.Generator().manual_seed(seed)
            for number, (x, y) in enumerate(Loader(splits.train, 64).batches(generator)):
                if number == GRADIENT_BATCHES:
                    break
                F.cross_entropy(copied(x), y).backward()
        pruner.step()
        copied.zero_grad()
        return copied.eval()

    low, high = 0.0, 0.95
    for _ in range(_BISECTIONS):  # the smallest ratio that meets the limit
        middle = (low + high) / 2
        low, high = (low, middle) if count_macs(without(middle), image) <= limit else (middle, high)
    return without(high)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, source: int, target: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(target)
        self.second = nn.Conv2d(target, target, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(target)
        self.short: nn.Module = nn.Identity()
        if source != target or stride != 1:
            self.short = nn.Sequential(nn.Conv2d(source, target, 1, stride, bias=False), nn.BatchNorm2d(target))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, rectified."""
        inside = self.norm1(self.first(x)).relu()
        return (self.short(x) + self.norm2(self.second(inside))).relu()  # type: ignore[no-any-return]  # of modules


class SmallResidual(nn.Module):
    """Five blocks of 16 to 64 channels for gray images: what takes a tenth of the time of a ResNet-18 to compare."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        sides = ((1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1))
        self.blocks = nn.Sequential(*(Block(source * width, target * width, step) for source, target, step in sides))
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, 1, height, width)``."""
        x = self.blocks(self.norm(self.stem(x)).relu())
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # calls of modules are untyped


def pretrain(data: DataSettings, backbone: ModuleSettings, epochs: int, path: Path) -> None:
    """Train a network from initial weights and write its weights."""
    run = Run(Experiment(data, backbone, training=TrainingSettings(epochs=epochs), seed=100), load(data))
    for _ in run:
        pass
    assert run.outcome is not None, run.failure
    save_weights(run.outcome.model, path)


def row_of(arm: str, experiment: Experiment, splits: Splits, share: float, pretraining: int) -> Row:
    """Train an arm; test images are read once, of the network that it ends in."""
    began = time.perf_counter()
    network = (
        torch_pruned(arm, experiment, splits, share)
        if arm in TORCH_PRUNING
        else ours(arm, experiment, splits, share, pretraining)
    )
    validation, test = (
        100 * evaluate(network, Loader(part, 512)).accuracy for part in (splits.validation, splits.test())
    )
    macs = count_macs(network.eval(), splits.train.images[:1]) / dense_macs(experiment, splits)
    return Row(
        arm,
        share,
        experiment.seed,
        round(macs, 4),
        sum(parameter.numel() for parameter in network.parameters()),
        round(validation, 3),
        round(test, 3),
        len(splits.train),
        experiment.training.epochs,
        round(time.perf_counter() - began, 1),
    )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the Markdown table; differences are to blockout at the same share, paired by seed."""
    yield "| MACs at most | arm | MACs | weights | validation, % | test, % | n | blockout - arm, test (95%) |"
    yield "|---|---|---|---|---|---|---|---|"
    for target, arm in dict.fromkeys((row.target, row.arm) for row in rows):
        found = {row.seed: row for row in rows if (row.target, row.arm) == (target, arm)}
        learned = {row.seed: row.test for row in rows if (row.arm, row.target) == ("blockout", target)}
        test = {seed: row.test for seed, row in found.items()}
        both = sorted(learned.keys() & test.keys()) if arm != "blockout" else []
        said = ""
        if both:
            said = f"{sum(learned[seed] - test[seed] for seed in both) / len(both):+.2f}"
        if len(both) > 1:
            ci95 = paired({seed: learned[seed] for seed in both}, {seed: test[seed] for seed in both}).ci95
            said += f" ({ci95[0]:+.2f} to {ci95[1]:+.2f})" if ci95 else ""
        mean = {
            name: sum(getattr(row, name) for row in found.values()) / len(found)
            for name in ("macs", "parameters", "validation")
        }
        about = summary(test)
        spread = f" ({about.ci95[0]:.2f} to {about.ci95[1]:.2f})" if about.ci95 else ""
        yield (
            f"| {target:g} | {arm} | {mean['macs']:.3f} | {mean['parameters']:,.0f} | {mean['validation']:.2f} "
            f"| {about.mean:.2f}{spread} | {len(found)} | {said} |"
        )


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{name: Row.__dataclass_fields__[name].type(value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the trainings to a CSV file, one a row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="pretrained weights; trained if there are none")
    parser.add_argument("--factory", default=NETWORK, help="what makes the network")
    parser.add_argument("--data", default="glyphs", help="a source of images")
    parser.add_argument("--samples", type=int, default=3760, help="training images")
    parser.add_argument("--validation", type=int, default=1880, help="validation images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pretraining", type=int, default=10, help="epochs of the pretraining")
    parser.add_argument("--pretraining-samples", type=int, default=3760, help="training images of the pretraining")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="of the dense MACs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arms = [*OURS, *TORCH_PRUNING]
    parser.add_argument("--only", nargs="+", choices=arms, default=arms, help="arms")
    parser.add_argument("--rows", type=Path, help="CSV file for the trainings, one a row")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every arm with every seed and print the table."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    names = list(options.only)
    if importlib.util.find_spec("torch_pruning") is None:
        names = [name for name in names if name not in TORCH_PRUNING]
        print("Torch-Pruning is not installed: its arms are left out\n")
    elif set(names) & set(TORCH_PRUNING):
        print(f"Torch-Pruning {version('torch-pruning')}\n")
    data = DataSettings(options.data, train_samples=options.samples, validation_samples=options.validation)
    splits = load(data)
    training = TrainingSettings(epochs=options.epochs, learning_rate=options.learning_rate)
    backbone = ModuleSettings(options.factory, weights=str(options.weights))
    if not options.weights.exists():
        whole = replace(data, train_samples=options.pretraining_samples)
        pretrain(whole, replace(backbone, weights=None), options.pretraining, options.weights)
    rows = read(options.rows) if options.rows and options.rows.exists() else []
    for seed in options.seeds:
        experiment = Experiment(data, backbone, training=training, seed=seed)
        for arm, share in [(arm, share) for share in options.shares for arm in names]:
            share = 1.0 if arm == "dense" else share
            if any((row.arm, row.target, row.seed) == (arm, share, seed) for row in rows):
                continue
            rows.append(row_of(arm, experiment, splits, share, options.pretraining))
            print(rows[-1], flush=True)
            if options.rows:
                write(rows, options.rows)
    print("", *table(rows), sep="\n")


if __name__ == "__main__":
    main()
