"""Checkpoints in the background: training goes on meanwhile, one is written at a time, and seldom if it takes long."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout.data import load
from nas_blockout.experiment import Experiment, Run
from services.cluster.checkpoint_writer import (
    LONGEST_SECONDS,
    QUICK_SECONDS,
    WITHIN_SECONDS,
    WRITING_SHARE,
    CheckpointWriter,
    on_machine,
)
from services.cluster.checkpoints import Continuation, read_checkpoint
from tests.emulated_device import DEVICE, emulated

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 6, "batch_size": 16},
}
PATIENCE = 60.0


@pytest.fixture
def run() -> Run:
    experiment = Experiment.from_json(EXPERIMENT)
    return Run(experiment, load(experiment.data))


class Clock:
    """A clock that moves when it is told, and by what each checkpoint takes."""

    def __init__(self, takes: float) -> None:
        self.time, self.takes = 1000.0, takes

    def __call__(self) -> float:
        if threading.current_thread().name == "checkpoint":
            return self.time + self.takes
        return self.time


def writer(folder: Path, *, takes: float) -> tuple[CheckpointWriter, Clock]:
    clock = Clock(takes)
    return CheckpointWriter(str(folder / "1.pt"), EXPERIMENT, now=clock), clock


def epochs_in(folder: Path) -> int:
    snapshot = read_checkpoint(folder / "1.pt", EXPERIMENT).snapshot
    return 0 if snapshot is None else len(snapshot.records)


def test_a_quick_checkpoint_is_there_when_the_call_returns_and_always_due(tmp_path: Path, run: Run) -> None:
    writing, _ = writer(tmp_path, takes=QUICK_SECONDS / 2)
    for epoch in range(1, 4):
        next(run)
        assert writing.due
        writing.write(Continuation(run.snapshot()))
        assert epochs_in(tmp_path) == epoch


@pytest.mark.parametrize(
    ("takes", "interval"), [(2.0, 2.0 / WRITING_SHARE), (20.0, 400.0), (60.0, LONGEST_SECONDS), (10.0**6, 600.0)]
)
def test_a_slow_one_is_due_when_writing_takes_its_share_of_the_time(
    tmp_path: Path, run: Run, takes: float, interval: float
) -> None:
    writing, clock = writer(tmp_path, takes=takes)
    next(run)
    assert writing.due
    writing.write(Continuation(run.snapshot()))
    assert epochs_in(tmp_path) == 1  # the first, from which its time is known
    for _ in range(2):
        clock.time += interval - 0.1
        assert not writing.due
        clock.time += 0.2
        assert writing.due
        writing.write(Continuation(run.snapshot()))
        writing.wait()


@pytest.mark.parametrize(("takes", "interval"), [(0.01, WITHIN_SECONDS), (10.0, 200.0)])
def test_inside_an_epoch_one_is_due_after_a_minute_or_when_writing_takes_its_share(
    tmp_path: Path, run: Run, takes: float, interval: float
) -> None:
    writing, clock = writer(tmp_path, takes=takes)
    clock.time += WITHIN_SECONDS - 0.1
    assert not writing.due_within  # of a trial that has just begun
    clock.time += 0.2
    assert writing.due_within
    next(run)
    writing.write(Continuation(run.snapshot()))
    clock.time += interval - 0.1
    assert not writing.due_within
    clock.time += 0.2
    assert writing.due_within


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[threading.Thread]]]:
    """Hold every checkpoint of a thread in the middle of its file until the event; the threads that write."""
    go, threads, save = threading.Event(), list[threading.Thread](), torch.save

    def slow(*given: Any, **options: Any) -> None:
        save(*given, **options)
        threads.append(threading.current_thread())
        if len(threads) > 1:
            assert go.wait(PATIENCE)

    monkeypatch.setattr(torch, "save", slow)
    yield go, threads
    go.set()


def test_training_goes_on_while_a_slow_one_is_written_as_it_was_and_none_begins_meanwhile(
    tmp_path: Path, run: Run, held: tuple[threading.Event, list[threading.Thread]]
) -> None:
    go, threads = held
    writing, clock = writer(tmp_path, takes=5.0)
    next(run)
    writing.write(Continuation(run.snapshot()))
    next(run)
    snapshot = run.snapshot()
    weights = {name: value.clone() for name, value in snapshot.checkpoint.model.items()}
    writing.write(Continuation(snapshot))
    assert epochs_in(tmp_path) == 1  # whole, though another one is half written
    clock.time += 10 * LONGEST_SECONDS
    assert not writing.due
    next(run)
    assert any(not torch.equal(value, weights[name]) for name, value in run.snapshot().checkpoint.model.items())
    go.set()
    writing.wait()
    assert writing.due
    assert len(threads) == 2
    assert threading.current_thread() not in threads
    found = read_checkpoint(tmp_path / "1.pt", EXPERIMENT).snapshot
    assert found is not None
    assert len(found.records) == 2
    assert all(torch.equal(value, weights[name]) for name, value in found.checkpoint.model.items())
    assert [path.name for path in tmp_path.iterdir()] == ["1.pt"]


@pytest.mark.parametrize("seen", ["due", "write", "wait"])
def test_what_fails_in_the_thread_is_raised_once_where_it_can_be_reported(
    tmp_path: Path, run: Run, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, _ = writer(tmp_path, takes=5.0)
    next(run)
    writing.write(Continuation(run.snapshot()))

    def full(*given: Any, **options: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        writing.write(Continuation(run.snapshot()))
        threads = [each for each in threading.enumerate() if each.name == "checkpoint"]
        for each in threads:
            each.join()
    calls: dict[str, Callable[[], object]] = {
        "due": lambda: writing.due,
        "write": lambda: writing.write(Continuation(run.snapshot())),
        "wait": writing.wait,
    }
    with pytest.raises(OSError, match="No space left on device"):
        calls[seen]()
    writing.wait()
    assert epochs_in(tmp_path) == 1


def test_tensors_of_a_device_are_copied_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    experiment = Experiment.from_json(EXPERIMENT)
    with emulated(monkeypatch) as emulation:
        run = Run(experiment, load(experiment.data), device=DEVICE)
        next(run)
        snapshot = replace(run.snapshot(), records=())
        before = emulation.copies
        copied = on_machine(snapshot.to_state())
        elements = sum(value.numel() for value in snapshot.checkpoint.model.values())
        assert emulation.copies - before >= 3 * (elements - 20)  # weights and both moments
    assert {value.device.type for value in copied["checkpoint"]["model"].values()} == {"cpu"}
