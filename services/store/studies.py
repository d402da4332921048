"""Studies: created, read, claimed by a driver, finished and extended."""

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.checked_values import one_of, require_finite, storable
from services.store.database import Database
from services.store.deletion import is_present, require_present
from services.store.errors import StateError, StudyBusy, StudyConflict
from services.store.locks import process_has_ended, this_process
from services.store.records import (
    COMMAND_LINE,
    ENDED_STUDY,
    INTERRUPTED,
    STALE_SECONDS,
    STUDY_STATES,
    TRIAL_STATES,
    EventRow,
    Json,
    QueueRow,
    QueueSummary,
    StudyRow,
    StudyStatus,
    StudySummary,
    is_interrupted,
)
from services.store.trials import counts_by_state, no_study, requeue, spent_rows, study_id

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_EVENTS = (
    sa.select(tables.events.c.at, tables.events.c.kind, tables.events.c.detail)
    .where(tables.events.c.study_id == sa.bindparam("study"))
    .order_by(tables.events.c.id)
)

_UNSUBMITTED = is_present(tables.studies.c.name) & ~sa.exists().where(tables.queue.c.study == tables.studies.c.name)
_GO_ON = "its driver has ended or lost contact: run it again with `nas-blockout run`, and it goes on"


class Studies:
    """The part of `Store` for studies; see there for the contract."""

    _database: Database

    def create_study(
        self, name: str, *, config: Json, config_hash: str, arms: Sequence[str], files: Mapping[str, str] | None = None
    ) -> StudyRow:
        """Add a study to the store, or return the one that is there.

        Args:
            name: Name of the study: 1 to 64 lowercase letters, digits and dashes.
            config: The resolved study.
            config_hash: Hash of all settings that affect results, see `Study.hash`.
            arms: Names of the arms, in the order of the study.
            files: SHA-256 of the files whose content decides results, by path; the event of the creation keeps them.

        Raises:
            ValueError: The name is invalid, or the arms are empty or not distinct.
            StudyConflict: The store has a study of that name with another hash.
            StateError: It has a deleted one.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of a study must be 1 to 64 lowercase letters, digits and dashes, got {name!r}")
        _check_arms(arms)
        values = {
            "name": name,
            "state": "created",
            "config": require_finite("config", config),
            "config_hash": config_hash,
            "uuid": str(uuid.uuid4()),
        }
        with self._database.writing() as connection:
            require_present(connection, name)
            # One of several processes inserts the row; it alone gets an ID back, and adds arms and event.
            insertion = self._database.insert(tables.studies).values(**values, created_at=datetime.now(UTC))
            study = connection.scalars(insertion.on_conflict_do_nothing().returning(tables.studies.c.id)).one_or_none()
            if study is not None:
                _add_arms(connection, study, arms, first=0)
                _record(connection, study, "created", **({"files": dict(files)} if files else {}))
            row = self._study(connection, name)
        if row.config_hash != config_hash:
            raise StudyConflict(
                f"study {name!r} is in the store with different settings (hash {row.config_hash}, now {config_hash}); "
                "choose another name, or extend the study by reopening it"
            )
        return row

    def study(self, name: str) -> StudyRow:
        """Return a study."""
        with self._database.reading() as connection:
            return self._study(connection, name)

    def has_study(self, name: str) -> bool:
        """Whether a driver has begun a study of that name."""
        columns = tables.studies.c
        with self._database.reading() as connection:
            return connection.scalars(sa.select(columns.id).where(columns.name == name)).one_or_none() is not None

    def studies(self, state: str | None = None, *, limit: int = 100, offset: int = 0) -> tuple[StudySummary, ...]:
        """Return summaries of studies, newest first, without deleted ones."""
        columns = [column for column in tables.studies.c if column.name not in ("config", "config_hash", "uuid")]
        page = (
            sa.select(*columns)
            .order_by(tables.studies.c.id.desc())
            .limit(limit)
            .offset(offset)
            .where(_in_state(state), is_present(tables.studies.c.name))
        )
        # Trials are counted for the studies of the page only: their number, not that of the store, decides the time.
        listed = page.subquery()
        counted = (
            sa.select(
                listed.c.id, sa.func.sum(tables.trials.c.sample_passes).label("sample_passes"), *counts_by_state()
            )
            .join_from(listed, tables.arms, tables.arms.c.study_id == listed.c.id)
            .join(tables.trials)
            .group_by(listed.c.id)
        )
        with self._database.reading() as connection:
            now = self._database.now(connection)
            rows = connection.execute(page).mappings().all()
            counts = {row["id"]: row for row in connection.execute(counted).mappings()}
        return tuple(_study_line(row, counts.get(row["id"]), now) for row in rows)

    def events(self, study: str) -> tuple[EventRow, ...]:
        """Return the events of a study, oldest first."""
        with self._database.reading() as connection:
            return event_rows(connection, study_id(connection, study))

    def command_line_study(self, name: str) -> QueueRow | None:
        """Return a study that was run without the service, in the form of a submitted one; None if there is none.

        None too for a study that was submitted, and for a deleted one. Its owner is `COMMAND_LINE`.
        """
        with self._database.reading() as connection:
            return self._unsubmitted(connection, name)

    def command_line_status(self, name: str) -> StudyStatus | None:
        """Return such a study with its usage and events, as `study_status` does for a submitted one."""
        with self._database.reading() as connection:
            row = self._unsubmitted(connection, name)
            if row is None:
                return None
            return StudyStatus(row, spent_rows(connection, row.id), event_rows(connection, row.id))

    def command_line_studies(self, *, limit: int = 100, before: int | None = None) -> tuple[QueueSummary, ...]:
        """Return summaries of the studies that were run without the service, newest first, without deleted ones.

        Args:
            limit: Maximum number of studies.
            before: Only studies with a lower `id`: the last one of a page, to get the next page.
        """
        columns = tables.studies.c
        listed = [column for column in columns if column.name not in ("config", "uuid")]
        query = sa.select(*listed).where(_UNSUBMITTED).order_by(columns.id.desc()).limit(limit)
        if before is not None:
            query = query.where(columns.id < before)
        with self._database.reading() as connection:
            now = self._database.now(connection)
            return tuple(QueueSummary(**_in_queue(row, now)) for row in connection.execute(query).mappings())

    def claim_study(self, name: str, owner: str | None = None, *, stale_seconds: float = STALE_SECONDS) -> StudyRow:
        """Claim a study for a driver, which sets it running.

        Another driver's claim ends when its process has ended, or `stale_seconds` after its last `heartbeat`.

        Args:
            name: Name of the study.
            owner: Name of the driver; `this_process` if omitted.
            stale_seconds: How long a claim lasts after its last heartbeat.

        Raises:
            StudyBusy: Another driver is running it.
            StateError: It has ended.
        """
        owner = owner or this_process()
        with self._database.writing() as connection:
            row, now = _study_for_update(connection, name), self._database.now(connection)
            require_present(connection, name)
            before, age = row["owner"], _age(row["heartbeat_at"], now)
            if row["state"] in ENDED_STUDY:
                raise _ended(name, row["state"], "running")
            # A heartbeat that is too old frees a study whose driver is on another machine, where we cannot look.
            if (
                before not in (None, owner)
                and age is not None
                and age <= stale_seconds
                and not process_has_ended(before)
            ):
                raise StudyBusy(
                    f"study {name!r} is being run by {before} (heartbeat {age:.0f} s ago); wait, or stop it first"
                )
            started = row["started_at"] or now
            _change(connection, row["id"], owner=owner, heartbeat_at=now, state="running", started_at=started)
            if before != owner:
                _record(connection, row["id"], "claimed", owner=owner, before=before)
            return self._study(connection, name)

    def heartbeat(self, name: str, owner: str | None = None) -> None:
        """Renew the claim of a driver on a study.

        Raises:
            StudyBusy: The claim had expired, and another driver has the study.
        """
        owner = owner or this_process()
        with self._database.writing() as connection:
            row = _study_for_update(connection, name)
            if row["owner"] != owner:  # the driver must stop writing: another one has read the store meanwhile
                raise StudyBusy(
                    f"{owner} has lost its claim on study {name!r}, which is now run by {row['owner'] or 'nobody'}"
                )
            _change(connection, row["id"], heartbeat_at=self._database.now(connection))

    def release_study(self, name: str, owner: str | None = None) -> None:
        """Release a claim, so that another driver can continue at once; does nothing without a claim."""
        owner = owner or this_process()
        with self._database.writing() as connection:
            row = _study_for_update(connection, name)
            if row["owner"] == owner:
                _change(connection, row["id"], owner=None, heartbeat_at=None)
                _record(connection, row["id"], "released", owner=owner)

    def finish_study(self, name: str, state: str, *, error: str | None = None) -> None:
        """Set the terminal state of a study; does nothing if it is in that state already.

        Running trials are queued again, in case the study is reopened.

        Args:
            name: Name of the study.
            state: ``complete``, ``failed`` or ``cancelled``.
            error: Why it failed or was cancelled.

        Raises:
            StateError: It has another terminal state, or cannot be complete because trials are queued or running.
        """
        one_of("terminal state", state, sorted(ENDED_STUDY))
        text = storable(error) if error else None
        with self._database.writing() as connection:
            row = _study_for_update(connection, name)
            if row["state"] == state:
                return
            if row["state"] in ENDED_STUDY:
                raise _ended(name, row["state"], state)
            if state == "complete" and (left := _unfinished(connection, row["id"])):
                raise StateError(f"study {name!r} cannot become 'complete': {left} of its trials are queued or running")
            # In the same transaction: an ended study with running trials would never be right again.
            requeue(connection, row["id"])
            ended = {"state": state, "error": text, "finished_at": datetime.now(UTC)}
            _change(connection, row["id"], **ended, owner=None, heartbeat_at=None)
            _record(connection, row["id"], "finished", state=state, error=text)

    def reopen_study(
        self,
        name: str,
        *,
        reason: str,
        config: Json | None = None,
        config_hash: str | None = None,
        arms: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
    ) -> StudyRow:
        """Reopen a study that has ended, perhaps extended; an event records its earlier state.

        Args:
            name: Name of the study.
            reason: Why, for the event.
            config: The extended study, resolved; unchanged if omitted.
            config_hash: Hash of `config`; required with it.
            arms: All arms of the extended study; existing arms keep their position, new ones follow.
            files: As of `create_study`, of the extended study.

        Raises:
            ValueError: One of `config` and `config_hash` is missing, or an existing arm is.
            StateError: It has not ended.
        """
        if (config is None) != (config_hash is None):
            raise ValueError("config and config_hash must be passed together")
        with self._database.writing() as connection:
            row, before = _study_for_update(connection, name), self._study(connection, name)
            require_present(connection, name)
            if before.state not in ENDED_STUDY:
                raise StateError(f"study {name!r} is {before.state!r}: only a study that has ended can be reopened")
            changes: dict[str, Any] = {"state": "created", "error": None, "finished_at": None}
            detail: dict[str, Any] = {"reason": storable(reason), "state": before.state, "error": before.error}
            if config is not None:
                changes |= {"config": require_finite("config", config), "config_hash": config_hash}
                # The event keeps the study as it was: replays need what was in force when a trial was proposed.
                detail |= {"config": before.config, "config_hash": before.config_hash}
            if files:
                detail["files"] = dict(files)
            if arms:
                _extend_arms(connection, row["id"], before.arms, arms)
            _change(connection, row["id"], **changes)
            columns = tables.projections.c  # what other systems were sent of the study as a whole is out of date
            of_study = (columns.study_id == row["id"]) & columns.trial_id.is_(None)
            connection.execute(sa.update(tables.projections).where(of_study).values(done=False))
            _record(connection, row["id"], "reopened", **detail)
            return self._study(connection, name)

    def _unsubmitted(self, connection: Connection, name: str) -> QueueRow | None:
        query = sa.select(tables.studies).where(tables.studies.c.name == name, _UNSUBMITTED)
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        return QueueRow(**_in_queue(row, self._database.now(connection)), document=row["config"])

    def _study(self, connection: Connection, name: str) -> StudyRow:
        row = (
            connection.execute(sa.select(tables.studies).where(tables.studies.c.name == name)).mappings().one_or_none()
        )
        if row is None:
            raise no_study(connection, name)
        arms = tables.arms.c
        names = connection.scalars(sa.select(arms.name).where(arms.study_id == row["id"]).order_by(arms.position))
        age = _age(row["heartbeat_at"], self._database.now(connection))
        values = {key: value for key, value in row.items() if key != "heartbeat_at"}
        return StudyRow(**values, arms=tuple(names), heartbeat_age=age)


def event_rows(connection: Connection, study: int) -> tuple[EventRow, ...]:
    """Return the events of a study, oldest first.

    Args:
        connection: In a transaction.
        study: ID of the study.
    """
    return tuple(EventRow(**row) for row in connection.execute(_EVENTS, {"study": study}).mappings())


def _in_queue(row: RowMapping, now: datetime) -> dict[str, Any]:
    """Return what a study that was run without the service has in common with one in the queue."""
    interrupted = is_interrupted(row["state"], _age(row["heartbeat_at"], now))
    state = {"created": "queued"}.get(row["state"], row["state"])
    return {
        "id": row["id"],
        "study": row["name"],
        "owner": COMMAND_LINE,
        "state": INTERRUPTED if interrupted else state,
        "config_hash": row["config_hash"],
        **dict.fromkeys(("worker", "lease_until", "job")),
        **dict.fromkeys(("attempt", "first_attempt"), 0),
        "message": _GO_ON if interrupted else row["error"] or "",
        "created_at": row["created_at"],
        "updated_at": row["finished_at"] or row["started_at"] or row["created_at"],
        "started_at": row["started_at"],
    }


def _age(heartbeat: datetime | None, now: datetime) -> float | None:
    # Not below 0: with SQLite the clock is that of a machine, which may be set back.
    return None if heartbeat is None else max(0.0, (now - heartbeat).total_seconds())


def _ended(name: str, before: str, after: str) -> StateError:
    return StateError(f"study {name!r} ended as {before!r} and cannot become {after!r}; reopen it first")


def _in_state(state: str | None) -> sa.ColumnElement[bool]:
    if state is None:
        return sa.true()
    return tables.studies.c.state == one_of("state of a study", state, STUDY_STATES)


def _study_line(row: RowMapping, counts: RowMapping | None, now: datetime) -> StudySummary:
    values = {key: value for key, value in row.items() if key != "heartbeat_at"}
    trials = {state: int(counts[state]) if counts else 0 for state in TRIAL_STATES}
    passes = int(counts["sample_passes"]) if counts else 0
    return StudySummary(**values, heartbeat_age=_age(row["heartbeat_at"], now), trials=trials, sample_passes=passes)


def _study_for_update(connection: Connection, name: str) -> RowMapping:
    columns = tables.studies.c
    query = sa.select(columns.id, columns.state, columns.owner, columns.heartbeat_at, columns.started_at)
    row = connection.execute(query.where(columns.name == name).with_for_update()).mappings().one_or_none()
    if row is None:
        raise no_study(connection, name)
    return row


def _change(connection: Connection, study: int, **values: Any) -> None:
    connection.execute(sa.update(tables.studies).where(tables.studies.c.id == study).values(**values))


def _record(connection: Connection, study: int, kind: str, **detail: Any) -> None:
    values: Mapping[str, Any] = {"study_id": study, "at": datetime.now(UTC), "kind": kind, "detail": detail}
    connection.execute(sa.insert(tables.events).values(**values))


def _check_arms(arms: Sequence[str]) -> None:
    if not arms or len(set(arms)) != len(arms):
        raise ValueError(f"arms must be one or more distinct names, got {list(arms)}")


def _add_arms(connection: Connection, study: int, arms: Sequence[str], *, first: int) -> None:
    rows = [{"study_id": study, "name": arm, "position": position} for position, arm in enumerate(arms, first)]
    if rows:
        connection.execute(sa.insert(tables.arms), rows)


def _extend_arms(connection: Connection, study: int, before: Sequence[str], arms: Sequence[str]) -> None:
    _check_arms(arms)
    if missing := [arm for arm in before if arm not in arms]:
        raise ValueError(f"an extended study must keep its arms, this one lacks {', '.join(missing)}")
    # Positions of existing arms stay, whatever the order in the extended file: lists and reports keep theirs.
    _add_arms(connection, study, [arm for arm in arms if arm not in before], first=len(before))


def _unfinished(connection: Connection, study: int) -> int:
    unfinished = tables.trials.c.state.in_(("queued", "running")) & (tables.arms.c.study_id == study)
    query = sa.select(sa.func.count()).select_from(tables.trials).join(tables.arms).where(unfinished)
    return connection.scalars(query).one()
