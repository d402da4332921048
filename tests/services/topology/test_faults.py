"""Everything that a service may suffer, done to the running one: nothing finished is lost, nothing is charged twice.

``make test-faults`` runs this and writes docs/results/faults.md. ``FAULT_SECONDS=60`` keeps what was killed away for a
minute. A fault is injected while a trial trains; afterwards the trials in the store are those of a run to which nothing
happened, MLflow has each of them once, and the study's owner has been told in one sentence what it was.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.store import QueueRow, Store, StudyBusy
from tests.services.program import RUNS_HERE
from tests.services.topology.ledger import Line, mlflow_runs, note
from tests.services.topology.studies import LONG, TINY, trials
from tests.services.topology.system import Client, System, wait_until

DOWN = float(os.environ.get("FAULT_SECONDS", "10"))
SECONDS = 600 + 4 * DOWN
HOME = "/var/lib/nas-blockout"
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(2 * SECONDS + 300), *RUNS_HERE]


@dataclass(frozen=True)
class Scene:
    """What every fault is done to, and what must come out."""

    system: System
    client: Client
    store: Store
    undisturbed: list[Any]

    def submit(self, name: str, document: dict[str, Any] = LONG) -> None:
        status, answer = self.client("POST", "/v1/studies", {**document, "name": name})
        assert status in (200, 201, 202), answer

    def row(self, name: str) -> QueueRow:
        found = self.store.queued_study(name)
        assert found is not None
        return found

    def wait_for_training(self, name: str) -> None:
        """Wait until an epoch of a trial is recorded."""

        def trains() -> bool:
            known = {line.name for line in self.store.studies() if line.sample_passes}
            assert not self.row(name).ended, self.row(name)
            return name in known

        wait_until(trains, SECONDS, lambda: f"{self.row(name)}\n{self.system.logs('worker', 'worker-2', 'ray-head')}")

    def wait_for_end(self, name: str) -> QueueRow:
        wait_until(
            lambda: self.row(name).ended,
            SECONDS,
            lambda: f"{self.row(name)}\n{self.system.logs('worker', 'worker-2', 'ray-head')}",
        )
        return self.row(name)

    def check(self, fault: str, name: str, *, times: int = 1, seconds: float = 0.0, told: str = "") -> None:
        """Compare what came out with what must, and note it."""
        row, found = self.row(name), trials(self.store, name)
        assert row.state == "complete", row
        assert self.store.study(name).state == "complete"
        assert found == self.undisturbed
        attempts = [self.store.attempts(trial.id) for trial in self.store.trials(name)]
        assert all([each.state for each in tries][-1] == "complete" for tries in attempts)
        assert all(each.state == "lost" for tries in attempts for each in tries[:-1])
        synced = self.system.run("api", "nas-blockout", "sync", name, seconds=SECONDS)
        assert synced.returncode == 0, synced.stderr
        runs = mlflow_runs(self.system, name)
        assert sorted(runs) == sorted({*runs})
        assert len(runs) == 1 + len({trial.arm for trial in self.store.trials(name)}) + len(found)
        sentence = told or row.message or "nothing: it went on by itself"
        assert "\n" not in sentence
        retried = sum(len(tries) - 1 for tries in attempts)
        note(Line(fault, times, sentence, jobs=row.attempt + 1, retried=retried, seconds=seconds))


@pytest.fixture
def scene(system: System, client: Client, store: Store, undisturbed: list[Any]) -> Iterator[Scene]:
    found = Scene(system, client, store, undisturbed)
    yield found
    for name, instance in system.instances.items():  # whatever a test that failed has left
        if instance.down and instance.service.restarts:
            system.launch(name)
    system.wait_healthy(*(name for name, each in system.instances.items() if each.service.restarts))


@pytest.mark.parametrize("victim", ["api", "worker", "ray-worker", "ray-head", "mlflow", "postgres"])
def test_kill_9(scene: Scene, victim: str) -> None:
    name = f"kill-{victim}"
    scene.submit(name)
    scene.wait_for_training(name)
    holder = "worker-2" if victim == "worker" and scene.row(name).worker == worker_name(scene, "worker-2") else victim
    assert scene.system.kill(holder) > 0
    began = time.monotonic()
    time.sleep(DOWN)
    scene.system.launch(holder)
    row = scene.wait_for_end(name)
    assert row.state == "complete", row
    scene.system.wait_healthy(holder)  # the study may have ended sooner than it stands again, and `sync` needs MLflow
    what = {"worker": "the worker that holds the study", "ray-worker": "a Ray node in mid-trial"}.get(victim, victim)
    scene.check(f"`kill -9` of {what}, back after {DOWN:.0f} s", name, seconds=time.monotonic() - began)


def worker_name(scene: Scene, instance: str) -> str:
    """What a worker process calls itself in the store."""
    process = scene.system.instances[instance].process
    assert process is not None
    row = next(iter(scene.store.queue(("running",))))
    return f"{(row.worker or ':').rpartition(':')[0]}:{process.pid}"


def test_a_tracking_server_that_stalls(scene: Scene) -> None:
    scene.submit("stalled")
    scene.wait_for_training("stalled")
    began = time.monotonic()
    scene.system.pause("mlflow")
    try:
        row = scene.wait_for_end("stalled")
    finally:
        scene.system.unpause("mlflow")
    assert row.state == "complete", row
    scene.system.wait_healthy("mlflow")
    scene.check(
        "MLflow stalled (SIGSTOP) until the study ends, then `sync`", "stalled", seconds=time.monotonic() - began
    )


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 KiB at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_the_artifacts(scene: Scene) -> None:
    models = scene.system.path("ray-head", HOME) / "runs" / "full-disk" / "models"
    began = time.monotonic()
    with full_disk(models):
        scene.submit("full-disk", {**LONG, "export": ["dense"]})
        row = scene.wait_for_end("full-disk")
        assert row.state == "failed"
        assert row.message.startswith(f"the disk that holds {models} is full")
        assert row.message.endswith("or resume the study in the service to continue where it stopped")
        assert trials(scene.store, "full-disk") == scene.undisturbed
        told = row.message.replace(str(scene.system.path("ray-head", HOME)), HOME)  # as in a container
    assert scene.client("POST", "/v1/studies/full-disk/resume")[0] in (200, 202)
    row = scene.wait_for_end("full-disk")
    assert row.state == "complete", row
    assert (models / "dense" / "card.md").is_file()
    scene.check(
        "full disk (64 KiB tmpfs) under the exported models, then room and `resume`",
        "full-disk",
        seconds=time.monotonic() - began,
        told=told,
    )


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_clock_that_jumps(scene: Scene, offset: str) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed (Debian: apt-get install faketime)")
    name = f"clock-{'ahead' if offset[0] == '+' else 'behind'}"
    scene.submit(name)
    scene.wait_for_training(name)
    holder, driver = scene.row(name).worker, scene.store.study(name).owner
    began = time.monotonic()
    environment = scene.system.environment("worker-2")
    command = ["faketime", "-f", offset, "nas-blockout", "serve", "worker"]
    log = scene.system.folder / "logs" / f"{name}.log"
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True) as stranger,
    ):
        try:
            claimed = subprocess.run(
                ["faketime", "-f", offset, "python", "-c", CLAIM, name], env=environment, capture_output=True, text=True
            )
            assert claimed.stdout.strip() == StudyBusy.__name__, claimed.stderr
            wait_until(lambda: "takes studies" in log.read_text(), 60, log.read_text)
            time.sleep(5)  # some rounds
            assert stranger.poll() is None, log.read_text()
            if not (row := scene.row(name)).ended:
                assert row.worker == holder
                assert scene.store.study(name).owner in (driver, None)  # it may have ended by now
        finally:
            os.killpg(stranger.pid, signal.SIGTERM)  # faketime stays above what it runs, and passes nothing on
            stranger.wait(60)
    assert scene.wait_for_end(name).attempt == 0
    assert name not in log.read_text().replace(str(log), "").partition("takes studies")[2]
    fault = f"a worker and a driver whose clock is {offset} want a study that another has"
    scene.check(fault, name, seconds=time.monotonic() - began, told="nothing: the database's clock decides")


CLAIM = """
import os, sys
from services.store import Store, StudyBusy
with Store.open(os.environ["NAS_BLOCKOUT_STORE_URL"]) as store:
    try:
        store.claim_study(sys.argv[1], "elsewhere/1:1")
        print("claimed")
    except StudyBusy as error:
        print(type(error).__name__)
