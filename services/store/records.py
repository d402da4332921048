"""Rows as the store returns them: frozen snapshots of the time when they were read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

PHASES = ("search", "retrain")
STUDY_STATES = ("created", "running", "complete", "failed", "cancelled")
TRIAL_STATES = ("queued", "running", "complete", "failed", "pruned")
ATTEMPT_STATES = ("running", "complete", "failed", "lost")
QUEUE_STATES = ("queued", "running", "cancelling", "complete", "failed", "cancelled")
SCOPES = ("read", "write", "admin")
ENDED_STUDY = frozenset({"complete", "failed", "cancelled"})
OPEN_QUEUE = frozenset({"queued", "running", "cancelling"})
COMMAND_LINE = ""  # stands for the owner of a study that was run without the service: nobody can have this name
INTERRUPTED = "interrupted"  # state of such a study whose driver has ended or lost contact before the end
# A driver sends a heartbeat every few seconds; after this long without one its claim on the study has expired.
STALE_SECONDS = 30.0

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study.

    Args:
        id: ID in the store.
        name: Its name, unique in the store.
        state: ``created``, ``running``, ``complete``, ``failed`` or ``cancelled``.
        config: The resolved study.
        config_hash: Hash of all settings that affect results, see `Study.hash`.
        arms: Names of the arms, in the order of the study.
        error: Why it failed, or None.
        owner: Driver that runs it, as named by `this_process`, or None.
        heartbeat_age: Seconds between that driver's last heartbeat and the reading of the row; None without a driver.
        created_at: When it was added to the store.
        started_at: When a driver first claimed it, or None.
        finished_at: When it ended, or None.
        uuid: What identifies it outside the store: its name and ID may occur in another store as well.
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
    uuid: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether its driver died or lost contact before the end; `run` resumes such a study."""
        return is_interrupted(self.state, self.heartbeat_age)


@dataclass(frozen=True, slots=True)
class StudySummary:
    """A study in a list: `StudyRow` with the number of trials in each state instead of its documents."""

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
        """Whether its driver died or lost contact before the end; `run` resumes such a study."""
        return is_interrupted(self.state, self.heartbeat_age)


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event in the life of a study.

    Args:
        at: When it happened.
        kind: ``created``, ``claimed``, ``released``, ``finished`` or ``reopened``.
        detail: Depends on the kind: owner, state, reason, hashes of files, or the study as it was before an extension.
    """

    at: datetime
    kind: str
    detail: Json


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt at running a trial: ``running``, ``complete``, ``failed``, or ``lost`` with its worker."""

    trial: int
    number: int
    state: str
    worker: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class EpochRow:
    """The record of an epoch.

    Args:
        epoch: Index in the trial, from 0.
        stage: Stage of the experiment: ``train``, ``learn`` or ``finetune``.
        sample_passes: Training images processed so far.
        seconds: Training time so far.
        metrics: Everything else that was recorded. Numbers that were not finite are None, and are listed under
            ``non_finite``.
    """

    epoch: int
    stage: str
    sample_passes: int
    seconds: float
    metrics: Json


@dataclass(frozen=True, slots=True)
class ExportRow:
    """An exported model: its folder, SHA-256 of each file by name, and whether its outputs were verified."""

    id: int
    trial: int
    arm: str
    path: str
    hashes: Mapping[str, str]
    verified: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ProjectionRow:
    """How much of a trial, or, if `trial` is None, of a study has been sent to another system.

    Args:
        trial: ID of the trial, or None.
        target: The other system, such as ``mlflow``.
        external_id: ID in that system.
        synced_epoch: Last epoch that was sent, -1 for none.
        done: Whether everything has been sent.
    """

    trial: int | None
    target: str
    external_id: str
    synced_epoch: int
    done: bool


