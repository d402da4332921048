"""What a model card says of where a model comes from, and how good its probabilities are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.data import Loader, Splits
from nas_blockout.data.sources.registry import CHOICES
from nas_blockout.experiment import EVALUATION_BATCH
from nas_blockout.export.card_sections import Provenance, Rival
from nas_blockout.serialization import count_of
from nas_blockout.statistics.calibration import calibrated
from nas_blockout.statistics.novelty import image_statistics, thresholds_of
from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.seed_metrics import Accuracy
from services.study_config.resolved_study import Study
from services.trial_record import Trial

_SHOWN = ("torch", "torchvision", "optuna", "scikit-learn", "numpy")


def provenance(
    study: Study, trial: Trial, splits: Splits, document: ComparisonDocument, *, environment: Path
) -> Provenance:
    """Return where a model comes from: data, search, rivals, software.

    Args:
        study: The resolved study.
        trial: The retrained trial of the model.
        splits: The data.
        document: The comparison.
        environment: File ``environment.json`` of the study, which may be missing.
    """
    arm, resolved = document.arms[trial.arm], study.arms[trial.arm]
    recorded = json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else {}
    packages: Mapping[str, str | None] = recorded.get("packages", {})
    versions = {
        **{
            name: recorded[key]
            for name, key in (("nas_blockout", "nas_blockout"), ("Python", "python"))
            if key in recorded
        },
        **{name: version for name in _SHOWN if (version := packages.get(name)) is not None},
    }
    accuracy = arm.test_accuracy
    return Provenance(
        source=CHOICES.named(study.data.name).summary,
        validation_images=len(splits.validation),
        split_seed=study.data.split_seed,
        folds=study.data.folds,
        fold=trial.fold,
        augmentation=study.data.augment,
        epochs=trial.config.training.epochs,
        searcher=resolved.searcher,
        trials=arm.trials,
        budget=_budget(document),
        seeds=tuple(sorted(map(int, accuracy.per_seed))) if accuracy else (trial.seed,),
        mean_accuracy=accuracy.mean if accuracy else None,
        interval=accuracy.ci95 if accuracy else None,
        seeds_cover=arm.seeds_cover,
        rivals=[
            Rival(name, other.role, accuracy_text(other), other.macs)
            for name, other in document.arms.items()
            if name != trial.arm
        ],
        environment=versions,
        commit=recorded.get("commit"),
    )


def accuracy_text(arm: ArmResult) -> str:
    """Return the test accuracy of an arm over its seeds, with its interval and their number."""
    accuracy, balanced = arm.test_accuracy, arm.test_balanced_accuracy
    if accuracy is None:
        return "not measured"
    return f"{_mean(accuracy)}, {count_of(len(accuracy.per_seed), 'seed')}" + (
        f"; balanced over the classes {_mean(balanced)}" if balanced is not None else ""
    )


def _mean(accuracy: Accuracy) -> str:
    interval = f", 95% interval {accuracy.ci95[0]:.2%} to {accuracy.ci95[1]:.2%}" if accuracy.ci95 else ""
    return f"{accuracy.mean:.2%} on average{interval}"


def probabilities(trial: Trial, model: nn.Module, splits: Splits, *, calibrate: bool) -> dict[str, Any]:
    """Return how logits become probabilities, and below which energy an image is unlike those of validation.

    Only validation images are read. What test images say of the temperature was found when they were evaluated, once,
    or is not known.

    Args:
        trial: The retrained trial of the model.
        model: Its network, in eval mode, on the processor.
        splits: The data.
        calibrate: Whether to fit a temperature if there is none.
    """
    logits, labels, statistics = _of_validation(model, splits)
    found: dict[str, Any] = {}
    if calibration := trial.outcome.get("calibration") or (calibrated((logits, labels)) if calibrate else None):
        found |= {"temperature": calibration["temperature"], "calibration": calibration}
    if (novelty := thresholds_of(logits, statistics)) is not None:
        found["novelty"] = novelty
    return found


@torch.no_grad()
def _of_validation(model: nn.Module, splits: Splits) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels and image statistics of the validation images."""
    mean, std = (
        torch.tensor(list(each)).view(1, -1, 1, 1) for each in (splits.preprocessing.mean, splits.preprocessing.std)
    )
    logits, labels, statistics = [], [], []
    for x, y in Loader(splits.validation, EVALUATION_BATCH).batches():
        logits.append(model(x))
        labels.append(y)
        statistics.append(image_statistics(x * std + mean))
    return torch.cat(logits), torch.cat(labels), torch.cat(statistics)


def _budget(document: ComparisonDocument) -> str:
    units = {"sample_passes": "sample passes", "seconds": "seconds", "trainings": "trainings"}
    limits = document.budget.limits or {document.budget.unit: document.budget.per_arm}
    return " or ".join(f"{amount:,} {units[unit]}" for unit, amount in limits.items())
