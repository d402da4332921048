"""Loss: images that the network gets right already count less."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from nas_blockout.settings_fields import Range, check
from nas_blockout.training import Loss


@dataclass(frozen=True, slots=True)
class FocalSettings:
    """Settings of the focal loss.

    Args:
        gamma: Exponent of what a class lacks of probability 1; 0 is cross-entropy.
    """

    gamma: Annotated[float, Range(ge=0, le=10)] = 2.0

    def __post_init__(self) -> None:
        check(self)


def focal_losses(settings: FocalSettings, logits: Tensor, targets: Tensor) -> Tensor:
    r"""Return :math:`-\sum_c q_c (1 - p_c)^\gamma \log p_c` of every image, where q are its targets.

    Args:
        settings: With the exponent.
        logits: Shape ``(batch, classes)``; p is their softmax.
        targets: Probability of every class, shape ``(batch, classes)``.

    References:
        Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017, eq. 4.
    """
    log_p = logits.log_softmax(1)
    lacking = (1 - log_p.exp()).clamp_min(1e-6)  # of 0, the gradient of a broken power would be infinite
    return -(targets * lacking.pow(settings.gamma) * log_p).sum(1)


FOCAL = Loss(FocalSettings, focal_losses, summary="focal loss: what is right already counts less")
