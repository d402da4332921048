"""The running system, for the tests of a file that want it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.store import Store
from tests.services.conftest import postgres_programs
from tests.services.program import here, store_of
from tests.services.topology.studies import LONG, run_here, trials
from tests.services.topology.system import Client, System, running


@pytest.fixture(scope="module")  # idle, its services would take a tenth of a processor from all tests that follow
def system() -> Iterator[System]:
    if postgres_programs() is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with running(scale={"worker": 2}, variables={"RAY_WORKER_CPUS": "2"}) as found:
        yield found


@pytest.fixture(scope="module")
def client(system: System) -> Client:
    """Somebody who may write."""
    made = here("token", "create", "--owner", "tester", "--scope", "write", **system.environment("api"))
    assert made.code == 0, made.err
    return Client(system.address("api", 8000), made.out.strip())


@pytest.fixture
def store(system: System) -> Iterator[Store]:
    with Store.open(system.environment("api")["NAS_BLOCKOUT_STORE_URL"]) as opened:
        yield opened


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The trials of the long study where nothing happens to it, on this machine and without any service."""
    home: Path = tmp_path_factory.mktemp("undisturbed")
    run_here(home, LONG, "undisturbed")
    with store_of(home) as store:
        return trials(store, "undisturbed")
