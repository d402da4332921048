"""`kill -9` of driver and workers at random moments: nothing is lost, doubled or stuck, and the result is the same.

Most kills wait for a number of epochs, so that they hit trials that run, on a fast machine as on a slow one; the others
hit what has just been started.

Three kills by default; ``KILLS=20 pytest tests/services/end_to_end/test_kills.py`` does as many as one likes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from services.execution.driver import run
from services.settings import Settings
from services.study_config.resolution import read, resolve
from services.trial_record import Trial
from tests.services.program import PATIENCE, RUNS_HERE, of, store_of

KILLS = int(os.environ.get("KILLS", "3"))
EPOCHS = 20
PASSES = 134  # that an epoch is charged: 100 images, and 34 for the statistics of evaluation
TRAININGS = 3 + KILLS // 3  # of each arm, two of them retrainings: so many that the last kill finds a trial that runs
pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(120), pytest.mark.timeout(PATIENCE * (2 + KILLS)), *RUNS_HERE]
STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "killed",
    "data": {"name": "digits", "train_samples": 100},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [16]},
    "training": {"epochs": EPOCHS, "batch_size": 16},
    "budget": {"sample_passes": TRAININGS * EPOCHS * PASSES},
    "retrain": {"seeds": [0, 1]},
    "workers": {"max_concurrent_trials": 1},
    "arms": {
        "bayesian": {"space": ["training", "branched"], "searcher": "tpe"},
        "blockout": {
            "method": {"name": "blockout", "clusters": 2, "masked": "all"},
            "distillation": {"target_macs": 0.6},
            "space": ["training"],
        },
    },
}
DRIVE = """
import sys
from services.settings import Settings
from services.execution.driver import run
from services.study_config.resolution import read, resolve
from pathlib import Path
path = Path(sys.argv[1])
study = resolve(read(path), source=str(path))
run(study, Settings.from_environment(), observe=lambda progress: None, source=str(path))
"""


def written(home: Path) -> Path:
    home.mkdir(exist_ok=True)
    (home / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return home / "study.yaml"


def start(home: Path) -> subprocess.Popen[bytes]:
    command, environment = [sys.executable, "-c", DRIVE, str(written(home))], {**os.environ, **of(home)}
    with (home / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def trials(home: Path) -> tuple[Trial, ...]:
    with store_of(home) as store:
        return store.trials("killed") if store.studies() else ()


def passes(home: Path) -> int:
    return sum(trial.sample_passes for trial in trials(home))


def worker_of(driver: int) -> psutil.Process | None:
    """The process that trains, found below the driver."""
    try:
        children = psutil.Process(driver).children(recursive=True)
        return next((child for child in children if "TrialActor" in " ".join(child.cmdline())), None)
    except psutil.Error:
        return None


def kill_at_a_random_moment(home: Path, rng: random.Random) -> None:
    before, driver = passes(home), start(home)
    try:
        enough = before + rng.randint(1, EPOCHS) * PASSES
        deadline = time.monotonic() + (PATIENCE if rng.random() < 0.8 else rng.uniform(1, 6))
        while passes(home) < enough and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        victim = worker_of(driver.pid) if rng.random() < 0.4 else None
        if victim is not None:
            victim.kill()
            time.sleep(rng.uniform(1, 4))
        below = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
        for process in below:  # a driver that is gone leaves its Ray processes to end by themselves; be quick about it
            process.kill() if process.is_running() else None
    finally:
        if driver.poll() is None:
            driver.kill()


def run_straight(home: Path) -> None:
    path = written(home)
    study, settings = resolve(read(path), source=str(path)), Settings.from_environment(of(home))
    run(study, settings, observe=lambda progress: None, source=str(path))[1].close()


def finish(home: Path) -> None:
    driver = start(home)
    assert driver.wait(PATIENCE) == 0, (home / "log").read_text()[-4000:]


def comparable(row: Trial) -> tuple[Any, ...]:
    result = dict(row.result or {})
    for key in ("overhead_seconds", "usage"):
        result.pop(key)
    return row.arm, row.phase, row.number, row.seed, row.state, row.sample_passes, row.score, row.experiment, result


def test_killed_studies_end_like_uninterrupted_ones(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run_straight(straight)
    expected = [comparable(row) for row in trials(straight)]
    assert {row[4] for row in expected} == {"complete"}
    rng = random.Random(KILLS)
    for _ in range(KILLS):
        kill_at_a_random_moment(killed, rng)
    finish(killed)
    found = [comparable(row) for row in trials(killed)]
    assert sorted(found, key=str) == sorted(expected, key=str)
    with store_of(killed) as store:
        for row in store.trials("killed"):
            epochs = [epoch.epoch for epoch in store.epochs(row.id)]
            assert epochs == list(range(EPOCHS))
            attempts = store.attempts(row.id)
            assert [attempt.state for attempt in attempts][-1] == "complete"
            assert all(attempt.state == "lost" for attempt in attempts[:-1])
