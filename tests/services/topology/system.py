"""Runs the services of docker-compose.yml as processes of this machine, as Docker Compose would run them in containers.

What a container has of its own, a process gets made up: addresses (``name:port`` becomes a free port of the loopback,
the published one where there is one), folders (volumes lie below one private folder), a home and a ``/tmp``. What
belongs to a service is found by a mark in its environment, which all its children inherit; only such processes are
ever ended, by their numbers.
"""

import contextlib
import json
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.services.conftest import ordinary_user, postgres_programs
from tests.services.topology.compose import FILE, ROOT, Service, read_env, services

SECRETS = ("POSTGRES_PASSWORD", "STORE_PASSWORD", "MLFLOW_PASSWORD", "RAY_AUTH_TOKEN", "NAS_BLOCKOUT_API_TOKEN")
PUBLISHED = ("API_PORT", "MLFLOW_PORT", "RAY_DASHBOARD_PORT")
MARK = "TOPOLOGY_INSTANCE"
START_SECONDS = 900.0
RESTART_SECONDS = 1.0
_PROGRAM = f'#!/bin/sh\nexec {sys.executable} -c "from services.entry_point import main; main()" "$@"\n'
_LOOPBACK = "127.0.0.1"


@dataclass
class Instance:
    """One container: a service, or one of several replicas of it."""

    name: str
    service: Service
    ports: dict[int, int]
    process: "subprocess.Popen[bytes] | None" = None
    down: bool = False
    starts: int = 0
    extra: dict[str, str] = field(default_factory=dict)


