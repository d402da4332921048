"""What is done with a study, as a table: what queue, cluster and store know, and the action that follows."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.cluster.jobs import Job
from services.dispatch import MOST_RESTARTS, Requeue, Settle, Stop, Submit, Wait, decide
from services.dispatch.decision import MAX_CHARACTERS, sentence
from services.store import QueueRow, StudyRow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROW = QueueRow(
    id=1,
    study="s",
    owner="me",
    state="running",
    config_hash="cafe",
    worker="w",
    lease_until=NOW,
    job=None,
    attempt=0,
    first_attempt=0,
    message="",
    created_at=NOW,
    updated_at=NOW,
    document={},
)
GIVEN = replace(ROW, job="j")
CANCELLING = replace(GIVEN, state="cancelling")
YIELDING = replace(GIVEN, yields="for others")
STUDY = StudyRow(
    id=1,
    name="s",
    state="running",
    config={},
    config_hash="cafe",
    arms=("a",),
    error=None,
    owner=None,
    heartbeat_age=None,
    created_at=NOW,
    started_at=NOW,
    finished_at=None,
)
DRIVEN = replace(STUDY, owner="driver", heartbeat_age=3.0)
SILENT = replace(STUDY, owner="driver", heartbeat_age=300.0)
COMPLETE = replace(STUDY, state="complete")
SMALLER = replace(COMPLETE, config_hash="beef")  # it was complete before it was extended
RUNNING, STOPPED, DONE = Job("j", "running"), Job("j", "stopped"), Job("j", "succeeded", exit_code=0)
REFUSED = Job("j", "failed", "Job failed\nerror: study s: budget must be larger\n", exit_code=2)
AGAIN = "the Ray cluster was restarted and no longer knew its job"
ELSEWHERE = Settle(
    "failed",
    "its job ended without an error, but the study is not complete in the store of the service: the job has written to "
    "another one; start Ray with the NAS_BLOCKOUT_ variables of the service, then resume the study",
)
LATE = replace(GIVEN, attempt=MOST_RESTARTS + 3, first_attempt=3)


def is_same(row: QueueRow, study: StudyRow | None) -> bool:
    return study is not None and study.config_hash == row.config_hash


def failed(code: int | None, message: str = "") -> Job:
    return Job("j", "failed", message, exit_code=code)


TABLE = {
    "a new study is submitted": (ROW, None, None, Submit(0)),
    "one that is resumed goes on counting": (replace(ROW, attempt=4, first_attempt=4), None, STUDY, Submit(4)),
    "a living job is left alone": (GIVEN, RUNNING, DRIVEN, Wait()),
    "a waiting job is left alone": (GIVEN, Job("j", "pending"), None, Wait()),
    "a job that ends after its study is complete is left alone": (GIVEN, RUNNING, COMPLETE, Wait()),
    "a job that ended well has completed": (GIVEN, DONE, COMPLETE, Settle("complete")),
    "a job that ended well has written elsewhere if the store has no such study": (GIVEN, DONE, None, ELSEWHERE),
    "a job that ended well has written elsewhere if the study goes on here": (GIVEN, DONE, STUDY, ELSEWHERE),
    "a job that ended well has written elsewhere if only an earlier version is complete": (
        GIVEN,
        DONE,
        SMALLER,
        ELSEWHERE,
    ),
    "so has one of which trials failed": (GIVEN, failed(4), None, ELSEWHERE),
    "failed trials are told": (
        GIVEN,
        failed(4),
        COMPLETE,
        Settle("complete", "some of its trials failed; `nas-blockout show s --failed` says why"),
    ),
    "an extended study is not complete by what it was": (GIVEN, None, SMALLER, Submit(1, AGAIN)),
    "a head that is restarted": (GIVEN, None, STUDY, Submit(1, AGAIN)),
    "a head that is restarted while the driver still lives": (GIVEN, None, DRIVEN, Wait()),
    "a head that is restarted and a driver that is silent": (GIVEN, None, SILENT, Submit(1, AGAIN)),
    "a head that is restarted after the study was complete": (GIVEN, None, COMPLETE, Settle("complete")),
    "a study that somebody else drives is waited for": (ROW, None, DRIVEN, Wait()),
    "a job that failed because somebody else drives is waited with": (GIVEN, failed(1), DRIVEN, Wait()),
    "a driver that was killed": (GIVEN, failed(-9), STUDY, Submit(1, "its driver was ended by signal 9")),
    "a shell's word for it": (GIVEN, failed(143), STUDY, Submit(1, "its driver was ended by signal 15")),
    "a service that was away": (
        GIVEN,
        failed(5, "error: the store cannot be reached"),
        STUDY,
        Submit(1, "the store cannot be reached"),
    ),
    "a node that died": (GIVEN, failed(None, "its node died"), STUDY, Submit(1, "its node died")),
    "what was restarted too often fails": (
        LATE,
        None,
        STUDY,
        Settle("failed", f"given up after {MOST_RESTARTS + 1} attempts: {AGAIN}; `resume` tries again"),
    ),
    "what is refused fails with its reason": (
        GIVEN,
        REFUSED,
        None,
        Settle("failed", "study s: budget must be larger"),
    ),
    "what fails without a word": (
        GIVEN,
        failed(3),
        STUDY,
        Settle("failed", "its job did not find what it needs, with exit code 3"),
    ),
    "what ends badly after it was complete": (
        GIVEN,
        failed(-9),
        COMPLETE,
        Settle("complete", "its job ended badly after the study was complete"),
    ),
    "what somebody stops on the cluster": (
        GIVEN,
        STOPPED,
        STUDY,
        Settle("cancelled", "its Ray job was stopped from outside; `resume` continues it"),
    ),
    "a living job is stopped if others need its room": (YIELDING, RUNNING, DRIVEN, Stop("j")),
    "it waits again when its job is gone": (YIELDING, STOPPED, STUDY, Requeue("for others")),
    "not before its driver is gone": (YIELDING, STOPPED, DRIVEN, Wait()),
    "it waits again when the cluster forgot": (YIELDING, None, SILENT, Requeue("for others")),
    "it waits again however its job ended": (YIELDING, failed(143), STUDY, Requeue("for others")),
    "one that was never submitted waits again": (replace(YIELDING, job=None), None, None, Requeue("for others")),
    "one that makes room too late is complete": (YIELDING, DONE, COMPLETE, Settle("complete")),
    "one that is complete is not stopped": (YIELDING, RUNNING, COMPLETE, Wait()),
    "one that is cancelled while it makes room is cancelled": (
        replace(YIELDING, state="cancelling"),
        STOPPED,
        STUDY,
        Settle("cancelled", "cancelled on request; `resume` continues it"),
    ),
    "a living job is stopped if asked": (CANCELLING, RUNNING, DRIVEN, Stop("j")),
    "one that has just finished is not": (CANCELLING, RUNNING, COMPLETE, Wait()),
    "cancelled when the job is gone": (
        CANCELLING,
        STOPPED,
        STUDY,
        Settle("cancelled", "cancelled on request; `resume` continues it"),
    ),
    "not before the driver is gone": (CANCELLING, STOPPED, DRIVEN, Wait()),
    "cancelled too late": (
        CANCELLING,
        STOPPED,
        COMPLETE,
        Settle("complete", "it had finished before it could be cancelled"),
    ),
    "cancelled, and the cluster forgot": (
        CANCELLING,
        None,
        SILENT,
        Settle("cancelled", "cancelled on request; `resume` continues it"),
    ),
    "cancelled before it was submitted": (
        replace(ROW, state="cancelling"),
        None,
        None,
        Settle("cancelled", "cancelled on request; `resume` continues it"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "job", "study", "action"), TABLE.values(), ids=TABLE)
def test_the_action_follows_from_what_is_known(row, job, study, action) -> None:
    assert decide(row, job, study, same=is_same(row, study)) == action


def test_a_study_that_was_extended_without_the_service_is_complete_as_a_whole() -> None:
    assert decide(GIVEN, DONE, SMALLER, same=True) == Settle("complete")


@pytest.mark.parametrize("state", ["running", "cancelling"])
@pytest.mark.parametrize("job", [None, *(Job("j", state) for state in ("pending", "running"))])
@pytest.mark.parametrize("study", [None, STUDY, DRIVEN, SILENT, COMPLETE, SMALLER])
@pytest.mark.parametrize("given", [None, "j"])
def test_nothing_ends_while_a_job_lives_and_nothing_is_submitted_twice(state, job, study, given) -> None:
    action = decide(replace(ROW, state=state, job=given), job, study, same=is_same(ROW, study))
    if job is not None:
        assert isinstance(action, Wait | Stop)
    if state == "cancelling":
        assert not isinstance(action, Submit)
    if isinstance(action, Submit):
        assert action.attempt == (0 if given is None else 1)


def test_the_reason_is_one_sentence_of_bounded_length() -> None:
    log = "Job entrypoint command failed\nwarning: x\nerror: first\nerror:   the   second\nand more"
    assert sentence(log) == "the second"
    assert sentence("no error in it\nat all") == "no error in it"
    assert sentence("\n") == ""
    assert len(sentence("error: " + "x" * 10_000)) == MAX_CHARACTERS
