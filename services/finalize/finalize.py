"""Finalizing a study: writes everything that it leaves behind, in order, and ends it in the store."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nas_blockout.data import Splits, load
from nas_blockout.export.latency import SECONDS_PER_MODEL
from nas_blockout.serialization import count_of, near
from nas_blockout.structure.branching import Structure
from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument
from services.analysis.latency import Latency
from services.analysis.searches.pareto import Timed
from services.analysis.searches.proxy_check import RungRanking, rung_rankings
from services.budget.accounting import stale
from services.files.network_files import files_of, require_same_files
from services.files.remote import put_folder
from services.files.shared_place import shared_place
from services.files.study_dir import Folder, write_csv, write_json
from services.finalize.export import ExportOptions, export_subsets, export_trials, export_what_can_be
from services.finalize.mlflow_pages import full_addresses, pages_of
from services.finalize.mlflow_runs import sync_study, sync_trials
from services.finalize.trial_table import row_of
from services.finalize.winners import (
    exported_trials,
    latencies,
    models_of,
    require_what_was_measured,
    search_latencies,
    structures,
)
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.resolved_study import Study, parse_resolved
from services.trial_record import Trial, TrialKey

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finished study left.

    Args:
        document: The comparison.
        failed: How many of its trials failed.
        unexported: Why arms were not exported.
        pages: Addresses of its pages in MLflow relative to that of MLflow, by what they show.
    """

    document: ComparisonDocument
    failed: int
    unexported: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)


def finish(study: Study, store: Store, settings: Settings, *, splits: Splits, log: Log) -> Finished:
    """Write everything that a study leaves behind, unless that is done, and end it in the store.

    Args:
        study: The resolved study; all its trials have ended.
        store: Holds its trials.
        settings: Of the installation.
        splits: Its data.
        log: Called with what takes a while, and with warnings of what could not be done.

    Raises:
        ArtifactError: Shared storage cannot be reached; the same call again does what is left to do.
    """
    folder = Folder(settings.folder(study.name))
    trials = store.trials(study.name)
    failed = sum(trial.state == "failed" for trial in trials)
    if store.study(study.name).state == "complete" and folder.comparison.exists():
        pages = pages_of(store, study.name)
        return Finished(ComparisonDocument.read(folder.comparison), failed, pages=pages)
    winners = exported_trials(study, trials)
    models = models_of(winners, folder, splits, shared=shared_place(settings, store, study.name))
    seconds = SECONDS_PER_MODEL * len(models)
    log(f"measuring the latency of {count_of(len(models), 'model')} in turn, for about {seconds:.0f} s")
    document = write_comparison(
        study,
        trials,
        folder,
        latency=latencies(models, splits),
        search_latency=search_latencies(study, trials, splits),
        structures=structures(models),
        rungs=rung_rankings(study, trials, lambda trial: _curve(study, store, trial)),
    )
    log("exporting and verifying the winners")
    exported = {arm: (winners[arm], models[arm]) for arm in _to_export(study, winners, document, folder)}

    # Before the report, which links to what is there then.
    begun = sync_trials(study, store, settings, winners=winners.values(), splits=splits)

    def report() -> None:
        log("writing the report")
        # Matplotlib takes a second to import, in which the process that verifies the exports works already.
        from services.finalize.report_input import write_report

        links = full_addresses(settings, pages_of(store, study.name))
        write_report(study, store, trials, document, splits, folder, links=links)

    unexported = export_what_can_be(study, exported, splits, document, folder=folder, store=store, meanwhile=report)
    sync_study(study, store, settings, document=document, models=models, splits=splits, log=log, begun=begun)
    _share(folder, shared_place(settings, store, study.name), log=log)
    store.finish_study(study.name, "complete")
    shutil.rmtree(folder.scratch / "checkpoints", ignore_errors=True)
    return Finished(document, failed, unexported, pages_of(store, study.name))


