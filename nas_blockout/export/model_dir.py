"""Files and folders that appear whole or not at all, whatever is killed when.

A folder is written beside its place, flushed to the disk, and exchanged with what stands in its place in one step of
the file system. Where the system knows no exchange, the old folder steps aside for a moment; killed in that moment, the
next `begin` puts it back.
"""

import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def begin(folder: Path) -> Path:
    """Return a new empty folder beside the place of `folder`; remove what writers that died have left there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    part = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)-\w+")
    for path in folder.parent.iterdir():
        found = part.fullmatch(path.name)
        if found and not _is_another(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{os.getpid()}-"))


def put_in_place(part: Path, folder: Path) -> None:
    """Give a folder that `begin` returned its place; what stood there is removed once it has."""
    for path in part.iterdir():
        path.chmod(0o644)
        _flush(path)
    part.chmod(0o755)
    _flush(part)
    if not folder.exists():
        part.rename(folder)
    elif _exchange(part, folder):
        shutil.rmtree(part)
    else:
        aside = _aside(folder)
        folder.rename(aside)
        part.rename(folder)
        shutil.rmtree(aside)
    _flush(folder.parent)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a file beside its place, flush it, and only then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        part.chmod(0o644)
        _flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _flush(path.parent)


def json_text(document: Any) -> str:
    """Return a JSON document as a text for people and programs, in ASCII."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document for people and programs."""
    path.write_text(json_text(document), encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return whether the system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(done == 0)


def _is_another(process: int) -> bool:
    """Whether a process that is not this one is running."""
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
