"""The queue as a whole: what decides who is next, what is said of those who wait, and who makes room for others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.store import tables
from services.store.checked_values import storable
from services.store.database import Database
from services.store.queue import SUMMARY, change_row, find_leased
from services.store.records import OPEN_QUEUE, QueueRow, QueueSummary, Waiting

_LOCK = "schedule"
_NOT_STARTED: Mapping[str, Any] = {
    "state": "queued",
    **dict.fromkeys(("worker", "lease_until", "job", "width", "started_at", "yields", "position", "expected_at")),
}


class Schedule:
    """The part of `Store` for decisions about all submitted studies at once; see there for the contract."""

    _database: Database

    @contextmanager
    def alone(self, what: str) -> Iterator[bool]:
        """Yield whether this process alone does something, until the block ends; never waits for another."""
        with self._database.exclusive(what, wait_seconds=0.0) as acquired:
            yield acquired

    @contextmanager
    def scheduling(self) -> Iterator[bool]:
        """Yield whether this process alone may decide who is next, until the block ends; never waits for another."""
        with self.alone(_LOCK) as acquired:
            yield acquired

    def open_queue(self) -> tuple[datetime, tuple[QueueSummary, ...]]:
        """Return the time of the store's clock, and all studies that wait or run, oldest submission first."""
        columns = tables.queue.c
        query = sa.select(*(columns[name] for name in SUMMARY)).where(columns.state.in_(sorted(OPEN_QUEUE)))
        with self._database.reading() as connection:
            now = self._database.now(connection)
            return now, tuple(QueueSummary(**row) for row in connection.execute(query.order_by(columns.id)).mappings())

    def set_waiting(self, waiting: Mapping[str, Waiting]) -> None:
        """Record, by study, what is said of those that wait; a study that waits no more is passed over."""
        columns = tables.queue.c
        update = sa.update(tables.queue).where(columns.study == sa.bindparam("name"), columns.state == "queued")
        rows = [
            {
                "name": study,
                "position": said.position,
                "message": storable(said.message),
                "expected_at": said.expected_at,
                "set_aside_at": said.set_aside_at,
            }
            for study, said in waiting.items()
        ]
        if rows:
            with self._database.writing() as connection:
                connection.execute(update, rows)

    def request_yield(self, study: str, *, reason: str) -> None:
        """Ask for a running study to be stopped and queued again; does nothing if it does not run or was asked before.

        Args:
            study: Name of the study.
            reason: Why, in one sentence for its owner.
        """
        columns = tables.queue.c
        running = (columns.study == study) & (columns.state == "running") & columns.yields.is_(None)
        with self._database.writing() as connection:
            connection.execute(sa.update(tables.queue).where(running).values(yields=storable(reason)))

    def requeue(self, study: str, worker: str, *, message: str = "") -> QueueRow:
        """Let a leased study wait again, at the place that it had; what it has done is kept, and goes on.

        Args:
            study: Name of the study.
            worker: Worker that holds the lease.
            message: Why, in one sentence for its owner.

        Raises:
            LeaseLost: Another worker holds the study, or it has ended.
        """
        with self._database.writing() as connection:
            row = find_leased(connection, study, worker)
            # The ID of a job contains the attempt, and restarts are counted anew: this one is not its fault.
            attempt = row["attempt"] + (row["job"] is not None)
            changes = {**_NOT_STARTED, "attempt": attempt, "first_attempt": attempt, "message": storable(message)}
            if row["state"] == "cancelling":  # its owner has asked for more than that meanwhile
                return change_row(connection, row, yields=None)
            return change_row(connection, row, **changes, updated_at=self._database.now(connection))

    def owners(self) -> dict[str, str]:
        """Return the owner of every submitted study, also of those that have ended."""
        columns = tables.queue.c
        with self._database.reading() as connection:
            return {row.study: row.owner for row in connection.execute(sa.select(columns.study, columns.owner))}

    def seconds_trained(self, since: datetime) -> dict[str, float]:
        """Return, by submitted study, the seconds of its trials that were added since a moment."""
        queue, trials = tables.queue.c, tables.trials.c
        query = (
            sa.select(queue.study, sa.func.sum(trials.seconds))
            .join_from(tables.queue, tables.studies, tables.studies.c.name == queue.study)
            .join(tables.arms, tables.arms.c.study_id == tables.studies.c.id)
            .join(tables.trials, trials.arm_id == tables.arms.c.id)
            .where(trials.created_at >= since)
            .group_by(queue.study)
        )
        with self._database.reading() as connection:
            return {study: float(seconds) for study, seconds in connection.execute(query)}
