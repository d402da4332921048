"""Which images are less like those of validation than nearly all of them: a threshold on the energy of the logits."""

import torch
from torch import Tensor

QUANTILE = 0.01  # of the validation images that fall below the threshold


def energy(logits: Tensor) -> Tensor:
    r"""Return a score of images from their logits alone, higher for what the model was trained for.

    .. math:: \log \sum_c e^{z_c}

    Args:
        logits: :math:`z`, shape ``(batch, classes)``, as the model gives them, not divided by a temperature.

    Returns:
        Shape ``(batch,)``: the negative free energy at temperature 1.

    References:
        Liu, W. et al. Energy-based out-of-distribution detection. NeurIPS 2020, equation 3.
    """
    return torch.logsumexp(logits.double(), 1)


def threshold_of(logits: Tensor) -> float | None:
    """Return the energy that 1% of images fall below, or None for fewer than 100, of which no single one is 1%.

    It is a value between two of the sorted energies, so that at most ``QUANTILE`` of these very images lie below it.

    Args:
        logits: Of the validation images, shape ``(images, classes)``.
    """
    if len(logits) * QUANTILE < 1:
        return None
    return float(energy(logits).quantile(QUANTILE, interpolation="lower"))
