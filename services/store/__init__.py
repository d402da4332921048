"""The store: studies, trials, attempts, epochs, architectures and exports; the truth of which all else is a projection.

Its parts: `errors`, `records` (what is handed out), `checked_values` (what may go in), `tables`, `database` (the
connection, SQLite or PostgreSQL), `schema_version` (of the tables), and the parts of `Store`: `studies`, `trials`,
`queue` (what the service was given) and `tokens` (who may give it something).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa

from services.store import tables
from services.store.database import Database
from services.store.errors import (
    LeaseLost,
    NotFound,
    StateError,
    StoreError,
    StoreUnreachable,
    StudyBusy,
    StudyConflict,
    Taken,
    TooMany,
)
from services.store.queue import Queue
from services.store.records import (
    AttemptRow,
    EpochRow,
    EventRow,
    ExportRow,
    Json,
    ProjectionRow,
    QueueLine,
    QueueRow,
    SpentRow,
    StudyLine,
    StudyRow,
    StudyStatus,
    TokenRow,
)
from services.store.studies import Studies, this_process
from services.store.tokens import Tokens
from services.store.trials import Trials, keep_architecture, study_id

__all__ = [
    "AttemptRow",
    "EpochRow",
    "EventRow",
    "ExportRow",
    "LeaseLost",
    "NotFound",
    "ProjectionRow",
    "QueueLine",
    "QueueRow",
    "SpentRow",
    "StateError",
    "Store",
    "StoreError",
    "StoreUnreachable",
    "StudyBusy",
    "StudyConflict",
    "StudyLine",
    "StudyRow",
    "StudyStatus",
    "Taken",
    "TokenRow",
    "TooMany",
    "this_process",
]


class Store(Studies, Trials, Queue, Tokens):
    """Studies and their trials, the queue and the tokens of the service, in one database: SQLite, or PostgreSQL.

    The driver that has claimed a study is the only one to write to it; anyone may read at any time, from any thread or
    process.

    - Every call is one transaction: it happens wholly or not at all. What it wrote outlives the death of any process;
      SQLite may lose the last moments of a machine that loses power.
    - Every write may be repeated: what is there already stays as it is.
    - A terminal state never changes. A study may be reopened, which is recorded; a trial may not.
    - Rows are values: they stay as they were when they were read. Moments are in UTC.
    - What was not a finite number is kept as None, and its place is named under ``non_finite``.

    Every method raises `StoreError` if the database fails, `StoreUnreachable` if it does not come back within half a
    minute, and `NotFound` for a study, an arm or a trial that is not there.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, patience: float | None = None) -> "Store":
        """Open a store, make it if it is not there, and bring it up to date; several processes may do so at once.

        Args:
            url: ``sqlite:////absolute/path.db`` or ``postgresql+psycopg://user:password@host/name``.
            patience: Seconds for which a server that has gone away is waited for; half a minute if left out.

        Raises:
            StoreUnreachable: Nobody answers at the URL.
            StoreError: The URL cannot be used, or what lies there is no store, or is that of a newer version.
        """
        return cls(Database.open(url, patience=patience))

    @property
    def url(self) -> str:
        """URL of the database, without its password."""
        return self._database.url

    def clock_ahead(self) -> float:
        """Return by how many seconds the clock of the database is ahead of that of this machine."""
        with self._database.reading() as connection:
            before = datetime.now(UTC)
            theirs = self._database.now(connection)
            return (theirs - before).total_seconds() - (datetime.now(UTC) - before).total_seconds() / 2

    def stop_retrying(self) -> None:
        """Wait for a server that has gone away no longer, in any thread; for who has to end."""
        self._database.stop_retrying()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_architecture(self, name: str, document: Json) -> None:
        """Keep an architecture, as plain JSON types, under its canonical hash; the first one of a hash stays."""
        with self._database.writing() as connection:
            keep_architecture(self._database, connection, name, document)

    def architecture(self, name: str) -> Json:
        """Return the architecture of a hash."""
        query = sa.select(tables.architectures.c.document).where(tables.architectures.c.hash == name)
        with self._database.reading() as connection:
            document: Json | None = connection.scalars(query).one_or_none()
        if document is None:
            raise NotFound(f"there is no architecture {name!r} in the store")
        return document

    def add_export(self, trial: int, *, path: str, hashes: Mapping[str, str], verified: bool) -> ExportRow:
        """Note that the model of a trial was handed over; once more at the same path replaces what was noted.

        Args:
            trial: Identity of the trial.
            path: Folder of the files.
            hashes: SHA-256 of every file, by its name.
            verified: Whether the exported model was shown to compute what the trained one does.
        """
        values = {"hashes": dict(hashes), "verified": verified, "created_at": datetime.now(UTC)}
        insertion = self._database.insert(tables.exports).values(trial_id=trial, path=path, **values)
        with self._database.writing() as connection:
            _find_trial(connection, trial)
            connection.execute(insertion.on_conflict_do_update(index_elements=["trial_id", "path"], set_=values))
            columns = tables.exports.c
            row = connection.execute(_select_exports().where(columns.trial_id == trial, columns.path == path))
            return ExportRow(**row.mappings().one())

    def exports(self, study: str) -> tuple[ExportRow, ...]:
        """Return what was handed over of a study, in the order of its arms."""
        query = _select_exports().order_by(tables.arms.c.position, tables.exports.c.id)
        with self._database.reading() as connection:
            query = query.where(tables.arms.c.study_id == study_id(connection, study))
            return tuple(ExportRow(**row) for row in connection.execute(query).mappings())

    def project(
        self,
        study: str,
        *,
        target: str,
        external_id: str,
        trial: int | None = None,
        synced_epoch: int = -1,
        done: bool = False,
    ) -> None:
        """Note how far somebody outside has been told of a trial, or of the study as a whole.

        For the same `external_id` it only goes forward; another one begins anew.

        Args:
            study: Name of the study.
            target: Who was told, such as ``mlflow``.
            external_id: What the trial or study is called there.
            trial: Identity of the trial, or None for the study.
            synced_epoch: Last epoch that was told, -1 for none.
            done: Whether there is nothing left to tell.
        """
        columns = tables.projections.c
        keys = [columns.study_id, columns.target] if trial is None else [columns.trial_id, columns.target]
        values = {"trial_id": trial, "target": target, "external_id": external_id}
        new = self._database.insert(tables.projections)
        same = columns.external_id == new.excluded.external_id
        ahead = same & (columns.synced_epoch > new.excluded.synced_epoch)
        changes = {
            "external_id": new.excluded.external_id,
            "synced_epoch": sa.case((ahead, columns.synced_epoch), else_=new.excluded.synced_epoch),
            "done": sa.case((same & columns.done, sa.true()), else_=new.excluded.done),
        }
        where = columns.trial_id.is_(None) if trial is None else None
        with self._database.writing() as connection:
            if trial is not None:
                _find_trial(connection, trial)
            new = new.values(study_id=study_id(connection, study), synced_epoch=synced_epoch, done=done, **values)
            connection.execute(new.on_conflict_do_update(index_elements=keys, index_where=where, set_=changes))

    @contextmanager
    def telling(self, study: str, target: str, *, patience: float = 0.0) -> Iterator[None]:
        """Let nobody else tell somebody outside of a study, in this process or another, until the block has ended.

        Args:
            study: Name of the study.
            target: Who is told, such as ``mlflow``.
            patience: Seconds to wait for whoever does so now.

        Raises:
            Taken: Somebody else still does.
        """
        with self._database.exclusive(f"{target}-{study}", patience=patience) as got:
            if not got:
                raise Taken(f"another process is telling {target} of study {study!r}; wait until it has ended")
            yield

    def projections(self, study: str, target: str) -> tuple[ProjectionRow, ...]:
        """Return how far somebody outside has been told of a study and of its trials: the study first."""
        columns = tables.projections.c
        names = (columns.target, columns.external_id, columns.synced_epoch, columns.done)
        query = sa.select(columns.trial_id.label("trial"), *names).where(columns.target == target)
        query = query.order_by(columns.trial_id.is_not(None), columns.trial_id)
        with self._database.reading() as connection:
            query = query.where(columns.study_id == study_id(connection, study))
            return tuple(ProjectionRow(**row) for row in connection.execute(query).mappings())

    def unsynced_studies(self, target: str) -> tuple[str, ...]:
        """Return the names of the studies of which somebody outside has not been told everything, the oldest first."""
        studies, columns = tables.studies.c, tables.projections.c
        told = (columns.study_id == studies.id) & columns.trial_id.is_(None) & (columns.target == target) & columns.done
        query = sa.select(studies.name).where(~sa.exists().where(told), studies.started_at.is_not(None))
        with self._database.reading() as connection:
            return tuple(connection.scalars(query.order_by(studies.id)))


def _select_exports() -> "sa.Select[tuple[object, ...]]":
    columns = tables.exports.c
    named = (columns.trial_id.label("trial"), tables.arms.c.name.label("arm"))
    own = (columns.id, columns.path, columns.hashes, columns.verified, columns.created_at)
    return sa.select(*named, *own).join_from(tables.exports, tables.trials).join(tables.arms)


def _find_trial(connection: sa.Connection, trial: int) -> None:
    if connection.scalars(sa.select(tables.trials.c.id).where(tables.trials.c.id == trial)).one_or_none() is None:
        raise NotFound(f"there is no trial {trial} in the store")
