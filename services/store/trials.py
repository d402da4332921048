"""Trials, their attempts and their epochs: added, started, recorded and finished."""

import difflib
import functools
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.checked_values import (
    EPOCH_COLUMNS,
    check_end,
    epoch_values,
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

PAGE = 1000  # trials that are read at a time
_NAMES_COMPARED = 500  # for a suggestion; comparing with all names of a large store would take seconds
_DOCUMENTS = ("experiment", "params", "result")


def _select_trials(*, without: Collection[str] = ()) -> sa.Select[Any]:
    names = (tables.studies.c.name.label("study"), tables.arms.c.name.label("arm"))
    columns = (column for column in tables.trials.c if column.name not in ("arm_id", *without))
    return sa.select(*names, *columns).join_from(tables.trials, tables.arms).join(tables.studies)


def _changing(table: sa.Table, *columns: str) -> sa.Update:
    """Return an ``UPDATE`` whose new values are parameters with a ``new_`` before the name of their column."""
    return sa.update(table).values({name: sa.bindparam(f"new_{name}", type_=table.c[name].type) for name in columns})


def _higher(column: sa.Column[Any]) -> sa.Case[Any]:
    new = sa.bindparam(f"new_{column.name}", type_=column.type)
    return sa.case((column < new, new), else_=column)


# What happens at every trial and report is written once: building a statement takes longer than running it.
_OF_TRIAL, _OF_ATTEMPTS = tables.trials.c, tables.attempts.c
_THIS = _OF_TRIAL.id == sa.bindparam("trial")
_ITS_ATTEMPTS = _OF_ATTEMPTS.trial_id == sa.bindparam("trial")
_TRIAL = _select_trials().where(_THIS)
_BRIEF_TRIAL = _select_trials(without=_DOCUMENTS).where(_THIS)
_TRIAL_BY_KEY = _select_trials().where(
    _OF_TRIAL.arm_id == sa.bindparam("of_arm"),
    _OF_TRIAL.phase == sa.bindparam("of_phase"),
    _OF_TRIAL.number == sa.bindparam("of_number"),
)
_LOCK_TRIAL = sa.select(_OF_TRIAL.state, _OF_TRIAL.started_at).where(_THIS).with_for_update()
_START_TRIAL = _changing(tables.trials, "state", "started_at").where(_THIS)
_END_TRIAL = _changing(tables.trials, "state", "score", "result", "reason", "finished_at").where(_THIS)
# Epochs are reported again after a resumption from a checkpoint, with lower totals; what was spent stays spent.
_USE_MORE = (
    sa.update(tables.trials)
    .where(_THIS, _OF_TRIAL.state == "running")
    .values(sample_passes=_higher(_OF_TRIAL.sample_passes), seconds=_higher(_OF_TRIAL.seconds))
)
_ATTEMPTS_SO_FAR = sa.select(
    sa.func.max(_OF_ATTEMPTS.number), sa.func.sum(sa.case((_OF_ATTEMPTS.state == "running", 1), else_=0))
).where(_ITS_ATTEMPTS)
_INSERT_ATTEMPT = sa.insert(tables.attempts)
_END_ATTEMPTS = _changing(tables.attempts, "state", "finished_at", "error").where(
    _ITS_ATTEMPTS, _OF_ATTEMPTS.state == "running"
)
_NAME_WORKER = (
    sa.update(tables.attempts)
    .where(_ITS_ATTEMPTS, _OF_ATTEMPTS.state == "running", _OF_ATTEMPTS.worker == "")
    .values(worker=sa.bindparam("new_worker"))
)
_ARMS = (
    sa.select(tables.studies.c.state, tables.arms.c.name, tables.arms.c.id)
    .join_from(tables.studies, tables.arms)
    .where(tables.studies.c.name == sa.bindparam("study"))
    .order_by(tables.arms.c.position)
)
_STUDY_ID = sa.select(tables.studies.c.id).where(tables.studies.c.name == sa.bindparam("name"))


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
        starts: bool = False,
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
            starts: Whether its first attempt starts with it; one that is there already stays as it is.

        Raises:
            ValueError: A value is out of range.
            StateError: The study has ended.
            StudyConflict: The trial exists with another seed or experiment.
        """
        values: dict[str, Any] = {
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
            now = _now()
            new: dict[str, Any] = {
                "arm_id": arm_id,
                "state": "running" if starts else "queued",
                "sample_passes": 0,
                "seconds": 0.0,
            }
            times: dict[str, Any] = {"created_at": now, "started_at": now if starts else None}
            insertion = self._database.insert_new(tables.trials, returning=tables.trials.c.id)
            added = connection.scalars(insertion, {**values, **new, **times}).one_or_none()
            if added is None:
                same = {"of_arm": arm_id, "of_phase": phase, "of_number": number}
                row = Trial(**connection.execute(_TRIAL_BY_KEY, same).mappings().one())
            else:  # as it would be read: this happens for every trial, and reading costs as much as writing
                del new["arm_id"]
                row = Trial(study=study, arm=arm, id=added, **values, **new, **times)
            if starts and added is not None:
                first = {"trial_id": row.id, "number": 0, "state": "running", "worker": "", "started_at": now}
                connection.execute(_INSERT_ATTEMPT, first)
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
            row = connection.execute(_TRIAL, {"trial": trial}).mappings().one_or_none()
        if row is None:
            raise NotFound(f"there is no trial {trial} in the store")
        return Trial(**row)

    def trials(  # one keyword a condition
        self,
        study: str,
        *,
        arm: str | None = None,
        phase: str | None = None,
        state: str | None = None,
        after: int = -1,
        limit: int | None = None,
        experiments: bool = True,
    ) -> tuple[Trial, ...]:
        """Return the trials of a study, or those of an arm, phase or state, in the order in which they were added.

        Args:
            study: Name of the study.
            arm: Name of an arm.
            phase: ``search`` or ``retrain``.
            state: State of a trial.
            after: ID of a trial: those that were added after it.
            limit: How many at most.
            experiments: Whether to read their experiments, the largest of their documents; otherwise they are empty.
        """
        columns = tables.trials.c
        wanted = [columns.id > after]
        if arm is not None:
            wanted.append(tables.arms.c.name == arm)
        if phase is not None:
            wanted.append(columns.phase == one_of("phase", phase, PHASES))
        if state is not None:
            wanted.append(columns.state == one_of("state of a trial", state, TRIAL_STATES))
        with self._database.reading() as connection:
            wanted.append(tables.arms.c.study_id == study_id(connection, study))
            select = _select_trials(without=() if experiments else ("experiment",))
            query = select.where(*wanted)
            if limit is not None:  # chosen by ID alone: whole rows of a long study are not to be sorted for one page
                ids = sa.select(columns.id).join_from(tables.trials, tables.arms).where(*wanted)
                query = select.where(columns.id.in_(ids.order_by(columns.id).limit(limit).scalar_subquery()))
            query = query.order_by(columns.id)
            return tuple(Trial(**row) for row in connection.execute(query).mappings())

    def brief_trials(self, study: str, *, after: int = -1, among: Collection[int] = ()) -> tuple[Trial, ...]:
        """Return trials without their documents: experiment, parameters and result; in the order of their IDs.

        Args:
            study: Name of the study.
            after: ID of a trial: those that were added after it.
            among: IDs of further ones.
        """
        columns = tables.trials.c
        query = _select_trials(without=_DOCUMENTS).where(columns.id.in_(among) | (columns.id > after))
        with self._database.reading() as connection:
            query = query.where(tables.arms.c.study_id == study_id(connection, study)).order_by(columns.id)
            return tuple(Trial(**row) for row in connection.execute(query).mappings())

    def each_trial(self, study: str, *, experiments: bool = True) -> Iterator[Trial]:
        """Yield the trials of a study in the order in which they were added, without having them all in memory."""
        after = -1
        while page := self.trials(study, after=after, limit=PAGE, experiments=experiments):
            yield from page
            after = page[-1].id

    def start_attempt(self, trial: int, *, worker: str = "") -> AttemptRow:
        """Start an attempt at a trial, which sets it running; an earlier attempt that still ran is lost.

        Args:
            trial: ID of the trial.
            worker: Process that runs it; may be empty until `record_epochs` knows it.

        Raises:
            StateError: The trial has ended.
        """
        now = _now()
        with self._database.writing() as connection:
            row = _trial_for_update(connection, trial)
            if row["state"] in TERMINAL:
                raise _ended(trial, row["state"], "running")
            # The lock on the trial makes this safe: two attempts cannot get the same number.
            last, running = connection.execute(_ATTEMPTS_SO_FAR, {"trial": trial}).one()
            if running:
                connection.execute(_END_ATTEMPTS, _attempts_end(trial, "lost", now))
            attempt = AttemptRow(trial, 0 if last is None else last + 1, "running", storable(worker), now, None, None)
            values = {"trial_id": trial, "number": attempt.number, "state": attempt.state, "worker": attempt.worker}
            connection.execute(_INSERT_ATTEMPT, {**values, "started_at": now})
            started = row["started_at"] or now  # of the first attempt
            connection.execute(_START_TRIAL, {"trial": trial, "new_state": "running", "new_started_at": started})
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
        rows = [epoch_values(trial, record) for record in records]
        if not rows:
            return
        used = {f"new_{name}": max(row[name] for row in rows) for name in ("sample_passes", "seconds")}
        with self._database.writing() as connection:
            # The condition on the state is part of the update: one statement for what happens at every epoch.
            if connection.execute(_USE_MORE, {"trial": trial, **used}).rowcount == 0:
                state = _trial_for_update(connection, trial)["state"]
                raise StateError(f"trial {trial} is {state!r}: epochs can be recorded only while it is 'running'")
            connection.execute(self._database.insert_new(tables.epochs), rows)
            if worker:  # an attempt begins when the trial is dispatched; which worker gets it is known from now on
                connection.execute(_NAME_WORKER, {"trial": trial, "new_worker": storable(worker)})

    def epochs(self, trial: int, *, after: int = -1) -> tuple[EpochRow, ...]:
        """Return the epochs of a trial in order, all or those after a given one."""
        columns = tables.epochs.c
        query = sa.select(*(columns[name] for name in EPOCH_COLUMNS), columns.metrics)
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
        known: Trial | None = None,
    ) -> Trial:
        """Set the terminal state of a trial and its attempt, unless it is in that state already; return the trial.

        Args:
            trial: ID of the trial.
            state: ``complete``, ``failed`` or ``pruned``.
            score: Validation accuracy in [0, 1]; required if complete.
            result: Metrics and other results; its ``architecture`` is also stored under its ``architecture_hash``.
            reason: Why it failed or was pruned; required if failed.
            known: The trial as it was read before: its experiment and parameters are not read again.

        Raises:
            ValueError: A complete trial without a finite score, or a failed one without a reason.
            StateError: It has another terminal state, or cannot be complete because it has not been started.
        """
        check_end(trial, one_of("terminal state", state, sorted(TERMINAL)), score, reason)
        now, text = _now(), storable(reason) if reason else None
        with self._database.writing() as connection:
            before = _trial_for_update(connection, trial)["state"]
            if before != state:  # else reported twice, as after a connection that broke at the end of the transaction
                if before in TERMINAL or (before == "queued" and state == "complete"):
                    raise _ended(trial, before, state)
                document = replace_non_finite(result) if result is not None else None
                if document and document.get("architecture") and document.get("architecture_hash"):
                    insert_architecture(
                        self._database, connection, document["architecture_hash"], document["architecture"]
                    )
                end = {"state": state, "score": score, "result": document, "reason": text, "finished_at": now}
                connection.execute(_END_TRIAL, {"trial": trial, **{f"new_{key}": end[key] for key in end}})
                ended = "failed" if state == "failed" else "complete"  # a pruned trial is a complete attempt
                connection.execute(_END_ATTEMPTS, _attempts_end(trial, ended, now, error=text))
                if known is not None:
                    brief = connection.execute(_BRIEF_TRIAL, {"trial": trial}).mappings().one()
                    return Trial(**brief, experiment=known.experiment, params=known.params, result=document)
            return Trial(**connection.execute(_TRIAL, {"trial": trial}).mappings().one())

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
    study: int | None = connection.scalars(_STUDY_ID, {"name": name}).one_or_none()
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
        now = _now()
        connection.execute(_END_ATTEMPTS, [_attempts_end(trial, "lost", now) for trial in trials])
    return trials


def insert_architecture(database: Database, connection: Connection, name: str, document: Json) -> None:
    """Store an architecture under its hash, unless that hash is there."""
    values = {"hash": name, "document": require_finite("an architecture", document)}
    connection.execute(database.insert_new(tables.architectures), values)


def _now() -> datetime:
    return datetime.now(UTC)


def _open_arm(connection: Connection, study: str, arm: str) -> int:
    """Return the ID of an arm of a study that has not ended."""
    rows = connection.execute(_ARMS, {"study": study}).all()
    if not rows:
        raise no_study(connection, study)
    known = {row.name: row.id for row in rows}
    if arm not in known:
        raise NotFound(f"there is no arm {arm!r} in study {study!r}; there are {', '.join(known)}")
    if rows[0].state in ENDED_STUDY:
        raise StateError(f"study {study!r} ended as {rows[0].state!r} and takes no more trials; reopen it first")
    return int(known[arm])


def _trial_for_update(connection: Connection, trial: int) -> RowMapping:
    row = connection.execute(_LOCK_TRIAL, {"trial": trial}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no trial {trial} in the store")
    return row


def _attempts_end(trial: int, state: str, now: datetime, *, error: str | None = None) -> dict[str, Any]:
    """Return the parameters of `_END_ATTEMPTS`."""
    return {"trial": trial, "new_state": state, "new_finished_at": now, "new_error": error}


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
