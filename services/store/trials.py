"""Trials, their attempts and their epochs: added, started, recorded and finished."""

import difflib
import functools
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.checked_values import (
    non_negative,
    one_of,
    replace_non_finite,
    require_finite,
    storable,
    whole_number,
)
from services.store.database import Database
from services.store.errors import NotFound, StateError, StudyConflict
from services.store.records import (
    ENDED_STUDY,
    PHASES,
    TRIAL_STATES,
    AttemptRow,
    EpochRow,
    Json,
    SpentRow,
)
from services.trial_record import TERMINAL, Trial

_NAMES_COMPARED = 500  # for a suggestion; comparing with all names of a large store would take seconds
_EPOCH_COLUMNS = ("epoch", "stage", "sample_passes", "seconds")


class Trials:
    """The part of `Store` for trials; see there for the contract."""

    _database: Database

    def add_trial(  # noqa: PLR0913  # one keyword a column
        self,
        study: str,
        *,
        arm: str,
        phase: str,
        number: int,
        seed: int,
        experiment: Json,
        planned: int,
        params: Json | None = None,
        architecture: Json | None = None,
        architecture_hash: str | None = None,
        replicate_of: int | None = None,
        suggest_seconds: float = 0.0,
    ) -> Trial:
        """Add a queued trial, or return the one of the same arm, phase and number.

        Args:
            study: Name of the study.
            arm: Name of the arm.
            phase: ``search`` or ``retrain``.
            number: Index among the trials of the arm and phase, from 0.
            seed: Seed of its experiment.
            experiment: The experiment to run, see `Experiment.to_json`.
            planned: Sample passes that it is planned to use.
            params: Parameters chosen by the search, with their distributions.
            architecture: The suggested architecture, which is stored under its hash.
            architecture_hash: Its canonical hash; without `architecture`, the hash of one in the store.
            replicate_of: Number of the search trial of the arm whose architecture this retraining repeats.
            suggest_seconds: Time that the search took to suggest it, in seconds.

        Raises:
            ValueError: A value is out of range.
            StateError: The study has ended.
            StudyConflict: The trial exists with another seed or experiment.
        """
        values = {
            "phase": one_of("phase", phase, PHASES),
            "number": whole_number("number", number),
            "seed": whole_number("seed", seed),
            "planned": whole_number("planned", planned),
            "replicate_of": replicate_of,
            "suggest_seconds": non_negative("suggest_seconds", suggest_seconds),
            "architecture_hash": architecture_hash,
            "params": require_finite("params", params or {}),
            "experiment": require_finite("experiment", experiment),
        }
        with self._database.writing() as connection:
            arm_id = _open_arm(connection, study, arm)
            if architecture is not None and architecture_hash is not None:
                insert_architecture(self._database, connection, architecture_hash, architecture)
            # The call may be repeated, as when the answer to a commit was lost: the row that is there stays.
            connection.execute(
                self._database.insert(tables.trials)
                .values(**values, arm_id=arm_id, state="queued", sample_passes=0, seconds=0.0, created_at=_now())
                .on_conflict_do_nothing()
            )
            columns = tables.trials.c
            same = (columns.arm_id == arm_id) & (columns.phase == phase) & (columns.number == number)
            row = _trial_row(connection.execute(_select_trials().where(same)).mappings().one())
        # Its number is what identifies a trial. Another experiment under it would mean that the search did not resume
        # as it had begun, and that results of two different searches would be mixed.
        if (row.seed, row.experiment) != (seed, values["experiment"]):
            raise StudyConflict(
                f"{phase} trial {number} of arm {arm!r} in study {study!r} is in the store with another experiment or "
                f"seed ({row.seed}, now {seed})"
            )
        return row

    def trial(self, trial: int) -> Trial:
        """Return a trial by ID."""
        with self._database.reading() as connection:
            row = connection.execute(_select_trials().where(tables.trials.c.id == trial)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"there is no trial {trial} in the store")
        return _trial_row(row)

    def trials(
        self, study: str, *, arm: str | None = None, phase: str | None = None, state: str | None = None
    ) -> tuple[Trial, ...]:
        """Return the trials of a study, or those of an arm, phase or state, in the order in which they were added."""
        query = _select_trials().order_by(tables.trials.c.id)
        if arm is not None:
            query = query.where(tables.arms.c.name == arm)
        if phase is not None:
            query = query.where(tables.trials.c.phase == one_of("phase", phase, PHASES))
        if state is not None:
            query = query.where(tables.trials.c.state == one_of("state of a trial", state, TRIAL_STATES))
        with self._database.reading() as connection:
            query = query.where(tables.arms.c.study_id == study_id(connection, study))
            return tuple(_trial_row(row) for row in connection.execute(query).mappings())

    def start_attempt(self, trial: int, *, worker: str = "") -> AttemptRow:
        """Start an attempt at a trial, which sets it running; an earlier attempt that still ran is lost.

        Args:
            trial: ID of the trial.
            worker: Process that runs it; may be empty until `record_epochs` knows it.

        Raises:
            StateError: The trial has ended.
        """
        attempts, now = tables.attempts.c, _now()
        with self._database.writing() as connection:
            row = _trial_for_update(connection, trial)
            if row["state"] in TERMINAL:
                raise _ended(trial, row["state"], "running")
            _end_attempts(connection, attempts.trial_id == trial, "lost", now)
            # The lock on the trial makes this safe: two attempts cannot get the same number.
            last = connection.scalars(sa.select(sa.func.max(attempts.number)).where(attempts.trial_id == trial)).one()
            attempt = AttemptRow(trial, 0 if last is None else last + 1, "running", storable(worker), now, None, None)
            values = {"trial_id": trial, "number": attempt.number, "state": attempt.state, "worker": attempt.worker}
            connection.execute(sa.insert(tables.attempts).values(**values, started_at=now))
            _change_trial(
                connection, trial, state="running", started_at=row["started_at"] or now
            )  # of the first attempt
        return attempt

    def attempts(self, trial: int) -> tuple[AttemptRow, ...]:
        """Return the attempts at a trial, oldest first."""
        columns = tables.attempts.c
        query = sa.select(columns.trial_id.label("trial"), *(c for c in columns if c.name != "trial_id"))
        with self._database.reading() as connection:
            rows = connection.execute(query.where(columns.trial_id == trial).order_by(columns.number))
            return tuple(AttemptRow(**row) for row in rows.mappings())

    def record_epochs(self, trial: int, records: Iterable[Json], *, worker: str | None = None) -> None:
        """Record epochs of a running trial; an epoch that is there already stays as it is.

        The usage of the trial is updated from the records and never decreases.

        Args:
            trial: ID of the trial.
            records: Each with ``epoch``, the cumulative ``sample_passes`` and ``seconds``, optionally ``stage``, and
                any metrics.
            worker: Process that runs the attempt; recorded if it was not known before.

        Raises:
            ValueError: A record lacks a required key, or its value is out of range.
            StateError: The trial is not running.
        """
        rows = [_epoch_values(trial, record) for record in records]
        if not rows:
            return
        columns = tables.trials.c
        passes, seconds = (max(row[name] for row in rows) for name in ("sample_passes", "seconds"))
        # Epochs are reported again after a resumption from a checkpoint, with lower totals; what was spent stays spent.
        changes = {
            "sample_passes": _higher(columns.sample_passes, passes),
            "seconds": _higher(columns.seconds, seconds),
        }
        change = sa.update(tables.trials).where(columns.id == trial, columns.state == "running").values(**changes)
        with self._database.writing() as connection:
            # The condition on the state is part of the update: one statement for what happens at every epoch.
            if connection.execute(change).rowcount == 0:
                state = _trial_for_update(connection, trial)["state"]
                raise StateError(f"trial {trial} is {state!r}: epochs can be recorded only while it is 'running'")
            connection.execute(self._database.insert(tables.epochs).on_conflict_do_nothing(), rows)
            if worker:
                _name_worker(connection, trial, worker)

    def epochs(self, trial: int, *, after: int = -1) -> tuple[EpochRow, ...]:
        """Return the epochs of a trial in order, all or those after a given one."""
        columns = tables.epochs.c
        query = sa.select(*(columns[name] for name in _EPOCH_COLUMNS), columns.metrics)
        query = query.where(columns.trial_id == trial, columns.epoch > after).order_by(columns.epoch)
        with self._database.reading() as connection:
            return tuple(EpochRow(**row) for row in connection.execute(query).mappings())

    def finish_trial(
        self,
        trial: int,
        state: str,
        *,
        score: float | None = None,
        result: Json | None = None,
        reason: str | None = None,
    ) -> None:
        """Set the terminal state of a trial and its attempt; does nothing if it is in that state already.

        Args:
            trial: ID of the trial.
            state: ``complete``, ``failed`` or ``pruned``.
            score: Validation accuracy in [0, 1]; required if complete.
            result: Metrics and other results; its ``architecture`` is also stored under its ``architecture_hash``.
            reason: Why it failed or was pruned; required if failed.

        Raises:
            ValueError: A complete trial without a finite score, or a failed one without a reason.
            StateError: It has another terminal state, or cannot be complete because it has not been started.
        """
        _check_end(trial, one_of("terminal state", state, sorted(TERMINAL)), score, reason)
        now, text = _now(), storable(reason) if reason else None
        with self._database.writing() as connection:
            before = _trial_for_update(connection, trial)["state"]
            if before == state:  # reported twice, as after a connection that broke at the end of the transaction
                return
            if before in TERMINAL or (before == "queued" and state == "complete"):
                raise _ended(trial, before, state)
            document = replace_non_finite(result) if result is not None else None
            if document and document.get("architecture") and document.get("architecture_hash"):
                insert_architecture(self._database, connection, document["architecture_hash"], document["architecture"])
            _change_trial(connection, trial, state=state, score=score, result=document, reason=text, finished_at=now)
            ended = "failed" if state == "failed" else "complete"  # a pruned trial is a complete attempt
            _end_attempts(connection, tables.attempts.c.trial_id == trial, ended, now, error=text)

    def requeue_running(self, study: str) -> tuple[int, ...]:
        """Queue trials again that a dead driver left running, their attempts being lost; return their IDs."""
        with self._database.writing() as connection:
            return requeue(connection, study_id(connection, study))

    def spent(self, study: str) -> tuple[SpentRow, ...]:
        """Return usage and number of trials for each arm and phase that has trials."""
        with self._database.reading() as connection:
            return spent_rows(connection, study_id(connection, study))


