"""A finished study in MLflow: its trials as runs, its files, and the model that it recommends."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nas_blockout.data import Splits, load
from nas_blockout.export import Deployed
from services.analysis.comparison import ComparisonDocument
from services.analysis.verdict import arm_verdict, ship_heading, ship_rows, verdict_of
from services.budget.accounting import current
from services.files.network_files import files_of, require_same_files
from services.files.shared_place import shared_place
from services.files.study_dir import Folder
from services.finalize.winners import exported_trials, models_of, require_what_was_measured
from services.settings import Settings
from services.store import Store
from services.study_config.resolved_study import Study, parse_resolved
from services.tracking import ArmFinding, Projection, Synced, TrackingError, TrackingUnreachable, data_sets
from services.trial_record import Trial

Models = Mapping[str, nn.Module]


def sync_trials(
    study: Study, store: Store, settings: Settings, *, winners: Iterable[Trial], splits: Splits
) -> Projection | None:
    """Write the trials of a study to MLflow, so that its report can link to them.

    Args:
        study: The resolved study.
        store: Holds its trials.
        settings: Of the installation.
        winners: Its retrained trials that are exported.
        splits: Its data.

    Returns:
        What `sync_study` goes on with, or None if MLflow is off or fails: `sync_study` then says how.
    """
    if settings.tracking_uri is None:
        return None
    try:
        projection = _projection(settings.tracking_uri, study, store, splits)
        projection.sync()
        projection.link([trial.id for trial in winners])
    except TrackingError:
        return None
    return projection


def sync_study(
    study: Study,
    store: Store,
    settings: Settings,
    *,
    document: ComparisonDocument,
    models: Models,
    splits: Splits,
    log: Callable[[str], None],
    begun: Projection | None = None,
) -> None:
    """Write a study to MLflow, unless it is turned off; what MLflow refuses is a warning, and no error.

    Args:
        study: The resolved study.
        store: Holds its trials.
        settings: Of the installation.
        document: Its comparison.
        models: Its retrained models, by arm.
        splits: Its data.
        log: Called with what takes a while, and with warnings.
        begun: From `sync_trials`, or None to begin here.
    """
    if settings.tracking_uri is None:
        return
    log("writing to MLflow")
    notes: list[str] = []
    try:
        projection = begun or _projection(settings.tracking_uri, study, store, splits)
        notes = projection.notes
        projection.sync()
        _log_recommended_model(projection, document, models, exported_trials(study, store.trials(study.name)), splits)
        _finish(projection, document, study, store, settings.folder(study.name))
    except TrackingError as error:
        log(f"warning: {error}; the study is complete, `nas-blockout sync {study.name}` writes it later")
    for note in notes:
        log(f"warning: {note}")


def sync_again(settings: Settings, name: str) -> Synced:
    """Write to MLflow what is in the store but not in MLflow yet, and restore what was deleted there.

    Raises:
        NotFound: There is no such study.
        TrackingError: MLflow is turned off, does not answer or refuses.
        StudyConflict: The file of a factory has changed since the study was begun; its trials are in MLflow, its model
            is not.
        VerificationError: A network of a factory is no longer the one that was measured; likewise.
    """
    if settings.tracking_uri is None:
        raise TrackingUnreachable("MLflow is turned off: set NAS_BLOCKOUT_TRACKING_URI")
    with Store.open(settings.store_url) as store:
        row = store.study(name)
        # With how many workers the study ran last is known to its driver alone, which has told MLflow.
        config = {key: value for key, value in row.config.items() if key != "workers"}
        folder, study = Folder(settings.folder(name)), parse_resolved(row.config)
        splits = load(study.data, root=settings.data) if folder.comparison.exists() else None
        data = data_sets(splits, name=study.data.name) if splits is not None else ()
        projection = Projection(settings.tracking_uri, name, config, store, data=data, restore=True)
        synced = projection.sync()
        if splits is not None:
            document = ComparisonDocument.read(folder.comparison)
            require_same_files(store, name, files_of(study))
            winners = exported_trials(study, store.trials(name))
            models = models_of(winners, folder, splits, shared=shared_place(settings, store, name))
            require_what_was_measured({arm: (winners[arm], model) for arm, model in models.items()}, splits)
            _log_recommended_model(projection, document, models, winners, splits)
            _finish(projection, document, study, store, folder.root)
        return replace(synced, notes=tuple(projection.notes), pages=dict(projection.pages))


def _projection(uri: str, study: Study, store: Store, splits: Splits) -> Projection:
    data = data_sets(splits, name=study.data.name)
    return Projection(uri, study.name, study.to_json(), store, data=data)


def _finish(projection: Projection, document: ComparisonDocument, study: Study, store: Store, folder: Path) -> None:
    trials = store.trials(study.name)
    winners = exported_trials(study, trials)
    findings = {
        arm: ArmFinding(
            arm_verdict(document, arm),
            tuple(trial.id for trial in current(trials) if trial.arm == arm and trial.is_model),
            winners[arm].id if arm in winners else None,
        )
        for arm in document.arms
    }
    projection.finish(document.model_dump(mode="json"), folder, tags=_tags(document), findings=findings)


def _tags(document: ComparisonDocument) -> dict[str, str]:
    """Return the verdict and the recommendation, each as a tag of the study's run."""
    rows = [f"{label}: {text}" for label, text in ship_rows(document)]
    return {
        "nas.verdict": verdict_of(document).headline,
        "nas.recommended": document.shipped.arm if document.shipped is not None else "none",
        "nas.recommendation": "; ".join([ship_heading(document), *rows]),
        "mlflow.note.content": "\n\n".join(
            [f"**{verdict_of(document).headline}.**", "\n".join(f"- {row}" for row in verdict_of(document).numbers)]
        ),
    }


def _log_recommended_model(
    projection: Projection,
    document: ComparisonDocument,
    models: Models,
    winners: Mapping[str, Trial],
    splits: Splits,
) -> None:
    """Log the model that the study recommends.

    The model takes images in [0, 1]. Its example is a batch of two, from which MLflow infers that the batch is free.
    """
    best = document.shipped.arm if document.shipped is not None else None
    if best is None or best not in models:
        return
    own = splits.of_fold(winners[best].fold)  # which has its own mean and deviation
    normalization = own.preprocessing
    deployed = Deployed(models[best], normalization.mean, normalization.std).eval()
    images = normalization.undo(own.validation.images[:2].clone())
    requirements = [f"torch=={torch.__version__.split('+')[0]}"]
    projection.log_model(best, deployed, images.numpy(), class_names=splits.class_names, requirements=requirements)
