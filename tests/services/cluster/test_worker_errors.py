"""What the error of a trial does to its worker: one of a device ends it; want of memory is named; memory is freed."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker
from services.cluster.worker_errors import describe_error, ends_the_process
from tests.services.cluster.failing_network import ERRORS, backbone

LOWER = "lower training.batch_size or workers.max_concurrent_trials"


def task(folder: Path, error: str | None, trial: int = 1) -> Task:
    network: dict[str, Any] = {"name": "convnet", "channels": [4], "hidden": [8]}
    experiment = {
        "data": {"name": "digits", "train_samples": 50},
        "backbone": network if error is None else backbone(error),
        "training": {"epochs": 2, "batch_size": 16},
    }
    return Task(trial, experiment, evaluates_test=False, checkpoint=str(folder / f"{trial}.pt"), model=None)


def ended(worker: Worker, given: Task) -> Report:
    worker.start(given)
    while not (report := Report.from_text(worker.step().to_text())).done:
        pass
    return report


@pytest.mark.parametrize("error", ["assert", "cublas", "cudnn", "driver"])
def test_an_error_of_the_accelerator_ends_the_trial_with_its_reason_and_its_worker(tmp_path: Path, error: str) -> None:
    worker = Worker()
    report = ended(worker, task(tmp_path, error))
    assert report.failure is not None
    assert " ".join(str(ERRORS[error]()).split()) in report.failure
    assert "\n" not in report.failure
    assert report.ends_worker
    with pytest.raises(RuntimeError, match=rf"the accelerator failed in process {os.getpid()}: run trial 2 in a new"):
        worker.start(task(tmp_path, None, trial=2))


@pytest.mark.parametrize("error", ["device memory", "allocator", "python", "value"])
def test_a_worker_goes_on_after_any_other_error(tmp_path: Path, error: str) -> None:
    worker = Worker()
    first = ended(worker, task(tmp_path, error))
    assert first.failure is not None
    assert not first.ends_worker
    second = ended(worker, task(tmp_path, None, trial=2))
    assert second.result is not None
    assert not second.ends_worker


@pytest.mark.parametrize(
    ("error", "where", "said"),
    [
        ("device memory", "accelerator", "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."),
        ("driver", "accelerator", "AcceleratorError: CUDA error: out of memory"),
        ("allocator", "machine", "you tried to allocate 4000000000000000 bytes"),
        ("python", "machine", "MemoryError"),
    ],
)
def test_want_of_memory_is_named_and_says_what_to_lower(tmp_path: Path, error: str, where: str, said: str) -> None:
    failure = ended(Worker(), task(tmp_path, error)).failure
    assert failure is not None
    assert failure.startswith(f"out of memory on the {where}: {LOWER}")
    assert said in failure
    of_device = "workers.gpus" in failure and "training.precision" in failure
    assert of_device == (where == "accelerator")


@pytest.mark.parametrize("error", ["device memory", "allocator", "assert", "value"])
def test_what_a_failed_trial_held_is_freed_before_its_failure_is_reported(tmp_path: Path, error: str) -> None:
    worker = Worker()
    gc.collect()
    before = networks()
    report = ended(worker, task(tmp_path, error))
    assert report.failure is not None
    assert networks() == before


def networks() -> int:
    """How many networks that fail there are, besides those without values by which they are known."""
    found = [each for each in gc.get_objects() if isinstance(each, nn.Module) and type(each).__name__ == "Failing"]
    return sum(each.classes.weight.device.type == "cpu" for each in found)  # type: ignore[union-attr]


def test_the_cause_decides_however_it_is_wrapped() -> None:
    def wrapped(error: Exception) -> Exception:
        try:
            try:
                raise error
            except type(error) as cause:
                raise ValueError("backbone.factory: net failed") from cause
        except ValueError as outer:
            return outer

    assert ends_the_process(wrapped(ERRORS["assert"]()))
    assert describe_error(wrapped(ERRORS["device memory"]())).startswith("out of memory on the accelerator")
    assert not ends_the_process(wrapped(KeyError("CUDA error")))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (16x64 and 8x4)"),
        RuntimeError("No CUDA GPUs are available"),
        AssertionError("Torch not compiled with CUDA enabled"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    ],
)
def test_errors_that_leave_the_device_as_it_was_end_no_process(error: Exception) -> None:
    assert not ends_the_process(error)
