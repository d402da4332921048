"""Workers over a real store and a cluster that exists only here: no study is lost, run twice at once, ended wrongly."""

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.cluster import ClusterError
from services.cluster.jobs import job_id
from services.dispatch import Dispatcher, Policy
from services.store import LeaseLost, Store, StudyConflict
from tests.services.dispatch.grid import NAMES, STUDIES, Grid, driven, enqueue, state, study_named, worker
from tests.services.new_store import new_store


def test_a_study_is_submitted_watched_and_settled(store: Store) -> None:
    grid, said = Grid(store), []
    dispatcher = worker(store, grid, log=said.append)
    enqueue(store)
    dispatcher.round()
    (job,) = grid.submitted
    assert dispatcher.held == ("one",)
    grid.drive(job)
    dispatcher.round()
    assert state(store) == ("running", "")
    grid.end(job, "succeeded", 0)
    dispatcher.round()
    assert state(store) == ("complete", "")
    assert dispatcher.held == ()
    assert said == [f"one: submitted as {job}", "one: complete"]


def test_a_head_that_dies_costs_an_attempt_and_its_owner_is_told_why(store: Store) -> None:
    grid, dispatcher, _ = driven(store)
    grid.die()
    dispatcher.round()
    assert grid.submitted[-1] == job_id(STUDIES["one"], 1)
    assert state(store) == ("running", "attempt 2: the Ray cluster was restarted and no longer knew its job")
    for _ in range(10):
        grid.die()
        dispatcher.round()
    assert state(store)[0] == "failed"
    assert "given up after 6 attempts" in state(store)[1]
    assert len(grid.submitted) == len(set(grid.submitted)) == 6
    store.request_resume("one")
    dispatcher.round()
    assert grid.submitted[-1] == job_id(STUDIES["one"], 6)


def test_a_failed_study_is_failed_in_queue_and_store_with_the_same_sentence(store: Store) -> None:
    grid, dispatcher, job = driven(store)
    grid.end(job, "failed", 1, "log\nerror: No space left on device")
    dispatcher.round()
    assert state(store) == ("failed", "No space left on device")
    assert (store.study("one").state, store.study("one").error) == ("failed", "No space left on device")


def test_cancelling_stops_the_job_once_and_then_settles(store: Store) -> None:
    grid, dispatcher, _ = driven(store)
    store.request_cancel("one")
    dispatcher.round()
    dispatcher.round()
    assert state(store) == ("cancelled", "cancelled on request; `resume` continues it")
    assert store.study("one").state == "cancelled"
    store.request_resume("one")
    dispatcher.round()
    assert grid.living("one") == [job_id(STUDIES["one"], 1)]


def test_a_worker_that_dies_between_submission_and_note_leaves_no_second_job(store: Store) -> None:
    grid = Grid(store)
    enqueue(store)
    grid.dies_after_submission = True
    with pytest.raises(KeyboardInterrupt):
        worker(store, grid, lease_seconds=0.0).round()
    grid.dies_after_submission = False
    store.request_cancel("one")
    other = worker(store, grid, "b")
    other.round()
    other.round()
    assert grid.submitted == [job_id(STUDIES["one"], 0)]
    assert grid.living("one") == []
    assert state(store)[0] == "cancelled"


def test_a_lease_that_ended_goes_to_another_worker_and_the_first_lets_go(store: Store) -> None:
    grid, said = Grid(store), []
    first = worker(store, grid, "first", lease_seconds=0.0, log=said.append)
    enqueue(store)
    first.round()
    second = worker(store, grid, "second")
    second.round()
    assert second.held == ("one",)
    first.round()
    assert first.held == ()
    assert "first has lost its lease" in said[-1]
    assert len(grid.submitted) == 1


def test_a_worker_that_ends_gives_its_studies_back_at_once(store: Store) -> None:
    grid = Grid(store)
    first = worker(store, grid, "first")
    enqueue(store)
    first.round()
    second = worker(store, grid, "second")
    second.round()
    assert second.held == ()
    first.release()
    second.round()
    assert second.held == ("one",)
    assert len(grid.submitted) == 1


