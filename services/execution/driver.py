"""Running a study: the one writer of the store, which hands tasks to the cluster and takes its reports."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

from nas_blockout.data import Splits, load
from nas_blockout.experiment import Experiment
from services import cluster
from services.budget.accounting import charged_seconds
from services.budget.limits import Unit, shares
from services.cluster.worker import Report, Task
from services.execution.extension import enter
from services.files.disk_full import reports_disk_full
from services.files.remote import ArtifactError, fetch_folder, place_of, remove
from services.files.study_dir import Folder, environment, write_json, write_yaml
from services.mlflow_sync import following
from services.search import RETRAIN, SEARCH, TERMINAL, Entry, Plan, Proposal
from services.settings import Settings
from services.store import Store, StoreUnreachable, StudyBusy, TrialRow
from services.study_config.schema import Study
from services.study_config.validation import check_against_data

HEARTBEAT_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # for a database that is started again: what trains is worth more than an early error


@dataclass(frozen=True, slots=True)
class ArmProgress:
    """Where one contestant stands.

    Args:
        name: The arm.
        done: Trials that ended well.
        running: Trials that run.
        failed: Trials that failed.
        best: Best validation accuracy of its search so far, or None.
        share: Of its budget that is spent, in 0..1: of the limit that it has come nearest to.
    """

    name: str
    done: int
    running: int
    failed: int
    best: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a study stands.

    Args:
        arms: One row a contestant.
        seconds: Since this run of the study began.
        seconds_left: Estimate from the speed so far; None until a trial has ended in this run of the study.
    """

    arms: tuple[ArmProgress, ...]
    seconds: float
    seconds_left: float | None

    @property
    def share(self) -> float:
        """Share of all budgets that is spent, in 0..1."""
        return sum(arm.share for arm in self.arms) / len(self.arms)


Observe = Callable[[Progress], None]


