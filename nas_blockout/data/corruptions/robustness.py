"""How much corruption costs: corrupted splits, and the errors on them in one number.

References:
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    ICLR 2019, section 4.2.
"""

from collections.abc import Mapping, Sequence

import torch

from nas_blockout.data.corruptions.registry import corrupt
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.splits import AnyPart
from nas_blockout.data.tensor_dataset import Part

Errors = Mapping[str, Sequence[float]]
_IMAGES_AT_ONCE = 512


def corrupted(part: AnyPart, preprocessing: Preprocessing, name: str, *, severity: int, seed: int) -> Part:
    """Return a split with every image corrupted, normalized as before.

    Args:
        part: Normalized images.
        preprocessing: With which they were normalized.
        name: Kind of corruption.
        severity: In 1..5.
        seed: Of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = [
        preprocessing.apply(corrupt(preprocessing.undo(images), name, severity=severity, generator=generator))
        for images, _ in part.gather(torch.split(torch.arange(len(part)), _IMAGES_AT_ONCE))
    ]
    return Part(torch.cat(batches), part.labels, part.background)


def mean_corruption_error(errors: Errors, baseline: Errors | None = None) -> float:
    r"""Average the error over kinds of corruption, each as a share of a baseline's.

    .. math:: mCE = \frac{1}{|C|} \sum_{c \in C} \frac{\sum_s E_{s,c}}{\sum_s E^{baseline}_{s,c}}

    Args:
        errors: For each kind the error, in [0, 1], at each severity; `E_{s,c}`. The paper has all five.
        baseline: Likewise for the network that all are compared with; None for the plain mean of the errors.

    Returns:
        The mean corruption error as a share: 1 is the baseline's.

    Raises:
        ValueError: Kinds or severities differ, or the baseline makes no error on a kind.
    """
    _require_same(errors, baseline)
    if baseline is None:
        return sum(sum(values) / len(values) for values in errors.values()) / len(errors)
    ratios = []
    for name, values in errors.items():
        reference = sum(baseline[name])
        if reference <= 0:
            raise ValueError(
                f"the baseline must make errors on {name}, got {reference}; leave the kind out or use another baseline"
            )
        ratios.append(sum(values) / reference)
    return sum(ratios) / len(ratios)


def _require_same(errors: Errors, baseline: Errors | None) -> None:
    if not errors:
        raise ValueError("errors must have at least one kind of corruption, got none")
    amounts = {len(values) for table in (errors, baseline or {}) for values in table.values()}
    if (baseline is not None and set(baseline) != set(errors)) or len(amounts) > 1 or 0 in amounts:
        severities = [{name: len(values) for name, values in table.items()} for table in (errors, baseline or {})]
        raise ValueError(
            f"every kind needs errors at the same severities, and both tables the same kinds; "
            f"got {severities[0]} against {severities[1]}"
        )
