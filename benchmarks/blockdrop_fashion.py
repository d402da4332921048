"""BlockDrop on Fashion-MNIST against its controls: accuracy, blocks, FLOPs, wall-clock, and pictures.

Run: ``python benchmarks/blockdrop_fashion.py [--seeds 0] [--out docs/results/blockdrop]``; about 25 minutes a seed on
one core. Writes ``fashion.csv`` (a row for each arm and seed), prints the table as Markdown, and draws the pictures.

A ResNet-32 of half width is trained with all blocks once a seed. Each arm starts from a copy of it and trains for the
same number of epochs: learned policies first the policy alone, then both; controls their network on their fixed path.
The controls keep as many blocks as BlockDrop's images do on average. Test images are read once a seed, and each arm is
tested after its last epoch; nothing is selected. Wall-clock is of one thread, on test images that have passed once, in
turns with the full network.
"""

import argparse
import copy
import csv
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import torch
from blockdrop import KEEP_MEMORY, seconds_of
from matplotlib import pyplot as plt
from torch import Tensor

from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.data import DataSettings, Loader, Part, Splits, load
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from nas_blockout.methods.routes import path_statistics
from nas_blockout.train import Loaders, TrainingSettings, fit

BATCHES = {1: 60, 8: 30, 64: 9, 256: 5}  # images a batch: rounds
COMMON = BlockDropSettings(
    alpha=0.95,
    penalty=0.5,
    price=0.5,
    pretrain_share=0.0,
    policy_share=0.43,
    blocks_per_epoch=8,
    policy_widths=(8, 16, 32),
    policy_pool=2,
    initial_keep=0.8,
)
LEARNED: Mapping[str, Mapping[str, object]] = {
    "BlockDrop": {},
    "BlockDrop, straight-through gates": {"estimator": "straight-through"},
    "learned static path": {"policy": "static"},
}
Row = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Tested:
    """What a trained model does with the test images: probabilities of the classes, and paths."""

    probabilities: Tensor
    keep: Tensor


def chosen(**values: object) -> BlockDropSettings:
    """Return the common settings of all arms with some replaced."""
    return replace(COMMON, **values)  # type: ignore[arg-type]


def trained(model: torch.nn.Module, splits: Splits, epochs: int, seed: int, learning_rate: float) -> float:
    """Train in place; return the seconds of the processor."""
    loaders = Loaders(Loader(splits.train, 64, augment="shift-flip"), Loader(splits.validation, 500))
    began = time.process_time()
    for record in fit(model, loaders, TrainingSettings(epochs=epochs, learning_rate=learning_rate), seed=seed):
        told = {name.removeprefix("blockdrop/"): value for name, value in record.telemetry.items()}
        brief = {name: round(value, 2) for name, value in told.items() if isinstance(value, float)}
        print(
            f"  epoch {record.epoch}: validation {record.validation_accuracy:.4f} {brief}", file=sys.stderr, flush=True
        )
    return time.process_time() - began


@torch.no_grad()
def tested(model: BlockDrop, part: Part) -> Tested:
    """Return what the model does in eval."""
    model.eval()
    pairs = [(model(x).softmax(1), model.decide(x)) for x in part.images.split(250)]
    return Tested(torch.cat([p for p, _ in pairs]), torch.cat([keep for _, keep in pairs]))


@torch.no_grad()
def wall_clock(model: BlockDrop, images: Tensor) -> Row:
    """Return milliseconds an image, and the share of time saved against the full network, by batch size."""
    row: Row = {}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for batch, rounds in BATCHES.items():
        drawn = images[order[: batch * rounds]].split(batch)
        for x in drawn:  # a convolution is compiled for every new size of its batch, and then kept
            model(x)
        times = [(seconds_of(lambda x=x: model(x)), seconds_of(lambda x=x: model.network(x))) for x in drawn]
        row[f"ms_{batch}"] = 1e3 * statistics.median(ours for ours, _ in times) / batch
        row[f"time_saved_{batch}"] = statistics.median(1 - ours / full for ours, full in times)
    return row


def measured(arm: str, seed: int, model: BlockDrop, test: Part, seconds: float) -> tuple[Row, Tested]:
    """Return the row of an arm and what it does with the test images."""
    found, flops = tested(model, test), model.flops(test.images[:1])
    each, paths = flops.of(found.keep), path_statistics(found.keep)
    row: Row = {"arm": arm, "seed": seed, "train_seconds": seconds}
    row["test_accuracy"] = float((found.probabilities.argmax(1) == test.labels).float().mean())
    row |= {"blocks": paths.mean, "blocks_sd": paths.sd, "paths": paths.distinct}
    row |= {"mflops": float(each.mean()) / 1e6, "mflops_sd": float(each.std(correction=0)) / 1e6}
    row["flops_saved"] = 1 - float(each.mean()) / flops.full
    return row | wall_clock(model, test.images), found


