"""CPU time of the driver per trial, by the number of trials, and which part of it grows.

The driver, the scheduler and the store are the real ones; only the worker is replaced: a trial that was proposed gets
the accuracies of the recorded trials nearest to it (docs/results/many-trials.csv) instead of a training. Every trial is
one call of ``Driver.next`` and one ``Driver.report`` with nine epochs and its result, or one a rung under early
stopping; eight trials run at a time, which end in random order. Only the CPU time of these calls is counted.

``--after N,N`` measures the next 500 trials (``--measured``) of studies that have so many already: the first 200 are
run, and their rows copied in the store under further numbers, without their epochs. The driver then resumes the study.

Run: ``python benchmarks/many_trials.py [--arm NAME] [--trials N | --after N,N] [--profile]``; prints a Markdown table.
"""

import argparse
import cProfile
import csv
import itertools
import pstats
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from nas_blockout.data import load
from services.cluster.tasks import Report, Task
from services.execution.driver import Driver
from services.files.study_dir import Folder
from services.settings import Settings
from services.store import Store, tables
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import TERMINAL, Json

RECORDED = Path(__file__).parent.parent / "docs" / "results" / "many-trials.csv"
EPOCHS, AT_ONCE = 9, 8
CURVE = (0.35, 0.5, 0.7, 0.78, 0.84, 0.88, 0.92, 0.96, 1.0)  # of the last accuracy, after each epoch
ARMS: dict[str, dict[str, Any]] = {
    "random": {},
    "tpe": {"searcher": "tpe"},
    "random-asha": {"pruner": {"name": "asha"}},
    "tpe-asha": {"searcher": "tpe", "pruner": {"name": "asha"}},
}
TEMPLATES, MEASURED = 200, 500
CHECKPOINTS = (1_000, 3_000, 10_000, 30_000, 100_000)


def document(arm: str, trials: int) -> dict[str, Any]:
    """Return a study whose only arm searches as `arm` does, for so many trials."""
    return {
        "schema_version": 2,
        "name": "many",
        "data": {"name": "digits", "train_samples": 150},
        "backbone": {"name": "convnet", "channels": [16, 32], "hidden": [64]},
        "training": {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.004},
        "budget": {"trainings": trials + 1},
        "retrain": {"seeds": [0]},
        "arms": {arm: {"space": ["training", "branched"], **ARMS[arm]}},
    }


