"""Trials that two ranks train on Ray: one of them is killed, or fails, or the trial is stopped before its time."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from services import cluster
from services.cluster import ClusterError, Resources
from services.cluster.tasks import Report
from tests.services.end_to_end.test_cluster import Given, experiment, straight
from tests.services.program import RUNS_HERE

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60), *RUNS_HERE]

EPOCHS = 4
RUNG = 2  # after so many epochs a worker waits for the driver, which may then do something to a rank
KILLED, STOPPED = 0, 2


def of_ranks() -> list[psutil.Process]:
    """The processes of ranks other than the first that run now."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith("ray::RankMember") for word in process.info["cmdline"] or [])
    ]


class Disturbing(Given):
    """Kills the second rank of one trial and stops another, each once and in the middle."""

    def __init__(self, folder: Path, experiments: list[dict[str, Any]]) -> None:
        super().__init__(folder, experiments)
        self.waiting = [replace(task, ranks=2, rungs=(RUNG,)) for task in self.waiting]
        self.ranks_seen: set[int] = set()

    def report(self, report: Report) -> bool:  # type: ignore[override]
        super().report(report)
        self.ranks_seen |= {process.pid for process in of_ranks()}
        if report.trial == KILLED and report.records and not report.done and not self.killed:
            (second,) = of_ranks()
            self.killed.append(str(second.pid))
            second.send_signal(signal.SIGKILL)
        if report.trial == STOPPED:
            self.open.discard(STOPPED)
            return True
        return False


def test_two_ranks_train_each_trial_though_one_of_them_is_killed_and_a_trial_is_stopped(tmp_path: Path) -> None:
    training = {"epochs": EPOCHS, "batch_size": 25}
    given = [experiment(seed, training=training, method={"name": "dropout"}) for seed in range(3)]
    lost_data = experiment(3, training=training, data={"name": "digits", "train_samples": 10**6})
    tasks = Disturbing(tmp_path, [*given, lost_data])
    cluster.run(tasks, Resources(max_concurrent_trials=1, ranks=2), folder=tmp_path / "scratch")
    assert tasks.finished
    assert tasks.lost_trials == {}
    assert len(tasks.killed) == 1
    assert len(tasks.ranks_seen) >= 2, "the rank that was killed, and the one in its place"
    assert len({report.worker for report in tasks.reports if report.trial == KILLED}) == 2, "both ranks are new"
    assert len(tasks.records(STOPPED)) == RUNG
    assert "train_samples must be at most" in str(tasks.reports[-1].failure)
    assert of_ranks() == []
    for trial in (0, 1):
        alone, found = straight(tmp_path / f"alone-{trial}", given[trial]), tasks.records(trial)
        assert list(found) == list(alone) == list(range(EPOCHS))
        for epoch, record in alone.items():
            assert found[epoch]["train_loss"] == pytest.approx(record["train_loss"], rel=1e-4)
            assert found[epoch]["sample_passes"] == record["sample_passes"]


def test_more_ranks_than_the_cluster_has_room_for_are_refused_before_a_trial_begins(tmp_path: Path) -> None:
    tasks = Disturbing(tmp_path, [experiment(0)])
    resources = Resources(max_concurrent_trials=1, ranks=2, gpus=2.0)
    with pytest.raises(ClusterError, match="2 times 1 CPUs and 1 GPUs on one node, the cluster has 2 CPUs and 0 GPUs"):
        cluster.run(tasks, resources, folder=tmp_path / "scratch")
    assert len(tasks.waiting) == 1
