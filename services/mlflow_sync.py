"""Copies studies from the store to MLflow: idempotent, and never in the way of training. The sole importer of mlflow.

Runs that exist already are recognized by their tag ``nas.trial``, so that an interrupted sync is completed without
duplicates. All values and times come from the store, so that writing a run again changes nothing.
"""

import hashlib
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from nas_blockout.structure.branching import recorded_structure, structure_metrics, summary
from services.settings import masked
from services.store import EpochRow, Store, StoreError
from services.trial_record import Trial

PARAMS_MAX = 100
METRICS_MAX = 1000
CURVE_POINTS = 100  # about, for each curve: writing one takes 1/6 ms, and the store has every epoch anyway
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 500
NOTE_CHARACTERS = 4000  # MLflow takes 8,000
ERROR_CHARACTERS = 300
FOLLOW_SECONDS = 10.0
MAX_FOLLOW_SECONDS = 60.0
FOLLOW_SHARE = 0.02  # of the time, at most: syncing competes with training
WAIT_SECONDS = 120.0
TARGET = "mlflow"
FILES = ("comparison.json", "study.yaml", "environment.json", "trials.csv")
_STATUS = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
_SYSTEM = {  # what a training took of its device, and under which of its system metrics MLflow shows it
    "device_bytes": ("system/peak_gpu_memory_megabytes", 1e-6),
    "host_bytes": ("system/peak_process_memory_megabytes", 1e-6),
    "utilization": ("system/gpu_utilization_percentage", 100),
}
_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # no waiting for a server that is away: the next round tries again
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(RuntimeError):
    """The tracking server cannot be reached; training goes on, and ``nas-blockout sync`` catches up."""


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


def check(uri: str) -> str:
    """Return a summary of a tracking server or database.

    Raises:
        TrackingError: It does not answer.
    """
    client = _client(uri)
    with _translated(uri):
        return f"experiments: {len(client.search_experiments(max_results=1000))}"


@contextmanager
def following(
    uri: str | None, study: str, config: Mapping[str, Any], store: Store, *, pause_seconds: float = FOLLOW_SECONDS
) -> Iterator[None]:
    """Write trials to MLflow as they end, in a separate thread; errors are ignored, and the next round tries again.

    Args:
        uri: Tracking URI, or None for no MLflow.
        study: Name of the study.
        config: The resolved study.
        store: Holds its trials.
        pause_seconds: Shortest pause between rounds.
    """
    ended = threading.Event()

    def follow() -> None:
        projection, pause = None, pause_seconds
        while not ended.wait(pause):
            began = time.monotonic()
            with suppress(TrackingError):
                projection = projection or Projection(str(uri), study, config, store)
                projection.sync(until=ended.is_set, wait_seconds=0.0)
            pause = pause_after(time.monotonic() - began, shortest=pause_seconds)

    thread = threading.Thread(target=follow, name="tracking", daemon=True)
    if uri is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if uri is not None:
            thread.join()


