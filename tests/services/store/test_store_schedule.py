"""The queue as a whole: what is said of those that wait, who makes room, how long studies have trained."""

from datetime import UTC, datetime, timedelta

import pytest

from services.store import LeaseLost, QueueRow, Store, Waiting

FOR_LONG, FOR_NOTHING = 60.0, -1.0
AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def give(store: Store, *names: str, owner: str = "ann", priority: int = 0) -> None:
    for name in names:
        store.enqueue(name, document={"x": 1}, config_hash="cafe", owner=owner, priority=priority)


def found(store: Store, name: str) -> QueueRow:
    row = store.queued_study(name)
    assert row is not None
    return row


def test_all_that_wait_or_run_are_read_at_once_with_the_time(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    give(store, "a", "b", "c")
    store.acquire_lease("w", seconds=FOR_LONG, study="b", width=3)
    store.request_cancel("c")
    now, rows = store.open_queue()
    assert before < now < before + timedelta(seconds=60)
    assert [(row.study, row.state, row.width) for row in rows] == [("a", "queued", None), ("b", "running", 3)]
    assert rows[1].started_at is not None
    assert store.owners() == {"a": "ann", "b": "ann", "c": "ann"}


def test_what_is_said_of_one_that_waits_is_kept_until_it_starts(store: Store) -> None:
    give(store, "a", "b", priority=7)
    store.acquire_lease("w", seconds=FOR_LONG, study="b")
    store.set_waiting({name: Waiting(2, "be\0cause", AT, AT) for name in ("a", "b", "nothing")})
    row = found(store, "a")
    assert (row.position, row.message, row.expected_at, row.set_aside_at) == (2, "be\ufffdcause", AT, AT)
    assert row.priority == 7
    assert (found(store, "b").position, found(store, "b").message) == (None, "")
    taken = store.acquire_lease("w", seconds=FOR_LONG, study="a", width=1)
    assert taken is not None
    assert (taken.position, taken.message, taken.expected_at, taken.width) == (None, "", None, 1)
    store.record_job("a", "w", job="j", attempt=0)
    assert found(store, "a").set_aside_at is None
    assert store.acquire_lease("v", seconds=FOR_LONG, study="a") is None


def test_a_study_whose_lease_has_expired_keeps_what_it_was_given(store: Store) -> None:
    give(store, "a")
    store.acquire_lease("w", seconds=FOR_NOTHING, study="a", width=3)
    taken = store.acquire_lease("v", seconds=FOR_LONG, study="a", width=9)
    assert taken is not None
    assert (taken.worker, taken.width) == ("v", 3)


def test_who_makes_room_waits_again_at_the_same_place_with_a_new_attempt(store: Store) -> None:
    give(store, "a", "b")
    store.request_yield("a", reason="early")  # it does not run
    assert found(store, "a").yields is None
    store.acquire_lease("w", seconds=FOR_LONG, study="a", width=3)
    store.record_job("a", "w", job="j", attempt=4)
    store.request_yield("a", reason="for others")
    store.request_yield("a", reason="a second time")
    assert found(store, "a").yields == "for others"
    with pytest.raises(LeaseLost):
        store.requeue("a", "v")
    row = store.requeue("a", "w", message="for others")
    assert row == found(store, "a")
    assert (row.state, row.worker, row.job, row.width, row.yields) == ("queued", None, None, None, None)
    assert (row.attempt, row.first_attempt, row.message, row.queued_at) == (5, 5, "for others", None)
    taken = store.acquire_lease("w", seconds=FOR_LONG)  # it has waited longer than the other
    assert taken is not None
    assert taken.study == "a"


def test_who_is_cancelled_while_it_makes_room_is_cancelled(store: Store) -> None:
    give(store, "a")
    store.acquire_lease("w", seconds=FOR_LONG, study="a")
    store.request_yield("a", reason="for others")
    store.request_cancel("a")
    row = store.requeue("a", "w")
    assert (row.state, row.yields, row.worker) == ("cancelling", None, "w")


def test_a_study_that_is_resumed_waits_behind_those_that_wait(store: Store) -> None:
    give(store, "a", "b")
    store.request_cancel("a")
    again = store.request_resume("a", priority=3)
    assert (again.priority, again.waiting_since) == (3, again.queued_at)
    assert again.waiting_since > found(store, "b").waiting_since
    taken = store.acquire_lease("w", seconds=FOR_LONG)
    assert taken is not None
    assert taken.study == "b"


def test_one_process_at_a_time_decides(store: Store) -> None:
    with store.scheduling() as first, store.scheduling() as second:
        assert (first, second) == (True, False)
    with store.scheduling() as third:
        assert third


def test_trials_are_counted_by_submitted_study_since_a_moment(store: Store) -> None:
    give(store, "a")
    for name in ("a", "by-hand"):
        store.create_study(name, config={"x": 1}, config_hash="cafe", arms=["dense"])
        for number in range(2):
            arguments = {"phase": "search", "number": number, "seed": 0, "planned": 9, "experiment": {}}
            trial = store.add_trial(name, arm="dense", **arguments).id  # type: ignore[arg-type]
            store.start_attempt(trial)
            store.record_epochs(trial, [{"epoch": 0, "sample_passes": 9, "seconds": 1.5}])
    now = datetime.now(UTC)
    assert store.seconds_trained(now - timedelta(days=30)) == {"a": 3.0}
    assert store.seconds_trained(now + timedelta(days=1)) == {}
