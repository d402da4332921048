"""The driver of a study: hands tasks to the cluster and records the reports; only the driver writes to the store."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

from nas_blockout.data import Splits, load
from services import cluster
from services.budget.limits import Unit, shares
from services.cluster.tasks import Report, Task
from services.execution.extension import enter
from services.files.disk_full import reports_disk_full
from services.files.network_files import files_of
from services.files.remote import ArtifactError, fetch_folder, place_of, remove
from services.files.shared_place import claim_place, shared_place
from services.files.study_dir import Folder, environment, write_json, write_yaml
from services.search.scheduler import Scheduler
from services.settings import Settings
from services.store import Store, StoreUnreachable, StudyBusy
from services.study_config.errors import LineMap
from services.study_config.resolved_study import Study
from services.study_config.validation import cautions, check_against_data
from services.tracking import data_sets, following
from services.trial_record import RETRAIN, SEARCH, Trial

HEARTBEAT_SECONDS = 5.0
# How long writes are retried while the database restarts: giving up early would lose the trials that are training.
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class ArmProgress:
    """Progress of one arm.

    Args:
        name: Name of the arm.
        done: Number of complete trials.
        running: Number of running trials.
        failed: Number of failed trials.
        best: Validation accuracy of the current winner of the search, or None.
        share: Fraction of the budget that is spent, in [0, 1]; the largest one if there are several limits.
    """

    name: str
    done: int
    running: int
    failed: int
    best: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a study.

    Args:
        arms: Progress of each arm.
        seconds: Seconds since this run of the study started.
        seconds_left: Estimated from the speed since the first report; None until a trial has ended and a twentieth of
            what there was to do is done, since trials of different arms take different times.
        metric: What the best of an arm is, in words.
    """

    arms: tuple[ArmProgress, ...]
    seconds: float
    seconds_left: float | None
    metric: str = "accuracy"

    @property
    def share(self) -> float:
        """Fraction of all budgets that is spent, in [0, 1]."""
        return sum(arm.share for arm in self.arms) / len(self.arms)


Observe = Callable[[Progress], None]
_TELLING_SHARE = 0.05  # of what there was to do: the time left is estimated from it, and not from less


