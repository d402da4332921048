"""Predicted duration of an experiment, measured in a few epochs on some of its images."""

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from nas_blockout.data import AnyPart, Splits
from nas_blockout.experiment import Experiment, Run
from nas_blockout.training import EpochRecord

# The warm-up trains on the larger of these: enough for a few batches, and most likely some images of every class.
FEWEST_IMAGES = 256
IMAGES_A_CLASS = 6
_MOST_EPOCHS = 8  # enough for a median, even where the time would allow hundreds


@dataclass(frozen=True, slots=True)
class Measured:
    """Cost of a training.

    Args:
        seconds: Seconds of all epochs, training and validation.
        overhead_seconds: Seconds for building the network, deriving another one between two stages, and the work after
            the last epoch.
        parameters: Number of trainable parameters of the final network.
    """

    seconds: float
    overhead_seconds: float
    parameters: int


def measure(experiment: Experiment, splits: Splits, *, seconds: float, device: str = "cpu") -> Measured:
    """Train an experiment briefly and return the predicted cost of the whole training.

    It is trained twice: on a few images as a warm-up, then on as many as the time allows. The cost is scaled up from
    these images to all of them, which overestimates the fixed costs of an epoch if the images are few.

    Args:
        experiment: The experiment.
        splits: Data of the experiment.
        seconds: Approximate time to spend, in seconds.
        device: Device used for training.
    """
    began = time.perf_counter()
    images = len(splits.train)
    share = min(1.0, max(FEWEST_IMAGES, IMAGES_A_CLASS * len(splits.class_names)) / images)
    warm_up = _dry_run(experiment, splits, share, epochs=2, device=device)
    warm_up_seconds = time.perf_counter() - began
    remaining = seconds - warm_up_seconds
    if remaining < warm_up_seconds:
        return warm_up
    # The remaining time suffices for this many warm-ups: for more images if these are not all, else for more epochs.
    repeats = remaining / warm_up_seconds
    epochs = 2 if repeats * share < 2 else min(_MOST_EPOCHS, experiment.training.epochs, int(repeats * share) + 1)
    return _dry_run(experiment, splits, min(1.0, share * repeats), epochs=max(2, epochs), device=device)


def _dry_run(experiment: Experiment, splits: Splits, share: float, *, epochs: int, device: str) -> Measured:
    began = time.perf_counter()
    short = replace(experiment, training=replace(experiment.training, epochs=epochs))
    run = Run(short, part_of(splits, share), device=device)
    records = list(run)
    if run.outcome is None:  # it diverged, as a training shortened to a few epochs may
        return Measured(epoch_seconds(experiment, records) / share * experiment.training.epochs, 0.0, 0)
    overhead = time.perf_counter() - began - records[-1].seconds
    return Measured(
        seconds=epoch_seconds(experiment, records) / share * experiment.training.epochs,
        # Deriving a network passes over the images, so its cost is scaled up like that of the epochs.
        overhead_seconds=overhead / share if experiment.derivation is not None else overhead,
        parameters=run.outcome.parameters,
    )


def epoch_seconds(experiment: Experiment, records: list[EpochRecord]) -> float:
    """Return the seconds of an epoch: the medians of the stages, weighted by the epochs that each stage will have."""
    stages: dict[str, list[float]] = {}
    before = 0.0  # records contain the seconds since the start of the run
    for record in records:
        stages.setdefault(record.stage, []).append(record.seconds - before)
        before = record.seconds
    # The first epoch of a stage allocates memory and is slower, so it only counts if there is no other.
    medians = {stage: median(seconds[1:] or seconds) for stage, seconds in stages.items()}
    derivation: Any = experiment.derivation
    if derivation is None or len(medians) < 2:
        return median(medians.values())
    return float(derivation.learn_fraction * medians["learn"] + (1 - derivation.learn_fraction) * medians["finetune"])


def part_of(splits: Splits, share: float) -> Splits:
    """Return evenly spaced images of a data set, the same fraction of the training and the validation images.

    The result refuses access to the test images.
    """
    if share >= 1:
        return _without_test(splits, splits.train, splits.validation)
    return _without_test(splits, _subset(splits.train, share), _subset(splits.validation, share))


def _without_test(splits: Splits, train: Any, validation: Any) -> Splits:
    def refuse() -> Any:
        raise AssertionError("an estimate must use no test image")

    return Splits(
        train,
        validation,
        preprocessing=splits.preprocessing,
        class_names=splits.class_names,
        load_test=refuse,
        hierarchy=splits.hierarchy,
    )


def _subset(part: AnyPart, share: float) -> AnyPart:
    return part.at(torch.linspace(0, len(part) - 1, max(2, round(len(part) * share))).long())
