"""What a study leaves behind once its trials have ended: comparison, exported models, report, runs in MLflow."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_blockout.architecture import Architecture
from nas_blockout.data import Splits, load
from nas_blockout.experiment import Experiment, rebuild
from nas_blockout.export import Deployed, load_weights, measure_latency
from services.analysis.comparison import ComparisonDocument, Trial, build
from services.budget.accounting import current, stale
from services.execution.extension import earlier_comparisons
from services.files.remote import fetch, place_of, put_folder
from services.files.study_dir import Folder, write_csv, write_json
from services.finalize.export import export_trials
from services.mlflow_sync import Projection, Synced, TrackingError
from services.report.view import ReportView, TrialView
from services.settings import Settings
from services.store import NotFound, Store, TrialRow
from services.study_config.schema import Study, parse_resolved

LATENCY_BATCHES = (1, 256)
_FLAT = (
    "validation_accuracy",
    "validation_loss",
    "test_accuracy",
    "test_loss",
    "parameters",
    "macs",
    "threshold",
    "latency_ms",
    "stopped_after",
    "architecture_hash",
)
Log = Callable[[str], None]
Winner = tuple[str, nn.Module, Splits]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finished study left: the comparison, and how many of its trials failed."""

    document: ComparisonDocument
    failed: int


def finish(study: Study, store: Store, settings: Settings, *, splits: Splits, log: Log) -> Finished:
    """Write everything that a study leaves behind, unless that is done, and end it in the store.

    Args:
        study: The resolved study; all its trials have ended.
        store: Holds its trials.
        settings: Of the installation.
        splits: Its data.
        log: Told what takes a while, and of what could not be done.

    Raises:
        ArtifactError: Shared storage cannot be reached: the same again goes on with what is left to do.
    """
    folder = Folder(settings.folder(study.name))
    rows = store.trials(study.name)
    failed = sum(row.state == "failed" for row in rows)
    if store.study(study.name).state == "complete" and folder.comparison.exists():
        return Finished(ComparisonDocument.read(folder.comparison), failed)
    winners = exported_trials(study, rows)
    log("measuring, exporting and verifying the winners")
    models = models_of(winners, folder, splits, shared=settings.shared(study.name))
    document = write_comparison(study, rows, folder, latency=_latencies(models, splits))
    wanted = study.config.export
    exported = {arm: (row, models[arm]) for arm, row in winners.items() if wanted is None or arm in wanted}

    def report() -> None:
        log("writing the report")
        write_report(study, store, rows, document, splits, folder)

    export_trials(study, exported, splits, document, folder=folder, store=store, meanwhile=report)
    _project(study, store, settings, document, _winner(document, models, splits), log=log)
    _share(folder, settings.shared(study.name), log=log)
    store.finish_study(study.name, "complete")
    shutil.rmtree(folder.scratch / "checkpoints", ignore_errors=True)
    return Finished(document, failed)


def write_comparison(
    study: Study, rows: Sequence[TrialRow], folder: Folder, *, latency: Mapping[str, Mapping[str, float]]
) -> ComparisonDocument:
    """Write ``comparison.json`` and ``trials.csv``; return the comparison."""
    extensions = len(earlier_comparisons(folder))
    document = build(study, [Trial.of(row) for row in rows], latency_ms=latency, extensions=extensions)
    write_json(folder.comparison, document.model_dump(mode="json"))
    gone = {row.id for row in stale(rows)}
    write_csv(folder.root / "trials.csv", [{**flat(row), "stale": row.id in gone} for row in rows])
    return document


def write_report(
    study: Study, store: Store, rows: Sequence[TrialRow], document: ComparisonDocument, splits: Splits, folder: Folder
) -> None:
    """Write ``report/index.html`` and its figures."""
    from services import report  # draws figures, which takes a second to import
    from services.report.album import Album

    view = ReportView(
        comparison=document.model_dump(mode="json"),
        study=study.to_json(),
        environment=json.loads((folder.root / "environment.json").read_text()),
        trials=[_view(row, store) for row in current(rows)],
        class_names=splits.class_names,
        hierarchy=splits.hierarchy or {},
        importance=_importance(study, rows),
        album=Album(splits),
    )
    report.write(view, folder)


