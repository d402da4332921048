"""Images listed in a table: what is read, which rows are refused by their lines, and that groups stay whole."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas_blockout.data import (
    DataCorrupt,
    DataMissing,
    DataSettings,
    DataUnsuitable,
    StreamedPart,
    check,
    load,
    recognized,
)
from nas_blockout.data.sources import table


def settings(place: Path, **changes: Any) -> DataSettings:
    return DataSettings(name="table", **{"table": str(place / "labels.csv"), "image_size": 8, **changes})


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9, 3), shade, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve patients with two images each, half of them of each class; the shade tells the image."""
    rows = ["path,label,patient"]
    for number in range(24):
        picture(tmp_path / "scans" / f"{number:02}.png", 10 * number)
        rows.append(f"scans/{number:02}.png,{'ill' if number % 4 < 2 else 'healthy'},p{number // 2}")
    write(tmp_path, rows)
    return tmp_path


def write(folder: Path, rows: Sequence[str], *, name: str = "labels.csv", encoding: str = "utf-8") -> None:
    (folder / name).write_text("\n".join(rows) + "\n", encoding=encoding)


def lines(folder: Path) -> list[str]:
    return (folder / "labels.csv").read_text(encoding="utf-8").splitlines()


def test_images_have_the_classes_of_their_rows(folder: Path) -> None:
    splits = load(settings(folder))
    assert splits.class_names == ("healthy", "ill")
    assert [len(splits.train), len(splits.validation), len(splits.test())] == [14, 4, 6]
    shades = splits.train.pixels[:, 0, 0, 0]
    assert splits.train.labels.tolist() == [int((shade // 10) % 4 < 2) for shade in shades.tolist()]
    assert splits.shape == (3, 8, 8)


def test_no_patient_is_in_two_splits(folder: Path) -> None:
    splits = load(settings(folder, group_column="patient"))
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test()}
    patients = {name: {shade // 20 for shade in part.pixels[:, 0, 0, 0].tolist()} for name, part in parts.items()}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 12
    assert splits.groups == {name: tuple([len(each) // 2] * 2) for name, each in patients.items()}
    assert "groups, none of which is in two splits: 8 train, 2 validation, 2 test" in splits.notes


def test_a_pattern_groups_as_a_column_does(folder: Path) -> None:
    for number in range(24):
        (folder / f"scans/{number:02}.png").rename(folder / f"scans/p{number // 2}_{number:02}.png")
    write(folder, [line.replace("scans/", f"scans/{line.split(',')[-1]}_") for line in lines(folder)])
    by_column = load(settings(folder, group_column="patient"))
    by_pattern = load(settings(folder, group_pattern="<p#>_*"))
    assert torch.equal(by_column.train.pixels, by_pattern.train.pixels)


def test_the_order_of_rows_changes_nothing(folder: Path) -> None:
    before = load(settings(folder, group_column="patient"))
    head, *rest = lines(folder)
    write(folder, [head, *reversed(rest)])
    after = load(settings(folder, group_column="patient"))
    assert torch.equal(before.train.pixels, after.train.pixels)
    assert torch.equal(before.train.labels, after.train.labels)


def test_splits_may_be_given(folder: Path) -> None:
    head, *rest = lines(folder)
    names = ["Train"] * 12 + ["val"] * 4 + ["TEST"] * 8
    write(folder, [f"{head},split", *(f"{line},{name}" for line, name in zip(rest, names, strict=True))])
    splits = load(settings(folder, split_column="split", group_column="patient"))
    assert [len(splits.train), len(splits.validation), len(splits.test())] == [12, 4, 8]
    assert splits.groups == {"train": (3, 3), "validation": (1, 1), "test": (2, 2)}


def test_given_splits_that_share_a_patient_are_refused(folder: Path) -> None:
    head, *rest = lines(folder)
    names = ["train"] * 13 + ["test"] * 11
    write(folder, [f"{head},split", *(f"{line},{name}" for line, name in zip(rest, names, strict=True))])
    with pytest.raises(DataUnsuitable, match="train and test share 1 group: 'p6'"):
        load(settings(folder, split_column="split", group_column="patient"))


def test_columns_have_any_names_and_files_any_place(folder: Path) -> None:
    write(folder, ["who;diagnosis;file", *(";".join(reversed(line.split(","))) for line in lines(folder)[1:])])
    (folder / "elsewhere").mkdir()
    (folder / "labels.csv").rename(folder / "elsewhere" / "labels.csv")
    splits = load(
        settings(
            folder / "elsewhere", folder=str(folder), path_column="file", label_column="diagnosis", group_column="who"
        )
    )
    assert len(splits.train) == 16


def test_text_of_a_spreadsheet_is_read(folder: Path) -> None:
    head, *rest = lines(folder)
    write(
        folder,
        [head, "", *(f'"{line.split(",")[0]}", {",".join(line.split(",")[1:])} ' for line in rest)],
        encoding="utf-8-sig",
    )
    assert len(load(settings(folder)).train) == 14


def test_broken_rows_are_named_by_their_lines(folder: Path) -> None:
    head, *rest = lines(folder)
    (folder / "scans" / "empty.png").touch()
    broken = [
        "scans/none.png,ill,p90",
        "scans/00.png,healthy,p0",
        ",ill,p1",
        "scans/02.png,,p1",
        "scans/03.png,ill,",
        "../outside.png,ill,p1",
        "/etc/passwd,ill,p1",
        "scans/05.png,ill",
        "scans/empty.png,ill,p1",
        "scans/05.png,ill,p9",
    ]
    write(folder, [head, *rest, *broken])
    with pytest.raises(DataUnsuitable) as error:
        load(settings(folder, group_column="patient"))
    text = str(error.value)
    assert text.startswith(f"10 rows of {folder / 'labels.csv'} cannot be used")
    for line, rule in (
        (26, "there is no file 'scans/none.png'"),
        (27, "'scans/00.png' is in line 2 too, with the class 'ill' instead of 'healthy'"),
        (28, "path is empty"),
        (29, "label is empty"),
        (30, "patient is empty"),
        (31, "'../outside.png' leads out of the folder"),
        (32, "'/etc/passwd' leads out of the folder"),
        (33, "must have 3 cells, as the first line, got 2"),
        (34, "'scans/empty.png' is an empty file"),
        (35, "is in line 7 too, with the group 'p2' instead of 'p9'"),
    ):
        assert f"\n  line {line}: " in text
        assert rule in text


def test_lines_are_those_of_the_file_where_cells_have_several(folder: Path) -> None:
    head, *rest = lines(folder)
    write(folder, [f"{head},note", *(f'{line},"two\nlines"' for line in rest), "scans/none.png,ill,p1,x"])
    with pytest.raises(DataUnsuitable, match=r"line 50: there is no file 'scans/none.png'"):
        load(settings(folder))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"path,label\nscans/00.png,krank\xe4\n", DataCorrupt, r"must be UTF-8 text, line 2 is not \(byte 0xe4\)"),
        (
            b'path,label\nscans/00.png,"ill\n',
            DataCorrupt,
            "must be a table of text, got from line 2 on: unexpected end",
        ),
        (b"", DataUnsuitable, "must name its columns in the first line, got an empty file"),
        (b"path,label\n", DataUnsuitable, "must have a row an image below the names of its columns, got none"),
        (
            b"file,label\nscans/00.png,a\n",
            DataUnsuitable,
            "path_column must name a column of .*, got 'path'; known are",
        ),
        (b"path,label,label\nscans/00.png,a,b\n", DataUnsuitable, "must name every column once, got label several"),
        (b"path,label\nscans/00.png,a\nscans/01.png,a\n", DataUnsuitable, "two or more classes, got 1: 'a'"),
    ],
)
def test_what_is_no_table_is_refused(folder: Path, content: bytes, kind: type[Exception], message: str) -> None:
    (folder / "labels.csv").write_bytes(content)
    with pytest.raises(kind, match=message):
        load(settings(folder))


def test_missing_files_are_told_apart(folder: Path) -> None:
    with pytest.raises(DataMissing, match="there is no table"):
        load(settings(folder / "elsewhere"))
    with pytest.raises(DataMissing, match="need an existing folder, got 'no'; set folder"):
        load(settings(folder, folder="no"))


def test_repeated_rows_count_once_and_classes_may_be_left_out(folder: Path) -> None:
    picture(folder / "odd.png")
    write(folder, [*lines(folder), "scans/00.png,ill,p0", "odd.png,odd,p99"])
    with pytest.raises(DataUnsuitable, match="1 of 3 classes have none in the"):
        load(settings(folder))
    found = "\n".join(recognized(settings(folder, min_images_per_class=2)))
    assert "1 row repeats another and counted once" in found
    assert "left out by min_images_per_class 2 (1): 'odd (1)'" in found
    assert load(settings(folder, excluded_classes=("odd",))).class_names == ("healthy", "ill")


def test_classes_that_are_numbers_stand_in_their_order(folder: Path) -> None:
    names = ["2", "10", "9"]
    write(folder, ["path,label", *(f"scans/{number:02}.png,{names[number % 3]}" for number in range(24))])
    assert load(settings(folder)).class_names == ("2", "9", "10")


def test_parquet_is_the_same_table(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    parquet.write_table(csv.read_csv(folder / "labels.csv"), folder / "labels.parquet")
    by_text, by_parquet = (
        load(settings(folder, table=str(folder / name))) for name in ("labels.csv", "labels.parquet")
    )
    assert torch.equal(by_text.train.pixels, by_parquet.train.pixels)
    (folder / "labels.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataCorrupt, match="must be a Parquet file, got"):
        load(settings(folder, table=str(folder / "labels.parquet")))


def test_without_pyarrow_parquet_is_refused_with_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "labels.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataUnsuitable, match=r"needs pyarrow, .* pip install 'nas-blockout\[parquet\]'"):
        load(settings(folder, table=str(folder / "labels.parquet")))


def test_what_does_not_fit_into_memory_is_streamed_with_the_same_numbers(folder: Path) -> None:
    in_memory = load(settings(folder)).train
    streamed = table.read(settings(folder), None, memory_bytes=0).train.loaded().normalized(in_memory.preprocessing)
    assert isinstance(streamed, StreamedPart)
    assert torch.equal(streamed.images[:], in_memory.images[:])


def test_a_check_names_unreadable_images_and_counts_groups(folder: Path) -> None:
    report = check(settings(folder, group_column="patient"))
    assert report.groups_of_classes == {"train": (4, 4), "validation": (1, 1), "test": (1, 1)}
    assert report.images_of_classes == {"train": (8, 8), "validation": (2, 2), "test": (2, 2)}
    (folder / "scans" / "07.png").write_bytes(b"no image")
    report = check(settings(folder, group_column="patient"))
    assert not report.ready
    assert "07.png must be a whole image" in report.problem
