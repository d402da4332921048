"""Accuracy by class: recalls, their mean, and Wilson's interval against its defining equation and published values."""

import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from nas_blockout.statistics.recalls import balanced_accuracy, recalls, wilson

UNEQUAL = [[90, 0], [10, 0], [0, 0]]


def test_recalls_are_shares_of_rows() -> None:
    assert recalls([[3, 1], [2, 2]]) == [0.75, 0.5]
    assert recalls([[0, 0], [1, 3]]) == [None, 0.75]


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    confusion = [[80, 10, 0], [5, 4, 1], [0, 2, 1]]
    pairs = [(true, found) for true, row in enumerate(confusion) for found, n in enumerate(row) for _ in range(n)]
    expected = balanced_accuracy_score(*zip(*pairs, strict=True))
    assert balanced_accuracy(confusion) == pytest.approx(expected, abs=1e-12)


def test_a_class_without_images_does_not_count_and_none_is_refused() -> None:
    assert balanced_accuracy([[9, 1, 0], [0, 0, 0], [1, 0, 1]]) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="needs a class with images, got none"):
        balanced_accuracy([[0, 0], [0, 0]])


@pytest.mark.parametrize(("right", "images"), [(0, 10), (3, 10), (10, 10), (81, 263), (1, 1)])
def test_the_interval_is_that_of_scipy(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("share", "images"), [(0.5, 0), (-0.1, 3), (1.1, 3)])
def test_what_is_no_share_of_images_is_refused(share: float, images: int) -> None:
    with pytest.raises(ValueError, match="needs a share in"):
        wilson(share, images)