class Recorded:
    """Accuracies of recorded trials, for any parameters: the mean of the three nearest, by distance."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="") as file:
            rows = [
                row for row in csv.DictReader(file) if row["arm"] in ("random", "bayesian") and row["phase"] == "search"
            ]
        self.names = [name for name in rows[0] if name.startswith("param.")]
        self._points = np.array([[_number(row[name]) for name in self.names] for row in rows])
        self._scores = np.array([float(row["validation_accuracy"]) for row in rows])
        self._low = self._points.min(axis=0)
        self._span = np.maximum(self._points.max(axis=0) - self._low, 1e-12)
        self._points = (self._points - self._low) / self._span

    def accuracy(self, values: Mapping[str, Any]) -> float:
        """Return the accuracy to expect of a training with these parameters."""
        point = np.array([_number(values[name.removeprefix("param.")]) for name in self.names])
        apart = np.abs((point - self._low) / self._span - self._points).sum(axis=1)
        nearest = np.argpartition(apart, 3)[:3]
        weights = 1 / (apart[nearest] + 1e-6)
        return float((weights * self._scores[nearest]).sum() / weights.sum())


def _number(value: object) -> float:
    if value in (True, False, "True", "False"):
        return float(value in (True, "True"))
    number = float(str(value))
    return float(np.log(number)) if 0 < number < 0.1 else number  # rates, which are searched on a logarithmic scale


@dataclass(slots=True)
class Clock:
    """CPU seconds of the calls of the driver."""

    seconds: float = 0.0
    calls: int = 0
    profile: cProfile.Profile | None = None

    def of(self, call: Any, *arguments: Any) -> Any:
        """Call, and add its CPU time."""
        if self.profile is not None:
            self.profile.enable()
        began = time.thread_time()
        result = call(*arguments)
        self.seconds += time.thread_time() - began
        if self.profile is not None:
            self.profile.disable()
        self.calls += 1
        return result


@dataclass(slots=True)
class Machine:
    """Workers that train nothing."""

    driver: Driver
    recorded: Recorded
    clock: Clock
    order: random.Random = field(default_factory=lambda: random.Random(0))
    _running: list[tuple[Task, float]] = field(default_factory=list)
    ended: int = 0

    def run(self) -> Iterator[int]:
        """Run trials, and yield how many have ended, each time that one does."""
        while True:
            while len(self._running) < AT_ONCE and (task := self.clock.of(self.driver.next)) is not None:
                trial = self.driver.scheduler.trial(self.driver._keys[task.trial])
                self._running.append((task, self.recorded.accuracy(trial.values) if trial.values else 0.9))
            if not self._running:
                return
            task, accuracy = self._running.pop(self.order.randrange(len(self._running)))
            self._train(task, accuracy)
            self.ended += 1
            yield self.ended

    def _train(self, task: Task, accuracy: float) -> None:
        stops = [*task.rungs, EPOCHS]
        for begin, end in itertools.pairwise([0, *stops]):
            records = tuple(record(epoch, accuracy) for epoch in range(begin, end))
            result = result_of(task, accuracy) if end == EPOCHS else None
            if self.clock.of(self.driver.report, Report(task.trial, "host:1", records, None, result)):
                return


def record(epoch: int, accuracy: float) -> Json:
    """Return the report of an epoch as the training loop writes it."""
    return {
        "epoch": epoch,
        "stage": "train",
        "sample_passes": 150 * (epoch + 1),
        "seconds": 0.1 * (epoch + 1),
        "train_loss": 1.0,
        "validation_loss": 1.0,
        "validation_accuracy": accuracy * CURVE[epoch],
        "telemetry": {},
    }


def result_of(task: Task, accuracy: float) -> Json:
    """Return the result of a trial as a worker reports it."""
    architecture = task.experiment.get("architecture")
    return {
        "validation_accuracy": accuracy,
        "validation_loss": 1 - accuracy,
        "parameters": 5000,
        "macs": 60000,
        "architecture": architecture,
        "architecture_hash": None,
        "overhead_seconds": 0.0,
    }


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@dataclass(slots=True)
class Bench:
    """A study in a store of its own."""

    arm: str
    trials: int
    home: Path
    store: Store = field(init=False)
    study: Study = field(init=False)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.study = resolve_document(document(self.arm, self.trials), source="benchmark")
        self.settings = Settings(home=self.home, store_url=f"sqlite:///{self.home / 'store.db'}")
        self.store = Store.open(self.settings.store_url)
        study = self.study
        self.store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))

    def machine(self, clock: Clock) -> Machine:
        """Return workers of a driver that goes on with the study."""
        self.store.requeue_running(self.study.name)
        folder = Folder(self.home / "runs" / self.study.name)
        options: dict[str, Any] = {"folder": folder, "settings": self.settings, "observe": lambda progress: None}
        return Machine(Driver(self.study, load(self.study.data), self.store, **options), Recorded(RECORDED), clock)

    def grow(self, trials: int) -> None:
        """Copy the rows of the trials that have ended until there are so many."""
        columns = tables.trials.c
        rows = [row for row in self._rows() if row["state"] in TERMINAL]
        with self.store._database.writing() as connection:
            connection.execute(sa.delete(tables.epochs))
            connection.execute(sa.delete(tables.attempts))
            connection.execute(sa.delete(tables.trials).where(columns.state.not_in(TERMINAL)))
            for place, row in enumerate(rows):  # those that ran at the end have left gaps
                connection.execute(sa.update(tables.trials).where(columns.id == row["id"]).values(number=place))
            copies = [{key: row[key] for key in row if key != "id"} for row in rows]
            for start in range(len(rows), trials, len(rows)):
                numbers = range(start, min(start + len(rows), trials))
                connection.execute(_COPY, [{**copies[number % len(rows)], "number": number} for number in numbers])

    def _rows(self) -> list[dict[str, Any]]:
        with self.store._database.reading() as connection:
            found = connection.execute(sa.select(tables.trials).order_by(tables.trials.c.number)).mappings()
            return [dict(row) for row in found]


_COPY = sa.insert(tables.trials)


def measure(arm: str, trials: int, home: Path, *, profile: bool) -> None:
    """Print CPU milliseconds a trial up to each number of trials, counted from the number before it."""
    bench = Bench(arm, trials, home)
    clock = Clock(profile=cProfile.Profile() if profile else None)
    last, at = 0.0, 0
    points = [*(point for point in CHECKPOINTS if point < trials), trials]
    for ended in bench.machine(clock).run():
        if ended in points:
            _print(arm, f"{at:,} to {ended:,}", clock.seconds - last, ended - at)
            last, at = clock.seconds, ended
    if clock.profile is not None:
        pstats.Stats(clock.profile).sort_stats("cumulative").print_stats(60)
        pstats.Stats(clock.profile).sort_stats("tottime").print_stats(25)
    bench.store.close()


def measure_after(arm: str, trials: int, home: Path, *, measured: int = MEASURED) -> None:
    """Print CPU milliseconds a trial of those after so many."""
    bench = Bench(arm, trials + measured + AT_ONCE, home)
    for ended in bench.machine(Clock()).run():
        if ended == TEMPLATES:
            break
    bench.grow(trials)
    began = time.thread_time()
    clock = Clock()
    machine = bench.machine(clock)
    resumed = time.thread_time() - began
    for ended in machine.run():
        if ended == measured:
            break
    _print(arm, f"after {trials:,}", clock.seconds, measured)
    print(f"(resumed in {resumed:.1f} CPU s)", flush=True)
    bench.store.close()


def _print(arm: str, trials: str, seconds: float, count: int) -> None:
    print(f"| {arm} | {trials} | {1000 * seconds / count:.2f} | {resident_bytes() / 2**20:,.0f} |", flush=True)


def main() -> None:
    """Measure arms one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=tuple(ARMS), action="append")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--after", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--measured", type=int, default=MEASURED)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    print("| arm | trials | CPU ms a trial | resident, MiB |\n|---|---|---:|---:|", flush=True)
    for arm in options.arm or ARMS:
        for trials in options.after or [None]:
            with tempfile.TemporaryDirectory() as home:
                if trials is None:
                    measure(arm, options.trials, Path(home), profile=options.profile)
                else:
                    measure_after(arm, trials, Path(home), measured=options.measured)


if __name__ == "__main__":
    main()