def pause_after(seconds: float, *, shortest: float = FOLLOW_SECONDS) -> float:
    """Return the seconds to wait after a round that took `seconds`, so that rounds take a small share of the time."""
    return min(MAX_FOLLOW_SECONDS, max(shortest, seconds / FOLLOW_SHARE))


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
        self._client = _client(uri)
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
        with _translated(self.uri):
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
            if arm["test_accuracy"] and _is_number(arm["test_accuracy"]["mean"])
        }
        with self._writing(WAIT_SECONDS):
            run = self._client.get_run(self.parent)
            new = {key: value for key, value in accuracies.items() if run.data.metrics.get(key) != value}
            metrics = [Metric(key, value, run.info.start_time, 0) for key, value in new.items()]
            self._client.log_batch(self.parent, metrics=metrics)
            for key, value in tags.items():
                if run.data.tags.get(key) != (text := value[:NOTE_CHARACTERS]):
                    self._client.set_tag(self.parent, key, text)
            files = _artifacts(folder)
            digest = _digest(files)
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
        digest = f"{arm}:{_weights_digest(model)}"
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
            logged = self._log_model(model, options)
            if (before := tags.get("nas.model")) is not None:
                self._client.set_logged_model_tags(before, {"nas.stale": logged})
            self._client.set_tag(self.parent, "nas.model", logged)
            self._client.set_tag(self.parent, "nas.model.digest", digest)  # last: repeats interrupted uploads

    @contextmanager
    def _writing(self, wait_seconds: float) -> Iterator[None]:
        """Hold the lock of the study, and know which runs exist."""
        try:
            with self.store.sync_lock(self.study, TARGET, wait_seconds=wait_seconds), _translated(self.uri):
                self._experiment = self._experiment_id()
                runs = list(self._runs())
                self._known = {run.data.tags["nas.trial"]: str(run.info.run_id) for run in runs}
                self._written = {run.data.tags["nas.trial"] for run in runs if run.info.status in _STATUS.values()}
                self.parent = self._parent()
                self.store.record_projection(self.study, target=TARGET, external_id=self.parent)  # the page links to it
                yield
        except StoreError as error:
            raise TrackingError(str(error)) from None

    def _log_model(self, model: Any, options: Mapping[str, Any]) -> str:
        """Log a model as a torch.export program, without pickle; return its ID."""
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        with warnings.catch_warnings(), mlflow.start_run(run_id=self.parent):
            warnings.simplefilter("ignore")
            info = mlflow.pytorch.log_model(model, serialization_format="pt2", **options)
        self._client.set_terminated(self.parent)
        return str(info.model_id)

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
            began = _milliseconds(self.store.study(self.study).created_at)
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
        return [param for param in _params(document) if param.key not in present]

    def _write(self, trial: Trial, epochs: Sequence[EpochRow]) -> None:
        run = self._known.get(str(trial.id))
        params = _params(trial.experiment) if run is None else self._absent(run, trial.experiment)
        if run is None:
            created = self._client.create_run(
                self._experiment,
                start_time=_milliseconds(trial.started_at or trial.created_at),
                run_name=f"{trial.arm}-{trial.number}-s{trial.seed}",
                tags=self._tags(trial),
            )
            run = self._known[str(trial.id)] = str(created.info.run_id)
        self._log(run, params=params, metrics=list(_metrics(trial, epochs)))
        ended = _milliseconds(trial.finished_at or trial.created_at)
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

    def _tags(self, trial: Trial) -> dict[str, str]:
        tags = {
            "mlflow.parentRunId": self.parent,
            "nas.trial": str(trial.id),
            "nas.study": self.study,
            "nas.arm": trial.arm,
            "nas.method": str(trial.experiment["method"]["name"]),
            "nas.phase": trial.phase,
            "nas.seed": str(trial.seed),
            "nas.status": trial.state,
        }
        architecture = trial.outcome.get("architecture_hash") or trial.architecture_hash
        structure = recorded_structure(trial.outcome)
        method = trial.experiment["method"]
        learned = method["name"] == "blockout" and method.get("mode") != "hard-fixed"
        return {
            **tags,
            **({"nas.branches": summary(structure, learned=learned)[:TAG_CHARACTERS]} if structure else {}),
            **({"nas.architecture": architecture} if architecture else {}),
            **({"nas.reason": trial.reason[:TAG_CHARACTERS]} if trial.reason else {}),
        }


def _artifacts(folder: Path) -> dict[Path, str]:
    """Return the files of a study to upload, each with its folder in MLflow."""
    report = folder / "report"
    files = {folder / name: "" for name in FILES} | {report / "index.html": "report"}
    files |= dict.fromkeys(sorted((report / "figures").glob("*.svg")), "figures")
    return {path: place for path, place in files.items() if path.is_file()}


