"""The cost of a study: its scheduler runs in simulated time, with measured durations and invented results."""

import heapq
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nas_blockout.data import Splits, StreamedPart, load
from nas_blockout.data.corruptions import TESTING
from nas_blockout.devices import keep_freed_memory
from nas_blockout.experiment import Experiment, count_macs, dense_macs, rebuild
from nas_blockout.serialization import count_of
from services.estimate.crowding import MOST_COPIES, Crowd, slowdown
from services.estimate.measurement import Measured, measure
from services.search.scheduler import Scheduler
from services.settings import Settings
from services.study_config.errors import LineMap, StudyError
from services.study_config.resolved_study import Study
from services.study_config.validation import check_against_data
from services.trial_record import RETRAIN, SEARCH, Trial

SECONDS, QUICK_SECONDS = 20.0, 4.0  # for measuring all arms together
CROWD_SECONDS = 3.0  # for measuring one training alone, and again beside others
# The constants below were measured on the quickstart with two workers, on a machine with two cores.
START_SECONDS = 6.0  # until Ray has started
TRIAL_SECONDS = 0.3  # time that a worker waits between two trials
ARM_SECONDS, EXPORT_SECONDS = 1.0, 3.0  # measuring the winner of an arm; exporting and verifying a model
# Bytes that the store grows by for each epoch and trial, and the size of a report.
EPOCH_BYTES, TRIAL_BYTES, REPORT_BYTES = 900, 6_000, 600_000
MLFLOW_EPOCH_BYTES = 3_200
# An export has a fixed part, and as many bytes as this number of copies of the weights.
EXPORT_BYTES, EXPORT_FORMS, FLOAT_BYTES = 130_000, 4, 4

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PhaseEstimate:
    """Predicted cost of a phase of an arm: trials, sample passes, and seconds of training."""

    trials: int = 0
    sample_passes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted cost of a study.

    Args:
        study: Name of the study.
        phases: Cost of the phases, by arm and phase.
        workers: Number of trials that run at the same time.
        trials_seconds: Wall-clock seconds from the start of the first trial to the end of the last one.
        wall_seconds: Wall-clock seconds of the whole study, including exports and report.
        crowding: Factor by which trials that run at the same time slow one another down.
        disk_bytes: Disk space that the study takes when it has ended.
        dry_run_seconds: Seconds that the estimate itself took.
        notes: What the estimate does not include.
    """

    study: str
    phases: Mapping[str, Mapping[str, PhaseEstimate]]
    workers: int
    trials_seconds: float
    wall_seconds: float
    crowding: float
    disk_bytes: int
    dry_run_seconds: float
    notes: tuple[str, ...]

    @property
    def total(self) -> PhaseEstimate:
        """Sum over all arms and phases."""
        phases = [phase for arm in self.phases.values() for phase in arm.values()]
        return PhaseEstimate(
            sum(p.trials for p in phases), sum(p.sample_passes for p in phases), sum(p.seconds for p in phases)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain JSON types."""
        return {**asdict(self), "notes": list(self.notes), "total": asdict(self.total)}


def estimate(
    study: Study,
    settings: Settings,
    *,
    source: str,
    lines: LineMap | None = None,
    quick: bool = False,
    log: Log,
) -> Estimate:
    """Train every arm briefly and return the predicted cost of the whole study; nothing is written.

    Args:
        study: The resolved study.
        settings: Settings of the installation.
        source: Origin of the study, for error messages.
        lines: Lines of the keys, if the study comes from a file.
        quick: Whether to spend less time on a less accurate estimate.
        log: Called with a line for each measurement.

    Raises:
        StudyError: The study cannot be run.
    """
    splits = load(study.data, root=settings.data)
    check_against_data(study, splits, source=source, lines=lines)
    began = time.perf_counter()
    device = "cuda" if study.config.workers.gpus and torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()  # of the caller: restored, since this is a setting of the whole process
    torch.set_num_threads(study.config.workers.cpus)
    keep_freed_memory()
    try:
        measured = _measure_arms(study, splits, device=device, quick=quick, source=source, log=log)
    finally:
        torch.set_num_threads(threads)
    crowding = None if quick else _measure_crowding(study, settings, measured, device=device, log=log)
    predicted = forecast(study, splits, settings, measured, processors=os.cpu_count() or 1, crowding=crowding)
    return replace(predicted, dry_run_seconds=time.perf_counter() - began)


