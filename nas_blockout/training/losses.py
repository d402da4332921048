"""The losses that a training may have: cross-entropy, and those of plug-ins, each as losses of single images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from nas_blockout.plugins.choices import Choices, require_settings
from nas_blockout.plugins.installed import Origin

PLAIN_LOSS = "cross_entropy"


@dataclass(frozen=True, slots=True)
class Loss:
    """What a training makes small, as a plug-in says it.

    The training loop does the rest: it makes targets of labels, smooths them by ``label_smoothing``, weights images by
    ``class_weights``, and takes the mean. So all settings of a training go with every loss.

    Args:
        settings: A frozen dataclass of its settings, which all have a default; in a study they are
            ``training.loss_options``.
        per_image: Returns the loss of every image, shape ``(batch,)``: ``per_image(settings, logits, targets)`` with
            logits, shape ``(batch, classes)``, and the probability of every class, shape ``(batch, classes)``, rows of
            which sum to 1. Both are float32 (or float64) on one device; autocast is off. What it returns for an image
            depends on the row of this image alone, and on no random draw.
        summary: What it is, in one line.
    """

    settings: type
    per_image: Callable[[Any, Tensor, Tensor], Tensor]
    summary: str = "a plug-in"


@dataclass(frozen=True, slots=True)
class CrossEntropySettings:
    """Settings of cross-entropy, which has none of its own."""


def cross_entropies(settings: CrossEntropySettings, logits: Tensor, targets: Tensor) -> Tensor:
    r"""Return :math:`-\sum_c q_c \log p_c` of every image, where q are its targets and p the softmax of its logits.

    Args:
        settings: None.
        logits: Shape ``(batch, classes)``.
        targets: Probability of every class, shape ``(batch, classes)``.
    """
    return F.cross_entropy(logits, targets, reduction="none")


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {PLAIN_LOSS: Loss(CrossEntropySettings, cross_entropies, summary="cross-entropy")}
)


def _read(found: Any, origin: Origin) -> Loss:
    """Return the loss that a plug-in stands for.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(found, Loss):
        raise ValueError(f"it must be a nas_blockout.training.Loss, with its settings and a function, got {found!r}")
    require_settings(found.settings)
    return found


CHOICES: Choices[Loss] = Choices("loss", LOSSES, _read, key="training.loss")
