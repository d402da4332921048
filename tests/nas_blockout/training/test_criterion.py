"""The criterion is torch's cross-entropy, and balanced weights are scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from nas_blockout.training import TrainingSettings
from nas_blockout.training.recipes.criterion import CrossEntropy, balanced_weights, criterion_of

LABELS = torch.tensor([0, 0, 1, 2, 2, 2, 2, 3])
COUNTS = (2, 1, 4, 1)


def logits() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_it_is_the_cross_entropy_of_torch(smoothing: float, weighted: bool, mixed: bool) -> None:
    weights = torch.tensor(balanced_weights(COUNTS), dtype=torch.float64) if weighted else None
    target = logits().softmax(1).roll(1, 0) if mixed else LABELS
    ours, theirs = logits().requires_grad_(), logits().requires_grad_()
    found = CrossEntropy(smoothing, weights)(ours, target)
    expected = nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(theirs, target)
    found.backward()
    expected.backward()
    assert torch.equal(found, expected)
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


def test_smoothing_is_the_sum_of_its_definition() -> None:
    smooth = torch.full((8, 4), 0.1 / 4, dtype=torch.float64)
    smooth[range(8), LABELS] += 0.9
    expected = -(smooth * logits().log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(CrossEntropy(0.1)(logits(), LABELS), expected)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS.numpy())
    assert balanced_weights(COUNTS) == pytest.approx(expected.tolist())
    assert balanced_weights((3, 0, 3)) == [2 / 3, 0.0, 2 / 3]


def test_weights_keep_their_precision_and_follow_the_logits() -> None:
    criterion = criterion_of(TrainingSettings(class_weights="balanced"), COUNTS, device="cpu")
    assert criterion is not None
    assert criterion(logits().bfloat16(), LABELS).dtype == torch.bfloat16
    assert criterion(logits(), LABELS).dtype == torch.float64


def test_a_plain_training_has_no_criterion_of_its_own() -> None:
    assert criterion_of(TrainingSettings(), COUNTS, device="cpu") is None


def test_weights_need_the_counts_of_the_classes() -> None:
    with pytest.raises(ValueError, match=r"class_weights needs .*give Loaders their class_counts"):
        criterion_of(TrainingSettings(class_weights="balanced"), None, device="cpu")
