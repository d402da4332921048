"""The queue of the service, on every database: given once, held by one worker, ended once, never lost."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from services.store import (
    LeaseLost,
    NotFound,
    QuotaExceeded,
    StateError,
    Store,
    StudyConflict,
    StudyStatus,
    database,
    tables,
)

DOCUMENT = {"name": "example", "question": "größer? 漢字", "rate": 0.1}
FOR_LONG, FOR_NOTHING = 60.0, -1.0


def give(store: Store, study: str = "example", *, config_hash: str = "cafe", owner: str = "ann", **values: object):
    return store.enqueue(study, document=DOCUMENT, config_hash=config_hash, owner=owner, **values)


def states(store: Store) -> dict[str, str]:
    return {line.study: line.state for line in store.queue()}


def test_a_study_is_kept_as_it_was_given(store):
    given = give(store, key="k-1", source={"seed": 2**60})
    assert given.new
    found = store.queued_study("example")
    assert found == given
    assert not found.new
    assert (found.document, found.source, found.config_hash, found.owner) == (DOCUMENT, {"seed": 2**60}, "cafe", "ann")
    assert (found.state, found.worker, found.lease_until, found.job, found.attempt) == ("queued", None, None, None, 0)
    assert not found.ended
    assert store.queued_study("another") is None


def test_where_a_study_stands_is_read_at_once(store):
    assert store.study_status("example") is None
    given = give(store)
    assert store.study_status("example") == StudyStatus(given, (), ())
    store.create_study("example", config=DOCUMENT, config_hash="cafe", arms=["dense"])
    trial = store.add_trial("example", arm="dense", phase="search", number=0, seed=0, experiment={}, planned=100).id
    store.start_attempt(trial)
    store.record_epochs(trial, [{"epoch": 0, "sample_passes": 50, "seconds": 1.0}])
    found = store.study_status("example")
    assert found == StudyStatus(given, store.spent("example"), store.events("example"))
    assert (found.spent[0].sample_passes, [event.kind for event in found.events]) == (50, ["created"])


def test_the_same_request_sent_twice_gives_one_study(store):
    first = give(store, key="k-1")
    for again in (give(store, key="k-1"), give(store), give(store, key="k-2")):
        assert again == first
        assert not again.new
    assert len(store.queue()) == 1


def test_the_same_request_sent_twice_at_once_gives_one_study(store):
    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(lambda _: give(store, key="k"), range(12)))
    assert {row.id for row in rows} == {rows[0].id}
    assert sum(row.new for row in rows) == 1


def test_other_contents_another_study_or_another_owner_are_refused(store):
    before = give(store, key="k")
    with pytest.raises(
        StudyConflict, match=r"different settings .hash cafe, now beef.; choose another name, or extend"
    ):
        give(store, config_hash="beef")
    with pytest.raises(StudyConflict, match="the key 'k' was already used for study 'example'"):
        give(store, "another", key="k")
    with pytest.raises(StudyConflict, match="the name 'example' is taken; choose another name"):
        give(store, owner="bob")
    assert store.queue() == (store.queue()[0],)
    assert store.queued_study("example") == before


def test_another_owner_may_use_the_same_key(store):
    give(store, key="k")
    assert give(store, "of-bob", owner="bob", key="k").new


def test_a_name_of_a_study_that_was_run_without_the_service_is_taken_by_other_contents_only(store):
    store.create_study("example", config={}, config_hash="cafe", arms=["a"])
    with pytest.raises(StudyConflict, match="the name 'example' is taken"):
        give(store, config_hash="beef")
    assert give(store).new


def test_an_owner_has_so_many_studies_open_and_no_more(store):
    for name in ("a", "b"):
        give(store, name, max_open=2)
    with pytest.raises(
        QuotaExceeded, match="ann has 2 queued or running studies, and the limit is 2; wait, or cancel one"
    ):
        give(store, "c", max_open=2)
    assert not give(store, "a", max_open=2).new
    assert give(store, "of-bob", owner="bob", max_open=2).new
    store.request_cancel("a")
    assert give(store, "c", max_open=2).new
    with pytest.raises(QuotaExceeded):
        store.request_resume("a", max_open=2)


def test_studies_given_at_once_stay_within_the_limit(store):
    def attempt(number: int) -> bool:
        try:
            return give(store, f"study-{number}", max_open=3).new
        except QuotaExceeded:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(12))) == 3


def test_a_list_has_pages_and_filters(store):
    for number in range(5):
        give(store, f"study-{number}")
    give(store, "of_bob", owner="bob")
    store.request_cancel("study-3")
    assert [line.study for line in store.queue(owner="ann", limit=2)] == ["study-4", "study-3"]
    last = store.queue(owner="ann", limit=2)[-1].id
    assert [line.study for line in store.queue(owner="ann", limit=2, before=last)] == ["study-2", "study-1"]
    assert [line.study for line in store.queue(["cancelled"])] == ["study-3"]
    assert store.queue([]) == ()
    assert len(store.queue(prefix="study-")) == 5
    assert [line.study for line in store.queue(prefix="of_")] == ["of_bob"]
    assert store.queue(prefix="o%") == ()
    assert store.count_queue() == {
        "queued": 5, "running": 0, "cancelling": 0, "complete": 0, "failed": 0, "cancelled": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"state of a queued study must be one of queued, .*, got 'odd'"):
        store.queue(["odd"])


def test_studies_are_leased_in_the_order_in_which_they_were_given_and_to_one_worker(store):
    for name in ("a", "b"):
        give(store, name)
    first = store.acquire_lease("one", seconds=FOR_LONG)
    assert (first.study, first.state, first.worker) == ("a", "running", "one")
    assert first.document == DOCUMENT
    assert first.lease_until > first.created_at
    assert store.acquire_lease("two", seconds=FOR_LONG).study == "b"
    assert store.acquire_lease("two", seconds=FOR_LONG) is None


def test_of_workers_that_ask_at_once_each_gets_another_study(store_url):
    workers, studies = 4, 8
    with Store.open(store_url) as store:
        for number in range(studies):
            give(store, f"study-{number}")

    def take(number: int) -> list[str]:
        found = []
        with Store.open(store_url) as store:
            while (row := store.acquire_lease(f"worker-{number}", seconds=FOR_LONG)) is not None:
                found.append(row.study)
        return found

    with ThreadPoolExecutor(workers) as pool:
        taken = [study for each in pool.map(take, range(workers)) for study in each]
    assert sorted(taken) == [f"study-{number}" for number in range(studies)]


def test_a_study_that_another_worker_is_taking_is_passed_over(postgres):
    with Store.open(postgres.make_database()) as store:
        for name in ("a", "b"):
            give(store, name)
        with store._database.writing() as connection:
            connection.execute(sa.select(tables.queue.c.id).where(tables.queue.c.study == "a").with_for_update())
            assert store.acquire_lease("two", seconds=FOR_LONG).study == "b"


def test_a_lease_that_is_not_renewed_ends_and_the_study_goes_on_elsewhere(store):
    give(store)
    store.acquire_lease("one", seconds=FOR_LONG)
    store.record_job("example", "one", job="job-0", attempt=0)
    assert store.renew_lease("example", "one", seconds=FOR_NOTHING).state == "running"
    taken = store.acquire_lease("two", seconds=FOR_LONG)
    assert (taken.worker, taken.state, taken.job) == ("two", "running", "job-0")
    for call in (
        lambda: store.renew_lease("example", "one", seconds=FOR_LONG),
        lambda: store.record_job("example", "one", job="job-1", attempt=1),
        lambda: store.finish_queued("example", "one", "failed", message="no"),
    ):
        with pytest.raises(
            LeaseLost, match="one has lost its lease on study 'example', which is 'running' and held by two"
        ):
            call()
    store.release_lease("example", "one")
    assert store.queued_study("example") == taken


def test_a_study_that_is_given_back_goes_on_at_once(store):
    give(store)
    store.acquire_lease("one", seconds=FOR_LONG)
    store.release_lease("example", "one")
    assert store.queued_study("example").state == "queued"
    store.acquire_lease("one", seconds=FOR_LONG)
    store.record_job("example", "one", job="job-0", attempt=0)
    store.release_lease("example", "one")
    again = store.acquire_lease("two", seconds=FOR_LONG)
    assert (again.state, again.job, again.worker) == ("running", "job-0", "two")


@pytest.mark.parametrize("state", ["complete", "failed", "cancelled"])
def test_an_end_is_kept_and_may_be_told_twice_but_not_changed(store, state):
    give(store)
    store.acquire_lease("one", seconds=FOR_LONG)
    ended = store.finish_queued("example", "one", state, message="because\0")
    assert (ended.state, ended.message, ended.worker, ended.lease_until) == (state, "because\ufffd", None, None)
    assert ended.ended
    assert store.finish_queued("example", "one", state, message="other words") == ended
    other = next(end for end in ("complete", "failed") if end != state)
    with pytest.raises(StateError, match=f"ended as '{state}' and cannot become '{other}'; resume it first"):
        store.finish_queued("example", "one", other)
    assert store.acquire_lease("two", seconds=FOR_LONG) is None
    with pytest.raises(LeaseLost):
        store.renew_lease("example", "one", seconds=FOR_LONG)
    with pytest.raises(ValueError, match="terminal state must be one of"):
        store.finish_queued("example", "one", "queued")


def test_a_queued_study_is_cancelled_at_once_and_a_running_one_by_its_worker(store):
    for name in ("a", "b"):
        give(store, name)
    store.acquire_lease("one", seconds=FOR_LONG)
    assert store.request_cancel("b").state == "cancelled"
    assert store.request_cancel("a").state == "cancelling"
    assert store.request_cancel("a").state == "cancelling"
    assert store.renew_lease("a", "one", seconds=FOR_NOTHING).state == "cancelling"
    assert store.acquire_lease("two", seconds=FOR_LONG).state == "cancelling"
    assert store.finish_queued("a", "two", "cancelled", message="as asked").state == "cancelled"
    assert store.request_cancel("a").message == "as asked"
    assert states(store) == {"a": "cancelled", "b": "cancelled"}


@pytest.mark.parametrize("state", ["complete", "failed"])
def test_what_has_ended_is_not_cancelled(store, state):
    give(store)
    store.acquire_lease("one", seconds=FOR_LONG)
    store.finish_queued("example", "one", state)
    with pytest.raises(StateError, match=f"'example' is '{state}': only a queued or running study can be cancelled"):
        store.request_cancel("example")


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_failed_or_was_cancelled_is_queued_again_as_a_new_attempt(store, state):
    give(store)
    store.acquire_lease("one", seconds=FOR_LONG)
    store.record_job("example", "one", job="job-3", attempt=3)
    store.finish_queued("example", "one", state, message="why")
    again = store.request_resume("example")
    assert (again.state, again.job, again.attempt, again.first_attempt, again.message) == ("queued", None, 4, 4, "")
    assert store.request_resume("example") == again
    assert store.acquire_lease("two", seconds=FOR_LONG).attempt == 4


def test_a_complete_study_is_queued_again_only_with_more_to_do(store):
    first = give(store, key="k")
    store.acquire_lease("one", seconds=FOR_LONG)
    store.finish_queued("example", "one", "complete")
    with pytest.raises(StateError, match="'example' is complete: there is nothing to resume; extend it"):
        store.request_resume("example")
    more = store.request_resume("example", document={"more": 1}, config_hash="beef", source={"less": 2})
    assert (more.state, more.document, more.config_hash, more.source) == ("queued", {"more": 1}, "beef", {"less": 2})
    assert (more.attempt, more.first_attempt) == (0, 0)
    again = give(store, key="k")
    assert (again.id, again.config_hash, again.new) == (first.id, "beef", False)
    with pytest.raises(StateError, match="'example' is 'queued': wait until it has ended, or cancel it first"):
        store.request_resume("example", document={"even": "more"}, config_hash="dead")
    with pytest.raises(ValueError, match="document and config_hash must be passed together"):
        store.request_resume("example", document={})


def test_a_study_that_is_being_cancelled_is_not_resumed_yet(store):
    give(store)
    store.acquire_lease("one", seconds=FOR_LONG)
    store.request_cancel("example")
    with pytest.raises(StateError, match="'example' is 'cancelling': wait until it has ended"):
        store.request_resume("example")


def test_a_study_that_was_not_given_is_named(store):
    for call in (
        lambda: store.renew_lease("example", "one", seconds=1),
        lambda: store.finish_queued("example", "one", "failed"),
        lambda: store.request_cancel("example"),
        lambda: store.request_resume("example"),
    ):
        with pytest.raises(NotFound, match="there is no study 'example' in the queue"):
            call()


def test_the_database_refuses_an_unknown_state(store):
    give(store)
    with pytest.raises(database.StoreError, match=r"ck_queue_state|CHECK"), store._database.writing() as connection:
        connection.execute(sa.text("UPDATE queue SET state = 'odd'"))