class Driver:
    """Gives the cluster the trials of a study and writes what comes back; the only writer of the store while it runs.

    Args:
        study: The resolved study.
        splits: Its data.
        store: Where everything is kept.
        folder: Where its files are.
        settings: Of the installation.
        observe: Told after every change.
    """

    def __init__(
        self, study: Study, splits: Splits, store: Store, *, folder: Folder, settings: Settings, observe: Observe
    ) -> None:
        self.study = study
        self.store = store
        self.folder = folder
        self.settings = settings
        self._observe = observe
        self._began = time.monotonic()
        self._entries: dict[int, Entry] = {}
        self._workers: dict[int, str] = {}
        rows = store.trials(study.name)
        self._entries = {row.id: replace(entry_of(row), curve=self._curve(row)) for row in rows}
        self._queue = [row.id for row in rows if row.state == "queued"]
        self.plan = Plan(
            study,
            shape=splits.shape,
            classes=len(splits.class_names),
            images=len(splits.train),
            entries=self._entries.values(),
        )
        self._ended_here = 0  # trials that ended in this run of the study
        self._share_before = 0.0
        self._share_before = self.progress().share

    @property
    def finished(self) -> bool:
        """Whether no task will ever come again."""
        return self.plan.finished

    def next(self) -> Task | None:
        """Return the next task: what an earlier run left, else what the plan proposes."""
        if self._queue:
            trial = self._queue.pop(0)
        elif (proposal := self.plan.next()) is not None:
            trial = self._add(proposal)
        else:
            return None
        if (reason := self._entries[trial].search_exhausted) is not None:
            self._finish(trial, "failed", reason=reason)
            return self.next()
        self._update(trial, state="running")
        self.store.start_attempt(trial, worker="")
        self._tell()
        return self._task(trial)

    def report(self, report: Report) -> bool:
        """Write epoch records, a new attempt after a restart, and the end of a trial; return whether it is stopped.

        Raises:
            OSError: A disk of the worker is full; the trial is neither failed nor charged, but runs again.
        """
        entry = self._entries[report.trial]
        if entry.state in TERMINAL:
            return entry.state == "pruned"
        if self._workers.setdefault(report.trial, report.worker) != report.worker:
            self._workers[report.trial] = report.worker
            self.store.start_attempt(report.trial, worker=report.worker)
        if report.records:
            self.store.record_epochs(report.trial, report.records, worker=report.worker)
            curve = longer(entry.curve, report.records) if self._watched(entry.arm, entry.phase) else ()
            self._update(report.trial, spent=int(report.records[-1]["sample_passes"]), curve=curve)
        if report.failure is not None and reports_disk_full(
            report.failure
        ):  # the next trial would fail, too, and be charged
            raise OSError(ENOSPC, f"trial {report.trial}: {report.failure}")
        if report.failure is not None:
            self._finish(report.trial, "failed", reason=report.failure)
        elif report.result is not None:
            self._finish(report.trial, "complete", result=report.result)
        elif (stop := self.plan.reason_to_stop(self._entries[report.trial], since=len(entry.curve))) is not None:
            rung, reason = stop
            accuracy = self._entries[report.trial].curve[rung - 1]
            outcome = {"validation_accuracy": accuracy, "stopped_after": rung}
            self._finish(report.trial, "pruned", result=outcome, reason=reason)
        self._tell()
        return self._entries[report.trial].state == "pruned"

    def lost(self, trial: int, reason: str) -> None:
        """Write that a trial failed because its workers died."""
        if self._entries[trial].state not in TERMINAL:
            self._finish(trial, "failed", reason=reason)
            self._tell()

    def _add(self, proposal: Proposal) -> int:
        entry = proposal.entry
        row = self.store.add_trial(
            self.study.name,
            arm=entry.arm,
            phase=entry.phase,
            number=entry.number,
            seed=entry.seed,
            experiment=entry.experiment.to_json(),
            params=entry.parameters or {},
            architecture=entry.experiment.architecture.to_json() if entry.experiment.architecture else None,
            architecture_hash=entry.architecture_hash,
            replicate_of=proposal.replicate_of,
            planned=entry.planned,
            suggest_seconds=proposal.suggest_seconds,
        )
        self._entries[row.id] = entry
        return row.id

    def _task(self, trial: int) -> Task:
        entry, workers = self._entries[trial], self.study.config.workers
        rules, retrain = self.study.arms[entry.arm].rules, entry.phase == RETRAIN
        return Task(
            trial=trial,
            experiment=entry.experiment.to_json(),
            evaluates_test=retrain,
            checkpoint=self._place(self.folder.checkpoint(trial)),
            model=self._place(self.folder.weights(trial)) if retrain else None,
            data_root=str(self.settings.data) if self.settings.data else None,
            threads=workers.cpus,
            device="cuda" if workers.gpus else "cpu",
            rungs=tuple(rules.pruner.rungs or ()) if rules.pruner and not retrain else (),
            measures_latency=rules.needs_latency,
            robustness=self._robustness() if retrain else None,
        )

    def _place(self, path: Path) -> str:
        """Return where workers find a file of the study, wherever they run."""
        return place_of(path, self.folder.root, self.settings.shared(self.study.name))

    def _robustness(self) -> dict[str, Any] | None:
        """Return which corrupted images retrained models are tested on, drawn by the seed of the study."""
        wanted = self.study.config.robustness
        return {**wanted.model_dump(), "seed": self.study.config.seed} if wanted is not None else None

    def _finish(
        self, trial: int, state: str, *, result: Mapping[str, Any] | None = None, reason: str | None = None
    ) -> None:
        score = float(result["validation_accuracy"]) if result and state == "complete" else None
        self.store.finish_trial(trial, state, score=score, result=result, reason=reason)
        self._ended_here += 1
        ended = self.store.trial(trial)
        self._update(trial, state=state, score=score, seconds=charged_seconds(ended), **outcome_of(ended))
        with suppress(ArtifactError):  # what is left of it does no harm: it belongs to a trial that has ended
            remove(self._place(self.folder.checkpoint(trial)))

    def _watched(self, arm: str, phase: str) -> bool:
        """Whether trials may be stopped early, so that their curves are needed."""
        return phase == SEARCH and self.study.arms[arm].rules.pruner is not None

    def _curve(self, row: TrialRow) -> tuple[float, ...]:
        if not self._watched(row.arm, row.phase):
            return ()
        return longer((), [{"epoch": epoch.epoch, **epoch.metrics} for epoch in self.store.epochs(row.id)])

    def _update(self, trial: int, **changes: Any) -> None:
        self._entries[trial] = replace(self._entries[trial], **changes)
        self.plan.update(self._entries[trial])

    def _tell(self) -> None:
        self._observe(self.progress())

    def progress(self) -> Progress:
        """Return where the study stands."""
        found = Progress(
            tuple(self._arm_progress(name) for name in self.study.arms), time.monotonic() - self._began, None
        )
        done = found.share - self._share_before
        if done <= 0 or not self._ended_here:  # the first trials also wait for Ray and for imports: no basis yet
            return found
        return replace(found, seconds_left=found.seconds * (1 - found.share) / done)

    def _arm_progress(self, name: str) -> ArmProgress:
        entries = [*self.plan.of(name, SEARCH), *self.plan.of(name, RETRAIN)]
        winner = self.plan.winner(name)
        states = [entry.state for entry in entries]
        spent: dict[Unit, float] = {
            "sample_passes": sum(entry.spent for entry in entries),
            "seconds": sum(entry.seconds for entry in entries),
            "trainings": sum(state in TERMINAL for state in states),
        }
        return ArmProgress(
            name,
            done=states.count("complete"),
            running=states.count("running"),
            failed=states.count("failed"),
            best=winner.score if winner else None,
            share=min(1.0, max(shares(self.study.config.budget, spent).values())),
        )


