"""A running study ends as its signals say, leaves no process behind, and is free for whoever goes on with it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from services.trial_record import Trial
from tests.services.program import COMMAND, PATIENCE, alone, of, store_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60)]

STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "interrupted",
    "data": {"name": "digits", "train_samples": 200},
    "backbone": {"name": "convnet", "channels": [8], "hidden": [16]},
    "training": {"epochs": 400, "batch_size": 16},
    "budget": {"sample_passes": 320_400},
    "retrain": {"seeds": [0, 1]},
    "workers": {"max_concurrent_trials": 1},
    "arms": {"dense": {}},
}


@contextmanager
def running(home: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, running the study; what is left of it is killed at the end."""
    (home / "study.yaml").write_text(yaml.safe_dump(STUDY))
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command, environment = [*COMMAND, "run", str(home / "study.yaml")], {**os.environ, **of(home)}
    program = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    try:
        yield program
    finally:
        if program.poll() is None:
            for process in [*psutil.Process(program.pid).children(recursive=True), psutil.Process(program.pid)]:
                process.kill()
        program.communicate()


def trials(home: Path) -> tuple[Trial, ...]:
    with store_of(home) as store:
        return store.trials("interrupted") if store.studies() else ()


def wait_for_epochs(home: Path, program: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while sum(trial.sample_passes for trial in trials(home)) == 0:
        assert program.poll() is None, program.communicate()[1]
        assert time.monotonic() < deadline, "no epoch was recorded"
        time.sleep(0.2)


def refuse_a_second_driver(home: Path, program: subprocess.Popen[str]) -> None:
    """Run the same study again beside its driver, which goes on."""
    second = alone("run", home / "study.yaml", **of(home))
    assert (second.code, second.out) == (1, ""), second.err
    assert f":{program.pid}" in second.err.splitlines()[-1]
    assert "wait, or stop it first" in second.err.splitlines()[-1]
    before = sum(trial.sample_passes for trial in trials(home))
    deadline = time.monotonic() + PATIENCE
    while sum(trial.sample_passes for trial in trials(home)) == before:
        assert program.poll() is None, program.communicate()[1]
        assert time.monotonic() < deadline, "the first driver does not go on"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_run_with_its_code_and_leaves_the_study_to_another(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    with running(tmp_path) as program:
        wait_for_epochs(tmp_path, program)
        if number == signal.SIGTERM:  # in one of the two, since it takes a while
            refuse_a_second_driver(tmp_path, program)
        below = psutil.Process(program.pid).children(recursive=True)
        # Ctrl-C reaches all processes of a terminal, `kill` one.
        os.killpg(program.pid, number) if number == signal.SIGINT else program.send_signal(number)
        out, err = program.communicate(timeout=PATIENCE)
        assert (program.returncode, out) == (code, ""), err
    assert f"{word}; run the same command again to resume" in err
    assert "Traceback" not in err
    assert "of the budget" in err
    _, alive = psutil.wait_procs(below, timeout=PATIENCE / 10)
    assert alive == []
    with store_of(tmp_path) as store:
        row = store.study("interrupted")
        assert (row.state, row.owner) == ("running", None)


def started(program: subprocess.Popen[str]) -> list[str]:
    """The names of the processes below a program."""
    with suppress(psutil.NoSuchProcess):
        return [process.name() for process in psutil.Process(program.pid).children(recursive=True)]
    return []


def test_ctrl_c_while_ray_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        deadline = time.monotonic() + PATIENCE
        while "raylet" not in started(program):
            assert program.poll() is None, program.communicate()[1]
            assert time.monotonic() < deadline, "Ray was not started"
            time.sleep(0.01)
        below = psutil.Process(program.pid).children(recursive=True)
        os.killpg(program.pid, signal.SIGINT)
        out, err = program.communicate(timeout=PATIENCE)
    assert (program.returncode, out) == (130, ""), err
    assert "interrupted; run the same command again to resume" in err
    assert "Traceback" not in err
    # Agents of a node that has ended while they started look for it for a minute, and then end by themselves.
    _, alive = psutil.wait_procs(below, timeout=PATIENCE / 2)
    assert alive == []
