"""The queue of the service: studies that were given to it, their owners, and the workers that see them through."""

import functools
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.checked_values import count, exact, one_of, storable
from services.store.database import Database
from services.store.errors import LeaseLost, NotFound, StateError, StudyConflict, TooMany
from services.store.records import OPEN_QUEUE, QUEUE_STATES, Json, QueueLine, QueueRow, StudyStatus
from services.store.studies import event_rows
from services.store.trials import spent_rows

ENDS = ("complete", "failed", "cancelled")
_HELD = ("running", "cancelling")
_ENQUEUE_LOCK = 7_361_902_456  # any number that other users of the PostgreSQL database do not take
_LINE = tuple(QueueLine.__slots__)


class Queue:
    """The part of the store that knows what was given to the service; `Store` has the contract.

    A study is queued, then held by one worker at a time through a lease that ends unless it is renewed. Leases are
    measured by the database's clock, so that workers whose clocks disagree do not take each other's studies.
    """

    _database: Database

    def enqueue(
        self,
        study: str,
        *,
        document: Json,
        config_hash: str,
        owner: str,
        key: str | None = None,
        source: Json | None = None,
        most_open: int | None = None,
    ) -> QueueRow:
        """Give a study to the service, or return what is there: of the same key, or the same study of the same owner.

        Args:
            study: Name of the study.
            document: The resolved study.
            config_hash: Name of everything in it that decides the results.
            owner: Who gives it.
            key: Chosen by who gives it, so that the same request sent twice is known.
            source: The study as it was written, which is what an extension changes.
            most_open: Studies that an owner may have open at a time.

        Raises:
            StudyConflict: The key was used for another study, or the name is taken by other contents or another owner.
            TooMany: The owner has `most_open` studies that are queued or run.
        """
        with self._database.writing() as connection:
            self._database.serialize(connection, _ENQUEUE_LOCK)
            found = _known(connection, study, config_hash, owner=owner, key=key)
            if found is not None:
                return found
            _require_name(connection, study, config_hash)
            _require_room(connection, owner, most_open)
            now = self._database.now(connection)
            values = {
                "study": study,
                "owner": storable(owner),
                "state": "queued",
                "config_hash": config_hash,
                "first_hash": config_hash,
                "key": key,
                "attempt": 0,
                "first_attempt": 0,
                "message": "",
                "created_at": now,
                "updated_at": now,
                "document": exact("document", document),
                "source": exact("source", source) if source is not None else None,
            }
            connection.execute(sa.insert(tables.queue).values(**values))
            return _row(_find(connection, study), new=True)

    def queue_row(self, study: str) -> QueueRow | None:
        """Return a study that was given to the service, or None."""
        with self._database.reading() as connection:
            found = connection.execute(_ONE, {"study": study}).mappings().one_or_none()
        return None if found is None else _row(found)

    def study_status(self, study: str) -> StudyStatus | None:
        """Return a study that was given to the service with what it has spent and what happened to it, or None."""
        with self._database.reading() as connection:
            found = connection.execute(_ONE, {"study": study}).mappings().one_or_none()
            if found is None:
                return None
            begun = connection.scalars(_BEGUN, {"study": study}).one_or_none()
            if begun is None:  # by no driver
                return StudyStatus(_row(found), (), ())
            return StudyStatus(_row(found), spent_rows(connection, begun), event_rows(connection, begun))

    def queue(
        self,
        states: Collection[str] | None = None,
        *,
        owner: str | None = None,
        prefix: str = "",
        limit: int = 100,
        before: int | None = None,
    ) -> tuple[QueueLine, ...]:
        """Return studies as lines of a list, the newest first.

        Args:
            states: Only those in one of these.
            owner: Only those of this owner.
            prefix: Only those whose name begins so.
            limit: Most lines.
            before: Only those whose `id` is lower, which is how the next page is asked for.
        """
        query = _select_lines(states is not None, owner is not None, before is not None)
        if prefix:
            query = query.where(tables.queue.c.study.startswith(prefix, autoescape=True))
        chosen = [one_of("state in the queue", state, QUEUE_STATES) for state in states or ()]
        values = {"states": chosen, "owner": owner, "before": before, "limit": count("limit", limit)}
        with self._database.reading() as connection:
            return tuple(QueueLine(*row) for row in connection.execute(query, values))

    def count_queue(self) -> dict[str, int]:
        """Return how many studies of the queue are in each state."""
        state = tables.queue.c.state
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(state, sa.func.count()).group_by(state)).all()
        return dict.fromkeys(QUEUE_STATES, 0) | {name: int(number) for name, number in rows}

    def lease(self, worker: str, *, seconds: float) -> QueueRow | None:
        """Give a worker the first study that is queued, or that no worker holds any more; None if there is none.

        Args:
            worker: Name of the worker among all.
            seconds: How long the study stays this worker's, unless it is renewed.
        """
        columns = tables.queue.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            let_go = columns.lease_until.is_(None) | (columns.lease_until < now)
            free = (columns.state == "queued") | (columns.state.in_(_HELD) & let_go)
            first = _select().where(free).order_by(columns.id).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(first).mappings().one_or_none()
            if row is None:
                return None
            changes = {"worker": storable(worker), "lease_until": now + timedelta(seconds=seconds)}
            if row["state"] == "queued":
                changes |= {"state": "running", "updated_at": now}
            return _change(connection, row, **changes)

    def renew(self, study: str, worker: str, *, seconds: float) -> QueueRow:
        """Keep a study for so many seconds from now; its row tells whether it is to be cancelled.

        Raises:
            LeaseLost: Another worker has it, or it has ended.
        """
        with self._database.writing() as connection:
            row = _held(connection, study, worker)
            until = self._database.now(connection) + timedelta(seconds=seconds)
            return _change(connection, row, lease_until=until)

    def note_job(self, study: str, worker: str, *, job: str, attempt: int, message: str = "") -> QueueRow:
        """Note the job that was submitted for a study.

        Args:
            study: Name of the study.
            worker: Who holds it.
            job: The job's name.
            attempt: Number of the attempt.
            message: One sentence for its owner: why it was submitted again.

        Raises:
            LeaseLost: Another worker has it, or it has ended.
        """
        with self._database.writing() as connection:
            row = _held(connection, study, worker)
            now = self._database.now(connection)
            changes = {"job": job, "attempt": count("attempt", attempt), "message": storable(message)}
            return _change(connection, row, **changes, updated_at=now)

    def note(self, study: str, worker: str, *, message: str) -> QueueRow:
        """Tell the owner of a study in one sentence what it waits for.

        Raises:
            LeaseLost: Another worker has it, or it has ended.
        """
        with self._database.writing() as connection:
            row = _held(connection, study, worker)
            now = self._database.now(connection)
            return _change(connection, row, message=storable(message), updated_at=now)

    def release(self, study: str, worker: str) -> None:
        """Give a study back, so that another worker goes on at once; nothing if another has it."""
        with self._database.writing() as connection:
            row = _find(connection, study, locked=True)
            if row["worker"] != worker or row["state"] not in _HELD:
                return
            untouched = row["state"] == "running" and row["job"] is None
            state = "queued" if untouched else row["state"]
            _change(connection, row, worker=None, lease_until=None, state=state)

    def settle(self, study: str, worker: str, state: str, *, message: str = "") -> QueueRow:
        """End a study in the queue; again in the same state does nothing.

        Args:
            study: Name of the study.
            worker: Who holds it.
            state: ``complete``, ``failed`` or ``cancelled``.
            message: One sentence for its owner.

        Raises:
            StateError: It has ended in another state.
            LeaseLost: Another worker has it.
        """
        one_of("state in which a study ends", state, ENDS)
        with self._database.writing() as connection:
            row = _find(connection, study, locked=True)
            if row["state"] == state:
                return _row(row)
            if row["state"] in ENDS:
                raise StateError(
                    f"study {study!r} ended as {row['state']!r} and cannot become {state!r}; resume it first"
                )
            _require_held(row, worker)
            now = self._database.now(connection)
            ended = {"state": state, "message": storable(message), "updated_at": now}
            return _change(connection, row, **ended, worker=None, lease_until=None)

    def ask_cancel(self, study: str) -> QueueRow:
        """Ask that a study be cancelled; one that no worker has begun is cancelled at once. Again does nothing.

        Raises:
            StateError: It is complete, or has failed.
        """
        with self._database.writing() as connection:
            row = _find(connection, study, locked=True)
            if row["state"] in ("cancelling", "cancelled"):
                return _row(row)
            now = self._database.now(connection)
            if row["state"] == "queued":
                return _change(
                    connection, row, state="cancelled", message="cancelled before it was begun", updated_at=now
                )
            if row["state"] != "running":
                raise StateError(f"study {study!r} is {row['state']!r}: only one that is queued or runs is cancelled")
            return _change(connection, row, state="cancelling", updated_at=now)

    def ask_resume(
        self,
        study: str,
        *,
        document: Json | None = None,
        config_hash: str | None = None,
        source: Json | None = None,
        most_open: int | None = None,
    ) -> QueueRow:
        """Queue a study again that has failed or was cancelled, or one that has ended with more to do.

        One that is open already, with the same contents, is returned as it is.

        Args:
            study: Name of the study.
            document: The extended study, with `config_hash`; as it was if left out.
            config_hash: Name of everything in `document` that decides the results.
            source: The extended study as it was written.
            most_open: Studies that an owner may have open at a time.

        Raises:
            ValueError: One of `document` and `config_hash` is missing.
            StateError: It is complete and nothing is added, or it is open and something is.
            TooMany: The owner has `most_open` studies that are queued or run.
        """
        if (document is None) != (config_hash is None):
            raise ValueError("document and config_hash are given together, or neither")
        with self._database.writing() as connection:
            self._database.serialize(connection, _ENQUEUE_LOCK)
            row = _find(connection, study, locked=True)
            same = config_hash in (None, row["config_hash"])
            if row["state"] in OPEN_QUEUE and same and row["state"] != "cancelling":
                return _row(row)
            if row["state"] in OPEN_QUEUE:
                raise StateError(f"study {study!r} is {row['state']!r}: wait until it has ended, or cancel it first")
            if row["state"] == "complete" and document is None:
                raise StateError(f"study {study!r} is complete: there is nothing to resume; extend it")
            _require_room(connection, row["owner"], most_open)
            attempt = row["attempt"] + (row["job"] is not None)
            changes: dict[str, Any] = {"state": "queued", "message": "", "updated_at": self._database.now(connection)}
            changes |= {"job": None, "attempt": attempt, "first_attempt": attempt}
            if document is not None:
                changes |= {"document": exact("document", document), "config_hash": config_hash}
            if source is not None:
                changes["source"] = exact("source", source)
            return _change(connection, row, **changes)


