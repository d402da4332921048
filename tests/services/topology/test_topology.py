"""The services of docker-compose.yml, started by its own commands: a study takes every way in, with one result.

``TOPOLOGY_STUDY=quickstart pytest tests/services/topology/test_topology.py`` does it with a bundled study;
``PICTURES=docs/images`` keeps what the browser sees of it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from services.store import Store
from tests.services.topology.ledger import in_mlflow
from tests.services.topology.studies import STUDY, chosen, comparison, run_here, write
from tests.services.topology.system import SECRETS, Client, System, wait_until

SECONDS = 600 if STUDY == "tiny" else 7200
pytestmark = [pytest.mark.slow(160), pytest.mark.timeout(3 * SECONDS)]
HOME = "/var/lib/nas-blockout"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE_SECONDS = 180


@pytest.fixture(scope="module")
def ran(system: System, client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The study by the API, by `nas-blockout submit` and by `ray job submit`, each with its own name, all ended."""
    folder, document = tmp_path_factory.mktemp("submitted"), chosen()
    status, answer = client("POST", "/v1/studies", {**document, "name": STUDY})
    assert status in (200, 201, 202), answer
    plain = {**document, "export": []}  # the first exports, which is as much work as the rest of so small a study
    submitted = write(folder / "one", plain, "by-submit")
    job = write(folder / "two", plain, "by-ray")
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
    wait_until(lambda: shown(client)["state"] not in ("queued", "running"), SECONDS)
    return {STUDY: "api", "by-submit": "submit", "by-ray": "ray"}


def shown(client: Client) -> dict[str, Any]:
    """The study as the API shows it; a request that got no answer, on a machine that is overloaded, is sent again."""

    def answer() -> dict[str, Any] | None:
        status, found = client("GET", f"/v1/studies/{STUDY}")
        return found if status == 200 else None

    found: dict[str, Any] = wait_until(answer, PATIENCE_SECONDS, "the API does not answer")
    return found


def test_every_way_in_has_the_result_of_a_run_without_services(
    system: System, client: Client, ran: dict[str, str], tmp_path: Path
) -> None:
    run_here(tmp_path, chosen(), "local", seconds=SECONDS)
    expected = comparison(tmp_path, "local")
    assert shown(client)["state"] == "complete", system.logs("worker", "worker-2")
    assert {name: comparison(system.path("api", HOME), name) for name in ran} == dict.fromkeys(ran, expected)


def test_mlflow_and_the_store_know_all_of_them(system: System, ran: dict[str, str], store: Store) -> None:
    assert {line.name: line.state for line in store.studies() if line.name in ran} == dict.fromkeys(ran, "complete")
    done = system.run("api", "nas-blockout", "sync", STUDY, "--json", seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    assert '"written": 0' in done.stdout


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of a real browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        found = browser.new_page(viewport={"width": 1280, "height": 900})
        found.set_default_timeout(1000 * PATIENCE_SECONDS)
        yield found
        browser.close()


def picture(page: Any, name: str, **options: Any) -> None:
    """Keep what the browser shows, where ``PICTURES`` says."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", **options)


def test_the_page_leads_to_the_report_the_job_and_the_comparison_in_mlflow(
    system: System, client: Client, ran: dict[str, str], page: Any
) -> None:
    page.goto(f"http://{system.address('api', 8000)}/login")
    page.get_by_label("Token").fill(client.token)
    page.keyboard.press("Enter")
    page.get_by_role("link", name=STUDY, exact=True).click()
    page.get_by_role("heading", name="Model of dense").wait_for()
    picture(page, "service", full_page=True)
    job = page.get_by_role("link", name="Ray job").get_attribute("href")
    assert job == f"http://{system.address('ray-head', 8265)}/#/jobs/{shown(client)['job']}"
    page.get_by_role("link", name="MLflow run").click()
    page.get_by_role("heading", name=STUDY).first.wait_for()
    experiment = page.url.partition("/experiments/")[2].partition("/")[0]
    compare(page, f"http://{system.address('mlflow', 5000)}/#/experiments/{experiment}")
    picture(page, "mlflow-compare")


def compare(page: Any, experiment: str) -> None:
    """Compare the retrained models of the first seed in MLflow, as a person does."""
    chosen = quote("tags.`nas.phase` = 'retrain' and tags.`nas.seed` = '0'")
    page.goto(f"{experiment}/runs?workflowType=machine_learning&searchFilter={chosen}"
              f"&orderByKey={quote('metrics.`best/val_accuracy`')}&orderByAsc=false")  # fmt: skip
    for arm in chosen_arms():
        row = page.get_by_role("row").filter(has=page.get_by_text(f"{arm}-0-s0", exact=True)).first
        row.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(f"Comparing {len(chosen_arms())} Runs from 1 Experiment").wait_for()
    page.get_by_role("button", name="Close").click()  # MLflow's assistant
    page.get_by_role("button", name="Clear All").click()
    for place, names in enumerate((["optim.lr"], ["best/val_accuracy", "model/macs", "test/accuracy"])):
        page.locator(".du-bois-light-select-multiple").nth(place).click()
        shown = page.locator(".du-bois-light-select-dropdown:visible")
        shown.hover()
        for name in names:
            option = shown.get_by_title(name, exact=True)
            for _ in range(50):  # of a long list only what is in sight is there
                if option.count():
                    break
                page.mouse.wheel(0, 100)
                page.wait_for_timeout(50)
            option.click()
        page.keyboard.press("Escape")
    page.get_by_role("heading", name="Comparing").click()
    page.locator(".js-plotly-plot").first.get_by_text("test/accuracy", exact=True).wait_for()


def chosen_arms() -> list[str]:
    return list(chosen()["arms"])


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


def test_no_secret_stands_in_a_log_a_command_line_or_mlflow(system: System, ran: dict[str, str]) -> None:
    secrets = system.secrets()
    runs = str([in_mlflow(system, name) for name in ran])
    assert "nas.trial" in runs
    assert [name for name in SECRETS if secrets[name] in runs] == []
    words = {name: " ".join(p for each in system.processes(name) for p in each.cmdline()) for name in system.instances}
    logs = {name: system.logs(name, last=10_000_000) for name in system.instances}
    for name in SECRETS:
        assert [instance for instance in words if secrets[name] in words[instance]] == []
        assert [instance for instance in logs if secrets[name] in logs[instance]] == []
