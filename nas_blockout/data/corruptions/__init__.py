"""Corrupted images: the kinds of ImageNet-C that can be computed without outside files, at five severities.

Fifteen kinds are for testing and four more for tuning, so that nothing is tuned on what is tested. Parameters start
from those that the paper's authors published for images of 32 pixels (CIFAR-10-C); lengths grow with larger images, and
stay for smaller ones. Where ours differ, `Corruption.differs` says how.

References:
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    ICLR 2019.
"""

from nas_blockout.data.corruptions.cache import CorruptedImages
from nas_blockout.data.corruptions.registry import CORRUPTIONS, SEVERITIES, TESTING, Corruption, corrupt
from nas_blockout.data.corruptions.robustness import corrupted, mean_corruption_error

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "TESTING",
    "CorruptedImages",
    "Corruption",
    "corrupt",
    "corrupted",
    "mean_corruption_error",
]
