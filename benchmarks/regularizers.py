"""Accuracy of the regularizers that drop activations, at the same expected dropped share, paired with no regularizer.

Run: ``python benchmarks/regularizers.py [--data fashion_mnist] [--samples 1000] [--seeds 5]``; prints a Markdown table
of validation accuracies after the last epoch; nothing is selected by them.
"""

import argparse
import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.methods import method_from_json
from nas_blockout.training import TrainingSettings

CLUSTERS: Mapping[str, Any] = {"name": "dropcluster", "update_every": 1, "ramp_epochs": 0}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "none": {"name": "none"},
    "dropout in the head, .2": {"name": "dropout", "rate": 0.2},
    "DropConnect in the head, .2": {"name": "dropconnect", "rate": 0.2},
    "spatial dropout": {"name": "spatial_dropout"},
    "DropBlock, 3x3": {"name": "dropblock", "schedule": "constant", "calibration": "exact"},
    "DropCluster, cluster_size 1 (dropout of maps)": {**CLUSTERS, "cluster_size": 1},
    "DropCluster, kmeans": CLUSTERS,
    "DropCluster, rena": {**CLUSTERS, "clustering": "rena"},
    "DropCluster, one mask per batch": {**CLUSTERS, "masks": "batch"},
    "DropCluster, frozen": {**CLUSTERS, "update_every": 0},
    "ablation: random labels": {**CLUSTERS, "labels": "random"},
    "ablation: contiguous cells": {**CLUSTERS, "labels": "contiguous"},
}


def accuracy(method: Any, splits: Splits, data: DataSettings, epochs: int, seed: int) -> float:
    """Return the validation accuracy in percent after the last epoch."""
    training = TrainingSettings(epochs=epochs)
    experiment = Experiment(data, ConvNetSettings((16, 32), (64,)), method, training, seed)
    *_, last = Run(experiment, splits)
    return 100 * (last.validation_accuracy or 0.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument(
        "--only", nargs="*", choices=METHODS, default=list(METHODS), help="methods to compare with none"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = DataSettings(options.data, train_samples=options.samples, validation_samples=options.validation)
    splits = load(data)
    print(f"{options.data}, {options.samples} training images, {options.validation} validation images, ", end="")
    print(f"{options.epochs} epochs, {options.seeds} seeds, ", end="")
    print(f"expected dropped share of feature maps {options.rate}; validation accuracy in percent.\n")
    print("| method | mean (sd) | minus none: mean (standard error) |\n|---|---|---|")
    baseline: list[float] = []
    for name, document in METHODS.items():
        if name not in ("none", *options.only):
            continue
        maps = document["name"] not in ("none", "dropout", "dropconnect")
        method = method_from_json({**document, **({"rate": options.rate} if maps else {})})
        accuracies = [accuracy(method, splits, data, options.epochs, seed) for seed in range(options.seeds)]
        baseline = baseline or accuracies
        gaps = [a - b for a, b in zip(accuracies, baseline, strict=True)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        cells = (
            f"{statistics.mean(accuracies):.2f} ({statistics.stdev(accuracies):.2f})",
            f"{statistics.mean(gaps):+.2f} ({error:.2f})",
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
