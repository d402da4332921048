"""Where the images of a trial are kept changes none of its numbers: cached or decoded, after an interruption or not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas_blockout.data.sources import imagefolder, registry
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker

EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 160)):
        (folder / name).mkdir()
        for number in range(20):
            height, width = random.integers(10, 30, 2)
            pixels = (shade + random.integers(0, 60, (height, width, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def task(folder: Path, place: Path, **changes: Any) -> Task:
    data = {"name": "imagefolder", "folder": str(folder), "image_size": 8, "augment": "resized-crop-flip"}
    experiment = {
        "data": data,
        "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
        "method": {"name": "dropout", "rate": 0.2},
        "training": {"epochs": EPOCHS, "batch_size": 8},
        "seed": 1,
    }
    given = Task(1, experiment, evaluates_test=True, checkpoint=str(place / "1.pt"), model=None)
    return replace(given, data_root=str(place / "root"), **changes)


def curve(worker: Worker, given: Task, *, reports: int | None = None) -> list[dict[str, Any]]:
    """The records of a trial by epoch and its result, or those of the first reports."""
    worker.start(given)
    records: dict[int, dict[str, Any]] = {}
    while reports is None or reports > 0:
        report = Report.from_text(worker.step().to_text())
        assert report.failure is None
        for record in report.records:
            records[record["epoch"]] = {key: value for key, value in record.items() if key != "seconds"}
        if report.done:
            assert report.result is not None
            return [*records.values(), {key: report.result[key] for key in ("test_accuracy", "predictions", "macs")}]
        reports = None if reports is None else reports - 1
    return list(records.values())


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no image of a folder fit into memory."""
    read = imagefolder.read
    source = replace(registry.SOURCES["imagefolder"], read=lambda settings, root: read(settings, root, memory_bytes=0))
    monkeypatch.setattr(registry, "SOURCES", {**registry.SOURCES, "imagefolder": source})


def caches(place: Path) -> list[Path]:
    return [path for path in (place / "root").glob("cache/*") if path.is_dir()]


@pytest.mark.usefixtures("streamed")
def test_a_trial_has_the_same_numbers_with_a_cache_and_without(folder: Path, tmp_path: Path) -> None:
    decoded = curve(Worker(), task(folder, tmp_path / "none"))
    cached = curve(Worker(), task(folder, tmp_path / "disk", image_cache="disk"))
    assert decoded == cached
    splits = 3  # test images are cached as well: every seed of an arm reads them
    assert (len(caches(tmp_path / "none")), len(caches(tmp_path / "disk"))) == (0, splits)


@pytest.mark.usefixtures("streamed")
def test_a_trial_that_was_interrupted_goes_on_with_the_same_crops(folder: Path, tmp_path: Path) -> None:
    straight = curve(Worker(), task(folder, tmp_path / "straight"))
    interrupted = task(folder, tmp_path / "interrupted")
    first = curve(Worker(report_seconds=0), interrupted, reports=2)
    assert len(first) == 2
    assert curve(Worker(), interrupted) == straight


def test_images_to_be_cut_are_cached_where_they_would_fit_into_memory(folder: Path, tmp_path: Path) -> None:
    worker = Worker()
    assert curve(worker, task(folder, tmp_path)) == curve(worker, task(folder, tmp_path))
    assert len(caches(tmp_path)) == 3  # training, validation and test


def test_a_task_says_where_its_images_are_kept(folder: Path, tmp_path: Path) -> None:
    given = task(folder, tmp_path, device="meta", threads=5, data_memory_share=0.5, image_cache="disk")
    placement = Task(**given.to_json()).placement()
    assert (placement.device, placement.memory_share, placement.decoders) == ("meta", 0.5, 5)
    assert placement.image_cache == "disk"
    assert Task(1, {}, evaluates_test=False, checkpoint="", model=None).placement().decoders == 2
