"""What the statistics of batch normalization cost an evaluation: as training gathers them, and estimated for it.

Every training is scored in all ways at once, since none of them changes a training step: with the running statistics of
training (``running``), with a second set that is kept for evaluation while training goes on (``second set``), and
estimated after the last epoch from 125 to 1,500 training images; all against those of all training images.

Run: ``python -m benchmarks.evaluation_statistics [--study glyphs] [--seeds 8] [--arms dropout dense] [--csv FILE]``
for Markdown tables, or with ``--time`` for what an estimate costs: epochs with and without it in turns.
"""

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nas_blockout.batch_statistics import (
    STATISTICS_IMAGES,
    estimate_statistics,
    estimated_statistics,
    normalizations,
)
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import EVALUATION_BATCH, Experiment
from nas_blockout.experiment.builder import build
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.training import Loaders, TrainingSettings, evaluate, fit
from services.study_config.resolution import read, resolve
from services.study_config.yaml_reader import bundled

SIZES = (125, 250, 500, 1000, 2000, 3500)
BEFORE, SECOND, NOW, REFERENCE = "running", "second set", "3500", "all"
WAYS = (BEFORE, SECOND, *map(str, SIZES), REFERENCE)
DEFAULT_ARMS = ("dense", "dropout", "dropblock", "dropcluster", "hard-fixed", "blockout", "blockout-soft")


@dataclass(frozen=True, slots=True)
class Row:
    """One trained network, scored in one way: accuracies in [0, 1]."""

    arm: str
    seed: int
    statistics: str
    validation_accuracy: float
    test_accuracy: float