def forecast(
    study: Study,
    splits: Splits,
    settings: Settings,
    measured: Mapping[str, Measured],
    *,
    processors: int,
    crowding: float | None = None,
) -> Estimate:
    """Return the predicted cost of a study from the cost of one training of each arm.

    Args:
        study: The resolved study.
        splits: Data of the study.
        settings: Settings of the installation.
        measured: Cost of one training, by arm.
        processors: Number of processors of this machine, over which the threads of all trials are spread.
        crowding: Factor by which trials that run at the same time slow one another down, if it was measured; else it
            is reckoned from threads and processors.
    """
    crowding = _crowding(study, settings, processors) if crowding is None else crowding
    ranks = study.config.workers.ranks_of_trial
    measured = {name: replace(run, seconds=run.seconds / ranks) for name, run in measured.items()}
    simulated = _simulate(study, splits, {name: _Seconds.of(run, crowding) for name, run in measured.items()})
    exported = study.config.export if study.config.export is not None else list(study.arms)
    finishing = ARM_SECONDS * len(study.arms) + EXPORT_SECONDS * len(exported)
    return Estimate(
        study=study.name,
        phases={name: _phases(name, simulated.trials, crowding * run.seconds) for name, run in measured.items()},
        workers=study.config.workers.max_concurrent_trials,
        trials_seconds=simulated.seconds,
        wall_seconds=START_SECONDS + simulated.seconds + finishing,
        crowding=crowding,
        disk_bytes=_disk(settings, measured, simulated.trials, exported) + _cache(study, splits),
        dry_run_seconds=0.0,
        notes=_notes(study, settings),
    )


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Duration of a trial: its training alone, and the whole time that it occupies a worker."""

    training: float = 0.0
    whole: float = 0.0

    @classmethod
    def of(cls, measured: Measured, crowding: float) -> "_Seconds":
        training = crowding * measured.seconds
        return cls(training, training + crowding * measured.overhead_seconds + TRIAL_SECONDS)


@dataclass(frozen=True, slots=True)
class _Simulated:
    """All trials of a simulated study, in the order in which they ended, and when the last one ended."""

    trials: tuple[Trial, ...]
    seconds: float


def _measure_arms(
    study: Study, splits: Splits, *, device: str, quick: bool, source: str, log: Log
) -> dict[str, Measured]:
    planned = _simulate(study, splits, dict.fromkeys(study.arms, _Seconds())).trials
    seconds = (QUICK_SECONDS if quick else SECONDS) / len(study.arms)
    measured = {}
    for name in study.arms:
        log(f"measuring {name}")
        searched = [trial.config for trial in planned if (trial.arm, trial.phase) == (name, SEARCH)]
        # Two proposals if there is time, since the proposals of a space may differ much in cost.
        chosen = searched[:1] if quick or len(searched) < 2 else [searched[0], searched[len(searched) // 2]]
        began = time.perf_counter()
        runs: list[Measured] = []
        try:
            for experiment in chosen:
                # The first measurement may take longer than its half; the second is only begun if most of it fits.
                if not runs or time.perf_counter() - began < seconds * 2 / 3:
                    runs.append(measure(experiment, splits, seconds=seconds / len(chosen), device=device))
        except (ValueError, RuntimeError) as error:
            raise StudyError(f"{source}: arms.{name}: its dry run failed: {error}") from error
        measured[name] = Measured(
            seconds=sum(run.seconds for run in runs) / len(runs),
            overhead_seconds=sum(run.overhead_seconds for run in runs) / len(runs),
            parameters=max(run.parameters for run in runs),
        )
    return measured


def _simulate(study: Study, splits: Splits, seconds: Mapping[str, _Seconds]) -> _Simulated:
    """Run a study with invented results: every trial succeeds, and the first trial of each arm wins."""
    # A grid stays, since its size limits the search. Other searchers become random search, which takes no time itself.
    arms = {
        name: arm if arm.searcher == "grid" else replace(arm, searcher="random") for name, arm in study.arms.items()
    }
    shape, classes = splits.shape, len(splits.class_names)
    scheduler = Scheduler(
        replace(study, arms=arms),
        shape=shape,
        classes=classes,
        images=len(splits.train),
        images_of_folds=splits.images_of_folds(study.data.train_samples),
    )
    awaited = {arm.match for arm in study.arms.values()}  # arms whose MACs other arms wait for
    running: list[tuple[float, int, Trial]] = []  # by end; the number decides ties, since trials cannot be compared
    ended: list[Trial] = []
    now = 0.0
    while True:
        while len(running) < study.config.workers.max_concurrent_trials and (trial := scheduler.next()) is not None:
            trial = replace(
                trial, state="running", suggest_seconds=0.0
            )  # the real time of a proposal is not part of the simulated time
            scheduler.update(trial)
            heapq.heappush(running, (now + seconds[trial.arm].whole, len(ended) + len(running), trial))
        if not running:
            return _Simulated(tuple(ended), now)
        now, _, trial = heapq.heappop(running)
        ended.append(
            replace(
                trial,
                state="failed" if trial.search_exhausted else "complete",
                sample_passes=trial.planned,
                seconds=seconds[trial.arm].training,
                score=0.5,
                result={"macs": _macs(trial.config, splits) if trial.arm in awaited else None},
            )
        )
        scheduler.update(ended[-1])


def _macs(experiment: Experiment, splits: Splits) -> int:
    """Return the approximate MACs of the network that results from an experiment, as far as known before it runs."""
    target: float | None = getattr(experiment.derivation, "target_macs", None)
    if target is not None:
        return round(target * dense_macs(experiment, splits))
    network = rebuild(experiment, experiment.architecture, splits).eval()
    return count_macs(network, splits.train.images[:1].clone())


def _crowding(study: Study, settings: Settings, processors: int) -> float:
    """Return the factor by which trials slow down if there are more threads than processors; 1 if that is unknown."""
    workers = study.config.workers
    if settings.ray_address is not None or workers.gpus:
        return 1.0
    return max(1.0, workers.max_concurrent_trials * workers.ranks_of_trial * workers.cpus / processors)


def _measure_crowding(
    study: Study, settings: Settings, measured: Mapping[str, Measured], *, device: str, log: Log
) -> float | None:
    """Train the slowest arm as often at the same time as the study will; return None if that cannot be done here."""
    workers = study.config.workers
    copies = workers.max_concurrent_trials * workers.ranks_of_trial
    devices = ("cpu",) * copies
    if device == "cuda":
        each = workers.gpus / workers.ranks_of_trial
        copies = min(copies, int(torch.cuda.device_count() / each))
        devices = tuple(f"cuda:{int(number * each)}" for number in range(copies))
    if settings.ray_address is not None or not 1 < copies <= MOST_COPIES:
        return None
    slowest = max(measured, key=lambda name: measured[name].seconds)
    log(f"measuring {slowest} {copies} times at once")
    experiment, seconds = study.arms[slowest].experiment, CROWD_SECONDS
    return slowdown(Crowd(experiment, settings.data, copies, workers.cpus, devices, seconds))


def _phases(arm: str, trials: Sequence[Trial], seconds: float) -> dict[str, PhaseEstimate]:
    phases = {}
    for phase in (SEARCH, RETRAIN):
        planned = [trial.planned for trial in trials if (trial.arm, trial.phase) == (arm, phase)]
        phases[phase] = PhaseEstimate(len(planned), sum(planned), seconds * len(planned))
    return phases


def _disk(
    settings: Settings,
    measured: Mapping[str, Measured],
    trials: Sequence[Trial],
    exported: Sequence[str],
) -> int:
    epochs = sum(trial.config.training.epochs for trial in trials)
    weights = FLOAT_BYTES * sum(measured[trial.arm].parameters for trial in trials if trial.phase == RETRAIN)
    exports = sum(EXPORT_BYTES + EXPORT_FORMS * FLOAT_BYTES * measured[arm].parameters for arm in exported)
    per_epoch = EPOCH_BYTES + (MLFLOW_EPOCH_BYTES if settings.tracking_uri else 0)
    return epochs * per_epoch + TRIAL_BYTES * len(trials) + REPORT_BYTES + weights + exports


def _cache(study: Study, splits: Splits) -> int:
    """Return the bytes of the decoded images of training and validation, where they are kept on the disk."""
    if study.config.workers.image_cache != "disk":
        return 0
    streamed = [part.files for part in (splits.train, splits.validation) if isinstance(part, StreamedPart)]
    return sum(files.decoded_bytes() for files in streamed)


def _notes(study: Study, settings: Settings) -> tuple[str, ...]:
    notes = []
    if settings.ray_address is not None:
        notes.append(f"measured on this machine, not on the cluster at {settings.ray_address}")
    if study.config.workers.gpus and not torch.cuda.is_available():
        notes.append("measured on processors: this machine has no GPU")
    if (ranks := study.config.workers.ranks_of_trial) > 1:
        notes.append(
            f"{ranks} ranks are taken to train in 1/{ranks} of the time of one: how long they wait for one another is "
            "not counted here"
        )
    if study.config.workers.image_cache == "disk":
        notes.append("of images in the cache, those of the test are not counted here, nor the time that it saves")
    if any(arm.rules.pruner for arm in study.arms.values()):
        notes.append("trials that are stopped early leave their passes to further ones, which are not counted here")
    if (robustness := study.config.robustness) is not None:
        rounds = len(TESTING) * len(robustness.severities)
        notes.append(
            f"each retrained model is also tested on {robustness.images:,} images corrupted in "
            f"{count_of(rounds, 'way')}, which is not counted here"
        )
    return tuple(notes)
