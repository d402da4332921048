"""How far groups of classes that were learned agree with groups that are known, and how far shuffled ones would.

The measure is adjusted mutual information: 1 where the groups are the same, 0 on average where they have nothing to do
with each other, however many groups there are and however unequal.

References:
    Vinh, Epps, Bailey. Information Theoretic Measures for Clusterings Comparison: Variants, Properties, Normalization
    and Correction for Chance. JMLR 11, 2010.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
SHUFFLES = 999


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of one or more groupings of the same classes with a reference.

    Args:
        values: Adjusted mutual information of each grouping, at most 1.
        mean: Their mean.
        shuffled: 2.5% and 97.5% quantile of the mean when the classes of the reference are shuffled.
        p_value: Share of the shuffles, the real order among them, whose mean is no smaller.
    """

    values: tuple[float, ...]
    mean: float
    shuffled: tuple[float, float]
    p_value: float


def agreement(
    groupings: Sequence[ArrayLike], reference: ArrayLike, *, shuffles: int = SHUFFLES, seed: int = 0
) -> Agreement:
    """Compare groupings, such as those of several seeds, with a reference.

    A shuffle is the same for all groupings: that they resemble each other is no agreement with the reference.

    Args:
        groupings: For each grouping the group of every class, (groupings, classes).
        reference: The known group of every class, (classes,).
        shuffles: How often the reference is shuffled.
        seed: Of the shuffles.

    Raises:
        ValueError: There is no grouping, or one has another number of classes than the reference.
    """
    known = _numbered(reference)
    labelings = [_numbered(grouping) for grouping in groupings]
    if not labelings or any(len(grouping) != len(known) for grouping in labelings):
        sizes = [len(grouping) for grouping in labelings]
        raise ValueError(f"needs groupings of the {len(known)} classes of the reference, got {sizes} classes")
    draws = np.random.default_rng(seed)
    orders = np.stack([known, *(draws.permutation(known) for _ in range(shuffles))])
    values = np.stack([_adjusted(grouping, orders) for grouping in labelings])
    means = values.mean(axis=0)
    low, high = np.quantile(means[1:], [0.025, 0.975]) if shuffles else (0.0, 0.0)
    reached = float((means >= means[0] - 1e-12).mean())
    return Agreement(tuple(values[:, 0].tolist()), float(means[0]), (float(low), float(high)), reached)


def _numbered(labels: ArrayLike) -> Labels:
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


def _adjusted(grouping: Labels, orders: Labels) -> Array:
    """Return the adjusted mutual information of a grouping with each order of a reference, (orders,).

    Shuffling changes neither the entropies nor the expected information, so these are computed once.
    """
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information  # which takes a second

    entropy = (_entropy(np.bincount(grouping)) + _entropy(np.bincount(orders[0]))) / 2
    classes, groups, known = len(grouping), grouping.max() + 1, orders.max() + 1
    if groups == known == 1 or groups == known == classes:
        return np.ones(len(orders))  # all in one group, or each in its own, in both: the same groups in any order
    cells = (np.arange(len(orders))[:, None] * groups + grouping) * known + orders
    counts = np.bincount(cells.ravel(), minlength=len(orders) * groups * known).reshape(len(orders), groups, known)
    shares = counts / classes
    expected = shares.sum(2, keepdims=True) * shares.sum(1, keepdims=True)
    terms = np.where(counts > 0, shares * np.log(np.where(counts > 0, shares / expected, 1.0)), 0.0)
    chance = float(expected_mutual_information(contingency_matrix(grouping, orders[0]), classes))
    room = entropy - chance
    information: Array = terms.sum(axis=(1, 2)) - chance
    return information / (room if abs(room) > 1e-15 else 1e-15)


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