def entry_of(row: TrialRow) -> Entry:
    """Return a trial of the store as the plan sees it."""
    experiment = Experiment.from_json(row.experiment)
    return Entry(
        arm=row.arm,
        phase=row.phase,
        number=row.number,
        seed=row.seed,
        state=row.state,
        planned=row.planned,
        experiment=experiment,
        spent=row.sample_passes,
        seconds=charged_seconds(row) if row.state in TERMINAL else 0.0,
        score=row.score,
        parameters=row.params or None,
        architecture_hash=row.architecture_hash,
        **outcome_of(row),
    )


def outcome_of(row: TrialRow) -> dict[str, Any]:
    """Return what a trial ended in, by the names that the plan uses; nothing of what is not known."""
    result = row.result or {}
    stopped = (result["stopped_after"], result["validation_accuracy"]) if row.state == "pruned" and result else None
    return {
        "macs": result.get("macs"),
        "parameter_count": result.get("parameters"),
        "latency_ms": result.get("latency_ms"),
        "stopped": stopped,
    }


def longer(curve: tuple[float, ...], records: Iterable[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return a curve of validation accuracies with those of further epochs; epochs that it has change nothing."""
    found = list(curve)
    for record in records:
        if record["epoch"] == len(found):
            found.append(float(record["validation_accuracy"] or 0.0))
    return tuple(found)


def run(study: Study, settings: Settings, *, observe: Observe, source: str) -> tuple[Study, Store, Splits]:
    """Run a study, or what is left of it or was added to it, until every arm has searched and retrained.

    Args:
        study: The resolved study.
        settings: Of the installation.
        observe: Told after every change.
        source: Where the study came from, for errors.

    Returns:
        The study as it was run, the store, open, with all trials in it, and the data. What the study leaves behind is
        still to be written.

    Raises:
        StudyError: A network cannot be built for the data, or the budget is too small; nothing has been written.
        StudyConflict: A study of that name is in the store, to which this one does not only add.
        StudyBusy: Another driver runs it.
        ClusterError: Ray cannot be reached or is too small.
        ArtifactError: Shared storage cannot be reached.
    """
    splits = load(study.data, root=settings.data)
    check_against_data(study, splits, source=source)
    store = Store.open(settings.store_url, patience=PATIENCE_SECONDS)
    folder = Folder(settings.folder(study.name))
    shared = settings.shared(study.name)
    if shared is not None and not folder.root.exists():  # another machine may have run the study, or some of it
        fetch_folder(shared, folder.root)
    study, row = enter(study, store, folder)
    if row.state == "complete":
        return study, store, splits
    store.claim_study(study.name)
    write_yaml(folder.root / "study.yaml", study.to_json())
    write_json(folder.root / "environment.json", environment())
    try:
        _run_trials(study, splits, store, folder=folder, settings=settings, observe=observe)
    except BaseException:
        with suppress(StoreUnreachable):  # the claim then ends by its silence
            store.release_study(study.name)
        raise
    return study, store, splits


def _run_trials(
    study: Study, splits: Splits, store: Store, *, folder: Folder, settings: Settings, observe: Observe
) -> None:
    store.requeue_running(study.name)
    driver = Driver(study, splits, store, folder=folder, settings=settings, observe=observe)
    workers = study.config.workers
    resources = cluster.Resources(workers.max_concurrent_trials, workers.cpus, workers.gpus, workers.retries)
    if not driver.finished:
        observe(driver.progress())  # Ray takes some seconds to start; say at once that something goes on
        with _heartbeat(store, study.name), following(settings.tracking_uri, study.name, study.to_json(), store):
            try:
                cluster.run(driver, resources, folder=folder.scratch, address=settings.ray_address)
            except BaseException:
                store.stop_retrying()  # or whoever ends it would wait for a database that is away
                raise


@contextmanager
def _heartbeat(store: Store, name: str) -> Iterator[None]:
    """Tell the store every few seconds that this driver lives, however long a step takes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(StoreUnreachable):  # a store that is away is waited for by the writes
                try:
                    store.heartbeat(name)
                except StudyBusy:  # another driver has taken the study over: this one must not write any more
                    signal.raise_signal(signal.SIGTERM)
                    return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
