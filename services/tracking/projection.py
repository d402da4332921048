"""Copies a study from the store to MLflow.

Runs that exist already are recognized by the study's identity, so that an interrupted sync is completed without
duplicates, and what other stores have written is left alone. All values and times come from the store, so that writing
a run again changes nothing. The first sync reads every run that MLflow has of the study; from then on each reads what
is new.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nas_blockout.serialization import count_of
from services.store import PAGES_TARGET, EpochRow, Store
from services.tracking.data_sets import DataSet
from services.tracking.experiments import NOTE, PREFIX, discard_experiment, locate
from services.tracking.logged_models import log_program, register, unregister, weights_digest
from services.tracking.machine_metrics import MachineMetrics
from services.tracking.mlflow_client import TrackingError, connect, import_mlflow, source_tags, translated
from services.tracking.overview import ArmFinding, ArmRuns, address_of_comparison, pages_of, write_views
from services.tracking.relocation import relocate, root_of
from services.tracking.run_files import digest_of, files_to_send
from services.tracking.run_values import (
    CHANGEABLE,
    begin_of,
    description_of,
    descriptions_of,
    end_of,
    metrics_of,
    milliseconds,
    outdated,
    params_of,
    settings_tags,
    tags_of,
)
from services.tracking.study_identity import StudyIdentity
from services.tracking.study_runs import EndedTrials, StudyRuns
from services.trial_record import RETRAIN, Trial

PARAMS_MAX = 100
METRICS_MAX = 1000
TAGS_MAX = 100
NOTE_CHARACTERS = 4000  # MLflow takes 8,000
WAIT_SECONDS = 120.0
TARGET = "mlflow"
_STATUS = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}


@dataclass(frozen=True, slots=True)
class Synced:
    """The result of a sync.

    Args:
        experiment: Name of the MLflow experiment.
        written: Runs that were written.
        present: Runs that existed already.
        restored: Runs among these that had been deleted in MLflow.
        notes: What its user should know, in sentences.
        pages: Addresses of the pages on which arms are compared, relative to that of MLflow, by what they show.
    """

    experiment: str
    written: int
    present: int
    restored: int
    notes: tuple[str, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)


class Projection:
    """Writes one study to MLflow; each call of `sync` writes what is new.

    One process writes at a time: every call acquires the lock of the study, then reads which runs exist of the trials
    that it is to write. MLflow has no unique names, so that two writers would create every run twice.

    Args:
        uri: Tracking URI; a SQLite file is created when it is first used.
        study: Name of the study.
        config: The resolved study.
        store: Holds the trials and the lock.
        data: What the study trains and selects on: inputs of its run, and of those of retrained models; with folds, of
            each that of its own.
        restore: Whether to restore what was deleted in MLflow. Otherwise runs of trials that were deleted stay deleted,
            and without the experiment or the study's run nothing can be written.

    Attributes:
        name: Name of the experiment.
        parent: ID of the study's run.
        notes: What its user should know, in sentences.
        pages: Addresses of the pages on which arms are compared, relative to that of MLflow, by what they show.

    Raises:
        TrackingError: The server cannot be reached, or refuses.
    """

    def __init__(
        self,
        uri: str,
        study: str,
        config: Mapping[str, Any],
        store: Store,
        *,
        data: Sequence[DataSet] = (),
        restore: bool = False,
    ) -> None:
        self.uri, self.study, self.config, self.store = uri, study, config, store
        self.name, self.parent, self.restored = f"{PREFIX}{study}", "", 0
        self.notes: list[str] = []
        self.pages: dict[str, str] = {}
        import_mlflow()
        self._restore = restore
        self._data = {
            fold: [each.to_mlflow() for each in data if each.fold == fold] for fold in {each.fold for each in data}
        }
        self._client = connect(uri)
        with translated(uri):
            row = store.study(study)
            self.identity = StudyIdentity(study, row.uuid, store.identity())
            began = milliseconds(row.created_at)
            self._runs = StudyRuns(self._client, self.identity, began=began)
        self._source = source_tags()
        self._arms = ArmRuns(
            self._client,
            self.identity,
            began=began,
            arms=descriptions_of(config),
            tags=self._source,
            restore=restore,
        )
        self._ended = EndedTrials(store, study)
        self._known: dict[int, str] = {}  # runs that were not written to their end, by trial
        self._is_new = True  # to be looked through whole: nothing is known of the runs in it yet

    def sync(self, *, until: Callable[[], bool] = lambda: False, wait_seconds: float = WAIT_SECONDS) -> Synced:
        """Write every trial that has ended and has no complete run yet, with its curves.

        Args:
            until: Called before each trial that is to be written; True stops the sync.
            wait_seconds: How long to wait for another process that syncs the same study.

        Raises:
            TrackingError: MLflow cannot be reached or refuses, what is needed has been deleted there, or another
                process still holds the lock.
        """
        ended = self._ended
        with translated(self.uri):
            ended.look()
        if self.parent and not ended.unwritten:
            return Synced(self.name, 0, len(ended.written), 0, pages=self.pages)
        written = 0
        with self._writing(wait_seconds):
            ended.look()  # all of them once more, if MLflow has another experiment or run of the study now
            self._recognize()
            present = len(ended.written)
            for trial in list(ended.unwritten):
                if until():
                    break
                self._write(self.store.trial(trial), self.store.epochs(trial))
                written += 1
        return Synced(self.name, written, present, self.restored, pages=self.pages)

    def measure(self, machine: MachineMetrics) -> None:
        """Let the study's run, which a sync has made, get metrics of this machine until they are ended.

        Raises:
            TrackingError: MLflow cannot be reached, or refuses.
        """
        if self.parent:
            with translated(self.uri):
                machine.begin(self._client, self.parent)

    def finish(
        self,
        comparison: Mapping[str, Any],
        folder: Path,
        *,
        tags: Mapping[str, str] = MappingProxyType({}),
        findings: Mapping[str, ArmFinding] = MappingProxyType({}),
    ) -> None:
        """Write the results of the study: those of each arm to the run of the arm, files to its own.

        Args:
            comparison: Content of ``comparison.json``.
            folder: Folder of the study; missing files are skipped, and unchanged ones are not sent again.
            tags: Of the study's run.
            findings: What the study says of its arms, by name.
        """
        with self._writing(WAIT_SECONDS):
            self._arms.place(self._runs.experiment, again=True)
            for arm, values in comparison["arms"].items():
                self._fill(arm, values, findings.get(arm, ArmFinding("")))
            self._link([self.store.trial(each.winner) for each in findings.values() if each.winner is not None])
            run = self._client.get_run(self.parent)
            for key, value in tags.items():
                if run.data.tags.get(key) != (text := value[:NOTE_CHARACTERS]):
                    self._client.set_tag(self.parent, key, text)
            files = files_to_send(folder)
            digest = digest_of(files)
            if run.data.tags.get("nas.files") != digest:
                for path, place in files.items():
                    self._client.log_artifact(self.parent, str(path), place or None)
                self._client.set_tag(self.parent, "nas.files", digest)
            if run.info.status not in _STATUS.values():
                self._client.set_terminated(self.parent)

    def _fill(self, arm: str, values: Mapping[str, Any], finding: ArmFinding) -> None:
        trials = [self.store.trial(trial) for trial in finding.retrained]
        ended = max((end_of(trial) for trial in trials), default=self._runs.began)
        seeds = [self.store.epochs(trial.id) for trial in trials]
        self._arms.fill(arm, values, finding=finding, seeds=seeds, ended=ended)

    def link(self, winners: Sequence[int]) -> None:
        """Know the address of the page that compares the retrained winners, for whoever links to it.

        Args:
            winners: IDs of their trials, which a sync has written.

        Raises:
            TrackingError: MLflow cannot be reached, or refuses.
        """
        with translated(self.uri):
            self._link([self.store.trial(winner) for winner in winners])

    def _link(self, winners: Sequence[Trial]) -> None:
        found, _ = self._runs.of({trial.id: trial for trial in winners}, tags=lambda trial: {}, everywhere=False)
        runs = [found[trial.id].id for trial in winners if trial.id in found and not found[trial.id].deleted]
        if len(runs) > 1:
            self._show({"winners": address_of_comparison(self._runs.experiment, runs)})

    def _show(self, pages: Mapping[str, str]) -> None:
        """Know pages of the study, and tell the store, so that others can link to them."""
        if self.pages != (known := {**self.pages, **pages}):
            self.pages = known
            self.store.record_projection(self.study, target=PAGES_TARGET, external_id=json.dumps(known))

    def log_model(
        self, arm: str, model: Any, images: Any, *, class_names: Sequence[str], requirements: Sequence[str]
    ) -> None:
        """Log the exported model of an arm, with a signature, to the parent run, and register it, unless that is done.

        The run's tag ``nas.model`` is the ID of the latest model. A model that an extension of the study has replaced
        is kept, with the ID of its successor in its tag ``nas.stale``.

        Args:
            arm: Name of the arm, and of the logged model.
            model: A network in eval mode.
            images: Example input of shape (n, channels, height, width), n >= 2: a batch of 1 would fix the size.
            class_names: Class names in the order of the logits, for the model's metadata.
            requirements: Packages that serving the model needs.
        """
        digest = f"{arm}:{weights_digest(model)}"
        with self._writing(WAIT_SECONDS):
            tags = self._client.get_run(self.parent).data.tags
            logged = tags.get("nas.model")
            if logged is None or tags.get("nas.model.digest") != digest:
                metadata = {"class_names": list(class_names), "arm": arm, "study": self.study, **self.identity.tags}
                options = {"name": arm, "pip_requirements": list(requirements), "metadata": metadata}
                before, logged = logged, log_program(model, images, options, uri=self.uri, run=self.parent)
                self._client.set_terminated(self.parent)
                if before is not None:
                    self._client.set_logged_model_tags(before, {"nas.stale": logged})
                self._client.set_tag(self.parent, "nas.model", logged)
                self._client.set_tag(self.parent, "nas.model.digest", digest)  # last: repeats interrupted uploads
            self._register(arm, logged)

    def _register(self, arm: str, model: str) -> None:
        from mlflow.exceptions import MlflowException

        question = str(self.config.get("question", ""))
        try:
            registered = register(
                self._client, self.identity, arm=arm, model=model, run=self.parent, description=question
            )
        except MlflowException as error:  # not every server has a registry, and the logged model is there
            self._note(f"the model of arm {arm} is logged in MLflow, but not registered: {error.message}")
        else:
            self._client.set_tag(self.parent, "nas.model.registered", registered)

    @contextmanager
    def _writing(self, wait_seconds: float) -> Iterator[None]:
        """Hold the lock of the study, with its experiment and its own run in place."""
        with translated(self.uri), self.store.sync_lock(self.study, TARGET, wait_seconds=wait_seconds):
            before = self._runs.experiment, self.parent
            self._place()
            self._place_parent()
            if moved := before != (self._runs.experiment, self.parent):  # what was written was written elsewhere
                self._ended.forget()
                self._known, self._is_new = {}, True
            self._arms.place(self._runs.experiment, again=moved)
            self.store.record_projection(self.study, target=TARGET, external_id=self.parent)  # the page links to it
            self._show(pages_of(self._runs.experiment))
            yield

    def _place(self) -> None:
        """Find or create the experiment of the study; files that have moved with their database are found again."""
        root = root_of(self.uri)
        located = locate(
            self._client,
            self.identity,
            description=lambda experiment: description_of(self.config, pages_of(experiment) if experiment else {}),
            artifacts=lambda name: f"{root}/{name}" if root else None,
            recognizes=lambda experiment: self._runs.recognizes(str(experiment.experiment_id)),
            restore=self._restore,
        )
        self._runs.experiment, self.name = located.id, located.name
        write_views(self._client, located.id, located.tags, began=self._runs.began)
        if located.restored:
            self._note(f"the experiment {located.name}, which had been deleted, is restored")
        if located.name in (f"{PREFIX}{name}" for name in self.identity.names[1:]):
            self._note(f"{PREFIX}{self.study} in MLflow is a study of another store: this one is in {located.name}")
        if (old := relocate(self.uri, located.artifacts)) is not None:
            self._note(f"MLflow's files were recorded in {old}, and are now in {root}: their database was moved")

    def _place_parent(self) -> None:
        """Find or create the run of the study, and bring its parameters and tags up to date."""
        run = self._runs.parent(self.parent)
        if run is not None and run.info.lifecycle_stage == "deleted":
            if not self._restore:
                raise TrackingError(
                    f"the run of study {self.study} in the MLflow experiment {self.name} has been deleted: "
                    f"`nas-blockout sync {self.study}` restores it"
                )
            self._client.restore_run(run.info.run_id)
            self._note("the run of the study, which had been deleted, is restored")
        tags = {"nas.trial": "study", "nas.phase": "study", **self.identity.tags}
        if run is None:
            tags |= {NOTE: str(self.config.get("question", "")), **self._source}
            run = self._client.create_run(self._runs.experiment, self._runs.began, run_name=self.study, tags=tags)
        self.parent = str(run.info.run_id)
        fixed = {key: value for key, value in self.config.items() if key not in CHANGEABLE}
        settings = settings_tags(self.config)
        for stale in outdated(run.data.tags, settings, self.config):  # such as a limit that there is no more
            self._client.delete_tag(self.parent, stale)
        if data := self._data.get(self.config.get("data", {}).get("fold")):
            self._client.log_inputs(self.parent, data)
        # A previous sync may have been interrupted: repeating it changes nothing.
        self._log_missing(run, params=params_of(fixed), tags={**tags, **settings})

    def _recognize(self) -> None:
        """Know which runs exist; those of earlier releases get the study's identity, children get their parent."""

        def tags(trial: Trial) -> dict[str, str]:  # releases with one run a study had that as the parent of all
            return {**self.identity.tags, "mlflow.parentRunId": self._arms.id_of(trial.arm)}

        known, strays = self._runs.of(self._ended.unwritten, tags=tags, everywhere=self._is_new)
        left = 0
        for trial, run in known.items():
            if run.deleted and self._restore:
                self._client.restore_run(run.id)
                self.restored += 1
            elif run.deleted:
                left += 1
                self._ended.settle(trial)  # whoever deleted it does not want it again
                continue
            if run.lacks:
                self._log(run.id, tags=dict(run.lacks))
            if run.status in _STATUS.values():
                self._ended.settle(trial)
            else:
                self._known[trial] = run.id
        if left:
            gone = count_of(left, "run was", "runs were")
            self._note(f"{gone} deleted in MLflow: `nas-blockout sync {self.study}` restores them")
        if strays and self._is_new:
            self._note(f"{strays} runs in {self.name} are of another store or of a trial that is no more: they stay")
        self._is_new = False

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _write(self, trial: Trial, epochs: Sequence[EpochRow]) -> None:
        run = self._client.get_run(self._known[trial.id]) if trial.id in self._known else None
        if run is None:
            run = self._client.create_run(
                self._runs.experiment,
                start_time=begin_of(trial),
                run_name=f"{trial.arm}-{trial.number}-s{trial.seed}",
                tags=self._source | tags_of(trial, identity=self.identity, parent=self._arms.id_of(trial.arm)),
            )
            self._known[trial.id] = str(run.info.run_id)
        self._log_missing(run, params=params_of(trial.experiment), metrics=list(metrics_of(trial, epochs)))
        # Of retrainings alone: it takes a quarter of the time of writing a run.
        if trial.phase == RETRAIN and (data := self._data.get(trial.fold)):
            self._client.log_inputs(run.info.run_id, data)
        self._client.set_terminated(run.info.run_id, _STATUS[trial.state], end_time=end_of(trial))
        self._known.pop(trial.id)
        self._ended.settle(trial.id)

    def _log_missing(
        self,
        run: Any,
        *,
        params: Sequence[Any] = (),
        metrics: Sequence[Any] = (),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write what a run does not have yet.

        MLflow refuses to change a parameter. Some differ if an earlier release created the run: they stay.
        """
        absent = [param for param in params if param.key not in run.data.params]
        changed = {key: value for key, value in tags.items() if run.data.tags.get(key) != value}
        self._log(str(run.info.run_id), params=absent, metrics=metrics, tags=changed)

    def _log(
        self,
        run: str,
        *,
        params: Sequence[Any] = (),
        metrics: Sequence[Any] = (),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write to a run, given by its ID, in as few requests as MLflow's limits on a batch allow."""
        from mlflow.entities import RunTag

        labels = [RunTag(key, value) for key, value in tags.items()]
        rounds = max(
            math.ceil(len(metrics) / METRICS_MAX),
            math.ceil(len(params) / PARAMS_MAX),
            math.ceil(len(labels) / TAGS_MAX),
        )
        for number in range(rounds):
            self._client.log_batch(
                run,
                metrics=metrics[number * METRICS_MAX : (number + 1) * METRICS_MAX],
                params=params[number * PARAMS_MAX : (number + 1) * PARAMS_MAX],
                tags=labels[number * TAGS_MAX : (number + 1) * TAGS_MAX],
            )


def discard(uri: str, study: str, store: Store, *, wait_seconds: float = WAIT_SECONDS) -> None:
    """Delete what a study has in MLflow: its runs, its experiment, its registered model; does nothing if it has none.

    Args:
        uri: Tracking URI.
        study: Name of the study.
        store: Holds the study and the lock.
        wait_seconds: How long to wait for another process that syncs the study.

    Raises:
        TrackingError: The server cannot be reached, or refuses.
    """
    if not store.projections(study, TARGET):
        return
    client = connect(uri)
    with translated(uri), store.sync_lock(study, TARGET, wait_seconds=wait_seconds):
        identity = StudyIdentity(study, store.study(study).uuid, store.identity())
        unregister(client, identity)
        discard_experiment(client, identity)
