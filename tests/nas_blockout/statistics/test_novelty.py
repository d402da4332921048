"""Images that are unlike those of validation: scores by hand, and how often images of the same kind are called so."""

import math

import pytest
import torch

from nas_blockout.statistics.novelty import QUANTILE, energy, image_statistics, is_unlike, thresholds_of


def kind(number: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and images of one kind."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(number, 6, generator=generator), torch.rand(number, 1, 6, 5, generator=generator)


def test_energy_is_the_logarithm_of_the_sum_of_exponentials() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])
    assert energy(logits).tolist() == pytest.approx([math.log(4), 5 + math.log(2)])


def test_statistics_are_those_computed_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.0]]).view(1, 1, 2, 3)
    mean = 0.5
    deviation = math.sqrt((0.25 + 0.25 + 0.25 + 0 + 0 + 0.25) / 6)
    assert image_statistics(image)[0].tolist() == pytest.approx([mean, deviation, 1.5 / 4])
    assert image_statistics(image[..., :1])[0, 2] == 0


@pytest.mark.parametrize("number", [200, 399, 1000])
def test_at_most_one_in_a_hundred_validation_images_is_called_unlike_the_others(number: int) -> None:
    logits, images = kind(number, seed=0)
    known = thresholds_of(logits, image_statistics(images))
    assert known is not None
    assert int(is_unlike(logits, images, known).sum()) <= number * QUANTILE


def test_new_images_of_the_same_kind_are_called_so_as_often() -> None:
    logits, images = kind(10_000, seed=1)
    known = thresholds_of(logits, image_statistics(images))
    assert known is not None
    share = float(is_unlike(*kind(10_000, seed=2), known).double().mean())
    assert share == pytest.approx(QUANTILE, abs=4 * math.sqrt(2 * QUANTILE / 10_000))


def test_each_of_the_two_scores_is_enough() -> None:
    logits, images = kind(1000, seed=3)
    known = thresholds_of(logits, image_statistics(images))
    assert known is not None
    usual, picture = logits[energy(logits).argsort()[500:501]], images[:1]
    strange = torch.zeros_like(picture)
    assert is_unlike(torch.full_like(usual, -9.0), picture, known).tolist() == [True]
    assert is_unlike(usual, strange, known).tolist() == [True]
    assert is_unlike(usual, picture, known).tolist() == [False]


def test_images_that_are_all_alike_have_no_distance() -> None:
    logits, _ = kind(300, seed=4)
    images = torch.full((300, 1, 4, 4), 0.5)
    known = thresholds_of(logits, image_statistics(images))
    assert known is not None
    assert known["distance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_too_few_images_and_broken_logits_give_no_thresholds(value: float) -> None:
    logits, images = kind(199 if value == 0 else 500, seed=5)
    assert thresholds_of(logits + value, image_statistics(images)) is None