class SecondSet:
    """A second set of statistics, updated by passes without noise while training goes on, at the cost of an estimate.

    Stands for the training images: after as many batches as there are between two updates, the batch that comes next
    also passes through the network in eval mode. Each update has a weight of a tenth, as in training.
    """

    def __init__(self, loader: Loader, model: nn.Module) -> None:
        self.loader, self.model = loader, model
        self.every = max(1, len(loader) // STATISTICS_IMAGES)
        self.values: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the loader, and update the second set at every so many of them."""
        for number, (x, y) in enumerate(self.loader.batches(generator, first)):
            if number % self.every == 0:
                self._update(x)
            yield x, y

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Return a sample of the loader."""
        return self.loader.sample(images, generator)

    def _update(self, x: Tensor) -> None:
        with estimated_statistics(self.model, [x]):
            new = [(mean.clone(), variance.clone()) for mean, variance in current(self.model)]
        if not self.values:
            self.values = new
        for old, latest in zip(self.values, new, strict=True):
            for value, target in zip(old, latest, strict=True):
                value.lerp_(target, 0.1)


def current(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mean and variance of every normalization layer; they are the layer's own."""
    for norm in normalizations(model):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        yield norm.running_mean, norm.running_var


def experiments(study: str, arms: Sequence[str]) -> Mapping[str, Experiment]:
    """Return the experiments of arms of a bundled study: one stage, with the settings that the file gives."""
    resolved = resolve(read(bundled()[study]), source=study)
    return {arm: replace(resolved.arms[arm].experiment, distillation=None, target_macs=None) for arm in arms}


def trained(experiment: Experiment, splits: Splits) -> tuple[nn.Module, SecondSet]:
    """Train a network with running statistics; return it and the second set."""
    model = build(experiment, splits)
    settings = replace(experiment.training, evaluation_statistics="running")
    train = SecondSet(Loader(splits.train, settings.batch_size, augment=experiment.data.augment), model)
    loaders = Loaders(train, Loader(splits.validation, EVALUATION_BATCH))
    *_, last = fit(model, loaders, settings, seed=experiment.seed)
    assert last.failure is None, last.failure
    return model, train


def scored(arm: str, experiment: Experiment, splits: Splits) -> Iterator[Row]:
    """Train once and yield the scores of every way."""
    model, second = trained(experiment, splits)
    validation, test = Loader(splits.validation, EVALUATION_BATCH), Loader(splits.test(), EVALUATION_BATCH)
    images = Loader(splits.train, EVALUATION_BATCH)

    def row(way: str) -> Row:
        return Row(arm, experiment.seed, way, evaluate(model, validation).accuracy, evaluate(model, test).accuracy)

    yield row(BEFORE)
    with estimated_statistics(model, []):
        for (mean, variance), (new_mean, new_variance) in zip(current(model), second.values, strict=True):
            mean.copy_(new_mean)
            variance.copy_(new_variance)
        yield row(SECOND)
    generator = torch.Generator().manual_seed(experiment.seed)
    for size in (*SIZES, len(images)):
        with estimated_statistics(model, list(images.sample(size, generator))):
            yield row(REFERENCE if size == len(images) else str(size))


def summary(values: Sequence[float], digits: int = 2) -> str:
    """Return mean and standard deviation of values in points."""
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.{digits}f} ({sd:.{digits}f})"


def print_tables(rows: Sequence[Row]) -> None:
    """Print what each way differs from all training images, and what the change of scoring was worth to each arm."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    points = {
        (row.arm, row.statistics, row.seed): (100 * row.validation_accuracy, 100 * row.test_accuracy) for row in rows
    }
    seeds = sorted({row.seed for row in rows})
    print(f"\nValidation points against the statistics of all training images, mean (sd), n = {len(seeds)}\n")
    print(f"| arm | {' | '.join(WAYS[:-1])} |\n|---|{'---|' * (len(WAYS) - 1)}")
    for arm in arms:
        cells = [
            summary([points[arm, way, seed][0] - points[arm, REFERENCE, seed][0] for seed in seeds])
            for way in WAYS[:-1]
        ]
        print(f"| {arm} | {' | '.join(cells)} |")
    print(f"\nTest %, mean (sd), n = {len(seeds)}\n\n| arm | before | now | now minus before |\n|---|---|---|---|")
    for arm in arms:
        before, now = ([points[arm, way, seed][1] for seed in seeds] for way in (BEFORE, NOW))
        change = summary([b - a for a, b in zip(before, now, strict=True)])
        print(f"| {arm} | {summary(before).lstrip('+')} | {summary(now).lstrip('+')} | {change} |")


def print_times(experiment: Experiment, splits: Splits, rounds: int) -> None:
    """Print what an estimate adds to an epoch: epochs with and without it, in turns, in one process."""
    model = build(experiment, splits)
    train = Loader(splits.train, experiment.training.batch_size, augment=experiment.data.augment)
    loaders = Loaders(train, Loader(splits.validation, EVALUATION_BATCH))
    seconds: dict[str, list[float]] = {"running": [], "estimated": []}
    for number in range(rounds + 1):
        for way in ("running", "estimated"):
            settings = TrainingSettings(epochs=1, evaluation_statistics=way)
            began = time.perf_counter()
            list(fit(model, loaders, settings, seed=number))
            if number:  # the first round warms up
                seconds[way].append(time.perf_counter() - began)
    ratios = [after / before for before, after in zip(*seconds.values(), strict=True)]
    generator, alone = torch.Generator(), []
    for _ in range(rounds):
        began = time.perf_counter()
        estimate_statistics(model, train.sample(STATISTICS_IMAGES, generator))
        alone.append(time.perf_counter() - began)
    epoch = statistics.median(seconds["running"])
    print(
        f"epoch of {len(train):,} images: {epoch:.2f} s; with an estimate {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} .. {max(ratios):.3f}) times that, n = {rounds}; the estimate alone "
        f"{statistics.median(alone):.3f} s, {statistics.median(alone) / epoch:.1%}"
    )


def main() -> None:
    """Print the tables, or with --time the cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="fashion-mnist", help="bundled study whose arms are trained")
    parser.add_argument("--arms", nargs="+", default=DEFAULT_ARMS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--images", type=int, help="training images; default: the study's")
    parser.add_argument("--hidden", type=int, nargs="*", help="widths of the hidden layers of the head")
    parser.add_argument("--csv", type=Path, help="write the raw rows here")
    parser.add_argument("--time", type=int, metavar="ROUNDS", help="only measure what an estimate costs an epoch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded: dict[DataSettings, Splits] = {}
    rows: list[Row] = []
    for arm, experiment in experiments(options.study, options.arms).items():
        if options.images:
            experiment = replace(experiment, data=replace(experiment.data, train_samples=options.images))
        if options.hidden:
            experiment = replace(experiment, backbone=replace(experiment.backbone, hidden=tuple(options.hidden)))
        splits = loaded.setdefault(experiment.data, loaded.get(experiment.data) or load(experiment.data))
        if options.time:
            kind = "blockout" if isinstance(experiment.method, BlockoutSettings) else "no masks"
            print(f"{arm} ({kind}): ", end="", flush=True)
            print_times(experiment, splits, options.time)
            continue
        for seed in range(options.seeds):
            rows += scored(arm, replace(experiment, seed=seed), splits)
            print(f"{arm}, seed {seed}: done", file=sys.stderr, flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row.__slots__)
            writer.writerows([getattr(row, name) for name in Row.__slots__] for row in rows)
    if rows:
        print_tables(rows)


if __name__ == "__main__":
    main()
