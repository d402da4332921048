"""BlockDrop on Fashion-MNIST and its ablations: accuracy, blocks, FLOPs, inference time, and figures.

Run: ``python benchmarks/blockdrop_fashion.py [--seeds 0 1 2] [--rows docs/results/blockdrop.csv]``; about 8 minutes per
seed on one core. Writes a row for each arm and seed as soon as it is measured; draws the figures of the first seed.

Images are halved to 14x14 pixels, means of 2x2, so that three seeds take less than half an hour. A ResNet-32 of half
width is trained with all blocks once per seed. Each arm starts from a copy of it and trains for the same number of
epochs: learned policies train first the policy alone, then both; the ablations train the network on their fixed path,
which keeps as many blocks as BlockDrop does on average. Each arm is tested once, after its last epoch; nothing is
selected. Times are of one thread, on test images after one warm-up pass, alternating with the full network: wall-clock
and CPU time.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import torch
from blockdrop import KEEP_MEMORY, Row, saving, seconds_of, write
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.data import DataSettings, Loader, Part, load
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from nas_blockout.methods.paths.block_routing import (
    path_statistics,
)
from nas_blockout.training import Loaders, TrainingSettings, fit

BATCHES = {1: 60, 8: 30, 64: 9, 256: 5}  # images a batch: rounds
COMMON = BlockDropSettings(
    alpha=0.95,
    cost_penalty=0.5,
    pretrain_fraction=0.0,
    policy_fraction=0.375,
    blocks_per_epoch=5,
    finetune_paths="sampled",
    policy_widths=(8, 16, 32),
    policy_pool=2,
    initial_keep=0.7,
)
LEARNED: Mapping[str, Mapping[str, object]] = {
    "BlockDrop": {},
    "straight-through gates": {"estimator": "straight-through"},
    "Gumbel gates": {"estimator": "gumbel"},
    "learned static path": {"policy": "static", "policy_lr_multiplier": 10.0},
}


@dataclass(frozen=True, slots=True)
class Images:
    """The data at half resolution, and the original test images for figures."""

    train: Part
    validation: Part
    test: Part
    originals: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tested:
    """Class probabilities and paths of a trained model on the test images."""

    probabilities: Tensor
    keep: Tensor


def chosen(**values: object) -> BlockDropSettings:
    """Return the common settings of all arms, with changes."""
    return replace(COMMON, **values)  # type: ignore[arg-type]  # the settings check them


def loaded(train_samples: int) -> Images:
    """Return Fashion-MNIST: a training subset, 2,000 validation images, and all test images."""
    splits = load(DataSettings("fashion_mnist", train_samples=train_samples, validation_samples=2000))
    parts = [splits.train, splits.validation, splits.test()]
    small = [Part(F.avg_pool2d(part.images[:], 2), part.labels, part.background) for part in parts]
    return Images(*small, originals=parts[2].images[:], names=splits.class_names)


def trained(model: torch.nn.Module, data: Images, epochs: int, seed: int, learning_rate: float) -> float:
    """Train in place; return the CPU time in seconds."""
    loaders = Loaders(Loader(data.train, 64, augment="shift-flip"), Loader(data.validation, 500))
    began = time.process_time()
    for record in fit(model, loaders, TrainingSettings(epochs=epochs, learning_rate=learning_rate), seed=seed):
        telemetry = {name.removeprefix("blockdrop/"): value for name, value in record.telemetry.items()}
        brief = {name: round(value, 2) for name, value in telemetry.items() if isinstance(value, float)}
        print(
            f"  epoch {record.epoch}: validation {record.validation_accuracy:.4f} {brief}", file=sys.stderr, flush=True
        )
    return time.process_time() - began


@torch.no_grad()
def tested(model: BlockDrop, part: Part) -> Tested:
    """Return the class probabilities and paths of the model in eval mode."""
    model.eval()
    pairs = [(model(x).softmax(1), model.decide(x)) for x in part.images.split(250)]
    return Tested(torch.cat([p for p, _ in pairs]), torch.cat([keep for _, keep in pairs]))


@torch.no_grad()
def wall_clock(model: BlockDrop, images: Tensor) -> Row:
    """Return milliseconds per image, and the share of time saved over the full network, by batch size."""
    row: Row = {}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for batch, rounds in BATCHES.items():
        drawn = images[order[: batch * rounds]].split(batch)
        for x in drawn:  # a convolution is compiled for every new size of its batch, and then kept
            model(x)
            model.network(x)
        times = [(seconds_of(lambda x=x: model(x)), seconds_of(lambda x=x: model.network(x))) for x in drawn]
        ours, full = [pair[0] for pair in times], [pair[1] for pair in times]
        row[f"ms_{batch}"] = 1e3 * statistics.median(each.wall for each in ours) / batch
        row[f"time_saved_{batch}"] = saving(ours, full, "wall")
        row[f"processor_saved_{batch}"] = saving(ours, full, "processor")
    return row


def measured(arm: str, seed: int, model: BlockDrop, data: Images, seconds: float) -> tuple[Row, Tested]:
    """Return the row of an arm, and its results on the test images."""
    test, flops = tested(model, data.test), model.flops(data.test.images[:1])
    each, paths = flops.of(test.keep), path_statistics(test.keep)
    row: Row = {"arm": arm, "seed": seed, "train_seconds": seconds}
    row["validation_accuracy"] = accuracy(tested(model, data.validation), data.validation)
    row["test_accuracy"] = accuracy(test, data.test)
    row |= {"blocks": paths.mean, "blocks_sd": paths.sd, "paths": paths.distinct}
    row |= {"mflops": float(each.mean()) / 1e6, "mflops_sd": float(each.std(correction=0)) / 1e6}
    row |= {"policy_mflops": flops.policy / 1e6, "full_mflops": flops.full / 1e6}
    row["flops_saved"] = 1 - float(each.mean()) / flops.full
    return row | wall_clock(model, data.test.images), test


def accuracy(result: Tested, part: Part) -> float:
    """Return the share of correct predictions."""
    return float((result.probabilities.argmax(1) == part.labels).float().mean())


def run_seed(seed: int, options: argparse.Namespace, data: Images) -> Iterator[tuple[str, Row, Tested]]:
    """Train and test all arms of one seed."""
    torch.manual_seed(seed)
    network = ResNet(ResNetSettings(depth=32, width=0.5), tuple(data.train.images.shape[1:]), len(data.names))
    print("pretraining", file=sys.stderr)
    trained(network, data, options.pretrain, seed, 4e-3)
    kept = 0
    arms = {name: dict(values) for name, values in LEARNED.items()}
    arms |= {"all blocks": {"policy": "all"}}
    arms |= {f"{name} K blocks": {"policy": name, "seed": seed} for name in ("first", "random", "spread")}
    for arm, values in arms.items():
        print(f"seed {seed}, {arm}", file=sys.stderr)
        if values.get("policy") in ("first", "random", "spread"):
            values["kept_blocks"] = kept
        torch.manual_seed(seed)
        model = BlockDrop(copy.deepcopy(network), chosen(**values), shape=network.input_shape)
        seconds = trained(model, data, options.finetune, seed, 3e-3)
        row, test = measured(arm, seed, model, data, seconds)
        yield arm, row, test
        if arm == "BlockDrop":
            kept = round(float(row["blocks"]))


def draw_extremes(path: Path, data: Images, test: Tested) -> None:
    """Draw the test images that keep the fewest and the most blocks, with class and number of blocks."""
    order = test.keep.sum(1).argsort(stable=True)
    figure, axes = plt.subplots(4, 10, figsize=(10, 4.8))
    picked = torch.cat([order[:20], order[-20:].flip(0)]).tolist()
    for axis, index in zip(axes.flat, picked, strict=True):
        axis.imshow(data.originals[index, 0], cmap="gray_r")
        axis.set_axis_off()
        right = test.probabilities[index].argmax() == data.test.labels[index]
        title = f"{data.names[int(data.test.labels[index])]}: {int(test.keep[index].sum())}"
        axis.set_title(title, fontsize=6, color="black" if right else "crimson")
    figure.suptitle("fewest blocks (rows 1, 2) and most blocks (rows 3, 4); red: wrong prediction", fontsize=9)
    save(figure, path)


def draw_difficulty(path: Path, data: Images, test: Tested, full: Tested) -> None:
    """Draw the number of blocks against the full network's probability of the true class, and by class."""
    used = test.keep.double().sum(1)
    sure = full.probabilities[torch.arange(len(used)), data.test.labels]
    groups = sure.argsort().tensor_split(20)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    errors = [float(used[g].std() / len(g) ** 0.5) for g in groups]
    means = [float(used[g].mean()) for g in groups]
    left.errorbar([5 * n + 2.5 for n in range(20)], means, yerr=errors, fmt="o-", markersize=3)
    left.set(
        xlabel="percentile of the full network's probability of the true class", ylabel="blocks (mean ± standard error)"
    )
    right.plot([float(used[data.test.labels == n].mean()) for n in range(len(data.names))], data.names, "o")
    right.set(xlabel="mean number of blocks per class")
    right.grid(axis="y", alpha=0.3)
    save(figure, path)