def test_a_cluster_that_is_away_keeps_the_lease_and_then_goes_on(store: Store) -> None:
    grid = Grid(store)
    dispatcher = worker(store, grid)
    enqueue(store)
    grid.away = True
    for _ in range(3):
        with pytest.raises(ClusterError):
            dispatcher.round()
    assert dispatcher.held == ()
    assert state(store) == ("queued", "")
    grid.away = False
    dispatcher.round()
    assert len(grid.submitted) == 1
    grid.away = True
    for _ in range(3):
        with pytest.raises(ClusterError):
            dispatcher.round()
    assert dispatcher.held == ("one",)
    assert state(store) == ("running", "")


def test_a_study_too_large_for_the_cluster_waits_and_then_fails_with_the_reason(store: Store) -> None:
    grid = Grid(store)
    grid.small = True
    patient, hasty = worker(store, grid), worker(store, grid, "b", refused_seconds=0.0)
    enqueue(store)
    patient.round()
    waiting = state(store)
    assert waiting[0] == "queued"
    assert waiting[1].startswith("set aside: one trial of study 'one' needs 1 CPU")
    assert patient.held == ()
    hasty.round()
    assert state(store)[0] == "failed"
    assert "the cluster has no nodes" in state(store)[1]


def test_a_job_that_the_cluster_refuses_waits_lets_others_go_first_and_then_fails(sqlite_store: Store) -> None:
    grid, store = Grid(sqlite_store), sqlite_store
    grid.refuses = "one"
    enqueue(store, "one")
    enqueue(store, "two")
    patient = worker(store, grid, policy=Policy(studies=1))
    patient.round()
    assert state(store, "one") == ("queued", "waits: of all things")
    patient.round()
    assert state(store, "one") == ("queued", "waits: of all things")
    assert state(store, "two")[0] == "running"
    hasty = worker(store, grid, "b", refused_seconds=0.0)
    hasty.round()
    assert state(store, "one") == ("failed", "of all things")


def test_only_so_many_studies_run_however_many_workers_there_are(store: Store) -> None:
    grid = Grid(store)
    for name in NAMES:
        enqueue(store, name)
    first, second = (
        worker(store, grid, "a", policy=Policy(studies=2)),
        worker(store, grid, "b", policy=Policy(studies=2)),
    )
    first.round()
    second.round()
    assert first.held == ("one", "two")
    assert second.held == ()


