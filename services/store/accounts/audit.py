"""The audit log: who did what when. Rows are only ever added, in the transaction of what they record."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from services.store import tables
from services.store.checked_values import storable, whole_number
from services.store.database import Database
from services.store.records import Actor, AuditRow

# A context variable rather than an argument of every method that writes: the worker and drivers act for nobody, and
# what they do is recorded with the study.
_ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Record what is done within the block as done by somebody."""
    token = _ACTOR.set(actor)
    try:
        yield
    finally:
        _ACTOR.reset(token)


def note(connection: Connection, at: datetime, action: str, subject: str = "", **detail: Any) -> None:
    """Add a row to the audit log, within the transaction of what it records; does nothing outside of `acting`.

    Args:
        connection: In a transaction that writes.
        at: When it is done.
        action: What is done, a verb.
        subject: The study, token or team concerned.
        detail: What else is to be known.
    """
    actor = _ACTOR.get()
    if actor is not None:
        who = {"actor": storable(actor.name), "token_id": actor.token}
        what = {"action": action, "subject": storable(subject), "detail": detail}
        connection.execute(sa.insert(tables.audit).values(at=at, **who, **what))


class Audit:
    """The part of `Store` for the audit log; see there for the contract."""

    _database: Database

    def audit_log(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> tuple[AuditRow, ...]:
        """Return rows of the audit log, newest first.

        Args:
            actor: Only what this owner or operator did.
            action: Only this action.
            subject: Only what was done to this study, token or team.
            limit: Maximum number of rows.
            before: Only rows with a lower `id`: the last one of a page, to get the next page.
        """
        columns = tables.audit.c
        query = sa.select(tables.audit).order_by(columns.id.desc()).limit(whole_number("limit", limit))
        for column, value in ((columns.actor, actor), (columns.action, action), (columns.subject, subject)):
            if value is not None:
                query = query.where(column == value)
        if before is not None:
            query = query.where(columns.id < before)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(
            AuditRow(**{("token" if name == "token_id" else name): value for name, value in row.items()})
            for row in rows
        )

    def trim_audit_log(self, *, days: int) -> int:
        """Delete rows of the audit log that are older than a number of days; return how many."""
        with self._database.writing() as connection:
            oldest = self._database.now(connection) - timedelta(days=days)
            return int(connection.execute(sa.delete(tables.audit).where(tables.audit.c.at < oldest)).rowcount)
