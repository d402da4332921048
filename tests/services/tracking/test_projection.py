"""MLflow holds what the store does, however often and however interrupted it is written; a lost server is no harm."""

import json
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import pytest

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.structure.branching import LayerCost, structure_of
from services.store import Store
from services.tracking import Projection, TrackingError, following
from services.tracking.follower import pause_after
from services.tracking.run_values import begin_of, tags_of
from tests.services.processes import outputs_at_once
from tests.services.serving import closed_port
from tests.services.tracking.example import ARMS, CONFIG, EXPERIMENT, RESULT, add, artifacts, everything, history, runs

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_study_is_its_run_one_for_each_arm_and_below_it_one_for_each_ended_trial(
    uri: str, name: str, store: Store
) -> None:
    done = Projection(uri, name, CONFIG, store).sync()
    assert (done.experiment, done.written, done.present) == (f"nas-blockout/{name}", 3, 0)
    found = runs(uri, name)
    assert set(found) == {name, "blockout", "blockout-0-s7", "blockout-1-s7", "blockout-2-s7"}
    parent, arm = found.pop(name), found.pop("blockout")
    assert (arm.data.tags["nas.phase"], arm.data.tags["nas.arm"]) == ("arm", "blockout")
    assert arm.data.tags["mlflow.note.content"] == "Arm `blockout`: structure"
    assert (parent.data.tags["nas.budget.sample_passes"], parent.data.tags["nas.arms"]) == ("400", "blockout")
    assert parent.data.params == {"name": "example"}
    assert not [run for run in (parent, arm) if "mlflow.parentRunId" in run.data.tags]
    assert [(row.trial, row.external_id) for row in store.projections(name, "mlflow")] == [(None, parent.info.run_id)]
    for run in found.values():
        assert run.data.tags["mlflow.parentRunId"] == arm.info.run_id