@dataclass(frozen=True, slots=True)
class SpentRow:
    """Trials of an arm in a phase, by state, and what they have used.

    Args:
        arm: Name of the arm.
        phase: ``search`` or ``retrain``.
        trials: Number of trials.
        queued: Number of these that wait.
        running: Number that run.
        complete: Number that succeeded.
        failed: Number that failed.
        pruned: Number that were stopped early.
        planned: Sample passes planned for all trials.
        sample_passes: Sample passes used by all trials.
        failed_sample_passes: Sample passes used by failed trials.
        pruned_sample_passes: Sample passes used by pruned trials.
        seconds: Training time of all trials.
        suggest_seconds: Time that the search took to suggest them.
        best: Highest score of a complete trial, or None.
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
class QueueSummary:
    """A study in the queue of the service, as it appears in a list.

    Args:
        id: ID in the queue; later submissions have higher IDs.
        study: Name of the study.
        owner: Who submitted it; `COMMAND_LINE` for a study that was run without the service.
        state: ``queued``, ``running``, ``cancelling``, ``complete``, ``failed`` or ``cancelled``; without the service
            also ``interrupted``.
        config_hash: Hash of all settings that affect results, see `Study.hash`.
        worker: Worker that holds the lease, or None.
        lease_until: When the lease expires unless it is renewed; None without a worker.
        job: Last Ray job submitted for it, or None if there was none since it was last queued.
        attempt: Number of that job among all jobs of the study, from 0; without a job the number of the next one.
        first_attempt: Number of the first job since it was last queued; restarts are counted from there.
        message: One sentence for the owner; may be empty.
        created_at: When it was submitted.
        updated_at: When its state, job or documents last changed.
        priority: Among the waiting studies of its owner, those with a higher one are first.
        queued_at: When it was queued again, by resuming or extending it; None if it never was.
        set_aside_at: Since when no node of the cluster has had room for one of its trials; None if there is one.
        position: Its place among all waiting studies, from 1; None if it is not in line, or not known yet.
        expected_at: When it is expected to start; None if that is not known.
        width: Trials that it may run at once, which the worker has given it; None while it waits.
        started_at: When it was started, for the last time; None while it waits.
        yields: Why it has to make room for others, after which it waits again; None if it goes on.
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
    priority: int = field(default=0, kw_only=True)
    queued_at: datetime | None = field(default=None, kw_only=True)
    set_aside_at: datetime | None = field(default=None, kw_only=True)
    position: int | None = field(default=None, kw_only=True)
    expected_at: datetime | None = field(default=None, kw_only=True)
    width: int | None = field(default=None, kw_only=True)
    started_at: datetime | None = field(default=None, kw_only=True)
    yields: str | None = field(default=None, kw_only=True)

    @property
    def submitted(self) -> bool:
        """Whether it was submitted to the service, and not run on the command line."""
        return self.owner != COMMAND_LINE

    @property
    def waiting_since(self) -> datetime:
        """When it was queued, for the last time."""
        return self.queued_at or self.created_at

    @property
    def ended(self) -> bool:
        """Whether it is in a terminal state, which only resuming or extending it leaves."""
        return self.state not in OPEN_QUEUE


@dataclass(frozen=True, slots=True)
class QueueRow(QueueSummary):
    """A study in the queue of the service, with its documents.

    Args:
        document: The resolved study.
        source: The study as it was submitted, before defaults were filled in, or None.
        new: Whether the call that returned the row created it.
    """

    document: Json = field(repr=False)
    source: Json | None = field(default=None, repr=False)
    new: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is said of a study that waits.

    Args:
        position: Its place among all waiting studies, from 1; None if it is set aside.
        message: Why it waits, in one sentence for the owner.
        expected_at: When it is expected to start; None if that is not known.
        set_aside_at: Since when no node has had room for one of its trials; None if there is one.
    """

    position: int | None
    message: str
    expected_at: datetime | None = None
    set_aside_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """The status of a study in the queue.

    Args:
        row: The study in the queue.
        spent: Usage of its arms; empty until a driver has started it.
        events: Its events; empty until a driver has started it.
    """

    row: QueueRow
    spent: tuple[SpentRow, ...]
    events: tuple[EventRow, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """An API token; does not contain the secret.

    Args:
        id: ID in the store.
        name: Its purpose, in the owner's words.
        owner: Owner of the studies it gives access to.
        scope: ``read``; ``write`` to submit, change and delete studies as well; ``admin`` to do so with all studies.
        created_at: When it was created.
        expires_at: When it expires, or None.
        revoked_at: When it was revoked, or None.
    """

    id: int
    name: str
    owner: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is to an identity provider. Names and addresses may change and pass to others; this may not.

    Args:
        issuer: The provider, by the URL that it signs with.
        subject: What it knows the person by.
    """

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class PersonRow:
    """Somebody who may sign in with an identity provider.

    Args:
        identity: Who it is to the provider.
        owner: Owner of the studies it gives access to.
        token: ID of the token without a secret with which the sessions are opened.
        scope: Scope of the last sign-in.
        created_at: When the person was added, or signed in for the first time.
        signed_in_at: When the person signed in last, or None.
        disabled_at: Since when the person may not sign in, or None.
    """

    identity: Identity
    owner: str
    token: int
    scope: str
    created_at: datetime
    signed_in_at: datetime | None
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeletedRow:
    """A deleted study that can still be restored.

    Args:
        study: Name of the study.
        owner: Who submitted it; None for one that was run without the service.
        deleted_by: Who deleted it.
        deleted_at: When.
        purge_at: When its grace time is over.
    """

    study: str
    owner: str | None
    deleted_by: str
    deleted_at: datetime
    purge_at: datetime


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something.

    Args:
        name: An owner, or an operator of the command line.
        token: ID of the token, 0 for the secret of the service; None on the command line.
    """

    name: str
    token: int | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the audit log.

    Args:
        id: ID in the store; later rows have higher ones.
        at: When it was done.
        actor: Who did it: an owner, or an operator of the command line.
        token: ID of the token, 0 for the secret of the service; None on the command line.
        action: What was done, such as ``submit``.
        subject: The study, token or team concerned; may be empty.
        detail: What else is to be known.
    """

    id: int
    at: datetime
    actor: str
    token: int | None
    action: str
    subject: str
    detail: Json


def is_interrupted(state: str, heartbeat_age: float | None) -> bool:
    """Whether the driver of a study died or lost contact before the end.

    Args:
        state: Of the study.
        heartbeat_age: Seconds since the last heartbeat of its driver; None without a driver.
    """
    # Without a heartbeat there is no driver: a claim is released with it, while the study keeps its state.
    return state == "running" and (heartbeat_age is None or heartbeat_age > STALE_SECONDS)
