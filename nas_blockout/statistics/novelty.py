"""Which images are less like those of validation than nearly all of them, by their logits or by their own statistics.

Each of the two misses what the other finds (`docs/guides/exported-models.md` has a table): a network may be sure of
noise, and a digit has the brightness of a piece of clothing. So an image is unlike the validation images if either says
so, each with half of the false alarms.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

QUANTILE = 0.01  # of the validation images, at most, that are called unlike the others
_LEAST_VARIANCE = 1e-9


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


def image_statistics(images: Tensor) -> Tensor:
    """Return mean, standard deviation and mean step between neighbors in a row of each image, over all channels.

    Args:
        images: In [0, 1], shape ``(batch, channels, height, width)``.

    Returns:
        Shape ``(batch, 3)``, in double precision.
    """
    pixels = images.double()
    flat = pixels.flatten(1)
    steps = (pixels[..., 1:] - pixels[..., :-1]).abs().flatten(1)
    step = steps.mean(1) if steps.shape[1] else torch.zeros(len(images), dtype=torch.float64)
    return torch.stack([flat.mean(1), flat.std(1, unbiased=False), step], 1)


def thresholds_of(logits: Tensor, statistics: Tensor) -> dict[str, Any] | None:
    """Return by what `is_unlike` tells images, as plain JSON types, of the validation images.

    Thresholds lie at the images themselves, so that at most ``QUANTILE`` of these very images are beyond one.

    Args:
        logits: Of the validation images, shape ``(images, classes)``.
        statistics: As of `image_statistics`, shape ``(images, 3)``.

    Returns:
        ``energy``, the least energy; ``center``, ``precision`` and ``distance``, the largest Mahalanobis distance of
        the statistics; ``quantile`` and ``images``. None for too few images for a half of ``QUANTILE`` to be one of
        them, or logits that are not finite.
    """
    if len(logits) * QUANTILE / 2 < 1 or not bool(logits.isfinite().all()):
        return None
    center = statistics.mean(0)
    precision = torch.linalg.inv(torch.cov(statistics.T) + _LEAST_VARIANCE * torch.eye(3, dtype=torch.float64))
    distances = _distances(statistics, center, precision)
    return {
        "energy": float(energy(logits).quantile(QUANTILE / 2, interpolation="lower")),
        "center": center.tolist(),
        "precision": precision.tolist(),
        "distance": float(distances.quantile(1 - QUANTILE / 2, interpolation="higher")),
        "quantile": QUANTILE,
        "images": len(logits),
    }


def is_unlike(logits: Tensor, images: Tensor, known: Mapping[str, Any]) -> Tensor:
    """Return which images are less like the validation images than nearly all of them, shape ``(batch,)``.

    Args:
        logits: Shape ``(batch, classes)``.
        images: In [0, 1], shape ``(batch, channels, height, width)``.
        known: As of `thresholds_of`.
    """
    center, precision = (torch.tensor(known[name], dtype=torch.float64) for name in ("center", "precision"))
    distances = _distances(image_statistics(images), center, precision)
    marked: Tensor = (energy(logits) < known["energy"]) | (distances > known["distance"])
    return marked


def _distances(statistics: Tensor, center: Tensor, precision: Tensor) -> Tensor:
    away = statistics - center
    return ((away @ precision) * away).sum(1).clamp(min=0).sqrt()