class Driver:
    """Runs the trials of a study on the cluster and records their reports.

    Args:
        study: The resolved study.
        splits: Data of the study.
        store: Store with the study; while the driver runs, nothing else writes to the study.
        folder: Folder of the study.
        settings: Settings of the installation.
        observe: Called with the progress after every change.
    """

    def __init__(
        self, study: Study, splits: Splits, store: Store, *, folder: Folder, settings: Settings, observe: Observe
    ) -> None:
        self.study = study
        self.store = store
        self.folder = folder
        self.settings = settings
        self._shared = shared_place(settings, store, study.name)
        self._observe = observe
        self._began = time.monotonic()
        self._workers: dict[int, str] = {}  # the worker that reported last, by trial: another one means a restart
        rows = [row.trimmed() for row in store.each_trial(study.name)]
        self._keys = {row.id: row.key for row in rows}
        self._queue = deque(row.id for row in rows if row.state == "queued")
        self.scheduler = Scheduler(
            study,
            shape=splits.shape,
            classes=len(splits.class_names),
            images=len(splits.train),
            images_of_folds=splits.images_of_folds(study.data.train_samples),
            trials=[replace(row, curve=self._curve(row)) for row in rows],
        )
        self._ended_here = 0  # trials that ended in this run of the study
        self._first_report: float | None = None  # when it came: what was before is the start of Ray
        self._share_before = 0.0  # `progress` reads it, so it must exist before the call
        self._share_before = self.progress().share

    @property
    def finished(self) -> bool:
        """Whether there will be no further tasks."""
        return self.scheduler.finished

    def next(self) -> Task | None:
        """Return the next task: first the trials that an earlier run left queued, then proposals of the scheduler."""
        if self._queue:
            identity = self._queue.popleft()
        elif (proposal := self.scheduler.next()) is not None:
            identity = self._add(proposal)
        else:
            return None
        trial = self._trial(identity)
        if trial.search_exhausted is not None:  # nothing to train: the trial only records why the search ends
            self._finish(trial, "failed", reason=trial.search_exhausted)
            return self.next()
        if trial.state != "running":
            self.scheduler.update(replace(trial, state="running"))
            self.store.start_attempt(identity, worker="")  # the worker is known from its first report
        self._notify()
        return self._task(trial)

    def report(self, report: Report) -> bool:
        """Record epochs, a new attempt after a restart, and the end of a trial; return whether to stop the trial.

        Raises:
            OSError: A disk of the worker is full; the trial neither fails nor is charged, but runs again later.
        """
        trial = self._trial(report.trial)
        if trial.ended:  # a late report, or a repeated one: the end is recorded already
            return trial.state == "pruned"
        if self._first_report is None:
            self._first_report = time.monotonic()
        is_known = report.trial in self._workers
        if self._workers.setdefault(report.trial, report.worker) != report.worker:
            self._workers[report.trial] = report.worker
            self.store.start_attempt(report.trial, worker=report.worker)
        recorded = len(trial.curve)
        if report.records:
            worker = None if is_known else report.worker  # named once: each time is a statement more
            self.store.record_epochs(report.trial, report.records, worker=worker)
            curve = extended(trial.curve, report.records, self._metric) if self._can_be_stopped(trial) else ()
            # A worker that went on from an older checkpoint reports epochs again: what was spent stays spent.
            passes = max(trial.sample_passes, int(report.records[-1]["sample_passes"]))
            trial = replace(trial, sample_passes=passes, curve=curve)
            self.scheduler.update(trial)
        # End the run: every further trial would fail for the same reason, and be charged to the budget.
        if report.failure is not None and reports_disk_full(report.failure):
            raise OSError(ENOSPC, f"trial {report.trial}: {report.failure}")
        if report.failure is not None:
            self._finish(trial, "failed", reason=report.failure)
        elif report.result is not None:
            self._finish(trial, "complete", result=report.result)
        elif (stop := self.scheduler.reason_to_stop(trial, since=recorded)) is not None:
            rung, reason = stop
            outcome = {self._metric: trial.curve[rung - 1], "stopped_after": rung}
            self._finish(trial, "pruned", result=outcome, reason=reason)
        self._notify()
        return self._trial(report.trial).state == "pruned"

    def lost(self, trial: int, reason: str) -> None:
        """Record that a trial failed because its workers died."""
        if not self._trial(trial).ended:
            self._finish(self._trial(trial), "failed", reason=reason)
            self._notify()

    def _trial(self, identity: int) -> Trial:
        return self.scheduler.trial(self._keys[identity])

    def _add(self, proposal: Trial) -> int:
        """Add a proposed trial to the store, and give the scheduler the stored trial; return its identity."""
        architecture = proposal.config.architecture
        trial = self.store.add_trial(
            self.study.name,
            arm=proposal.arm,
            phase=proposal.phase,
            number=proposal.number,
            seed=proposal.seed,
            experiment=proposal.experiment,
            params=proposal.params,
            architecture=architecture.to_json() if architecture else None,
            architecture_hash=proposal.architecture_hash,
            replicate_of=proposal.replicate_of,
            planned=proposal.planned,
            suggest_seconds=proposal.suggest_seconds,
            starts=proposal.search_exhausted is None,
        )
        self._keys[trial.id] = trial.key
        self.scheduler.update(trial.known_as(proposal.config))  # the store has found the two experiments equal
        return trial.id

    def _task(self, trial: Trial) -> Task:
        workers, rules, retrain = self.study.config.workers, self.study.arms[trial.arm].rules, trial.phase == RETRAIN
        robustness = self.study.config.robustness
        return Task(
            trial=trial.id,
            experiment=trial.config.to_json(),
            evaluates_test=retrain,
            checkpoint=self._place(self.folder.checkpoint(trial.id)),
            model=self._place(self.folder.weights(trial.id)) if retrain else None,
            data_root=str(self.settings.data) if self.settings.data else None,
            threads=workers.cpus,
            device="cuda" if workers.gpus else "cpu",
            ranks=workers.ranks_of_trial,
            rungs=self.scheduler.rungs(trial),
            measures_latency=rules.needs_latency,
            # The seed of the study, not of the trial: all models are tested on the same corrupted images.
            robustness={**robustness.model_dump(), "seed": self.study.config.seed} if robustness and retrain else None,
            calibrates=self.study.config.calibrate and retrain,
            data_memory_share=workers.data_memory_share,
            image_cache=workers.image_cache,
        )

    def _place(self, path: Path) -> str:
        """Return the path or URL under which all workers find a file of the study."""
        return place_of(path, self.folder.root, self._shared)

    def _finish(
        self, trial: Trial, state: str, *, result: Mapping[str, Any] | None = None, reason: str | None = None
    ) -> None:
        score = float(result[self._metric]) if result and state == "complete" else None
        ended = self.store.finish_trial(trial.id, state, score=score, result=result, reason=reason, known=trial)
        self._ended_here += 1
        self._workers.pop(trial.id, None)
        # As the store has it: it alone knows the seconds of all attempts, which are charged to the arm.
        self.scheduler.update(replace(ended.trimmed(), curve=trial.curve))
        with suppress(ArtifactError):  # a checkpoint that remains does no harm, since its trial has ended
            remove(self._place(self.folder.checkpoint(trial.id)))

    def _can_be_stopped(self, trial: Trial) -> bool:
        """Whether the trial may be stopped early; only then is its curve needed."""
        return trial.phase == SEARCH and self.study.arms[trial.arm].rules.pruner is not None

    def _curve(self, row: Trial) -> tuple[float, ...]:
        if not self._can_be_stopped(row):
            return ()
        records = [{"epoch": epoch.epoch, **epoch.metrics} for epoch in self.store.epochs(row.id)]
        return extended((), records, self._metric)

    @property
    def _metric(self) -> str:
        """What of a trial is its score, and of its epochs its curve."""
        return f"validation_{self.study.config.metric}"

    def _notify(self) -> None:
        self._observe(self.progress())

    def progress(self) -> Progress:
        """Return the progress of the study."""
        arms = tuple(self._arm_progress(name) for name in self.study.arms)
        now = time.monotonic()
        progress = Progress(arms, now - self._began, None, self.study.config.metric.replace("_", " "))
        done, to_do = progress.share - self._share_before, 1 - self._share_before
        if self._first_report is None or not self._ended_here or done < _TELLING_SHARE * to_do:
            return progress
        return replace(progress, seconds_left=(now - self._first_report) * (1 - progress.share) / done)

    def _arm_progress(self, name: str) -> ArmProgress:
        tallies = [self.scheduler.tally(name, phase) for phase in (SEARCH, RETRAIN)]
        winner = self.scheduler.winner(name)
        states = tallies[0].states + tallies[1].states
        spent: dict[Unit, float] = {
            "sample_passes": sum(tally.sample_passes for tally in tallies),
            "seconds": sum(tally.ended_seconds for tally in tallies),
            "trainings": sum(tally.ended for tally in tallies),
        }
        return ArmProgress(
            name,
            done=states["complete"],
            running=states["running"],
            failed=states["failed"],
            best=winner.score if winner else None,
            share=min(1.0, max(shares(self.study.config.budget, spent).values())),
        )