def test_a_trial_has_its_parameters_tags_and_curves(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    run = runs(uri, name)["blockout-0-s7"]
    assert run.info.status == "FINISHED"
    params = {
        "data.name": "digits",
        "model.name": "convnet",
        "model.channels": "[4, 8]",
        "method.name": "blockout",
        "blockout.clusters": "4",
        "optim.lr": "0.01",
        "seed": "7",
    }
    assert params.items() <= run.data.params.items()
    assert not any(key.startswith("architecture") for key in run.data.params)
    tags = {
        "nas.study": name,
        "nas.arm": "blockout",
        "nas.method": "blockout",
        "nas.phase": "search",
        "nas.seed": "7",
        "nas.architecture": "cafe",
        "nas.status": "complete",
    }
    assert tags.items() <= run.data.tags.items()
    assert history(uri, run, "val/accuracy") == [(0, 0.5), (1, 0.9), (2, 0.8)]
    assert history(uri, run, "blockout/entropy/hidden") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert history(uri, run, "cost/seconds") == [(0, 0.5), (1, 1.0), (2, 1.5)]
    final = {"best/val_accuracy": 0.9, "test/accuracy": 0.75, "model/parameters": 1000.0, "model/macs": 2000.0}
    assert final.items() <= run.data.metrics.items()
    assert history(uri, run, "test/accuracy") == [(0, 0.75)]


def test_a_trial_tells_how_far_its_network_branches(uri: str, name: str, store: Store) -> None:
    groups = ((Group((0,), 3), Group((1,), 5)), (Group((0,), 1, (0,)), Group((1,), 1, (1,))))
    network = Architecture(2, tuple(Layer(n, g) for n, g in zip(("hidden", "classes"), groups, strict=True)))
    costs = [LayerCost(16, 1, 1, 2), LayerCost(2, 1, 1, 1)]
    structure = structure_of(network, costs=costs, inputs=4).to_json()
    for number, result in enumerate(({"structure": structure}, {"architecture": network.to_json()}), start=4):
        row = store.add_trial(
            name, arm="blockout", phase="search", number=number, seed=7, experiment=EXPERIMENT, planned=150
        )
        store.start_attempt(row.id)
        store.finish_trial(row.id, "complete", score=0.8, result={"validation_accuracy": 0.8, **result})
    Projection(uri, name, CONFIG, store).sync()
    found = runs(uri, name)
    told, older = found["blockout-4-s7"], found["blockout-5-s7"]
    for run in (told, older):
        assert run.data.metrics["structure/groups/hidden"] == 2
        assert run.data.metrics["structure/density/classes"] == 0.5
        assert run.data.tags["nas.branches"].startswith("2 branches: groups of nodes 2 in hidden, 2 in classes")
    assert told.data.metrics["structure/exclusive_macs"] == 4 * 8 + 3 + 5
    assert "structure/exclusive_macs" not in older.data.metrics
    assert not [key for key in found["blockout-0-s7"].data.metrics if key.startswith("structure/")]


def test_what_is_no_number_is_no_metric(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    run = runs(uri, name)["blockout-0-s7"]
    assert history(uri, run, "train/loss") == [(0, 1.5), (1, 0.5)]
    assert history(uri, run, "val/loss") == [(0, 1.0), (1, 1.0)]
    assert {"gap/hard", "blockout/widths"}.isdisjoint(run.data.metrics)
    assert run.data.metrics["gap/soft"] == 0.7


def test_trials_that_did_not_complete_say_why(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    found = runs(uri, name)
    failed, pruned = found["blockout-1-s7"], found["blockout-2-s7"]
    assert (failed.info.status, failed.data.tags["nas.status"]) == ("FAILED", "failed")
    assert failed.data.tags["nas.reason"] == "loss became nan in epoch 2"
    assert (pruned.info.status, pruned.data.tags["nas.reason"]) == ("KILLED", "behind")


def test_moments_are_those_of_the_store(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    trial = store.trials(name)[0]
    assert trial.started_at is not None
    assert trial.finished_at is not None
    run = runs(uri, name)["blockout-0-s7"]
    assert run.info.start_time == int(trial.started_at.timestamp() * 1000)
    assert run.info.end_time == int(trial.finished_at.timestamp() * 1000)


def test_writing_again_changes_nothing(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    before = everything(uri, name)
    assert projection.sync().written == 0
    again = Projection(uri, name, CONFIG, store).sync()
    assert (again.written, again.present) == (0, 3)
    assert everything(uri, name) == before


def test_only_what_is_new_is_written(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    running = store.trials(name, state="running")[0].id
    store.finish_trial(running, "complete", score=0.8, result=RESULT)
    add(store, name, number=4, state="complete")
    assert (projection.sync().written, len(runs(uri, name))) == (2, 7)


@pytest.mark.parametrize("reached", ["create_run", "log_batch"])
def test_a_projection_that_was_cut_off_is_completed(uri: str, name: str, store: Store, reached: str) -> None:
    straight = Projection(uri, name, CONFIG, store)
    straight.sync(until=lambda: True)
    client = mlflow.MlflowClient(tracking_uri=uri)
    trial = store.trials(name)[0]
    tags = tags_of(trial, identity=straight.identity, parent=straight.parent)
    experiment = client.get_experiment_by_name(straight.name)
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, begin_of(trial), run_name="blockout-0-s7", tags=tags)
    if reached == "log_batch":
        client.log_metric(run.info.run_id, "val/accuracy", 0.5, timestamp=begin_of(trial) + 500, step=0)
    done = Projection(uri, name, CONFIG, store).sync()
    assert (done.written, done.present) == (3, 0)
    completed = runs(uri, name)["blockout-0-s7"]
    assert (completed.info.run_id, completed.info.status) == (run.info.run_id, "FINISHED")
    assert history(uri, completed, "val/accuracy") == [(0, 0.5), (1, 0.9), (2, 0.8)]
    assert completed.data.params["optim.lr"] == "0.01"


def test_a_parent_that_was_cut_off_is_completed(uri: str, name: str, store: Store) -> None:
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment(f"nas-blockout/{name}")
    began = int(store.study(name).created_at.timestamp() * 1000)
    run = client.create_run(experiment, began, run_name=name, tags={"nas.trial": "study"})
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    assert projection.parent == run.info.run_id
    completed = runs(uri, name)[name].data
    assert (completed.tags["nas.budget.tolerance"], completed.params["name"]) == ("0.02", "example")


def test_more_than_one_request_holds_is_written_whole(uri: str, name: str, store: Store) -> None:
    add(store, name, number=9, state="complete", epochs=90, telemetry={f"part{n}": 0.5 for n in range(30)})
    Projection(uri, name, {**CONFIG, "many": {f"key{n}": n for n in range(120)}}, store).sync()
    found = runs(uri, name)
    assert all(len(history(uri, found["blockout-9-s7"], f"part{n}")) == 90 for n in range(30))
    assert len([key for key in found[name].data.params if key.startswith("many.")]) == 120


def test_of_long_curves_about_a_hundred_points_are_written(uri: str, name: str, store: Store) -> None:
    for number, epochs in ((7, 100), (8, 101), (9, 251)):
        add(store, name, number=number, state="complete", epochs=epochs)
    Projection(uri, name, CONFIG, store).sync()
    found = runs(uri, name)
    steps = {n: [step for step, _ in history(uri, found[f"blockout-{n}-s7"], "val/accuracy")] for n in (7, 8, 9)}
    assert steps == {7: list(range(100)), 8: list(range(0, 101, 2)), 9: list(range(1, 251, 3))}
    assert max(len(store.epochs(row.id)) for row in store.trials(name)) == 251


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a finished study."""
    found = tmp_path / "study"
    (found / "report" / "figures").mkdir(parents=True)
    (found / "report" / "index.html").write_text("<p>report</p>")
    (found / "report" / "figures" / "gap.svg").write_text("<svg/>")
    (found / "comparison.json").write_text("{}")
    return found


def test_a_finished_study_has_its_outcome_and_files(uri: str, name: str, store: Store, folder: Path) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.finish(ARMS, folder)
    before = everything(uri, name)
    Projection(uri, name, CONFIG, store).finish(ARMS, folder)
    assert everything(uri, name) == before
    parent = runs(uri, name)[name]
    assert parent.info.status == "FINISHED"
    assert history(uri, runs(uri, name)["blockout"], "test/accuracy") == [(0, 0.75)]
    Projection(uri, name, CONFIG, store).finish(ARMS, folder, tags={"nas.recommended": "blockout"})
    assert runs(uri, name)[name].data.tags["nas.recommended"] == "blockout"
    expected = {"comparison.json": "{}", "report/index.html": "<p>report</p>", "figures/gap.svg": "<svg/>"}
    assert artifacts(uri, parent) == expected


def test_files_are_sent_again_only_if_they_changed(uri: str, name: str, store: Store, folder: Path) -> None:
    Projection(uri, name, CONFIG, store).finish(ARMS, folder)
    parent = runs(uri, name)[name]
    there = Path(urlsplit(parent.info.artifact_uri).path) / "figures" / "gap.svg"
    assert there.is_file()
    there.write_text("marked")
    Projection(uri, name, CONFIG, store).finish(ARMS, folder)
    assert artifacts(uri, parent)["figures/gap.svg"] == "marked"
    (folder / "report" / "figures" / "gap.svg").write_text("<svg>2</svg>")
    Projection(uri, name, CONFIG, store).finish(ARMS, folder)
    assert artifacts(uri, parent)["figures/gap.svg"] == "<svg>2</svg>"


def test_processes_that_write_at_once_write_every_run_once(uri: str, name: str, store: Store) -> None:
    code = (
        "import json, sys; from services.store import Store; from services.tracking import Projection\n"
        "uri, name, config, url = sys.argv[1:]\n"
        "with Store.open(url) as store:\n"
        "    projection = Projection(uri, name, json.loads(config), store)\n"
        "    print('ready', flush=True); input()\n"
        "    print(projection.sync().written)"
    )
    printed = outputs_at_once(code, uri, name, json.dumps(CONFIG), store.url, number=3)
    assert sorted(map(int, printed)) == [0, 0, 3]
    assert set(runs(uri, name)) == {name, "blockout", "blockout-0-s7", "blockout-1-s7", "blockout-2-s7"}


def test_whoever_does_not_wait_is_told_that_another_writes(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    with store.sync_lock(name, "mlflow"), pytest.raises(TrackingError, match="another process"):
        projection.sync(wait_seconds=0.0)
    assert projection.sync().written == 3


def test_what_another_process_has_written_is_not_written_again(uri: str, name: str, store: Store) -> None:
    first, second = (Projection(uri, name, CONFIG, store) for _ in range(2))
    assert first.sync().written == 3
    assert (second.sync().written, second.sync().present) == (0, 3)
    add(store, name, number=8, state="complete")
    assert (second.sync().written, first.sync().written) == (1, 0)
    assert len(runs(uri, name)) == 6


def test_training_goes_on_while_the_server_is_away(name: str, store: Store) -> None:
    told: list[str] = []
    uri, deadline = f"http://127.0.0.1:{closed_port()}", time.monotonic() + 60
    with following(uri, name, CONFIG, store, warn=told.append, pause_seconds=0.01):
        store.finish_trial(store.trials(name, state="running")[0].id, "complete", score=0.8, result=RESULT)
        while not told:
            assert time.monotonic() < deadline, "nobody was told"
            time.sleep(0.01)
    assert told[0].startswith(f"warning: MLflow does not answer at {uri}: ")
    assert told[0].endswith("; the training goes on")
    assert not [thread for thread in threading.enumerate() if thread.name == "tracking"]


def test_trials_are_followed_as_they_end(uri: str, name: str, store: Store) -> None:
    client, deadline = mlflow.MlflowClient(tracking_uri=uri), time.monotonic() + 60
    told: list[str] = []
    with following(uri, name, CONFIG, store, warn=told.append, pause_seconds=0.01):
        while client.get_experiment_by_name(f"nas-blockout/{name}") is None or len(runs(uri, name)) < 5:
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.05)
    assert set(runs(uri, name)) == {name, "blockout", "blockout-0-s7", "blockout-1-s7", "blockout-2-s7"}
    assert told == []


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, 10.0), (0.2, 10.0), (0.5, 25.0), (1.2, 60.0), (30.0, 60.0)])
def test_a_long_round_is_followed_by_a_long_pause(seconds: float, pause: float) -> None:
    assert pause_after(seconds) == pytest.approx(pause)


def test_nothing_follows_where_mlflow_is_off(name: str, store: Store) -> None:
    with following(None, name, CONFIG, store):
        assert not [thread for thread in threading.enumerate() if thread.name == "tracking"]
