"""The laws of sources of data: what reads and divides images must do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nas_blockout.data import AnyPart, Collection, DataSource, Labeled, Splits
from nas_blockout.data.splits import prepare
from nas_blockout.plugins.choices import require_settings
from nas_blockout.serialization import from_json, to_json
from nas_blockout.testing.seeds import no_global_randomness


@dataclass(frozen=True, slots=True)
class SourceCase:
    """One source of data under the laws, with settings that make it small.

    Args:
        source: What the entry point names.
        settings: Its settings.
        root: Folder of downloads and caches, or None.
    """

    source: DataSource
    settings: Any
    root: Path | None = None


def source_laws(case: SourceCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws of a source, by what they say.

    Args:
        case: The source.
    """
    laws: list[Callable[[SourceCase], None]] = [
        settings_are_a_value_that_json_carries,
        every_split_has_images_of_every_class,
        the_same_seed_reads_the_same,
        no_image_is_in_two_splits,
        what_settings_tell_is_true,
        reading_consumes_no_global_randomness,
    ]
    return {law.__name__: partial(law, case) for law in laws}


def settings_are_a_value_that_json_carries(case: SourceCase) -> None:
    """Settings are a frozen dataclass with defaults and sentences, and JSON has all of them."""
    require_settings(case.source.settings)
    settings: object = case.settings
    assert isinstance(settings, case.source.settings)
    assert from_json(case.source.settings, to_json(case.settings), where="options") == case.settings
    assert case.source.settings() == case.source.settings(), "all settings have defaults"


def every_split_has_images_of_every_class(case: SourceCase) -> None:
    """All splits have images of one form, and each has every class."""
    splits = _splits(case)
    classes = set(range(len(splits.class_names)))
    assert len(classes) > 1
    assert len(set(splits.class_names)) == len(classes), "the names of the classes differ"
    for name, part in _parts(splits).items():
        assert set(part.labels.tolist()) == classes, f"the {name} split has images of every class"
        assert tuple(part.images.shape[1:]) == splits.shape


def the_same_seed_reads_the_same(case: SourceCase) -> None:
    """A division depends on its seed alone: workers read the data again, each for itself."""
    first, second = (_parts(_splits(case)) for _ in range(2))
    for name, part in first.items():
        assert torch.equal(part.labels, second[name].labels), f"the labels of the {name} split"
        assert torch.equal(part.images[:], second[name].images[:]), f"the images of the {name} split"


def no_image_is_in_two_splits(case: SourceCase) -> None:
    """A network is tested on images that it has not seen, nor its selection."""
    seen: dict[bytes, str] = {}
    for name, part in _parts(_splits(case)).items():
        for image in part.images[:]:
            content = image.numpy().tobytes()
            assert seen.setdefault(content, name) == name, f"an image is in {seen[content]} and in {name}"


def what_settings_tell_is_true(case: SourceCase) -> None:
    """What is known before anything is read is what is read then."""
    if case.source.dimensions is None:
        return
    known, splits = case.source.dimensions(case.settings), _splits(case)
    assert known.shape in (None, splits.shape)
    assert known.classes in (None, len(splits.class_names))
    assert known.train_images in (None, len(splits.train))


def reading_consumes_no_global_randomness(case: SourceCase) -> None:
    """Every draw is from the seed of the division."""
    with no_global_randomness():
        _parts(_splits(case))


def _splits(case: SourceCase) -> Splits:
    collection = case.source.read(case.settings, 0, case.root)
    assert isinstance(collection, Collection)
    test = collection.load_test()
    if isinstance(test, Labeled):
        assert test.images.dtype in (torch.uint8, torch.float32), "images are bytes, or floats in [0, 1]"
        assert test.labels.dtype == torch.int64
    return prepare(collection, train_samples=None, validation_samples=None, split_seed=0)


def _parts(splits: Splits) -> dict[str, AnyPart]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test()}
