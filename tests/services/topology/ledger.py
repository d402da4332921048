"""What was done to the service and what came of it: printed, and written where ``FAULTS_REPORT`` says.

The page is of one run: it has a line of every fault that was injected, and whose checks all held, in that.
"""

import json
import os
import platform
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tests.services.topology.system import System

_HEAD = """# Fault injection

Every service of [docker-compose.yml](../guides/compose.md) runs as a process of one machine, with its own command,
environment and order; each fault is injected while a trial trains. Afterwards the trials in the store (state, sample
passes, score, every epoch) are equal to those of a run without faults: nothing that had finished was lost, and nothing
was charged twice. After `nas-blockout sync`, MLflow has each trial exactly once.
Command: `make test-faults`{setting}; one run of {date}.

"Jobs" is the number of Ray jobs that the study took, "attempts lost" the attempts that a fault interrupted, "lost or
twice" what was missing or duplicated in store or MLflow; "ended after" is the time from the fault to the end of the
study.

| fault | times | jobs | attempts lost | lost or twice | ended after | what the owner sees |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A fault: how often it was injected, what the owner was told, jobs and further attempts, seconds to the end."""

    fault: str
    times: int
    told: str
    jobs: int
    retried: int
    seconds: float


def note(line: Line) -> None:
    """Print a line and write it into the page, in the place of what was found of the same fault before."""
    sys.stdout.write("\n" + "  ".join(map(str, astuple(line))) + "\n")
    if given := os.environ.get("FAULTS_REPORT"):
        Path(given).write_text(report([*_NOTED, line]), encoding="utf-8")
    _NOTED.append(line)


_NOTED: list[Line] = []


def report(lines: Sequence[Line]) -> str:
    """The page of the docs; a line is only there if what it says was found to hold."""
    down = os.environ.get("FAULT_SECONDS")
    rows = [
        f"| {line.fault} | {line.times} | {line.jobs} | {line.retried} | 0 | {line.seconds:.0f} s | {line.told} |"
        for line in lines
    ]
    machine = f"\nPython {platform.python_version()}, {os.cpu_count()} processors, shared with other work.\n"
    head = _HEAD.format(setting=f" with `FAULT_SECONDS={down}`" if down else "", date=time.strftime("%Y-%m-%d"))
    return head + "\n".join(rows) + "\n" + machine


def mlflow_runs(system: System, study: str) -> list[str]:
    """The runs of a study in MLflow by the trial they are of, those of arms by their names."""
    found = in_mlflow(system, study)
    tags = [{tag["key"]: tag["value"] for tag in run["data"].get("tags", ())} for run in found]
    return [each.get("nas.arm" if each.get("nas.phase") == "arm" else "nas.trial", "") for each in tags]


def in_mlflow(system: System, study: str) -> list[Any]:
    """Everything that MLflow says of the runs of a study."""
    server = f"http://{system.address('mlflow', 5000)}/api/2.0/mlflow"
    experiment = _asked(f"{server}/experiments/get-by-name?experiment_name=nas-blockout/{study}")["experiment"]
    found = _asked(f"{server}/runs/search", {"experiment_ids": [experiment["experiment_id"]], "max_results": 1000})
    runs: list[Any] = found.get("runs", [])
    return runs


def _asked(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
