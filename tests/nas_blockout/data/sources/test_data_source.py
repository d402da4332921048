"""Sources of plug-ins: found by their place, checked, resolved and read like built-in ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_blockout.data import CHOICES, DataSettings, DataUnsuitable, check, dimensions, fetch, load, resolved
from nas_blockout.data.errors import DataMissing
from nas_blockout.plugins.choices import allowing
from nas_blockout.settings_fields import PlainMapping

EXAMPLE = Path(__file__).parents[4] / "docs/guides/examples/plugin/src/example_plugin/stripes.py"
NAME = f"{EXAMPLE}:STRIPES"


def settings(**options: object) -> DataSettings:
    return DataSettings(name=NAME, options=PlainMapping({"images": 10, **options}))


def test_a_source_is_read_with_its_settings_and_the_seed_of_the_division() -> None:
    splits = load(settings(side=6))
    assert splits.shape == (1, 6, 6)
    assert splits.class_names == ("horizontal", "vertical", "rising", "falling")
    assert [len(splits.train), len(splits.validation), len(splits.test())] == [24, 8, 8]
    other = load(replace(settings(side=6), split_seed=1))
    assert not torch.equal(splits.train.pixels, other.train.pixels)


def test_settings_are_resolved_with_their_defaults() -> None:
    assert resolved(settings()).options.to_json() == {"side": 8, "images": 10, "noise": 0.2}
    assert resolved(resolved(settings())) == resolved(settings())
    assert resolved(DataSettings()) == DataSettings()
    assert dimensions(settings(side=5)).shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 3}, r"data.options: side must be in \[4, 256\], got side=3"),
        ({"sides": 8}, "data.options.sides: no such setting; did you mean 'side'"),
        ({"noise": "much"}, "data.options.noise must be a number, got 'much'"),
    ],
)
def test_settings_that_it_refuses_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(settings(**options))


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("SOURCE = 3\n")
    with pytest.raises(ValueError, match=r"it must be a nas_blockout\.data.DataSource, .* got 3"):
        load(DataSettings(name=f"{tmp_path / 'mine.py'}:SOURCE"))
    (tmp_path / "other.py").write_text(
        "from dataclasses import dataclass\nfrom nas_blockout.data import DataSource\n\n\n"
        "@dataclass(frozen=True)\nclass Settings:\n    '''None.'''\n\n\n"
        "SOURCE = DataSource(Settings, lambda settings, seed, root: None)\n"
    )
    with pytest.raises(DataUnsuitable, match=r"must return a nas_blockout\.data\.Collection, got None"):
        load(DataSettings(name=f"{tmp_path / 'other.py'}:SOURCE"))


def test_nothing_is_imported_where_it_is_not_allowed() -> None:
    with allowing(lambda origin: False), pytest.raises(ValueError, match="is not allowed here, and was not imported"):
        resolved(settings())


def test_settings_of_other_sources_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"options are the settings of a plug-in, got {'a': 1} for digits"):
        DataSettings(options=PlainMapping({"a": 1}))
    with pytest.raises(ValueError, match="image_size is a setting of imagefolder and table, got 8 for"):
        DataSettings(name=NAME, image_size=8)
    with pytest.raises(ValueError, match="got 'cifar'; did you mean 'cifar10'"):
        DataSettings(name="cifar")


def test_it_is_checked_and_not_fetched_like_any_other(tmp_path: Path) -> None:
    assert check(settings()).images == {"train": 24, "validation": 8, "test": 8}
    with pytest.raises(DataMissing, match="is a plug-in, which gets its files itself"):
        fetch(NAME, tmp_path)
    assert CHOICES.names()[:2] == ("digits", "fashion_mnist")
