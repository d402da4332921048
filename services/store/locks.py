"""One process at a time: a lock that belongs to the store, and that nobody holds who is dead.

In PostgreSQL it is an advisory lock of a session; beside a SQLite file it is a lock on a small file, which the system
lets go when its process ends.
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

_RETRY_SECONDS = 0.05


@contextlib.contextmanager
def file_lock(path: Path, *, patience: float) -> Iterator[bool]:
    """Yield whether the lock on a file was got within `patience` seconds; let it go at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        yield _within(patience, lambda: _lock(file.fileno()))  # closing the file lets it go


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def session_lock(connection: Connection, name: str, *, patience: float) -> Iterator[bool]:
    """Yield whether the session of a connection got the lock of a name within `patience` seconds; let it go."""
    key = int.from_bytes(hashlib.sha256(f"nas_blockout {name}".encode()).digest()[:8], "big", signed=True)
    got = _within(patience, lambda: bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key)))))
    try:
        yield got
    finally:
        if got:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # a session that is gone holds no lock
                connection.scalar(sa.select(sa.func.pg_advisory_unlock(key)))


def _within(patience: float, attempt: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + patience
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_RETRY_SECONDS)
    return True
