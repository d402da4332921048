"""The driver and a worker without Ray between them: who is stopped, what is charged, and that deaths change nothing."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.serialization import count_of
from nas_blockout.training import TrainingSettings, sample_passes
from services.cluster import checkpoint_writer
from services.cluster.tasks import Report
from services.cluster.worker import Worker
from services.cluster.worker_errors import describe_error
from services.execution.driver import Driver, extended
from services.files.study_dir import Folder
from services.settings import Settings
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import Trial
from tests.services.function_calls import calls
from tests.services.new_store import new_store

EPOCHS, IMAGES = 9, 50
ONE = sample_passes(TrainingSettings(EPOCHS), IMAGES)
ASHA = {"name": "asha", "reduction_factor": 3}
STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "driven",
    "data": {"name": "digits", "train_samples": IMAGES},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": EPOCHS, "batch_size": 25, "learning_rate": 0.01},
    "budget": {"sample_passes": 6 * ONE},
    "retrain": {"seeds": [0]},
    "arms": {
        "random": {"space": ["training"], "pruner": ASHA},
        "tpe": {"space": ["training"], "searcher": "tpe", "pruner": ASHA},
        "impossible": {"space": ["training"], "constraints": {"macs": 10}},
    },
}
Dies = Callable[[], bool]


class Died(Exception):  # nothing went wrong: it was killed
    """Stands for `kill -9`: whatever was in memory is gone."""


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings(train_samples=IMAGES))


def study_of(**arms: dict[str, Any]) -> Study:
    return resolve_document({**STUDY, "arms": arms or STUDY["arms"]}, source="x")


class Machine:
    """A store, a folder and the processes that come and go."""

    def __init__(self, home: Path, study: Study, splits: Splits, *, report_seconds: float = 1000) -> None:
        self.report_seconds = report_seconds
        self.study, self.splits = study, splits
        self.settings = Settings(home=home, store_url=f"sqlite:///{home / 'store.db'}")
        self.folder = Folder(home / "runs" / study.name)
        self.store = new_store(home / "store.db")
        self.store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))

    def driver(self) -> Driver:
        """A driver of what is left."""
        self.store.requeue_running(self.study.name)
        return Driver(
            self.study,
            self.splits,
            self.store,
            folder=self.folder,
            settings=self.settings,
            observe=lambda progress: None,
        )

    def live(self, dies: Dies = lambda: False) -> None:
        """Run until the study has ended, or until death at one of the moments between two steps."""
        driver = self.driver()
        worker = Worker(report_seconds=self.report_seconds)

        def moment() -> None:
            if dies():
                raise Died

        while (task := driver.next()) is not None:
            worker.start(task)
            moment()
            while True:
                report = worker.step()
                moment()
                stopped = driver.report(report)
                moment()
                if report.done or stopped:
                    break
        assert driver.finished

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self.store.trials(self.study.name)


def outcome(row: Trial) -> tuple[Any, ...]:
    result = {key: value for key, value in (row.result or {}).items() if key != "usage"}
    said = (row.state, row.reason, row.sample_passes, row.score, row.experiment, row.params, result)
    return row.arm, row.phase, row.number, row.seed, *said


def test_a_study_whose_processes_die_at_any_moment_ends_like_one_whose_live(tmp_path: Path, splits: Splits) -> None:
    undisturbed = Machine(tmp_path / "a", study_of(), splits)
    undisturbed.live()
    disturbed, rng, deaths = Machine(tmp_path / "b", study_of(), splits), random.Random(0), 0
    while True:
        try:
            disturbed.live(lambda: rng.random() < 0.2)
            break
        except Died:
            deaths += 1
    assert deaths >= 10
    assert [outcome(row) for row in disturbed.trials] == [outcome(row) for row in undisturbed.trials]
    states = [row.state for row in undisturbed.trials]
    assert states.count("pruned") > 4


def test_epochs_that_are_trained_again_for_want_of_a_recent_checkpoint_are_recorded_and_charged_once(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every epoch is reported, and of checkpoints there are a worker's first alone, and those at rungs."""
    monkeypatch.setattr(checkpoint_writer, "QUICK_SECONDS", -1.0)
    monkeypatch.setattr(checkpoint_writer, "WRITING_SHARE", 1e-9)
    study = study_of(random=STUDY["arms"]["random"])
    undisturbed = Machine(tmp_path / "a", study, splits)
    undisturbed.live()
    disturbed = Machine(tmp_path / "b", study, splits, report_seconds=0)
    rng, deaths, again = random.Random(1), 0, 0
    record = disturbed.store.record_epochs

    def counted(trial: int, records: Any, *, worker: str | None = None) -> None:
        nonlocal again
        known = {row.epoch for row in disturbed.store.epochs(trial)}
        again += sum(given["epoch"] in known for given in records)
        record(trial, records, worker=worker)

    monkeypatch.setattr(disturbed.store, "record_epochs", counted)
    while True:
        try:
            disturbed.live(lambda: rng.random() < 0.1)
            break
        except Died:
            deaths += 1
    assert deaths >= 5
    assert again > deaths  # more than what a checkpoint holds was seen before
    assert [outcome(row) for row in disturbed.trials] == [outcome(row) for row in undisturbed.trials]
    for one, other in zip(disturbed.trials, undisturbed.trials, strict=True):
        assert epochs(disturbed, one) == epochs(undisturbed, other)


