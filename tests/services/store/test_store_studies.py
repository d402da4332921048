"""Studies as a whole, on every database: made once, claimed by one, ended once."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from services.store import NotFound, StateError, Store, StudyBusy, StudyConflict, this_process
from tests.services.processes import process

ENDS = ["complete", "failed", "cancelled"]
HERE, THERE = "one:1", "two:2"


def make(store: Store, name: str = "example") -> str:
    return store.create_study(name, config={"x": 1}, config_hash="cafe", arms=["a", "b"]).name


def test_a_study_is_kept_as_it_was_given(store):
    config = {"question": "größer? 漢字 \U0001f600", "none": None, "deep": [{"rate": 0.1, "on": True, "big": 2**60}]}
    before = datetime.now(UTC) - timedelta(seconds=5)
    made = store.create_study("a-1", config=config, config_hash="cafe", arms=["z", "a"])
    assert store.study("a-1") == made
    assert (made.config, made.config_hash, made.arms, made.state) == (config, "cafe", ("z", "a"), "created")
    assert before < made.created_at < datetime.now(UTC) + timedelta(seconds=5)
    assert made.created_at.tzinfo is UTC
    assert (made.owner, made.heartbeat_age, made.started_at, made.finished_at, made.error) == (None,) * 5


def test_a_study_is_made_once(store):
    assert store.study(make(store)) == store.study(make(store))
    assert len(store.studies()) == 1
    assert [event.kind for event in store.events("example")] == ["created"]


def test_other_contents_under_a_name_are_refused_and_change_nothing(store):
    before = store.study(make(store))
    with pytest.raises(StudyConflict, match=r"'example' is in the store with different settings .hash cafe, now beef."):
        store.create_study("example", config={"x": 2}, config_hash="beef", arms=["c"])
    assert store.study("example") == before


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a_b", "a b", "a/b", "..", "a" * 65, "é", "a\n", "'; DROP TABLE studies"]
)
def test_a_name_that_breaks_the_rule_is_refused(store, name):
    with pytest.raises(ValueError, match="must be 1 to 64 lowercase letters, digits and dashes, got"):
        make(store, name)
    assert len(store.studies()) == 0


def test_names_within_the_rule_are_taken(store):
    assert [make(store, name) for name in ("a", "0", "a-", "x" * 64)] == ["a", "0", "a-", "x" * 64]


@pytest.mark.parametrize("arms", [[], ["a", "a"]])
def test_arms_are_at_least_one_and_distinct(store, arms):
    with pytest.raises(ValueError, match="arms must be one or more distinct names"):
        store.create_study("example", config={}, config_hash="cafe", arms=arms)
    assert len(store.studies()) == 0


def test_a_config_that_json_cannot_hold_is_refused(store):
    with pytest.raises(ValueError, match=r"config must contain only finite numbers, got a.0=nan"):
        store.create_study("example", config={"a": [float("nan")]}, config_hash="cafe", arms=["a"])


CALLS: list[Callable[[Store, str], object]] = [
    Store.study,
    Store.events,
    Store.claim_study,
    Store.heartbeat,
    Store.release_study,
    lambda store, name: store.finish_study(name, "failed"),
    lambda store, name: store.reopen_study(name, reason="more"),
    Store.trials,
    Store.spent,
    Store.exports,
    Store.requeue_running,
    lambda store, name: store.projections(name, "mlflow"),
    lambda store, name: store.record_projection(name, target="mlflow", external_id="1"),
    lambda store, name: store.add_trial(
        name, arm="a", phase="search", number=0, seed=0, planned=0, experiment={}
    ),
]  # fmt: skip


def test_a_name_that_is_not_there_is_answered_with_a_near_one(store):
    make(store, "quickstart")
    for call in CALLS:
        with pytest.raises(NotFound, match=r"no study 'quikstart' in the store; did you mean 'quickstart'\?"):
            call(store, "quikstart")
        with pytest.raises(NotFound, match=r"no study 'zzz' in the store$"):
            call(store, "zzz")


def test_studies_are_listed_newest_first_in_pages_and_by_state(store):
    names = [make(store, f"s{index}") for index in range(5)]
    store.claim_study("s1")
    store.claim_study("s3")
    assert [line.name for line in store.studies()] == names[::-1]
    assert [line.name for line in store.studies(limit=2, offset=1)] == ["s3", "s2"]
    assert [line.name for line in store.studies("running")] == ["s3", "s1"]
    assert [line.name for line in store.studies("running", limit=1, offset=1)] == ["s1"]
    assert store.studies("failed") == ()
    with pytest.raises(ValueError, match=r"state of a study must be one of created, running, .* got 'runing'"):
        store.studies("runing")


def test_a_line_counts_the_trials_of_its_study(store, study, queue):
    make(store, "other")
    for index, end in enumerate(["complete", "failed", "failed", "pruned", None]):
        trial = queue(arm="random" if index % 2 else "blockout").id
        store.start_attempt(trial)
        store.record_epochs(trial, [{"epoch": 0, "sample_passes": 10**index, "seconds": 1.0}])
        if end:
            store.finish_trial(trial, end, score=0.5, reason="why")
    queue()
    other, mine = store.studies()
    assert mine.trials == {"queued": 1, "running": 1, "complete": 1, "failed": 2, "pruned": 1}
    assert mine.sample_passes == 11111
    assert (set(other.trials.values()), other.sample_passes) == ({0}, 0)


def test_a_study_is_claimed_by_one_driver(store):
    make(store)
    row = store.claim_study("example", HERE)
    assert (row.state, row.owner, row.interrupted) == ("running", HERE, False)
    assert row.heartbeat_age < 5
    with pytest.raises(
        StudyBusy, match=r"'example' is being run by one:1 \(heartbeat \d s ago\); wait, or stop it first"
    ):
        store.claim_study("example", THERE)
    assert store.claim_study("example", HERE).started_at == row.started_at
    assert store.study("example").owner == HERE


def test_a_claim_ends_when_its_heartbeats_do(store):
    make(store)
    store.claim_study("example", HERE)
    assert store.claim_study("example", THERE, stale_seconds=0).owner == THERE
    with pytest.raises(StudyBusy, match="one:1 has lost its claim on study 'example', which is now run by two:2"):
        store.heartbeat("example", HERE)
    assert [event.detail for event in store.events("example") if event.kind == "claimed"] == [
        {"owner": HERE, "before": None},
        {"owner": THERE, "before": HERE},
    ]


def test_a_heartbeat_keeps_a_claim_young(store):
    make(store)
    store.claim_study("example", HERE)
    ages = [store.study("example").heartbeat_age for _ in range(3)]
    store.heartbeat("example", HERE)
    assert ages == sorted(ages)
    assert store.study("example").heartbeat_age < ages[-1] + 1


def test_a_claim_that_is_given_back_is_free_at_once(store):
    make(store)
    store.claim_study("example", HERE)
    store.release_study("example", THERE)
    assert store.study("example").owner == HERE
    store.release_study("example", HERE)
    row = store.study("example")
    assert (row.state, row.owner, row.interrupted) == ("running", None, True)
    assert store.claim_study("example", THERE).owner == THERE


def test_a_study_whose_driver_is_silent_counts_as_interrupted(store):
    row = store.claim_study(make(store), HERE)
    line = store.studies()[0]
    for value in (row, line):
        assert not value.interrupted
        assert replace(value, heartbeat_age=31.0).interrupted
        assert not replace(value, heartbeat_age=31.0, state="complete").interrupted


@contextmanager
def other_process() -> Iterator[subprocess.Popen[str]]:
    """A process that prints its name among drivers and lives until it is told to end."""
    code = "from services.store import this_process; print(this_process(), flush=True); input()"
    with process(code) as started:
        yield started
        started.kill()


def test_a_driver_that_was_killed_on_this_machine_frees_its_study_at_once(store):
    make(store)
    with other_process() as driver:
        owner = driver.stdout.readline().strip()
        store.claim_study("example", owner)
        with pytest.raises(StudyBusy, match="is being run by"):
            store.claim_study("example")
        driver.kill()
        driver.wait()
        assert store.claim_study("example").owner == this_process() != owner


@pytest.mark.parametrize("end", ENDS)
def test_a_study_ends_once(store, end):
    make(store)
    store.claim_study("example", HERE)
    store.finish_study("example", end, error="no\0 disk \ud800" if end == "failed" else None)
    row = store.study("example")
    assert (row.state, row.owner, row.error) == (end, None, "no\ufffd disk ?" if end == "failed" else None)
    assert row.started_at <= row.finished_at
    store.finish_study("example", end, error="other")
    assert store.study("example") == row
    with pytest.raises(StateError, match=f"ended as '{end}' and cannot become 'running'; reopen it first"):
        store.claim_study("example")
    with pytest.raises(StateError, match=f"ended as '{end}' and takes no more trials"):
        store.add_trial("example", arm="a", phase="search", number=0, seed=0, planned=0, experiment={})


@pytest.mark.parametrize(("first", "second"), [pair for pair in product(ENDS, ENDS) if pair[0] != pair[1]])
def test_how_a_study_ended_does_not_change(store, first, second):
    make(store)
    store.finish_study("example", first)
    with pytest.raises(StateError, match=f"ended as '{first}' and cannot become '{second}'"):
        store.finish_study("example", second)
    assert store.study("example").state == first


def test_only_an_end_ends_a_study(store):
    with pytest.raises(ValueError, match="one of cancelled, complete, failed, got 'running'"):
        store.finish_study(make(store), "running")


def test_a_study_is_not_complete_while_a_trial_is_not(store, study, running):
    with pytest.raises(StateError, match="cannot become 'complete': 1 of its trials are queued or running"):
        store.finish_study(study, "complete")
    store.finish_trial(running, "complete", score=0.5)
    store.finish_study(study, "complete")
    assert store.study(study).state == "complete"


def test_what_ran_in_a_cancelled_study_is_queued_for_the_case_that_it_goes_on(store, study, running):
    store.finish_study(study, "cancelled")
    assert store.trial(running).state == "queued"
    assert [attempt.state for attempt in store.attempts(running)] == ["lost"]


def test_a_study_is_reopened_and_extended_with_a_record_of_how_it_was(store, study):
    before = store.study(study)
    store.claim_study(study, HERE)
    store.finish_study(study, "failed", error="no disk")
    row = store.reopen_study(
        study, reason="more seeds", config={"seeds": 9}, config_hash="beef", arms=["thin", "random", "blockout"]
    )
    assert (row.state, row.config, row.config_hash) == ("created", {"seeds": 9}, "beef")
    assert (row.error, row.finished_at, row.owner) == (None, None, None)
    assert row.arms == ("random", "blockout", "thin")
    last = store.events(study)[-1]
    assert last.kind == "reopened"
    assert last.detail == {
        "reason": "more seeds",
        "state": "failed",
        "error": "no disk",
        "config": before.config,
        "config_hash": before.config_hash,
    }
    assert store.claim_study(study, THERE).state == "running"


def test_reopening_refuses_what_would_lose_something_and_changes_nothing(store, study):
    with pytest.raises(StateError, match="is 'created': only a study that has ended can be reopened"):
        store.reopen_study(study, reason="more")
    store.finish_study(study, "failed")
    before = store.study(study), store.events(study)
    with pytest.raises(ValueError, match="lacks blockout"):
        store.reopen_study(study, reason="less", arms=["random", "new"])
    with pytest.raises(ValueError, match="passed together"):
        store.reopen_study(study, reason="half", config={})
    assert (store.study(study), store.events(study)) == before
