"""A store on each of its databases: SQLite files, and a PostgreSQL server that the session starts for itself."""

import json
import os
import pwd
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from services.search.scheduler import Scheduler
from services.store import Store
from services.store.tables import METADATA
from services.study_config.resolved_study import Study
from services.tracking import check
from services.trial_record import SEARCH, Trial
from tests.once import once
from tests.services.new_store import new_store

_ORDINARY_USERS = ("postgres", "nobody")
_BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def postgres_programs() -> Path | None:
    """The folder of the newest server's programs: on the PATH, or where Debian puts them."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


def ordinary_user() -> str | None:
    """The user to run a server as: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _ORDINARY_USERS if name in known)


class PostgresServer:
    """A server of its own, in a folder of its own, that listens on a socket in it and on no port."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="nas-pg-"))
        self.user = ordinary_user()
        if self.user:
            shutil.chown(self.folder, self.user)
        self._call("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--no-sync")
        self.start()

    @property
    def arguments(self) -> list[str]:
        return ["--pgdata", str(self.folder / "data")]

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.folder / "data", *options],
            user=self.user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End it as a machine does that loses power: the server's first process ends the others."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=30)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://tester@/{database}?host={self.folder}"

    def make_database(self) -> str:
        """Make a database and return its URL; waits for a server that has just been started."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(self.url("postgres"), f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, url: str, statement: str) -> None:
        with self.connect(make_url(url).database or "") as connection:
            connection.execute(statement.encode())

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        deadline = time.monotonic() + 30
        while True:
            try:
                return psycopg.connect(host=str(self.folder), user="tester", dbname=database, autocommit=True)
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def _call(self, program: str, *options: str) -> None:
        command = [self.programs / program, *self.arguments, *options]
        done = subprocess.run(command, user=self.user, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    server = PostgresServer(programs)
    yield server
    server.close()


@pytest.fixture(scope="session")
def emptied_database(postgres: PostgresServer) -> str:
    """A database whose schema `store_url` drops before each test: much faster than a new database."""
    return postgres.make_database()


@pytest.fixture(scope="session")
def emptied_store(postgres: PostgresServer) -> str:
    """A database whose tables `store` empties before each test: faster still."""
    url = postgres.make_database()
    Store.open(url).close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that has nothing in it yet, of every kind that the store supports."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runs' / 'store.db'}"
    url: str = request.getfixturevalue("emptied_database")
    request.getfixturevalue("postgres").execute(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, on every kind of database."""
    if request.param == "sqlite":
        with new_store(tmp_path / "runs" / "store.db") as opened:
            yield opened
        return
    url = request.getfixturevalue("emptied_store")
    tables = ", ".join(METADATA.tables.keys() - {"identity"})  # it has one row, as long as there is a store
    request.getfixturevalue("postgres").execute(url, f"TRUNCATE {tables} RESTART IDENTITY")
    with Store.open(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database with nothing in it: its migration takes seconds, so that it is made once a run, and copied."""
    made = once(tmp_path_factory, "mlflow", lambda folder: check(f"sqlite:///{folder / 'mlflow.db'}"))
    own = tmp_path_factory.mktemp("mlflow-") / "mlflow.db"
    with closing(sqlite3.connect(made / "mlflow.db")) as source, closing(sqlite3.connect(own)) as target:
        source.backup(target)
    return f"sqlite:///{own}"


@pytest.fixture(scope="module")  # not of the session: while it is there no other event loop may run in this thread
def browser() -> Iterator[Any]:
    """The system's browser; a test that needs it is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=_BROWSER_FLAGS)
        yield started
        started.close()


@pytest.fixture
def pretend() -> Callable[..., None]:
    """Runs a study on 8 x 8 images of ten classes with made-up results, as its driver would with so many workers."""
    return pretend_to_run


def pretend_to_run(store: Store, study: Study, *, max_concurrent_trials: int, seed: int = 0) -> None:
    rng, running = random.Random(seed), []
    images = int(study.config.data["train_samples"])
    scheduler = Scheduler(study, shape=(1, 8, 8), classes=10, images=images, trials=store.trials(study.name))
    while True:
        while len(running) < max_concurrent_trials and (proposal := scheduler.next()) is not None:
            running.append(_add(store, study, proposal))
            scheduler.update(replace(proposal, state="running"))
        if not running:
            return
        trial = running.pop(rng.randrange(len(running)))
        _end(store, trial)
        scheduler.update(store.trial(trial))


def _add(store: Store, study: Study, proposal: Trial) -> int:
    architecture = proposal.config.architecture
    row = store.add_trial(
        study.name,
        arm=proposal.arm,
        phase=proposal.phase,
        number=proposal.number,
        seed=proposal.seed,
        experiment=proposal.experiment,
        params=proposal.params,
        architecture=architecture.to_json() if architecture else None,
        architecture_hash=proposal.architecture_hash,
        replicate_of=proposal.replicate_of,
        planned=proposal.planned,
    )
    store.start_attempt(row.id)
    return row.id


def _end(store: Store, trial: int) -> None:
    """End a trial in what depends on its experiment and on nothing else."""
    row = store.trial(trial)
    rng = random.Random(json.dumps(row.experiment, sort_keys=True))
    record = {"epoch": 0, "sample_passes": row.planned, "seconds": 1 + 9 * rng.random()}
    store.record_epochs(trial, [record])
    score = rng.random()
    if rng.random() < 0.1 and row.phase == SEARCH:
        store.finish_trial(trial, "failed", reason="diverged")
        return
    result = {"validation_accuracy": score, "macs": 1000 + trial, "parameters": 10}
    if row.phase != SEARCH:
        result["test_accuracy"] = score
    store.finish_trial(trial, "complete", score=score, result=result)


@pytest.fixture(scope="session")  # its clients are kept by their library, with the address that they began with
def storage() -> Iterator[str]:
    """The URL of storage that speaks S3, with what its clients read from the environment."""
    import boto3  # takes a second, which the other tests need not wait for
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "kept-from-everyone")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="shared")
        yield "s3://shared/studies"
    server.stop()
