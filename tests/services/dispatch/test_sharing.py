"""Owners share the cluster: workers over a real store, and a cluster that exists only here."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.cluster.jobs import job_id
from services.dispatch import Policy
from services.dispatch.owner_limits import OwnerLimits
from services.dispatch.planning import Planner, share_of_budget
from services.store import Store, Waiting
from services.study_config.resolved_study import Study
from tests.services.dispatch.grid import Grid, state, study_named, worker

HOUR = 3600.0


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """The queue itself is tested on both databases elsewhere."""
    return sqlite_store


def give(store: Store, owner: str, *names: str, priority: int = 0, **workers: Any) -> dict[str, Study]:
    studies = {name: study_named(name, workers=workers) for name in names}
    for name, study in studies.items():
        store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner=owner, priority=priority)
    return studies


def four(store: Store) -> Grid:
    grid = Grid(store)
    grid.cpus = 4.0
    return grid


def test_of_twenty_endless_studies_one_makes_room_for_a_small_one_within_one_round(store: Store) -> None:
    grid, said = four(store), []
    dispatcher = worker(store, grid, log=said.append)
    endless = give(store, "ann", *(f"endless-{number}" for number in range(20)), max_concurrent_trials=1)
    dispatcher.round()
    for job in list(grid.submitted):
        grid.drive(job)
    assert len(grid.submitted) == 4
    give(store, "bob", "small", max_concurrent_trials=1)
    dispatcher.round()
    assert state(store, "small") == ("running", "")
    assert len(grid.submitted) == 5
    row = store.queued_study("endless-3")
    assert row is not None
    assert row.yields == "made room for another owner, who holds less of the cluster; it goes on where it stopped"
    dispatcher.round()  # it is stopped, and waits again at its place, with what it has done
    dispatcher.round()
    row = store.queued_study("endless-3")
    assert row is not None
    assert (row.state, row.job, row.attempt, row.first_attempt, row.position) == ("queued", None, 1, 1, 1)
    assert store.study("endless-3").state == "running"
    assert grid.jobs[job_id(endless["endless-3"])].state == "stopped"
    grid.drive(small := grid.submitted[4])
    grid.end(small, "succeeded", 0)
    for _ in range(2):
        dispatcher.round()
    assert state(store, "small") == ("complete", "")
    assert grid.submitted[5:] == [job_id(endless["endless-3"], 1)]
    assert "endless-3: submitted as" in said[-1]


def test_a_study_that_makes_room_may_be_cancelled_or_end_meanwhile(store: Store) -> None:
    grid = four(store)
    dispatcher = worker(store, grid)
    give(store, "ann", "a0", "a1", max_concurrent_trials=2)
    dispatcher.round()
    for job in list(grid.submitted):
        grid.drive(job)
    store.request_yield("a0", reason="x")
    store.request_yield("a1", reason="x")
    store.request_cancel("a0")
    grid.end(grid.submitted[1], "succeeded", 0)
    for _ in range(3):
        dispatcher.round()
    assert state(store, "a0")[0] == "cancelled"
    assert state(store, "a1") == ("complete", "")


def test_making_room_is_no_failed_attempt(store: Store) -> None:
    grid = four(store)
    dispatcher = worker(store, grid)
    give(store, "ann", "a0")
    for number in range(8):
        dispatcher.round()
        grid.drive(grid.submitted[-1])
        store.request_yield("a0", reason=f"for the {number}th time")
        dispatcher.round()  # stops the job
        dispatcher.round()  # lets it wait, and starts it again, since nobody else wants the room
    row = store.queued_study("a0")
    assert row is not None
    assert (row.state, row.attempt - row.first_attempt) == ("running", 0)
    assert len(grid.submitted) == len(set(grid.submitted)) == 9


def test_a_study_is_told_how_many_trials_it_may_run_at_once(store: Store) -> None:
    grid = four(store)
    give(store, "ann", "a0", max_concurrent_trials=64)
    give(store, "bob", "b0", max_concurrent_trials=64)
    worker(store, grid).round()
    assert set(grid.options.values()) == {("--workers", "2")}
    assert {store.queued_study(name).width for name in ("a0", "b0")} == {2}  # type: ignore[union-attr]


def test_waiting_says_so_with_place_reason_and_estimate(store: Store) -> None:
    grid = four(store)
    dispatcher = worker(store, grid, policy=Policy(studies=1, turn_seconds=600.0))
    give(store, "ann", "runs", "waits")
    give(store, "ann", "first", priority=3)
    dispatcher.round()
    give(store, "ann", "impossible", cpus=256)
    dispatcher.round()
    rows = {row.study: row for row in store.queue(["queued"])}
    assert state(store, "first")[0] == "running"
    assert [rows[name].position for name in ("runs", "waits", "impossible")] == [1, 2, None]
    assert rows["waits"].message == "waits for a place: 1 study runs, which is the most"
    assert rows["waits"].expected_at is None
    assert rows["impossible"].message.startswith("set aside: one trial of study 'impossible' needs 256 CPUs")
    assert rows["impossible"].set_aside_at is not None
    store.request_cancel("runs")
    dispatcher.round()
    row = store.queued_study("waits")
    assert row is not None
    assert row.position == 1
    assert store.queued_study("runs").position is None  # type: ignore[union-attr]


def test_what_is_said_is_written_when_it_changes_and_not_every_round(store: Store) -> None:
    dispatcher = worker(store, four(store), policy=Policy(studies=1))
    give(store, "ann", "runs", "waits")
    dispatcher.round()
    written: list[object] = []
    original = store.set_waiting
    store.set_waiting = lambda waiting: written.extend(waiting) or original(waiting)  # type: ignore[method-assign]
    for _ in range(5):
        dispatcher.round()
    assert written == []


def test_a_resumed_study_does_not_overtake(store: Store) -> None:
    grid = four(store)
    dispatcher = worker(store, grid, policy=Policy(studies=1))
    give(store, "ann", "runs", "old", "new")
    dispatcher.round()
    store.request_cancel("old")
    store.request_resume("old")
    dispatcher.round()
    assert [store.queued_study(name).position for name in ("new", "old")] == [1, 2]  # type: ignore[union-attr]


def trained(store: Store, study: Study, seconds: float) -> None:
    """A trial of a study that has run for so long."""
    store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
    trial = store.add_trial(study.name, arm="dense", phase="search", number=0, seed=0, planned=9, experiment={}).id
    store.start_attempt(trial)
    store.record_epochs(trial, [{"epoch": 0, "sample_passes": 9, "seconds": seconds}])


def test_an_owner_who_has_used_the_gpu_hours_waits_and_stops(store: Store) -> None:
    grid = Grid(store)
    grid.gpus = 8.0
    limits = OwnerLimits(gpu_hours=10, refresh_seconds=0.0)
    dispatcher = worker(store, grid, limits=limits)
    studies = give(store, "ann", "runs", gpus=2.0)
    give(store, "bob", "of-bob", gpus=2.0)
    dispatcher.round()
    for job in list(grid.submitted):
        grid.drive(job)
    trained(store, studies["runs"], 5.5 * HOUR)  # on two GPUs
    give(store, "ann", "waits")
    dispatcher.round()
    dispatcher.round()
    reason = "waits: its owner has used 11.0 of 10 GPU-hours of the last 30 days"
    assert state(store, "waits") == ("queued", reason)
    dispatcher.round()
    assert state(store, "runs") == ("queued", reason)
    assert state(store, "of-bob")[0] == "running"
    later = datetime.now(UTC) + timedelta(days=31)
    assert limits.exceeded(store, lambda study: 2.0, now=later) == ({}, {})


def test_an_owner_whose_files_take_too_much_starts_nothing_and_goes_on_with_what_runs(
    store: Store, tmp_path: Path
) -> None:
    limits = OwnerLimits(gigabytes=1, runs=tmp_path, refresh_seconds=0.0)
    grid = Grid(store)
    dispatcher = worker(store, grid, limits=limits)
    give(store, "ann", "runs")
    dispatcher.round()
    (tmp_path / "runs" / "models").mkdir(parents=True)
    with (tmp_path / "runs" / "models" / "sparse").open("wb") as file:
        file.truncate(2 * 10**9)
    give(store, "ann", "waits")
    give(store, "bob", "of-bob")
    dispatcher.round()
    dispatcher.round()
    assert state(store, "waits") == ("queued", "waits: the files of its owner take 2.0 of 1 GB")
    assert state(store, "runs")[0] == state(store, "of-bob")[0] == "running"


def test_the_time_that_is_left_follows_from_the_progress(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("services.dispatch.planning.time.monotonic", lambda: clock[0])
    study = give(store, "ann", "runs")["runs"]
    planner = Planner(store, Grid(store), Policy(), OwnerLimits())
    trained(store, study, 1.0)
    assert planner._seconds_left("runs") is None  # nothing to go by yet
    clock[0] = 100.0
    (trial,) = store.trials("runs")
    store.record_epochs(trial.id, [{"epoch": 1, "sample_passes": 277, "seconds": 9.0}])  # a tenth of 2680 more
    left = planner._seconds_left("runs")
    assert left is not None
    assert left == pytest.approx(100 * (1 - 277 / 2680) / (268 / 2680))
    status = store.study_status("runs")
    assert status is not None
    assert share_of_budget(status.row.document, status.spent) == pytest.approx(277 / 2680)
    assert share_of_budget({}, status.spent) == 0.0


def test_only_one_process_decides_at_a_time(store: Store) -> None:
    dispatcher = worker(store, four(store))
    give(store, "ann", "a0")
    with store.scheduling() as alone:
        assert alone
        dispatcher.round()
        assert state(store, "a0")[0] == "queued"
    dispatcher.round()
    assert state(store, "a0")[0] == "running"


def test_what_is_said_of_a_study_that_runs_meanwhile_is_passed_over(store: Store) -> None:
    give(store, "ann", "a0")
    store.acquire_lease("w", seconds=60.0, study="a0", width=3)
    store.set_waiting({"a0": Waiting(7, "late")})
    row = store.queued_study("a0")
    assert row is not None
    assert (row.state, row.position, row.message, row.width) == ("running", None, "", 3)


@pytest.mark.parametrize("purged", [False, True])
def test_deleting_a_study_gives_no_gpu_hours_back(store: Store, purged: bool) -> None:
    grid = Grid(store)
    grid.gpus = 8.0
    limits = OwnerLimits(gpu_hours=10, refresh_seconds=0.0)
    dispatcher = worker(store, grid, limits=limits)
    study = give(store, "ann", "used", gpus=2.0)["used"]
    dispatcher.round()
    grid.drive(job := grid.submitted[0])
    trained(store, study, 5.5 * HOUR)
    store.finish_trial(store.trials("used")[0].id, "failed", reason="diverged")
    grid.end(job, "succeeded", 0)
    dispatcher.round()
    assert state(store, "used")[0] == "complete"
    store.delete_study("used", grace_seconds=0.0, by="ann")
    if purged:
        assert store.begin_purge("used")
        store.finish_purge("used")
        assert store.submitted_study("used") is None
    give(store, "ann", "waits")
    worker(store, grid, limits=limits).round()  # also one that was started since, and has nothing in memory
    assert state(store, "waits") == ("queued", "waits: its owner has used 11.0 of 10 GPU-hours of the last 30 days")
    later = datetime.now(UTC) + timedelta(days=31)
    assert limits.exceeded(store, lambda name: 2.0, now=later) == ({}, {})
