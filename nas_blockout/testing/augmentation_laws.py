"""The laws of augmentations: what varies images in training must do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nas_blockout.data import Augmentation
from nas_blockout.plugins.choices import require_settings
from nas_blockout.serialization import from_json, to_json
from nas_blockout.testing.seeds import no_global_randomness

_IMAGES = 16


@dataclass(frozen=True, slots=True)
class AugmentationCase:
    """One augmentation under the laws.

    Args:
        augmentation: What the entry point names.
        settings: Its settings, with which it varies images.
        shape: Channels, height and width of an image.
    """

    augmentation: Augmentation
    settings: Any
    shape: tuple[int, int, int] = (3, 12, 10)


def augmentation_laws(case: AugmentationCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws of an augmentation, by what they say.

    Args:
        case: The augmentation.
    """
    laws: list[Callable[[AugmentationCase], None]] = [
        settings_of_the_augmentation_are_a_value_that_json_carries,
        choices_have_a_column_for_every_image,
        choices_depend_on_the_generator_alone,
        images_keep_their_shape_and_their_type,
        images_vary,
        an_image_depends_on_its_own_choices_alone,
        applying_draws_nothing_and_changes_no_input,
    ]
    return {law.__name__: partial(law, case) for law in laws}


def settings_of_the_augmentation_are_a_value_that_json_carries(case: AugmentationCase) -> None:
    """Settings are a frozen dataclass with defaults and sentences, and JSON has all of them."""
    require_settings(case.augmentation.settings)
    settings: object = case.settings
    assert isinstance(settings, case.augmentation.settings)
    assert from_json(case.augmentation.settings, to_json(case.settings), where="augment_options") == case.settings


def choices_have_a_column_for_every_image(case: AugmentationCase) -> None:
    """Choices are finite numbers, float32 of shape (choices, images) on the processor; as many for any batch."""
    rows = set[int]()
    for images in (1, 2, _IMAGES):
        choices = _draw(case, images=images)
        assert choices.dim() == 2, f"choices have two dimensions, got the shape {tuple(choices.shape)}"
        assert choices.shape[1] == images, f"a column for each of {images} images, got {tuple(choices.shape)}"
        assert choices.dtype == torch.float32, f"choices are float32, got {choices.dtype}"
        assert choices.device.type == "cpu", "choices are drawn on the processor"
        assert choices.isfinite().all(), "choices are finite"
        rows.add(len(choices))
    assert len(rows) == 1, "every batch has as many choices an image"


def choices_depend_on_the_generator_alone(case: AugmentationCase) -> None:
    """The same seed draws the same, another one something else, and no global source is drawn from."""
    with no_global_randomness():
        first, again, other = (_draw(case, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again), "the same seed draws the same"
    assert not torch.equal(first, other), "another seed draws something else"


def images_keep_their_shape_and_their_type(case: AugmentationCase) -> None:
    """Bytes stay bytes, of images of one size; also where an image has one value everywhere."""
    for images in (_images(case), torch.zeros(_IMAGES, *case.shape, dtype=torch.uint8)):
        varied = _apply(case, images, _draw(case))
        assert varied.shape == images.shape, f"images keep their shape, got {tuple(varied.shape)}"
        assert varied.dtype == torch.uint8, f"bytes stay bytes, got {varied.dtype}"
        assert varied.device == images.device


def images_vary(case: AugmentationCase) -> None:
    """Of several draws, not all give the same images."""
    images = _images(case)
    varied = [_apply(case, images, _draw(case, seed)) for seed in range(4)]
    assert any(not torch.equal(varied[0], other) for other in varied[1:]), "images vary"


def an_image_depends_on_its_own_choices_alone(case: AugmentationCase) -> None:
    """In another batch, with the same choices, an image becomes the same."""
    images, choices = _images(case), _draw(case)
    varied, order = _apply(case, images, choices), torch.arange(_IMAGES).flip(0)
    assert torch.equal(_apply(case, images[:3], choices[:, :3]), varied[:3])
    assert torch.equal(_apply(case, images[order], choices[:, order]), varied[order])


def applying_draws_nothing_and_changes_no_input(case: AugmentationCase) -> None:
    """The same choices do the same; images, which may be those of the data, and choices stay as they are."""
    images, choices = _images(case), _draw(case)
    kept = images.clone(), choices.clone()
    with no_global_randomness():
        first, second = (_apply(case, images, choices) for _ in range(2))
    assert torch.equal(first, second), "the same choices do the same"
    assert torch.equal(images, kept[0]), "images stay as they are"
    assert torch.equal(choices, kept[1]), "choices stay as they are"


def _images(case: AugmentationCase) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (_IMAGES, *case.shape), generator=generator).to(torch.uint8)


def _draw(case: AugmentationCase, seed: int = 0, *, images: int = _IMAGES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return case.augmentation.draw(case.settings, images, case.shape[1:], generator)


def _apply(case: AugmentationCase, images: Tensor, choices: Tensor) -> Tensor:
    return case.augmentation.apply(case.settings, images, choices)
