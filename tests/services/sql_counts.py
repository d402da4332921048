"""Counts the statements that code sends to databases, and the rows that it reads from those of SQLite."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa


@dataclass
class Counts:
    """What was read between the beginning and the end of `counted`.

    Args:
        statements: Number of SQL statements.
        rows: Number of rows that Python fetched from SQLite.
    """

    statements: int = 0
    rows: int = 0


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what is read within the block."""
    counts = Counts()

    def statement(*_: object) -> None:
        counts.statements += 1

    def row(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> tuple[Any, ...]:
        counts.rows += 1
        return values

    def lent(connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.row_factory = row

    def returned(connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.row_factory = None

    listeners = [
        (sa.Engine, "before_cursor_execute", statement),
        (sa.Pool, "checkout", lent),
        (sa.Pool, "checkin", returned),
    ]
    for target, event, listener in listeners:
        sa.event.listen(target, event, listener)
    try:
        yield counts
    finally:
        for target, event, listener in listeners:
            sa.event.remove(target, event, listener)
