"""Laws that every corruption keeps."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nas_blockout.data.corruptions import CORRUPTIONS, SEVERITIES, TESTING, corrupt
from nas_blockout.data.corruptions.randomness import plasma

SHAPES = {"gray28": (1, 28, 28), "color32": (3, 32, 32), "gray8": (1, 8, 8)}
RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow",
    "procedural_frost", "fog", "spatter", "elastic_transform",
}  # fmt: skip
PLAIN = set(CORRUPTIONS) - RANDOM


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(shape: tuple[int, int, int], count: int = 24) -> Tensor:
    """Cloudy pictures in which neighbors are alike, with values from 0.15 to 0.85."""
    generator = seeded(1)
    blank = torch.zeros(count, 1, *shape[1:])
    light = plasma(blank, 1.4, generator)
    colors = torch.cat([plasma(blank, 1.6, generator) for _ in range(shape[0])], 1)
    return 0.15 + 0.35 * (light + colors)


def cases() -> list[tuple[str, str]]:
    return [
        (name, shape)
        for name, corruption in CORRUPTIONS.items()
        for shape, (channels, _, _) in SHAPES.items()
        if channels == 3 or not corruption.color
    ]


def distances(name: str, images: Tensor) -> list[float]:
    corrupted = [corrupt(images, name, severity=severity, generator=seeded()) for severity in SEVERITIES]
    return [float((image - images).square().mean().sqrt()) for image in corrupted]


def test_fifteen_kinds_test_and_four_others_tune():
    tuning = set(CORRUPTIONS) - set(TESTING)
    assert (len(TESTING), len(tuning)) == (15, 4)
    assert {CORRUPTIONS[name].group for name in TESTING} == {CORRUPTIONS[name].group for name in tuning}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_parameter_has_a_name_and_five_values(name):
    corruption = CORRUPTIONS[name]
    assert len(corruption.parameters) == 5
    assert {len(values) for values in corruption.parameters} == {len(corruption.names)}
    assert set(corruption.lengths) <= set(corruption.names)


@pytest.mark.parametrize(("name", "shape"), cases())
@pytest.mark.parametrize("severity", [1, 5])
def test_shape_type_and_range_are_kept(name, shape, severity):
    images = pictures(SHAPES[shape], count=5)
    before = images.clone()
    corrupted = corrupt(images, name, severity=severity, generator=seeded())
    assert (corrupted.shape, corrupted.dtype) == (images.shape, images.dtype)
    assert float(corrupted.min()) >= 0
    assert float(corrupted.max()) <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize(("name", "shape"), [case for case in cases() if case[1] != "gray8"])
def test_the_distance_to_the_clean_image_grows_with_severity(name, shape):
    found = distances(name, pictures(SHAPES[shape], count=100))
    assert found[0] > 1e-3
    assert all(less < more for less, more in pairwise(found)), found


@pytest.mark.parametrize(("name", "shape"), [case for case in cases() if case[1] == "gray8"])
def test_on_tiny_images_it_grows_but_for_rounding_to_pixels(name, shape):
    found = distances(name, pictures(SHAPES[shape], count=200))
    assert found[4] > found[2] > found[0] > 1e-3
    assert all(more > 0.95 * less for less, more in pairwise(found)), found


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_generator_alone_decides(name):
    images = pictures((3, 32, 32), count=4)
    torch.manual_seed(1)
    first = corrupt(images, name, severity=3, generator=seeded(5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first, corrupt(images, name, severity=3, generator=seeded(5)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, corrupt(images, name, severity=3, generator=seeded(6))) == (name in PLAIN)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_images_of_a_batch_are_disturbed_independently(name):
    images = pictures((3, 32, 32), count=1).expand(6, -1, -1, -1)
    corrupted = corrupt(images, name, severity=4, generator=seeded())
    assert len(corrupted.flatten(1).unique(dim=0)) == 6


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_batch_is_the_images_one_by_one(name):
    images = pictures((3, 32, 32), count=3)
    single = [corrupt(image[None], name, severity=4, generator=seeded()) for image in images]
    assert torch.allclose(corrupt(images, name, severity=4, generator=seeded()), torch.cat(single), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if CORRUPTIONS[name].lengths])
def test_lengths_grow_with_larger_images_and_stay_for_smaller_ones(name):
    def blurred(side: int) -> float:
        edge = torch.zeros(40, 3, side, side)
        edge[:, :, side // 4 : side // 2, side // 4 : side // 2] = 1
        return float((corrupt(edge, name, severity=5, generator=seeded()) - edge).abs().mean())

    assert blurred(64) == pytest.approx(blurred(32), rel=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "frost"}, "corruption must be one of gaussian_noise, .* got 'frost'"),
        ({"severity": 0}, r"severity must lie in 1\.\.5, got 0"),
        ({"severity": 6}, r"severity must lie in 1\.\.5, got 6"),
        ({"images": torch.zeros(3, 8, 8)}, r"images must be \(n, 1 or 3, height, width\), got \(3, 8, 8\)"),
        ({"images": torch.zeros(1, 2, 8, 8)}, "images must be"),
        ({"name": "saturate"}, "saturate changes colors and needs three channels, got 1"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(changes, message):
    arguments = {"images": torch.zeros(1, 1, 8, 8), "name": "fog", "severity": 1, **changes}
    with pytest.raises(ValueError, match=message):
        corrupt(arguments.pop("images"), arguments.pop("name"), generator=seeded(), **arguments)
