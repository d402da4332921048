from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from nas_blockout.data import SOURCES, DataMissing, DataSettings, check, fetch, show

FONTS = str(Path(matplotlib.get_data_path()) / "fonts")


def test_a_whole_source_is_ready_and_counted():
    report = check(DataSettings())
    assert report.ready
    assert (report.shape, report.classes, report.problem) == ((1, 8, 8), 10, "")
    assert sum(report.images.values()) == 1797
    assert min(report.fewest_in_class.values()) == 35


def test_the_report_says_where_the_files_lie():
    report = check(DataSettings(name="glyphs", folder=FONTS))
    assert (report.ready, report.origin, report.classes) == (True, FONTS, 94)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_files_are_a_problem_with_a_remedy(tmp_path, name):
    report = check(DataSettings(name=name), tmp_path)
    assert not report.ready
    assert f"nas-blockout data fetch {name}" in report.problem


def test_checking_opens_every_image_the_test_included(tmp_path):
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    assert check(DataSettings(name="imagefolder", folder=str(tmp_path))).images == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    for number in range(5):
        whole = (tmp_path / "ant" / f"{number}.png").read_bytes()
        (tmp_path / "ant" / f"{number}.png").write_bytes(whole[:60])
        report = check(DataSettings(name="imagefolder", folder=str(tmp_path)))
        assert f"ant/{number}.png must be a whole image" in report.problem
        (tmp_path / "ant" / f"{number}.png").write_bytes(whole)


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.fetch is None])
def test_what_is_not_downloaded_says_how_it_is_had(tmp_path, name):
    with pytest.raises(DataMissing, match=f"{name} cannot be downloaded: .+"):
        fetch(name, tmp_path)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name must be one of digits"):
        fetch("mnist", tmp_path)


def test_the_sheet_has_a_row_a_class_with_images_in_the_right_row():
    sheet = np.asarray(show(DataSettings(), columns=6).image.convert("L"))
    assert sheet.shape == (10 * 34, 110 + 6 * 34)
    rows = sheet[:, 110:].reshape(10, 34, -1)
    assert len({row.tobytes() for row in rows}) == 10
    assert all(row.min() == 0 for row in rows)


def test_the_sheet_shows_color(tmp_path):
    for name, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (9, 9), tuple(min(255, part + 10 * number) for part in color)).save(
                tmp_path / name / f"{number}.png"
            )
    sheet = np.asarray(show(DataSettings(name="imagefolder", folder=str(tmp_path)), columns=2).image).astype(int)
    blue, red = sheet[20, 130], sheet[20 + sheet.shape[0] // 2, 130]
    assert blue[2] > blue[0] + 100
    assert red[0] > red[2] + 100


def named(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (9, 9), (40 * number, 20 * index, 99)).save(folder / name / f"{index}.png")
    return folder


def test_long_names_are_not_cut(tmp_path):
    long = "a very long name of a class, such as those of species and their authors, 1758"
    short, whole = "a very long name", show_of(named(tmp_path, long, "bee"))
    other = show_of(named(tmp_path / "other", short, "bee"))
    assert whole.image.width > other.image.width + 200
    assert whole.numbered == ()
    row = np.asarray(whole.image.convert("L"))[:60, : whole.image.width - 2 * 34]
    assert (row.min(0) < 200).nonzero()[0].max() > 0.8 * row.shape[1], "ink up to the end of the name"


def show_of(folder: Path):
    return show(DataSettings(name="imagefolder", folder=str(folder), image_size=32), columns=2)


def test_names_in_letters_of_other_scripts_are_drawn_each_in_its_own(tmp_path):
    names = ("Ελληνικά", "кошка", "قطة", "ça et là")
    sheet = show_of(named(tmp_path, *names))
    assert sheet.numbered == ()
    rows = [np.asarray(sheet.image.convert("L"))[34 * row : 34 * row + 34, :110] for row in range(4)]
    assert len({row.tobytes() for row in rows}) == 4
    assert all(row.min() < 100 for row in rows)


def test_a_name_that_no_font_can_draw_has_the_number_of_its_row(tmp_path):
    minoan = "\U00012f90\U00012f91"  # a script that hardly any machine has a font for
    sheet = show_of(named(tmp_path, "ant", "bee", minoan))
    assert [sheet.class_names[row] for row in sheet.numbered] == [minoan]
