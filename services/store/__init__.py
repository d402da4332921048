"""The store: studies, trials, attempts, epochs, architectures and exports. Files and MLflow are derived from it.

`records` are the rows it returns, `checked_values` the checks on what it is passed, `tables` its schema, `database` the
connection to SQLite or PostgreSQL, `locks` the locks between processes, `schema_version` migrates. `Store` consists of
`studies`, `trials`, `queue` (studies submitted to the service), `schedule` (of all of them at once), `deletion` and
`accounts` (tokens of the API, people who sign in, sessions of the page, teams, the audit log).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa

from services.store import tables
from services.store.accounts.audit import Audit, acting
from services.store.accounts.people import People
from services.store.accounts.sign_ins import SignIns
from services.store.accounts.teams import Teams
from services.store.accounts.tokens import Tokens
from services.store.accounts.web_sessions import WebSessions
from services.store.database import LOCK_SECONDS, RETRY_SECONDS, Database
from services.store.deletion import Deletion
from services.store.errors import (
    LeaseLost,
    LockTimeout,
    NotFound,
    QuotaExceeded,
    SignInRefused,
    StateError,
    StoreError,
    StoreUnreachable,
    StudyBusy,
    StudyConflict,
    TokenLimit,
)
from services.store.locks import this_process
from services.store.queue import Queue
from services.store.records import (
    Actor,
    AttemptRow,
    AuditRow,
    DeletedRow,
    EpochRow,
    EventRow,
    ExportRow,
    Identity,
    PersonRow,
    ProjectionRow,
    QueueRow,
    QueueSummary,
    SpentRow,
    StudyRow,
    StudyStatus,
    StudySummary,
    TokenRow,
    Waiting,
)
from services.store.schedule import Schedule
from services.store.studies import Studies
from services.store.trials import Trials, study_id

__all__ = [
    "PAGES_TARGET",
    "Actor",
    "AttemptRow",
    "AuditRow",
    "DeletedRow",
    "EpochRow",
    "EventRow",
    "ExportRow",
    "Identity",
    "LeaseLost",
    "LockTimeout",
    "NotFound",
    "PersonRow",
    "ProjectionRow",
    "QueueRow",
    "QueueSummary",
    "QuotaExceeded",
    "SignInRefused",
    "SpentRow",
    "StateError",
    "Store",
    "StoreError",
    "StoreUnreachable",
    "StudyBusy",
    "StudyConflict",
    "StudyRow",
    "StudyStatus",
    "StudySummary",
    "TokenLimit",
    "TokenRow",
    "Waiting",
    "acting",
    "this_process",
]


PAGES_TARGET = "mlflow-pages"  # under which MLflow's pages on a study are recorded, as JSON: addresses by name


class Store(Studies, Trials, Queue, Schedule, Deletion, Tokens, SignIns, People, WebSessions, Teams, Audit):
    """Studies and their trials, and the queue and tokens of the service, in one SQLite or PostgreSQL database.

    Only the driver that has claimed a study writes to it; any thread or process may read at any time.

    - Every call is one transaction. Committed data survives the death of any process; SQLite may lose the last
      transactions if the machine loses power.
    - Every write is idempotent: rows that are there already stay as they are.
    - Terminal states are final. A study can be reopened, which is recorded as an event; a trial cannot.
    - Rows are immutable snapshots. Times are in UTC.
    - Numbers that are not finite are stored as None, and their places are listed under ``non_finite``.

    Every method raises `StoreError` if the database fails, `StoreUnreachable` if its server does not come back in time,
    and `NotFound` for a study, arm or trial that does not exist.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, retry_seconds: float = RETRY_SECONDS, lock_seconds: float = LOCK_SECONDS) -> "Store":
        """Open a store, creating or migrating it if necessary; several processes may do so at once.

        Args:
            url: ``sqlite:////absolute/path.db`` or ``postgresql+psycopg://user:password@host/name``.
            retry_seconds: How long each call keeps trying to connect to a server that has gone away.
            lock_seconds: How long a call waits for a lock that another program holds.

        Raises:
            StoreUnreachable: The server does not answer.
            StoreError: The URL is invalid, the database is not a store, was written by a newer version, or needs a
                migration while a driver runs one of its studies.
        """
        return cls(Database.open(url, retry_seconds=retry_seconds, lock_seconds=lock_seconds))

    @property
    def url(self) -> str:
        """URL of the database, with its password masked."""
        return self._database.url

    def identity(self) -> str:
        """Return the UUID of this store, which stays the same when the database is moved to another place."""
        with self._database.reading() as connection:
            return str(connection.scalars(sa.select(tables.identity.c.uuid)).one())

    def clock_offset(self) -> float:
        """Return how many seconds the clock of the database is ahead of this machine's."""
        with self._database.reading() as connection:  # connected first: that may take seconds and is not to be measured
            before = datetime.now(UTC)
            remote = self._database.now(connection)
            round_trip = datetime.now(UTC) - before
            # The database is assumed to have read its clock halfway through.
            return (remote - before - round_trip / 2).total_seconds()

    def stop_retrying(self) -> None:
        """Stop waiting for a server that has gone away, in all threads, so that the process can end."""
        self._database.stop_retrying()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_export(self, trial: int, *, path: str, hashes: Mapping[str, str], verified: bool) -> ExportRow:
        """Record the exported model of a trial; another export to the same path replaces the record.

        Args:
            trial: ID of the trial.
            path: Folder of the files.
            hashes: SHA-256 of each file, by name.
            verified: Whether the exported model's outputs were found equal to those of the trained one.
        """
        values = {"hashes": dict(hashes), "verified": verified, "created_at": datetime.now(UTC)}
        insertion = self._database.insert(tables.exports).values(trial_id=trial, path=path, **values)
        with self._database.writing() as connection:
            _require_trial(connection, trial)
            connection.execute(insertion.on_conflict_do_update(index_elements=["trial_id", "path"], set_=values))
            columns = tables.exports.c
            row = connection.execute(_select_exports().where(columns.trial_id == trial, columns.path == path))
            return ExportRow(**row.mappings().one())

    def exports(self, study: str) -> tuple[ExportRow, ...]:
        """Return the exported models of a study, in the order of its arms."""
        query = _select_exports().order_by(tables.arms.c.position, tables.exports.c.id)
        with self._database.reading() as connection:
            query = query.where(tables.arms.c.study_id == study_id(connection, study))
            return tuple(ExportRow(**row) for row in connection.execute(query).mappings())

    def record_projection(
        self,
        study: str,
        *,
        target: str,
        external_id: str,
        trial: int | None = None,
        synced_epoch: int = -1,
        done: bool = False,
    ) -> None:
        """Record how much of a trial, or of the study as a whole, has been sent to another system.

        For the same `external_id` progress never goes back; a new `external_id` starts over.

        Args:
            study: Name of the study.
            target: The other system, such as ``mlflow``.
            external_id: ID of the trial or study in that system.
            trial: ID of the trial, or None for the study.
            synced_epoch: Last epoch that was sent, -1 for none.
            done: Whether everything has been sent.
        """
        # One statement, and no reading before it: two processes may report on the same trial at the same time.
        columns = tables.projections.c
        keys = [columns.study_id, columns.target] if trial is None else [columns.trial_id, columns.target]
        values = {"trial_id": trial, "target": target, "external_id": external_id}
        new = self._database.insert(tables.projections)
        same = columns.external_id == new.excluded.external_id
        # A late report of an earlier epoch must not set progress back.
        ahead = same & (columns.synced_epoch > new.excluded.synced_epoch)
        changes = {
            "external_id": new.excluded.external_id,
            "synced_epoch": sa.case((ahead, columns.synced_epoch), else_=new.excluded.synced_epoch),
            "done": sa.case((same & columns.done, sa.true()), else_=new.excluded.done),
        }
        where = columns.trial_id.is_(None) if trial is None else None  # that of the partial index, see `tables`
        with self._database.writing() as connection:
            if trial is not None:
                _require_trial(connection, trial)
            new = new.values(study_id=study_id(connection, study), synced_epoch=synced_epoch, done=done, **values)
            connection.execute(new.on_conflict_do_update(index_elements=keys, index_where=where, set_=changes))

    @contextmanager
    def sync_lock(self, study: str, target: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the lock for sending a study to another system, against other threads and processes.

        Args:
            study: Name of the study.
            target: The other system, such as ``mlflow``.
            wait_seconds: How long to wait for the present holder.

        Raises:
            LockTimeout: Another process still holds the lock.
        """
        with self._database.exclusive(f"{target}-{study}", wait_seconds=wait_seconds) as acquired:
            if not acquired:
                raise LockTimeout(f"another process is sending study {study!r} to {target}; wait until it has ended")
            yield

    def projections(self, study: str, target: str) -> tuple[ProjectionRow, ...]:
        """Return how much of a study and its trials has been sent to another system, the study first."""
        columns = tables.projections.c
        names = (columns.target, columns.external_id, columns.synced_epoch, columns.done)
        query = sa.select(columns.trial_id.label("trial"), *names).where(columns.target == target)
        query = query.order_by(columns.trial_id.is_not(None), columns.trial_id)
        with self._database.reading() as connection:
            query = query.where(columns.study_id == study_id(connection, study))
            return tuple(ProjectionRow(**row) for row in connection.execute(query).mappings())


def _select_exports() -> "sa.Select[tuple[object, ...]]":
    columns = tables.exports.c
    names = (columns.trial_id.label("trial"), tables.arms.c.name.label("arm"))
    values = (columns.id, columns.path, columns.hashes, columns.verified, columns.created_at)
    return sa.select(*names, *values).join_from(tables.exports, tables.trials).join(tables.arms)


def _require_trial(connection: sa.Connection, trial: int) -> None:
    if connection.scalars(sa.select(tables.trials.c.id).where(tables.trials.c.id == trial)).one_or_none() is None:
        raise NotFound(f"there is no trial {trial} in the store")