def _select() -> "sa.Select[Any]":
    columns = tables.queue.c
    return sa.select(*(columns[name] for name in _LINE), columns.document, columns.source)


@functools.cache
def _select_lines(states: bool, owner: bool, before: bool) -> "sa.Select[Any]":
    """Return the query for lines of a list; made once a kind, which takes longer than to answer it."""
    columns = tables.queue.c
    query = sa.select(*(columns[name] for name in _LINE)).order_by(columns.id.desc()).limit(sa.bindparam("limit"))
    if states:
        query = query.where(columns.state.in_(sa.bindparam("states", expanding=True)))
    if owner:
        query = query.where(columns.owner == sa.bindparam("owner"))
    if before:
        query = query.where(columns.id < sa.bindparam("before"))
    return query


_ONE = _select().where(tables.queue.c.study == sa.bindparam("study"))
_BEGUN = sa.select(tables.studies.c.id).where(tables.studies.c.name == sa.bindparam("study"))


def _row(row: Mapping[str, Any] | RowMapping, *, new: bool = False) -> QueueRow:
    return QueueRow(**row, new=new)


def _find(connection: Connection, study: str, *, locked: bool = False) -> RowMapping:
    query = _select().where(tables.queue.c.study == study)
    row = connection.execute(query.with_for_update() if locked else query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"study {study!r} was not given to the service")
    return row


