"""A full disk, reported in one message: which disk, what is saved, how much to free, how to continue."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.store import StoreError

NEEDED_BYTES = 100 * 10**6
_ERROR_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})
_MESSAGES = ("No space left on device", "Disk quota exceeded")  # as libraries in other languages pass it on


class DiskFull(Exception):
    """A disk has no space for a study's files; what the study has recorded so far stands."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk caused an error."""
    return any(_is_disk_full(cause) for cause in _causes(error))


@contextmanager
def explain_disk_full(folder: Path, *, resume: str, needed_bytes: int = NEEDED_BYTES) -> Iterator[None]:
    """Turn an error of the block that a full disk caused into `DiskFull`.

    Args:
        folder: The block writes there, or below it.
        resume: How the user continues, such as ``run the same command again``.
        needed_bytes: Free space below which a disk counts as full, and that the message asks for.

    Raises:
        DiskFull: A disk is full; that of the database, perhaps on another machine, remains a `StoreError`.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        place, free = _fullest(folder, needed_bytes)
        where = f"the disk that holds {place} is full ({free / 1e6:.1f} MB free)"
        if free >= needed_bytes:  # it was a worker's, or has been emptied since
            where = f"a disk that the study in {folder} writes to, here or on a worker, was full"
        raise DiskFull(
            f"{where}. All completed trials are saved. Free at least {needed_bytes / 1e6:.0f} MB there, then {resume} "
            "to continue where it stopped"
        ) from error


def reports_disk_full(message: str) -> bool:
    """Whether the message of an error says that a disk is full."""
    return any(text in message for text in _MESSAGES)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # A store error is left alone with all that caused it: the disk of the database may be on another machine.
    while error is not None and not isinstance(error, StoreError):
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _ERROR_NUMBERS) or reports_disk_full(str(error))


def _fullest(folder: Path, needed_bytes: int) -> tuple[Path, int]:
    """Return the folder on the fullest disk that a study writes to, and the bytes that are free there.

    Files that could not be written have been removed by now, so a disk that was full may have some space again. The
    folder of temporary files is only named where it lacks space and the study's own folders do not.
    """
    below = [path for depth in ("*", "*/*") for path in folder.glob(depth) if path.is_dir()]  # mounts, perhaps
    places = [next(path for path in (folder, *folder.parents) if path.exists()), *below]
    place, temporary = min(places, key=_free), Path(tempfile.gettempdir())
    if _free(temporary) < needed_bytes <= _free(place):
        place = temporary
    return place, _free(place)


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free
