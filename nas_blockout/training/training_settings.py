"""The settings of a training, and what it is charged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from nas_blockout.batch_statistics import statistics_images, statistics_passes
from nas_blockout.plugins.options import PLUGIN_NAME, misnamed
from nas_blockout.settings_fields import Conflict, OneOf, PlainMapping, Range, check, refuse
from nas_blockout.training.losses import LOSSES, PLAIN_LOSS

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant", "step", "linear", "one-cycle"]
Statistics = Literal["estimated", "running"]
ClassWeights = Literal["none", "balanced"]
Sampling = Literal["shuffled", "balanced"]
NORMS_AND_BIASES = "norms-and-biases"
Precision = Literal["float32", "tf32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Settings of training.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step; batch normalization needs at least 2.
        optimizer: ``sgd`` with Nesterov momentum, or ``adamw``.
        learning_rate: Peak learning rate.
        weight_decay: Decay of all weights but those of `no_decay`.
        momentum: Momentum of ``sgd``; unused by ``adamw``.
        schedule: ``cosine`` and ``linear`` decay to zero over all steps; ``step`` decays at `schedule_milestones`;
            ``one-cycle`` rises from a 25th of the peak to the peak, and falls to a 250,000th, along cosines;
            ``constant`` does not decay.
        warmup_epochs: Epochs over which the learning rate rises linearly from zero, whatever the schedule.
        evaluation_statistics: Statistics of batch normalization in evaluation: ``estimated`` after each epoch from
            training images, as the evaluated network computes them, or ``running``, as training gathered them under
            its masks, which scores another network than the one that is evaluated; for studies of version 1.
        precision: Numbers in which the network computes: ``float32``; ``tf32``, products of matrices and convolutions
            in TensorFloat-32 on NVIDIA cards, elsewhere float32; or ``bf16``, these products in bfloat16 by autocast.
            Parameters and the loss are float32 in each.
        compile: Whether a training step is compiled by `torch.compile`; takes a compiler and a minute or more.
        memory_format: Order of images and convolution weights in memory: ``contiguous`` or ``channels_last``, which
            suits half precision on cards.
        schedule_milestones: Shares of the training after each of which ``step`` multiplies the rate by
            `schedule_factor`.
        schedule_factor: Factor of ``step`` at every milestone.
        schedule_rise: Share of the training in which ``one-cycle`` rises to the peak.
        no_decay: Parameters whose weights do not decay: ``norms-and-biases`` for those of one dimension or none, and
            patterns of parameter names, such as ``head.*``. A pattern fits a name or what follows one of its dots.
        label_smoothing: Share of the target that is spread evenly over all classes.
        mixup: Alpha of the Beta distribution from which mixup draws how two images are mixed; 0 for no mixup.
        cutmix: Alpha of the Beta distribution from which CutMix draws how much of an image a piece of another covers;
            0 for no CutMix. With both, either is drawn for every batch with probability one half.
        class_weights: ``balanced`` weights the loss of a class inversely to its share of the training images.
        sampling: ``shuffled`` shows every image once an epoch; ``balanced`` draws as many with replacement, every
            class as often as any other.
        accumulation: Batches whose gradients are averaged for one step of the optimizer.
        gradient_clip: Largest Euclidean norm of the gradient of all parameters; None for no limit.
        ema: Decay of the exponential moving average of the weights, a step of the optimizer at a time; the averaged
            network is the one that is evaluated, saved, derived from and exported. None for no average.
        loss: What is made small: ``cross_entropy``, or a plug-in. Smoothed labels, mixed images and weighted classes go
            with every loss; the loss of the validation images is the cross-entropy of their labels always.
        loss_options: Settings of a loss that is a plug-in; the built-in one has none.

    Raises:
        Conflict: Settings do not fit together.
    """

    epochs: Annotated[int, Range(ge=1)] = 10
    batch_size: Annotated[int, Range(ge=2)] = 64
    optimizer: Optimizer = "adamw"
    learning_rate: Annotated[float, Range(gt=0)] = 2e-3
    weight_decay: Annotated[float, Range(ge=0)] = 1e-4
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9
    schedule: Schedule = "cosine"
    warmup_epochs: Annotated[float, Range(ge=0)] = 0.0
    evaluation_statistics: Statistics = "estimated"
    schedule_milestones: tuple[Annotated[float, Range(gt=0, lt=1)], ...] = (0.5, 0.75)
    schedule_factor: Annotated[float, Range(gt=0, le=1)] = 0.1
    schedule_rise: Annotated[float, Range(gt=0, lt=1)] = 0.3
    no_decay: tuple[str, ...] = (NORMS_AND_BIASES,)
    label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0
    mixup: Annotated[float, Range(ge=0)] = 0.0
    cutmix: Annotated[float, Range(ge=0)] = 0.0
    class_weights: ClassWeights = "none"
    sampling: Sampling = "shuffled"
    accumulation: Annotated[int, Range(ge=1)] = 1
    gradient_clip: Annotated[float, Range(gt=0)] | None = None
    ema: Annotated[float, Range(ge=0, lt=1)] | None = None
    loss: Annotated[str, OneOf((PLAIN_LOSS,), PLUGIN_NAME)] = PLAIN_LOSS
    loss_options: PlainMapping = PlainMapping()  # noqa: RUF009  # it is immutable
    precision: Precision = "float32"
    compile: bool = False
    memory_format: MemoryFormat = "contiguous"

    def __post_init__(self) -> None:
        check(self)
        refuse(self._conflicts())

    def _conflicts(self) -> Iterator[Conflict]:
        yield from misnamed("loss", LOSSES, self.loss, self.loss_options, key="loss", options_key="loss_options")
        if self.class_weights == "balanced" and self.sampling == "balanced":
            message = (
                "class_weights and sampling must not both be balanced, which corrects the imbalance twice; keep one"
            )
            yield Conflict(message, "class_weights", "sampling")
        if self.ema is not None and self.evaluation_statistics == "running":
            message = "ema needs evaluation_statistics estimated: the running ones are not those of averaged weights"
            yield Conflict(message, "ema", "evaluation_statistics")


def sample_passes(settings: TrainingSettings, images: int) -> int:
    """Return what a whole training on so many images is charged: its epochs, each with its estimate of statistics."""
    epochs = settings.epochs
    if settings.evaluation_statistics == "running":
        return epochs * images

    def charged(epoch: int) -> int:
        return images + statistics_passes(min(images, statistics_images(epoch, epochs)))

    return (epochs - 1) * charged(0) + charged(epochs - 1)  # only the last one is estimated from more images
