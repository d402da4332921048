"""Exporting winners: a folder of files for each, described, verified, and recorded in the store."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nas_blockout.data import Splits
from nas_blockout.experiment import origin_of, structure_of_network
from nas_blockout.export import MANIFEST, ModelDescription, export_models
from services.analysis.comparison import ComparisonDocument
from services.analysis.learned_structure import arm_memberships, arm_structure
from services.analysis.recommendation import recommendation_rows
from services.analysis.verdict import sentence
from services.files.disk_full import is_disk_full
from services.files.study_dir import Folder
from services.finalize.class_subsets import cut, folder_name, labels_of, told
from services.finalize.provenance import accuracy_text, probabilities, provenance
from services.store import Store, StoreError
from services.study_config.resolved_study import Study
from services.trial_record import Trial

_MOST_OF_A_REASON = 400  # characters; some errors of torch go on for pages


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How models are exported.

    Args:
        batch: Images that are expected at a time; None for one as well as many.
        calibrate: Whether a temperature is fitted on validation images where the study has fitted none.
    """

    batch: int | None = None
    calibrate: bool = False


def export_trials(
    study: Study,
    winners: Mapping[str, tuple[Trial, nn.Module]],
    splits: Splits,
    document: ComparisonDocument,
    *,
    folder: Folder,
    store: Store,
    meanwhile: Callable[[], None] = lambda: None,
    options: ExportOptions | None = None,
) -> list[Path]:
    """Export the models of retrained trials in every form and record them in the store; return their folders.

    Args:
        study: The resolved study.
        winners: The trials and their networks by arm.
        splits: The data.
        document: The comparison.
        folder: Of the study.
        store: Where the exports are recorded.
        meanwhile: Called once, while another process verifies.
        options: How they are exported; None for the study's own way.

    Raises:
        VerificationError: A form does not compute what the model does, or the proof of equality failed; no folder has
            been changed.
    """
    targets = {arm: folder.models / arm for arm in winners}
    chosen = options or ExportOptions()
    calibrate = chosen.calibrate or study.config.calibrate
    described = []
    for arm, (trial, model) in winners.items():
        own = splits.of_fold(trial.fold)
        description = describe(study, trial, own, document, model, folder=folder)
        likely = probabilities(trial, model, own, calibrate=calibrate)
        described.append((model, targets[arm], replace(description, batch=chosen.batch, probabilities=likely)))
    verifications = export_models(described, meanwhile=meanwhile)
    for (arm, (trial, _)), verification in zip(winners.items(), verifications, strict=True):
        store.add_export(trial.id, path=str(targets[arm]), hashes=_hashes(targets[arm]), verified=verification.ok)
    return list(targets.values())


def export_what_can_be(
    study: Study,
    winners: Mapping[str, tuple[Trial, nn.Module]],
    splits: Splits,
    document: ComparisonDocument,
    *,
    folder: Folder,
    store: Store,
    meanwhile: Callable[[], None],
) -> dict[str, str]:
    """Export retrained models as `export_trials` does; of those that cannot be, return the reasons by arm.

    A network of somebody's own may train and still be nothing that torch can export, which torch tells by errors of
    many kinds. The other arms, and all else that a study leaves, do not depend on it.

    Args:
        study: The resolved study.
        winners: The trials and their networks by arm.
        splits: The data.
        document: The comparison.
        folder: Of the study.
        store: Where the exports are recorded.
        meanwhile: Called once, whatever happens.
    """
    called, broken = list[bool](), list[Exception]()

    def once() -> None:
        if not called:
            called.append(True)
            try:
                meanwhile()
            except Exception as error:
                broken.append(error)
                raise

    try:
        export_trials(study, winners, splits, document, folder=folder, store=store, meanwhile=once)
    except Exception as error:
        if error in broken or _is_of_the_machine(error):
            raise
    else:
        return {}
    once()
    reasons = {}
    for arm, winner in winners.items():
        try:
            export_trials(study, {arm: winner}, splits, document, folder=folder, store=store)
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            reasons[arm] = " ".join(str(error).split())[:_MOST_OF_A_REASON] or type(error).__name__
    return reasons


def _is_of_the_machine(error: Exception) -> bool:
    return isinstance(error, OSError | StoreError) or is_disk_full(error)


