"""The worker: runs one trial at a time, epoch by epoch, and writes a checkpoint about every two seconds.

A worker reads its task and the data, writes its checkpoint and its model, and returns reports. It holds no credentials
and opens no database. It works in the same way in a Ray actor and in a plain process.
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
from nas_blockout.experiment import (
    EVALUATION_BATCH,
    Experiment,
    Run,
    Snapshot,
    notes_of,
    paths_taken,
    structure_of_network,
)
from nas_blockout.export import measure_latency, save_weights
from nas_blockout.methods.blockdrop import BlockDrop
from nas_blockout.training import EpochRecord, evaluate
from services.files.remote import reading, writing

REPORT_SECONDS = 2.0  # what a trial loses at most, besides one epoch, when its worker dies


@dataclass(frozen=True, slots=True)
class Task:
    """One trial as it is sent to a worker: what to run, and where its files go.

    Args:
        trial: Identity of the trial in the store.
        experiment: What to run, as plain JSON types.
        evaluates_test: Whether the trained model is evaluated, once, on the test images.
        checkpoint: File from which an interrupted trial continues; the worker writes it with every report, the driver
            removes it. A path, or a URL if workers on several machines share storage.
        model: File for the trained weights, a path or a URL, or None to save none.
        data_root: Folder of the data sets, or None for the default locations.
        threads: Number of threads used for training.
        device: Device used for training.
        rungs: Epochs after which to report before training on: the driver may stop the trial there.
        measures_latency: Whether the time of a forward pass of the trained network is measured.
        robustness: Corrupted test images on which the trained model is evaluated as well: ``images``, ``severities``,
            ``seed``; None for no such evaluation.
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
        records: Epoch records; after a restart, those of the checkpoint are reported again.
        failure: Why the trial failed, or None.
        result: Result of the trial, in the last report of one that succeeded.
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
        """Return the report as JSON text, since Tune would flatten a dictionary."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Report":
        """Read a report back."""
        document = json.loads(text)
        return cls(**{**document, "records": tuple(document["records"])})


class Worker:
    """Runs tasks one after another and keeps the data in memory between them.

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
        """Start a trial, or continue it from its checkpoint if there is one."""
        torch.set_num_threads(task.threads)
        self._task, self._run, self._error, self._unreported = task, None, None, []
        try:
            experiment = Experiment.from_json(task.experiment)
            with reading(task.checkpoint) as path:
                snapshot = read_snapshot(path, task.experiment)
            self._run = Run(experiment, self._splits(experiment.data, task), device=task.device, start=snapshot)
            # The worker before may have died before its last report arrived; the driver ignores what it has already.
            self._unreported = list(snapshot.records) if snapshot else []
        except Exception as error:  # noqa: BLE001  # the trial fails, the worker continues with the next one
            self._error = describe_error(error)

    def step(self) -> Report:
        """Train until the next report: the time is up, a rung is reached or the trial has ended.

        The checkpoint is written before the report is returned, so that no reported epoch is ever trained again.
        """
        assert self._task is not None, "start a task first"
        began, trained = time.monotonic(), False
        try:
            # After a restart the checkpoint may end at a rung: the driver decides before another epoch is trained.
            while self._error is None and not self._at_rung():
                if not self._one_epoch():
                    return self._report(result=self._result())
                trained = True
                if time.monotonic() - began >= self._report_seconds:
                    break
            if trained and self._error is None and self._run is not None:
                with writing(self._task.checkpoint) as path:
                    write_snapshot(self._run.snapshot(), path, self._task.experiment)
        except Exception as error:  # noqa: BLE001  # reported as the failure of the trial
            self._error = describe_error(error)
        return self._report(failure=self._error)

    def _at_rung(self) -> bool:
        """Whether the driver must decide whether to stop the trial before another epoch is trained."""
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
        derivation, structure = outcome.derivation, structure_of_network(outcome.model)
        result: dict[str, Any] = {
            "validation_accuracy": last.validation_accuracy,
            "validation_loss": last.validation_loss,
            "parameters": outcome.parameters,
            "macs": outcome.macs,
            "architecture": outcome.architecture.to_json() if outcome.architecture else None,
            "architecture_hash": outcome.architecture.hash if outcome.architecture else None,
            "structure": structure.to_json() if structure else None,
            "gap": {**derivation.gap, "finetuned": last.validation_accuracy} if derivation else None,
            "threshold": derivation.threshold if derivation else None,
            "thresholds": derivation.thresholds if derivation else None,
            "equality": derivation.equality if derivation else None,
            "probabilities": derivation.probabilities if derivation else None,
            "overhead_seconds": derivation.overhead_seconds if derivation else 0.0,
            "teacher_passes": outcome.teacher_passes,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        }
        splits = self._run.splits
        if notes := notes_of(self._run.experiment, shape=splits.shape, classes=len(splits.class_names)):
            result["notes"] = list(notes)
        if self._task.measures_latency:
            result["latency_ms"] = measure_latency(outcome.model, self._run.splits.shape, batches=(1,))[1]
        if self._task.evaluates_test:
            result |= self._test_results(outcome.model)
        if self._task.model is not None:
            with writing(self._task.model) as path:
                save_weights(outcome.model, path)
        return result

    def _test_results(self, model: torch.nn.Module) -> dict[str, Any]:
        assert self._run is not None
        part = self._run.splits.test()
        tested = Loader(part, EVALUATION_BATCH)
        test = evaluate(model, tested)
        classes = len(self._run.splits.class_names)
        robust = self._robustness(model, part, test.predictions)
        # The cell of a label and a prediction has the position label * classes + prediction: rows are labels.
        cells = torch.bincount(part.labels * classes + test.predictions, minlength=classes**2)
        return {
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_images": len(part.labels),
            "confusion": cells.view(classes, classes).tolist(),
            "predictions": test.predictions.tolist(),
            **({"blocks": paths_taken(model, tested.batches())} if isinstance(model, BlockDrop) else {}),
            **({"robustness": robust} if robust else {}),
        }

    def _robustness(self, model: torch.nn.Module, part: AnyPart, predictions: torch.Tensor) -> dict[str, Any] | None:
        """Evaluate the model on corrupted test images, which are generated once and cached for later models."""
        assert self._task is not None
        if self._task.robustness is None:
            return None
        images, generated = self._corrupted_images(part)
        began = time.monotonic()
        errors: dict[str, list[float]] = {}
        for kind, _, corrupted in images.parts():
            errors.setdefault(kind, []).append(1 - evaluate(model, Loader(corrupted, EVALUATION_BATCH)).accuracy)
        return {
            "images": len(images),
            "severities": list(self._task.robustness["severities"]),
            "clean_error": float((predictions[images.index] != images.labels).float().mean()),
            "errors": errors,
            "making_seconds": images.seconds if generated else 0.0,
            "seconds": time.monotonic() - began,
        }

    def _corrupted_images(self, part: AnyPart) -> tuple[CorruptedImages, bool]:
        """Return the corrupted images of a task, and whether this call generated them."""
        assert self._run is not None
        assert self._task is not None
        key = json.dumps([self._task.experiment["data"], self._task.data_root, self._task.robustness], sort_keys=True)
        if self._corrupted is not None and self._corrupted[0] == key:
            return self._corrupted[1], False
        self._corrupted = None  # frees the memory of the previous study's images first
        images = CorruptedImages(part, self._run.splits.preprocessing, **(self._task.robustness or {}))
        self._corrupted = key, images
        return images, True

    def _splits(self, settings: DataSettings, task: Task) -> Splits:
        key = (settings, task.data_root)
        if key not in self._data:
            self._data[key] = load(settings, root=Path(task.data_root) if task.data_root else None)
        return self._data[key]


