"""Checkpoints go on wherever they are read, and what was lost with one that cannot be read is said."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from services.cluster.checkpoints import read_checkpoint
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "method": {"name": "dropout", "rate": 0.2},
    "training": {"epochs": 4, "batch_size": 16, "learning_rate": 0.01},
    "seed": 3,
}


def task(folder: Path) -> Task:
    # At a rung the checkpoint is written before the report, however long that takes.
    return Task(1, EXPERIMENT, evaluates_test=False, checkpoint=str(folder / "1.pt"), model=None, rungs=(1, 2, 3))


def interrupted(given: Task, epochs: int = 2) -> Path:
    """The checkpoint of a trial whose worker died after some epochs."""
    worker = Worker(report_seconds=0)
    worker.start(given)
    for _ in range(epochs):
        assert not worker.step().done
    return Path(given.checkpoint)


def ended(given: Task) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The result of a trial, its records, and how many of them came from the checkpoint."""
    worker, records = Worker(report_seconds=0), list[dict[str, Any]]()
    worker.start(given)
    kept = len(worker._unreported)
    while True:
        report = Report.from_text(worker.step().to_text())
        records += [{key: value for key, value in row.items() if key != "seconds"} for row in report.records]
        if report.done:
            assert report.result is not None, report.failure
            return dict(report.result), records, kept


def written_on_cuda(path: Path) -> None:
    """Make every tensor of a file one of a device that this machine lacks, as torch writes it there."""
    state = torch.load(path, weights_only=True)
    del state["device"]  # another string of the same letters
    torch.save(state, path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in content if name.endswith("/data.pkl"))
    before = content[pickled]
    content[pickled] = before.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert content[pickled] != before
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in content.items():
            file.writestr(name, data)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the file would be read to a device that is there")
def test_tensors_of_a_device_that_is_not_there_are_read_to_the_processor(tmp_path: Path) -> None:
    _, expected, _ = ended(task(tmp_path / "straight"))
    path = interrupted(task(tmp_path))
    written_on_cuda(path)
    with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
        torch.load(path, weights_only=True)
    result, records, kept = ended(task(tmp_path))
    assert kept == 2
    assert records == expected
    assert "notes" not in result


def test_draws_of_another_kind_of_device_begin_anew_and_this_is_said(tmp_path: Path) -> None:
    path = interrupted(task(tmp_path))
    state = torch.load(path, weights_only=True)
    of_cuda = torch.zeros(16, dtype=torch.uint8)  # seed and offset
    state["device"], state["checkpoint"]["generator"] = "cuda", of_cuda
    torch.save(state, path)
    whole = path.read_bytes()
    result, records, kept = ended(task(tmp_path))
    assert kept == 2
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    note = "a checkpoint of cuda went on on cpu: its draws began anew after epoch 1"
    assert result["notes"] == [note]
    path.write_bytes(whole)
    assert ended(task(tmp_path))[1] == records  # the same seed every time
    path.write_bytes(whole)
    assert ended(Task(**{**task(tmp_path).to_json(), "checkpoint": str(interrupted_again(path))}))[0]["notes"] == [note]


def test_inside_an_epoch_it_is_said_so_too(tmp_path: Path) -> None:
    path = interrupted(task(tmp_path))
    state = torch.load(path, weights_only=True)
    state["device"], state["checkpoint"]["generator"] = "cuda", torch.zeros(16, dtype=torch.uint8)
    state["checkpoint"]["progress"] = {"batches": 1, "images": 16, "losses": (30.0,), "layers": ((),)}
    torch.save(state, path)
    assert read_checkpoint(path, EXPERIMENT).notes[-1].endswith("its draws began anew in epoch 2")


def interrupted_again(path: Path) -> Path:
    """Go on for an epoch and die once more: what is to be said is in the next checkpoint, too."""
    assert interrupted(task(path.parent), epochs=1) == path
    assert read_checkpoint(path, EXPERIMENT).notes
    return path


@pytest.mark.parametrize("damage", ["empty", "half", "newer"])
def test_a_trial_that_starts_again_for_want_of_its_checkpoint_says_so(tmp_path: Path, damage: str) -> None:
    path = interrupted(task(tmp_path))
    state, whole = torch.load(path, weights_only=True), path.read_bytes()
    if damage == "newer":
        torch.save({**state, "checkpoint": {**state["checkpoint"], "of_the_future": 1}}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    result, records, kept = ended(task(tmp_path))
    assert kept == 0
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    (note,) = result["notes"]
    assert note.startswith("trained from the start again: its checkpoint could not be read (")


def test_nothing_is_said_of_a_trial_without_a_checkpoint_or_with_that_of_another(tmp_path: Path) -> None:
    path = interrupted(task(tmp_path))
    other = {**EXPERIMENT, "seed": 4}
    assert read_checkpoint(path, other).notes == read_checkpoint(tmp_path / "none.pt", EXPERIMENT).notes == ()
