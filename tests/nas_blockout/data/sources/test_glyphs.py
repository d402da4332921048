import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from nas_blockout.data import DataCorrupt, DataMissing, DataSettings, DataUnsuitable, load
from nas_blockout.data.sources import glyphs as source

FONTS = Path(matplotlib.get_data_path()) / "fonts"  # matplotlib's own: a small folder of real fonts
DEJAVU, ROMAN, SYMBOLS = (FONTS / "ttf" / name for name in ("DejaVuSans.ttf", "cmr10.ttf", "STIXNonUni.ttf"))


def settings(folder=FONTS, *, seed: int = 0) -> DataSettings:
    return DataSettings(name="glyphs", folder=str(folder), split_seed=seed)


def families(fonts) -> set[str]:
    return {font.family for font in fonts}


@pytest.fixture(scope="module")
def collection():
    return source.read(settings(), None)


@pytest.fixture(scope="module")
def fonts():
    return source.find_fonts(FONTS)


def test_a_capital_is_17_rows_high_and_stands_above_row_23():
    for path in (DEJAVU, ROMAN):
        rows = source.render(path)["H"].any(1).nonzero()[0]
        assert (rows[0], rows[-1]) == (6, 22)


@pytest.mark.parametrize("character", ["H", "i", "@", ".", "l"])
def test_characters_are_centered(character):
    columns = source.render(DEJAVU)[character].any(0).nonzero()[0]
    assert abs(columns[0] - (31 - columns[-1])) <= 1


def test_descenders_reach_below_the_baseline_and_small_letters_stay_low():
    images = source.render(DEJAVU)
    assert images["g"][23:].any()
    assert not images["x"][:9].any()
    assert images["'"][:12].any()
    assert not images["'"][16:].any()


def test_an_ordinary_font_has_all_94_characters():
    images = source.render(DEJAVU)
    assert set(images) == set(source.CHARACTERS)
    assert len(source.CHARACTERS) == 94
    assert all(image.shape == (32, 32) and image.dtype == np.uint8 and image.any() for image in images.values())


def test_a_font_without_62_of_the_characters_is_passed_over():
    assert source.render(SYMBOLS) == {}


def test_small_letters_that_look_like_their_capital_are_left_out(fonts):
    for font in fonts:
        images = source.render(font.path)
        for character, image in images.items():
            if character.islower() and character.upper() in images:
                assert not np.array_equal(image, images[character.upper()])


def test_a_font_with_the_outlines_of_another_is_left_out(tmp_path):
    renamed = bytearray(DEJAVU.read_bytes())
    renamed[-1] ^= 1  # the last table holds no outlines
    (tmp_path / "a.ttf").write_bytes(DEJAVU.read_bytes())
    (tmp_path / "b.ttf").write_bytes(DEJAVU.read_bytes())
    (tmp_path / "c.TTF").write_bytes(renamed)
    shutil.copy(ROMAN, tmp_path / "d.ttf")
    assert [font.path.name for font in source.find_fonts(tmp_path)] == ["a.ttf", "d.ttf"]


def test_a_family_is_in_one_split_only(fonts):
    parts = source.divide(fonts, seed=0)
    train, validation, test = (families(parts[name]) for name in ("train", "validation", "test"))
    assert len(train) + len(validation) + len(test) == len(families(fonts))
    assert train | validation | test == families(fonts)


def test_the_test_families_are_the_same_at_every_seed(fonts):
    first, second = source.divide(fonts, seed=0), source.divide(fonts, seed=1)
    assert first["test"] == second["test"]
    assert families(first["validation"]) != families(second["validation"])


def test_shares_of_many_families_are_70_10_and_20_percent():
    many = [source.Font(Path(f"{number}.ttf"), f"family {number}") for number in range(4000)]
    sizes = {name: len(part) / 4000 for name, part in source.divide(many, seed=3).items()}
    assert sizes == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.03)


@pytest.mark.parametrize("path", [DEJAVU, FONTS / "ttf" / "DejaVuSansMono-Bold.ttf"])
def test_fonts_of_one_design_are_one_family(path):
    assert source.family_of(path) == "dejavu"


def test_images_and_classes(collection):
    assert collection.class_names == source.CHARACTERS
    for part in (collection.train, collection.validation, collection.load_test()):
        assert part.images.shape[1:] == (1, 32, 32)
        assert part.labels.bincount(minlength=94).min() >= 1


def test_the_label_is_the_character_that_is_drawn(collection):
    drawn = source.render(FONTS / "ttf" / "cmb10.ttf")["Q"]
    same = [int(label) for image, label in zip(*collection_of(collection), strict=True) if np.array_equal(image, drawn)]
    assert set(same) == {source.CHARACTERS.index("Q")}


def collection_of(collection):
    return collection.train.images[:, 0].numpy(), collection.train.labels


def test_the_hierarchy_has_kinds_and_letters(collection):
    kind, letter = (
        dict(zip(source.CHARACTERS, collection.hierarchy[name], strict=True)) for name in ("kind", "letter")
    )
    assert [kind[character] for character in "7Qq!~"] == [0, 1, 2, 3, 3]
    assert letter["Q"] == letter["q"] != letter["P"]
    assert len(set(letter.values())) == 94 - 26
    assert set(kind.values()) == set(range(4))


def test_the_cache_gives_the_same_images(tmp_path, collection):
    for _ in range(2):
        again = source.read(settings(), tmp_path)
        assert torch.equal(again.train.images, collection.train.images)
        assert torch.equal(again.train.labels, collection.train.labels)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # train and validation; the test was not asked for
    again.load_test()
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_missing_folder_is_said_with_the_command_that_fills_it(tmp_path):
    with pytest.raises(DataMissing, match=r"looked for .*nowhere; run `apt-get install fonts-aenigma`"):
        load(settings(tmp_path / "nowhere"))


def test_a_folder_without_fonts_is_refused(tmp_path):
    with pytest.raises(DataMissing, match=r"must hold \.ttf or \.otf files, got none"):
        load(settings(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no font", DEJAVU.read_bytes()[:3000], DEJAVU.read_bytes()[:500_000]])
def test_a_damaged_font_is_named(tmp_path, content):
    (tmp_path / "broken.ttf").write_bytes(content)
    with pytest.raises(DataCorrupt, match=r"broken\.ttf must be a whole font"):
        load(settings(tmp_path))


def test_too_few_families_for_three_splits_are_refused(tmp_path):
    shutil.copy(DEJAVU, tmp_path)
    with pytest.raises(DataUnsuitable, match="every split needs a font family"):
        load(settings(tmp_path))


@pytest.mark.skipif(not source.DEBIAN_FOLDER.is_dir(), reason="needs the Debian package fonts-aenigma")
def test_of_the_reference_fonts_461_of_465_are_drawn(tmp_path):
    paths = sorted(source.DEBIAN_FOLDER.glob("*.ttf"))
    drawn = sum(bool(source.render(font.path)) for font in source.find_fonts(source.DEBIAN_FOLDER))
    assert (len(paths), drawn) == (465, 461)