def _held(connection: Connection, study: str, worker: str) -> RowMapping:
    row = _find(connection, study, locked=True)
    _require_held(row, worker)
    return row


def _require_held(row: RowMapping, worker: str) -> None:
    if row["worker"] != worker or row["state"] not in _HELD:
        holder = row["worker"] or "nobody"
        raise LeaseLost(
            f"study {row['study']!r} is no longer held by {worker}, but by {holder}; it is {row['state']!r}"
        )


def _change(connection: Connection, row: RowMapping, **values: Any) -> QueueRow:
    connection.execute(sa.update(tables.queue).where(tables.queue.c.id == row["id"]).values(**values))
    return _row({**row, **values})


def _known(connection: Connection, study: str, config_hash: str, *, owner: str, key: str | None) -> QueueRow | None:
    """Return what the same request, or one for the same study, has put into the queue before."""
    columns = tables.queue.c
    if key is not None:
        used = connection.scalars(
            sa.select(columns.study).where(columns.owner == owner, columns.key == key)
        ).one_or_none()
        if used not in (None, study):
            raise StudyConflict(f"the key {key!r} was used for study {used!r}; give every request a key of its own")
    query = _select().add_columns(columns.first_hash).where(columns.study == study)
    found = connection.execute(query).mappings().one_or_none()
    if found is None:
        return None
    row = dict(found)
    first = row.pop("first_hash")
    if row["owner"] != owner:
        raise StudyConflict(f"the name {study!r} is taken; give the study another name")
    if config_hash not in (row["config_hash"], first):
        raise StudyConflict(
            f"study {study!r} was given to the service with other contents (hash {row['config_hash']}, not "
            f"{config_hash}); give these another name, or extend the study"
        )
    return _row(row)


def _require_name(connection: Connection, study: str, config_hash: str) -> None:
    """Refuse a name under which the store has another study, which was run without the service."""
    columns = tables.studies.c
    found = connection.scalars(sa.select(columns.config_hash).where(columns.name == study)).one_or_none()
    if found not in (None, config_hash):
        raise StudyConflict(f"the name {study!r} is taken; give the study another name")


def _require_room(connection: Connection, owner: str, most_open: int | None) -> None:
    if most_open is None:
        return
    columns = tables.queue.c
    query = sa.select(sa.func.count()).where(columns.owner == owner, columns.state.in_(sorted(OPEN_QUEUE)))
    if (number := connection.scalars(query).one()) >= most_open:
        raise TooMany(
            f"{owner} has {number} studies that are queued or run, and may have {most_open}; wait, or cancel one"
        )
