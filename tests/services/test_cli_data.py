"""`nas-blockout data`: what it prints, what it writes, and the codes it ends with."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from nas_blockout.data import SOURCES
from services import cli


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.excepthook
    yield tmp_path
    sys.excepthook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", *map(str, arguments)])
    return int(ended.value.code or 0)


def image_folder(root: Path, classes: int = 3, images: int = 10) -> Path:
    for number in range(classes):
        folder = root / f"class-{number}"
        folder.mkdir(parents=True)
        for index in range(images):
            Image.new("RGB", (12, 10), (80 * number, 20 * index, 50)).save(folder / f"{index}.png")
    return root


def test_every_source_is_listed(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert call("list") == 0
    printed = capsys.readouterr().out
    for name, source in SOURCES.items():
        assert name in printed
        assert source.summary in printed
    assert str(home / "data") in printed


def test_sources_are_listed_for_programs(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert call("list", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["root"] == str(home / "data")
    assert [source["name"] for source in document["sources"]] == list(SOURCES)
    assert {source["name"] for source in document["sources"] if source["fetch"]} == {
        "fashion_mnist",
        "cifar10",
        "cifar100",
    }


def test_the_setting_moves_the_root(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_BLOCKOUT_DATA", str(tmp_path / "elsewhere"))
    call("list", "--json")
    assert json.loads(capsys.readouterr().out)["root"] == str(tmp_path / "elsewhere")


def test_whole_data_is_checked_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "digits") == 0
    streams = capsys.readouterr()
    assert "digits: whole; 10 classes, images of 1 x 8 x 8" in streams.out
    assert "898" in streams.out
    assert "reading all of digits" in streams.err


def test_a_check_for_programs_has_all_splits(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "digits", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ready"], report["problem"]) == (True, "")
    assert report["images"] == {"train": 898, "validation": 359, "test": 540}


@pytest.mark.parametrize("command", ["check", "show"])
def test_missing_data_ends_with_3_and_a_remedy(capsys: pytest.CaptureFixture[str], home: Path, command: str) -> None:
    assert call(command, "cifar10") == 3
    streams = capsys.readouterr()
    assert "nas-blockout data fetch cifar10" in streams.err
    assert list(home.iterdir()) == []


def test_missing_data_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "cifar10", "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["ready"], report["missing"]) == (False, True)


@pytest.mark.parametrize("command", ["check", "show"])
def test_corrupt_data_ends_with_1_and_names_the_file(
    capsys: pytest.CaptureFixture[str], home: Path, command: str
) -> None:
    folder = image_folder(home / "images")
    for broken in (folder / "class-1").iterdir():
        broken.write_bytes(broken.read_bytes()[:40])
    assert call(command, "imagefolder", "--folder", folder) == 1
    assert "class-1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fetch", "check", "show"])
def test_an_unknown_name_ends_with_2_and_a_near_match(
    capsys: pytest.CaptureFixture[str], home: Path, command: str
) -> None:
    assert call(command, "digit") == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_a_setting_that_does_not_fit_the_source_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "digits", "--folder", "somewhere") == 2
    assert "folder" in capsys.readouterr().err


def test_what_is_not_downloaded_ends_with_3_and_says_how_it_is_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fetch", "digits") == 3
    assert "scikit-learn" in capsys.readouterr().err


def test_a_picture_of_every_class_is_drawn(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    folder = image_folder(home / "images")
    assert call("show", "imagefolder", "--folder", folder, "--columns", "4", "--output", home / "sheet.png") == 0
    assert capsys.readouterr().out.strip() == str(home / "sheet.png")
    with Image.open(home / "sheet.png") as sheet:
        assert sheet.height % 3 == 0
        assert sheet.width > 4 * 12


def test_a_picture_is_called_after_its_source(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert call("show", "digits", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "digits", "file": str(home / "digits.png")}
    assert (home / "digits.png").is_file()


def test_a_picture_for_no_folder_is_refused(home: Path) -> None:
    assert call("show", "digits", "--output", home / "none" / "sheet.png") == 3
    assert list(home.iterdir()) == []