def test_workers_that_claim_at_once_share_the_studies_without_doubles(store: Store) -> None:
    grid, names, workers = Grid(store), [f"s{number}" for number in range(8)], 4
    for name in names:
        study = study_named(name)
        store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner="me")
    barrier, dispatchers = (
        threading.Barrier(workers),
        [worker(store, grid, f"w{n}", policy=Policy(studies=8)) for n in range(workers)],
    )

    def claim(dispatcher: Dispatcher) -> None:
        barrier.wait()
        dispatcher.round()

    threads = [threading.Thread(target=claim, args=(each,)) for each in dispatchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(name for each in dispatchers for name in each.held) == dict.fromkeys(names, 1)
    assert len(grid.submitted) == len(set(grid.submitted)) == len(names)


WORK = """
import sys
from services.dispatch import work
from services.settings import Settings
settings = Settings.from_environment({
    "NAS_BLOCKOUT_HOME": sys.argv[1], "NAS_BLOCKOUT_STORE_URL": sys.argv[2],
    "NAS_BLOCKOUT_JOBS_ADDRESS": "http://127.0.0.1:9",
})
work(settings, log=lambda text: print(text, flush=True))
"""


def test_a_worker_without_a_cluster_says_so_once_takes_nothing_and_ends_on_sigterm(
    store_url: str, tmp_path: Path
) -> None:
    with Store.open(store_url) as store:
        enqueue(store)
        command = [sys.executable, "-c", WORK, str(tmp_path), store_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert said[0].startswith("worker ")
        assert said[1].startswith("waits: ")
        assert rest == "ends, and releases its leases\n"
        row = store.queued_study("one")
        assert row is not None
        assert (row.state, row.worker, row.job) == ("queued", None, None)


class Interleavings(RuleBasedStateMachine):
    """Two workers whose leases end at any time, a cluster that comes and goes, and owners who change their minds."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="nas-dispatch-"))
        self.store = new_store(self.folder / "store.db")
        self.grid = Grid(self.store)
        self.workers = [self._worker(number) for number in range(2)]
        self.ended: dict[str, str] = {}
        self.asked: set[str] = set()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def _worker(self, number: int) -> Dispatcher:
        return worker(self.store, self.grid, f"w{number}", lease_seconds=0.0, refused_seconds=1e9)

    @rule(name=st.sampled_from(NAMES))
    def give(self, name: str) -> None:
        enqueue(self.store, name)

    @rule(number=st.integers(0, 1))
    def work(self, number: int) -> None:
        try:
            self.workers[number].round()
        except ClusterError:
            assert self.grid.away

    @rule(number=st.integers(0, 1))
    def kill_worker(self, number: int) -> None:
        self.workers[number] = self._worker(number)

    @rule(away=st.booleans(), small=st.booleans())
    def weather(self, away: bool, small: bool) -> None:
        self.grid.away, self.grid.small = away, small

    @rule()
    def kill_head(self) -> None:
        self.grid.die()

    @precondition(lambda self: any(job.living for job in self.grid.jobs.values()))
    @rule(data=st.data(), end=st.sampled_from([("succeeded", 0), ("failed", 4), ("failed", -9), ("failed", 2)]))
    def job_goes_on(self, data: st.DataObject, end: tuple[str, int]) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, job in self.grid.jobs.items() if job.living)))
        if self.grid.jobs[name].state == "pending":
            self.grid.drive(name)
        else:
            self.grid.end(name, *end)

    @rule(name=st.sampled_from(NAMES))
    def cancel(self, name: str) -> None:
        row = self.store.queued_study(name)
        if row is not None and not row.ended:
            self.store.request_cancel(name)
            self.asked.add(name)

    @rule(name=st.sampled_from(NAMES))
    def resume(self, name: str) -> None:
        row = self.store.queued_study(name)
        if row is not None and row.state in ("failed", "cancelled"):
            self.store.request_resume(name)
            self.ended.pop(name, None)

    @invariant()
    def no_study_is_run_twice_at_once(self) -> None:
        for name in NAMES:
            assert len(self.grid.living(name)) <= 1, self.grid.jobs

    @invariant()
    def what_has_ended_stays_so_and_agrees_with_the_store(self) -> None:
        for name in NAMES:
            row = self.store.queued_study(name)
            if row is None or not row.ended:
                continue
            assert self.ended.setdefault(name, row.state) == row.state
            assert self.grid.living(name) == []
            studies = [line for line in self.store.studies() if line.name == name]
            if row.state == "complete":
                assert [line.state for line in studies] == ["complete"]
            if row.state == "cancelled":
                assert name in self.asked
            if row.state == "failed":
                assert row.message

    @rule()
    def in_fair_weather_everything_ends(self) -> None:
        self.grid.away = self.grid.small = False
        for _ in range(30):
            for each in self.workers:
                each.round()
            for name, job in list(self.grid.jobs.items()):
                if job.state == "pending":
                    self.grid.drive(name)
                elif job.state == "running":
                    self.grid.end(name, "succeeded", 0)
        rows = [row for name in NAMES if (row := self.store.queued_study(name)) is not None]
        assert all(row.ended for row in rows), rows


Interleavings.TestCase.settings = hypothesis_settings(max_examples=15, stateful_step_count=20, deadline=None)
TestInterleavings = Interleavings.TestCase


def test_the_store_refuses_a_worker_whose_study_another_holds(store: Store) -> None:
    enqueue(store)
    store.acquire_lease("a", seconds=0.0)
    store.acquire_lease("b", seconds=30.0)
    for write in (
        lambda: store.record_job("one", "a", job="j", attempt=0),
        lambda: store.set_message("one", "a", message="m"),
        lambda: store.finish_queued("one", "a", "failed", message="m"),
    ):
        with pytest.raises(LeaseLost):
            write()
    other = replace(STUDIES["one"], config=STUDIES["one"].config.model_copy(update={"seed": 7}))
    with pytest.raises(StudyConflict):
        store.enqueue("one", document=other.to_json(), config_hash=other.hash, owner="me")
