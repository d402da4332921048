"""The service as its guide starts it without Docker, word for word; only ports are changed, and further ones named.

The ports of the guide may be taken on a machine that runs tests, and Ray opens more than the guide needs to name.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from services.cluster import ClusterError
from services.cluster.jobs import Jobs
from services.store import Store
from tests.services.end_to_end.conftest import ALONE, PORTS, PROGRAM, RAY, ROOT, free_ports
from tests.services.program import PATIENCE, RUNS_HERE
from tests.services.topology.studies import TINY
from tests.services.topology.system import Client, is_open, wait_until

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60), *RUNS_HERE]

GUIDE = ROOT / "docs" / "guides" / "service.md"
MARK = "NAS_TEST_BY_HAND"
STUDY = {
    **TINY,
    "name": "by-hand",
    "training": {"epochs": 1, "batch_size": 20},
    "budget": {"sample_passes": 402},
    "retrain": {"seeds": [0]},
    "arms": {"dense": {}},
}


def blocks() -> list[str]:
    """The blocks of the section that starts the service: what is done once, and the three processes."""
    section = GUIDE.read_text(encoding="utf-8").partition("## Start it")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


class ByHand:
    """Whoever follows the guide, in a folder of their own.

    Args:
        folder: Short, for the sockets that Ray makes below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, ports = folder, free_ports((*PORTS, "api"))
        self._ports = {"6379": ports["port"], "8265": ports["dashboard-port"], "8080": ports.pop("api")}
        self._further = [f"--{name}={port}" for name, port in ports.items() if name not in ALONE - {PORTS[6]}]
        self.jobs, self.api = (f"127.0.0.1:{self._ports[port]}" for port in ("8265", "8080"))
        self._processes: list[subprocess.Popen[bytes]] = []
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {
            "nas-blockout": PROGRAM,
            "ray": f"#!/bin/sh\nexec {sys.executable} -c '{RAY}' \"$@\"\n",
            "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        }.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NAS_BLOCKOUT_"))},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            "RAY_TMPDIR": str(folder),  # Ray's own processes take no other cluster of the machine for theirs
            "RAY_worker_niceness": "0",
            "RAY_prestart_worker_first_driver": "0",
            "NAS_BLOCKOUT_TRACKING_URI": "none",
            MARK: str(folder),
        }

    def do(self, block: str) -> None:
        """Run a block, in the folder in which the one before it was left."""
        done = subprocess.run(
            ["bash", "-euc", self._with_ports(block)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def begin(self, block: str) -> None:
        """Run a block in a terminal of its own, in the folder of the service."""
        block = re.sub(r"^(ray start .*)$", rf"\1 {' '.join(self._further)} --num-cpus=1", block, flags=re.MULTILINE)
        with (self.folder / f"terminal-{len(self._processes)}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    ["bash", "-euc", self._with_ports(block)],
                    cwd=self.folder / "nas-blockout",
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def logs(self) -> str:
        """The last words of all terminals."""
        paths = sorted(self.folder.glob("terminal-*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)

    def token(self) -> str:
        """The secret of the service, from its file."""
        text = (self.folder / "nas-blockout" / "service.env").read_text()
        assert ((self.folder / "nas-blockout" / "service.env").stat().st_mode & 0o077) == 0
        return text.partition("NAS_BLOCKOUT_API_TOKEN=")[2].split()[0]

    def ray_answers(self) -> bool:
        """Whether the cluster answers with the token of the file."""
        text = (self.folder / "nas-blockout" / "service.env").read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_TOKEN", text.partition("RAY_AUTH_TOKEN=")[2].split()[0])
            with suppress(ClusterError):
                return len(Jobs(f"http://{self.jobs}").nodes()) == 1
        return False

    def close(self) -> None:
        """End all that was begun, and what it began: it is known by its environment."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        for each in psutil.process_iter(["environ"]):
            if (each.info["environ"] or {}).get(MARK) == str(self.folder):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        for process in self._processes:
            process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _with_ports(self, block: str) -> str:
        for port, free in self._ports.items():
            block = re.sub(rf"\b{port}\b", str(free), block)
        return block


@pytest.fixture
def by_hand() -> Iterator[ByHand]:
    started = ByHand(Path(tempfile.mkdtemp(prefix="nas-hand-")))
    yield started
    started.close()


def test_a_service_started_as_the_guide_says_has_its_results_in_its_home(by_hand: ByHand) -> None:
    once, ray, api, worker = blocks()
    by_hand.do(once)
    by_hand.begin(ray)
    by_hand.begin(api)
    wait_until(by_hand.ray_answers, PATIENCE, by_hand.logs)
    by_hand.begin(worker)
    wait_until(lambda: is_open(by_hand.api.rpartition(":")[2]), PATIENCE, by_hand.logs)
    client = Client(by_hand.api, by_hand.token())
    status, answer = client("POST", "/v1/studies", STUDY)
    assert status == 201, answer
    wait_until(
        lambda: client("GET", "/v1/studies/by-hand")[1]["state"] not in ("queued", "running"), PATIENCE, by_hand.logs
    )
    shown = client("GET", "/v1/studies/by-hand")[1]
    assert (shown["state"], shown["message"]) == ("complete", ""), by_hand.logs()
    home = by_hand.folder / "nas-blockout"
    with Store.open(f"sqlite:///{home / 'runs' / 'nas_blockout.db'}") as store:
        assert store.study("by-hand").state == "complete"
        identity = store.identity()
    comparison = json.loads((home / "runs" / "by-hand" / "comparison.json").read_text())
    assert comparison == client("GET", "/v1/studies/by-hand/comparison")[1]
    assert f"--store-id {identity} --home-id " in entrypoint(by_hand, shown["job"])


def entrypoint(by_hand: ByHand, job: str) -> str:
    """The command of a job, as Ray has it."""
    log = next(by_hand.folder.rglob(f"job-driver-{job}.log"))
    assert log.exists()
    return log.read_text(errors="replace")
