"""Mixup and CutMix against torchvision's transforms, given the same draws, and the law of the draws."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.training import TrainingSettings
from nas_blockout.training.recipes.mixing import Mixing, blended, box_around, pasted

CLASSES, SHAPE = 5, (12, 3, 9, 7)
GENERATOR = torch.Generator()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SHAPE, generator=generator), torch.randint(CLASSES, SHAPE[:1], generator=generator)


def of_torchvision(kind: Any, params: dict[str, Any]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A transform of torchvision that takes given draws instead of its own."""

    class Given(kind):  # type: ignore[misc]
        def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
            return params

    return Given(num_classes=CLASSES)  # type: ignore[no-any-return]


@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_mixup_is_that_of_torchvision(share: float) -> None:
    x, y = batch()
    images, targets = of_torchvision(torchvision.transforms.v2.MixUp, {"lam": share})(x, y)
    assert torch.equal(blended(x, share), images)
    torch.testing.assert_close(blended(torch.nn.functional.one_hot(y, CLASSES).float(), share), targets)


@pytest.mark.parametrize(("middle", "share"), [((4, 3), 0.3), ((0, 0), 0.5), ((8, 6), 0.1), ((4, 3), 1.0)])
def test_cutmix_is_that_of_torchvision(middle: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch()
    mix = torchvision.transforms.v2.CutMix(num_classes=CLASSES)
    row, column = middle
    drawn = iter([torch.tensor([column]), torch.tensor([row])])  # torchvision draws the column first
    monkeypatch.setattr(mix, "_dist", SimpleNamespace(sample=lambda _: share))  # its draw of the share
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(drawn))
    images, targets = mix(x, y)
    monkeypatch.undo()
    box = box_around(middle, share, height=SHAPE[2], width=SHAPE[3])
    covered = (box.bottom - box.top) * (box.right - box.left) / (SHAPE[2] * SHAPE[3])
    assert torch.equal(pasted(x, box), images)
    torch.testing.assert_close(blended(torch.nn.functional.one_hot(y, CLASSES).float(), 1 - covered), targets)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    mixing = Mixing(TrainingSettings(mixup=alpha), 2, seed=3)
    x, y = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([0, 1])
    shares = [float(mixing(x, y, GENERATOR)[0][1, 0]) for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_both_are_drawn_equally_often() -> None:
    mixing = Mixing(TrainingSettings(mixup=0.4, cutmix=1.0), CLASSES, seed=0)
    x, y = torch.arange(SHAPE[0]).float()[:, None, None, None].expand(SHAPE), batch()[1]
    # An image that is one number everywhere is one number after mixup; CutMix leaves two, unless its piece is empty.
    cut = sum(bool((mixing(x, y, GENERATOR)[0][1].unique().numel()) > 1) for _ in range(600))
    assert 200 < cut < 330


@pytest.mark.parametrize("recipe", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_draws_depend_on_seed_epoch_and_number_of_the_batch_alone(recipe: dict[str, float]) -> None:
    x, y = batch()
    settings = TrainingSettings(**recipe)  # type: ignore[arg-type]
    before, untouched = torch.get_rng_state(), x.clone()
    mixing = Mixing(settings, CLASSES, seed=2)
    mixing.begin(4)
    first, second = mixing(x, y, GENERATOR), mixing(x, y, GENERATOR)
    assert not torch.equal(first[0], second[0])
    resumed = Mixing(settings, CLASSES, seed=2)
    resumed.begin(4, batch=1)
    for found, expected in zip(resumed(x, y, GENERATOR), second, strict=True):
        assert torch.equal(found, expected)
    others = [Mixing(settings, CLASSES, seed=3), Mixing(settings, CLASSES, seed=2)]
    others[0].begin(4)
    others[1].begin(5)
    assert not any(torch.equal(other(x, y, GENERATOR)[0], first[0]) for other in others)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, untouched)


@pytest.mark.parametrize("recipe", [{"mixup": 0.3}, {"cutmix": 1.0}])
def test_targets_are_probabilities_that_say_what_is_in_the_image(recipe: dict[str, float]) -> None:
    y = torch.arange(SHAPE[0]) % CLASSES
    x = torch.nn.functional.one_hot(y, CLASSES).float()[:, :, None, None].expand(-1, -1, 9, 7)
    mixing = Mixing(TrainingSettings(**recipe), CLASSES, seed=0)  # type: ignore[arg-type]
    for _ in range(20):
        images, targets = mixing(x, y, GENERATOR)
        torch.testing.assert_close(images.mean((2, 3)), targets)  # as much of each class as there are pixels of it
        torch.testing.assert_close(targets.sum(1), torch.ones(len(y)))
