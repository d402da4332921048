"""Decides what to do with a leased study, from its state in queue, cluster and store; a function without effects."""

from dataclasses import dataclass

from services.cluster.jobs import Job
from services.store import QueueRow, StudyRow
from services.store.records import STALE_SECONDS

MOST_RESTARTS = 5
MAX_CHARACTERS = 500
SOME_FAILED, UNREACHABLE = 4, 5  # exit codes of the command line, like those of `_MEANING`
_FIRST_SIGNAL = 128  # a shell's code for an end by signal 0
_MEANING = {1: "failed", 2: "was refused", 3: "did not find what it needs", 6: "could not verify its models"}
_NOT_IN_THE_STORE = (
    "its job ended without an error, but the study is not complete in the store of the service: the job has written to "
    "another one; start Ray with the NAS_BLOCKOUT_ variables of the service, then resume the study"
)


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit the study as a Ray job.

    Args:
        attempt: Number of the attempt, from 0.
        reason: Why it is submitted again; empty for the first attempt.
    """

    attempt: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the cluster to stop a job, and check again later."""

    job: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for now."""


@dataclass(frozen=True, slots=True)
class Settle:
    """End the study in the queue.

    Args:
        state: ``complete``, ``failed`` or ``cancelled``.
        message: One sentence for the owner; may be empty.
    """

    state: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Let the study wait again, since it has made room for others.

    Args:
        message: One sentence for the owner.
    """

    message: str


Action = Submit | Stop | Wait | Settle | Requeue


def decide(row: QueueRow, job: Job | None, study: StudyRow | None, *, same: bool = False) -> Action:
    """Return what to do with a study that this worker has leased.

    A job that is alive is left alone, or stopped if cancellation was requested or others need its room. Without one, a
    study that is complete in the store has ended, however its job did; one with a driver that sends heartbeats is
    waited for; for any other, the end of its last job decides. Only the store makes a study complete: an exit code says
    nothing of where the results are.

    Args:
        row: The study in the queue.
        job: Its last job, or None if there was none or the cluster does not know it.
        study: The study in the store, or None if no driver has started it.
        same: Whether the study in the store is the one in the queue, or has all of it; else it is an earlier version.
    """
    # A study that was complete before it was extended is not complete as it is queued.
    complete = study is not None and study.state == "complete" and same
    if job is not None and job.living:
        return Stop(job.id) if (row.state == "cancelling" or row.yields is not None) and not complete else Wait()
    if complete and (job is None or row.state == "cancelling"):
        return Settle("complete", "it had finished before it could be cancelled" if row.state == "cancelling" else "")
    # A driver may outlive its job, and the cluster that knew it; a second one could not claim the study.
    if study is not None and is_driven(study):
        return Wait()
    if row.state == "cancelling":
        return Settle("cancelled", "cancelled on request; `resume` continues it")
    if row.yields is not None and not complete:
        return Requeue(row.yields)
    if row.job is None:
        return Submit(row.attempt)
    if job is None:
        return _restart(row, "the Ray cluster was restarted and no longer knew its job")
    return _after_job(row, job, complete=complete)


def is_driven(study: StudyRow) -> bool:
    """Whether a driver runs a study: it has claimed the study and sent a heartbeat recently."""
    age = study.heartbeat_age
    return study.owner is not None and age is not None and age <= STALE_SECONDS


def sentence(message: str) -> str:
    """Return the last error that a job's message quotes from its log, or else the first line of the message."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = errors[-1] if errors else (lines or [""])[0]
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


def _after_job(row: QueueRow, job: Job, *, complete: bool) -> Action:
    """Return what to do after a job has ended."""
    succeeded = job.state == "succeeded" or job.exit_code == 0
    if (succeeded or job.exit_code == SOME_FAILED) and not complete:
        return Settle("failed", _NOT_IN_THE_STORE)
    if succeeded:
        return Settle("complete")
    if job.exit_code == SOME_FAILED:
        return Settle("complete", f"some of its trials failed; `nas-blockout show {row.study} --failed` says why")
    if complete:
        return Settle("complete", "its job ended badly after the study was complete")
    if job.state == "stopped":
        return Settle("cancelled", "its Ray job was stopped from outside; `resume` continues it")
    if (reason := _transient_reason(job)) is not None:
        return _restart(row, reason)
    meaning = _MEANING.get(job.exit_code or 0, "ended badly")
    return Settle("failed", sentence(job.message) or f"its job {meaning}, with exit code {job.exit_code}")


def _transient_reason(job: Job) -> str | None:
    """Return why a job ended if a restart may help, else None."""
    code = job.exit_code
    if code is None:  # Ray itself, a node or the network failed, not the driver
        return sentence(job.message) or "its job ended without an exit code"
    if code == UNREACHABLE:
        return sentence(job.message) or "a service could not be reached"
    if code < 0 or code > _FIRST_SIGNAL:
        return f"its driver was ended by signal {-code if code < 0 else code - _FIRST_SIGNAL}"
    return None


def _restart(row: QueueRow, reason: str) -> Action:
    restarts = row.attempt - row.first_attempt  # since it was last queued: `resume` grants new ones
    if restarts >= MOST_RESTARTS:
        return Settle("failed", f"given up after {restarts + 1} attempts: {reason}; `resume` tries again")
    return Submit(row.attempt + 1, reason)
