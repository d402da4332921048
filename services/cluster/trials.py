"""The trials of a study on Ray: one `Tuner.fit` runs those of every arm."""

import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from services.cluster.connection import (
    START_VARIABLE,
    ClusterError,
    check,
    explained,
    short_folder,
    start_seconds,
    started,
    surrounding_cluster,
)
from services.cluster.rank_actors import RankActors
from services.cluster.shared_data import SharedData
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker

# The store is the record of a study, so Tune writes no logs and hardly any snapshots of its own. Ctrl-C is handled by
# the command, not by Tune.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # seconds between snapshots; there is no switch that turns them off
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
_NEW_CLUSTER = {
    "RAY_AUTH_MODE": "token",
    "RAY_preload_python_modules": "services.cluster.worker",  # imports torch while the first trials are being proposed
    "RAY_prestart_worker_first_driver": "0",  # otherwise Ray starts as many workers again, which stay idle
    "RAY_enable_metrics_collection": "0",  # without a dashboard nobody reads them
    "RAY_task_events_report_interval_ms": "0",
    # Ray's workers run at nice 15: beside anything else that computes, trials would get a thirtieth of a core. Whoever
    # wants that starts the command with `nice`, which they inherit.
    "RAY_worker_niceness": "0",
}


class Tasks(Protocol):
    """The source of tasks and the receiver of their reports; all calls come from one thread."""

    def next(self) -> Task | None:
        """Return the next task, or None while there is none yet."""

    @property
    def finished(self) -> bool:
        """Whether no task will ever come again."""

    def report(self, report: Report) -> bool | None:
        """Record a report of a worker; return whether its trial is to be stopped."""

    def lost(self, trial: int, reason: str) -> None:
        """Record that a trial's worker died more often than its retries allow."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of the trials.

    Args:
        max_concurrent_trials: Trials that run at the same time.
        cpus: Ray CPUs of each rank of a trial.
        gpus: Ray GPUs per trial; trials with fractions share a GPU, and several are one for each rank.
        retries: Further attempts after the worker of a trial has died.
        ranks: Processes that train one trial together.
        one_node: Whether all of them are on one node; else they are on as few as possible.
    """

    max_concurrent_trials: int = 2
    cpus: int = 1
    gpus: float = 0.0
    retries: int = 2
    ranks: int = 1
    one_node: bool = True

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank takes, as Ray names it."""
        needs = {"CPU": float(self.cpus), "GPU": self.gpus / self.ranks}
        return {name: need for name, need in needs.items() if need}

    @property
    def described(self) -> str:
        """What one trial takes, as its user wrote it."""
        each = f"{self.cpus} CPUs and {self.gpus:g} GPUs"
        if self.ranks == 1:
            return each
        where = "on one node" if self.one_node else "each on one node"
        return f"{self.ranks} times {self.cpus} CPUs and {self.gpus / self.ranks:g} GPUs {where}"

    def fit(self, nodes: Sequence[Mapping[str, float]]) -> bool:
        """Return whether one trial has room, were nothing else running.

        Args:
            nodes: What each node has, as Ray names it.
        """
        rooms = [min(node.get(name, 0.0) // need for name, need in self.bundle.items()) for node in nodes]
        return self.ranks <= (max(rooms, default=0.0) if self.one_node else sum(rooms))


def run(
    tasks: Tasks,
    resources: Resources,
    *,
    folder: Path,
    address: str | None = None,
    data: SharedData | None = None,
) -> None:
    """Run tasks until there are no more.

    Args:
        tasks: Source of the tasks.
        resources: Resources of the trials.
        folder: Scratch space of the study; Ray's state is kept in it and removed at the end.
        address: An existing cluster. By default, the cluster that runs this process as a job, or else a new one.
        data: Data that all workers of a machine share, if it fits into the object store; each loads any other itself.

    Raises:
        ClusterError: The cluster cannot be reached or is too small.
    """
    folder = folder.absolute()
    if (job := surrounding_cluster()) is not None:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(
            folder
        )  # Ray may delete the working folder of a job, or unpack it again for another node of this machine
    address = address or job
    _prepare(folder, new_cluster=address is None)  # before the import, which reads the environment
    import ray

    try:
        with ThreadPoolExecutor(1) as background, _sigterm_handler_restored():
            background.submit(import_module, "ray.tune")  # takes a second, during which Ray starts
            _connect(resources, address, scratch=folder / "ray")
        _fit(tasks, resources, folder / "ray", data=data)
    finally:
        ray.shutdown()
        shutil.rmtree(folder / "ray", ignore_errors=True)


def _prepare(folder: Path, *, new_cluster: bool) -> None:
    """Set the environment variables that Ray reads when it is imported; a new cluster is protected by a token.

    Variables that the user has set stay. Relative paths are made absolute, since `_connect` changes the folder.
    """
    settings = _QUIET | (_NEW_CLUSTER | {START_VARIABLE: str(start_seconds())} if new_cluster else {})
    os.environ.update({key: value for key, value in settings.items() if key not in os.environ})
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", ""))
    if token.is_file() or new_cluster:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token.absolute() if token.is_file() else _token(folder))
    if paths := os.environ.get("PYTHONPATH"):
        absolute = (str(Path(path).absolute()) for path in paths.split(os.pathsep))
        os.environ["PYTHONPATH"] = os.pathsep.join(absolute)


@contextmanager
def _sigterm_handler_restored() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces by one that ends the process with an exit code of its own."""
    main = threading.current_thread() is threading.main_thread()  # Python allows no other thread to set handlers
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _connect(resources: Resources, address: str | None, *, scratch: Path) -> None:
    import ray

    if address is not None:
        check(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    together = resources.cpus * resources.ranks
    cpus = resources.max_concurrent_trials * together if address is None else None
    dashboard = None if address else False
    scratch.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "address": address or "local",
        "num_cpus": cpus,
        "include_dashboard": dashboard,
    }  # not RAY_ADDRESS
    if address is None and (folder := short_folder()) is not None:
        options["_temp_dir"] = folder
    # Ray puts the working directory first in the sys.path of its workers, where a user's folder named `services` would
    # be imported in place of ours. The scratch folder contains no Python.
    with chdir(scratch), explained(address):
        started(lambda: ray.init(**options, log_to_driver=False, logging_level=logging.ERROR), ray.shutdown)
    available = ray.cluster_resources()
    # Tune would only print a warning and wait forever for a node that is large enough.
    if not resources.fit([node["Resources"] for node in ray.nodes() if node["Alive"]]):
        raise ClusterError(
            f"one trial needs {resources.described}, the cluster has "
            f"{available.get('CPU', 0):g} CPUs and {available.get('GPU', 0):g} GPUs"
        )