def _digest(files: Mapping[Path, str]) -> str:
    """Return a hash of the names and contents of all files."""
    digest = hashlib.sha256()
    for path, place in files.items():
        digest.update(f"{place}/{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()};".encode())
    return digest.hexdigest()[:16]


def _weights_digest(model: Any) -> str:
    """Return a hash of the parameters and buffers of a network."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        version_1 = name.replace("normalize", "normalise")  # so that a model that version 1 logged is recognized
        digest.update(f"{version_1} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _params(document: Mapping[str, Any]) -> list[Any]:
    """Return the leaves of a document as MLflow parameters with dotted names, without architectures."""
    from mlflow.entities import Param

    return [Param(name, str(value)[:PARAM_CHARACTERS]) for name, value in _leaves(document, "")]


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    renamed = {"training.learning_rate": "optim.lr", "training.weight_decay": "optim.weight_decay"}
    if isinstance(value, Mapping):
        method = value.get("name") if prefix == "method" else None
        for key, item in value.items():
            if (prefix, key) == ("", "architecture"):
                continue
            place = str(method) if method and key != "name" else prefix
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif value is not None:
        yield renamed.get(prefix, prefix.replace("backbone.", "model.")), value


def _metrics(trial: Trial, epochs: Sequence[EpochRow]) -> Iterator[Any]:
    from mlflow.entities import Metric

    result = trial.result or {}
    accuracies = [row.metrics.get("validation_accuracy") for row in epochs]
    final = {  # first, because MLflow's comparison of runs shows metrics in the order of logging
        "best/val_accuracy": max(filter(_is_number, accuracies), default=None),
        "test/accuracy": result.get("test_accuracy"),
        "model/parameters": result.get("parameters"),
        "model/macs": result.get("macs"),
        **{f"gap/{key}": value for key, value in (result.get("gap") or {}).items()},
        "system/images_per_second": trial.images_per_second,
        **{
            name: scale * trial.usage[key] for key, (name, scale) in _SYSTEM.items() if trial.usage.get(key) is not None
        },
        **(structure_metrics(structure) if (structure := recorded_structure(result)) else {}),
    }
    ended = _milliseconds(trial.finished_at or trial.created_at)
    yield from (Metric(key, float(value), ended, 0) for key, value in final.items() if _is_number(value))
    names = {"train_loss": "train/loss", "validation_loss": "val/loss", "validation_accuracy": "val/accuracy"}
    began = _milliseconds(trial.started_at or trial.created_at)
    for row in _thinned(epochs):
        when = began + round(1000 * row.seconds)
        values = {names[key]: row.metrics.get(key) for key in names} | dict(row.metrics.get("telemetry") or {})
        values["cost/seconds"], values["cost/sample_passes"] = row.seconds, row.sample_passes
        yield from (Metric(key, value, when, row.epoch) for key, value in values.items() if _is_number(value))


def _thinned(epochs: Sequence[EpochRow]) -> Sequence[EpochRow]:
    """Return at most about `CURVE_POINTS` epochs at equal distances, the last one included."""
    step = max(1, math.ceil(len(epochs) / CURVE_POINTS))
    return epochs[(len(epochs) - 1) % step :: step]


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _client(uri: str) -> Any:
    """Return a client that logs only errors and loads no pickles."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    with _translated(uri):
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        return client


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn any error of server, database or network into a `TrackingError`."""
    try:
        yield
    except StoreError as error:
        raise TrackingError(str(error)) from None
    except Exception as error:  # noqa: BLE001  # MLflow lets errors of many libraries through, and none may stop training
        raise TrackingError(f"MLflow does not answer at {masked(uri)}: {_without_secret(str(error), uri)}") from None


def _without_secret(text: str, uri: str) -> str:
    """Return an error message on one line, with passwords masked in case it quotes the URI."""
    shown = text.replace(uri, masked(uri))
    try:
        password = urlsplit(uri).password
    except ValueError:
        password = None
    return " ".join((shown.replace(password, "***") if password else shown).split())[:ERROR_CHARACTERS]
