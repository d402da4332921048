"""Ray runs the tasks: all of them, so many at once, through the deaths of workers; and it says what it cannot do."""

import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from services import cluster
from services.cluster import ClusterError, Resources
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker
from tests.services.cluster.failing_network import backbone
from tests.services.program import RUNS_HERE

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60), *RUNS_HERE]

EPOCHS = 40
# A worker waits at a rung for the driver, so that a trial whose worker is killed there cannot end before, however fast.
LONG = {"epochs": 60, "batch_size": 16}
RUNGS = tuple(range(2, 60, 2))


def experiment(seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"name": "digits", "train_samples": 200},
        "backbone": {"name": "convnet", "channels": [8], "hidden": [16]},
        "training": {"epochs": EPOCHS, "batch_size": 16},
        "seed": seed,
        **changes,
    }


class Given:
    """Tasks that are known from the start; notes what comes back, and may kill a worker in the middle of a trial."""

    def __init__(self, folder: Path, experiments: list[dict[str, Any]], *, kill: int | None = None) -> None:
        self.waiting = [task(folder, trial, each) for trial, each in enumerate(experiments)]
        if kill is not None:
            self.waiting[kill] = replace(self.waiting[kill], rungs=RUNGS)
        self.open = {task.trial for task in self.waiting}
        self.running: set[int] = set()
        self.most = 0
        self.reports: list[Report] = []
        self.lost_trials: dict[int, str] = {}
        self.kill = kill
        self.killed: list[str] = []
        self.priorities: set[int] = set()

    def next(self) -> Task | None:
        if not self.waiting:
            return None
        self.running.add(self.waiting[0].trial)
        self.most = max(self.most, len(self.running))
        return self.waiting.pop(0)

    @property
    def finished(self) -> bool:
        return not self.open

    def report(self, report: Report) -> None:
        self.reports.append(report)
        with suppress(psutil.NoSuchProcess):
            self.priorities.add(psutil.Process(int(report.worker.rpartition(":")[2])).nice())
        if report.done:
            self.open.discard(report.trial)
            self.running.discard(report.trial)
        elif report.trial == self.kill and report.records and not self.killed:
            self._kill(report.worker)

    def lost(self, trial: int, reason: str) -> None:
        self.open.discard(trial)
        self.running.discard(trial)
        self.lost_trials[trial] = reason

    def records(self, trial: int) -> dict[int, dict[str, Any]]:
        found = [dict(record) for report in self.reports if report.trial == trial for record in report.records]
        return {record.pop("epoch"): record for record in found}

    def results(self) -> dict[int, dict[str, Any]]:
        return {report.trial: dict(report.result) for report in self.reports if report.result is not None}

    def _kill(self, worker: str) -> None:
        self.killed.append(worker)
        psutil.Process(int(worker.rpartition(":")[2])).send_signal(signal.SIGKILL)


class Killing(Given):
    """Kills every worker of its trial."""

    def report(self, report: Report) -> None:
        if report.trial == self.kill and report.records and not report.done and report.worker not in self.killed:
            self._kill(report.worker)
        else:
            super().report(report)


class Stopping(Given):
    """Stops trial 1 at its first report."""

    def report(self, report: Report) -> bool:
        super().report(report)
        if report.trial != 1:
            return False
        self.open.discard(report.trial)
        self.running.discard(report.trial)
        return True


def task(folder: Path, trial: int, described: dict[str, Any]) -> Task:
    return Task(trial, described, evaluates_test=False, checkpoint=str(folder / f"{trial}.pt"), model=None)