def _fit(tasks: Tasks, resources: Resources, folder: Path, *, data: SharedData | None) -> None:
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    broker = _Broker(tasks)
    strategy = "STRICT_PACK" if resources.one_node else "PACK"
    bundles = tune.PlacementGroupFactory([resources.bundle] * resources.ranks, strategy=strategy)
    shared = data if data is not None and _fits_object_store(data) else None
    trainable = tune.with_resources(tune.with_parameters(_trainable(resources), data=shared), bundles)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_searcher(broker),
            num_samples=-1,  # no limit: the search ends when `suggest` returns FINISHED
            max_concurrent_trials=resources.max_concurrent_trials,
            reuse_actors=True,  # the next trial finds torch imported and the data loaded
            metric="reports",  # Tune requires one; scores are not its business, since the scheduler decides
            mode="max",
        ),
        run_config=tune.RunConfig(
            name="tune",
            stop=_stopper(broker),
            storage_path=str(folder.absolute()),
            verbose=0,
            callbacks=[_replacement()],
            # Tune restarts a trial whose worker has died; the new worker continues from the checkpoint of the trial.
            failure_config=tune.FailureConfig(max_failures=resources.retries),
        ),
    )
    tuner.fit()


def _fits_object_store(data: SharedData) -> bool:
    """Whether the smallest object store has room for the data and as much again; Ray would write a larger one to disk.

    Results and checkpoints of Ray itself need room as well.
    """
    import ray

    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return data.nbytes <= min(stores, default=0.0) / 2


