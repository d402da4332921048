"""Workers over a real store and a cluster that exists only here: no study is lost, run twice at once, ended wrongly."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.cluster import ClusterError
from services.cluster.jobs import Job, job_id
from services.dispatch import Dispatcher
from services.dispatch.dispatcher import MOST_TROUBLES
from services.dispatch.loop import destination_options
from services.execution.destination import require
from services.settings import Settings
from services.store import LeaseLost, Store, StudyConflict
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study

DOCUMENT = {
    "schema_version": 2,
    "name": "example",
    "data": {"name": "digits", "train_samples": 100},
    "backbone": {"name": "convnet", "channels": [8], "hidden": [16]},
    "training": {"epochs": 2},
    "budget": {"sample_passes": 2680},
    "arms": {"dense": {}},
}
NAMES = ("one", "two", "three")


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def study_named(name: str, **changes: object) -> Study:
    return resolve_document({**DOCUMENT, "name": name, **changes}, source="test")


STUDIES = {name: study_named(name) for name in NAMES}


def enqueue(store: Store, name: str = "one") -> None:
    study = STUDIES[name]
    store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner="me")


class Grid:
    """A cluster: jobs by name, drivers that write to the store as real ones do, a head that may die."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs: dict[str, Job] = {}
        self.studies: dict[str, Study] = {}
        self.submitted: list[str] = []
        self.options: dict[str, tuple[str, ...]] = {}
        self.away = False
        self.small = False
        self.dies_after_submission = False

    def submit(self, study: Study, *, attempt: int = 0, options: Sequence[str] = ()) -> Job:
        self._reach()
        name = job_id(study, attempt)
        if name in self.jobs:
            return self.jobs[name]
        if self.small:
            raise ClusterError("one trial needs 1 CPU on one node, the cluster has no nodes")
        self.jobs[name] = Job(name, "pending")
        self.studies[name] = study
        self.submitted.append(name)
        self.options[name] = tuple(options)
        if self.dies_after_submission:
            raise KeyboardInterrupt
        return self.jobs[name]

    def job(self, id: str) -> Job | None:
        self._reach()
        return self.jobs.get(id)

    def stop(self, id: str) -> None:
        self._reach()
        if self.jobs[id].living:
            self.end(id, "stopped", None)

    def capacity(self) -> dict[str, float]:
        self._reach()
        return {"CPU": 0.0}

    def living(self, study: str) -> list[str]:
        return [name for name, job in self.jobs.items() if job.living and self.studies[name].name == study]

    def drive(self, name: str) -> None:
        """Begin, as a driver does that Ray has started."""
        study = self.studies[name]
        row = self.store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        if row.state in ("failed", "cancelled"):
            self.store.reopen_study(study.name, reason="again")
        self.store.claim_study(study.name, name)
        self.jobs[name] = Job(name, "running")

    def end(self, name: str, state: str, code: int | None, message: str = "") -> None:
        """End a job in order: a driver that runs lets go of its study, and finishes it if it ended well."""
        if self.jobs[name].state == "running":
            if code in (0, 4):
                self.store.finish_study(self.studies[name].name, "complete")
            else:
                self.store.release_study(self.studies[name].name, name)
        self.jobs[name] = Job(name, state, message, exit_code=code)

    def die(self) -> None:
        """Forget all jobs, as a head does that is started anew; its drivers died with it, and are seen to be gone."""
        for name, job in self.jobs.items():
            if job.state == "running":
                self.store.release_study(self.studies[name].name, name)
        self.jobs.clear()

    def _reach(self) -> None:
        if self.away:
            raise ClusterError("Ray's dashboard cannot be reached")


def worker(store: Store, grid: Grid, name: str = "a", **changes: object) -> Dispatcher:
    return Dispatcher(store, grid, worker=name, **{"log": lambda text: None, **changes})


def driven(store: Store) -> tuple[Grid, Dispatcher, str]:
    """A cluster whose driver runs study one, the worker that submitted it, and the name of the job."""
    grid = Grid(store)
    dispatcher = worker(store, grid)
    enqueue(store)
    dispatcher.round()
    (job,) = grid.submitted
    grid.drive(job)
    return grid, dispatcher, job


def state(store: Store, name: str = "one") -> tuple[str, str]:
    row = store.queued_study(name)
    assert row is not None
    return row.state, row.message


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


def test_a_job_that_wrote_to_another_store_completes_nothing(store: Store) -> None:
    grid, dispatcher, job = driven(store)
    store.release_study("one", job)
    grid.jobs[job] = Job(job, "succeeded", exit_code=0)
    dispatcher.round()
    assert state(store)[0] == store.study("one").state == "failed"
    assert "the job has written to another one; start Ray with the NAS_BLOCKOUT_ variables" in state(store)[1]


def test_a_study_that_was_extended_without_the_service_ends_complete(store: Store) -> None:
    grid, dispatcher, job = driven(store)
    store.finish_study("one", "cancelled", error="it is extended")
    larger = study_named("one", budget={"sample_passes": 5360})
    store.reopen_study("one", reason="larger", config=larger.to_json(), config_hash=larger.hash)
    store.claim_study("one", job)
    grid.end(job, "succeeded", 0)
    dispatcher.round()
    assert state(store) == ("complete", "")


def test_jobs_carry_the_identities_of_store_and_home(store: Store, tmp_path: Path) -> None:
    settings = Settings.from_environment({"NAS_BLOCKOUT_HOME": str(tmp_path), "NAS_BLOCKOUT_STORE_URL": store.url})
    options, grid = destination_options(settings, store), Grid(store)
    enqueue(store)
    worker(store, grid, options=options).round()
    assert list(grid.options.values()) == [options]
    home = (tmp_path / "runs" / ".identity").read_text().strip()
    assert options == ("--store-id", store.identity(), "--home-id", home)
    assert destination_options(settings, store) == options
    require(settings, store=options[1] if "***" not in store.url else None, home=home, log=pytest.fail)


