"""Accuracy class by class, from a confusion matrix: recalls, their mean, and intervals of Wilson."""

import math
from collections.abc import Sequence

Interval = tuple[float, float]
_Z = 1.959963984540054  # the 97.5% point of the normal distribution


def recalls(confusion: Sequence[Sequence[int]]) -> list[float | None]:
    """Return for each class the share of its images that were recognized; None for a class without images.

    Args:
        confusion: Numbers of images by true and predicted class.
    """
    return [row[label] / images if (images := sum(row)) else None for label, row in enumerate(confusion)]


def balanced_accuracy(confusion: Sequence[Sequence[int]]) -> float:
    """Return the mean of the recalls of the classes that have images.

    Args:
        confusion: Numbers of images by true and predicted class, one image or more.

    Raises:
        ValueError: There is no image.
    """
    known = [recall for recall in recalls(confusion) if recall is not None]
    if not known:
        raise ValueError("a balanced accuracy needs a class with images, got none: give a confusion matrix of some")
    return sum(known) / len(known)


def wilson(share: float, images: int) -> Interval:
    """Return the 95% score interval of a share of images.

    It keeps its 95% where classes are small and shares near 0 or 1, where the interval of the normal distribution has
    no width at all.

    Args:
        share: In [0, 1].
        images: Of the class, 1 or more.

    Raises:
        ValueError: One is out of its range.

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927. Brown, Cai, DasGupta,
        "Interval Estimation for a Binomial Proportion", Statistical Science 2001.
    """
    if images < 1 or not 0 <= share <= 1:
        raise ValueError(f"an interval needs a share in [0, 1] of 1 image or more, got {share} of {images}")
    spread = _Z**2 / images
    middle = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / images + spread / (4 * images))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