class System:
    """The services of the compose file, as processes.

    Args:
        scale: Replicas of services, where not one.
        variables: For the ``.env`` file, beside its secrets, which are drawn.
    """

    def __init__(self, *, scale: Mapping[str, int] | None = None, variables: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nas-top-"))
        self.folder.chmod(0o755)
        self.mark = secrets.token_hex(8)
        self._write_env(variables or {})
        self._bin()
        given = services(read_env(self.folder / ".env"), FILE)
        self.services = {name: service for name, service in given.items() if not service.profiles}
        self.instances: dict[str, Instance] = {}
        for name, service in self.services.items():
            for number in range(1, (scale or {}).get(name, 1) + 1):
                own = name if number == 1 else f"{name}-{number}"
                published = service.published if own == name else {}
                ports = {port: published.get(port) or free_port() for port in service.ports}
                self.instances[own] = Instance(own, service, ports)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="restarts", daemon=True)

    # What the outside sees.

    def start(self) -> None:
        """Start everything in the order of the file, waiting as it says, and keep it up."""
        waiting, running, well = list(self.instances), [], set()
        deadline = time.monotonic() + START_SECONDS
        self._keeper.start()
        while waiting or running:
            for name in [name for name in waiting if self._may_start(self.instances[name].service, well)]:
                waiting.remove(name)
                self.launch(name)
                running.append(name)
            for name in [name for name in running if self._is_up(name)]:
                running.remove(name)
                well.add(name)
            assert time.monotonic() < deadline, f"not up: {running}, not started: {waiting}\n{self.logs(*running)}"
            time.sleep(0.5)  # each check is a process, which takes from what starts

    def close(self) -> None:
        """End everything."""
        self._ended.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        with ThreadPoolExecutor(len(self.instances)) as pool:
            list(pool.map(self._end, self.instances))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, name: str) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop(name, seconds=5)
        self.kill(name)

    def address(self, service: str, port: int) -> str:
        """Where a port of a service is reached."""
        return f"{_LOOPBACK}:{self.instances[service].ports[port]}"

    def secrets(self) -> dict[str, str]:
        """The secrets that were drawn, by name."""
        found = read_env(self.folder / ".env")
        return {name: found[name] for name in SECRETS}

    def path(self, service: str, inside: str) -> Path:
        """Where a path inside a container of a service lies."""
        return Path(self._paths(self.instances[service], inside))

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a service's process."""
        instance = self.instances[name]
        home, tmp = self.folder / "private" / name / "home", self.folder / f"t{list(self.instances).index(name)}"
        for folder in (home, tmp):  # paths of sockets are short: Ray's have 107 characters at most
            folder.mkdir(parents=True, exist_ok=True)
        given = {key: self._inside(instance, value) for key, value in instance.service.environment.items()}
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
        programs = postgres_programs()
        return {
            "PATH": ":".join([*path, str(programs)] if programs else path),
            "HOME": str(home),
            "TMPDIR": str(tmp),
            "RAY_TMPDIR": str(tmp),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # both as in tests/conftest.py: other tests run beside it
            "RAY_prestart_worker_first_driver": "0",
            **given,
            **instance.extra,
        }

    def run(self, name: str, *words: str, seconds: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command in a service, as `docker compose exec` does."""
        instance = self.instances[name]
        command = [self._inside(instance, word) for word in words]
        return subprocess.run(
            command,
            env=self.environment(name),
            cwd=self._cwd(name),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def logs(self, *names: str, last: int = 3000) -> str:
        """The last words of services."""
        found = [(name, self.folder / "logs" / f"{name}.log") for name in names or self.instances]
        return "\n".join(
            f"--- {name}\n{path.read_text(errors='replace')[-last:]}" for name, path in found if path.exists()
        )

    # What happens to a service.

    def launch(self, name: str) -> None:
        """Start the process of a service."""
        instance = self.instances[name]
        with self._lock:
            instance.down = False
            instance.starts += 1
            # In a container Ray sees no process but its own; here it would take another node for a living head.
            (Path(self.environment(name)["TMPDIR"]) / "ray" / "ray_current_cluster").unlink(missing_ok=True)
            command, user = list(instance.service.command), None
            if command[0] == "postgres":
                command, user = self._postgres(instance, command)
            (self.folder / "logs").mkdir(exist_ok=True)
            with (self.folder / "logs" / f"{name}.log").open("ab") as log:
                instance.process = subprocess.Popen(
                    [self._inside(instance, word) for word in command],
                    env=self.environment(name) | {MARK: f"{self.mark}/{name}"},
                    cwd=self._cwd(name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    user=user,
                    start_new_session=True,
                )

    def kill(self, name: str) -> int:
        """End all processes of a service at once, as `docker kill` does, and keep it down; return how many it had."""
        self.instances[name].down = True
        ended: set[int] = set()
        with self._lock:
            for _ in range(50):
                alive = self.processes(name)
                if not alive:
                    break
                for process in alive:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                    ended.add(process.pid)
                time.sleep(0.02)
            process = self.instances[name].process
            if process is not None:
                process.wait(30)
        return len(ended)

    def stop(self, name: str, *, seconds: float = 30) -> None:
        """End a service as `docker stop` does: SIGTERM to its first process, and keep it down."""
        instance = self.instances[name]
        instance.down = True
        if instance.process is not None and instance.process.poll() is None:
            instance.process.send_signal(signal.SIGTERM)
            instance.process.wait(seconds)

    def pause(self, name: str) -> None:
        """Stop all processes of a service where they are, as `docker pause` does."""
        for process in self.processes(name):
            process.suspend()

    def unpause(self, name: str) -> None:
        """Let a paused service go on."""
        for process in self.processes(name):
            process.resume()

    def processes(self, name: str) -> list[psutil.Process]:
        """All living processes of a service."""
        mark, found = f"{self.mark}/{name}", []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def is_healthy(self, name: str) -> bool:
        """What the health check of a service says; without one, whether it runs."""
        instance = self.instances[name]
        if instance.process is None or instance.process.poll() is not None:
            return False
        return instance.service.health is None or self.run(name, *instance.service.health).returncode == 0

    def wait_healthy(self, *names: str, seconds: float = START_SECONDS) -> None:
        """Wait until the health checks of services are green."""
        wait_until(lambda: all(map(self.is_healthy, names)), seconds, lambda: f"{names}\n{self.logs(*names)}")

    # How it is done.

    def _write_env(self, variables: Mapping[str, str]) -> None:
        drawn = {name: secrets.token_hex(32).replace("1234", "5678") for name in SECRETS}
        ports = {name: str(free_port()) for name in PUBLISHED}
        lines = [f"{name}={value}" for name, value in {**drawn, **ports, **variables}.items()]
        path = self.folder / ".env"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)

    def _bin(self) -> None:
        path = self.folder / "bin" / "nas-blockout"
        path.parent.mkdir()
        path.write_text(_PROGRAM)
        path.chmod(0o755)

    def _cwd(self, name: str) -> Path:
        folder = self.folder / "private" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _may_start(self, service: Service, well: set[str]) -> bool:
        names = {self.instances[name].service.name for name in well}
        return set(service.after) <= names

    def _is_up(self, name: str) -> bool:
        instance = self.instances[name]
        assert instance.process is not None
        code = instance.process.poll()
        if not instance.service.restarts:
            assert code in (None, 0), f"{name} ended with {code}\n{self.logs(name)}"
            return code == 0
        # One that has ended is started again, as the restart policy asks.
        return self._listens(instance) and self.is_healthy(name)

    def _listens(self, instance: Instance) -> bool:
        """Whether the ports of this machine that its health check asks are open: else it need not be run yet."""
        asked = " ".join(self._inside(instance, word) for word in instance.service.health or ())
        return all(map(is_open, re.findall(rf"(?:{_LOOPBACK}|localhost):(\d+)", asked)))

    def _keep(self) -> None:
        """Start again what has ended, as the restart policy asks."""
        while not self._ended.wait(RESTART_SECONDS):
            for instance in self.instances.values():
                with self._lock:
                    gone = instance.process is not None and instance.process.poll() is not None
                    if gone and instance.service.restarts and not instance.down and not self._ended.is_set():
                        self.kill_rest(instance.name)
                        self.launch(instance.name)

    def kill_rest(self, name: str) -> None:
        """End what a container's first process left behind, as its end does."""
        down = self.instances[name].down
        self.kill(name)
        self.instances[name].down = down

    def _inside(self, instance: Instance, text: str) -> str:
        """A text of the file with the addresses and paths that hold here."""
        for name, other in self.instances.items():
            for port, real in other.ports.items():
                text = re.sub(rf"(?<![\w-]){name}:{port}\b", f"{_LOOPBACK}:{real}", text)
        for port, real in instance.ports.items():
            text = re.sub(rf"(?<=port=){port}\b|(?<=localhost:){port}\b", str(real), text)
        return self._paths(instance, text.replace("0.0.0.0", _LOOPBACK))

    def _paths(self, instance: Instance, text: str) -> str:
        targets = {target for service in self.services.values() for target in service.volumes}
        for target in sorted(targets, key=len, reverse=True):
            if target not in text:
                continue
            source = instance.service.volumes.get(target)
            if source is None:
                real = self.folder / "private" / instance.name / target.strip("/").replace("/", "-")
            elif source.startswith("./"):
                real = ROOT / source
            else:
                real = self.folder / "volumes" / source
            if source is None or not source.startswith("./"):
                real.mkdir(parents=True, exist_ok=True)
            text = re.sub(rf"(?<![\w/]){re.escape(target)}(?![\w-])", str(real), text)
        return text

    def _postgres(self, instance: Instance, command: list[str]) -> tuple[list[str], str | None]:
        """What the image's entry point does: make the database once, then run the server as an ordinary user."""
        programs, user = postgres_programs(), ordinary_user()
        assert programs is not None
        data = self.folder / "volumes" / "postgres" / "data"
        if not data.exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            password = data.parent / "password"
            password.write_text(instance.service.environment["POSTGRES_PASSWORD"])
            for path in (data.parent, password):
                shutil.chown(path, user) if user else None
            options = ["--auth=scram-sha-256", "--username=postgres", f"--pwfile={password}", "--encoding=UTF8"]
            made = [programs / "initdb", "--pgdata", data, "--no-sync", *options]
            done = subprocess.run(made, user=user, cwd=data.parent, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        own = ["-D", str(data), "-c", f"unix_socket_directories={data.parent}", "-c", f"listen_addresses={_LOOPBACK}"]
        return [str(programs / "postgres"), *command[1:], *own], user


def free_port() -> int:
    """A free port below those that the system gives to clients, and beside those that Ray gives to its workers."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.closing(socket.socket()) as found, contextlib.suppress(OSError):
            found.bind((_LOOPBACK, port))
            return port


def is_open(port: str) -> bool:
    """Whether something listens on a port."""
    with socket.socket() as found:
        return found.connect_ex((_LOOPBACK, int(port))) == 0


def wait_until(done: Callable[[], Any], seconds: float, what: Callable[[], str] | str = "it did not happen") -> Any:
    """Wait until something is true; return it."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.25)
    return found


class Client:
    """Speaks to the API as a program does."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self.token = address, token

    def __call__(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, seconds: float = 30
    ) -> tuple[int, Any]:
        """Send a request; return status and body, or status 0 if nobody answers."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return answer.status, _body(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _body(error.read())
        except OSError as error:
            return 0, str(error)


def _body(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


@contextlib.contextmanager
def running(*, scale: Mapping[str, int] | None = None, variables: Mapping[str, str] | None = None) -> Iterator[System]:
    """The running system."""
    system = System(scale=scale, variables=variables)
    try:
        system.start()
        yield system
    finally:
        system.close()
