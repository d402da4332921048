"""Random erasing against torchvision's: what is erased, and which rectangles are drawn how often."""

import pytest
import torch
from scipy import stats

from nas_blockout.data.augmentations.random_erasing import PROBABILITY, draw_rectangles, erase
from nas_blockout.lazy_torchvision import torchvision

V2 = torchvision.transforms.v2
COUNT = 3000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [(32, 32), (8, 8), (28, 14)])
def test_what_is_erased_is_what_torchvision_erases(side: tuple[int, int]) -> None:
    images = torch.randn(64, 3, *side, generator=seeded(1))
    before = images.clone()
    rectangles = draw_rectangles(64, side, seeded())
    expected = [
        V2.functional.erase(image, i=top, j=left, h=high, w=wide, v=torch.zeros(3, 1, 1))
        for image, (top, left, high, wide) in zip(images, rectangles.int().T.tolist(), strict=True)
    ]
    assert torch.equal(erase(images, rectangles), torch.stack(expected))
    assert torch.equal(images, before)


@pytest.mark.parametrize("side", [(32, 32), (8, 8), (28, 14)])
def test_rectangles_are_those_of_torchvision_as_often(side: tuple[int, int]) -> None:
    top, left, high, wide = draw_rectangles(COUNT, side, seeded(2)).int()
    erased = high > 0
    assert stats.binomtest(int(erased.sum()), COUNT, PROBABILITY).pvalue > 0.001
    assert bool(((top >= 0) & (top + high <= side[0]) & (left >= 0) & (left + wide <= side[1])).all())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transform, image = V2.RandomErasing(p=1.0), torch.zeros(3, *side)
        theirs = [transform.make_params([image]) for _ in range(COUNT)]
    for found, key in ((top, "i"), (left, "j"), (high, "h"), (wide, "w")):
        assert stats.ks_2samp(found[erased].tolist(), [params[key] for params in theirs]).pvalue > 0.001, key


def test_an_image_too_small_for_a_rectangle_stays() -> None:
    rectangles = draw_rectangles(50, (1, 1), seeded())
    assert not (rectangles[2] * rectangles[3]).any()
    assert torch.equal(erase(torch.ones(50, 1, 1, 1), rectangles), torch.ones(50, 1, 1, 1))


def test_draws_depend_on_the_generator_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw_rectangles(9, (16, 16), seeded()), draw_rectangles(9, (16, 16), seeded()))
    assert torch.equal(torch.get_rng_state(), before)
