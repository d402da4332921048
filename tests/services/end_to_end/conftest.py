"""What a cluster consists of, on this machine: a Ray head and a node."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from services.cluster import ClusterError
from services.cluster.jobs import Jobs
from tests.services.program import PATIENCE

TOKEN = "0123456789abcdef" * 4
ROOT = Path(__file__).resolve().parents[3]
PROGRAM = f"#!/bin/sh\nexec {sys.executable} -c 'from services.entry_point import main; main()' \"$@\"\n"
RAY = "from ray.scripts.scripts import main; main()"
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
)
ALONE = frozenset({"port", "dashboard-port", "ray-client-server-port"})


class RayCluster:
    """A head and further nodes, each a process with its children; nothing of another cluster is touched.

    Args:
        folder: Short, for the sockets that Ray makes below it; the studies' home lies in it too.
        storage: URL of what its machines share.
    """

    def __init__(self, folder: Path, storage: str) -> None:
        self.folder, self.storage = folder, storage
        known = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", ""))
        self.token = known.read_text().strip() if known.is_file() else TOKEN  # Ray reads it once a process
        self.home = folder / "home"
        (folder / "bin").mkdir()
        (folder / "bin" / "nas-blockout").write_text(PROGRAM)
        (folder / "bin" / "nas-blockout").chmod(0o755)
        (folder / "token").write_text(self.token)
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the head and a further node, and wait until both are there."""
        ports = free_ports(PORTS)
        self.gcs, self.address = f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}"
        self._start("--head", "--dashboard-host=127.0.0.1", "--include-dashboard=true", cpus=1, ports=ports)
        self.wait(nodes=1)
        self.add_node()

    @property
    def own(self) -> dict[str, str]:
        """What says where the cluster is, and what its studies share."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "NAS_BLOCKOUT_HOME": str(self.home),
            "NAS_BLOCKOUT_ARTIFACTS": self.storage,
            "NAS_BLOCKOUT_TRACKING_URI": "none",
        }

    @property
    def environment(self) -> dict[str, str]:
        """What nodes, their jobs and the commands of the tests run in."""
        return {
            **os.environ,
            **self.own,
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def add_node(self) -> None:
        """Start a further node on this machine and wait until the cluster knows it."""
        ports = {name: port for name, port in free_ports(PORTS).items() if name not in ALONE}
        self._start(f"--address={self.gcs}", cpus=1, ports=ports)
        self.wait(nodes=len(self._nodes))

    def jobs(self) -> Jobs:
        """A client of it, in this process."""
        return Jobs(self.address)

    def wait(self, *, nodes: int) -> None:
        """Wait until so many nodes are there, and the job server too."""
        deadline = time.monotonic() + PATIENCE
        while not self._has(nodes):
            for number, node in enumerate(self._nodes):
                log = self.folder / f"node-{number}.log"
                assert node.poll() is None, f"node {number} has ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the cluster does not have {nodes} nodes in time"
            time.sleep(0.25)

    def _has(self, nodes: int) -> bool:
        try:
            return len(self.jobs().nodes()) >= nodes and self.jobs().job("none") is None
        except ClusterError:
            return False

    def close(self) -> None:
        """End the processes of this cluster, and remove its folder."""
        for node in self._nodes:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            node.kill()
            node.wait(timeout=30)
        for process in psutil.process_iter(["environ"]):  # jobs have sessions of their own
            if (process.info["environ"] or {}).get("RAY_AUTH_TOKEN_PATH") == str(self.folder / "token"):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *words: str, cpus: int, ports: dict[str, int]) -> None:
        options = [f"--{name}={port}" for name, port in ports.items()]
        temporary = self.folder / f"ray-{len(self._nodes)}"  # a node that shares another's unpacks jobs over its feet
        command = [sys.executable, "-c", RAY, "start", *words, "--block", f"--num-cpus={cpus}", "--num-gpus=0"]
        with (self.folder / f"node-{len(self._nodes)}.log").open("wb") as log:
            self._nodes.append(
                subprocess.Popen(
                    [
                        *command,
                        "--object-store-memory=80000000",
                        "--disable-usage-stats",
                        f"--temp-dir={temporary}",
                        *options,
                    ],
                    env=self.environment,
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Ports that nothing listens on; all are held until each is found, so that no two are the same."""
    sockets = {name: socket.socket() for name in names}
    for each in sockets.values():
        each.bind(("127.0.0.1", 0))
    found = {name: each.getsockname()[1] for name, each in sockets.items()}
    for each in sockets.values():
        each.close()
    return found


@pytest.fixture(scope="module")  # idle, it would take from all tests that follow
def ray_cluster(storage: str) -> Iterator[RayCluster]:
    """A head and another node with one processor each; entered with its token."""
    folder = Path(tempfile.mkdtemp(prefix="nas-ray-"))
    cluster = RayCluster(folder, storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()
