"""RandAugment and TrivialAugment against torchvision's, operation by operation, and the law of their draws."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from nas_blockout.data import Loader, Part, Preprocessing
from nas_blockout.data.augmentations.automatic_augment import (
    BINS,
    OPERATIONS,
    RANDAUGMENT_BIN,
    augment_pixels,
    draw_randaugment,
    draw_trivialaugment,
)
from nas_blockout.data.data_settings import AUGMENTATIONS
from nas_blockout.lazy_torchvision import torchvision

V2 = torchvision.transforms.v2
POLICIES: dict[str, Any] = {"randaugment": V2.RandAugment(), "trivialaugment": V2.TrivialAugmentWide()}
DRAWS = {"randaugment": draw_randaugment, "trivialaugment": draw_trivialaugment}
SIGNED = [name for name, (_, signed) in V2.RandAugment._AUGMENTATION_SPACE.items() if signed]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(shape: tuple[int, ...]) -> Tensor:
    """Smooth pictures that do not use all values, as photographs, so that every operation changes them."""
    coarse = torch.rand(shape[0], shape[1], 4, 4, generator=seeded(1))
    return (torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear") * 180 + 30).to(torch.uint8)


def by_torchvision(policy: str, image: Tensor, name: str, magnitude: float) -> Tensor:
    transform = POLICIES[policy]
    return transform._apply_image_or_video_transform(  # type: ignore[no-any-return]
        image, name, magnitude, interpolation=transform.interpolation, fill=transform._fill
    )


def magnitudes_of(policy: str, name: str, side: tuple[int, int]) -> list[float]:
    """All magnitudes that torchvision may draw, in both directions where there are two."""
    of_bins, signed = POLICIES[policy]._AUGMENTATION_SPACE[name]
    table = of_bins(BINS, *side)
    values = [0.0] if table is None else [float(table[RANDAUGMENT_BIN])] if policy == "randaugment" else table.tolist()
    return [*values, *(-value for value in values)] if signed else values


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (3, 1, 28, 21), (2, 1, 8, 8)])
def test_every_operation_is_that_of_torchvision(policy: str, name: str, shape: tuple[int, ...]) -> None:
    images = pictures(shape)
    magnitudes = magnitudes_of(policy, name, (shape[2], shape[3]))
    batch = images.repeat(len(magnitudes), 1, 1, 1)
    each = torch.tensor(magnitudes).repeat_interleave(len(images))
    operations = torch.full_like(each, OPERATIONS.index(name))
    found = augment_pixels(batch, torch.stack((operations, each)))
    expected = torch.cat([by_torchvision(policy, images, name, magnitude) for magnitude in magnitudes])
    difference = (found.int() - expected.int()).abs()
    # Where two images are blended, torch multiplies and adds in one instruction there: a sum that is nearly a whole
    # number may be cut off to the one below.
    assert difference.max() <= (1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0)
    assert difference.float().mean() < 0.01


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_of_different_operations_is_each_image_by_itself(policy: str) -> None:
    images = pictures((200, 3, 16, 16))
    before = images.clone()
    choices = DRAWS[policy](200, (16, 16), seeded())
    together = augment_pixels(images, choices)
    apart = torch.cat([augment_pixels(images[i : i + 1], choices[:, i : i + 1]) for i in range(200)])
    assert torch.equal(together, apart)
    assert torch.equal(images, before)
    assert not torch.equal(together, images)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_asking_the_device_the_images_are_the_same(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator all images go through every operation and the chosen ones are kept: nothing is indexed."""
    images, choices = pictures((60, 3, 16, 16)), DRAWS[policy](60, (16, 16), seeded())
    expected = augment_pixels(images, choices)
    monkeypatch.setattr("nas_blockout.data.augmentations.automatic_augment._HOST", "none")
    assert torch.equal(augment_pixels(images, choices), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_follow_the_law_of_torchvision(policy: str) -> None:
    side, count = (32, 24), 40_000
    drawn = DRAWS[policy](count, side, seeded(3)).unflatten(0, (-1, 2))
    assert len(drawn) == (2 if policy == "randaugment" else 1)
    for operations, magnitudes in drawn:
        assert stats.chisquare(operations.long().bincount(minlength=14)).pvalue > 0.001
        for number, name in enumerate(OPERATIONS):
            found = magnitudes[operations == number]
            allowed = torch.tensor(magnitudes_of(policy, name, side))
            assert torch.isin(found, allowed).all(), name
            if name in SIGNED:  # one direction as often as the other; those of magnitude 0 have none
                turned = found[found != 0]
                assert stats.binomtest(int((turned < 0).sum()), len(turned)).pvalue > 0.001, name
            if policy == "trivialaugment" and name == "Solarize":
                assert stats.chisquare(torch.unique(found, return_counts=True)[1]).pvalue > 0.001


PREPROCESSING = Preprocessing(3, 16, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.mark.parametrize(
    "augment", ["randaugment", "shift-flip-trivialaugment-random-erasing", "trivialaugment-cutout"]
)
def test_a_loader_varies_pixels_and_normalizes_them_again(augment: str) -> None:
    pixels = pictures((40, 3, 16, 16))
    part = Part(PREPROCESSING.apply(pixels.float() / 255), torch.arange(40), PREPROCESSING.background)
    loader = Loader(part, 16, augment=augment, preprocessing=PREPROCESSING)
    before = torch.get_rng_state()
    first, second = list(loader.batches(seeded())), list(loader.batches(seeded()))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(x, other) and torch.equal(y, same) for (x, y), (other, same) in zip(first, second, strict=True)
    )
    assert not torch.equal(first[0][0], next(loader.batches(seeded(1)))[0])
    assert not torch.equal(first[0][0], part.images[first[0][1]])
    plain = torch.cat([x for x, _ in loader.batches()])
    assert torch.equal(plain, part.images)


def test_an_image_that_draws_nothing_is_what_it_was() -> None:
    pixels = pictures((10, 3, 16, 16))
    normalize = PREPROCESSING.on("cpu")
    images = normalize(pixels)
    assert torch.equal(normalize.pixels(images), pixels)
    assert torch.equal(normalize(normalize.pixels(images)), images)


def test_pixels_need_their_preprocessing() -> None:
    part = Part(torch.zeros(4, 3, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match="'shift-randaugment' is one of pixels: give the loader their preprocessing"):
        Loader(part, 2, augment="shift-randaugment")


def test_names_are_parts_in_their_order() -> None:
    assert len(AUGMENTATIONS) == len(set(AUGMENTATIONS)) == 4 * 3 * 3
    assert {"none", "shift", "shift-flip", "shift-flip-cutout"} < set(AUGMENTATIONS)
    assert {"randaugment-random-erasing", "shift-flip-trivialaugment-cutout", "cutout"} < set(AUGMENTATIONS)
