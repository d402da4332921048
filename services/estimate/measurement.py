"""How long an experiment takes, measured on a few epochs of some of its images."""

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from nas_blockout.data import Part, Splits, StreamedPart
from nas_blockout.experiment import Experiment, Run
from nas_blockout.train import EpochRecord

FEWEST_IMAGES = 256
IMAGES_A_CLASS = 6
_MOST_EPOCHS = 8  # or an arm whose epochs take milliseconds would be measured for long


@dataclass(frozen=True, slots=True)
class Measured:
    """Cost of a training.

    Args:
        seconds: Of all its epochs, training and validation.
        overhead_seconds: Building the network, deriving another between two stages, and what follows the last epoch.
        parameters: Trainable parameters of what it ends in.
    """

    seconds: float
    overhead_seconds: float
    parameters: int


def measure(experiment: Experiment, splits: Splits, *, seconds: float, device: str = "cpu") -> Measured:
    """Train an experiment briefly and return the predicted cost of the whole training.

    It is trained twice: on a few images as a warm-up, then on as many as the time allows. The cost of a part of the
    images is scaled up to all of them, which overestimates the fixed costs of an epoch on small parts.

    Args:
        experiment: What will be run.
        splits: Its data.
        seconds: Time to spend, about.
        device: Where to train.
    """
    began = time.perf_counter()
    images = len(splits.train)
    share = min(1.0, max(FEWEST_IMAGES, IMAGES_A_CLASS * len(splits.class_names)) / images)
    warm_up = _dry(experiment, splits, share, epochs=2, device=device)
    once = time.perf_counter() - began
    left = seconds - once
    if left < once:
        return warm_up
    room = left / once
    epochs = 2 if room * share < 2 else min(_MOST_EPOCHS, experiment.training.epochs, int(room * share) + 1)
    return _dry(experiment, splits, min(1.0, share * room), epochs=max(2, epochs), device=device)


def _dry(experiment: Experiment, splits: Splits, share: float, *, epochs: int, device: str) -> Measured:
    began = time.perf_counter()
    short = replace(experiment, training=replace(experiment.training, epochs=epochs))
    part = part_of(splits, share)
    run = Run(short, part, device=device)
    records = list(run)
    if run.outcome is None:  # it diverged on the way, which a training of some epochs may
        return Measured(epoch_seconds(experiment, records) / share * experiment.training.epochs, 0.0, 0)
    overhead = time.perf_counter() - began - records[-1].seconds
    return Measured(
        seconds=epoch_seconds(experiment, records) / share * experiment.training.epochs,
        overhead_seconds=overhead / share if experiment.derivation is not None else overhead,
        parameters=run.outcome.parameters,
    )


def epoch_seconds(experiment: Experiment, records: list[EpochRecord]) -> float:
    """Return the seconds of an epoch: the median of each stage without its first epoch, where it has more than one."""
    stages: dict[str, list[float]] = {}
    before = 0.0
    for record in records:
        stages.setdefault(record.stage, []).append(record.seconds - before)
        before = record.seconds
    medians = {stage: median(seconds[1:] or seconds) for stage, seconds in stages.items()}
    learned: Any = experiment.derivation
    if learned is None or len(medians) < 2:
        return median(medians.values())
    return float(learned.learn_fraction * medians["learn"] + (1 - learned.learn_fraction) * medians["finetune"])


def part_of(splits: Splits, share: float) -> Splits:
    """Return evenly spaced images of a data set, the same share of those for training and for validation.

    Its test images cannot be had.
    """
    if share >= 1:
        return _closed(splits, splits.train, splits.validation)
    return _closed(splits, _some(splits.train, share), _some(splits.validation, share))


def _closed(splits: Splits, train: Any, validation: Any) -> Splits:
    def refuse() -> Any:
        raise AssertionError("an estimate looks at no test image")

    return Splits(
        train,
        validation,
        preprocessing=splits.preprocessing,
        class_names=splits.class_names,
        load_test=refuse,
        hierarchy=splits.hierarchy,
    )


def _some(part: Part | StreamedPart, share: float) -> Part | StreamedPart:
    index = torch.linspace(0, len(part) - 1, max(2, round(len(part) * share))).long()
    if isinstance(part, StreamedPart):
        return replace(part, files=part.files.at(index))
    return Part(part.images[index], part.labels[index], part.background)
