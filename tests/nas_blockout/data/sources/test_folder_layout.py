"""Folders of images as people have them: what is recognized, what is asked about, what is passed over."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas_blockout.data import DataCorrupt, DataSettings, DataUnsuitable, Splits, check, load, recognized


def fill(folder: Path, counts: dict[str, int], *, suffix: str = ".png") -> None:
    draws = np.random.default_rng(len(str(folder)))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = draws.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}{suffix}")


def settings(folder: Path, **changes: Any) -> DataSettings:
    return DataSettings(name="imagefolder", folder=str(folder), **{"image_size": 8, **changes})


def notes(folder: Path, **changes: Any) -> str:
    return "\n".join(recognized(settings(folder, **changes)))


def counts(splits: Splits) -> list[int]:
    return [len(splits.train), len(splits.validation), len(splits.test())]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "Valid", "TEST"),
        ("training", "dev", "testing"),
    ],
)
def test_splits_are_recognized_by_their_usual_names(tmp_path: Path, train: str, validation: str, test: str) -> None:
    for name, count in ((train, 10), (validation, 3), (test, 4)):
        fill(tmp_path / name, {"ant": count, "bee": count})
    splits = load(settings(tmp_path))
    assert counts(splits) == [20, 6, 8]
    assert splits.class_names == ("ant", "bee")
    assert f"recognized splits: train in {train}/, validation in {validation}/, test in {test}/" in splits.notes[0]
    assert splits.notes[1] == "images: 20 train, 6 validation, 8 test"


def test_training_and_testing_are_not_two_classes(tmp_path: Path) -> None:
    for name, count in (("Training", 10), ("Testing", 4)):
        fill(tmp_path / name, {"glioma": count, "meningioma": count, "notumor": count})
    splits = load(settings(tmp_path))
    assert splits.class_names == ("glioma", "meningioma", "notumor")
    assert counts(splits) == [24, 6, 12]
    assert "validation taken from the training images" in splits.notes[0]


def test_classes_are_named_in_what_was_recognized(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 5, "bee": 5})
    assert notes(tmp_path) == (
        "recognized 2 classes, divided here by split_seed: 'ant', 'bee'\nimages: 6 train, 2 validation, 2 test"
    )


def test_a_test_folder_without_classes_is_passed_over_and_said(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"ant": 5, "bee": 5})
    fill(tmp_path, {"test": 5, "raw/x": 1})
    found = notes(tmp_path)
    assert "validation and test taken from the training images" in found
    assert "passed over folders that are no split or have no sub-folder a class: 'raw', 'test'" in found


def test_a_train_among_vehicles_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, {"bus": 5, "car": 5, "train": 5})
    assert load(settings(tmp_path)).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("2019/ant", "2019/bee", "2020/ant", "2020/bee"), r"no images of its own but the sub-folders 'ant', 'bee'"),
        (
            ("seg_train/ant", "seg_train/bee", "seg_test/ant", "seg_test/bee"),
            r"'seg_test', 'seg_train' look like splits",
        ),
        (("TrainImages/ant", "TestImages/ant"), r"'TestImages', 'TrainImages' look like splits"),
        (("train", "test"), r"'test', 'train' look like splits, each of which needs one sub-folder of images a class"),
        (("test/ant", "test/bee", "val/ant", "val/bee"), r"there are 'test', 'val', but no train"),
        (("train/ant", "Training/ant"), r"must have one folder a split, got 'Training', 'train'"),
        (("images", "labels"), r"'labels' looks like the annotations of a data set for detection"),
    ],
)
def test_what_is_not_clear_is_asked_about_with_the_setting_that_decides(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    for folder in folders:
        fill(tmp_path, {folder: 5})
    with pytest.raises(DataUnsuitable, match=message) as refused:
        load(settings(tmp_path))
    assert "data.layout to classes" in str(refused.value)
    top = {folder.partition("/")[0] for folder in folders}
    assert set(load(settings(tmp_path, layout="classes")).class_names) == top


def test_images_in_sub_folders_of_a_class_are_counted_as_such(tmp_path: Path) -> None:
    fill(tmp_path, {"cats": 3, "cats/indoors": 3, "cats/outdoors": 3, "dogs": 9})
    found = notes(tmp_path)
    assert re.search(r"[2-4] training images lie in sub-folders of a class and count to it", found)


def test_splits_that_are_demanded_must_be_there(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 5, "bee": 5})
    with pytest.raises(
        DataUnsuitable, match=r"must have a folder train with one sub-folder a class, as data.layout is"
    ):
        load(settings(tmp_path, layout="splits"))


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        ("whole/ant", r"set folder to .*/whole, which has 2 sub-folders"),
        (".", r"sort its 5 images into one sub-folder"),
    ],
)
def test_a_folder_one_too_high_and_one_without_classes_are_told_what_to_do(
    tmp_path: Path, folder: str, remedy: str
) -> None:
    fill(tmp_path, {folder: 5} if folder == "." else {folder: 5, "whole/bee": 5})
    with pytest.raises(DataUnsuitable, match=remedy):
        load(settings(tmp_path))


def test_what_is_passed_over_is_counted_by_its_reason(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 5, "bee": 5, "bee/.thumbnails": 2, "__MACOSX": 2, ".git": 1})
    (tmp_path / "ant" / "phone.HEIC").write_bytes(b"x")
    (tmp_path / "ant" / "phone2.heic").write_bytes(b"x")
    (tmp_path / "ant" / "drawing.svg").write_text("<svg/>")
    (tmp_path / "ant" / "empty.jpg").write_bytes(b"")
    (tmp_path / "ant" / "notes.txt").write_text("x")
    (tmp_path / "ant" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "bee" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "bee" / "elsewhere").symlink_to(tmp_path / "ant")
    Image.new("RGB", (9, 9)).save(tmp_path / "cover.png")
    assert notes(tmp_path).splitlines()[-1] == (
        "passed over broken links: 1, empty files: 1, hidden files: 1, hidden folders: 3, images outside the folder of "
        "a class: 1, links to folders: 1, other files: 1, images in formats that are not read: .heic 2 .svg 1 "
        "(convert them to PNG or JPEG)"
    )
    assert sum(counts(load(settings(tmp_path)))) == 10


def test_linked_images_and_linked_classes_are_used(tmp_path: Path) -> None:
    fill(tmp_path / "store", {"a": 5, "b": 5})
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "ant").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "own" / "bee").mkdir()
    for path in (tmp_path / "store" / "b").iterdir():
        (tmp_path / "own" / "bee" / path.name).symlink_to(path)
    assert sum(counts(load(settings(tmp_path / "own")))) == 10


def test_classes_with_too_few_images_are_left_out_if_asked_and_named(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 9, "bee": 2, "cow": 9, "dog": 0, "emu": 4})
    with pytest.raises(DataUnsuitable, match=r"has none for 'dog'.*excluded_classes or min_images_per_class: 1"):
        load(settings(tmp_path))
    with pytest.raises(DataUnsuitable, match=r"'bee' \(up to 2 images\).*min_images_per_class: 3 or excluded_classes"):
        load(settings(tmp_path, excluded_classes=("dog",)))
    splits = load(settings(tmp_path, min_images_per_class=5))
    assert splits.class_names == ("ant", "cow")
    assert "left out by min_images_per_class 5 (3): 'bee (2)', 'dog (0)', 'emu (4)'" in splits.notes
    assert load(settings(tmp_path, min_images_per_class=3)).class_names == ("ant", "cow", "emu")
    splits = load(settings(tmp_path, excluded_classes=("dog", "bee")))
    assert splits.class_names == ("ant", "cow", "emu")
    assert "left out by excluded_classes: 'dog', 'bee'" in splits.notes


def test_with_splits_training_images_count_and_one_in_each_other_split(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        fill(tmp_path / name, {"ant": 6, "bee": 6, "cow": 6 if name == "train" else 0, "dog": 2})
    assert load(settings(tmp_path, min_images_per_class=1)).class_names == ("ant", "bee", "dog")
    assert load(settings(tmp_path, min_images_per_class=6)).class_names == ("ant", "bee")
    fill(tmp_path / "test", {"emu": 3})
    with pytest.raises(DataUnsuitable, match="no class that is not in train, got emu"):
        load(settings(tmp_path, min_images_per_class=1))


def test_too_few_classes_that_are_large_enough_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 9, "bee": 5})
    with pytest.raises(DataUnsuitable, match="two or more classes must have 6 images, got 1"):
        load(settings(tmp_path, min_images_per_class=6))
    with pytest.raises(DataUnsuitable, match=r"excluded_classes must name classes of .*, got 'wasp'"):
        load(settings(tmp_path, excluded_classes=("wasp",)))


def test_all_images_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 20, "bee": 20})
    broken = sorted((tmp_path / "bee").iterdir())
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "ant" / "page.jpg").write_text("<html>not found</html>")
    report = check(settings(tmp_path))
    assert report.problem.startswith("21 images cannot be read:\n")
    assert len(re.findall(r"must be a whole image", report.problem)) == 10
    assert report.problem.endswith("and 11 more")
    assert "ant/page.jpg" in report.problem
    with pytest.raises(DataCorrupt) as loading:  # which must not open the test images, so it names the others
        load(settings(tmp_path))
    assert 16 <= len(loading.value.problems) <= 17


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_cannot_be_opened_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 5, "bee": 5, "bee/closed": 2})
    (tmp_path / "bee" / "closed").chmod(0)
    assert "folders that cannot be opened: 1" in notes(tmp_path)
    (tmp_path / "bee" / "closed").chmod(0o700)
