"""A full disk is told in one sentence, whoever met it; other errors stay what they are."""

import errno
from pathlib import Path

import pytest
import torch

from services.cluster.worker import describe_error
from services.files.disk_full import DiskFull, is_told, room_in
from services.store import StoreError

FULL = Path("/dev/full")  # refuses every byte, as a disk without room does
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def write_text() -> None:
    with FULL.open("w") as file:
        file.write("x")


def raise_what_a_library_says() -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def raise_from_a_full_disk() -> None:
    try:
        write_text()
    except OSError as error:
        raise ValueError("the report cannot be written") from error


def raise_from_a_full_database() -> None:
    try:
        write_text()
    except OSError as error:
        raise StoreError("could not extend file: No space left on device") from error


@pytest.mark.parametrize("write", [write_text, raise_what_a_library_says, raise_from_a_full_disk])
@pytest.mark.parametrize("still", [True, False])
def test_a_full_disk_is_told_in_one_sentence(tmp_path, monkeypatch, write, still):
    folder = tmp_path / "runs" / "example"
    monkeypatch.setattr("services.files.disk_full.ROOM_BYTES", 10**18 if still else 0)
    with pytest.raises(DiskFull) as told, room_in(folder, again="run the same command again"):
        write()
    sentence = str(told.value)
    if still:
        assert sentence.startswith(f"the disk under {tmp_path} is full (")
    else:
        assert sentence.startswith(f"a disk to which the study of {folder} writes, here or on a worker, had no room")
    assert "every trial that has ended is kept" in sentence
    assert sentence.endswith("free 100 MB there and run the same command again: it goes on where it stopped")
    assert "\n" not in sentence


def write_archive() -> None:
    with FULL.open("wb") as file:
        torch.save({"weights": torch.zeros(10**6)}, file)


@pytest.mark.parametrize("write", [write_text, write_archive, raise_what_a_library_says])
def test_a_worker_that_meets_a_full_disk_is_understood(write):
    with pytest.raises((OSError, RuntimeError)) as met:
        write()
    assert is_told(describe_error(met.value))
    assert not is_told("RuntimeError: loss is not finite")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), KeyError("x"), StoreError("database or disk is full")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as told, room_in(tmp_path, again="again"):
        raise error
    assert told.value is error


def test_a_database_without_room_is_no_disk_of_the_study(tmp_path):
    with pytest.raises(StoreError), room_in(tmp_path, again="again"):
        raise_from_a_full_database()
