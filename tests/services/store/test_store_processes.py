"""Several processes at once, and processes that are killed: the store stays whole."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.store import Store, StudyBusy
from tests.services.processes import outputs_at_once, process

OPENER = """
import sys
from services.store import Store
print("ready", flush=True)
input()
with Store.open(sys.argv[1]) as store:
    row = store.create_study("example", config={}, config_hash="cafe", arms=["a"])
    print(row.id, len(store.studies()))
"""

WRITER = """
import json, sys
from services.store import Store
store = Store.open(sys.argv[1])
store.create_study("example", config={}, config_hash="cafe", arms=["a"])
store.claim_study("example")
for number in range(10_000):
    trial = store.add_trial("example", arm="a", phase="search", number=number, seed=0, planned=30, experiment={}).id
    store.start_attempt(trial)
    for epoch in range(3):
        record = {"epoch": epoch, "sample_passes": 10 * (epoch + 1), "seconds": 1.0 + epoch}
        store.record_epochs(trial, [record])
        print(json.dumps([number, epoch]), flush=True)
    store.finish_trial(trial, "complete", score=0.5, result={"macs": number})
    print(json.dumps([number, "complete"]), flush=True)
"""


def test_processes_that_open_a_fresh_database_at_once_agree(store_url):
    assert outputs_at_once(OPENER, store_url, number=4) == ["1 1\n"] * 4


def test_of_drivers_that_claim_at_once_one_gets_the_study(store_url):
    with Store.open(store_url) as store:
        store.create_study("example", config={}, config_hash="cafe", arms=["a"])
    drivers = 6
    barrier = threading.Barrier(drivers)

    def claim(number: int) -> str | None:
        with Store.open(store_url) as store:
            barrier.wait()
            try:
                return store.claim_study("example", f"machine-{number}:1").owner
            except StudyBusy:
                return None

    with ThreadPoolExecutor(drivers) as pool:
        owners = [owner for owner in pool.map(claim, range(drivers)) if owner]
    with Store.open(store_url) as store:
        assert owners == [store.study("example").owner]
        assert [event.kind for event in store.events("example")] == ["created", "claimed"]


def test_threads_that_add_the_same_trial_agree_on_it(store_url):
    with Store.open(store_url) as store:
        store.create_study("example", config={}, config_hash="cafe", arms=["a"])
        values = {"arm": "a", "phase": "search", "number": 0, "seed": 0, "planned": 0, "experiment": {"x": 1}}
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda _: store.add_trial("example", **values), range(8)))
        assert len({row.id for row in rows}) == 1
        assert len(store.trials("example")) == 1


def test_attempts_begun_at_once_are_numbered_and_only_the_last_runs(store_url):
    with Store.open(store_url) as store:
        store.create_study("example", config={}, config_hash="cafe", arms=["a"])
        trial = store.add_trial("example", arm="a", phase="search", number=0, seed=0, planned=0, experiment={}).id
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: store.start_attempt(trial).number, range(8)))
        assert sorted(found) == list(range(8))
        assert [row.state for row in store.attempts(trial)] == ["lost"] * 7 + ["running"]


@pytest.mark.parametrize("after", [1, 5, 14])
def test_a_writer_that_is_killed_loses_at_most_the_write_in_flight(store_url, after):
    with process(WRITER, store_url) as writer:
        said = [json.loads(writer.stdout.readline()) for _ in range(after)]
        writer.kill()
        said += [json.loads(line) for line in writer.stdout if line.endswith("\n")]
    with Store.open(store_url) as store:
        trials = store.trials("example")
        assert [row.number for row in trials] == list(range(len(trials)))
        kept = [[row.number, epoch.epoch] for row in trials for epoch in store.epochs(row.id)]
        assert all(item in kept for item in said if item[1] != "complete")
        for row in trials:
            epochs = store.epochs(row.id)
            assert [epoch.epoch for epoch in epochs] == list(range(len(epochs)))
            assert row.sample_passes == 10 * len(epochs)
            assert row.seconds == (float(len(epochs)))
            whole = row.state == "complete"
            assert whole == (row.result == {"macs": row.number}) == (row.score == 0.5) == (row.finished_at is not None)
            assert not whole or len(epochs) == 3
            assert [attempt.state for attempt in store.attempts(row.id)] == (
                [] if row.state == "queued" else [row.state]
            )
            assert whole or row is trials[-1]
        assert all([row.number, "complete"] in said or row is trials[-1] for row in trials if row.state == "complete")
        assert store.claim_study("example").state == "running"
        left = [row.id for row in trials if row.state == "running"]
        assert list(store.requeue_running("example")) == left