def run_seed(seed: int, options: argparse.Namespace, splits: Splits) -> tuple[list[Row], dict[str, Tested], Part]:
    """Train and test all arms of one seed."""
    torch.manual_seed(seed)
    network = ResNet(ResNetSettings(depth=32, width=0.5), splits.shape, len(splits.class_names))
    print("pretraining", file=sys.stderr)
    trained(network, splits, options.pretrain, seed, 4e-3)
    rows, results, test, kept = [], {}, splits.test(), 0
    arms = {name: dict(values) for name, values in LEARNED.items()}
    arms |= {"all blocks": {"policy": "all"}}
    arms |= {f"{name} K blocks": {"policy": name, "seed": seed} for name in ("first", "random", "spread")}
    for arm, values in arms.items():
        print(f"seed {seed}, {arm}", file=sys.stderr)
        if values.get("policy") in ("first", "random", "spread"):
            values["kept_blocks"] = kept
        torch.manual_seed(seed)
        model = BlockDrop(copy.deepcopy(network), chosen(**values), channels=splits.shape[0])
        seconds = trained(model, splits, options.finetune, seed, 3e-3)
        row, results[arm] = measured(arm.replace("K", str(kept)), seed, model, test, seconds)
        rows.append(row)
        if arm == "BlockDrop":
            kept = round(float(row["blocks"]))
    return rows, results, test


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    columns = ["arm", "seed", "test %", "blocks", "paths", "MFLOPs", "FLOPs saved"]
    columns += [f"time saved, batch {batch}" for batch in BATCHES]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row["arm"], row["seed"], f"{100 * float(row['test_accuracy']):.2f}"]
        cells += [f"{row['blocks']:.2f} ± {row['blocks_sd']:.2f}", row["paths"]]
        cells += [f"{row['mflops']:.1f} ± {row['mflops_sd']:.1f}", f"{row['flops_saved']:.1%}"]
        cells += [f"{row[f'time_saved_{batch}']:.1%}" for batch in BATCHES]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def draw_extremes(path: Path, test: Part, found: Tested, names: tuple[str, ...]) -> None:
    """Draw test images that keep the fewest and the most blocks, with class and blocks."""
    order = found.keep.sum(1).argsort(stable=True)
    figure, axes = plt.subplots(4, 10, figsize=(10, 4.8))
    picked = torch.cat([order[:20], order[-20:].flip(0)]).tolist()
    for axis, index in zip(axes.flat, picked, strict=True):
        axis.imshow(test.images[index, 0], cmap="gray_r")
        axis.set_axis_off()
        right = found.probabilities[index].argmax() == test.labels[index]
        title = f"{names[int(test.labels[index])]}: {int(found.keep[index].sum())}"
        axis.set_title(title, fontsize=6, color="black" if right else "crimson")
    figure.suptitle("fewest blocks (rows 1, 2) and most blocks (rows 3, 4); red: wrong prediction", fontsize=9)
    save(figure, path)


def draw_difficulty(path: Path, test: Part, found: Tested, full: Tested, names: tuple[str, ...]) -> None:
    """Draw blocks against the probability that the full network gives to the true class, and by class."""
    used = found.keep.double().sum(1)
    sure = full.probabilities[torch.arange(len(used)), test.labels]
    groups = sure.argsort().tensor_split(20)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    errors = [float(used[g].std() / len(g) ** 0.5) for g in groups]
    means = [float(used[g].mean()) for g in groups]
    left.errorbar([5 * n + 2.5 for n in range(20)], means, yerr=errors, fmt="o-", markersize=3)
    left.set(xlabel="percentile of the full network's probability of the true class", ylabel="blocks, mean ± se")
    right.plot([float(used[test.labels == n].mean()) for n in range(len(names))], names, "o")
    right.set(xlabel="blocks, mean over the class")
    right.grid(axis="y", alpha=0.3)
    save(figure, path)


def draw_paths(path: Path, test: Part, found: Tested) -> None:
    """Draw the commonest paths, and the images that take them, as groups."""
    paths, group, counts = found.keep.unique(dim=0, return_inverse=True, return_counts=True)
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
            axis.imshow(test.images[index, 0], cmap="gray_r")
    figure.suptitle(
        "the commonest paths (blue: the block is kept, first block on the left) and images that take them", fontsize=9
    )
    save(figure, path)


def save(figure: mpl.figure.Figure, path: Path) -> None:
    """Write a picture and close it."""
    figure.tight_layout()
    figure.savefig(path, dpi=85)
    plt.close(figure)


def main() -> None:
    """Run all seeds, write rows and pictures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--pretrain", type=int, default=8, help="epochs with all blocks")
    parser.add_argument("--finetune", type=int, default=7, help="epochs of every arm")
    parser.add_argument("--out", type=Path, default=Path("docs/results/blockdrop"))
    options = parser.parse_args()
    if not all(name in os.environ for name in KEEP_MEMORY):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    mpl.use("agg")
    options.out.mkdir(parents=True, exist_ok=True)
    splits = load(DataSettings("fashion_mnist", train_samples=options.train, validation_samples=2000))
    rows: list[Row] = []
    for seed in options.seeds:
        new, results, test = run_seed(seed, options, splits)
        rows += new
        with (options.out / "fashion.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in rows
            )
        if seed == options.seeds[0]:
            names = splits.class_names
            draw_extremes(options.out / "extremes.png", test, results["BlockDrop"], names)
            draw_difficulty(options.out / "difficulty.png", test, results["BlockDrop"], results["all blocks"], names)
            draw_paths(options.out / "paths.png", test, results["BlockDrop"])
    print(table(rows))


if __name__ == "__main__":
    main()
