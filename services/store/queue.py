"""The queue of the service: submitted studies, their owners, and the workers that run them."""

import functools
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.accounts.audit import note
from services.store.accounts.teams import shared_with
from services.store.checked_values import one_of, require_finite, storable, whole_number
from services.store.database import Database
from services.store.deletion import is_present, next_attempt, require_present
from services.store.errors import LeaseLost, NotFound, QuotaExceeded, StateError, StudyConflict
from services.store.records import OPEN_QUEUE, QUEUE_STATES, Json, QueueRow, QueueSummary, StudyStatus
from services.store.studies import event_rows
from services.store.trials import spent_rows

TERMINAL_STATES = ("complete", "failed", "cancelled")
_LEASED_STATES = ("running", "cancelling")
_ENQUEUE_LOCK = 7_361_902_456  # arbitrary, but the same in all releases: the key of a PostgreSQL advisory lock
SUMMARY = tuple(QueueSummary.__slots__)


class Queue:
    """The part of `Store` for submitted studies; see there for the contract.

    A study is leased by one worker at a time; a lease expires unless it is renewed. Leases use the clock of the
    database, so that workers whose clocks disagree do not take each other's studies.
    """

    _database: Database

    def enqueue(  # noqa: PLR0913  # one keyword a column
        self,
        study: str,
        *,
        document: Json,
        config_hash: str,
        owner: str,
        key: str | None = None,
        source: Json | None = None,
        max_open: int | None = None,
        priority: int = 0,
        adopt: bool = True,
    ) -> QueueRow:
        """Submit a study, or return the one that the same owner submitted before with the same key or documents.

        Args:
            study: Name of the study.
            document: The resolved study.
            config_hash: Hash of all settings that affect results, see `Study.hash`.
            owner: Who submits it.
            key: Idempotency key, chosen by the client, by which a repeated request is recognized.
            source: The study as it was submitted, before defaults were filled in; an extension changes this document.
            max_open: How many queued or running studies an owner may have.
            priority: Those with a higher one are first among the waiting studies of the owner.
            adopt: Whether the owner may have the study if it was begun without the service: its trials and results.

        Raises:
            StudyConflict: The key was used for another study, or the name is taken by another study.
            QuotaExceeded: The owner has `max_open` queued or running studies already.
        """
        with self._database.writing() as connection:
            # Name, key and quota are checked against rows that may not exist yet and so cannot be locked one by one.
            self._database.serialize(connection, _ENQUEUE_LOCK)
            _require_not_deleted(connection, study, owner=owner)
            repeated = _repeated(connection, study, config_hash, owner=owner, key=key)
            if repeated is not None:
                return repeated
            _require_free_name(connection, study, config_hash if adopt else None)
            _require_quota(connection, owner, max_open)
            now, attempt = self._database.now(connection), next_attempt(connection, study)
            values = {
                "study": study,
                "owner": storable(owner),
                "state": "queued",
                "config_hash": config_hash,
                "first_hash": config_hash,
                "key": key,
                "attempt": attempt,
                "first_attempt": attempt,
                "message": "",
                "priority": priority,
                "created_at": now,
                "updated_at": now,
                "document": require_finite("document", document),
                "source": require_finite("source", source) if source is not None else None,
            }
            connection.execute(sa.insert(tables.queue).values(**values))
            note(connection, now, "submit", study)
            return _row(_find(connection, study), new=True)

    def queued_study(self, study: str) -> QueueRow | None:
        """Return a submitted study; None if there is none, or it is deleted."""
        with self._database.reading() as connection:
            row = connection.execute(_ONE, {"study": study}).mappings().one_or_none()
        return None if row is None else _row(row)

    def submitted_study(self, study: str) -> QueueRow | None:
        """Return a submitted study, also a deleted one that is not purged; None if there is none."""
        with self._database.reading() as connection:
            row = connection.execute(_select().where(tables.queue.c.study == study)).mappings().one_or_none()
        return None if row is None else _row(row)

    def study_status(self, study: str) -> StudyStatus | None:
        """Return a submitted study with its usage and events; None if there is none, or it is deleted."""
        with self._database.reading() as connection:
            row = connection.execute(_ONE, {"study": study}).mappings().one_or_none()
            if row is None:
                return None
            started = connection.scalars(_STARTED, {"study": study}).one_or_none()
            if started is None:  # no driver has created it outside the queue yet
                return StudyStatus(_row(row), (), ())
            return StudyStatus(_row(row), spent_rows(connection, started), event_rows(connection, started))

    def queue(
        self,
        states: Collection[str] | None = None,
        *,
        owner: str | None = None,
        visible_to: str | None = None,
        prefix: str = "",
        limit: int = 100,
        before: int | None = None,
    ) -> tuple[QueueSummary, ...]:
        """Return summaries of submitted studies, newest first, without deleted ones.

        Args:
            states: Only studies in these states.
            owner: Only studies of this owner.
            visible_to: Only studies of this owner, or shared with a team that this owner belongs to.
            prefix: Only studies whose name begins with this.
            limit: Maximum number of studies.
            before: Only studies with a lower `id`: the last one of a page, to get the next page.
        """
        # Pages by ID, not by offset: studies that are submitted meanwhile do not shift them.
        query = _select_lines(states is not None, owner is not None, visible_to is not None, before is not None)
        if prefix:
            query = query.where(tables.queue.c.study.startswith(prefix, autoescape=True))
        chosen = [one_of("state of a queued study", state, QUEUE_STATES) for state in states or ()]
        values = {
            "states": chosen,
            "owner": owner,
            "visible_to": visible_to,
            "before": before,
            "limit": whole_number("limit", limit),
        }
        with self._database.reading() as connection:
            return tuple(QueueSummary(**row) for row in connection.execute(query, values).mappings())

    def count_queue(self) -> dict[str, int]:
        """Return the number of submitted studies in each state."""
        state = tables.queue.c.state
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(state, sa.func.count()).group_by(state)).all()
        return dict.fromkeys(QUEUE_STATES, 0) | {name: int(number) for name, number in rows}

    def acquire_lease(
        self, worker: str, *, seconds: float, study: str | None = None, width: int | None = None
    ) -> QueueRow | None:
        """Lease a study that is queued or whose lease has expired to a worker; return None if there is none.

        Args:
            worker: Unique name of the worker.
            seconds: Duration of the lease unless it is renewed.
            study: Name of the study; if omitted, that which has waited longest.
            width: Trials that it may run at once, if it was queued; None for as many as it asks for.
        """
        columns = tables.queue.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            # A worker that died in the middle of a study leaves it running with a lease that nobody renews.
            expired = columns.lease_until.is_(None) | (columns.lease_until < now)
            free = (columns.state == "queued") | (columns.state.in_(_LEASED_STATES) & expired)
            chosen = free if study is None else free & (columns.study == study)
            order = (sa.func.coalesce(columns.queued_at, columns.created_at), columns.id)
            # SKIP LOCKED: workers that ask at the same time each get another study instead of waiting for the first.
            first = _select().where(chosen).order_by(*order).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(first).mappings().one_or_none()
            if row is None:
                return None
            changes = {"worker": storable(worker), "lease_until": now + timedelta(seconds=seconds)}
            if row["state"] == "queued":  # one that is running or cancelling stays so: only its worker changes
                changes |= {"state": "running", "updated_at": now, "started_at": now, "width": width, "message": ""}
                changes |= {"position": None, "expected_at": None}
            return change_row(connection, row, **changes)

    def renew_lease(self, study: str, worker: str, *, seconds: float) -> QueueRow:
        """Extend a lease to `seconds` from now; the state of the returned row says whether to cancel the study.

        Raises:
            LeaseLost: Another worker holds the study, or it has ended.
        """
        with self._database.writing() as connection:
            row = find_leased(connection, study, worker)
            until = self._database.now(connection) + timedelta(seconds=seconds)
            return change_row(connection, row, lease_until=until)

    def record_job(self, study: str, worker: str, *, job: str, attempt: int, message: str = "") -> QueueRow:
        """Record the job that was submitted for a study.

        Args:
            study: Name of the study.
            worker: Worker that holds the lease.
            job: ID of the job.
            attempt: Number of the attempt.
            message: One sentence for the owner: why it was submitted again.

        Raises:
            LeaseLost: Another worker holds the study, or it has ended.
        """
        with self._database.writing() as connection:
            row = find_leased(connection, study, worker)
            now = self._database.now(connection)
            changes = {"job": job, "attempt": whole_number("attempt", attempt), "message": storable(message)}
            changes["set_aside_at"] = None
            return change_row(connection, row, **changes, updated_at=now)

    def set_message(self, study: str, worker: str, *, message: str) -> QueueRow:
        """Set the sentence that tells the owner what a study is waiting for.

        Raises:
            LeaseLost: Another worker holds the study, or it has ended.
        """
        with self._database.writing() as connection:
            row = find_leased(connection, study, worker)
            now = self._database.now(connection)
            return change_row(connection, row, message=storable(message), updated_at=now)

    def release_lease(self, study: str, worker: str) -> None:
        """Release a lease, so that another worker can continue at once; does nothing if another worker holds it."""
        with self._database.writing() as connection:
            row = _find(connection, study, locked=True)
            # Its lease may have expired while the worker was shutting down, and another one may have taken the study.
            if row["worker"] != worker or row["state"] not in _LEASED_STATES:
                return
            # Without a job it waits in the queue again; with one it runs on, and another worker takes it over.
            untouched = row["state"] == "running" and row["job"] is None
            waits = {"state": "queued", "width": None, "started_at": None, "yields": None} if untouched else {}
            change_row(connection, row, worker=None, lease_until=None, **waits)

    def finish_queued(self, study: str, worker: str, state: str, *, message: str = "") -> QueueRow:
        """Set the terminal state of a submitted study; does nothing if it is in that state already.

        Args:
            study: Name of the study.
            worker: Worker that holds the lease.
            state: ``complete``, ``failed`` or ``cancelled``.
            message: One sentence for the owner.

        Raises:
            StateError: It has another terminal state.
            LeaseLost: Another worker holds the study.
        """
        one_of("terminal state", state, TERMINAL_STATES)
        with self._database.writing() as connection:
            row = _find(connection, study, locked=True)
            if row["state"] == state:
                return _row(row)
            if row["state"] in TERMINAL_STATES:
                raise StateError(
                    f"study {study!r} ended as {row['state']!r} and cannot become {state!r}; resume it first"
                )
            _require_lease(row, worker)
            now = self._database.now(connection)
            ended = {"state": state, "message": storable(message), "updated_at": now}
            ended |= {"width": None, "yields": None, "position": None, "expected_at": None, "set_aside_at": None}
            return change_row(connection, row, **ended, worker=None, lease_until=None)

    def request_cancel(self, study: str) -> QueueRow:
        """Request the cancellation of a study; a queued one is cancelled at once. Does nothing if requested already.

        Raises:
            StateError: It is complete, or has failed.
        """
        with self._database.writing() as connection:
            row = _find(connection, study, locked=True)
            if row["state"] in ("cancelling", "cancelled"):
                return _row(row)
            now = self._database.now(connection)
            if row["state"] in ("queued", "running"):
                note(connection, now, "cancel", study)
            if row["state"] == "queued":  # no worker has it, so that nothing has to be stopped
                ended = {"state": "cancelled", "message": "cancelled before it was started", "updated_at": now}
                return change_row(connection, row, **ended, position=None, expected_at=None, set_aside_at=None)
            if row["state"] != "running":
                raise StateError(
                    f"study {study!r} is {row['state']!r}: only a queued or running study can be cancelled"
                )
            return change_row(connection, row, state="cancelling", updated_at=now)

    def request_resume(
        self,
        study: str,
        *,
        document: Json | None = None,
        config_hash: str | None = None,
        source: Json | None = None,
        max_open: int | None = None,
        priority: int | None = None,
    ) -> QueueRow:
        """Queue a failed or cancelled study again, or extend one that has ended; it waits behind those that wait.

        Does nothing if the study is queued or running with the same documents.

        Args:
            study: Name of the study.
            document: The extended study, resolved; unchanged if omitted.
            config_hash: Hash of `document`; required with it.
            source: The extended study before defaults were filled in.
            max_open: How many queued or running studies an owner may have.
            priority: As of `enqueue`; unchanged if omitted.

        Raises:
            ValueError: One of `document` and `config_hash` is missing.
            StateError: It is complete and nothing is added, or it has not ended and something is.
            QuotaExceeded: The owner has `max_open` queued or running studies already.
        """
        if (document is None) != (config_hash is None):
            raise ValueError("document and config_hash must be passed together")
        with self._database.writing() as connection:
            self._database.serialize(connection, _ENQUEUE_LOCK)
            row = _find(connection, study, locked=True)
            require_present(connection, study)
            # A repeated request finds the study open with what it asked for; that is no error.
            same = config_hash in (None, row["config_hash"])
            if row["state"] in OPEN_QUEUE and same and row["state"] != "cancelling":
                return _row(row)
            if row["state"] in OPEN_QUEUE:
                raise StateError(f"study {study!r} is {row['state']!r}: wait until it has ended, or cancel it first")
            if row["state"] == "complete" and document is None:
                raise StateError(f"study {study!r} is complete: there is nothing to resume; extend it instead")
            _require_quota(connection, row["owner"], max_open)
            # The ID of a job contains the attempt, and Ray takes an ID only once: a number with a job is used up.
            attempt = row["attempt"] + (row["job"] is not None)
            now = self._database.now(connection)
            changes: dict[str, Any] = {"state": "queued", "message": "", "updated_at": now, "queued_at": now}
            changes |= {"job": None, "attempt": attempt, "first_attempt": attempt, "started_at": None}
            if priority is not None:
                changes["priority"] = priority
            if document is not None:
                changes |= {"document": require_finite("document", document), "config_hash": config_hash}
            if source is not None:
                changes["source"] = require_finite("source", source)
            note(connection, now, "resume" if document is None else "extend", study)
            return change_row(connection, row, **changes)


