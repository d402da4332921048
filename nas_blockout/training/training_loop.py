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
from nas_blockout.training.epoch_records import Checkpoint, EpochProgress, EpochRecord, Loaders, Saving
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
_STEPS_OF_RANKS = 32  # of the optimizer, between which several ranks do not ask whether a checkpoint is due


def fit(
    model: nn.Module,
    loaders: Loaders,
    settings: TrainingSettings,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    start: Checkpoint | None = None,
    saving: Saving | None = None,
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
        saving: Makes checkpoints inside epochs too. Of several ranks that of the first one counts.
        ranks: The processes that train the model together, each by this call with the same arguments.

    Yields:
        One record an epoch. The last one carries a `failure` if the loss became infinite or not a number.
    """
    if settings.compile:
        require_compiler(device, ranks.size)
    training = _Training(model, loaders, settings, seed=seed, device=device, saving=saving, ranks=ranks)
    if start is not None:
        training.resume(start)
        start = None  # its weights and moments are those of the model and the optimizer by now
    ranks.share(model)
    for epoch in range(training.epochs_done, settings.epochs):
        try:
            record = training.epoch(epoch)
        except Exception as error:
            ranks.fail(error)
            raise
        yield record
        if record.failure:
            return


class _Training:
    """A training between two epochs: what `fit` is told, and what it has come to."""

    def __init__(
        self,
        model: nn.Module,
        loaders: Loaders,
        settings: TrainingSettings,
        *,
        seed: int,
        device: str | torch.device,
        saving: Saving | None,
        ranks: Ranks,
    ) -> None:
        self.model, self.loaders, self.settings = model, loaders, settings
        self.seed, self.device, self.ranks = seed, device, ranks
        place(model, device, settings.memory_format)
        learner = trainable(model)
        self.layers = [module for module in model.modules() if isinstance(module, TrainableLayer)]
        self.optimizer = make_optimizer(learner, settings)
        self.step = Step(learner, self.optimizer, settings, device=device)
        self.recipes = Recipes(self.step, settings, loaders.class_counts, seed=seed, device=device)
        ranks.join(self.step)  # after the recipes: they change whole batches, of which each rank then takes its rows
        self.generator = ranks.generator(device).manual_seed(seed)
        self.saving = saving
        self.saves = bool(ranks.agree(lambda: saving is not None))
        self.epochs_done, self.passes, self.seconds, self.began = 0, 0, 0.0, 0.0
        self.trained = 0  # images of the epoch so far
        self.begun: EpochProgress | None = None  # in an epoch that goes on
        self.calibration_batch: Tensor | None = None  # read on first use: most models need none

    def resume(self, start: Checkpoint) -> None:
        """Continue after a checkpoint."""
        self.epochs_done, self.passes, self.seconds = start.epochs_done, start.sample_passes, start.seconds
        self.model.load_state_dict(start.model)
        self.optimizer.load_state_dict(dict(start.optimizer))
        self.generator.set_state(start.generator.cpu())
        self.recipes.load(start.trained)
        self.begun = start.progress
        if self.begun is not None:
            _, states = self.begun.part_of(self.ranks.rank, self.ranks.size)
            self._tell_layers(self.epochs_done)
            self.model.load_state_dict(start.model)  # again: what a layer is told may have changed its buffers
            for layer, state in zip(self.layers, states, strict=True):
                layer.needs_calibration = False  # it has seen its images before the epoch, by the weights of then
                layer.load_epoch_state(state)

    def epoch(self, epoch: int) -> EpochRecord:
        """Train for one epoch, numbered from 0, and evaluate what it led to."""
        self.ranks.await_first()
        self.began = time.perf_counter()
        self._prepare(epoch)
        total, trained = self._train(epoch)
        self.passes += trained
        failure = None if math.isfinite(total) else f"the training loss became {total} in epoch {epoch}"
        checked = None
        if failure is None:
            self.recipes.end()
            self.passes += self._fit_statistics(epoch)
            precision = self.settings.precision
            checked = evaluate(
                self.model, self.loaders.validation, device=self.device, precision=precision, ranks=self.ranks
            )
            if not math.isfinite(checked.loss):
                failure, checked = f"the validation loss became {checked.loss} in epoch {epoch}", None
        self.seconds += time.perf_counter() - self.began
        self.epochs_done = epoch + 1
        telemetry = {} if failure else {key: value for layer in self.layers for key, value in layer.telemetry().items()}
        return EpochRecord(
            epoch=epoch,
            sample_passes=self.passes,
            seconds=self.seconds,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_loss=None if failure else total / max(1, trained),
            validation_loss=checked.loss if checked else None,
            validation_accuracy=checked.accuracy if checked else None,
            validation_balanced_accuracy=checked.balanced_accuracy if checked else None,
            telemetry=telemetry,
            failure=failure,
            checkpoint=self._checkpoint(),
        )

    def _checkpoint(self, progress: EpochProgress | None = None) -> Checkpoint:
        seconds = self.seconds + (time.perf_counter() - self.began if progress else 0.0)
        return Checkpoint(
            *(self.epochs_done, self.passes, seconds),
            *(self.model.state_dict(), self.optimizer.state_dict(), self.generator.get_state()),
            trained=self.recipes.trained(),
            progress=progress,
        )

    def _tell_layers(self, epoch: int) -> None:
        for layer in self.layers:
            layer.prepare_epoch(epoch, self.settings.epochs)

    def _prepare(self, epoch: int) -> None:
        """Tell recipes and layers of an epoch, unless it goes on, and show those that need it images."""
        self.recipes.begin(epoch, self.begun.batches if self.begun else 0)
        if self.begun is None:
            self._tell_layers(epoch)
        self.step.begin_epoch()
        if calibrated := [layer for layer in self.layers if layer.needs_calibration]:
            if self.calibration_batch is None:  # always the same images, also in a resumed run
                sample = self.loaders.train.sample(CALIBRATION_IMAGES, _drawing(self.seed, 0))
                self.calibration_batch = torch.cat([*sample]).to(self.device)
            self.model.eval()
            with products(self.settings.precision, self.device), torch.no_grad():
                self.model(self.calibration_batch)
            self.ranks.share(*calibrated)  # devices round differently, and clusters may differ for it

    def _train(self, epoch: int) -> tuple[float, int]:
        """Train for one epoch; return the sum of the losses, not finite if it diverged, and the number of images."""
        try:
            with self.ranks.training(self.model), products(self.settings.precision, self.device):
                own, trained = self._train_batches(epoch)
        except DivergedError as error:
            self.ranks.fail(error)  # which need not have happened on any other rank
            return math.nan, self.trained
        finally:
            self.begun = None
        total = float(self.ranks.total(torch.tensor(own)))
        self.ranks.gather_counts(self.layers)
        return total, trained

    def _train_batches(self, epoch: int) -> tuple[float, int]:
        """Train on the batches of an epoch that are left, and count those before them.

        Returns:
            The sum of the losses over the images, of several ranks the part of this one, and the number of all images.
        """
        step, images, begun = self.step, self.loaders.train, self.begun
        steps = -(-len(images) // (self.settings.batch_size * self.settings.accumulation))
        # On the processor, whatever the device: the order of the images and their augmentation.
        order = torch.Generator().manual_seed(self.seed + _EPOCH_STRIDE * (epoch + 1))
        batches, done, trained, summed = images.batches(order), 0, 0, 0.0
        if begun is not None:
            done, trained = begun.batches, begun.images
            batches, (summed, _) = images.batches(order, done), begun.part_of(self.ranks.rank, self.ranks.size)
        total = torch.full((), summed, device=self.device)
        step.model.train()
        for number, (x, y) in enumerate(batches, done):
            x, y = placed(x, self.device, self.settings.memory_format), y.to(self.device, non_blocking=True)
            self.trained = trained = trained + len(y)
            loss = step(x, y, self.generator, done_epochs=epoch + number // self.settings.accumulation / steps)
            total += loss * len(y)  # stays on the device: to read it would wait for every step
            if self.saves and not step.accumulates:
                self._save(number + 1, trained, total)
        step.update()
        return float(total), trained

    def _save(self, batches: int, images: int, total: Tensor) -> None:
        """Make a checkpoint inside an epoch, if one is due; of several ranks the first one decides."""
        leads = self.ranks.leads and self.saving is not None
        if self.ranks.size > 1:
            if batches // self.settings.accumulation % _STEPS_OF_RANKS:
                return
            due = bool(self.ranks.total(torch.tensor(int(leads and self._due()))))
        else:
            due = self._due()
        if not due:
            return
        losses, layers = zip(
            *self.ranks.gather((float(total), [layer.epoch_state() for layer in self.layers])), strict=True
        )
        if leads:
            assert self.saving is not None
            self.saving.save(self._checkpoint(EpochProgress(batches, images, losses, layers)))

    def _due(self) -> bool:
        return self.saving is not None and self.saving.due()

    def _fit_statistics(self, epoch: int) -> int:
        """Estimate the statistics with which the model is evaluated after an epoch; return the sample passes of it.

        In training every batch is normalized by its own statistics, so what is written here changes no training step.
        """
        settings, device, images = self.settings, self.device, self.loaders.train
        if settings.evaluation_statistics == "running" or not normalizations(self.model):
            return 0
        wanted = statistics_images(epoch, settings.epochs)
        sample = images.sample(wanted, _drawing(self.seed, epoch + 1))
        with products(settings.precision, device), autocast(settings.precision, device), torch.no_grad():
            estimate_statistics(self.model, (placed(batch, device, settings.memory_format) for batch in sample))
        return statistics_passes(min(wanted, len(images)))


def _drawing(seed: int, number: int) -> torch.Generator:
    """Return the generator that draws a sample of training images: the same in a resumed run."""
    return torch.Generator().manual_seed(seed + _SAMPLE_STRIDE * (number + 1))
