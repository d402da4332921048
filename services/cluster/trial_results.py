"""The result of a trial that succeeded: scores, costs, and for a retrained model the test and its weights."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.data import AnyPart, Loader
from nas_blockout.data.corruptions import CorruptedImages
from nas_blockout.devices import Usage
from nas_blockout.experiment import EVALUATION_BATCH, Run, notes_of, paths_taken, structure_of_network
from nas_blockout.export import measure_latency, save_weights
from nas_blockout.methods.blockdrop import BlockDrop
from nas_blockout.statistics.calibration import calibrated
from nas_blockout.training import evaluate, keeping_logits, precision_note
from services.cluster.tasks import Task
from services.files.remote import writing


class TrialResults:
    """Computes the results of trials, and keeps corrupted images in memory between them."""

    def __init__(self) -> None:
        self._corrupted: tuple[str, CorruptedImages] | None = None

    def of(self, run: Run, task: Task, *, usage: Usage | None = None, notes: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the result of a run that has ended, as plain JSON types; write the weights if the task asks for them.

        Args:
            run: With an outcome.
            task: What it ran.
            usage: What training took of the device and of memory, if it was measured.
            notes: What else the result should say, one sentence each.
        """
        outcome, last = run.outcome, run.records[-1]
        assert outcome is not None
        measured = self._measured(run, task, outcome.model)
        outcome.model.cpu()  # to look at it, and to save it
        derivation, structure = outcome.derivation, structure_of_network(outcome.model)
        result: dict[str, Any] = {
            "validation_accuracy": last.validation_accuracy,
            "validation_balanced_accuracy": last.validation_balanced_accuracy,
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
            "probabilities": derivation.probabilities if derivation else dict(outcome.probabilities) or None,
            "membership_ends": dict(outcome.membership_ends) or None,
            "overhead_seconds": derivation.overhead_seconds if derivation else 0.0,
            "teacher_passes": outcome.teacher_passes,
        }
        if usage is not None:
            result["usage"] = usage.to_json()
        splits = run.splits
        of_network = notes_of(run.experiment, shape=splits.shape, classes=len(splits.class_names))
        of_precision = precision_note(run.experiment.training.precision, task.device)
        if found := [*of_network, *notes, *([of_precision] if of_precision else [])]:
            result["notes"] = found
        if task.model is not None:
            with writing(task.model) as path:
                save_weights(outcome.model, path)
        return result | measured

    def _measured(self, run: Run, task: Task, model: nn.Module) -> dict[str, Any]:
        """Return what a task asks to be measured on the device where it ran: latency, and the test with all its parts.

        On another device the same network takes other times, and over many test sets much longer.
        """
        measured: dict[str, Any] = {}
        if task.measures_latency:
            found = measure_latency(model, run.splits.shape, batches=(1,), device=run.device)
            measured |= {"latency_ms": found[1], "latency_device": torch.device(run.device).type}
        if task.evaluates_test:
            measured |= self._test_results(run, task, model)
        return measured

    def _test_results(self, run: Run, task: Task, model: nn.Module) -> dict[str, Any]:
        part, classes = run.splits.test(), len(run.splits.class_names)
        tested = Loader(part.placed(run.placement), EVALUATION_BATCH)
        precision = run.experiment.training.precision
        kept: AbstractContextManager[list[Tensor]] = keeping_logits(model) if task.calibrates else nullcontext([])
        with kept as logits:
            test = evaluate(model, tested, device=run.device, precision=precision)
        calibration = (
            calibrated(_validation_logits(run, model), (torch.cat(logits), part.labels.cpu())) if logits else None
        )
        robust = self._robustness(run, task, model, part, test.predictions)
        # The cell of a label and a prediction has the position label * classes + prediction: rows are labels.
        cells = torch.bincount(part.labels * classes + test.predictions, minlength=classes**2)
        return {
            "test_accuracy": test.accuracy,
            "test_balanced_accuracy": test.balanced_accuracy,
            "test_loss": test.loss,
            "test_images": len(part.labels),
            "confusion": cells.view(classes, classes).tolist(),
            "predictions": test.predictions.tolist(),
            **(
                {"blocks": paths_taken(model, tested.batches(), device=run.device)}
                if isinstance(model, BlockDrop)
                else {}
            ),
            **({"robustness": robust} if robust else {}),
            **({"calibration": calibration} if calibration else {}),
        }

    def _robustness(
        self, run: Run, task: Task, model: nn.Module, part: AnyPart, predictions: Tensor
    ) -> dict[str, Any] | None:
        """Evaluate the model on corrupted test images, which are generated once and cached for later models."""
        if task.robustness is None:
            return None
        images, generated = self._corrupted_images(run, task, part)
        began = time.monotonic()
        errors: dict[str, list[float]] = {}
        for kind, _, corrupted in images.parts():
            found = evaluate(model, Loader(corrupted, EVALUATION_BATCH), device=run.device)
            errors.setdefault(kind, []).append(1 - found.accuracy)
        return {
            "images": len(images),
            "severities": list(task.robustness["severities"]),
            "clean_error": float((predictions[images.index] != images.labels).float().mean()),
            "errors": errors,
            "making_seconds": images.seconds if generated else 0.0,
            "seconds": time.monotonic() - began,
        }

    def _corrupted_images(self, run: Run, task: Task, part: AnyPart) -> tuple[CorruptedImages, bool]:
        """Return the corrupted images of a task, and whether this call generated them."""
        key = json.dumps([task.experiment["data"], task.data_root, task.robustness], sort_keys=True)
        if self._corrupted is not None and self._corrupted[0] == key:
            return self._corrupted[1], False
        self._corrupted = None  # frees the memory of the previous study's images first
        images = CorruptedImages(part, run.splits.preprocessing, **(task.robustness or {}))
        self._corrupted = key, images
        return images, True


def _validation_logits(run: Run, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the logits and labels of the validation images, which a temperature is fitted on."""
    part = run.splits.validation
    with keeping_logits(model) as logits:
        evaluate(model, Loader(part, EVALUATION_BATCH), device=run.device, precision=run.experiment.training.precision)
    return torch.cat(logits), part.labels.cpu()
