"""`nas-blockout data`: what it prints, what it writes, and the codes it ends with."""

from pathlib import Path

import pytest
from PIL import Image

from nas_blockout.data import SOURCES
from tests.services.program import Call, here
from tests.services.tiny import image_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(home: Path) -> Call:
    return lambda *words, **more: here("data", *words, NAS_BLOCKOUT_HOME=str(home), **more)


def test_every_source_is_listed(call: Call, home: Path) -> None:
    ended = call("list")
    assert ended.code == 0
    for name, source in SOURCES.items():
        assert name in ended.out
        assert source.summary in ended.out
    assert str(home / "data") in ended.out


def test_sources_are_listed_for_programs(call: Call, home: Path) -> None:
    ended = call("list", "--json")
    assert ended.code == 0
    assert ended.json["root"] == str(home / "data")
    assert [source["name"] for source in ended.json["sources"]] == list(SOURCES)
    assert {source["name"] for source in ended.json["sources"] if source["fetch"]} == {
        "fashion_mnist",
        "cifar10",
        "cifar100",
    }


def test_the_setting_moves_the_root(call: Call, home: Path) -> None:
    ended = call("list", "--json", NAS_BLOCKOUT_DATA=str(home / "elsewhere"))
    assert ended.json["root"] == str(home / "elsewhere")


def test_whole_data_is_checked_and_counted(call: Call) -> None:
    ended = call("check", "digits")
    assert ended.code == 0
    assert "digits: complete; 10 classes, 1 x 8 x 8 images" in ended.out
    assert "898" in ended.out
    assert "reading all images of digits" in ended.err


def test_a_check_for_programs_has_all_splits(call: Call) -> None:
    ended = call("check", "digits", "--json")
    assert ended.code == 0
    assert (ended.json["ready"], ended.json["problem"]) == (True, "")
    assert ended.json["images"] == {"train": 898, "validation": 359, "test": 540}


@pytest.mark.parametrize("command", ["check", "show"])
def test_missing_data_ends_with_3_and_a_remedy(call: Call, home: Path, command: str) -> None:
    ended = call(command, "cifar10")
    assert ended.code == 3
    assert "nas-blockout data fetch cifar10" in ended.err
    assert list(home.iterdir()) == []


def test_missing_data_is_json_too(call: Call) -> None:
    ended = call("check", "cifar10", "--json")
    assert ended.code == 3
    assert (ended.json["ready"], ended.json["missing"]) == (False, True)


@pytest.mark.parametrize("command", ["check", "show"])
def test_corrupt_data_ends_with_1_and_names_the_file(call: Call, home: Path, command: str) -> None:
    folder = image_folder(home / "images")
    for broken in (folder / "class-1").iterdir():
        broken.write_bytes(broken.read_bytes()[:40])
    ended = call(command, "imagefolder", "--folder", folder)
    assert ended.code == 1
    assert "class-1" in ended.err


@pytest.mark.parametrize("command", ["fetch", "check", "show"])
def test_an_unknown_name_ends_with_2_and_a_near_match(call: Call, home: Path, command: str) -> None:
    ended = call(command, "digit")
    assert ended.code == 2
    assert "did you mean 'digits'?" in ended.err
    assert list(home.iterdir()) == []


def test_a_setting_that_does_not_fit_the_source_ends_with_2(call: Call) -> None:
    ended = call("check", "digits", "--folder", "somewhere")
    assert ended.code == 2
    assert "folder" in ended.err


def test_what_is_not_downloaded_ends_with_3_and_says_how_to_get_it(call: Call) -> None:
    ended = call("fetch", "digits")
    assert ended.code == 3
    assert "scikit-learn" in ended.err


def test_a_picture_of_every_class_is_drawn(call: Call, home: Path) -> None:
    folder = image_folder(home / "images")
    ended = call("show", "imagefolder", "--folder", folder, "--columns", "4", "--output", home / "sheet.png")
    assert ended.code == 0
    assert ended.out.strip() == str(home / "sheet.png")
    with Image.open(home / "sheet.png") as sheet:
        assert sheet.height % 3 == 0
        assert sheet.width > 4 * 12


def test_a_picture_is_called_after_its_source(call: Call, home: Path) -> None:
    ended = call("show", "digits", "--json")
    assert ended.code == 0
    names = [str(digit) for digit in range(10)]
    assert ended.json == {"name": "digits", "file": str(home / "digits.png"), "class_names": names, "notes": []}
    assert (home / "digits.png").is_file()


def test_a_picture_for_no_folder_is_refused(call: Call, home: Path) -> None:
    assert call("show", "digits", "--output", home / "none" / "sheet.png").code == 3
    assert list(home.iterdir()) == []


def test_what_is_recognized_and_passed_over_is_printed(call: Call, home: Path) -> None:
    folder = home / "scans"
    for split in ("Training", "Testing"):
        image_folder(folder / split)
    (folder / "Training" / "class-0" / "phone.heic").write_bytes(b"x")
    ended = call("check", "imagefolder", "--folder", folder)
    assert ended.code == 0
    assert "imagefolder: complete" in ended.out
    assert "recognized splits: train in Training/, test in Testing/; validation taken from the training" in ended.out
    assert "passed over images in formats that are not read: .heic 1 (convert them to PNG or JPEG)" in ended.out
    ended = call("show", "imagefolder", "--folder", folder, "--json")
    assert ended.json["class_names"] == ["class-0", "class-1", "class-2"]
    assert ended.json["notes"][0].startswith("recognized splits: train in Training/")
    assert "recognized splits" in ended.err


