"""What each recipe of training is worth on digits: the same network and seeds, with and without it.

    python -m benchmarks.training_recipes [--seeds N] [--epochs N] [--images N] > recipes.csv

Every recipe trains a small convolutional network with the seeds 0, 1, ...; the accuracy is that of the test images, to
be compared with no recipe seed by seed. Those of `UNEQUAL` train on as many images of classes 0 to 4 and a tenth of
those of classes 5 to 9. Seconds are those of the processor, so that other programs count little.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Loader, load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.training import TrainingSettings, evaluate

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "label_smoothing: 0.1": {"label_smoothing": 0.1},
    "mixup: 0.2": {"mixup": 0.2},
    "cutmix: 1.0": {"cutmix": 1.0},
    "gradient_clip: 1.0": {"gradient_clip": 1.0},
    "accumulation: 2": {"accumulation": 2},
    "ema: 0.98": {"ema": 0.98},
    "schedule: step": {"schedule": "step"},
    "schedule: linear": {"schedule": "linear"},
    "schedule: one-cycle": {"schedule": "one-cycle"},
    "no_decay: []": {"no_decay": ()},
    "augment: shift": {"augment": "shift"},
    "augment: randaugment": {"augment": "randaugment"},
    "augment: trivialaugment": {"augment": "trivialaugment"},
    "augment: random-erasing": {"augment": "random-erasing"},
}
UNEQUAL: Mapping[str, Mapping[str, Any]] = {
    "unequal classes": {},
    "unequal classes, class_weights: balanced": {"class_weights": "balanced"},
    "unequal classes, sampling: balanced": {"sampling": "balanced"},
}
COLUMNS = ("recipe", "seed", "test_accuracy", "validation_accuracy", "processor_seconds")


def trained(recipe: str, seed: int, *, epochs: int, images: int) -> dict[str, Any]:
    """Train once; return a row of the table."""
    values = dict({**RECIPES, **UNEQUAL}[recipe])
    data = DataSettings(train_samples=images, augment=values.pop("augment", "none"))
    training = replace(TrainingSettings(epochs=epochs, batch_size=32), **values)
    experiment = Experiment(data=data, backbone=ConvNetSettings((8, 16), (32,)), training=training, seed=seed)
    splits = load(data)
    if recipe in UNEQUAL:
        splits.train = splits.train.at(with_rare_classes(splits.train.labels))
    began = time.process_time()
    run = Run(experiment, splits)
    records = list(run)
    seconds = time.process_time() - began
    assert run.outcome is not None, run.failure
    checked = evaluate(run.outcome.model, Loader(splits.test(), 512))
    return dict(
        zip(COLUMNS, (recipe, seed, checked.accuracy, records[-1].validation_accuracy, round(seconds, 2)), strict=True)
    )


def with_rare_classes(labels: Tensor) -> Tensor:
    """Return the numbers of all images of classes 0 to 4, and of the first tenth of those of classes 5 to 9."""
    chosen = []
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        chosen.append(members if label < 5 else members[: len(members) // 10])
    return torch.cat(chosen).sort().values


def rows(*, seeds: int, epochs: int, images: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each seed and recipe; all recipes of a seed before the next seed."""
    for seed in range(seeds):
        for recipe in (*RECIPES, *UNEQUAL):
            yield trained(recipe, seed, epochs=epochs, images=images)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()
    for row in rows(seeds=arguments.seeds, epochs=arguments.epochs, images=arguments.images):
        writer.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