def _to_export(study: Study, winners: Iterable[str], document: ComparisonDocument, folder: Folder) -> list[str]:
    """Return the arms whose models are exported: those that the study names, or all, and the recommended one.

    An arm that was exported before is exported again: its card tells which model is recommended now.
    """
    wanted = study.config.export
    shipped = document.shipped.arm if document.shipped is not None else None
    return [
        arm for arm in winners if wanted is None or arm in wanted or arm == shipped or (folder.models / arm).is_dir()
    ]


def _curve(study: Study, store: Store, trial: Trial) -> list[float]:
    """Return the metric of a study on validation images after each epoch of a trial; 0 where it diverged."""
    metric = f"validation_{study.config.metric}"
    return [float(epoch.metrics.get(metric) or 0.0) for epoch in store.epochs(trial.id)]


def write_comparison(
    study: Study,
    trials: Sequence[Trial],
    folder: Folder,
    *,
    latency: Mapping[str, Latency],
    search_latency: Mapping[TrialKey, Timed] | None = None,
    structures: Mapping[str, Structure] | None = None,
    rungs: Mapping[str, list[RungRanking]] | None = None,
) -> ComparisonDocument:
    """Write ``comparison.json`` and ``trials.csv``; return the comparison."""
    document = build(
        study,
        trials,
        latency=latency,
        search_latency=search_latency,
        structures=structures,
        rungs=rungs,
        extensions=len(folder.earlier_comparisons()),
    )
    write_json(folder.comparison, document.model_dump(mode="json"))
    replaced = {trial.key for trial in stale(trials)}
    write_csv(folder.root / "trials.csv", [{**row_of(trial), "stale": trial.key in replaced} for trial in trials])
    return document


def export_again(
    settings: Settings,
    name: str,
    arm: str | None,
    *,
    batch: int | None = None,
    classes: Sequence[str] = (),
    calibrate: bool = False,
) -> dict[Path, str]:
    """Export the winners of a finished study once more; return their folders, with what is to be told of them.

    Args:
        settings: Of the installation.
        name: Of the study.
        arm: One arm, or None for all.
        batch: Images that are expected at a time; None for one as well as many.
        classes: Names or labels of classes, to cut the models to them and leave the whole ones as they are; none for
            all.
        calibrate: Whether a temperature is fitted on validation images where the study has fitted none; not for models
            that are cut.

    Raises:
        NotFound: There is no such study, it has no such arm, or the arm has no retrained model.
        StudyConflict: The file of a factory has changed since the study was begun.
        VerificationError: A network of a factory is no longer the one that was measured; no folder has been changed.
        ValueError: The classes are no choice of two or more, or a network cannot be cut.
    """
    with Store.open(settings.store_url) as store:
        study = parse_resolved(store.study(name).config)
        require_same_files(store, name, files_of(study))
        folder = Folder(settings.folder(name))
        winners = exported_trials(study, store.trials(name))
        if arm is not None and arm not in winners:
            raise NotFound(f"study {name!r} has no retrained model of an arm {arm!r}; {near(arm, winners)}")
        if not folder.comparison.exists():
            raise NotFound(f"study {name!r} has not finished; `nas-blockout run {name}` goes on with it")
        document = ComparisonDocument.read(folder.comparison)
        splits = load(study.data, root=settings.data)
        chosen = {arm: winners[arm]} if arm is not None else winners
        models = models_of(chosen, folder, splits, shared=shared_place(settings, store, name))
        exported = {winner: (trial, models[winner]) for winner, trial in chosen.items()}
        require_what_was_measured(exported, splits)
        if classes:
            paths = export_subsets(
                study, exported, splits, document, classes=classes, folder=folder, store=store, batch=batch
            )
        else:
            paths = dict.fromkeys(
                export_trials(
                    study,
                    exported,
                    splits,
                    document,
                    folder=folder,
                    store=store,
                    options=ExportOptions(batch=batch, calibrate=calibrate),
                ),
                "",
            )
        _share(folder, shared_place(settings, store, name))
        return paths


def _share(folder: Folder, shared: str | None, *, log: Log = lambda text: None) -> None:
    """Copy what a study leaves behind to shared storage.

    The comparison comes last: where it is, everything else is.
    """
    if shared is not None:
        log(f"copying the results to {shared}")
        put_folder(folder.root, shared, last=folder.comparison.name)
