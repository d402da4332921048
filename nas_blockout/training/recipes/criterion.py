"""What a training takes for the error of its logits: a loss, with smoothed labels and weighted classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.plugins.options import settings_from
from nas_blockout.serialization import to_json
from nas_blockout.settings_fields import PlainMapping
from nas_blockout.training.losses import CHOICES, PLAIN_LOSS
from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import Criterion


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    r"""Mean cross-entropy of a batch, as `torch.nn.CrossEntropyLoss` computes it.

    .. math:: L = -\sum_c w_c \big((1 - \varepsilon)\, q_c + \varepsilon / K\big) \log p_c

    where q is the target, p the softmax of the logits, w are the `weights` of the K classes and :math:`\varepsilon` is
    `label_smoothing`. The mean over a batch of labels is weighted by the w of the labels; that of a batch of mixed
    images, whose targets are probabilities, is the plain one.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        weights: Of the classes, shape ``(classes,)``; None for equal ones.

    References:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. Rethinking the Inception Architecture for Computer Vision. CVPR 2016,
        section 7.
    """

    label_smoothing: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over the batch, a scalar.

        Args:
            logits: Shape ``(batch, classes)``.
            target: Labels, shape ``(batch,)``, or the probability of every class, shape ``(batch, classes)``.
        """
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        return F.cross_entropy(logits, target, weight=weights, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, slots=True, eq=False)
class MeanLoss:
    r"""Mean loss of a batch, of the losses of its images.

    .. math:: L = \sum_i v_i\, \ell\big(z_i, (1 - \varepsilon)\, q_i + \varepsilon / K\big) \Big/ \sum_i v_i,
        \qquad v_i = \sum_c w_c q_{ic}

    where z are logits, q targets, w the `weights` of the K classes and :math:`\varepsilon` is `label_smoothing`. Of
    mixed images, whose targets are no labels, the sum is divided by their number instead, as `CrossEntropy` does.

    Args:
        name: Name of the loss, for errors.
        per_image: Its function, as in `nas_blockout.training.losses.Loss`.
        own: Its settings.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        weights: Of the classes, shape ``(classes,)``; None for equal ones.
    """

    name: str
    per_image: Callable[[Any, Tensor, Tensor], Tensor]
    own: Any
    label_smoothing: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over the batch, a scalar.

        Args:
            logits: Shape ``(batch, classes)``, in any precision: the loss is computed in float32 at least.
            target: Labels, shape ``(batch,)``, or the probability of every class, shape ``(batch, classes)``.

        Raises:
            ValueError: The loss returns something else than a number for each image.
        """
        with torch.autocast(logits.device.type, enabled=False):
            z = logits if logits.dtype == torch.float64 else logits.float()
            are_labels = target.dim() == 1
            # In place of `F.one_hot`, which looks at labels: a compiled step cannot, and would wait for a device.
            one = target[:, None] == torch.arange(z.shape[1], device=z.device) if are_labels else target
            q = one.to(z.dtype)
            smoothed = q * (1 - self.label_smoothing) + self.label_smoothing / z.shape[1] if self.label_smoothing else q
            losses = self.per_image(self.own, z, smoothed)
            if losses.shape != z.shape[:1]:
                raise ValueError(
                    f"the loss {self.name} must return one number for each of {len(z)} images, got the shape "
                    f"{tuple(losses.shape)}"
                )
            if self.weights is None:
                return losses.mean()
            weights = q @ self.weights.to(z.dtype)
            return (losses * weights).sum() / weights.sum() if are_labels else (losses * weights).mean()


def own_settings(settings: TrainingSettings) -> Any:
    """Return the settings of the loss of a training; that of a plug-in is imported.

    Raises:
        Conflict: There is no such loss, it cannot be used, or refuses its settings.
    """
    return settings_from(CHOICES.named(settings.loss).settings, settings.loss_options, where="training.loss_options")


def resolved(settings: TrainingSettings) -> TrainingSettings:
    """Return settings with the one name of their loss, and with every setting of a plug-in's.

    Raises:
        Conflict: As of `own_settings`.
    """
    if settings.loss == PLAIN_LOSS:
        return settings
    own = own_settings(settings)
    return replace(settings, loss=CHOICES.canonical(settings.loss), loss_options=PlainMapping(to_json(own)))


def criterion_of(
    settings: TrainingSettings, class_counts: Sequence[int] | None, *, device: str | torch.device
) -> Criterion | None:
    """Return the criterion that a training asks for; None for the plain cross-entropy.

    Args:
        settings: How to train.
        class_counts: Training images of each class.
        device: Where the model is.

    Raises:
        ValueError: Weights of the classes are asked for and their images are not counted; or the loss of a plug-in
            cannot be used.
    """
    weighted = settings.class_weights == "balanced"
    plain = settings.loss == PLAIN_LOSS
    if plain and not weighted and not settings.label_smoothing:
        return None
    counts = require_counts(class_counts, "class_weights") if weighted else ()
    weights = torch.tensor(balanced_weights(counts), device=device) if weighted else None
    if plain:
        return CrossEntropy(settings.label_smoothing, weights)
    own = own_settings(settings)
    return MeanLoss(settings.loss, CHOICES.named(settings.loss).per_image, own, settings.label_smoothing, weights)


def balanced_weights(class_counts: Sequence[int]) -> list[float]:
    """Return the weights with which all classes count alike: images over classes times images of the class.

    Args:
        class_counts: Training images of each class; a class without any has the weight 0.
    """
    images, classes = sum(class_counts), len(class_counts)
    return [images / (classes * count) if count else 0.0 for count in class_counts]


def require_counts(class_counts: Sequence[int] | None, setting: str) -> Sequence[int]:
    """Return the images of each class.

    Raises:
        ValueError: They are not known.
    """
    if class_counts is None:
        raise ValueError(f"{setting} needs the training images of each class: give Loaders their class_counts")
    return class_counts
