"""Locks between processes, and the names by which processes claim something: neither outlives its process.

A lock is an advisory lock of a PostgreSQL session, or a lock on a small file beside a SQLite database, which the
operating system releases when the process ends.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

_POLL_SECONDS = 0.05


@contextlib.contextmanager
def file_lock(path: Path, *, wait_seconds: float) -> Iterator[bool]:
    """Yield whether the lock on a file was acquired within `wait_seconds`; release it at the end."""

    def try_lock() -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is never deleted: another process could hold a lock on the deleted one and a third on its successor.
    with path.open("ab") as file:
        yield _poll(wait_seconds, try_lock)  # closing the file releases it


@contextlib.contextmanager
def session_lock(connection: Connection, name: str, *, wait_seconds: float) -> Iterator[bool]:
    """Yield whether a named lock was acquired for a session within `wait_seconds`; release it at the end."""
    # PostgreSQL names advisory locks by 64-bit integers.
    key = int.from_bytes(hashlib.sha256(f"nas_blockout {name}".encode()).digest()[:8], "big", signed=True)
    acquired = _poll(wait_seconds, lambda: bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key)))))
    try:
        yield acquired
    finally:
        if acquired:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # the lock of a lost session is released already
                connection.scalar(sa.select(sa.func.pg_advisory_unlock(key)))


def this_process() -> str:
    """Return a name for this process that is unique among all machines: host, PID namespace and PID."""
    return f"{_host()}:{os.getpid()}"


def process_has_ended(name: str) -> bool:
    """Whether a process, named as by `this_process`, is known to have ended; False if it ran on another machine."""
    host, _, number = name.rpartition(":")
    if host != _host() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)  # signal 0 only asks whether the process exists
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it exists, and belongs to another user
        return False
    return False


def _host() -> str:
    # Containers of one machine may share a host name, but then number their processes in different namespaces.
    namespace = ""
    with contextlib.suppress(OSError):  # only Linux has PID namespaces
        namespace = re.sub("[^0-9]", "", str(Path("/proc/self/ns/pid").readlink()))
    return f"{platform.node()}/{namespace}"


def _poll(wait_seconds: float, attempt: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + wait_seconds
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
