"""What a training takes for the error of its logits: cross-entropy with smoothed labels and weighted classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.training.training_settings import TrainingSettings


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


def criterion_of(
    settings: TrainingSettings, class_counts: Sequence[int] | None, *, device: str | torch.device
) -> CrossEntropy | None:
    """Return the criterion that a training asks for; None for the plain cross-entropy.

    Args:
        settings: How to train.
        class_counts: Training images of each class.
        device: Where the model is.

    Raises:
        ValueError: Weights of the classes are asked for and their images are not counted.
    """
    weighted = settings.class_weights == "balanced"
    if not weighted and not settings.label_smoothing:
        return None
    counts = require_counts(class_counts, "class_weights") if weighted else ()
    weights = torch.tensor(balanced_weights(counts), device=device) if weighted else None
    return CrossEntropy(settings.label_smoothing, weights)


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