def study_id(connection: Connection, name: str) -> int:
    """Return the ID of a study.

    Raises:
        NotFound: There is no study of that name; the message suggests a similar one.
    """
    query = sa.select(tables.studies.c.id).where(tables.studies.c.name == name)
    study: int | None = connection.scalars(query).one_or_none()
    if study is None:
        raise no_study(connection, name)
    return study


def spent_rows(connection: Connection, study: int) -> tuple[SpentRow, ...]:
    """Return usage and number of trials for each arm and phase of a study, given by its ID."""
    return tuple(_spent_row(row) for row in connection.execute(_select_spent(), {"study": study}).mappings())


def no_study(connection: Connection, name: str) -> NotFound:
    """Return the error for a study that does not exist, with a similar name from among the newest."""
    newest = sa.select(tables.studies.c.name).order_by(tables.studies.c.id.desc()).limit(_NAMES_COMPARED)
    near = difflib.get_close_matches(name, connection.scalars(newest).all(), n=1)
    return NotFound(f"there is no study {name!r} in the store{f'; did you mean {near[0]!r}?' if near else ''}")


def counts_by_state() -> list[sa.Label[int]]:
    """Return columns that count trials, one per state."""
    state = tables.trials.c.state
    return [sa.func.sum(sa.case((state == name, 1), else_=0)).label(name) for name in TRIAL_STATES]


