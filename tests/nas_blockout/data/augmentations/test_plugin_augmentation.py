"""Augmentations of plug-ins: the laws, batches with one, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_blockout.data import Augmentation, DataSettings, Loader, load, resolved
from nas_blockout.data.augment import (
    CUTOUT,
    FLIP,
    RANDAUGMENT,
    RANDOM_ERASING,
    SHIFT,
    TRIVIALAUGMENT,
    Variation,
)
from nas_blockout.data.augmentations.plugin_augmentation import Applied
from nas_blockout.plugins.choices import NotAllowed, allowing
from nas_blockout.settings_fields import PlainMapping
from nas_blockout.testing import AugmentationCase, augmentation_laws

EXAMPLE = Path(__file__).parents[4] / "docs/guides/examples/plugin/src/example_plugin/exposure.py"
NAME = f"{EXAMPLE}:EXPOSURE"
DIGITS = DataSettings(name="digits", train_samples=40)


@dataclass(frozen=True, slots=True)
class Nothing:
    """No settings."""


def as_plugin(variation: Variation) -> Augmentation:
    """A built-in variation as a plug-in would say it."""

    def apply(settings: Nothing, images: Tensor, choices: Tensor) -> Tensor:
        assert variation.apply is not None
        return variation.apply(images, choices, None)

    return Augmentation(Nothing, lambda settings, *drawn_for: variation.draw(*drawn_for), apply)


BUILT_IN = {
    "shift": SHIFT,
    "flip": FLIP,
    "cutout": CUTOUT,
    "random-erasing": RANDOM_ERASING,
    "randaugment": RANDAUGMENT,
    "trivialaugment": TRIVIALAUGMENT,
}
LAWS = {
    f"{name}-{law}": check
    for name, variation in BUILT_IN.items()
    for law, check in augmentation_laws(AugmentationCase(as_plugin(variation), Nothing())).items()
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_built_in_ones_keep_the_laws_of_augmentations(law: Callable[[], None]) -> None:
    law()


def drawn(settings: Nothing, images: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(1, images, generator=generator)


def inverted(settings: Nothing, images: Tensor, choices: Tensor) -> Tensor:
    return torch.where(choices[0].lt(0.5)[:, None, None, None], 255 - images, images)


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({}, None),
        ({"draw": lambda settings, images, side, generator: torch.rand(1, images)}, "choices_depend_on"),
        ({"draw": lambda settings, images, side, generator: torch.rand(images, generator=generator)}, "choices_have_a"),
        ({"apply": lambda settings, images, choices: images / 255}, "images_keep"),
        ({"apply": lambda settings, images, choices: images}, "images_vary"),
        ({"apply": lambda settings, images, choices: images.roll(1, 0)}, "an_image_depends"),
        ({"apply": lambda settings, images, choices: images.mul_(0)}, "applying_draws_nothing"),
    ],
)
def test_what_breaks_a_law_is_found(changes: dict[str, Any], law: str | None) -> None:
    laws = augmentation_laws(AugmentationCase(replace(Augmentation(Nothing, drawn, inverted), **changes), Nothing()))
    for name, check in laws.items():
        if law is None:
            check()
        elif name.startswith(law):
            with pytest.raises(AssertionError):
                check()
            return
    assert law is None


def batches(loader: Loader, seed: int, first: int = 0) -> list[Tensor]:
    return [images for images, _ in loader.batches(torch.Generator().manual_seed(seed), first)]


def test_batches_are_varied_alike_for_one_seed_and_from_any_batch_on() -> None:
    splits = load(DIGITS)
    plain, own = (Loader(splits.train, 16, preprocessing=splits.preprocessing, augment=name) for name in ("none", NAME))
    varied = batches(own, 0)
    assert all(torch.equal(*pair) for pair in zip(varied, batches(own, 0), strict=True))
    assert all(torch.equal(*pair) for pair in zip(varied[1:], batches(own, 0, first=1), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(varied, batches(plain, 0), strict=True))
    lights = [splits.preprocessing.undo(each[0]).sum((1, 2, 3)) for each in (varied, batches(plain, 0))]
    light = lights[0] / lights[1]
    assert 0.65 < float(light.min()) < 0.95
    assert float(light.max()) < 1.45


def test_settings_are_resolved_with_their_defaults() -> None:
    assert resolved(replace(DIGITS, augment=NAME)).augment_options.to_json() == {"stops": 0.5}
    assert resolved(DIGITS) == DIGITS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "shift-flp"}, "augment must be one of none, .*, got 'shift-flp'; did you mean 'shift-flip'?"),
        ({"augment": "sparkle-xyz"}, "augment must be one of none, .*, got 'sparkle-xyz'$"),
        ({"augment_options": PlainMapping({"stops": 1})}, "augment_options are the settings of a plug-in, got"),
        ({"augment": NAME, "augment_options": PlainMapping({"stop": 1})}, "augment_options.stop: no such setting"),
        ({"augment": NAME, "augment_options": PlainMapping({"stops": 9})}, r"stops must be in \[0, 4\], got stops=9"),
        ({"augment": f"{EXAMPLE}:ExposureSettings"}, r"it must be a nas_blockout\.data\.Augmentation"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(replace(DIGITS, **changes))


def test_what_returns_another_form_is_named() -> None:
    augmentation = Augmentation(Nothing, lambda *_: torch.zeros(3), lambda settings, images, choices: images[:1])
    wrong = Applied("mine", augmentation, Nothing())
    with pytest.raises(ValueError, match=r"the augmentation mine must draw float32 of the shape \(choices, 3\), got"):
        wrong.draw(3, (4, 4), torch.Generator())
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"the augmentation mine must keep shape and type of images"):
        wrong.apply(images, torch.zeros(1, 3), None)


def test_one_that_is_not_allowed_is_not_imported() -> None:
    with allowing(lambda origin: False), pytest.raises(NotAllowed, match="was not imported"):
        resolved(replace(DIGITS, augment=NAME))
