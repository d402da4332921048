"""The services of docker-compose.yml, started by its own commands: a study takes every way in, with one result.

``TOPOLOGY_STUDY=quickstart pytest tests/services/topology/test_topology.py`` does it with a bundled study.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.store import Store
from tests.services.topology.studies import STUDY, chosen, comparison, run_here, write
from tests.services.topology.system import SECRETS, Client, System, wait_until

SECONDS = 600 if STUDY == "tiny" else 7200
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * SECONDS)]
HOME = "/var/lib/nas-blockout"


@pytest.fixture(scope="module")
def ran(system: System, client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The study by the API, by `nas-blockout submit` and by `ray job submit`, each with its own name, all ended."""
    folder, document = tmp_path_factory.mktemp("submitted"), chosen()
    status, answer = client("POST", "/v1/studies", {**document, "name": "by-api"})
    assert status in (200, 201, 202), answer
    submitted = write(folder / "one", document, "by-submit")
    job = write(folder / "two", document, "by-ray")
    address = f"http://{system.address('ray-head', 8265)}"
    commands = [
        ("nas-blockout", "submit", str(submitted)),
        ("ray", "job", "submit", "--address", address, "--working-dir", str(job.parent)),
    ]
    commands[1] += ("--", "nas-blockout", "run", job.name)
    with ThreadPoolExecutor(len(commands)) as pool:
        ended = list(pool.map(lambda words: system.run("api", *words, seconds=SECONDS), commands))
    for each in ended:
        assert each.returncode == 0, each.stdout[-3000:] + each.stderr[-3000:] + system.logs("ray-head", "worker")
    wait_until(lambda: client("GET", "/v1/studies/by-api")[1]["state"] not in ("queued", "running"), SECONDS)
    return {"by-api": "api", "by-submit": "submit", "by-ray": "ray"}


def test_every_way_in_has_the_result_of_a_run_without_services(
    system: System, client: Client, ran: dict[str, str], tmp_path: Path
) -> None:
    run_here(tmp_path, chosen(), "local", seconds=SECONDS)
    expected = comparison(tmp_path, "local")
    assert client("GET", "/v1/studies/by-api")[1]["state"] == "complete", system.logs("worker", "worker-2")
    assert {name: comparison(system.path("api", HOME), name) for name in ran} == dict.fromkeys(ran, expected)


def test_mlflow_and_the_store_know_all_of_them(system: System, ran: dict[str, str], store: Store) -> None:
    assert {line.name: line.state for line in store.studies() if line.name in ran} == dict.fromkeys(ran, "complete")
    done = system.run("api", "nas-blockout", "sync", "by-api", "--json")
    assert done.returncode == 0, done.stderr
    assert '"written": 0' in done.stdout


def test_everything_is_healthy_by_the_checks_of_the_file(system: System, ran: dict[str, str]) -> None:
    assert [
        name for name in system.instances if system.instances[name].service.restarts and not system.is_healthy(name)
    ] == []
    ended = system.run("api", "nas-blockout", "doctor")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_health_check_fails_when_its_service_is_gone(system: System, ran: dict[str, str]) -> None:
    assert system.run("mlflow", *(system.instances["mlflow"].service.health or ())).returncode == 0
    refused = subprocess.run(
        ["python", "-m", "services.health", f"http://{system.address('ray-head', 8265)}/api/cluster_status"],
        env=system.environment("ray-worker"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "401" in refused.stderr


def test_nodes_that_train_hold_no_secret_but_that_of_their_cluster(system: System, ran: dict[str, str]) -> None:
    secrets = system.secrets()
    for process in system.processes("ray-worker"):
        held = " ".join(process.environ().values())
        assert [name for name in SECRETS if secrets[name] in held] == ["RAY_AUTH_TOKEN"]


def test_no_secret_stands_in_a_log_or_a_command_line(system: System, ran: dict[str, str]) -> None:
    secrets = system.secrets()
    words = {name: " ".join(p for each in system.processes(name) for p in each.cmdline()) for name in system.instances}
    logs = {name: system.logs(name, last=10_000_000) for name in system.instances}
    for name in SECRETS:
        assert [instance for instance in words if secrets[name] in words[instance]] == []
        assert [instance for instance in logs if secrets[name] in logs[instance]] == []