"""


def test_two_workers_that_claim_at_once(scene: Scene) -> None:
    names = [f"claimed-{number}" for number in range(4)]
    began = time.monotonic()
    for name in names:
        scene.submit(name, TINY)
    rows = [scene.wait_for_end(name) for name in names]
    assert [(row.state, row.attempt) for row in rows] == [("complete", 0)] * len(names)
    first, *others = [trials(scene.store, name) for name in names]
    assert all(other == first for other in others)
    told = "nothing: each study is taken once"
    line = Line("two workers claim four studies at once", len(names), told, 1, 0, time.monotonic() - began)
    note(line)


def test_the_same_request_sent_many_times_at_once(scene: Scene) -> None:
    began = time.monotonic()
    body = {**LONG, "name": "sent-often"}

    def send(number: int) -> tuple[int, Any]:
        return scene.client("POST", "/v1/studies", body, key="the-same")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {status for status, _ in answers} <= {200, 201, 202}, answers
    assert len({answer["name"] for _, answer in answers}) == 1
    assert len(scene.store.queue(prefix="sent-often")) == 1
    assert scene.wait_for_end("sent-often").attempt == 0
    scene.check("the same request eight times at once", "sent-often", times=8, seconds=time.monotonic() - began)


def cancel_when(scene: Scene, name: str, reached: Callable[[], bool]) -> QueueRow:
    scene.submit(name)
    wait_until(lambda: scene.row(name).ended or reached(), SECONDS)
    status, answer = scene.client("POST", f"/v1/studies/{name}/cancel")
    assert status in (200, 202, 409), answer
    return scene.wait_for_end(name)


def test_cancelling_while_it_trains_and_while_it_finishes(scene: Scene) -> None:
    def finishing() -> bool:
        known = {line.name: line.trials for line in scene.store.studies()}
        return known.get("cancelled-late", {}).get("complete", 0) == len(scene.undisturbed)

    def training() -> bool:
        return any(line.name == "cancelled-early" and line.sample_passes for line in scene.store.studies())

    for name, reached in (("cancelled-early", training), ("cancelled-late", finishing)):
        began = time.monotonic()
        row = cancel_when(scene, name, reached)
        assert row.state in ("cancelled", "complete"), row
        assert scene.store.study(name).state == row.state
        told = row.message
        if row.state == "cancelled":
            assert scene.client("POST", f"/v1/studies/{name}/resume")[0] in (200, 202)
            scene.wait_for_end(name)
        when = "trains" if name == "cancelled-early" else "finishes"
        fault = (
            f"cancelled while it {when} (it became {row.state}), then `resume`"
            if told
            else f"cancelled while it {when}"
        )
        scene.check(fault, name, seconds=time.monotonic() - began, told=told)
