"""A full disk is reported in one message, wherever it was met; other errors stay what they are."""

import errno
from pathlib import Path

import pytest
import torch

from services.cluster.worker_errors import describe_error
from services.files.disk_full import DiskFull, explain_disk_full, reports_disk_full
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
def test_a_full_disk_reports_disk_full_in_one_sentence(tmp_path, monkeypatch, write, still):
    folder = tmp_path / "runs" / "example"
    needed = 10**18 if still else 0  # no disk has so much free, every disk has so little
    with pytest.raises(DiskFull) as raised, explain_disk_full(folder, resume="do it again", needed_bytes=needed):
        write()
    message = str(raised.value)
    if still:
        assert message.startswith(f"the disk that holds {tmp_path} is full (")
    else:
        assert message.startswith(f"a disk that the study in {folder} writes to, here or on a worker, was full.")
    assert "All completed trials are saved." in message
    assert message.endswith(f"Free at least {needed / 1e6:.0f} MB there, then do it again to continue where it stopped")
    assert "\n" not in message


def write_archive() -> None:
    with FULL.open("wb") as file:
        torch.save({"weights": torch.zeros(10**6)}, file)


@pytest.mark.parametrize("write", [write_text, write_archive, raise_what_a_library_says])
def test_a_worker_that_meets_a_full_disk_is_understood(write):
    with pytest.raises((OSError, RuntimeError)) as raised:
        write()
    assert reports_disk_full(describe_error(raised.value))
    assert not reports_disk_full("RuntimeError: loss is not finite")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), KeyError("x"), StoreError("database or disk is full")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, explain_disk_full(tmp_path, resume="try again"):
        raise error
    assert raised.value is error


def test_a_database_without_room_is_no_disk_of_the_study(tmp_path):
    with pytest.raises(StoreError), explain_disk_full(tmp_path, resume="try again"):
        raise_from_a_full_database()
