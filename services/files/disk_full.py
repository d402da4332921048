"""A full disk, told in one sentence: which one, what was kept, what to do, how to go on."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.store import StoreError

ROOM_BYTES = 100 * 10**6
_ROOM = f"{ROOM_BYTES / 1e6:.0f} MB"
_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})
_WORDS = ("No space left on device", "Disk quota exceeded")  # as libraries in other languages pass it on


class DiskFull(Exception):
    """A disk has no room for what a study leaves behind; what it has found stands."""


@contextmanager
def room_in(folder: Path, *, again: str) -> Iterator[None]:
    """Turn what fails in the block for want of room into `DiskFull`.

    Args:
        folder: What is written there, or below it.
        again: What goes on, such as ``run the same command again``.

    Raises:
        DiskFull: A disk is full; that of the database, perhaps on another machine, remains a `StoreError`.
    """
    try:
        yield
    except Exception as error:
        if not any(_tells(each) for each in _chain(error)):
            raise
        place, free = _fullest(folder)
        where = f"the disk under {place} is full ({free / 1e6:.1f} MB free)"
        if free >= ROOM_BYTES:
            where = f"a disk to which the study of {folder} writes, here or on a worker, had no room"
        raise DiskFull(
            f"{where}: every trial that has ended is kept, with what was written before; free "
            f"{_ROOM} there and {again}: it goes on where it stopped"
        ) from error


def is_told(failure: str) -> bool:
    """Whether the text of an error says that a disk is full."""
    return any(words in failure for words in _WORDS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None and not isinstance(error, StoreError):
        yield error
        error = error.__cause__ or error.__context__


def _tells(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _NUMBERS or is_told(str(error))


def _fullest(folder: Path) -> tuple[Path, int]:
    """Return the folder with the least room, and the bytes that are free there; one for passing files if none lacks it.

    What could not be written has been removed, so that a disk that was full may have some room again.
    """
    inside = [path for depth in ("*", "*/*") for path in folder.glob(depth) if path.is_dir()]
    places = [next(path for path in (folder, *folder.parents) if path.exists()), *inside]
    place = min(places, key=_free)
    passing = Path(tempfile.gettempdir())
    place = passing if _free(passing) < ROOM_BYTES <= _free(place) else place
    return place, _free(place)


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free