def _select() -> "sa.Select[Any]":
    columns = tables.queue.c
    return sa.select(*(columns[name] for name in SUMMARY), columns.document, columns.source)


@functools.cache
def _select_lines(states: bool, owner: bool, visible: bool, before: bool) -> "sa.Select[Any]":
    """Return the query for a list; cached, since building it takes longer than running it."""
    columns = tables.queue.c
    query = sa.select(*(columns[name] for name in SUMMARY)).order_by(columns.id.desc()).limit(sa.bindparam("limit"))
    query = query.where(is_present(columns.study))
    if states:
        query = query.where(columns.state.in_(sa.bindparam("states", expanding=True)))
    if owner:
        query = query.where(columns.owner == sa.bindparam("owner"))
    if visible:
        member: sa.BindParameter[str] = sa.bindparam("visible_to")
        query = query.where((columns.owner == member) | columns.study.in_(shared_with(member)))
    if before:
        query = query.where(columns.id < sa.bindparam("before"))
    return query


_ONE = _select().where(tables.queue.c.study == sa.bindparam("study"), is_present(tables.queue.c.study))
_STARTED = sa.select(tables.studies.c.id).where(tables.studies.c.name == sa.bindparam("study"))


def _row(row: Mapping[str, Any] | RowMapping, *, new: bool = False) -> QueueRow:
    return QueueRow(**row, new=new)


