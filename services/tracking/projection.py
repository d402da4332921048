"""Copies a study from the store to MLflow.

Runs that exist already are recognized by their tag ``nas.trial``, so that an interrupted sync is completed without
duplicates. All values and times come from the store, so that writing a run again changes nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from services.store import EpochRow, Store, StoreError
from services.tracking.logged_models import log_program, weights_digest
from services.tracking.mlflow_client import TrackingError, connect, translated
from services.tracking.run_files import digest_of, files_to_send
from services.tracking.run_values import is_number, metrics_of, milliseconds, params_of, tags_of
from services.trial_record import Trial

PARAMS_MAX = 100
METRICS_MAX = 1000
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
    """

    experiment: str
    written: int
    present: int


class Projection:
    """Writes one study to MLflow; each call of `sync` writes what is new.

    One process writes at a time: every call acquires the lock of the study, then reads which runs exist. MLflow has no
    unique names, so that two writers would create every run twice.

    Args:
        uri: Tracking URI; a SQLite file is created when it is first used.
        study: Name of the study.
        config: The resolved study.
        store: Holds the trials and the lock.

    Raises:
        TrackingError: The server cannot be reached.
    """

    def __init__(self, uri: str, study: str, config: Mapping[str, Any], store: Store) -> None:
        self.uri, self.study, self.config, self.store = uri, study, config, store
        self.name = f"nas-blockout/{study}"
        self.parent = self._experiment = ""
        self._client = connect(uri)
        self._known: dict[str, str] = {}
        self._written: set[str] = set()

    def sync(self, *, until: Callable[[], bool] = lambda: False, wait_seconds: float = WAIT_SECONDS) -> Synced:
        """Write every trial that has ended and has no complete run yet, with its curves.

        Args:
            until: Called before each trial; True stops the sync.
            wait_seconds: How long to wait for another process that syncs the same study.

        Raises:
            TrackingError: The server does not respond, or another process still holds the lock.
        """
        with translated(self.uri):
            ended = [trial for trial in self.store.trials(self.study) if trial.state in _STATUS]
        if self.parent and all(str(trial.id) in self._written for trial in ended):
            return Synced(self.name, 0, len(ended))
        written = present = 0
        with self._writing(wait_seconds):
            for trial in ended:
                if until():
                    break
                if str(trial.id) in self._written:
                    present += 1
                    continue
                self._write(trial, self.store.epochs(trial.id))
                written += 1
        return Synced(self.name, written, present)

    def finish(
        self, comparison: Mapping[str, Any], folder: Path, *, tags: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Write the results of the study to its parent run: test accuracy of each arm, files, report and figures.

        Args:
            comparison: Content of ``comparison.json``.
            folder: Folder of the study; missing files are skipped, and unchanged ones are not sent again.
            tags: Of the parent run.
        """
        from mlflow.entities import Metric

        accuracies = {
            f"test/accuracy/{name}": arm["test_accuracy"]["mean"]
            for name, arm in comparison["arms"].items()
            if arm["test_accuracy"] and is_number(arm["test_accuracy"]["mean"])
        }
        with self._writing(WAIT_SECONDS):
            run = self._client.get_run(self.parent)
            new = {key: value for key, value in accuracies.items() if run.data.metrics.get(key) != value}
            metrics = [Metric(key, value, run.info.start_time, 0) for key, value in new.items()]
            self._client.log_batch(self.parent, metrics=metrics)
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

    def log_model(
        self, arm: str, model: Any, images: Any, *, class_names: Sequence[str], requirements: Sequence[str]
    ) -> None:
        """Log the exported model of an arm, with a signature, to the parent run, unless it is there already.

        The run's tag ``nas.model`` is the ID of the latest model. A model that an extension of the study has replaced
        is kept, with the ID of its successor in its tag ``nas.stale``.

        Args:
            arm: Name of the arm, and of the logged model.
            model: A network in eval mode.
            images: Example input of shape (n, channels, height, width), n >= 2: a batch of 1 would fix the size.
            class_names: Class names in the order of the logits, for the model's metadata.
            requirements: Packages that serving the model needs.
        """
        import torch
        from mlflow.models import infer_signature

        with torch.no_grad():
            logits = model(torch.from_numpy(images)).numpy()
        digest = f"{arm}:{weights_digest(model)}"
        with self._writing(WAIT_SECONDS):
            tags = self._client.get_run(self.parent).data.tags
            if tags.get("nas.model.digest") == digest:
                return
            options = {
                "name": arm,
                "input_example": images,
                "signature": infer_signature(images, logits),
                "pip_requirements": list(requirements),
                "metadata": {"class_names": list(class_names), "arm": arm, "study": self.study},
            }
            logged = log_program(model, options, uri=self.uri, run=self.parent)
            self._client.set_terminated(self.parent)
            if (before := tags.get("nas.model")) is not None:
                self._client.set_logged_model_tags(before, {"nas.stale": logged})
            self._client.set_tag(self.parent, "nas.model", logged)
            self._client.set_tag(self.parent, "nas.model.digest", digest)  # last: repeats interrupted uploads

    @contextmanager
    def _writing(self, wait_seconds: float) -> Iterator[None]:
        """Hold the lock of the study, and know which runs exist."""
        try:
            with self.store.sync_lock(self.study, TARGET, wait_seconds=wait_seconds), translated(self.uri):
                self._experiment = self._experiment_id()
                runs = list(self._runs())
                self._known = {run.data.tags["nas.trial"]: str(run.info.run_id) for run in runs}
                self._written = {run.data.tags["nas.trial"] for run in runs if run.info.status in _STATUS.values()}
                self.parent = self._parent()
                self.store.record_projection(self.study, target=TARGET, external_id=self.parent)  # the page links to it
                yield
        except StoreError as error:
            raise TrackingError(str(error)) from None

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(self.name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            location = None
            if self.uri.startswith("sqlite:///"):
                database = Path(self.uri.removeprefix("sqlite:///"))
                location = (database.parent / "mlartifacts" / self.study).absolute().as_uri()
            return str(self._client.create_experiment(self.name, artifact_location=location))
        except MlflowException:  # another study's process was first
            experiment = self._client.get_experiment_by_name(self.name)
            assert experiment is not None
            return str(experiment.experiment_id)

    def _runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            yield from (run for run in page if "nas.trial" in run.data.tags)
            token = page.token
            if not token:
                return

    def _parent(self) -> str:
        parent = self._known.get("study")
        tags = {
            "nas.study": self.study,
            "nas.trial": "study",
            "nas.phase": "study",
            "mlflow.note.content": str(self.config.get("question", "")),
        }
        if parent is None:
            began = milliseconds(self.store.study(self.study).created_at)
            parent = self._known["study"] = str(
                self._client.create_run(self._experiment, began, run_name=self.study, tags=tags).info.run_id
            )
        if "study" not in self._written:  # a previous sync may have been interrupted; repeating it changes nothing
            config = {key: value for key, value in self.config.items() if key != "arms"}
            self._log(parent, params=self._absent(parent, config))
        return parent

    def _absent(self, run: str, document: Mapping[str, Any]) -> list[Any]:
        """Return the parameters of a document that a run lacks: MLflow refuses to change those that it has.

        They differ if an earlier release created the run, or if the study was extended before it ended.
        """
        present = self._client.get_run(run).data.params
        return [param for param in params_of(document) if param.key not in present]

    def _write(self, trial: Trial, epochs: Sequence[EpochRow]) -> None:
        run = self._known.get(str(trial.id))
        params = params_of(trial.experiment) if run is None else self._absent(run, trial.experiment)
        if run is None:
            created = self._client.create_run(
                self._experiment,
                start_time=milliseconds(trial.started_at or trial.created_at),
                run_name=f"{trial.arm}-{trial.number}-s{trial.seed}",
                tags=tags_of(trial, study=self.study, parent=self.parent),
            )
            run = self._known[str(trial.id)] = str(created.info.run_id)
        self._log(run, params=params, metrics=list(metrics_of(trial, epochs)))
        ended = milliseconds(trial.finished_at or trial.created_at)
        self._client.set_terminated(run, _STATUS[trial.state], end_time=ended)
        self._written.add(str(trial.id))

    def _log(self, run: str, *, params: Sequence[Any], metrics: Sequence[Any] = ()) -> None:
        """Write in as few requests as MLflow's limits on a batch allow."""
        rounds = max(math.ceil(len(metrics) / METRICS_MAX), math.ceil(len(params) / PARAMS_MAX))
        for number in range(rounds):
            self._client.log_batch(
                run,
                metrics=metrics[number * METRICS_MAX : (number + 1) * METRICS_MAX],
                params=params[number * PARAMS_MAX : (number + 1) * PARAMS_MAX],
            )