def epochs(machine: Machine, trial: Trial) -> list[Any]:
    return [(row.epoch, row.sample_passes, row.metrics) for row in machine.store.epochs(trial.id)]


def test_the_time_left_is_estimated_once_a_trial_has_ended(tmp_path: Path, splits: Splits) -> None:
    driver, worker = Machine(tmp_path, study_of(), splits).driver(), Worker(report_seconds=0)
    task = driver.next()
    assert task is not None
    worker.start(task)
    while driver.progress().seconds_left is None:
        report = worker.step()
        stopped = driver.report(report)
        if not (report.done or stopped):
            assert driver.progress().seconds_left is None
    assert driver.progress().share > 0
    assert driver.progress().arms[0].running == 0


def test_no_time_is_told_from_less_than_a_twentieth_of_the_work(tmp_path: Path, splits: Splits) -> None:
    study = resolve_document(
        {**STUDY, "budget": {"trainings": 40}, "arms": {"dense": {"space": ["training"]}}}, source="x"
    )
    driver, worker = Machine(tmp_path, study, splits).driver(), Worker(report_seconds=1000)
    told: dict[float, bool] = {}
    while (progress := driver.progress()).share < 0.1:
        told[progress.share] = progress.seconds_left is not None
        task = driver.next()
        assert task is not None
        worker.start(task)
        while not driver.report(report := worker.step()) and not report.done:
            pass
    assert told == {share: share >= 0.05 for share in told}
    assert len(told) == 4


def test_a_full_disk_ends_the_driver_and_no_trial(tmp_path: Path, splits: Splits) -> None:
    study = study_of(random={"space": ["training"]})
    undisturbed, disturbed = Machine(tmp_path / "a", study, splits), Machine(tmp_path / "b", study, splits)
    undisturbed.live()
    driver = disturbed.driver()
    task = driver.next()
    assert task is not None
    failure = describe_error(OSError(ENOSPC, os.strerror(ENOSPC)))
    with pytest.raises(OSError, match=f"trial {task.trial}: OSError") as told:
        driver.report(Report(task.trial, "one:1", (), failure=failure))
    assert told.value.errno == ENOSPC
    assert [row.state for row in disturbed.trials] == ["running"]
    disturbed.live()
    assert [outcome(row) for row in disturbed.trials] == [outcome(row) for row in undisturbed.trials]