def straight(folder: Path, described: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The records of an experiment that runs in this process, undisturbed."""
    worker, found = Worker(), {}
    worker.start(task(folder, 99, described))
    while True:
        report = worker.step()
        found.update({record["epoch"]: dict(record) for record in report.records})
        if report.done:
            return {epoch: {key: record[key] for key in record if key != "epoch"} for epoch, record in found.items()}


def timeless(records: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {epoch: {key: row[key] for key in row if key != "seconds"} for epoch, row in records.items()}


def test_all_tasks_run_two_at_once_though_a_worker_is_killed(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    given = [experiment(seed, training=LONG) if seed == 1 else experiment(seed) for seed in range(4)]
    tasks = Given(tmp_path, given, kill=1)
    cluster.run(tasks, Resources(max_concurrent_trials=2), folder=tmp_path / "scratch")
    assert len(tasks.killed) == 1
    assert tasks.finished
    assert tasks.lost_trials == {}
    assert tasks.most == 2
    assert sorted(tasks.results()) == [0, 1, 2, 3]
    assert len({report.worker for report in tasks.reports if report.trial == 1}) == 2
    expected = timeless(straight(tmp_path / "straight", given[1]))
    assert timeless(tasks.records(1)) == expected
    assert tasks.priorities == {psutil.Process().nice()}  # Ray's own default is 15 less: a busy machine starves trials
    assert list(expected) == list(range(LONG["epochs"]))
    assert not (tmp_path / "scratch" / "ray").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_failures_and_deaths_do_not_stop_the_others(tmp_path: Path) -> None:
    wild = {"epochs": EPOCHS, "batch_size": 16, "optimizer": "sgd", "learning_rate": 1e30}
    given = [
        experiment(0, training=wild),
        experiment(1, training=LONG),
        experiment(2, method={"name": "dropot"}),
        experiment(3),
    ]
    tasks = Killing(tmp_path, given, kill=1)
    cluster.run(tasks, Resources(max_concurrent_trials=2, retries=1), folder=tmp_path / "scratch")
    failures = {report.trial: report.failure for report in tasks.reports if report.failure}
    assert set(failures) == {0, 2}
    assert "dropot" in (failures[2] or "")
    assert sorted(tasks.results()) == [3]
    assert list(tasks.lost_trials) == [1]
    assert "died more often" in tasks.lost_trials[1]
    assert len(tasks.killed) == 2
    done = Counter(report.trial for report in tasks.reports if report.done)
    assert done == {0: 1, 2: 1, 3: 1}


def test_a_trial_is_stopped_where_the_driver_says_and_its_worker_goes_on_with_another(tmp_path: Path) -> None:
    tasks = Stopping(tmp_path, [experiment(seed) for seed in range(3)])
    tasks.waiting = [replace(task, rungs=(2,)) for task in tasks.waiting]
    cluster.run(tasks, Resources(max_concurrent_trials=1), folder=tmp_path / "scratch")
    assert sorted(tasks.records(1)) == [0, 1]
    assert sorted(tasks.results()) == [0, 2]
    assert tasks.lost_trials == {}
    assert len({report.worker for report in tasks.reports}) == 1


def test_what_the_cluster_cannot_give_is_said(tmp_path: Path) -> None:
    tasks = Given(tmp_path, [experiment(0)])
    with pytest.raises(ClusterError, match=r"one trial needs 1 CPUs and 1 GPUs, the cluster has"):
        cluster.run(tasks, Resources(max_concurrent_trials=1, gpus=1.0), folder=tmp_path / "scratch")
    assert tasks.reports == []


def test_a_cluster_that_is_away_is_one_error(tmp_path: Path) -> None:
    tasks = Given(tmp_path, [experiment(0)])
    with pytest.raises(ClusterError, match=r"Ray cannot be reached at 127\.0\.0\.1:1"):
        cluster.run(tasks, Resources(max_concurrent_trials=1), folder=tmp_path / "scratch", address="127.0.0.1:1")


@pytest.mark.parametrize("retries", [0, 2])
def test_a_worker_whose_accelerator_failed_is_gone_before_the_next_task(tmp_path: Path, retries: int) -> None:
    given = [experiment(seed) for seed in range(4)]
    given[1] = experiment(1, backbone=backbone("assert"))
    tasks = Given(tmp_path, given)
    cluster.run(tasks, Resources(max_concurrent_trials=1, retries=retries), folder=tmp_path / "scratch")
    assert sorted(tasks.results()) == [0, 2, 3]
    assert tasks.lost_trials == {}
    failed = [report for report in tasks.reports if report.trial == 1]
    assert [report.records for report in failed] == [()]  # one report of one attempt, charged with nothing
    assert "device-side assert triggered" in (failed[0].failure or "")
    workers = {trial: {report.worker for report in tasks.reports if report.trial == trial} for trial in range(4)}
    assert workers[0] == workers[1]  # reused as long as nothing is wrong
    assert workers[2] == workers[3]
    assert workers[1] != workers[2]
    assert not psutil.pid_exists(int(failed[0].worker.rpartition(":")[2]))
