"""Deleted studies: hidden at once, restorable for a grace time, then purged, after which their names are free."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.accounts.audit import note
from services.store.database import Database
from services.store.errors import NotFound, StateError
from services.store.locks import process_has_ended
from services.store.records import OPEN_QUEUE, STALE_SECONDS, DeletedRow

_KEPT_USE_DAYS = 90  # limits look back a month
_BATCH_TRIALS = 200  # rows of so many trials are deleted at once: other writers wait that long at most
_COLUMNS = tables.deletions.c
_SHOWN = (_COLUMNS.study, _COLUMNS.owner, _COLUMNS.deleted_by, _COLUMNS.deleted_at, _COLUMNS.purge_at)


class Deletion:
    """The part of `Store` for the end of studies; see there for the contract.

    A study is deleted in three steps, each of which can be repeated: `delete_study` hides it; `begin_purge`, after the
    grace time, rules out that it is restored; `finish_purge`, once its files are gone, deletes its rows. What remains
    is one row with its name, so that a later study of that name gets other jobs, and what its owner has used by day.
    """

    _database: Database

    def delete_study(self, study: str, *, grace_seconds: float, by: str) -> DeletedRow:
        """Hide a study that has ended; returns what there is if it is deleted already.

        Args:
            study: Name of the study.
            grace_seconds: How long it can be restored.
            by: Who deletes it.

        Raises:
            StateError: It waits or runs, also without the service.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            queued = _queued(connection, study)
            if (present := _deleted(connection, study)) is not None:
                return DeletedRow(**present)
            _require_ended(connection, study, queued, now)
            values: dict[str, Any] = {"owner": None if queued is None else queued["owner"], "deleted_by": by}
            values |= {"deleted_at": now}
            values |= {"purge_at": now + timedelta(seconds=grace_seconds), "purging_at": None, "purged_at": None}
            insertion = self._database.insert(tables.deletions).values(study=study, next_attempt=0, **values)
            # A row is there already if an earlier study of that name was purged.
            connection.execute(insertion.on_conflict_do_update(index_elements=["study"], set_=values))
            note(connection, now, "delete", study)
            return DeletedRow(study, values["owner"], by, now, values["purge_at"])

    def restore_study(self, study: str) -> None:
        """Show a deleted study again.

        Raises:
            NotFound: It is not deleted, or purged.
            StateError: It is being purged.
        """
        with self._database.writing() as connection:
            _queued(connection, study)
            row = connection.execute(_one(study).with_for_update()).mappings().one_or_none()
            if row is None:
                raise NotFound(f"there is no deleted study {study!r}")
            if row["purging_at"] is not None:
                raise StateError(f"study {study!r} is being purged and cannot be restored")
            # The number of its next job stays: it is needed again when the study is purged.
            changes = {"purged_at": self._database.now(connection)}
            connection.execute(sa.update(tables.deletions).where(_COLUMNS.study == study).values(**changes))
            note(connection, changes["purged_at"], "restore", study)

    def deleted_study(self, study: str) -> DeletedRow | None:
        """Return a deleted study that has not been purged, or None."""
        with self._database.reading() as connection:
            row = _deleted(connection, study)
        return None if row is None else DeletedRow(**row)

    def deleted_studies(self, owner: str | None = None) -> tuple[DeletedRow, ...]:
        """Return the deleted studies, of all owners or of one, that were not purged; those due first come first."""
        query = sa.select(*_SHOWN).where(_COLUMNS.purged_at.is_(None)).order_by(_COLUMNS.purge_at, _COLUMNS.study)
        if owner is not None:
            query = query.where(_COLUMNS.owner == owner)
        with self._database.reading() as connection:
            return tuple(DeletedRow(**row) for row in connection.execute(query).mappings())

    def due_for_purge(self) -> tuple[str, ...]:
        """Return the names of deleted studies whose grace time is over, or whose purge was interrupted."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            due = (_COLUMNS.purge_at <= now) | _COLUMNS.purging_at.is_not(None)
            return tuple(connection.scalars(sa.select(_COLUMNS.study).where(_COLUMNS.purged_at.is_(None), due)))

    def begin_purge(self, study: str, *, early: bool = False) -> bool:
        """Rule out that a deleted study is restored; return whether its grace time is over, or need not be.

        Args:
            study: Name of the study.
            early: Whether to begin before its grace time is over.
        """
        with self._database.writing() as connection:
            row = connection.execute(_one(study).with_for_update()).mappings().one_or_none()
            now = self._database.now(connection)
            if row is None or not (early or row["purging_at"] is not None or row["purge_at"] <= now):
                return False
            connection.execute(sa.update(tables.deletions).where(_COLUMNS.study == study).values(purging_at=now))
            return True

    def finish_purge(self, study: str) -> None:
        """Delete all rows of a study whose purge has begun, the one that says so last; its name is free then."""
        while self._delete_trials(study):
            pass
        with self._database.writing() as connection:
            row = connection.execute(_one(study).with_for_update()).mappings().one_or_none()
            if row is None or row["purging_at"] is None:
                return
            queued = _queued(connection, study)
            studies = sa.select(tables.studies.c.id).where(tables.studies.c.name == study)
            for table in (tables.projections, tables.events, tables.arms):
                connection.execute(sa.delete(table).where(table.c.study_id.in_(studies)))
            connection.execute(sa.delete(tables.studies).where(tables.studies.c.name == study))
            connection.execute(sa.delete(tables.shares).where(tables.shares.c.study == study))
            connection.execute(sa.delete(tables.queue).where(tables.queue.c.study == study))
            now = self._database.now(connection)
            # Ray takes an ID of a job once, and that of the next study of this name and settings may be the same.
            used = row["next_attempt"] if queued is None else queued["attempt"] + 1
            changes = {"purged_at": now, "purging_at": None, "next_attempt": max(used, row["next_attempt"])}
            connection.execute(sa.update(tables.deletions).where(_COLUMNS.study == study).values(**changes))
            note(connection, now, "purge", study)

    def delete_expired(self, *, days: int, grace_seconds: float, by: str) -> tuple[str, ...]:
        """Delete the submitted studies that ended more than a number of days ago; return their names."""
        columns = tables.queue.c
        with self._database.reading() as connection:
            oldest = self._database.now(connection) - timedelta(days=days)
            query = sa.select(columns.study).where(
                columns.updated_at < oldest, columns.state.not_in(sorted(OPEN_QUEUE))
            )
            names = tuple(connection.scalars(query.where(is_present(columns.study)).order_by(columns.id)))
        deleted = []
        for name in names:
            try:
                self.delete_study(name, grace_seconds=grace_seconds, by=by)
            except StateError:  # it was resumed meanwhile, or is run without the service
                continue
            deleted.append(name)
        return tuple(deleted)

    def expiring(self, studies: Collection[str], *, days: int) -> dict[str, datetime]:
        """Return when `delete_expired` deletes those of some studies that were submitted and have ended."""
        columns = tables.queue.c
        query = sa.select(columns.study, columns.updated_at).where(
            columns.study.in_(studies), columns.state.not_in(sorted(OPEN_QUEUE))
        )
        with self._database.reading() as connection:
            return {row.study: row.updated_at + timedelta(days=days) for row in connection.execute(query)}

    def _delete_trials(self, study: str) -> bool:
        """Delete some trials of a study whose purge has begun; return whether there were any."""
        with self._database.writing() as connection:
            row = connection.execute(_one(study)).mappings().one_or_none()
            if row is None or row["purging_at"] is None:
                return False
            ids = sa.select(tables.trials.c.id).join_from(tables.trials, tables.arms).join(tables.studies)
            trials = connection.scalars(ids.where(tables.studies.c.name == study).limit(_BATCH_TRIALS)).all()
            self._keep_use(connection, study, trials)
            for table in (tables.epochs, tables.attempts, tables.exports, tables.projections):
                connection.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))
            connection.execute(sa.delete(tables.trials).where(tables.trials.c.id.in_(trials)))
        return bool(trials)

    def _keep_use(self, connection: Connection, study: str, trials: Sequence[int]) -> None:
        """Record what trials have used that are about to be deleted, so that deleting gives nothing back."""
        columns, used = tables.queue.c, tables.purged_use.c
        row = connection.execute(sa.select(columns.owner, columns.document).where(columns.study == study)).one_or_none()
        gpus = 0.0 if row is None else _gpus(row.document)
        if row is None or not gpus:
            return
        query = sa.select(tables.trials.c.created_at, tables.trials.c.seconds).where(tables.trials.c.id.in_(trials))
        seconds: Counter[datetime] = Counter()
        for created_at, lasted in connection.execute(query):
            seconds[created_at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)] += lasted
        new = self._database.insert(tables.purged_use)
        for day, lasted in seconds.items():
            more = new.values(owner=row.owner, day=day, gpu_seconds=gpus * lasted).on_conflict_do_update(
                index_elements=["owner", "day"], set_={"gpu_seconds": used.gpu_seconds + new.excluded.gpu_seconds}
            )
            connection.execute(more)
        oldest = self._database.now(connection) - timedelta(days=_KEPT_USE_DAYS)
        connection.execute(sa.delete(tables.purged_use).where(used.day < oldest))

    def purged_gpu_seconds(self, since: datetime) -> dict[str, float]:
        """Return, by owner, the GPU-seconds of trials of purged studies that were added since a moment, by whole days.

        The day of that moment counts as a whole: of what is purged, only the day is kept.
        """
        used = tables.purged_use.c
        day = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        query = sa.select(used.owner, sa.func.sum(used.gpu_seconds)).where(used.day >= day).group_by(used.owner)
        with self._database.reading() as connection:
            return {owner: float(seconds) for owner, seconds in connection.execute(query)}


def is_present(study: "sa.ColumnElement[str]") -> "sa.ColumnElement[bool]":
    """Return the condition that a study, named by a column, is not deleted."""
    return ~sa.exists().where(_COLUMNS.study == study, _COLUMNS.purged_at.is_(None))


def require_present(connection: Connection, study: str) -> None:
    """Raise if a study is deleted.

    Raises:
        StateError: It is.
    """
    row = _deleted(connection, study)
    if row is not None:
        raise StateError(
            f"study {study!r} was deleted by {row['deleted_by']}, and its name is free when it is purged, after "
            f"{row['purge_at']:%Y-%m-%d %H:%M} UTC; restore it, or choose another name"
        )


def next_attempt(connection: Connection, study: str) -> int:
    """Return the number of the first job of a new study: one that no purged study of that name has had."""
    return connection.scalars(sa.select(_COLUMNS.next_attempt).where(_COLUMNS.study == study)).one_or_none() or 0


def _gpus(document: Any) -> float:
    """Return the GPUs of a trial of a submitted study, 0 if that cannot be read: no study may stop a purge."""
    workers = document.get("workers") if isinstance(document, dict) else None
    gpus = workers.get("gpus") if isinstance(workers, dict) else None
    return float(gpus) if isinstance(gpus, int | float) and gpus > 0 else 0.0


def _one(study: str) -> "sa.Select[Any]":
    return sa.select(tables.deletions).where(_COLUMNS.study == study, _COLUMNS.purged_at.is_(None))


def _deleted(connection: Connection, study: str) -> RowMapping | None:
    query = sa.select(*_SHOWN).where(_COLUMNS.study == study, _COLUMNS.purged_at.is_(None))
    return connection.execute(query).mappings().one_or_none()


def _queued(connection: Connection, study: str) -> RowMapping | None:
    """Return a study in the queue, locked until the transaction ends, so that nobody resumes it meanwhile."""
    columns = tables.queue.c
    query = sa.select(columns.owner, columns.state, columns.attempt).where(columns.study == study)
    return connection.execute(query.with_for_update()).mappings().one_or_none()


def _require_ended(connection: Connection, study: str, queued: RowMapping | None, now: datetime) -> None:
    columns = tables.studies.c
    query = sa.select(columns.state, columns.owner, columns.heartbeat_at).where(columns.name == study)
    begun = connection.execute(query.with_for_update()).mappings().one_or_none()
    if queued is None and begun is None:
        raise NotFound(f"there is no study {study!r} in the store")
    if queued is not None and queued["state"] in OPEN_QUEUE:
        raise StateError(
            f"study {study!r} is {queued['state']!r}: only a study that has ended can be deleted; cancel it"
        )
    if begun is not None and begun["owner"] is not None and begun["heartbeat_at"] is not None:
        age = (now - begun["heartbeat_at"]).total_seconds()
        if age <= STALE_SECONDS and not process_has_ended(begun["owner"]):
            raise StateError(f"study {study!r} is being run by {begun['owner']}; stop it first")
