"""The worker: runs one trial at a time, epoch by epoch, and writes a checkpoint about every two seconds.

A worker reads its task and the data, writes its checkpoint and its model, and returns reports; it holds no credentials
and opens no database. It runs the same inside a Ray actor and in a plain process.
"""

import errno
import hashlib
import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nas_blockout.atomic_files import whole_file
from nas_blockout.data import AnyPart, DataSettings, Loader, Splits, load
from nas_blockout.data.corruptions import CorruptedImages
from nas_blockout.experiment import EVALUATION_BATCH, Experiment, Run, Snapshot
from nas_blockout.export import measure_latency, save_weights
from nas_blockout.train import EpochRecord, evaluate
from services.files.remote import reading, writing

REPORT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Task:
    """One trial as it is sent to a worker: what to run, and where its files go.

    Args:
        trial: Identity of the trial in the store.
        experiment: What to run, as plain JSON types.
        evaluates_test: Whether the trained model is measured, once, on the test images.
        checkpoint: File that continues the trial; written with every report, removed by the driver. A path, or a URL
            where workers on several machines share storage.
        model: File for the trained weights, a path or a URL, or None to keep none.
        data_root: Folder of the data sets, or None for the usual places.
        threads: Threads of the training.
        device: Where to train.
        rungs: Epochs after which to report before training on: the driver may stop the trial there.
        measures_latency: Whether the time of a forward pass of the trained network is measured.
        robustness: On which corrupted test images the trained model is measured too: ``images``, ``severities``,
            ``seed``.
    """

    trial: int
    experiment: Mapping[str, Any]
    evaluates_test: bool
    checkpoint: str
    model: str | None
    data_root: str | None = None
    threads: int = 1
    device: str = "cpu"
    rungs: tuple[int, ...] = ()
    measures_latency: bool = False
    robustness: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the task as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker reports after some epochs.

    Args:
        trial: Identity of the trial.
        worker: Process that ran it.
        records: Epoch records; after a restart those of the checkpoint come again.
        failure: Why the trial failed, or None.
        result: What it ended in, with the last report of a trial that succeeded.
    """

    trial: int
    worker: str
    records: tuple[Mapping[str, Any], ...]
    failure: str | None = None
    result: Mapping[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether this is the last report of the trial."""
        return self.failure is not None or self.result is not None

    def to_text(self) -> str:
        """Return the report as JSON text, which Tune passes on as it is (it would flatten a dictionary)."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Report":
        """Read a report back."""
        document = json.loads(text)
        return cls(**{**document, "records": tuple(document["records"])})


class Worker:
    """Runs tasks one after another and keeps the data between them.

    Args:
        report_seconds: How long to train between two reports; 0 reports every epoch.
    """

    def __init__(self, report_seconds: float = REPORT_SECONDS) -> None:
        self._report_seconds = report_seconds
        self._data: dict[tuple[DataSettings, str | None], Splits] = {}
        self._corrupted: tuple[str, CorruptedImages] | None = None
        self._task: Task | None = None
        self._run: Run | None = None
        self._unreported: list[EpochRecord] = []
        self._error: str | None = None

    def start(self, task: Task) -> None:
        """Begin a trial, or continue it if its checkpoint is there."""
        torch.set_num_threads(task.threads)
        self._task, self._run, self._error, self._unreported = task, None, None, []
        try:
            experiment = Experiment.from_json(task.experiment)
            with reading(task.checkpoint) as path:
                start = read_snapshot(path, task.experiment)
            self._run = Run(experiment, self._splits(experiment.data, task), device=task.device, start=start)
            self._unreported = list(start.records) if start else []
        except Exception as error:  # noqa: BLE001  # a trial that cannot be built fails; the worker goes on
            self._error = describe_error(error)

    def step(self) -> Report:
        """Train until a report is due: the time has passed, a rung is reached or the trial has ended.

        The checkpoint is written before the report is returned, so that a later attempt repeats none of its epochs.
        """
        assert self._task is not None, "start a task first"
        began, trained = time.monotonic(), False
        try:
            while self._error is None and not self._at_rung():
                if not self._one_epoch():
                    return self._report(result=self._result())
                trained = True
                if time.monotonic() - began >= self._report_seconds:
                    break
            if trained and self._error is None and self._run is not None:
                with writing(self._task.checkpoint) as path:
                    write_snapshot(self._run.snapshot(), path, self._task.experiment)
        except Exception as error:  # noqa: BLE001  # as above: reported, never swallowed
            self._error = describe_error(error)
        return self._report(failure=self._error)

    def _at_rung(self) -> bool:
        """Whether the driver must decide on the last epoch before another is trained."""
        assert self._run is not None
        assert self._task is not None
        return bool(self._unreported) and len(self._run.records) in self._task.rungs

    def _one_epoch(self) -> bool:
        assert self._run is not None
        assert self._task is not None
        record = next(self._run, None)
        if record is None:
            return False
        self._unreported.append(record)
        self._error = record.failure
        return True

    def _report(self, *, failure: str | None = None, result: Mapping[str, Any] | None = None) -> Report:
        assert self._task is not None
        records, self._unreported = tuple(record.to_json() for record in self._unreported), []
        return Report(self._task.trial, f"{os.uname().nodename}:{os.getpid()}", records, failure, result)

    def _result(self) -> dict[str, Any]:
        assert self._run is not None
        assert self._task is not None
        outcome, last = self._run.outcome, self._run.records[-1]
        assert outcome is not None
        derivation = outcome.derivation
        result: dict[str, Any] = {
            "validation_accuracy": last.validation_accuracy,
            "validation_loss": last.validation_loss,
            "parameters": outcome.parameters,
            "macs": outcome.macs,
            "architecture": outcome.architecture.to_json() if outcome.architecture else None,
            "architecture_hash": outcome.architecture.hash if outcome.architecture else None,
            "gap": {**derivation.gap, "finetuned": last.validation_accuracy} if derivation else None,
            "threshold": derivation.threshold if derivation else None,
            "thresholds": derivation.thresholds if derivation else None,
            "equality": derivation.equality if derivation else None,
            "probabilities": derivation.probabilities if derivation else None,
            "overhead_seconds": derivation.overhead_seconds if derivation else 0.0,
            "teacher_passes": outcome.teacher_passes,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if self._task.measures_latency:
            result["latency_ms"] = measure_latency(outcome.model, self._run.splits.shape, batches=(1,))[1]
        if self._task.evaluates_test:
            result |= self._tested(outcome.model)
        if self._task.model is not None:
            with writing(self._task.model) as path:
                save_weights(outcome.model, path)
        return result

    def _tested(self, model: torch.nn.Module) -> dict[str, Any]:
        assert self._run is not None
        part = self._run.splits.test()
        test = evaluate(model, Loader(part, EVALUATION_BATCH))
        classes = len(self._run.splits.class_names)
        robust = self._robustness(model, part, test.predictions)
        cells = torch.bincount(part.labels * classes + test.predictions, minlength=classes**2)
        return {
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_images": len(part.labels),
            "confusion": cells.view(classes, classes).tolist(),
            "predictions": test.predictions.tolist(),
            **({"robustness": robust} if robust else {}),
        }

    def _robustness(self, model: torch.nn.Module, part: AnyPart, predictions: torch.Tensor) -> dict[str, Any] | None:
        """Measure the model on corrupted test images, which are made once and cached for later models."""
        assert self._task is not None
        if self._task.robustness is None:
            return None
        images, made = self._corrupted_images(part)
        began = time.monotonic()
        errors: dict[str, list[float]] = {}
        for kind, _, corrupted in images.parts():
            errors.setdefault(kind, []).append(1 - evaluate(model, Loader(corrupted, EVALUATION_BATCH)).accuracy)
        return {
            "images": len(images),
            "severities": list(self._task.robustness["severities"]),
            "clean_error": float((predictions[images.index] != images.labels).float().mean()),
            "errors": errors,
            "making_seconds": images.seconds if made else 0.0,
            "seconds": time.monotonic() - began,
        }

    def _corrupted_images(self, part: AnyPart) -> tuple[CorruptedImages, bool]:
        """Return the corrupted images of a task, and whether they were made for it."""
        assert self._run is not None
        assert self._task is not None
        key = json.dumps([self._task.experiment["data"], self._task.data_root, self._task.robustness], sort_keys=True)
        if self._corrupted is not None and self._corrupted[0] == key:
            return self._corrupted[1], False
        self._corrupted = None  # frees the memory of another study's images first
        made = CorruptedImages(part, self._run.splits.preprocessing, **(self._task.robustness or {}))
        self._corrupted = key, made
        return made, True

    def _splits(self, settings: DataSettings, task: Task) -> Splits:
        key = (settings, task.data_root)
        if key not in self._data:
            self._data[key] = load(settings, root=Path(task.data_root) if task.data_root else None)
        return self._data[key]


def write_snapshot(snapshot: Snapshot, path: Path, experiment: Mapping[str, Any]) -> None:
    """Write the checkpoint of an experiment; the file appears whole or not at all."""
    with whole_file(path, flush=False) as part, part.open("wb") as file:  # `read_snapshot` notices half a file
        torch.save({**snapshot.to_state(), "experiment": _fingerprint(experiment)}, file)


def read_snapshot(path: Path, experiment: Mapping[str, Any]) -> Snapshot | None:
    """Read the checkpoint of an experiment; return None if it is missing, damaged, or of another experiment.

    Trials are numbered by the store: after a store was created anew, an earlier trial's file may have the same number.
    """
    try:
        state = torch.load(path, weights_only=True)
        return Snapshot.from_state(state) if state["experiment"] == _fingerprint(experiment) else None
    except FileNotFoundError:
        return None
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, UnpicklingError):
        return None  # half a file after a full disk: begin anew rather than fail


def _fingerprint(experiment: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()


def describe_error(error: BaseException) -> str:
    """Return an error as one line; if a full disk caused it, the error of the disk."""
    behind: BaseException | None = error
    while behind is not None and getattr(behind, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        behind = behind.__cause__ or behind.__context__  # torch's archive says only that a position is wrong
    error = behind if behind is not None else error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