def extended(
    curve: tuple[float, ...], records: Iterable[Mapping[str, Any]], metric: str = "validation_accuracy"
) -> tuple[float, ...]:
    """Return a curve of a metric with the values of further epochs, skipping epochs that it contains already.

    They occur because a worker reports the epochs of its checkpoint again after a restart.
    """
    accuracies = list(curve)
    for record in records:
        if record["epoch"] == len(accuracies):
            accuracies.append(float(record[metric] or 0.0))  # None if the training diverged
    return tuple(accuracies)


def run(
    study: Study,
    settings: Settings,
    *,
    observe: Observe,
    source: str,
    lines: LineMap | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[Study, Store, Splits]:
    """Run the trials of a study that are missing in the store, until every arm has been searched and retrained.

    Args:
        study: The resolved study.
        settings: Settings of the installation.
        observe: Called with the progress after every change.
        source: Origin of the study, for error messages.
        lines: Lines of the keys, if the study comes from a file.
        log: Called with what its user should know, also from another thread.

    Returns:
        The study as it was run, the open store with all trials, and the data. Comparison, exports and report have not
        been written yet.

    Raises:
        StudyError: A network cannot be built for the data, or the budget is too small; nothing has been written.
        StudyConflict: The store has a study of that name, and the changes are not an extension of it.
        StudyBusy: Another driver runs the study.
        ClusterError: Ray cannot be reached, or the cluster is too small.
        ArtifactError: Shared storage cannot be reached.
    """
    splits = load(study.data, root=settings.data)
    check_against_data(study, splits, source=source, lines=lines)
    for caution in cautions(study, splits):
        log(caution)
    store = Store.open(settings.store_url, retry_seconds=PATIENCE_SECONDS)
    folder = Folder(settings.folder(study.name))
    shared = shared_place(settings, store, study.name)
    if shared is not None and not folder.root.exists():  # another machine may have run part of it
        fetch_folder(shared, folder.root)
    study, row = enter(study, store, folder)
    if row.state == "complete":
        return study, store, splits
    # From here on no other driver runs the study; only the driver with the claim may write to the folder.
    store.claim_study(study.name)
    write_yaml(folder.root / "study.yaml", study.to_json())
    write_json(folder.root / "environment.json", environment() | {"files": files_of(study)})
    try:
        claim_place(settings, store, row, log=log)
        _run_trials(study, splits, store, folder=folder, settings=settings, observe=observe, log=log)
    except BaseException:
        with suppress(StoreUnreachable):  # the claim then expires, since its heartbeats have ended
            store.release_study(study.name)
        raise
    return study, store, splits


def _run_trials(
    study: Study,
    splits: Splits,
    store: Store,
    *,
    folder: Folder,
    settings: Settings,
    observe: Observe,
    log: Callable[[str], None],
) -> None:
    store.requeue_running(study.name)  # their driver has ended, since this one has the claim
    driver = Driver(study, splits, store, folder=folder, settings=settings, observe=observe)
    workers = study.config.workers
    resources = cluster.Resources(
        workers.max_concurrent_trials,
        workers.cpus,
        workers.gpus,
        workers.retries,
        ranks=workers.ranks_of_trial,
        one_node=workers.rank_placement == "one-node",
    )
    if not driver.finished:
        observe(driver.progress())  # Ray takes some seconds to start: show something before that
        config, uri = study.to_json(), settings.tracking_uri
        data = data_sets(splits, name=study.data.name) if uri is not None else ()
        with _heartbeat(store, study.name), following(uri, study.name, config, store, data=data, warn=log):
            try:
                root = str(settings.data) if settings.data else None
                shared = cluster.SharedData.of(splits, study.data, root)
                cluster.run(driver, resources, folder=folder.scratch, address=settings.ray_address, data=shared)
            except BaseException:
                store.stop_retrying()  # otherwise Ctrl-C would wait for an unreachable database
                raise


@contextmanager
def _heartbeat(store: Store, name: str) -> Iterator[None]:
    """Renew the claim every few seconds from a thread, so that no slow step of the driver lets it expire."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(StoreUnreachable):  # the writes of the driver notice it, too, and wait
                try:
                    store.heartbeat(name)
                except StudyBusy:
                    # Another driver has taken over the study, so this one must stop writing. A thread cannot raise an
                    # exception in the main thread, but it can send the process a signal.
                    signal.raise_signal(signal.SIGTERM)
                    return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
