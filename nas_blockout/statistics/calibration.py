"""Calibrated probabilities: one temperature for all logits, and how far confidence and accuracy are apart."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
SMALLEST, LARGEST = 0.05, 20.0  # temperatures that are looked at; where all images are right, no smallest one is best
MOST_IMAGES = 10_000  # that are looked at; of more, so many at random
_HALVINGS = 60
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over images, with a 95% interval.

    Args:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """How good the probabilities of a set of images are.

    Args:
        images: Number of images.
        nll: Negative log-likelihood of the labels, in nats an image, at least 0.
        ece: Expected calibration error, in [0, 1].
    """

    images: int
    nll: Estimate
    ece: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        pairs = {"nll": self.nll, "ece": self.ece}
        return {"images": self.images} | {
            name: {"value": each.value, "ci95": [each.low, each.high]} for name, each in pairs.items()
        }


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""Return the temperature :math:`T` by which logits are divided so that the labels are most likely.

    .. math:: \min_T -\frac1n \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

    The order of the classes of an image does not depend on it. The loss is convex in :math:`1/T`, so that the sign of
    its derivative, which bisection follows, leads to the minimum.

    Args:
        logits: :math:`z`, shape ``(images, classes)``, of images that were not trained on.
        labels: :math:`y`, shape ``(images,)``.

    Returns:
        A temperature in [0.05, 20]; an end of that range if the minimum lies beyond it, as where every image is
        classified as labeled.

    Raises:
        ValueError: There is no image, or a logit is not finite.

    References:
        Guo, C. et al. On calibration of modern neural networks. ICML 2017, section 4.2.
    """
    z = _checked(logits, labels)
    of_label = z.gather(1, labels[:, None])[:, 0].mean()

    def slope(inverse: float) -> float:
        return float(((inverse * z).softmax(1) * z).sum(1).mean() - of_label)

    low, high = 1 / LARGEST, 1 / SMALLEST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    # Both ends of the range are reached exactly: bisection only comes close to them.
    return min(LARGEST, max(SMALLEST, float(f"{(low * high) ** -0.5:.6g}")))


def calibration_error(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> CalibrationError:
    r"""Return how good the probabilities :math:`\mathrm{softmax}(z / T)` are, with 95% intervals over the images.

    The expected calibration error has 15 bins of equal width by confidence, the largest probability of an image:

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \left| \mathrm{acc}_b - \mathrm{conf}_b \right|

    Intervals are percentiles of 1,000 bootstrap samples of the images. They do not cover another training or another
    temperature; and the error of few images is larger than that of many, since deviations in bins do not cancel.

    Args:
        logits: :math:`z`, shape ``(images, classes)``.
        labels: Shape ``(images,)``.
        temperature: :math:`T`, above 0.

    Raises:
        ValueError: There is no image, or a logit is not finite.

    References:
        Guo, C. et al. On calibration of modern neural networks. ICML 2017, equations 2 to 5.
    """
    z = _checked(logits, labels) / temperature
    losses = F.cross_entropy(z, labels, reduction="none")
    confidence, predicted = z.softmax(1).max(1)
    # Bins are (0, 1/15], ..., (14/15, 1].
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = (predicted == labels).double() - confidence
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(_RESAMPLES):
        rows = torch.randint(len(z), (len(z),), generator=generator)
        samples.append((float(losses[rows].mean()), _ece(bins[rows], gaps[rows])))
    ends = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double(), 0)
    nll, ece = float(losses.mean()), _ece(bins, gaps)
    return CalibrationError(
        len(z),
        Estimate(nll, float(ends[0, 0]), float(ends[1, 0])),
        Estimate(ece, float(ends[0, 1]), float(ends[1, 1])),
    )


def calibrated(validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
    """Fit a temperature on validation images; return it with the errors before and after, as plain JSON types.

    Args:
        validation: Logits and labels.
        test: Likewise those of the one evaluation on test images, or None if there was none after the fit.

    Returns:
        ``temperature``, and for ``validation`` and ``test`` the errors ``before`` and ``after``, as of
        `CalibrationError.to_json`; ``test`` is None without test images.

    Raises:
        ValueError: As of `fit_temperature`.
    """
    temperature = fit_temperature(*_at_most(*validation))
    return {
        "temperature": temperature,
        "validation": _before_and_after(validation, temperature),
        "test": None if test is None else _before_and_after(test, temperature),
    }


def _before_and_after(images: tuple[Tensor, Tensor], temperature: float) -> dict[str, Any]:
    logits, labels = _at_most(*images)
    return {
        "before": calibration_error(logits, labels).to_json(),
        "after": calibration_error(logits, labels, temperature=temperature).to_json(),
    }


def _at_most(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if len(labels) <= MOST_IMAGES:
        return logits, labels
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]
    return logits[rows], labels[rows]


def _ece(bins: Tensor, gaps: Tensor) -> float:
    return float(torch.bincount(bins, gaps, minlength=BINS).abs().sum()) / len(bins)


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    if not len(labels) or logits.shape[:1] != labels.shape:
        raise ValueError(f"logits must have a row for each label, at least one; got {len(logits)} and {len(labels)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite to be calibrated; the training has diverged: choose another model")
    return logits.double()
