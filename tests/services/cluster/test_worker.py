"""A worker runs trials one after another: it goes on from checkpoints, fails in one line, and leaves the test alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout.data import DataSettings, Splits
from nas_blockout.data.corruptions import TESTING
from nas_blockout.data.subsets import balanced
from nas_blockout.experiment import Snapshot
from services.cluster import checkpoint_writer
from services.cluster.checkpoints import read_checkpoint
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker
from services.cluster.worker_errors import describe_error

EPOCHS = 4
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "method": {"name": "dropout", "rate": 0.2},
    "training": {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.01},
    "seed": 3,
}
BLOCKOUT = {
    **EXPERIMENT,
    "method": {"name": "blockout", "clusters": 2, "masked": "all"},
    "distillation": {"target_macs": 0.6},
}


def task(folder: Path, trial: int = 1, experiment: dict[str, Any] = EXPERIMENT, *, retrain: bool = False) -> Task:
    return Task(
        trial=trial,
        experiment=experiment,
        evaluates_test=retrain,
        checkpoint=str(folder / "checkpoints" / f"{trial}.pt"),
        model=str(folder / f"{trial}.safetensors") if retrain else None,
    )


def training(**changes: Any) -> dict[str, Any]:
    return {**EXPERIMENT, "training": {**EXPERIMENT["training"], **changes}}


def run(worker: Worker, given: Task) -> tuple[Report, list[dict[str, Any]]]:
    """The last report of a trial, and the records of all of them."""
    worker.start(given)
    records: list[dict[str, Any]] = []
    while True:
        report = Report.from_text(worker.step().to_text())
        records += [dict(record) for record in report.records]
        assert report.trial == given.trial
        if report.done:
            return report, records


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def splits_of(worker: Worker) -> Splits:
    (splits,) = worker._data.values()
    return splits


@pytest.mark.parametrize("experiment", [EXPERIMENT, BLOCKOUT], ids=["dropout", "blockout"])
def test_a_trial_reports_every_epoch_and_then_its_result(tmp_path: Path, experiment: dict[str, Any]) -> None:
    report, records = run(Worker(), task(tmp_path, experiment=experiment))
    assert [record["epoch"] for record in records] == list(range(EPOCHS))
    assert [record["sample_passes"] for record in records] == [67, 134, 201, 268]
    assert report.failure is None
    assert report.result is not None
    assert report.result["validation_accuracy"] == records[-1]["validation_accuracy"]
    assert (report.result["parameters"] > 0, report.result["macs"] > 0) == (True, True)
    assert report.result["overhead_seconds"] >= 0
    assert report.worker.rpartition(":")[2].isdigit()


def test_what_was_learned_and_distilled_is_reported(tmp_path: Path) -> None:
    report, records = run(Worker(), task(tmp_path, experiment=BLOCKOUT))
    assert report.result is not None
    assert {record["stage"] for record in records} == {"learn", "finetune"}
    assert {"soft", "hard", "inherited", "finetuned"} <= set(report.result["gap"])
    assert report.result["architecture"]["clusters"] == 2
    for found in report.result["equality"].values():
        assert found["max_abs_difference"] <= found["bound"]


@pytest.mark.parametrize("experiment", [EXPERIMENT, BLOCKOUT], ids=["dropout", "blockout"])
@pytest.mark.parametrize("epochs", range(1, EPOCHS))
def test_a_trial_goes_on_where_its_worker_died(tmp_path: Path, experiment: dict[str, Any], epochs: int) -> None:
    straight, expected = run(Worker(), task(tmp_path / "straight", experiment=experiment))
    given = replace(task(tmp_path / "killed", experiment=experiment), rungs=tuple(range(1, EPOCHS)))
    killed = Worker(report_seconds=0)
    killed.start(given)
    for _ in range(epochs):
        assert not killed.step().done
    report, records = run(Worker(), given)
    assert timeless(records) == timeless(expected)
    volatile = {"overhead_seconds", "usage"}
    assert {key: value for key, value in (report.result or {}).items() if key not in volatile} == {
        key: value for key, value in (straight.result or {}).items() if key not in volatile
    }


class Killed(BaseException):
    """Ends a worker as the end of its process would: nothing of it catches this."""


@pytest.mark.parametrize("experiment", [EXPERIMENT, BLOCKOUT], ids=["dropout", "blockout"])
@pytest.mark.parametrize("steps", [2, 10])
def test_a_trial_goes_on_inside_the_epoch_in_which_its_worker_died(
    tmp_path: Path, experiment: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, expected = run(Worker(), task(tmp_path / "straight", experiment=experiment))
    monkeypatch.setattr(checkpoint_writer, "WITHIN_SECONDS", 0.0)
    given, killed = task(tmp_path / "killed", experiment=experiment), Worker(report_seconds=1000)
    write, written = killed._write_within, list[Snapshot]()

    def die(snapshot: Snapshot) -> None:
        write(snapshot)
        written.append(snapshot)
        if len(written) == steps:
            raise Killed

    killed._write_within = die  # type: ignore[method-assign]
    killed.start(given)
    with pytest.raises(Killed):
        killed.step()
    progress = written[-1].checkpoint.progress
    assert progress is not None
    assert (len(written[-1].records), progress.batches) == divmod(steps, 4)
    monkeypatch.undo()
    report, records = run(Worker(), given)
    assert timeless(records) == timeless(expected)
    volatile = {"overhead_seconds", "usage"}
    found, wanted = report.result or {}, straight.result or {}
    assert {key: found[key] for key in found.keys() - volatile} == {
        key: wanted[key] for key in wanted.keys() - volatile
    }


def test_a_trial_that_had_ended_before_its_report_arrived_ends_again(tmp_path: Path) -> None:
    given = task(tmp_path)
    first, expected = run(Worker(), given)
    again, records = run(Worker(), given)
    assert timeless(records) == timeless(expected)
    assert again.result is not None
    assert first.result is not None
    assert again.result["validation_accuracy"] == first.result["validation_accuracy"]


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "another"])
def test_a_checkpoint_that_is_not_whole_is_begun_anew(tmp_path: Path, damage: str) -> None:
    _, expected = run(Worker(), task(tmp_path / "straight"))
    given = task(tmp_path)
    worker = Worker(report_seconds=0)
    worker.start(given)
    assert not worker.step().done
    path = Path(given.checkpoint)
    whole = path.read_bytes()
    if damage == "another":
        torch.save({"something": torch.zeros(2)}, path)
    else:
        flipped = whole[:200] + bytes(255 - byte for byte in whole[200:400]) + whole[400:]
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "flipped": flipped}[damage])
    report, records = run(Worker(), given)
    assert report.result is not None, report.failure
    assert timeless(records) == timeless(expected)


@pytest.mark.parametrize(
    "other",
    [{**EXPERIMENT, "seed": 4}, {**EXPERIMENT, "backbone": {"name": "convnet", "channels": [6], "hidden": [9]}}],
    ids=["seed", "network"],
)
def test_a_checkpoint_of_another_experiment_is_not_gone_on_with(tmp_path: Path, other: dict[str, Any]) -> None:
    _, expected = run(Worker(), task(tmp_path / "straight"))
    worker = Worker(report_seconds=0)
    worker.start(task(tmp_path, experiment=other))
    assert not worker.step().done
    report, records = run(Worker(), task(tmp_path))
    assert report.result is not None, report.failure
    assert timeless(records) == timeless(expected)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"checkpoint": Evil(), "json": "{}"}, tmp_path / "evil.pt")
    assert read_checkpoint(tmp_path / "evil.pt", EXPERIMENT).snapshot is None
    assert not (tmp_path / "touched").exists()


def test_checkpoints_appear_whole_and_leave_nothing_else(tmp_path: Path) -> None:
    given = task(tmp_path)
    run(Worker(report_seconds=0), given)
    assert list(Path(given.checkpoint).parent.iterdir()) == [Path(given.checkpoint)]


@pytest.mark.parametrize("experiment", [EXPERIMENT, BLOCKOUT], ids=["dropout", "blockout"])
def test_a_training_that_diverges_fails_with_its_reason_and_its_cost(
    tmp_path: Path, experiment: dict[str, Any]
) -> None:
    wild = {**experiment, "training": {**EXPERIMENT["training"], "optimizer": "sgd", "learning_rate": 1e30}}
    report, records = run(Worker(), task(tmp_path, experiment=wild))
    assert report.result is None
    assert report.failure is not None
    assert report.failure == records[-1]["failure"]
    assert "\n" not in report.failure
    assert records[-1]["sample_passes"] > 0


@pytest.mark.parametrize(
    ("experiment", "part"),
    [
        ({**EXPERIMENT, "method": {"name": "dropot"}}, "dropot"),
        ({**EXPERIMENT, "method": {"name": "blockout", "clusters": 9, "masked": "all"}}, "clusters"),
        ({**EXPERIMENT, "data": {"name": "cifar10"}}, "nas-blockout data fetch cifar10"),
        (training(epochs=0), "epochs"),
        ({**EXPERIMENT, "data": {"name": "digits", "train_samples": 10**6}}, "train_samples"),
    ],
)
def test_an_impossible_experiment_fails_in_one_line(tmp_path: Path, experiment: dict[str, Any], part: str) -> None:
    report, records = run(Worker(), task(tmp_path, experiment=experiment))
    assert report.result is None
    assert records == []
    assert report.failure is not None
    assert part in report.failure
    assert "\n" not in report.failure


def test_a_failure_does_not_stay_with_the_worker(tmp_path: Path) -> None:
    worker = Worker()
    assert run(worker, task(tmp_path, 1, {**EXPERIMENT, "method": {"name": "dropot"}}))[0].failure
    assert run(worker, task(tmp_path, 2))[0].result
    assert run(worker, task(tmp_path, 3, training(optimizer="sgd", learning_rate=1e30)))[0].failure
    report, records = run(worker, task(tmp_path, 4))
    assert report.result
    assert len(records) == EPOCHS


def test_trials_of_one_worker_do_not_influence_each_other(tmp_path: Path) -> None:
    worker = Worker()
    run(worker, task(tmp_path, 1, BLOCKOUT))
    _, second = run(worker, task(tmp_path, 2))
    _, alone = run(Worker(), task(tmp_path / "alone", 2))
    assert timeless(second) == timeless(alone)


def test_search_never_reads_the_test_images(tmp_path: Path) -> None:
    worker = Worker()
    for trial, experiment in enumerate((EXPERIMENT, BLOCKOUT)):
        report, _ = run(worker, task(tmp_path, trial, experiment))
        assert report.result is not None
        assert "test_accuracy" not in report.result
    assert splits_of(worker).test_reads == 0


def test_a_retrained_model_is_tested_once_and_kept(tmp_path: Path) -> None:
    worker = Worker()
    for trial in (1, 2):
        report, _ = run(worker, task(tmp_path, trial, retrain=True))
        assert report.result is not None
        assert splits_of(worker).test_reads == trial
        confusion = torch.tensor(report.result["confusion"])
        assert int(confusion.sum()) == report.result["test_images"] == 540
        assert report.result["test_accuracy"] == pytest.approx(int(confusion.diagonal().sum()) / 540)
        counted = torch.bincount(torch.tensor(report.result["predictions"]), minlength=10)
        assert counted.tolist() == confusion.sum(0).tolist()
        assert (tmp_path / f"{trial}.safetensors").is_file()


def test_the_data_is_read_once_for_all_trials(tmp_path: Path) -> None:
    worker = Worker()
    run(worker, task(tmp_path, 1))
    first = splits_of(worker)
    run(worker, task(tmp_path, 2))
    assert splits_of(worker) is first
    assert list(worker._data) == [(DataSettings(name="digits", train_samples=50), None)]


def test_tasks_and_reports_survive_the_way(tmp_path: Path) -> None:
    given = task(tmp_path, retrain=True)
    assert Task(**given.to_json()) == given
    report = Report(1, "host:2", ({"epoch": 0},), failure=None, result={"macs": 3})
    assert Report.from_text(report.to_text()) == report
    assert report.done
    assert not replace(report, result=None).done


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (KeyError(), "KeyError"),
    ],
)
def test_errors_are_described_in_one_line(error: Exception, line: str) -> None:
    assert describe_error(error) == line


def reported(worker: Worker) -> list[int]:
    """Epochs of the next report."""
    return [record["epoch"] for record in Report.from_text(worker.step().to_text()).records]


def test_a_worker_reports_at_every_rung_before_it_trains_on(tmp_path: Path) -> None:
    worker = Worker(report_seconds=1000)
    worker.start(replace(task(tmp_path), rungs=(1, 3)))
    assert [reported(worker) for _ in range(3)] == [[0], [1, 2], [3]]


def test_a_worker_that_goes_on_at_a_rung_reports_it_again_before_it_trains_on(tmp_path: Path) -> None:
    given = replace(task(tmp_path), rungs=(2,))
    worker = Worker(report_seconds=1000)
    worker.start(given)
    assert reported(worker) == [0, 1]
    other = Worker(report_seconds=1000)
    other.start(given)
    assert [reported(other) for _ in range(2)] == [[0, 1], [2, 3]]


def test_latency_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    without, _ = run(Worker(), task(tmp_path))
    measured, _ = run(Worker(), replace(task(tmp_path, trial=2), measures_latency=True))
    assert without.result is not None
    assert measured.result is not None
    assert "latency_ms" not in without.result
    assert measured.result["latency_ms"] > 0


ROBUSTNESS = {"images": 40, "severities": [2, 5], "seed": 7}


def retrained(worker: Worker, folder: Path, trial: int) -> dict[str, Any]:
    report, _ = run(worker, replace(task(folder, trial, retrain=True), robustness=ROBUSTNESS))
    assert report.result is not None, report.failure
    return dict(report.result)


def test_a_retrained_model_is_measured_on_corrupted_test_images_that_are_made_once(tmp_path: Path) -> None:
    worker = Worker()
    first, second = retrained(worker, tmp_path, 1), retrained(worker, tmp_path, 2)
    found = first["robustness"]
    assert (found["images"], found["severities"]) == (40, [2, 5])
    assert tuple(found["errors"]) == TESTING
    assert all(len(values) == 2 and all(0 <= value <= 1 for value in values) for values in found["errors"].values())
    assert found["making_seconds"] > 0
    assert second["robustness"]["making_seconds"] == 0
    assert splits_of(worker).test_reads == 2  # once a model
    same = ("images", "clean_error", "errors")
    other = retrained(Worker(), tmp_path / "other", 3)
    assert [other["robustness"][key] for key in same] == [found[key] for key in same]  # in any process
    assert (first["overhead_seconds"], first["predictions"]) == (0.0, other["predictions"])  # charged to no budget


def test_the_clean_error_is_that_of_the_same_images(tmp_path: Path) -> None:
    worker = Worker()
    result = retrained(worker, tmp_path, 1)
    labels = splits_of(worker).test().labels
    index = balanced(labels, 40, seed=7)
    wrong = [result["predictions"][number] != labels[number] for number in index.tolist()]
    assert result["robustness"]["clean_error"] == pytest.approx(sum(wrong) / 40)
    assert labels[index].bincount().tolist() == [4] * 10


def test_no_other_trial_is_measured_on_corrupted_images(tmp_path: Path) -> None:
    searched, _ = run(Worker(), replace(task(tmp_path), robustness=ROBUSTNESS))
    plain, _ = run(Worker(), task(tmp_path, 2, retrain=True))
    assert "robustness" not in (searched.result or {})
    assert "robustness" not in (plain.result or {})
