"""What MLflow shows at first sight: a run for each arm with its numbers and curves, and views that are prepared."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest

from services.store import PAGES_TARGET, Store
from services.tracking import ArmFinding, Projection
from tests.services.tracking.example import CONFIG, RESULT, add, everything, history, runs
from tests.services.tracking.test_shared_server import experiment, trials_alone, without_arms

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

COMPARISON: dict[str, Any] = {
    "arms": {
        "blockout": {
            "role": "learned",
            "test_accuracy": {"mean": 0.75, "ci95": [0.7, 0.8]},
            "validation_accuracy": {"mean": 0.85, "ci95": None},
            "macs": 2000,
            "parameters": 1000,
            "cost": {
                "search": {"sample_passes": 300, "seconds": 3.0},
                "retrain": {"sample_passes": 100, "seconds": 1.5},
            },
            "latency_ms": {"batch_1": 0.08},
        }
    }
}


def retrained(store: Store, name: str, *accuracies: float) -> tuple[int, ...]:
    """Add retrained trials, one a seed, whose curves end in these validation accuracies."""
    found = []
    for seed, accuracy in enumerate(accuracies):
        trial = add(store, name, number=20 + seed, state="running", epochs=0)
        rows = [{"validation_accuracy": accuracy * share, "train_loss": 1.0} for share in (0.5, 1.0)]
        store.record_epochs(
            trial,
            [
                {"epoch": number, "stage": "learn", "sample_passes": 50, "seconds": 1.0, **row}
                for number, row in enumerate(rows)
            ],
        )
        store.finish_trial(trial, "complete", score=accuracy, result=RESULT)
        found.append(trial)
    return tuple(found)


def finished(uri: str, name: str, store: Store, folder: Path, finding: ArmFinding) -> Projection:
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    projection.finish(COMPARISON, folder, findings={"blockout": finding})
    return projection


def test_the_run_of_an_arm_has_its_numbers_verdict_and_mean_curves(
    uri: str, name: str, store: Store, tmp_path: Path
) -> None:
    trials = retrained(store, name, 0.8, 0.9)
    finished(uri, name, store, tmp_path, ArmFinding("to ship", trials, trials[1]))
    arm = runs(uri, name)["blockout"]
    assert arm.info.status == "FINISHED"
    numbers = {
        "test/accuracy": 0.75,
        "best/val_accuracy": 0.85,
        "model/macs": 2000,
        "model/parameters": 1000,
        "arm/sample_passes": 400,
        "arm/seconds": 4.5,
    }
    assert numbers.items() <= arm.data.metrics.items()
    assert arm.data.tags["nas.verdict"] == "to ship"
    assert arm.data.tags["mlflow.note.content"] == "Arm `blockout`: structure\n\nto ship"
    assert history(uri, arm, "val/accuracy") == [(0, pytest.approx(0.425)), (1, pytest.approx(0.85))]


def test_writing_results_again_changes_nothing_and_new_results_replace_them(
    uri: str, name: str, store: Store, tmp_path: Path
) -> None:
    trials = retrained(store, name, 0.8, 0.9)
    finding = ArmFinding("to ship", trials, trials[1])
    finished(uri, name, store, tmp_path, finding)
    before = everything(uri, name)
    finished(uri, name, store, tmp_path, finding)
    assert everything(uri, name) == before
    changed = {"arms": {"blockout": {**COMPARISON["arms"]["blockout"], "test_accuracy": {"mean": 0.6}}}}
    more = (*trials, *retrained_later(store, name))
    extended = Projection(uri, name, CONFIG, store)
    extended.sync()
    extended.finish(changed, tmp_path, findings={"blockout": ArmFinding("worse than thin", more, trials[1])})
    arm = runs(uri, name)["blockout"]
    assert (arm.data.metrics["test/accuracy"], arm.data.tags["nas.verdict"]) == (0.6, "worse than thin")
    assert arm.data.tags["mlflow.note.content"].endswith("worse than thin")


def retrained_later(store: Store, name: str) -> tuple[int, ...]:
    trial = add(store, name, number=40, state="complete", epochs=2)
    return (trial,)


def test_an_experiment_of_an_earlier_release_gets_arms_and_no_run_twice(
    uri: str, name: str, store: Store, tmp_path: Path
) -> None:
    Projection(uri, name, CONFIG, store).sync()
    before = trials_alone(uri, name)
    without_arms(uri, name)
    assert len(runs(uri, name)) == 4
    done = Projection(uri, name, CONFIG, store, restore=True).sync()
    assert (done.written, done.present, done.restored) == (0, 3, 0)
    assert trials_alone(uri, name) == before
    found = runs(uri, name)
    parents = {found[title].data.tags["mlflow.parentRunId"] for title in before}
    assert parents == {found["blockout"].info.run_id}
    assert len(found) == 5


def test_the_run_of_an_arm_that_was_deleted_stays_so_until_it_is_restored(
    uri: str, name: str, store: Store, tmp_path: Path
) -> None:
    finished(uri, name, store, tmp_path, ArmFinding("to ship"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    arm = runs(uri, name)["blockout"].info.run_id
    client.delete_run(arm)
    finished(uri, name, store, tmp_path, ArmFinding("worse than thin"))
    assert "blockout" not in runs(uri, name)
    Projection(uri, name, CONFIG, store, restore=True).sync()
    assert runs(uri, name)["blockout"].info.run_id == arm


def test_what_people_have_written_about_an_arm_stays(uri: str, name: str, store: Store, tmp_path: Path) -> None:
    finished(uri, name, store, tmp_path, ArmFinding("to ship"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.set_tag(runs(uri, name)["blockout"].info.run_id, "mlflow.note.content", "ours since May")
    finished(uri, name, store, tmp_path, ArmFinding("worse than thin"))
    tags = runs(uri, name)["blockout"].data.tags
    assert (tags["mlflow.note.content"], tags["nas.verdict"]) == ("ours since May", "worse than thin")


def test_an_experiment_has_prepared_views_and_its_description_links_to_them(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    assert projection.sync().pages == projection.pages
    tags = experiment(uri, name).tags
    number = experiment(uri, name).experiment_id
    start = f"#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey="
    assert projection.pages["arms"] == f"{start}nas-arms"
    for address in projection.pages.values():
        assert f"]({address})" in tags["mlflow.note.content"]
        key = address.removeprefix(start).partition("&")[0]
        view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
        assert {"metrics.`test/accuracy`", "metrics.`model/macs`"} <= set(json.loads(view["state"])["selectedColumns"])
    assert json.loads(store.projections(name, PAGES_TARGET)[0].external_id) == projection.pages


def test_a_view_that_somebody_has_saved_again_stays(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    client, key = mlflow.MlflowClient(tracking_uri=uri), "mlflow.sharedViewState.nas-arms"
    found = experiment(uri, name)
    theirs = json.dumps({**json.loads(found.tags[key]), "updatedAt": 1, "state": "{}"})
    client.set_experiment_tag(found.experiment_id, key, theirs)
    client.set_experiment_tag(found.experiment_id, "mlflow.sharedViewState.nas-ranking", "no JSON")
    Projection(uri, name, CONFIG, store).sync()
    tags = experiment(uri, name).tags
    assert tags[key] == theirs
    assert "Arms by test accuracy" in tags["mlflow.sharedViewState.nas-ranking"]


def test_the_retrained_winners_have_a_page_that_compares_them(
    uri: str, name: str, store: Store, tmp_path: Path
) -> None:
    one, two = retrained(store, name, 0.8, 0.9)
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    findings = {"blockout": ArmFinding("to ship", (one,), one), "thin": ArmFinding("", (two,), two)}
    projection.finish(COMPARISON, tmp_path, findings=findings)
    by_trial = {run.data.tags["nas.trial"]: run.info.run_id for run in runs(uri, name).values()}
    for trial in (one, two):
        assert by_trial[str(trial)] in projection.pages["winners"]
    assert projection.pages["winners"].startswith("#/compare-runs?")
    assert json.loads(store.projections(name, PAGES_TARGET)[0].external_id) == projection.pages


def test_runs_say_who_wrote_them_and_with_what(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    for run in runs(uri, name).values():
        assert run.data.tags["mlflow.source.name"] == "nas-blockout"
        assert run.data.tags["mlflow.source.type"] == "LOCAL"
        assert run.data.tags["mlflow.user"]
        assert run.data.tags["mlflow.note.content"]