def requeue(connection: Connection, study: int) -> tuple[int, ...]:
    """Queue the running trials of a study, given by its ID, again; their attempts are lost."""
    arms = sa.select(tables.arms.c.id).where(tables.arms.c.study_id == study)
    running = (tables.trials.c.state == "running") & tables.trials.c.arm_id.in_(arms)
    query = sa.update(tables.trials).where(running).values(state="queued").returning(tables.trials.c.id)
    trials = tuple(sorted(connection.scalars(query)))
    if trials:
        _end_attempts(connection, tables.attempts.c.trial_id.in_(trials), "lost", _now())
    return trials


def insert_architecture(database: Database, connection: Connection, name: str, document: Json) -> None:
    """Store an architecture under its hash, unless that hash is there."""
    values = {"hash": name, "document": require_finite("an architecture", document)}
    connection.execute(database.insert(tables.architectures).values(**values).on_conflict_do_nothing())


def _now() -> datetime:
    return datetime.now(UTC)


def _open_arm(connection: Connection, study: str, arm: str) -> int:
    """Return the ID of an arm of a study that has not ended."""
    studies, arms = tables.studies.c, tables.arms.c
    query = sa.select(studies.state, arms.name, arms.id).join_from(tables.studies, tables.arms)
    rows = connection.execute(query.where(studies.name == study).order_by(arms.position)).all()
    if not rows:
        raise no_study(connection, study)
    known = {row.name: row.id for row in rows}
    if arm not in known:
        raise NotFound(f"there is no arm {arm!r} in study {study!r}; there are {', '.join(known)}")
    if rows[0].state in ENDED_STUDY:
        raise StateError(f"study {study!r} ended as {rows[0].state!r} and takes no more trials; reopen it first")
    return int(known[arm])


