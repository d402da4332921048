"""Accuracy and balanced accuracy of an evaluation, where they rank two predictors differently."""

import torch
from torch import Tensor, nn

from nas_blockout.data import Loader, Part
from nas_blockout.training import evaluate
from nas_blockout.training.evaluation import balanced_accuracy

LABELS = torch.tensor([0] * 18 + [1] * 2)  # an imbalanced set: nine of ten images are of one class


class Predictor(nn.Module):
    """Predicts what the one pixel of an image says, in the way of one of two predictors."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.predictions[x.flatten().long()], 2).float()


def evaluated(predictions: list[int]) -> tuple[float, float]:
    part = Part(torch.arange(20.0).view(20, 1, 1, 1), LABELS)
    found = evaluate(Predictor(torch.tensor(predictions)), Loader(part, batch_size=7))
    return found.accuracy, found.balanced_accuracy


def test_two_predictors_are_ranked_differently() -> None:
    always_common = evaluated([0] * 20)
    finds_the_rare = evaluated([0] * 15 + [1] * 5)  # three of the common are lost for both of the rare
    assert always_common == (0.9, 0.5)
    assert finds_the_rare == (0.85, (15 / 18 + 1) / 2)
    assert always_common[0] > finds_the_rare[0]
    assert always_common[1] < finds_the_rare[1]


def test_classes_that_are_not_there_do_not_count() -> None:
    assert balanced_accuracy(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])) == 0.75
    assert balanced_accuracy(torch.tensor([1]), torch.tensor([2])) == 0.0
