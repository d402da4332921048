"""Files and folders appear whole or not at all: on a full disk, when interrupted, and with several writers at once."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_blockout.atomic_files import whole_file, whole_folder, write_bytes, write_text

FULL = Path("/dev/full")  # refuses every byte, as a disk without room does


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_writing_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "file", b"old")
    write_text(tmp_path / "deep" / "file", "n\u00e9w\n")
    assert names(tmp_path) == ["deep", "deep/file"]
    assert (tmp_path / "deep" / "file").read_bytes() == b"n\xc3\xa9w\n"


@pytest.mark.parametrize("flush", [True, False])
def test_the_mode_of_a_file_follows_the_umask_whoever_writes_it(tmp_path: Path, umask: int, flush: bool) -> None:
    with whole_file(tmp_path / "written", flush=flush) as part:
        part.write_text("x")
        part.chmod(0o600)  # as safetensors leaves its files
    with whole_file(tmp_path / "replaced", flush=flush) as part:
        part.unlink()  # some writers rename a file of their own into the place
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    assert {mode(tmp_path / name) for name in ("written", "replaced")} == {0o666 & ~umask}


def test_the_modes_in_a_folder_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with whole_folder(tmp_path / "model") as part:
        (part / "inner").mkdir()
        for name in ("a", "inner/b"):
            (part / name).write_text(name)
            (part / name).chmod(0o600)
    assert mode(tmp_path / "model") == 0o777 & ~umask
    assert {mode(tmp_path / "model" / name) for name in ("a", "inner/b")} == {0o666 & ~umask}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_fails_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    write_text(tmp_path / "file", "old")
    with whole_folder(tmp_path / "folder") as part:
        (part / "a").write_text("old")

    def write_half(path: Path) -> None:
        path.write_text("half")
        raise failure

    with pytest.raises(failure), whole_file(tmp_path / "file") as part:
        write_half(part)
    for keep in (True, False):
        with pytest.raises(failure), whole_folder(tmp_path / "folder", keep_existing=keep) as part:
            write_half(part / "a")
    assert names(tmp_path) == ["file", "folder", "folder/a"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "old"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_what_a_device_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")

    def write_to_a_full_device(part: Path) -> None:
        part.unlink()
        part.symlink_to(FULL)
        part.write_text("new")

    with pytest.raises(OSError, match="No space left") as raised, whole_file(tmp_path / "file") as part:
        write_to_a_full_device(part)
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


ON_A_SMALL_DISK = """
import errno, subprocess, sys
from pathlib import Path
from nas_blockout.atomic_files import whole_folder, write_bytes, write_text
disk = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
    print("no mount")
    sys.exit()
write_text(disk / "file", "old")
def write_folder(data):
    with whole_folder(disk / "folder") as part:
        (part / "small").write_text("x")
        (part / "large").write_bytes(data)
for write in (lambda data: write_bytes(disk / "file", data), write_folder):
    try:
        write(bytes(100_000))
    except OSError as error:
        print(errno.errorcode[error.errno])
print(sorted(path.name for path in disk.iterdir()), (disk / "file").read_text())
write_bytes(disk / "file", bytes(40_000))
print((disk / "file").stat().st_size)
"""


def test_a_full_disk_keeps_what_was_there_and_no_parts(tmp_path: Path) -> None:
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if result.stdout == "no mount\n" or result.stderr.startswith("unshare:"):
        pytest.skip("a disk of 64 KiB cannot be mounted here")
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["ENOSPC", "ENOSPC", "['file'] old", "40000"]


def test_a_reader_sees_one_writers_content_whole(tmp_path: Path) -> None:
    path, stop, torn = tmp_path / "file", threading.Event(), []
    contents = {bytes([letter]) * 200_000 for letter in b"abcd"}
    write_bytes(path, min(contents))

    def write(data: bytes) -> None:
        for _ in range(20):
            write_bytes(path, data)

    def read() -> None:
        while not stop.is_set():
            if (data := path.read_bytes()) not in contents:
                torn.append(data[:10])

    writers = [threading.Thread(target=write, args=(data,)) for data in contents]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert torn == []
    assert names(tmp_path) == ["file"]


def test_a_folder_that_is_replaced_has_only_the_new_files(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with whole_folder(tmp_path / "folder") as part:
            (part / name).write_text(name)
    assert names(tmp_path) == ["folder", "folder/new"]


def test_the_first_of_several_writers_of_one_cache_wins(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "cache" / "key", keep_existing=True) as late:
        with whole_folder(tmp_path / "cache" / "key", keep_existing=True) as early:
            (early / "data").write_text("early")
        (late / "data").write_text("late")
    assert names(tmp_path) == ["cache", "cache/key", "cache/key/data"]
    assert (tmp_path / "cache" / "key" / "data").read_text() == "early"


KILLED = """
import os, signal, sys
from pathlib import Path
from nas_blockout.atomic_files import whole_folder
with whole_folder(Path(sys.argv[1])) as part:
    (part / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_of_a_folder_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert len(names(tmp_path)) == 2  # the part and the file in it
    (tmp_path / ".folder.old").mkdir()  # as if killed between the two renames of a system without an exchange
    (tmp_path / ".folder.old" / "data").write_text("old")
    with whole_folder(folder) as part:
        assert (folder / "data").read_text() == "old"
        (part / "data").write_text("new")
    assert names(tmp_path) == ["folder", "folder/data"]
    assert (folder / "data").read_text() == "new"


def test_a_folder_that_cannot_be_made_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"), whole_file(tmp_path / "file" / "below"):
        pass
    with pytest.raises(OSError), whole_folder(tmp_path / "file", keep_existing=True):  # a file is no folder to keep
        pass
    assert names(tmp_path) == ["file"]