def export_subsets(
    study: Study,
    winners: Mapping[str, tuple[Trial, nn.Module]],
    splits: Splits,
    document: ComparisonDocument,
    *,
    classes: Sequence[str],
    folder: Folder,
    store: Store,
    batch: int | None = None,
) -> dict[Path, str]:
    """Export what is left of retrained models for some classes; return the folders, with what each costs.

    Args:
        study: The resolved study.
        winners: The trials and their networks by arm.
        splits: The data.
        document: The comparison.
        classes: Names or labels, in the order in which the logits are wanted.
        folder: Of the study.
        store: Where the exports are recorded.
        batch: Images that are expected at a time; None for one as well as many.

    Raises:
        ValueError: The classes are no choice of two or more, a network cannot be cut, or the folder would be that of an
            arm.
        VerificationError: As of `export_trials`.
    """
    labels = labels_of(classes, splits.class_names)
    described: list[tuple[nn.Module, Path, ModelDescription]] = []
    for arm, (trial, model) in winners.items():
        if (name := folder_name(arm, labels)) in study.arms:
            raise ValueError(f"the models of the arm {name!r} lie where those of {arm!r} for these classes would")
        own = splits.of_fold(trial.fold)
        whole = replace(describe(study, trial, own, document, model, folder=folder), batch=batch)
        try:
            network, description = cut(model, whole, own, labels)
        except ValueError as error:
            raise ValueError(f"arm {arm!r} cannot be cut to these classes: {error}") from error
        described.append((network, folder.models / name, description))
    verifications = export_models(described)
    for (trial, _), (_, path, _), verification in zip(winners.values(), described, verifications, strict=True):
        store.add_export(trial.id, path=str(path), hashes=_hashes(path), verified=verification.ok)
    return {path: told(description, path) for _, path, description in described}


def describe(
    study: Study, trial: Trial, splits: Splits, document: ComparisonDocument, model: nn.Module, *, folder: Folder
) -> ModelDescription:
    """Return what is exported with the weights of a retrained trial: names, preprocessing, costs, accuracy, verdict.

    The data are those that the trial was trained on: with folds, where its own is held out.
    """
    arm, result = document.arms[trial.arm], trial.outcome
    passes = result.get("teacher_passes") or 0
    structure = structure_of_network(model)
    # A comparison from before structures were recorded has none; what one network says of itself is always known.
    told = arm.structure or arm_structure([trial], trial, structure)
    memberships = arm.memberships or arm_memberships([trial])
    teacher = f"; a teacher was asked {passes:,} times for soft targets of this model" if passes else ""
    return ModelDescription(
        name=trial.arm,
        study=study.name,
        question=study.config.question,
        data=study.data.name,
        train_images=len(splits.train),
        class_names=splits.class_names,
        channels=splits.preprocessing.channels,
        height=splits.preprocessing.height,
        width=splits.preprocessing.width,
        mean=splits.preprocessing.mean,
        std=splits.preprocessing.std,
        parameters=int(result["parameters"]),
        macs=int(result["macs"]),
        seed=trial.seed,
        test_accuracy=result.get("test_accuracy"),
        test_images=result.get("test_images"),
        test_balanced_accuracy=result.get("test_balanced_accuracy"),
        accuracy=accuracy_text(arm),
        verdict=sentence(document),
        spent=f"{arm.cost.sample_passes:,} sample passes{teacher}",
        recommendation=_recommendation(document, trial.arm),
        structure=structure,
        branches=told.summary if told is not None else None,
        memberships=memberships.summary if memberships is not None else None,
        architecture=result.get("architecture"),
        blocks=_blocks(result.get("blocks")),
        equality=result.get("equality"),
        background=study.data.background_of_images,
        resize_size=study.data.short_side,
        latency=arm.latency_ms.text if arm.latency_ms else None,
        origin=origin_of(trial.config, model),
        provenance=provenance(study, trial, splits, document, environment=folder.root / "environment.json"),
    )


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of an exported model: those that its verification lists, and its own."""
    manifest = (folder / MANIFEST).read_bytes()
    files: dict[str, str] = json.loads(manifest)["files"]
    return {**files, MANIFEST: hashlib.sha256(manifest).hexdigest()}


def _blocks(recorded: Mapping[str, Any] | None) -> str | None:
    """Return what a network that skips blocks keeps, and what its policy network costs."""
    if not recorded:
        return None
    kept = [sum(recorded["paths"][path]) for path in recorded["path_of"]]
    full = recorded["fixed"] + sum(recorded["blocks"])
    cost, count = recorded["policy"], len(recorded["blocks"])
    policy = (
        f"the policy network costs {cost:,} multiply-accumulates, {cost / full:.1%} of" if cost else "no policy, of"
    )
    return (
        f"{sum(kept) / len(kept):.2f} of {count} on average, on {len(recorded['paths']):,} distinct paths; {policy} "
        f"{full:,} with all blocks. The exported forms compute every block: only the module of nas_blockout skips any"
    )


def _recommendation(document: ComparisonDocument, arm: str) -> tuple[tuple[str, str], ...]:
    """Return which model the study recommends, this one or another, as rows of a label and a text."""
    found = document.shipped
    if found is None:
        return (("recommended model", f"none: {document.reason}"),)
    if found.arm != arm:
        return (("recommended model", f"another one: {found.model} of this study, because {found.why}"),)
    told = dict(recommendation_rows(found))
    return (("recommended model", "this one"), ("why", told["why"]), ("not known", told["not known"]))
