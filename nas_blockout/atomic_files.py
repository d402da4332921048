"""Files and folders that appear whole or not at all, whatever fails or is killed while they are written.

What is written goes beside its place first, under a name that begins with a dot, and is then renamed: a reader sees the
old content or the new one, never a part of either. If writing fails (a full disk, an interrupt), the part is removed.
Modes follow the umask, as those of files that `open` makes.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# renameat2(2): paths are relative to the working directory, and the two names are exchanged.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield an empty file to write to, which takes the place of `path` at the end, unless the block fails.

    Args:
        path: Where the file goes; folders above it are made.
        flush: Whether the content reaches the disk before the file takes its place. Without it a power failure can
            leave an empty file: only for what its reader checks and can do without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        part.touch(exist_ok=False)
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(mode)  # safetensors, for one, makes files that only their owner reads
        if flush:
            _flush(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if flush:
        _flush_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that appears whole or not at all."""
    write_bytes(path, text.encode())


@contextmanager
def whole_folder(folder: Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a new folder to write to, which takes the place of `folder` at the end, unless the block fails.

    Args:
        folder: Where it goes; folders above it are made.
        keep_existing: What happens if there is a folder by then. False replaces it in one step, and first removes what
            writers of this machine that died have left behind; only one process may write the folder at a time. True
            keeps it and drops the new one: for several processes, on any machines, that make the same content.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not keep_existing:
        _clear_remains(folder)
    part = _beside(folder)
    try:
        part.mkdir()
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        for path in part.rglob("*"):
            if path.is_dir():
                _flush_folder(path)
            else:
                path.chmod(mode & 0o666)
                _flush(path)
        _flush_folder(part)
        if keep_existing:
            _rename_unless_there(part, folder)
        else:
            _replace_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # what is in place has another name by now
    _flush_folder(folder.parent)


def _beside(path: Path) -> Path:
    """Return a name beside a path that no other writer uses; `_clear_remains` reads the number of the process."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def _rename_unless_there(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _replace_folder(part: Path, folder: Path) -> None:
    """Give a folder its place, in one step where the system can exchange two; else the old one steps aside first."""
    if not folder.exists():
        part.rename(folder)
    elif not _exchange(part, folder):
        aside = _aside(folder)
        folder.rename(aside)  # killed here, the next writer puts it back
        part.rename(folder)
        shutil.rmtree(aside)


def _clear_remains(folder: Path) -> None:
    """Undo what writers that were killed have left: a folder that stepped aside, and parts."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)-\w+")
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_running_elsewhere(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return whether the system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc has it from 2.28 on, macOS not at all
    if renameat2 is None:
        return False
    status = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(status == 0)  # not on every file system: NFS, for one, refuses


def _is_running_elsewhere(process: int) -> bool:
    """Whether a process other than this one is running."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder, where its file system can; the file is in place either way."""
    with suppress(OSError):
        _flush(folder)