def draw_paths(path: Path, data: Images, test: Tested) -> None:
    """Draw the most frequent paths, each with images that take it."""
    paths, group, counts = test.keep.unique(dim=0, return_inverse=True, return_counts=True)
    common = counts.argsort(descending=True)[:8].tolist()
    figure, axes = plt.subplots(
        len(common), 11, figsize=(10, 0.95 * len(common) + 0.4), squeeze=False, width_ratios=[3] + [1] * 10
    )
    for row, number in zip(axes, common, strict=True):
        row[0].imshow(paths[number : number + 1], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        row[0].set(xticks=[], yticks=[], title=f"{int(counts[number])} images, {int(paths[number].sum())} blocks")
        row[0].title.set_fontsize(7)
        members = (group == number).nonzero().squeeze(1)[:10].tolist()
        for axis in row[1:]:
            axis.set_axis_off()
        for axis, index in zip(row[1:], members, strict=False):
            axis.imshow(data.originals[index, 0], cmap="gray_r")
    figure.suptitle(
        "the commonest paths (blue: the block is kept, first block on the left) and images that take them", fontsize=9
    )
    save(figure, path)


def save(figure: mpl.figure.Figure, path: Path) -> None:
    """Write a figure and close it."""
    figure.tight_layout()
    figure.savefig(path, dpi=85)
    plt.close(figure)


def main() -> None:
    """Run all seeds, write rows and figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--pretrain", type=int, default=12, help="epochs with all blocks")
    parser.add_argument("--finetune", type=int, default=8, help="epochs of every arm")
    parser.add_argument("--rows", type=Path, default=Path("docs/results/blockdrop.csv"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    if not all(name in os.environ for name in KEEP_MEMORY):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    mpl.use("agg")
    for folder in (options.rows.parent, options.pictures):
        folder.mkdir(parents=True, exist_ok=True)
    data, rows = loaded(options.train), []
    for seed in options.seeds:
        results = {}
        for arm, row, test in run_seed(seed, options, data):
            results[arm] = test
            rows.append(row)
            write(rows, options.rows)
        if seed == options.seeds[0]:
            learned, full = results["BlockDrop"], results["all blocks"]
            draw_extremes(options.pictures / "blockdrop-extremes.png", data, learned)
            draw_difficulty(options.pictures / "blockdrop-difficulty.png", data, learned, full)
            draw_paths(options.pictures / "blockdrop-paths.png", data, learned)


if __name__ == "__main__":
    main()