def test_an_unclear_layout_is_asked_about_and_a_setting_answers(call: Call, home: Path) -> None:
    for camera in ("north", "south"):
        image_folder(home / "photos" / camera, classes=2)
    ended = call("check", "imagefolder", "--folder", home / "photos")
    assert ended.code == 1
    assert "it is not clear what the folders 'north', 'south' in" in ended.err
    assert "set data.layout to classes" in ended.err
    ended = call("check", "imagefolder", "--folder", home / "photos", "--set", "layout=classes")
    assert ended.code == 0
    assert "recognized 2 classes, divided here by split_seed: 'north', 'south'" in ended.out


def test_small_classes_are_left_out_by_a_setting(call: Call, home: Path) -> None:
    image_folder(home / "photos")
    for path in sorted((home / "photos" / "class-1").iterdir())[1:]:
        path.unlink()
    assert call("check", "imagefolder", "--folder", home / "photos").code == 1
    ended = call("check", "imagefolder", "--folder", home / "photos", "--set", "min_images_per_class=5")
    assert ended.code == 0
    assert "left out by min_images_per_class 5 (1): 'class-1 (1)'" in ended.out
    ended = call("check", "imagefolder", "--folder", home / "photos", "--set", "excluded_classes=[class-1]", "--json")
    assert (ended.code, ended.json["classes"]) == (0, 2)


@pytest.mark.parametrize("assignment", ["layout", "layout=rows", "sise=3", "folder=x", "min_images_per_class=[1]"])
def test_a_wrong_assignment_ends_with_2(call: Call, home: Path, assignment: str) -> None:
    ended = call("check", "imagefolder", "--folder", image_folder(home / "photos"), "--set", assignment)
    assert ended.code == 2
    assert ended.err.startswith("error: ")


def test_names_in_any_script_are_whole_on_the_terminal(call: Call, home: Path) -> None:
    names = ("消防車 (大型)", "مرحبا", "👩\u200d🚒", "नमस्ते", "a name of more than thirty letters indeed")
    for number, name in enumerate(names):
        (home / "photos" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (12, 10), (40 * number, 20 * index, 50)).save(home / "photos" / name / f"{index}.png")
    ended = call("check", "imagefolder", "--folder", home / "photos")
    assert ended.code == 0
    assert all(name in ended.out for name in names)
    ended = call("show", "imagefolder", "--folder", home / "photos", "--json")
    assert set(ended.json["class_names"]) == set(names)


STUDY = """schema_version: 2
name: own
budget: {trainings: 3}
training: {epochs: 1}
retrain: {seeds: [0]}
data: {name: imagefolder, folder: photos, image_size: 8%s}
arms: {dense: {space: [training]}}
"""


def test_a_study_says_what_it_recognized_and_is_refused_before_anything_runs(home: Path) -> None:
    image_folder(home / "photos" / "Training")
    (home / "own.yaml").write_text(STUDY % "")
    ended = here("validate", home / "own.yaml", NAS_BLOCKOUT_HOME=str(home))
    assert ended.code == 0
    assert (
        "data: recognized splits: train in Training/; validation and test taken from the training images" in ended.err
    )
    (home / "photos" / "Training").rename(home / "photos" / "north")
    image_folder(home / "photos" / "south")
    for command in ("validate", "run"):
        ended = here(command, home / "own.yaml", NAS_BLOCKOUT_HOME=str(home))
        assert ended.code == 2
        assert "it is not clear what the folders 'north', 'south'" in ended.err
    assert not (home / "runs").exists()
    (home / "own.yaml").write_text(STUDY % ", layout: classes")
    ended = here("validate", home / "own.yaml", NAS_BLOCKOUT_HOME=str(home))
    assert "data: recognized 2 classes, divided here by split_seed: 'north', 'south'" in ended.err


def test_a_table_is_checked_with_the_groups_of_every_class(call: Call, home: Path) -> None:
    folder = image_folder(home / "images", classes=2, images=10)
    rows = [f"class-{label}/{number}.png,{label},p{number // 2}" for label in (0, 1) for number in range(10)]
    (home / "labels.csv").write_text("\n".join(["path,label,who", *rows]), encoding="utf-8")
    words = ("check", "table", "--table", "labels.csv", "--folder", folder, "--set", "group_column=who")
    ended = call(*words)
    assert ended.code == 0, ended.err
    assert "groups, none of which is in two splits: 3 train, 1 validation, 1 test" in ended.out
    assert (ended.out.count("6 / 3"), ended.out.count("2 / 1")) == (2, 4)  # of both classes, in three splits
    found = call(*words, "--json").json
    assert found["groups_of_classes"] == {"train": [3, 3], "validation": [1, 1], "test": [1, 1]}


def test_a_check_counts_the_images_of_every_class_and_fold(call: Call) -> None:
    ended = call("check", "digits", "--set", "folds=4", "--set", "fold=3")
    assert ended.code == 0, ended.err
    assert "divided anew into 4 folds of 314 to 315 images; fold 3 is for validation" in ended.out.replace("\n", " ")
    assert "images of every class and fold:" in ended.out
    found = call("check", "digits", "--set", "folds=4", "--json").json
    assert [sum(fold) for fold in found["images_of_folds"]] == [315, 314, 314, 314]
    assert found["images"]["validation"] == 315
    assert call("check", "digits", "--json").json["images_of_folds"] is None


def test_broken_rows_of_a_table_end_with_1_and_their_lines(call: Call, home: Path) -> None:
    (home / "labels.csv").write_text("path,label\nnone.png,a\n", encoding="utf-8")
    ended = call("check", "table", "--table", "labels.csv")
    assert ended.code == 1
    assert "line 2: there is no file 'none.png'" in ended.err