def _trainable(resources: Resources) -> type:
    from ray import tune

    bundle = resources.bundle

    class TrialActor(tune.Trainable):
        """A worker as a Tune trainable; every step is one report."""

        def setup(self, config: Mapping[str, Any], data: SharedData | None = None) -> None:
            others = RankActors(cpus=int(bundle["CPU"]), gpus=int(bundle.get("GPU", 0)))
            self.worker = Worker(others=others, data=data)
            self.reports = 0
            self.ends = False
            self.worker.start(Task(**config["task"]))

        def reset_config(self, new_config: Mapping[str, Any]) -> bool:
            self.reports = 0
            self.worker.start(Task(**new_config["task"]))
            return True

        def step(self) -> dict[str, Any]:
            if self.ends:
                os._exit(1)  # without the clean-up of the device's library, which may wait for the device forever
            report = self.worker.step()
            self.reports += 1
            self.ends = report.ends_worker
            # Tune would hand the actor of a trial that is done to the next one. It never does so with one that dies.
            done = report.done and not self.ends
            return {"reports": self.reports, "report": report.to_text(), "done": done, "ends_worker": self.ends}

        def cleanup(self) -> None:
            """End the processes of the other ranks with this one."""
            self.worker.leave()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save nothing: the worker writes its own checkpoint with every report."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Load nothing: the worker reads its own checkpoint when it starts a task."""

    return TrialActor


class _Broker:
    """Maps Tune's names of trials to tasks, and forwards reports."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._trials: dict[str, int] = {}
        self._done: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether no task will ever come again."""
        return self._tasks.finished

    def next(self, name: str) -> dict[str, Any] | None:
        """Return the configuration of the next trial, or None while there is none yet."""
        task = self._tasks.next()
        if task is None:
            return None
        self._trials[name] = task.trial
        return {"task": task.to_json()}

    def stops(self, result: Mapping[str, Any]) -> bool:
        """Forward the report in a result; return whether its trial is to be stopped, and its actor to be used again."""
        if "report" not in result:
            return False
        report = Report.from_text(result["report"])
        if report.done:
            self._done.add(report.trial)
        stopped = self._tasks.report(report)
        return bool(stopped) and not report.ends_worker

    def complete(self, name: str, *, lost: bool) -> None:
        """Forget a trial that has ended, and report it as lost if its workers died before its last report."""
        trial = self._trials.pop(name)
        if lost and trial not in self._done:
            self._tasks.lost(trial, "its worker process died more often than the study's retries allow")


def _stopper(broker: _Broker) -> Any:
    from ray.tune import Stopper

    class StudyStopper(Stopper):
        """Records reports and stops trials: Tune calls it with every result, before the trial continues."""

        def __init__(self, broker: _Broker) -> None:
            self.broker = broker

        def __getstate__(self) -> dict[str, Any]:
            """Leave the state out of Tune's snapshots: it is in the store, and a store cannot be pickled."""
            return {}

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return self.broker.stops(result)

        def stop_all(self) -> bool:
            return False

    return StudyStopper(broker)


def _replacement() -> Any:
    from ray import tune

    class Replacement(tune.Callback):
        """Gives a trial whose report ends its worker no further attempt when the worker exits: the trial has ended."""

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
        ) -> None:
            if result.get("ends_worker"):
                trial.max_failures = 0

    return Replacement()


def _searcher(broker: _Broker) -> Any:
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        """The broker as a Tune search algorithm."""

        def __init__(self, broker: _Broker) -> None:
            super().__init__(metric="reports", mode="max")
            self.broker = broker

        def __getstate__(self) -> dict[str, Any]:
            """Leave the state out of Tune's snapshots: it is in the store, and a store cannot be pickled."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            # None makes Tune ask again after the next result; FINISHED is final.
            return self.broker.next(trial_id) or (Searcher.FINISHED if self.broker.finished else None)

        def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
            """Do nothing: `StudyStopper` has handled the result."""

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.broker.complete(trial_id, lost=error)

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: the state is in the store."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing, for the same reason."""

    return StudySearcher(broker)


def _token(folder: Path) -> Path:
    """Return the file of the token that protects the cluster of this study, and create it if necessary."""
    path = folder / "ray-token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Created with its mode: a chmod afterwards would leave a moment in which other users can read it.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path