def _importance(study: Study, rows: Sequence[TrialRow]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return, by arm, what its searched parameters decided, and what chance makes of it."""
    from services.analysis.importance import importances

    completed: dict[str, list[tuple[Mapping[str, Any], float]]] = {arm: [] for arm in study.arms}
    for row in sorted(rows, key=lambda row: row.number):
        if row.phase == "search" and row.state == "complete" and row.score is not None and row.arm in completed:
            completed[row.arm].append((row.params, row.score))
    found = {arm: importances(trials) for arm, trials in completed.items()}
    return {arm: {name: (each.share, each.by_chance) for name, each in own.items()} for arm, own in found.items()}


def export_again(settings: Settings, name: str, arm: str | None, *, batch: int | None = None) -> list[Path]:
    """Export the winners of a study once more, for so many images at a time; return their folders.

    Raises:
        NotFound: There is no such study, it has no such arm, or the arm has no retrained model.
    """
    with Store.open(settings.store_url) as store:
        study = parse_resolved(store.study(name).config)
        folder = Folder(settings.folder(name))
        winners = exported_trials(study, store.trials(name))
        if arm is not None and arm not in winners:
            raise NotFound(f"study {name!r} has no retrained model of an arm {arm!r}; it has {', '.join(winners)}")
        if not folder.comparison.exists():
            raise NotFound(f"study {name!r} has not finished; `nas-blockout run {name}` goes on with it")
        document = ComparisonDocument.read(folder.comparison)
        splits = load(study.data, root=settings.data)
        chosen = {arm: winners[arm]} if arm is not None else winners
        models = models_of(chosen, folder, splits, shared=settings.shared(name))
        found = {each: (row, models[each]) for each, row in chosen.items()}
        exported = export_trials(study, found, splits, document, folder=folder, store=store, batch=batch)
        _share(folder, settings.shared(name))
        return exported


def sync_again(settings: Settings, name: str) -> Synced:
    """Write to MLflow what the store has and MLflow does not.

    Raises:
        NotFound: There is no such study.
        TrackingError: MLflow is turned off or does not answer.
    """
    if settings.tracking_uri is None:
        raise TrackingError("MLflow is turned off: set NAS_BLOCKOUT_TRACKING_URI")
    with Store.open(settings.store_url) as store:
        row = store.study(name)
        projection = Projection(settings.tracking_uri, name, row.config, store)
        done = projection.sync()
        folder = Folder(settings.folder(name))
        if folder.comparison.exists():
            study = parse_resolved(row.config)
            document = ComparisonDocument.read(folder.comparison)
            splits = load(study.data, root=settings.data)
            winners = exported_trials(study, store.trials(name))
            models = models_of(winners, folder, splits, shared=settings.shared(name))
            if (winner := _winner(document, models, splits)) is not None:
                _log_model(projection, *winner)
            projection.finish(document.model_dump(mode="json"), folder.root)
        return done


def exported_trials(study: Study, rows: Sequence[TrialRow]) -> dict[str, TrialRow]:
    """Return, by arm, the retrained trial with the best validation accuracy, the lowest seed of equals."""
    found: dict[str, TrialRow] = {}
    for row in sorted(current(rows), key=lambda row: row.seed):
        if row.phase != "retrain" or row.state != "complete" or row.score is None:
            continue
        best = found.get(row.arm)
        if best is None or (best.score or 0.0) < row.score:
            found[row.arm] = row
    return {arm: found[arm] for arm in study.arms if arm in found}


def models_of(
    rows: Mapping[str, TrialRow], folder: Folder, splits: Splits, *, shared: str | None
) -> dict[str, nn.Module]:
    """Return the trained networks of retrained trials by arm, in eval mode.

    Args:
        rows: The trials by arm.
        folder: Of the study; weights that another machine has written are fetched to it.
        splits: The data.
        shared: URL of the study's folder on shared storage, or None.

    Raises:
        ArtifactError: Shared storage cannot be reached.
    """
    for row in rows.values() if shared is not None else ():
        path = folder.weights(row.id)
        fetch(place_of(path, folder.root, shared), path)
    return {arm: model_of(row, folder, splits) for arm, row in rows.items()}


def model_of(row: TrialRow, folder: Folder, splits: Splits) -> nn.Module:
    """Return the trained network of a retrained trial, in eval mode."""
    document = (row.result or {}).get("architecture")
    architecture = Architecture.from_json(document) if document else None
    model = rebuild(Experiment.from_json(row.experiment), architecture, splits)
    load_weights(model, folder.weights(row.id))
    return model.eval()


def flat(row: TrialRow) -> dict[str, Any]:
    """Return a trial as one row of ``trials.csv``: identity, cost, outcome, then its parameters."""
    result = row.result or {}
    parameters = row.params.get("values", {})
    return {
        "trial": row.id,
        "arm": row.arm,
        "phase": row.phase,
        "number": row.number,
        "seed": row.seed,
        "state": row.state,
        "reason": row.reason,
        "replicate_of": row.replicate_of,
        "infeasible": len(row.params.get("infeasible", ())),
        "sample_passes": row.sample_passes,
        "seconds": round(row.seconds, 3),
        **{key: result.get(key) for key in _FLAT},
        **{f"gap.{key}": value for key, value in (result.get("gap") or {}).items()},
        **{f"param.{key}": value for key, value in parameters.items()},
    }


def _latencies(models: Mapping[str, nn.Module], splits: Splits) -> dict[str, dict[str, float]]:
    found = {}
    for arm, model in models.items():
        milliseconds = measure_latency(model, splits.shape, batches=LATENCY_BATCHES)
        found[arm] = {f"batch_{batch}": milliseconds[batch] for batch in LATENCY_BATCHES}
    return found


def _view(row: TrialRow, store: Store) -> TrialView:
    epochs = [
        {
            "epoch": epoch.epoch,
            "stage": epoch.stage,
            "sample_passes": epoch.sample_passes,
            "seconds": epoch.seconds,
            **epoch.metrics,
        }
        for epoch in store.epochs(row.id)
    ]
    return TrialView(
        arm=row.arm,
        phase=row.phase,
        number=row.number,
        seed=row.seed,
        state=row.state,
        reason=row.reason,
        score=row.score,
        params=row.params.get("values", {}),
        sample_passes=row.sample_passes,
        seconds=row.seconds,
        result=row.result or {},
        epochs=epochs,
    )


def _share(folder: Folder, shared: str | None, *, log: Log = lambda text: None) -> None:
    """Copy what a study leaves behind to shared storage, the comparison last."""
    if shared is not None:
        log(f"copying the results to {shared}")
        put_folder(folder.root, shared, last=folder.comparison.name)


def _project(
    study: Study,
    store: Store,
    settings: Settings,
    document: ComparisonDocument,
    winner: Winner | None,
    *,
    log: Log,
) -> None:
    if settings.tracking_uri is None:
        return
    log("writing to MLflow")
    try:
        projection = Projection(settings.tracking_uri, study.name, study.to_json(), store)
        projection.sync()
        if winner is not None:
            _log_model(projection, *winner)
        projection.finish(document.model_dump(mode="json"), settings.folder(study.name))
    except TrackingError as error:
        log(f"{error}; the study is complete, `nas-blockout sync {study.name}` writes it later")


def _winner(document: ComparisonDocument, models: Mapping[str, nn.Module], splits: Splits) -> Winner | None:
    """Return the arm whose model is logged: the best by mean validation accuracy, which no test image has a part in."""
    means = {arm: accuracy.mean for arm in models if (accuracy := document.arms[arm].validation_accuracy) is not None}
    best = max(means, key=lambda arm: means[arm], default=None)
    return (best, models[best], splits) if best is not None else None


def _log_model(projection: Projection, arm: str, model: nn.Module, splits: Splits) -> None:
    """Log a model that takes images in [0, 1], with a batch of two so that MLflow keeps the batch free."""
    normalization = splits.preprocessing
    deployed = Deployed(model, normalization.mean, normalization.std).eval()
    images = normalization.undo(splits.validation.images[:2].clone())
    requirements = [f"torch=={torch.__version__.split('+')[0]}"]
    projection.log_model(arm, deployed, images.numpy(), class_names=splits.class_names, requirements=requirements)