def _select_trials() -> sa.Select[Any]:
    names = (tables.studies.c.name.label("study"), tables.arms.c.name.label("arm"))
    columns = (column for column in tables.trials.c if column.name != "arm_id")
    return sa.select(*names, *columns).join_from(tables.trials, tables.arms).join(tables.studies)


def _trial_row(row: RowMapping) -> Trial:
    return Trial(**row)


def _trial_for_update(connection: Connection, trial: int) -> RowMapping:
    columns = tables.trials.c
    query = sa.select(columns.state, columns.started_at).where(columns.id == trial).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no trial {trial} in the store")
    return row


def _change_trial(connection: Connection, trial: int, **values: Any) -> None:
    connection.execute(sa.update(tables.trials).where(tables.trials.c.id == trial).values(**values))


def _end_attempts(
    connection: Connection, which: sa.ColumnElement[bool], state: str, now: datetime, *, error: str | None = None
) -> None:
    change = sa.update(tables.attempts).where(which, tables.attempts.c.state == "running")
    connection.execute(change.values(state=state, finished_at=now, error=error))


def _name_worker(connection: Connection, trial: int, worker: str) -> None:
    columns = tables.attempts.c
    # An attempt begins when the trial is dispatched; which worker gets it is known with its first report.
    unnamed = (columns.trial_id == trial) & (columns.state == "running") & (columns.worker == "")
    connection.execute(sa.update(tables.attempts).where(unnamed).values(worker=storable(worker)))


def _epoch_values(trial: int, record: Json) -> dict[str, Any]:
    if missing := {"epoch", "sample_passes", "seconds"} - set(record):
        raise ValueError(
            f"an epoch record must have epoch, sample_passes and seconds, this one lacks {', '.join(missing)}"
        )
    return {
        "trial_id": trial,
        "epoch": whole_number("epoch", record["epoch"]),
        "stage": str(record.get("stage", "train")),
        "sample_passes": whole_number("sample_passes", record["sample_passes"]),
        "seconds": non_negative("seconds", record["seconds"]),
        "metrics": replace_non_finite({key: value for key, value in record.items() if key not in _EPOCH_COLUMNS}),
    }


def _higher(column: sa.Column[Any], value: float) -> sa.Case[Any]:
    return sa.case((column < value, value), else_=column)


def _check_end(trial: int, state: str, score: float | None, reason: str | None) -> None:
    if score is not None and not math.isfinite(score):
        raise ValueError(f"the score of trial {trial} must be finite, got {score}; finish it as failed, with a reason")
    if state == "complete" and score is None:
        raise ValueError(f"a complete trial must have a score, trial {trial} has none")
    if state == "failed" and not reason:
        raise ValueError(f"a failed trial must have a reason, trial {trial} has none")


def _ended(trial: int, before: str, after: str) -> StateError:
    rule = "a terminal state is final" if before in TERMINAL else "start an attempt first"
    return StateError(f"trial {trial} is {before!r} and cannot become {after!r}: {rule}")


@functools.cache
def _select_spent() -> sa.Select[Any]:
    """Return the query for the usage of a study; cached, since building it takes longer than running it."""
    columns, arms = tables.trials.c, tables.arms.c
    passes = {state: sa.case((columns.state == state, columns.sample_passes), else_=0) for state in TERMINAL}
    return (
        sa.select(
            arms.name.label("arm"),
            columns.phase,
            sa.func.count().label("trials"),
            *counts_by_state(),
            sa.func.sum(columns.planned).label("planned"),
            sa.func.sum(columns.sample_passes).label("sample_passes"),
            sa.func.sum(passes["failed"]).label("failed_sample_passes"),
            sa.func.sum(passes["pruned"]).label("pruned_sample_passes"),
            sa.func.sum(columns.seconds).label("seconds"),
            sa.func.sum(columns.suggest_seconds).label("suggest_seconds"),
            sa.func.max(sa.case((columns.state == "complete", columns.score))).label("best"),
        )
        .join_from(tables.arms, tables.trials, columns.arm_id == arms.id)
        .where(arms.study_id == sa.bindparam("study"))
        .group_by(arms.position, arms.name, columns.phase)
        .order_by(arms.position, columns.phase.desc())  # "search" before "retrain"
    )


def _spent_row(row: RowMapping) -> SpentRow:
    # PostgreSQL sums bigint columns to numeric, which arrives as Decimal.
    whole = {key: int(value) for key, value in row.items() if key not in ("arm", "phase", "best") and value is not None}
    seconds = {key: float(row[key]) for key in ("seconds", "suggest_seconds")}
    return SpentRow(**{**row, **whole, **seconds})