POISON = {
    "no study at all": {"x": 1},
    "a list": [1],
    "a setting that is not there": {**STUDIES["two"].to_json(), "arms": {"dense": {"experiment": {"backbone": 7}}}},
    "a schema to come": {**STUDIES["two"].to_json(), "schema_version": 3},
    "a method to come": json.loads(
        json.dumps(STUDIES["two"].to_json()).replace('{"name": "none"}', '{"name": "telepathy"}')
    ),
    "no JSON": None,
}


def poison(store: Store, name: str, document: object) -> None:
    """Write into the queue what no release of today would, past the checks of the store."""
    text = "{]" if document is None else json.dumps(document)
    with store._database.writing() as connection:
        connection.execute(
            sa.text("UPDATE queue SET document = :text WHERE study = :name"), {"text": text, "name": name}
        )


@pytest.mark.parametrize("document", POISON.values(), ids=POISON)
def test_a_study_that_cannot_be_read_fails_alone_with_its_reason(sqlite_store: Store, document: object) -> None:
    store = sqlite_store
    grid = Grid(store)
    for name in NAMES:
        enqueue(store, name)
    poison(store, "two", document)
    dispatcher = worker(store, grid)
    dispatcher.round()
    assert dispatcher.held == ("one", "three")
    assert state(store, "two")[0] == "failed"
    assert state(store, "two")[1].startswith("this release cannot read the study as it is stored: study two: ")
    assert state(store, "two")[1].endswith("submit it again by another name")
    assert len(grid.submitted) == 2
    poison(store, "one", document)  # while its job runs, as where the worker is upgraded or goes back
    dispatcher.round()
    assert state(store, "one")[0] == "running"
    grid.drive(job := grid.submitted[0])
    grid.end(job, "succeeded", 0)
    dispatcher.round()
    assert state(store, "one") == ("complete", "")


class Broken(Grid):
    """Fails on one study, in a way that nobody has thought of."""

    def submit(self, study: Study, *, attempt: int = 0, options: Sequence[str] = ()) -> Job:
        if study.name == "two":
            raise ZeroDivisionError("of all things")
        return super().submit(study, attempt=attempt, options=options)


def test_an_error_that_nobody_thought_of_fails_its_study_and_no_other(sqlite_store: Store) -> None:
    grid, said = Broken(sqlite_store), []
    for name in NAMES:
        enqueue(sqlite_store, name)
    dispatcher = worker(sqlite_store, grid, log=said.append)
    dispatcher.round()
    assert dispatcher.held == NAMES
    for _ in range(MOST_TROUBLES - 1):
        assert state(sqlite_store, "two")[0] == "running"
        dispatcher.round()
    assert state(sqlite_store, "two") == (
        "failed",
        "the worker cannot handle this study: ZeroDivisionError: of all things",
    )
    assert dispatcher.held == ("one", "three")
    assert len(grid.submitted) == 2


def test_a_study_that_is_deleted_from_the_queue_is_let_go(sqlite_store: Store) -> None:
    grid, dispatcher, _ = driven(sqlite_store)
    with sqlite_store._database.writing() as connection:
        connection.execute(sa.text("DELETE FROM queue"))
    dispatcher.round()
    assert dispatcher.held == ()
    assert grid.submitted


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


def test_a_worker_that_ends_gives_its_studies_back_max_running(store: Store) -> None:
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
    assert dispatcher.held == ("one",)
    assert state(store) == ("running", "")
    grid.away = False
    dispatcher.round()
    assert len(grid.submitted) == 1


def test_a_study_too_large_for_the_cluster_waits_and_then_fails_with_the_reason(store: Store) -> None:
    grid = Grid(store)
    grid.small = True
    patient, hasty = worker(store, grid), worker(store, grid, "b", refused_seconds=0.0)
    enqueue(store)
    patient.round()
    waiting = state(store)
    assert waiting[0] == "running"
    assert waiting[1].startswith("waits: one trial needs 1 CPU")
    patient.release()
    hasty.round()
    assert state(store)[0] == "failed"
    assert "the cluster has no nodes" in state(store)[1]


def test_only_so_many_studies_are_held(store: Store) -> None:
    grid = Grid(store)
    for name in NAMES:
        enqueue(store, name)
    first, second = worker(store, grid, "a", max_running=2), worker(store, grid, "b", max_running=2)
    first.round()
    second.round()
    assert first.held == ("one", "two")
    assert second.held == ("three",)


def test_workers_that_claim_at_once_share_the_studies_without_doubles(store: Store) -> None:
    grid, names, workers = Grid(store), [f"s{number}" for number in range(8)], 4
    for name in names:
        study = study_named(name)
        store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner="me")
    barrier, dispatchers = (
        threading.Barrier(workers),
        [worker(store, grid, f"w{n}", max_running=8) for n in range(workers)],
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


def test_a_worker_without_a_cluster_says_so_once_and_gives_its_studies_back_on_sigterm(
    store_url: str, tmp_path: Path
) -> None:
    with Store.open(store_url) as store:
        enqueue(store)
        command = [sys.executable, "-c", WORK, str(tmp_path), store_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(2)]
            row = store.queued_study("one")
            assert row is not None
            assert row.worker is not None
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
        self.store = Store.open(f"sqlite:///{self.folder / 'store.db'}")
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
    def no_study_is_run_twice_max_running(self) -> None:
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
