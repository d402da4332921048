"""The services of docker-compose.yml, started by its own commands: a study takes every way in, with one result.

A browser goes from the page's form to the downloaded model, and from there to Ray and MLflow.

``TOPOLOGY_STUDY=quickstart pytest tests/services/topology/test_topology.py`` does it with a bundled study;
``PICTURES=docs/images`` keeps what the browser sees of it.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from services.store import Store
from tests.services.program import RUNS_HERE, here
from tests.services.topology.ledger import in_mlflow
from tests.services.topology.studies import STUDY, chosen, comparison, home_of, write
from tests.services.topology.system import SECRETS, Client, System, wait_until

SECONDS = 1200 if STUDY == "tiny" else 7200
pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(300), pytest.mark.timeout(3 * SECONDS), *RUNS_HERE]
HOME = "/var/lib/nas-blockout"
Done = subprocess.CompletedProcess[str]
PATIENCE_SECONDS = 600
FAINT = """() => [...document.querySelectorAll('p, td, th, dt, dd, a, label, button, h1, h2, caption')].filter(e => {
  const linear = share => share <= .04 ? share / 12.92 : ((share + .055) / 1.055) ** 2.4;
  const light = color => {
    const [r, g, b] = color.match(/[0-9.]+/g).map(part => linear(part / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  let behind = e;
  const ground = () => getComputedStyle(behind).backgroundColor;
  while (ground() === 'rgba(0, 0, 0, 0)' && behind !== document.body) behind = behind.parentElement ?? document.body;
  const page = light(ground());
  const ink = light(getComputedStyle(e).color);
  return e.textContent.trim() && (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05) < 4.5;
}).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 40))"""
OUTLINE = "getComputedStyle(document.activeElement.closest('.editor') ?? document.activeElement).outlineStyle"
UNNAMED = """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, progress')]
  .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"""


@pytest.fixture(scope="module")
def given(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[Done]"]]:
    """The study by `nas-blockout submit` and by `ray job submit`, both begun: the ends of the commands by its names."""
    folder, document = tmp_path_factory.mktemp("submitted"), chosen()
    submitted = write(folder / "one", document, "by-submit")
    job = write(folder / "two", document, "by-ray")
    address = f"http://{system.address('ray-head', 8265)}"
    commands: dict[str, tuple[str, ...]] = {
        "by-submit": ("nas-blockout", "submit", str(submitted)),
        "by-ray": ("ray", "job", "submit", "--address", address, "--working-dir", str(job.parent)),
    }
    commands["by-ray"] += ("--", "nas-blockout", "run", job.name)
    with ThreadPoolExecutor(len(commands)) as pool:
        yield {name: pool.submit(system.run, "api", *words, seconds=2 * SECONDS) for name, words in commands.items()}


@pytest.fixture(scope="module")
def ran(system: System, walked: "Walked", given: dict[str, "Future[Done]"]) -> tuple[str, ...]:
    """The study by the page and the API, and by both commands: the names of what ended."""
    for each in given.values():
        ended = each.result()
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:] + system.logs("ray-head", "worker")
    return STUDY, *given


def shown(client: Client) -> dict[str, Any]:
    """The study as the API shows it; a request that got no answer, on a machine that is overloaded, is sent again."""

    def answer() -> dict[str, Any] | None:
        status, found = client("GET", f"/v1/studies/{STUDY}")
        return found if status == 200 else None

    found: dict[str, Any] = wait_until(answer, PATIENCE_SECONDS, "the API does not answer")
    return found


@pytest.fixture(scope="session")  # wider than the services: it is done before they start
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the study finds where there is no service."""
    return comparison(home_of(chosen(), tmp_path_factory), "alone")


@contextmanager
def no_worker(system: System) -> Iterator[None]:
    """Nobody takes studies from the queue."""
    for name in ("worker", "worker-2"):
        system.pause(name)
    try:
        yield
    finally:
        for name in ("worker", "worker-2"):
            system.unpause(name)


@pytest.fixture(scope="module")
def open_page(browser: Any) -> Iterator[Callable[[], Any]]:
    """Opens pages of a real browser."""
    opened = []

    def opens() -> Any:
        opened.append(browser.new_page(viewport={"width": 1280, "height": 900}))
        opened[-1].set_default_timeout(1000 * PATIENCE_SECONDS)
        return opened[-1]

    yield opens
    for page in opened:
        page.close()


@dataclass(frozen=True, slots=True)
class Walked:
    """What a browser saw from the login to the end of a study, and the page where it stands then.

    Args:
        page: Shows the study, which is complete.
        states: Of the study, as the page said without being loaded again.
        given: How the API answered to the same study, and the state it told.
        said: On the browser's console, but for what belongs to refusals.
        asked: URLs that the page asked for.
    """

    page: Any
    states: tuple[str, str, str]
    given: tuple[int, str]
    said: list[str]
    asked: set[str]


@pytest.fixture(scope="module")
def walked(system: System, client: Client, open_page: Callable[[], Any], request: pytest.FixtureRequest) -> Walked:
    """The study is given by the page's form, and then by the API as well, which has it already; it runs to its end."""
    page, address, document = open_page(), f"http://{system.address('api', 8000)}", {**chosen(), "export": ["dense"]}
    said: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: said.append(message.text) if "401" not in message.text else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.goto(address)
    page.get_by_label("Token").fill("nab_wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    enter(page, client.token)
    page.get_by_role("link", name="New study").click()
    assert page.get_by_label("Begin with").locator("option", has_text="quickstart").count() == 1

    page.get_by_label("The study, as YAML").fill("budgte: 3")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("alert").get_by_text("did you mean 'budget'?").first.wait_for()
    assert [text for text in said if "status of 422" not in text] == []  # the browser says so of the refused form
    said.clear()
    with no_worker(system):
        page.get_by_label("The study, as YAML").fill(yaml.safe_dump({**document, "name": STUDY}, sort_keys=False))
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("heading", name=STUDY, exact=True).wait_for()
        queued = page.locator("#state").inner_text()
        status, answer = client("POST", "/v1/studies", {**document, "name": STUDY})
    page.locator("#state", has_text="running").wait_for()  # by htmx: nothing is loaded again
    told = page.locator("#announcement").inner_text()
    request.getfixturevalue("given")  # the commands submit the study too, which then runs three times at once
    page.goto(address)
    page.get_by_role("row").filter(has_text=STUDY).get_by_text("running").wait_for()
    ended = page.get_by_role("row").filter(has_text=STUDY).get_by_text("complete")
    ended.wait_for(timeout=1000 * SECONDS)
    states = (queued, told, ended.inner_text())
    page.get_by_role("link", name=STUDY, exact=True).click()
    page.get_by_role("heading", name="Model of dense").wait_for()
    return Walked(page, states, (status, answer["state"]), said, asked)


def enter(page: Any, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Studies").wait_for()


def test_a_study_from_the_form_to_the_downloaded_model(
    expected: Any, system: System, walked: Walked, tmp_path: Path
) -> None:
    page, address = walked.page, f"http://{system.address('api', 8000)}"
    assert walked.states == ("queued", f"{STUDY} is running", "complete")
    assert walked.given == (200, "queued")
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        # On a busy machine a page is laid out a moment after its size has changed; this fails after half a minute.
        page.wait_for_function(f"document.documentElement.scrollWidth === {width}")
        assert page.evaluate(FAINT) == []
        assert page.evaluate(UNNAMED) == []
    models = system.path("api", HOME) / "runs" / STUDY / "models"
    for name in ("model.onnx", "verification.json"):
        with page.expect_download() as downloading:
            page.get_by_role("link", name=name).first.click()
        downloading.value.save_as(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (models / "dense" / name).read_bytes()
    page.get_by_role("link", name="Report").click()
    page.get_by_role("heading", name=STUDY, exact=True).wait_for()
    page.get_by_role("heading", name="Verdict").wait_for()
    assert [text for text in walked.said if "ERR_ABORTED" not in text] == []
    assert {url for url in walked.asked if not url.startswith((address, "data:"))} == set()
    assert comparison(system.path("api", HOME), STUDY) == expected


def test_every_way_in_has_the_result_of_a_run_without_services(
    expected: Any, system: System, client: Client, ran: tuple[str, ...]
) -> None:
    assert shown(client)["state"] == "complete", system.logs("worker", "worker-2")
    assert {name: comparison(system.path("api", HOME), name) for name in ran} == dict.fromkeys(ran, expected)


def test_mlflow_and_the_store_know_all_of_them(system: System, ran: tuple[str, ...], store: Store) -> None:
    assert {line.name: line.state for line in store.studies() if line.name in ran} == dict.fromkeys(ran, "complete")
    done = here("sync", STUDY, "--json", **system.environment("api"))
    assert done.code == 0, done.err
    assert done.json["written"] == 0


def test_all_is_reached_by_the_keyboard(system: System, client: Client, open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.goto(f"http://{system.address('api', 8000)}/login")
    enter(page, client.token)
    page.goto(f"http://{system.address('api', 8000)}/new")
    reached = []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    for _ in range(18):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if not page.evaluate("document.activeElement === document.body"):  # past the last the browser's own come
            assert page.evaluate(OUTLINE) != "none", reached
        page.keyboard.press("Tab")
    for each in ("Log out", "example", "load", "yaml", "name", "check", "submit"):
        assert each in reached
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


def picture(page: Any, name: str, **options: Any) -> None:
    """Keep what the browser shows, where ``PICTURES`` says."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", **options)


def test_the_page_leads_to_the_report_the_job_and_the_comparison_in_mlflow(
    system: System, client: Client, ran: tuple[str, ...], open_page: Callable[[], Any]
) -> None:
    page = open_page()
    page.goto(f"http://{system.address('api', 8000)}/login")
    enter(page, client.token)
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


def test_everything_is_healthy_by_the_checks_of_the_file(system: System, ran: tuple[str, ...]) -> None:
    assert [
        name for name in system.instances if system.instances[name].service.restarts and not system.is_healthy(name)
    ] == []
    ended = system.run("api", "nas-blockout", "doctor")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_health_check_fails_when_its_service_is_gone(system: System, ran: tuple[str, ...]) -> None:
    assert system.run("mlflow", *(system.instances["mlflow"].service.health or ())).returncode == 0
    refused = subprocess.run(
        ["python", "-P", "-m", "services.healthcheck", f"http://{system.address('ray-head', 8265)}/api/cluster_status"],
        env=system.environment("ray-worker"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "401" in refused.stderr


def test_nodes_that_train_hold_no_secret_but_that_of_their_cluster(system: System, ran: tuple[str, ...]) -> None:
    secrets = system.secrets()
    for process in system.processes("ray-worker"):
        held = " ".join(process.environ().values())
        assert [name for name in SECRETS if secrets[name] in held] == ["RAY_AUTH_TOKEN"]


def test_no_secret_stands_in_a_log_a_command_line_or_mlflow(system: System, ran: tuple[str, ...]) -> None:
    secrets = system.secrets()
    runs = str([in_mlflow(system, name) for name in ran])
    assert "nas.trial" in runs
    assert [name for name in SECRETS if secrets[name] in runs] == []
    words = {name: " ".join(p for each in system.processes(name) for p in each.cmdline()) for name in system.instances}
    logs = {name: system.logs(name, last=10_000_000) for name in system.instances}
    for name in SECRETS:
        assert [instance for instance in words if secrets[name] in words[instance]] == []
        assert [instance for instance in logs if secrets[name] in logs[instance]] == []
