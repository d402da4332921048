"""The training loop, a generator of epoch records that depends on no method, and the checkpoints it resumes from."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nas_blockout.batch_statistics import (
    estimate_statistics,
    normalizations,
    statistics_images,
    statistics_passes,
)
from nas_blockout.training.epoch_records import Batches, Checkpoint, EpochRecord, Loaders
from nas_blockout.training.evaluation import evaluate
from nas_blockout.training.optimizers import make_optimizer
from nas_blockout.training.precision import autocast, place, placed, products, require_compiler
from nas_blockout.training.ranks import ALONE, Ranks
from nas_blockout.training.recipes import Recipes
from nas_blockout.training.step import DivergedError, Step
from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import TrainableLayer, trainable

CALIBRATION_IMAGES = 256
# Primes: the shuffling seeds of two runs, or of their samples, meet only if their seeds are that far apart.
_EPOCH_STRIDE = 1_000_003
_SAMPLE_STRIDE = 1_000_033


def fit(
    model: nn.Module,
    loaders: Loaders,
    settings: TrainingSettings,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    start: Checkpoint | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[EpochRecord]:
    """Train a model and yield a record after every epoch.

    Args:
        model: Gives logits by ``model(x, generator)``. A `TrainableModel` has a loss and parameter groups of its own;
            every `TrainableLayer` in it is prepared for each epoch and reports after it.
        loaders: Training and validation images.
        settings: How to train.
        seed: Decides the order of the images, their augmentation and all draws of the model.
        device: Where to train.
        start: Continue after this checkpoint, with the numbers of a training that was never stopped.
        ranks: The processes that train the model together, each by this call with the same arguments.

    Yields:
        One record an epoch. The last one carries a `failure` if the loss became infinite or not a number.
    """
    if settings.compile:
        require_compiler(device, ranks.size)
    place(model, device, settings.memory_format)
    learner = trainable(model)
    layers = [module for module in model.modules() if isinstance(module, TrainableLayer)]
    optimizer = make_optimizer(learner, settings)
    step = Step(learner, optimizer, settings, device=device)
    recipes = Recipes(step, settings, loaders.class_counts, seed=seed, device=device)
    ranks.join(step)  # after the recipes: they change whole batches, of which each rank then takes its rows
    generator = ranks.generator(device).manual_seed(seed)
    first, passes, seconds = 0, 0, 0.0
    if start is not None:
        first, passes, seconds = start.epochs_done, start.sample_passes, start.seconds
        model.load_state_dict(start.model)
        optimizer.load_state_dict(dict(start.optimizer))
        generator.set_state(start.generator.cpu())
        recipes.load(start.trained)
        start = None  # its weights and moments are those of the model and the optimizer by now
    ranks.share(model)
    calibration_batch: Tensor | None = None  # read on first use: most models need none
    for epoch in range(first, settings.epochs):
        ranks.await_first()
        began = time.perf_counter()
        recipes.begin(epoch)
        for layer in layers:
            layer.prepare_epoch(epoch, settings.epochs)
        step.begin_epoch()
        if calibrated := [layer for layer in layers if layer.needs_calibration]:
            with products(settings.precision, device):
                calibration_batch = _calibrate(model, loaders.train, calibration_batch, seed=seed, device=device)
            ranks.share(*calibrated)  # devices round differently, and clusters may differ for it
        order = torch.Generator().manual_seed(seed + _EPOCH_STRIDE * (epoch + 1))
        with ranks.training(model), products(settings.precision, device):
            own, trained = _train_epoch(
                step, loaders.train, epoch=epoch, order=order, generator=generator, device=device
            )
        total = float(ranks.total(torch.tensor(own)))
        ranks.gather_counts(layers)
        passes += trained
        failure = None if math.isfinite(total) else f"the training loss became {total} in epoch {epoch}"
        checked = None
        if failure is None:
            recipes.end()
            passes += _fit_statistics(model, loaders.train, settings, seed=seed, epoch=epoch, device=device)
            checked = evaluate(model, loaders.validation, device=device, precision=settings.precision, ranks=ranks)
            if not math.isfinite(checked.loss):
                failure, checked = f"the validation loss became {checked.loss} in epoch {epoch}", None
        seconds += time.perf_counter() - began
        yield EpochRecord(
            epoch=epoch,
            sample_passes=passes,
            seconds=seconds,
            learning_rate=optimizer.param_groups[0]["lr"],
            train_loss=None if failure else total / max(1, trained),
            validation_loss=checked.loss if checked else None,
            validation_accuracy=checked.accuracy if checked else None,
            telemetry={} if failure else {key: value for layer in layers for key, value in layer.telemetry().items()},
            failure=failure,
            checkpoint=Checkpoint(
                *(epoch + 1, passes, seconds, model.state_dict(), optimizer.state_dict(), generator.get_state()),
                trained=recipes.trained(),
            ),
        )
        if failure:
            return


@torch.no_grad()
def _calibrate(
    model: nn.Module, images: Batches, batch: Tensor | None, *, seed: int, device: str | torch.device
) -> Tensor:
    """Show a model a batch of training images, always the same, also in a resumed run; return it for the next time."""
    if batch is None:
        batch = torch.cat([*images.sample(CALIBRATION_IMAGES, _drawing(seed, 0))]).to(device)
    model.eval()
    model(batch)
    return batch


def _train_epoch(
    step: Step,
    loader: Batches,
    *,
    epoch: int,
    order: torch.Generator,
    generator: torch.Generator,
    device: str | torch.device,
) -> tuple[float, int]:
    """Train for one epoch; return the sum of the losses over its images, not finite if it diverged, and their number.

    Of several ranks each returns its part of the sum, and the number of all images.

    Args:
        step: Of the optimizer of the model that is trained.
        loader: Training images.
        epoch: Number of the epoch, from 0.
        order: Of the images and their augmentation, on the CPU whatever the device.
        generator: Of the draws of the model, on the device.
        device: Where the model is.
    """
    accumulation = step.settings.accumulation
    steps = -(-len(loader) // (step.settings.batch_size * accumulation))
    total, trained = torch.zeros((), device=device), 0
    step.model.train()
    for number, (images, labels) in enumerate(loader.batches(order)):
        x, y = placed(images, device, step.settings.memory_format), labels.to(device, non_blocking=True)
        trained += len(y)
        try:
            loss = step(x, y, generator, done_epochs=epoch + number // accumulation / steps)
        except DivergedError:
            return math.nan, trained
        total += loss * len(labels)  # stays on the device: to read it would wait for every step
    step.update()
    return float(total), trained


def _fit_statistics(
    model: nn.Module,
    images: Batches,
    settings: TrainingSettings,
    *,
    seed: int,
    epoch: int,
    device: str | torch.device,
) -> int:
    """Estimate the statistics with which a model is evaluated after an epoch; return the sample passes that it costs.

    In training every batch is normalized by its own statistics, so what is written here changes no training step.
    """
    if settings.evaluation_statistics == "running" or not normalizations(model):
        return 0
    wanted = statistics_images(epoch, settings.epochs)
    sample = images.sample(wanted, _drawing(seed, epoch + 1))
    with products(settings.precision, device), autocast(settings.precision, device), torch.no_grad():
        estimate_statistics(model, (placed(batch, device, settings.memory_format) for batch in sample))
    return statistics_passes(min(wanted, len(images)))


def _drawing(seed: int, number: int) -> torch.Generator:
    """Return the generator that draws a sample of training images: the same in a resumed run."""
    return torch.Generator().manual_seed(seed + _SAMPLE_STRIDE * (number + 1))
