"""Overhead of a study over its plain trainings, and of Ray per trial, measured in one run on this machine.

The study runs as for a user, from an empty home directory: data, store, Ray, trials, MLflow, exports, report. Then the
same experiments are trained again by as many plain processes as the study had workers, without store or Ray; with
``--optuna`` by as many plain processes of Optuna, which is what a user would write without this project.

Run: ``python benchmarks/overhead.py [STUDY] [--longer N] [--home DIR] [--optuna]``; prints a Markdown table. The
orchestration time of a trial is the time from its dispatch to its last report, without its training and distillation.
CPU seconds are of all processes, daemons included; on a machine that does other work too, only they can be compared.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from cpu_accounting import Usage, measured

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run

_SPLITS: dict[DataSettings, Splits] = {}


def bare(document: dict[str, Any]) -> float:
    """Train one experiment in this process; return the seconds of training."""
    torch.set_num_threads(1)
    experiment = Experiment.from_json(document)
    if experiment.data not in _SPLITS:
        _SPLITS[experiment.data] = load(experiment.data)
    began = time.perf_counter()
    for _ in Run(experiment, _SPLITS[experiment.data]):
        pass
    return time.perf_counter() - began


def main() -> None:
    """Run the study and its plain trainings, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="quickstart")
    parser.add_argument("--longer", type=int, default=1, help="train every trial N times as long (default 1)")
    parser.add_argument(
        "--home", type=Path, help="empty folder for the study, kept afterwards (default: a temporary one)"
    )
    parser.add_argument("--optuna", action="store_true", help="train in processes of Optuna")
    options = parser.parse_args()
    if options.home is not None and options.home.exists() and any(options.home.iterdir()):
        parser.error(f"--home must be an empty folder, {options.home} is not")
    with contextlib.ExitStack() as stack:
        home = str(options.home or stack.enter_context(tempfile.TemporaryDirectory()))
        study = _longer(options.study, options.longer, Path(home))
        environment = {**os.environ, "NAS_BLOCKOUT_HOME": home, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from services.cli.main import main; main()", "run", study, "--quiet"]
        began = time.time()
        used = measured(command, environment)
        ended = began + used.seconds
        workers, trials = _recorded(Path(home) / "runs" / "nas_blockout.db")
    plain = _optuna(trials, workers) if options.optuna else None
    started = time.perf_counter()
    if plain is None:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            seconds = list(pool.map(bare, [trial["experiment"] for trial in trials]))
    plain_seconds = time.perf_counter() - started if plain is None else plain.seconds
    times = f", {options.longer} times longer" if options.longer > 1 else ""
    print(f"study {options.study}{times}: {len(trials)} trials, {workers} workers, torch {torch.__version__}\n")
    _print(trials, began=began, ended=ended, plain=plain_seconds, bare_seconds=sum(seconds) if plain is None else None)
    _print_cpu(used, trials, plain)


def _optuna(trials: list[dict[str, Any]], processes: int) -> Usage:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.json"
        keys = ("arm", "phase", "params", "experiment")
        path.write_text(json.dumps([{key: trial[key] for key in keys} for trial in trials]), encoding="utf-8")
        script = str(Path(__file__).parent / "optuna_processes.py")
        return measured([sys.executable, script, str(path), str(processes)], {**os.environ, "OMP_NUM_THREADS": "1"})


def _longer(study: str, times: int, home: Path) -> str:
    if times == 1:
        return study
    document = yaml.safe_load((resources.files("search_spaces") / "studies" / f"{study}.yaml").read_text())
    document["training"]["epochs"] *= times
    document["budget"]["sample_passes"] *= times
    path = home / f"{study}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def _recorded(database: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of workers, and the trials with their start and end as Unix time."""
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    (config,) = connection.execute("select config from studies").fetchone()
    rows = connection.execute(
        "select t.experiment, t.result, t.params, t.phase, t.seconds, arms.name as arm, "
        "a.worker, a.started_at as began, a.finished_at as ended "
        "from trials t join attempts a on a.trial_id = t.id join arms on arms.id = t.arm_id order by t.id"
    )
    trials = [dict(row) for row in rows]
    for trial in trials:
        for key in ("experiment", "result", "params"):
            trial[key] = json.loads(trial[key])
        for key in ("began", "ended"):
            trial[key] = datetime.fromisoformat(f"{trial[key]}+00:00").timestamp()
    return json.loads(config)["workers"]["max_concurrent_trials"], trials


def _print(
    trials: list[dict[str, Any]], *, began: float, ended: float, plain: float, bare_seconds: float | None
) -> None:
    first, last = min(trial["began"] for trial in trials), max(trial["ended"] for trial in trials)
    fresh = {trial["worker"]: trial["ended"] for trial in sorted(trials, key=lambda trial: -trial["ended"])}
    each = [
        trial["ended"] - trial["began"] - trial["seconds"] - trial["result"]["overhead_seconds"]
        for trial in trials
        if trial["ended"] != fresh[trial["worker"]]
    ]
    print("| | seconds |\n|---|---|")
    print(f"| whole study, wall-clock time | {ended - began:.1f} |")
    print(f"| its trainings in as many plain processes, wall-clock time | {plain:.1f} |")
    print(f"| ratio | {(ended - began) / plain:.2f} |")
    print(f"| of it: command to first trial dispatched (imports, checks, store, Ray) | {first - began:.1f} |")
    print(f"| first to last trial, including the start of the workers | {last - first:.1f} |")
    print(f"| last trial to the end (exports, verification, MLflow, report) | {ended - last:.1f} |")
    print(f"| training time as measured by the study, total | {sum(trial['seconds'] for trial in trials):.1f} |")
    if bare_seconds is not None:
        print(f"| training time in the plain processes, total | {bare_seconds:.1f} |")
    spread = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f}, n = {len(each)})"
    print(f"| orchestration of a trial on a running worker, median (range) | {spread} |")


def _print_cpu(used: Usage, trials: list[dict[str, Any]], plain: Usage | None) -> None:
    """Print the CPU seconds of the study by phase and process, and those of Optuna's processes."""
    first, last = min(trial["began"] for trial in trials), max(trial["ended"] for trial in trials)
    until = used.until(first), used.until(last), used.by_role
    print("\n| CPU seconds | until the first trial | until the last has ended | until the end |\n|---|---|---|---|")
    for role in used.by_role:
        before, during, after = (part.get(role, 0.0) for part in until)
        print(f"| {role} | {before:.1f} | {during - before:.1f} | {after - during:.1f} |")
    print(f"\nthe study: {used.cpu_seconds:.1f} CPU seconds", end="")
    if plain is not None:
        print(
            f"; Optuna's processes: {plain.cpu_seconds:.1f}; ratio {used.cpu_seconds / plain.cpu_seconds:.2f}", end=""
        )
    print()


if __name__ == "__main__":
    main()