def test_a_stopped_trial_is_charged_what_it_used_and_says_why(tmp_path: Path, splits: Splits) -> None:
    machine = Machine(tmp_path, study_of(random=STUDY["arms"]["random"]), splits)
    machine.live()
    pruned = [row for row in machine.trials if row.state == "pruned"]
    assert pruned
    for row in pruned:
        assert row.result is not None
        rung = row.result["stopped_after"]
        epochs = machine.store.epochs(row.id)
        assert [epoch.epoch for epoch in epochs] == list(range(rung))
        assert row.sample_passes == rung * ONE // EPOCHS
        assert row.score is None
        assert row.result["validation_accuracy"] == epochs[-1].metrics["validation_accuracy"]
        assert row.reason is not None
        assert f"stopped early after {count_of(rung, 'epoch')}:" in row.reason
        assert not machine.folder.checkpoint(row.id).exists()
    spent = sum(row.sample_passes for row in machine.trials)
    assert 0 <= STUDY["budget"]["sample_passes"] - spent < ONE
    (retrained,) = [row for row in machine.trials if row.phase == "retrain"]
    assert (retrained.state, retrained.sample_passes) == ("complete", ONE)


def test_what_exceeds_the_constraints_is_never_trained(tmp_path: Path, splits: Splits) -> None:
    machine = Machine(tmp_path, study_of(impossible=STUDY["arms"]["impossible"]), splits)
    machine.live()
    (row,) = machine.trials
    assert (row.state, row.sample_passes, row.seconds, row.planned) == ("failed", 0, 0.0, 0)
    assert row.reason is not None
    assert row.reason.startswith("no network within the constraints among 100 proposals")
    assert (machine.store.attempts(row.id), machine.store.epochs(row.id)) == ((), ())
    assert len(row.params["infeasible"]) == 100


def test_a_trial_that_could_not_be_proposed_is_not_run_after_a_death_either(tmp_path: Path, splits: Splits) -> None:
    study = study_of(impossible=STUDY["arms"]["impossible"])
    machine = Machine(tmp_path, study, splits)
    machine.live()
    (row,) = machine.trials
    again = Machine(tmp_path / "again", study, splits)
    copied = {key: getattr(row, key) for key in ("arm", "phase", "number", "seed", "experiment", "params", "planned")}
    again.store.add_trial(study.name, **copied)  # the driver died before it wrote that it had failed
    again.live()
    (queued,) = again.trials
    assert (queued.state, queued.reason, queued.sample_passes) == ("failed", row.reason, 0)


def test_several_objectives_with_a_latency_reach_the_searcher(tmp_path: Path, splits: Splits) -> None:
    arm = {"space": ["training"], "searcher": "tpe", "objectives": ["accuracy", "latency_ms"]}
    machine = Machine(tmp_path, study_of(arm=arm), splits)
    machine.live()
    for row in machine.trials:
        assert row.result is not None
        assert row.result["latency_ms"] > 0


def test_progress_takes_as_many_steps_however_many_trials_there_were(tmp_path: Path, splits: Splits) -> None:
    driver = Machine(tmp_path, study_of(random={"space": ["training"]}), splits).driver()
    first = driver.scheduler.next()
    assert first is not None
    steps = []
    for begin, end in ((0, 50), (50, 500)):
        for number in range(begin, end):
            driver.scheduler.update(replace(first, number=number, state="complete", score=number / 500))
        assert driver.progress().arms[0].done == end
        steps.append(calls(driver.progress))
    assert steps[0] == steps[1]


def test_curves_and_scores_are_those_of_the_metric() -> None:
    records = [
        {"epoch": 0, "validation_accuracy": 0.9, "validation_balanced_accuracy": 0.5},
        {"epoch": 1, "validation_accuracy": 0.8, "validation_balanced_accuracy": None},
    ]
    assert extended((), records) == (0.9, 0.8)
    assert extended((), records, "validation_balanced_accuracy") == (0.5, 0.0)