def _find(connection: Connection, study: str, *, locked: bool = False) -> RowMapping:
    query = _select().where(tables.queue.c.study == study)
    row = connection.execute(query.with_for_update() if locked else query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no study {study!r} in the queue")
    return row


def find_leased(connection: Connection, study: str, worker: str) -> RowMapping:
    """Return a study that a worker holds, locked until the transaction ends.

    Raises:
        LeaseLost: Another worker holds it, or it has ended.
    """
    row = _find(connection, study, locked=True)
    _require_lease(row, worker)
    return row


def _require_lease(row: RowMapping, worker: str) -> None:
    if row["worker"] != worker or row["state"] not in _LEASED_STATES:
        holder = row["worker"] or "nobody"
        raise LeaseLost(
            f"{worker} has lost its lease on study {row['study']!r}, which is {row['state']!r} and held by {holder}"
        )


def change_row(connection: Connection, row: RowMapping, **values: Any) -> QueueRow:
    """Change columns of a study in the queue, and return it as it is then."""
    connection.execute(sa.update(tables.queue).where(tables.queue.c.id == row["id"]).values(**values))
    return _row({**row, **values})


def _repeated(connection: Connection, study: str, config_hash: str, *, owner: str, key: str | None) -> QueueRow | None:
    """Return the study that the same request, or another one for the same study, has queued before."""
    columns = tables.queue.c
    if key is not None:
        used = connection.scalars(
            sa.select(columns.study).where(columns.owner == owner, columns.key == key)
        ).one_or_none()
        if used not in (None, study):
            raise StudyConflict(f"the key {key!r} was already used for study {used!r}; use a new key for each request")
    query = _select().add_columns(columns.first_hash).where(columns.study == study)
    queued = connection.execute(query).mappings().one_or_none()
    if queued is None:
        return None
    row = dict(queued)
    # A client may repeat its request after the study has been extended: its first hash is the one that it sent.
    first_hash = row.pop("first_hash")
    if row["owner"] != owner:  # the message must not say whose it is
        raise StudyConflict(f"the name {study!r} is taken; choose another name")
    if config_hash not in (row["config_hash"], first_hash):
        raise StudyConflict(
            f"study {study!r} was submitted before with different settings (hash {row['config_hash']}, now "
            f"{config_hash}); choose another name, or extend the study"
        )
    return _row(row)


def _require_not_deleted(connection: Connection, study: str, *, owner: str) -> None:
    try:
        require_present(connection, study)
    except StateError as error:
        known = connection.scalars(sa.select(tables.queue.c.owner).where(tables.queue.c.study == study)).one_or_none()
        # The message must not say more of another owner's study than that its name is taken.
        text = str(error) if known == owner else f"the name {study!r} is taken; choose another name"
        raise StudyConflict(text) from None


def _require_free_name(connection: Connection, study: str, config_hash: str | None) -> None:
    """Refuse a name that a study has which was run without the service, unless it has this hash."""
    columns = tables.studies.c
    present = connection.scalars(sa.select(columns.config_hash).where(columns.name == study)).one_or_none()
    if present not in (None, config_hash):
        raise StudyConflict(f"the name {study!r} is taken; choose another name")


def _require_quota(connection: Connection, owner: str, max_open: int | None) -> None:
    if max_open is None:
        return
    columns = tables.queue.c
    query = sa.select(sa.func.count()).where(columns.owner == owner, columns.state.in_(sorted(OPEN_QUEUE)))
    if (number := connection.scalars(query).one()) >= max_open:
        raise QuotaExceeded(
            f"{owner} has {number} queued or running studies, and the limit is {max_open}; wait, or cancel one"
        )
