"""A study in MLflow's own pages, in a real browser: its arms at first sight, sorted, compared, with their curves."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nas_blockout import plots
from services.store import Store
from services.tracking import ArmFinding, Projection
from tests.services.serving import closed_port

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.slow(20),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of MLflow's own database
]

SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
STUDY = "in-a-browser"
ARMS = ("dense", "blockout")
PATIENCE = 30_000
# MLflow puts columns in their order after it has drawn them, and moves no element for it.
FROM_LEFT_TO_RIGHT = """columns => {
    const left = name => [...document.querySelectorAll("[role=columnheader]")]
        .filter(header => header.innerText.trim() === name).map(header => header.getBoundingClientRect().left)[0];
    return columns.every((name, place) => left(name) > (place ? left(columns[place - 1]) : 0));
}"""


def fill(store: Store) -> dict[str, Any]:
    """Put a study of two arms and two retrained seeds into a store; return its configuration."""
    arms = {arm: {"description": f"the {arm} one"} for arm in ARMS}
    config = {"name": STUDY, "question": "Is it seen?", "budget": {"sample_passes": 400}, "arms": arms}
    store.create_study(STUDY, config=config, config_hash="cafe", arms=list(ARMS))
    for place, arm in enumerate(ARMS):
        for seed in (0, 1):
            experiment = {
                "backbone": {"name": "convnet"},
                "method": {"name": "blockout" if arm == "blockout" else "none"},
                "training": {"epochs": 3, "learning_rate": 0.01 * (seed + 1)},
                "seed": seed,
            }
            trial = store.add_trial(
                STUDY, arm=arm, phase="retrain", number=seed, seed=seed, experiment=experiment, planned=150
            ).id
            store.start_attempt(trial)
            accuracies = [0.5, 0.7, 0.80 + 0.05 * place + 0.01 * seed]
            store.record_epochs(trial, [epoch(number, accuracy) for number, accuracy in enumerate(accuracies)])
            result = {"test_accuracy": accuracies[-1] - 0.02, "parameters": 1000, "macs": 9000}
            store.finish_trial(trial, "complete", score=accuracies[-1], result=result)
    return config


def epoch(number: int, accuracy: float) -> dict[str, Any]:
    done = {"epoch": number, "stage": "train", "sample_passes": 50 * (number + 1), "seconds": 0.5 * (number + 1)}
    return {**done, "train_loss": 1.5 - number / 3, "validation_loss": 1.0, "validation_accuracy": accuracy}


def project(folder: Path, uri: str) -> tuple[str, Projection]:
    """Write the finished study to MLflow; return the identity of its experiment, and what wrote it."""
    import mlflow

    results = folder / "study"
    accuracies = [plots.Estimate(arm, "learned", (0.8, 0.9), 0.85, (0.7, 0.95)) for arm in ARMS]
    svg = plots.standalone(plots.to_svg(plots.figure_accuracy(accuracies), name="accuracy", description="Accuracy"))
    (results / "report" / "figures").mkdir(parents=True)
    (results / "report" / "figures" / "accuracy.svg").write_text(svg, encoding="utf-8")
    (results / "report" / "index.html").write_text("<p>the report of the study</p>", encoding="utf-8")
    with Store.open(f"sqlite:///{folder / 'store.db'}") as store:
        projection = Projection(uri, STUDY, fill(store), store)
        assert projection.sync().written == 4
        trials = {arm: tuple(t.id for t in store.trials(STUDY) if t.arm == arm) for arm in ARMS}
        findings = {arm: ArmFinding(f"verdict on {arm}", of, of[-1]) for arm, of in trials.items()}
        numbers = {"validation_accuracy": {"mean": 0.8765}, "macs": 9000, "parameters": 1000}
        cost = {"search": {}, "retrain": {"sample_passes": 300, "seconds": 3.5}}
        accuracies_of = {arm: {"mean": 0.81 + 0.04 * place} for place, arm in enumerate(ARMS)}
        values = {arm: {"test_accuracy": mean, "cost": cost, **numbers} for arm, mean in accuracies_of.items()}
        projection.finish({"arms": values}, results, findings=findings)
    experiment = mlflow.MlflowClient(tracking_uri=uri).get_experiment_by_name(f"nas-blockout/{STUDY}")
    assert experiment is not None
    return str(experiment.experiment_id), projection


@contextmanager
def served(uri: str, folder: Path) -> Iterator[str]:
    """Run MLflow's server on a database; yield its address."""
    port = closed_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--allowed-hosts", "127.0.0.1:*"]
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **SERVER}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(f"{address}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.1)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture
def page(opened: Any) -> Iterator[Any]:
    """A page of the browser that remembers nothing of other tests."""
    yield opened
    if opened.url != "about:blank":
        opened.evaluate("localStorage.clear()")
        opened.goto("about:blank")


@pytest.fixture(scope="module")
def opened(browser: Any, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of the browser with the address of the study's runs as `runs`, and that of its own run as `parent`.

    The address of its experiment is `experiment`, and `prepared` are those of its prepared pages.
    """
    folder = tmp_path_factory.mktemp("browser")
    experiment, projection = project(folder, mlflow_uri)
    with served(mlflow_uri, folder) as address:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.experiment = f"{address}/#/experiments/{experiment}"
        page.runs = f"{page.experiment}/runs?workflowType=machine_learning"
        page.parent = f"{page.experiment}/runs/{projection.parent}"
        page.prepared = {name: f"{address}/{there}" for name, there in projection.pages.items()}
        yield page
        page.close()


def row(page: Any, name: str) -> Any:
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first


def retrained(page: Any, *, view: str = "") -> str:
    """The retrained models, best first, as the guide has the address: MLflow then lists them without their parent."""
    chosen = quote("tags.`nas.phase` = 'retrain'")
    return f"{page.runs}&searchFilter={chosen}&orderByKey={quote('metrics.`best/val_accuracy`')}&orderByAsc=false{view}"


def test_at_first_sight_every_arm_is_a_row_and_its_trials_are_a_click_away(page: Any) -> None:
    page.goto(page.runs)
    for arm in ARMS:
        row(page, arm).wait_for()
    assert "dense-0-s0" not in page.locator("body").inner_text()
    row(page, "dense").locator("[role=button], button").first.click()
    for name in ("dense-0-s0", "dense-1-s1"):
        row(page, name).wait_for()
    assert "blockout-0-s0" not in page.locator("body").inner_text()


def test_whoever_has_never_chosen_a_mode_finds_the_arms_by_the_description(page: Any, browser: Any) -> None:
    stranger = browser.new_page(viewport={"width": 1600, "height": 1000})
    stranger.set_default_timeout(PATIENCE)
    stranger.goto(page.experiment)
    stranger.get_by_role("button", name="Got it").click()  # of a hint about language models in front of everything
    with stranger.expect_popup() as opened:  # MLflow opens links of a description in another tab
        stranger.get_by_role("link", name="arms", exact=True).first.click()
    opened.value.set_default_timeout(PATIENCE)
    row(opened.value, "blockout").wait_for()
    opened.value.close()
    stranger.close()


def test_the_prepared_table_has_accuracy_size_cost_and_verdict_as_columns(page: Any) -> None:
    page.goto(page.prepared["arms"])
    row(page, "blockout").wait_for()
    columns = ["test/accuracy", "best/val_accuracy", "model/macs", "model/parameters", "arm/sample_passes"]
    page.wait_for_function(FROM_LEFT_TO_RIGHT, arg=columns)
    page.get_by_role("gridcell", name="verdict on blockout").first.wait_for()
    for value in ("0.85", "0.8765", "9000", "1000", "300"):
        page.get_by_role("gridcell", name=value, exact=True).first.wait_for()


def test_accuracies_and_curves_of_all_arms_are_in_one_chart_each(page: Any) -> None:
    page.goto(page.prepared["charts"])
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    bars = cards.filter(has_text="test/accuracy").first
    bars.locator(".js-plotly-plot .barlayer .point").nth(len(ARMS) - 1).wait_for(state="attached")
    curves = cards.filter(has_text="val/accuracy").first
    curves.locator(".js-plotly-plot .scatterlayer .trace").nth(len(ARMS) - 1).wait_for(state="attached")


def test_the_retrained_winners_are_compared_at_one_address(page: Any) -> None:
    page.goto(page.prepared["winners"])
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    for name in ("dense-1-s1", "blockout-1-s1"):
        page.get_by_text(name, exact=True).first.wait_for()


def test_the_experiment_says_what_it_is_about(page: Any) -> None:
    page.goto(page.runs)
    page.get_by_text(re.compile(r"Is it seen\?")).first.wait_for()


def test_runs_are_sorted_and_have_their_best_value_as_a_column(page: Any) -> None:
    page.goto(retrained(page))
    row(page, "blockout-1-s1").wait_for()
    page.get_by_test_id("column-selection-dropdown").first.click()
    page.get_by_test_id("column-selector-tree").get_by_text("best/val_accuracy", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_role("gridcell", name=re.compile("0.86")).first.wait_for()
    names = re.findall(r"(?:dense|blockout)-\d-s\d", page.locator("body").inner_text())
    assert list(dict.fromkeys(names)) == ["blockout-1-s1", "blockout-0-s0", "dense-1-s1", "dense-0-s0"]


def test_two_runs_are_compared_by_parallel_coordinates(page: Any) -> None:
    page.goto(retrained(page))
    for name in ("blockout-1-s1", "dense-0-s0"):
        row(page, name).get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.get_by_text("Parallel Coordinates Plot").wait_for()
    drawn = page.locator(".js-plotly-plot").first
    drawn.get_by_text("optim.lr", exact=True).wait_for()
    drawn.get_by_text("best/val_accuracy", exact=True).wait_for()
    for name in ("blockout-1-s1", "dense-0-s0"):
        page.get_by_text(name, exact=True).first.wait_for()


def test_curves_of_all_runs_are_drawn_together(page: Any) -> None:
    page.goto(retrained(page, view="&compareRunsMode=CHART"))
    page.get_by_placeholder("Search metric charts").fill("val/accuracy")
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text="val/accuracy").first
    card.locator(".js-plotly-plot .scatterlayer .trace").nth(3).wait_for(state="attached")


def test_figures_and_report_are_artifacts_of_the_study(page: Any) -> None:
    page.goto(f"{page.parent}/artifacts/figures/accuracy.svg")
    picture = page.get_by_alt_text("figures/accuracy.svg").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 560
    for name in ("figures", "report"):
        page.get_by_text(name, exact=True).first.wait_for()
