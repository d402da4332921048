import dataclasses

import pytest

from nas_blockout.data import SOURCES, DataSettings, DataUnsuitable, Dimensions, dimensions, load
from nas_blockout.data.augment import AUGMENT
from nas_blockout.data.data_settings import AUGMENTATIONS, NAMES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mnist"}, "name must be one of digits, .* got 'mnist'"),
        ({"augment": "mixup"}, "augment must be one of none, .* got 'mixup'"),
        ({"train_samples": 0}, "train_samples must be at least 1, got train_samples=0"),
        ({"validation_samples": -3}, "validation_samples must be at least 1, got validation_samples=-3"),
        ({"split_seed": -1}, "split_seed must be in"),
        ({"image_size": 32}, "image_size is a setting of imagefolder and table, got 32 for digits"),
        ({"folder": "own"}, "digits ships with scikit-learn and reads no folder, got 'own'"),
        (
            {"name": "imagefolder", "folder": "own", "image_size": 2},
            "image_size must be in \\[4, 1024\\], got image_size=2",
        ),
        ({"name": "imagefolder"}, "imagefolder needs the setting folder"),
        ({"name": "table"}, "table needs the setting table: the path of a CSV or Parquet file"),
        ({"table": "labels.csv"}, "table is a setting of table alone, got labels.csv for digits"),
        ({"group_pattern": "<*>_*"}, "group_pattern is a setting of imagefolder and table, got"),
        (
            {"name": "imagefolder", "folder": "x", "group_pattern": "patient#_"},
            "group_pattern must be a path with one pair",
        ),
        (
            {"name": "table", "table": "x", "group_column": "who", "group_pattern": "<*>_*"},
            "groups come from group_column or from group_pattern, got both",
        ),
        ({"augment": "resized-crop-flip"}, "resized-crop-flip cuts whole images of imagefolder and table, got digits"),
        ({"resize_size": 64}, "resize_size is a setting of imagefolder and table, got 64 for digits"),
        (
            {"name": "imagefolder", "folder": "own", "resize_size": 63},
            r"resize_size must be image_size \(64\) or more, got 63",
        ),
    ],
)
def test_settings_out_of_range_are_refused_with_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"resize_size": 80}, 80),
        ({"augment": "resized-crop-flip"}, 73),
        ({"augment": "resized-crop-flip", "image_size": 224}, 256),
        ({"augment": "resized-crop-flip", "image_size": 224, "resize_size": 232}, 232),
    ],
)
def test_images_are_scaled_to_eight_sevenths_of_what_is_cut_out(changes, expected):
    assert DataSettings(name="imagefolder", folder="own", **changes).short_side == expected


def test_settings_are_a_value():
    assert DataSettings() == DataSettings(name="digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataSettings().name = "glyphs"


def test_every_name_that_settings_accept_is_registered():
    assert tuple(SOURCES) == NAMES


def test_every_augmentation_that_settings_accept_exists():
    assert tuple(AUGMENT) == AUGMENTATIONS


@pytest.mark.parametrize("samples", [None, 50])
def test_dimensions_that_are_known_before_reading_are_those_of_the_data(samples):
    settings = DataSettings("digits", train_samples=samples)
    splits = load(settings)
    assert dimensions(settings) == Dimensions(splits.shape, len(splits.class_names), len(splits.train))


def test_only_its_files_tell_how_many_classes_a_folder_has():
    assert dimensions(DataSettings("imagefolder", folder="x")) == Dimensions((3, 64, 64), None, None)
    assert dimensions(DataSettings("imagefolder", folder="x", image_size=32)).shape == (3, 32, 32)


def test_more_samples_than_images_are_refused_alike_before_and_while_reading():
    settings = DataSettings("digits", train_samples=899)
    for refuses in (dimensions, load):
        with pytest.raises(DataUnsuitable, match="train_samples must be at most the 898 images of that split, got 899"):
            refuses(settings)
