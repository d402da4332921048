"""Data that the workers of a machine share is the data, in place, and a training with it has the same numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.data import DataMissing, DataSettings, load
from services.cluster.shared_data import SharedData, splits_of
from services.cluster.tasks import Task
from services.cluster.worker import Worker

SETTINGS = DataSettings(train_samples=50)
EXPERIMENT = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 2, "batch_size": 25},
}


@pytest.fixture(scope="module")
def shared() -> SharedData:
    data = SharedData.of(load(SETTINGS), SETTINGS, None)
    assert data is not None
    for pair in data.arrays.values():
        for array in pair:
            array.flags.writeable = False  # as Ray maps them
    return data


def test_shared_images_are_the_same_and_are_not_copied(shared: SharedData) -> None:
    own, given = load(SETTINGS), shared.splits()
    for mine, theirs in ((own.train, given.train), (own.validation, given.validation), (own.test(), given.test())):
        assert torch.equal(mine.images[:], theirs.images[:])
        assert torch.equal(mine.labels, theirs.labels)
    images, _ = shared.arrays["train"]
    part = given.train
    kept = part.pixels if hasattr(part, "pixels") else part.images
    assert kept.data_ptr() == images.ctypes.data
    assert (given.shape, given.class_names) == (own.shape, own.class_names)
    assert shared.nbytes >= images.nbytes


def test_a_worker_with_shared_data_loads_none_and_trains_alike(shared: SharedData, tmp_path: Path) -> None:
    def losses(worker: Worker, name: str) -> list[float]:
        worker.start(Task(1, EXPERIMENT, evaluates_test=True, checkpoint=str(tmp_path / name), model=None))
        reports = [worker.step()]
        while not reports[-1].done:
            reports.append(worker.step())
        assert reports[-1].failure is None
        return [record["train_loss"] for report in reports for record in report.records]

    worker = Worker(data=shared)
    before = dict(worker._data)
    assert losses(worker, "shared") == losses(Worker(), "own")
    assert worker._data == before  # what was given was used, and nothing else was loaded
    other = DataSettings(train_samples=60)
    assert len(splits_of(other, None, worker._data).train) == 60


def test_a_machine_with_its_files_elsewhere_reads_its_own_test_images(shared: SharedData) -> None:
    def gone() -> None:
        raise DataMissing("the files are on another machine")

    outline = shared.outline.with_parts(shared.outline.train, shared.outline.validation, load_test=gone)
    elsewhere = replace(shared, outline=outline)
    assert torch.equal(elsewhere.splits().test().labels, load(SETTINGS).test().labels)


class InPlace(nn.Module):
    """A network whose first operation writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(x.mul_(2).flatten(1))
        return logits


def test_a_network_that_writes_into_its_input_changes_no_shared_image(shared: SharedData, tmp_path: Path) -> None:
    backbone = {"name": "module", "factory": f"{__name__}:InPlace"}
    kept = {name: images.copy() for name, (images, _) in shared.arrays.items()}
    worker = Worker(data=shared)
    worker.start(Task(1, {**EXPERIMENT, "backbone": backbone}, True, str(tmp_path / "checkpoint"), None))
    while not (report := worker.step()).done:
        pass
    assert report.failure is None
    assert report.result is not None
    for name, images in kept.items():
        assert (shared.arrays[name][0] == images).all()


def test_of_several_folds_a_worker_keeps_that_of_the_study_and_the_last(tmp_path: Path) -> None:
    first = DataSettings(folds=4, fold=0)
    known = {(first, None): load(first)}
    kept = known[first, None]
    for fold in (1, 2, 1, 0, 3):
        found = splits_of(first.holding_out(fold), None, known)
        assert found.fold == fold
        assert len(known) <= 2
    assert known[first, None] is kept
    splits_of(DataSettings(), None, known)  # of another study, which takes no place
    assert len(known) == 3
