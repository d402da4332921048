"""What a whole study costs over its bare trainings, and what Ray costs a trial; both in one run on this machine.

The study is run as a user runs it, from an empty home: data, store, Ray, trials, MLflow, exports, report. Then exactly
the same experiments are trained again by as many plain processes as the study had workers, without store or Ray.

Run: ``python benchmarks/overhead.py [STUDY]``; prints a Markdown table.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run

_SPLITS: dict[DataSettings, Splits] = {}


def bare(document: dict[str, Any]) -> float:
    """Train one experiment in a plain process; return its seconds."""
    torch.set_num_threads(1)
    experiment = Experiment.from_json(document)
    if experiment.data not in _SPLITS:
        _SPLITS[experiment.data] = load(experiment.data)
    began = time.perf_counter()
    for _ in Run(experiment, _SPLITS[experiment.data]):
        pass
    return time.perf_counter() - began


def main() -> None:
    """Run the study, run its trainings bare, print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="quickstart")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "NAS_BLOCKOUT_HOME": home, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from services.cli import main; main()", "run", options.study, "--quiet"]
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - began
        rows = sqlite3.connect(Path(home) / "runs" / "nas_blockout.db").execute(
            "select experiment, seconds, started_at, finished_at from trials order by id"
        )
        trials = [(json.loads(experiment), *rest) for experiment, *rest in rows]
        database = sqlite3.connect(Path(home) / "runs" / "nas_blockout.db")
        config = database.execute("select config from studies").fetchone()
    workers = json.loads(config[0])["workers"]["at_once"]
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        seconds = list(pool.map(bare, [trial[0] for trial in trials]))
    plain = time.perf_counter() - began
    print(f"study {options.study}: {len(trials)} trials, {workers} workers, torch {torch.__version__}\n")
    print("| | seconds |\n|---|---|")
    print(f"| whole study, wall-clock | {whole:.1f} |")
    print(f"| its trainings in {workers} plain processes, wall-clock | {plain:.1f} |")
    print(f"| ratio | {whole / plain:.2f} |")
    print(f"| training seconds as the study measured them, summed | {sum(trial[1] for trial in trials):.1f} |")
    print(f"| training seconds of the plain processes, summed | {sum(seconds):.1f} |")
    span = _span(trials)
    print(f"| from the first trial's start to the last one's end | {span:.1f} |")
    busy = sum(trial[1] for trial in trials)
    each = (workers * span - busy) / len(trials)
    print(f"| a trial's orchestration: (workers x that span - training) / trials | {each:.2f} |")


def _span(trials: list[tuple[Any, ...]]) -> float:
    from datetime import datetime

    began = min(datetime.fromisoformat(str(trial[2])) for trial in trials)
    ended = max(datetime.fromisoformat(str(trial[3])) for trial in trials)
    return (ended - began).total_seconds()


if __name__ == "__main__":
    main()
