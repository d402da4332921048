"""What the store hands out: frozen rows, which stay as they were when they were read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

PHASES = ("search", "retrain")
STUDY_STATES = ("created", "running", "complete", "failed", "cancelled")
TRIAL_STATES = ("queued", "running", "complete", "failed", "pruned")
ATTEMPT_STATES = ("running", "complete", "failed", "lost")
QUEUE_STATES = ("queued", "running", "cancelling", "complete", "failed", "cancelled")
SCOPES = ("read", "write")
ENDED_STUDY = frozenset({"complete", "failed", "cancelled"})
OPEN_QUEUE = frozenset({"queued", "running", "cancelling"})
STALE_SECONDS = 30.0

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study.

    Args:
        id: Identity in the store.
        name: Its name, unique.
        state: ``created``, ``running``, ``complete``, ``failed`` or ``cancelled``.
        config: The resolved study.
        config_hash: Name of everything in it that decides the results.
        arms: Names of the contestants, in the order of the study.
        error: Why it failed, or None.
        owner: The driver that runs it, or None.
        heartbeat_age: Seconds since that driver last said that it lives, when the row was read; None without a driver.
        created_at: When it was put into the store.
        started_at: When a driver first took it.
        finished_at: When it ended.
    """

    id: int
    name: str
    state: str
    config: Json
    config_hash: str
    arms: tuple[str, ...]
    error: str | None
    owner: str | None
    heartbeat_age: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def interrupted(self) -> bool:
        """Whether its driver went away before the end, so that `run` would go on with it."""
        return _interrupted(self.state, self.heartbeat_age)


@dataclass(frozen=True, slots=True)
class StudyLine:
    """A study as a line of a list: like `StudyRow`, with the number of its trials in each state for its contents."""

    id: int
    name: str
    state: str
    error: str | None
    owner: str | None
    heartbeat_age: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    trials: Mapping[str, int]
    sample_passes: int

    @property
    def interrupted(self) -> bool:
        """Whether its driver went away before the end, so that `run` would go on with it."""
        return _interrupted(self.state, self.heartbeat_age)


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened to a study as a whole.

    Args:
        at: When.
        kind: ``created``, ``claimed``, ``released``, ``finished`` or ``reopened``.
        detail: What else is known: the owner, the state, the reason, the study before it was extended.
    """

    at: datetime
    kind: str
    detail: Json


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try at running a trial: its state is ``running``, ``complete``, ``failed`` or ``lost``."""

    trial: int
    number: int
    state: str
    worker: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class EpochRow:
    """What an epoch did.

    Args:
        epoch: Its number in the trial, from 0.
        stage: Part of the experiment that it belongs to: ``train``, ``learn`` or ``finetune``.
        sample_passes: Images trained on so far.
        seconds: Measured seconds so far.
        metrics: All else that was recorded. What was not a finite number is None, and is named under ``non_finite``.
    """

    epoch: int
    stage: str
    sample_passes: int
    seconds: float
    metrics: Json


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A model that was handed over: where it lies, the hashes of its files by name, and whether it was verified."""

    id: int
    trial: int
    arm: str
    path: str
    hashes: Mapping[str, str]
    verified: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ProjectionRow:
    """How far the world outside has been told of a trial, or, where `trial` is None, of the study.

    Args:
        trial: Identity of the trial, or None.
        target: Who was told, such as ``mlflow``.
        external_id: What it is called there.
        synced_epoch: Last epoch that was told, -1 for none.
        done: Whether there is nothing left to tell.
    """

    trial: int | None
    target: str
    external_id: str
    synced_epoch: int
    done: bool


@dataclass(frozen=True, slots=True)
class SpentRow:
    """What an arm has spent in a phase, and where its trials stand.

    Args:
        arm: Name of the contestant.
        phase: ``search`` or ``retrain``.
        trials: Number of trials, of which
        queued: wait,
        running: run,
        complete: ended well,
        failed: failed,
        pruned: were stopped early.
        planned: Sample passes that all of them are meant to cost.
        sample_passes: Sample passes that all of them have cost, of which
        failed_sample_passes: by failed ones,
        pruned_sample_passes: by pruned ones.
        seconds: Measured seconds of all of them.
        suggest_seconds: What proposing them took.
        best: Highest score of a complete one, or None.
    """

    arm: str
    phase: str
    trials: int
    queued: int
    running: int
    complete: int
    failed: int
    pruned: int
    planned: int
    sample_passes: int
    failed_sample_passes: int
    pruned_sample_passes: int
    seconds: float
    suggest_seconds: float
    best: float | None


@dataclass(frozen=True, slots=True)
class QueueLine:
    """A study that somebody gave to the service, as a line of a list.

    Args:
        id: Identity in the queue; a later one is higher.
        study: Name of the study.
        owner: Who gave it to the service.
        state: ``queued``, ``running``, ``cancelling``, ``complete``, ``failed`` or ``cancelled``.
        config_hash: Name of everything in it that decides the results.
        worker: The worker that sees it through, or None.
        lease_until: When that worker's right to it ends, unless it is renewed; None without a worker.
        job: Last job that was submitted for it, or None if there was none since it was last queued.
        attempt: Number of that job among all of the study, from 0; without a job that of the next one.
        first_attempt: The attempt with which the study was begun when it was last queued.
        message: One sentence for its owner, perhaps empty.
        created_at: When it was given to the service.
        updated_at: When its state, its job or its contents last changed.
    """

    id: int
    study: str
    owner: str
    state: str
    config_hash: str
    worker: str | None
    lease_until: datetime | None
    job: str | None
    attempt: int
    first_attempt: int
    message: str
    created_at: datetime
    updated_at: datetime

    @property
    def ended(self) -> bool:
        """Whether nothing more is done with it, unless it is resumed or extended."""
        return self.state not in OPEN_QUEUE


@dataclass(frozen=True, slots=True)
class QueueRow(QueueLine):
    """A study that somebody gave to the service, with its contents.

    Args:
        document: The resolved study.
        source: The study as it was written, or None.
        new: Whether the call that returned the row has made it.
    """

    document: Json = field(repr=False)
    source: Json | None = field(default=None, repr=False)
    new: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """Where a study that somebody gave to the service stands.

    Args:
        row: The study in the queue.
        spent: What its arms have spent; nothing before a driver has begun it.
        events: What has happened to it as a whole.
    """

    row: QueueRow
    spent: tuple[SpentRow, ...]
    events: tuple[EventRow, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token of the service; nothing in it tells the secret.

    Args:
        id: Identity in the store.
        name: What it is for, in its owner's words.
        owner: Whose studies it gives access to.
        scope: ``read``, or ``write`` to give, cancel, resume and extend studies as well.
        created_at: When it was made.
        expires_at: When it ends, or None.
        revoked_at: When it was revoked, or None.
    """

    id: int
    name: str
    owner: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def _interrupted(state: str, heartbeat_age: float | None) -> bool:
    return state == "running" and (heartbeat_age is None or heartbeat_age > STALE_SECONDS)