def write_snapshot(snapshot: Snapshot, path: Path, experiment: Mapping[str, Any]) -> None:
    """Write the checkpoint of an experiment; the file is replaced atomically."""
    # Not flushed to disk, since checkpoints are frequent: `read_snapshot` detects a damaged file.
    with whole_file(path, flush=False) as part, part.open("wb") as file:
        torch.save({**snapshot.to_state(), "experiment": _fingerprint(experiment)}, file)


def read_snapshot(path: Path, experiment: Mapping[str, Any]) -> Snapshot | None:
    """Read the checkpoint of an experiment; return None if it is missing, damaged, or of another experiment.

    The file of another experiment may have the same name: files are named by the number of the trial, and a new store
    numbers its trials from the start.
    """
    try:
        state = torch.load(path, weights_only=True)
        return Snapshot.from_state(state) if state["experiment"] == _fingerprint(experiment) else None
    except FileNotFoundError:
        return None
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, UnpicklingError):
        return None  # a damaged file, as after a full disk: start again rather than fail


def _fingerprint(experiment: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()


def describe_error(error: BaseException) -> str:
    """Return an error as one line; if a full disk caused it, the error of the disk."""
    # On a full disk torch raises an error about a wrong position in its archive; the disk's error is its cause.
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        cause = cause.__cause__ or cause.__context__
    error = cause if cause is not None else error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
