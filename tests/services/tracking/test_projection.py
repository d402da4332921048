"""MLflow holds what the store does, however often and however interrupted it is written; a lost server is no harm."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
from mlflow.entities import Run

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.structure.branching import LayerCost, structure_of
from services.store import Store
from services.tracking import Projection, TrackingError, check, following
from services.tracking.follower import pause_after
from tests.services.processes import outputs_at_once
from tests.services.serving import closed_port

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = {
    "name": "example",
    "question": "Does it hold?",
    "budget": {"sample_passes": 400, "tolerance": 0.02},
    "arms": {"blockout": {"description": "structure"}},
}
EXPERIMENT = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4, 8]},
    "method": {"name": "blockout", "clusters": 4, "cost_target": None},
    "training": {"epochs": 3, "learning_rate": 0.01},
    "seed": 7,
    "architecture": {"clusters": 2, "layers": []},
}
RESULT = {
    "validation_accuracy": 0.8,
    "test_accuracy": 0.75,
    "parameters": 1000,
    "macs": 2000,
    "architecture_hash": "cafe",
    "gap": {"soft": 0.7, "hard": None},
}


@pytest.fixture
def uri(mlflow_uri: str) -> str:
    return mlflow_uri


@pytest.fixture
def name() -> str:
    """A study of this test alone, so that all may share the database."""
    return f"s{uuid.uuid4().hex[:10]}"


@pytest.fixture
def store(tmp_path: Path, name: str) -> Iterator[Store]:
    """A store with a study of four trials: complete, failed, pruned, running."""
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        opened.create_study(name, config=CONFIG, config_hash="cafe", arms=["blockout"])
        for number, state in enumerate(("complete", "failed", "pruned", "running")):
            add(opened, name, number=number, state=state)
        yield opened


def add(
    store: Store, study: str, *, number: int, state: str, epochs: int = 3, telemetry: dict[str, Any] | None = None
) -> int:
    row = store.add_trial(
        study, arm="blockout", phase="search", number=number, seed=7, experiment=EXPERIMENT, planned=150
    )
    store.start_attempt(row.id)
    store.record_epochs(row.id, [epoch(number, **(telemetry or {})) for number in range(epochs)])
    if state == "complete":
        store.finish_trial(row.id, state, score=0.8, result=RESULT)
    elif state != "running":
        store.finish_trial(row.id, state, reason="loss became nan in epoch 2" if state == "failed" else "behind")
    return row.id


def epoch(number: int, **telemetry: float) -> dict[str, Any]:
    return {
        "epoch": number,
        "stage": "learn",
        "sample_passes": 50 * (number + 1),
        "seconds": 0.5 * (number + 1),
        "train_loss": float("nan") if number == 2 else 1.5 - number,
        "validation_loss": float("inf") if number == 2 else 1.0,
        "validation_accuracy": (0.5, 0.9, 0.8)[number % 3],
        "telemetry": {"blockout/entropy/hidden": 0.25 * number, "blockout/widths": [1.0, 2.0], **telemetry},
    }


def runs(uri: str, study: str) -> dict[str, Run]:
    """All runs of a study by name; asserts that there are no two of one name."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"nas-blockout/{study}")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def history(uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in found)


def everything(uri: str, study: str) -> dict[str, Any]:
    return {
        key: (
            run.info.run_id,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.tags,
            run.data.params,
            {metric: history(uri, run, metric) for metric in run.data.metrics},
        )
        for key, run in runs(uri, study).items()
    }


def test_a_study_is_one_parent_and_a_child_for_every_ended_trial(uri: str, name: str, store: Store) -> None:
    done = Projection(uri, name, CONFIG, store).sync()
    assert (done.experiment, done.written, done.present) == (f"nas-blockout/{name}", 3, 0)
    found = runs(uri, name)
    assert set(found) == {name, "blockout-0-s7", "blockout-1-s7", "blockout-2-s7"}
    parent = found.pop(name)
    assert parent.data.params["budget.sample_passes"] == "400"
    assert "mlflow.parentRunId" not in parent.data.tags
    assert [(row.trial, row.external_id) for row in store.projections(name, "mlflow")] == [(None, parent.info.run_id)]
    for run in found.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


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
    assert (projection.sync().written, len(runs(uri, name))) == (2, 6)


@pytest.mark.parametrize("reached", ["create_run", "log_batch"])
def test_a_projection_that_was_cut_off_is_completed(uri: str, name: str, store: Store, reached: str) -> None:
    straight = Projection(uri, name, CONFIG, store)
    straight.sync(until=lambda: True)
    client = mlflow.MlflowClient(tracking_uri=uri)
    trial = store.trials(name)[0]
    tags = {"nas.trial": str(trial.id), "mlflow.parentRunId": straight.parent}
    experiment = client.get_experiment_by_name(straight.name)
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, run_name="blockout-0-s7", tags=tags)
    if reached == "log_batch":
        assert trial.started_at is not None
        when = int(trial.started_at.timestamp() * 1000) + 500
        client.log_metric(run.info.run_id, "val/accuracy", 0.5, timestamp=when, step=0)
    done = Projection(uri, name, CONFIG, store).sync()
    assert (done.written, done.present) == (3, 0)
    completed = runs(uri, name)["blockout-0-s7"]
    assert (completed.info.run_id, completed.info.status) == (run.info.run_id, "FINISHED")
    assert history(uri, completed, "val/accuracy") == [(0, 0.5), (1, 0.9), (2, 0.8)]
    assert completed.data.params["optim.lr"] == "0.01"


def test_a_parent_that_was_cut_off_is_completed(uri: str, name: str, store: Store) -> None:
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment(f"nas-blockout/{name}")
    run = client.create_run(experiment, run_name=name, tags={"nas.trial": "study"})
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    assert projection.parent == run.info.run_id
    assert runs(uri, name)[name].data.params["budget.tolerance"] == "0.02"


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


ARMS = {"arms": {"blockout": {"test_accuracy": {"mean": 0.75}}, "thin": {"test_accuracy": None}}}


def artifacts(uri: str, run: Run, place: str | None = None) -> dict[str, str]:
    """Paths of all artifacts of a run, and their contents."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    found: dict[str, str] = {}
    for file in client.list_artifacts(run.info.run_id, place):
        if file.is_dir:
            found |= artifacts(uri, run, file.path)
        else:
            found[file.path] = Path(client.download_artifacts(run.info.run_id, file.path)).read_text()
    return found


def test_a_finished_study_has_its_outcome_and_files(uri: str, name: str, store: Store, folder: Path) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.finish(ARMS, folder)
    before = everything(uri, name)
    Projection(uri, name, CONFIG, store).finish(ARMS, folder)
    assert everything(uri, name) == before
    parent = runs(uri, name)[name]
    assert parent.info.status == "FINISHED"
    assert history(uri, parent, "test/accuracy/blockout") == [(0, 0.75)]
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
    assert set(runs(uri, name)) == {name, "blockout-0-s7", "blockout-1-s7", "blockout-2-s7"}


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
    assert len(runs(uri, name)) == 5


@contextmanager
def deaf_server() -> Iterator[int]:
    """A server that hangs up on whoever calls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def hang_up() -> None:
            while not ended.is_set():
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_that_is_away_is_one_error_without_its_password(name: str, store: Store) -> None:
    address = f"http://someone:hunter2@127.0.0.1:{closed_port()}"
    for reach in (check, lambda uri: Projection(uri, name, CONFIG, store)):
        with pytest.raises(TrackingError, match="MLflow does not answer at http://someone:") as caught:
            reach(address)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_server_that_hangs_up_is_the_same_error() -> None:
    with deaf_server() as port, pytest.raises(TrackingError, match=f"127.0.0.1:{port}"):
        check(f"http://127.0.0.1:{port}")


def test_a_file_that_is_no_database_is_the_same_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database\n" * 200)
    with pytest.raises(TrackingError, match="does not answer"):
        check(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_training_goes_on_while_the_server_is_away(name: str, store: Store) -> None:
    with following(f"http://127.0.0.1:{closed_port()}", name, CONFIG, store, pause_seconds=0.01):
        store.finish_trial(store.trials(name, state="running")[0].id, "complete", score=0.8, result=RESULT)
    assert not [thread for thread in threading.enumerate() if thread.name == "tracking"]


def test_trials_are_followed_as_they_end(uri: str, name: str, store: Store) -> None:
    client, deadline = mlflow.MlflowClient(tracking_uri=uri), time.monotonic() + 60
    with following(uri, name, CONFIG, store, pause_seconds=0.01):
        while client.get_experiment_by_name(f"nas-blockout/{name}") is None or len(runs(uri, name)) < 4:
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.05)
    assert set(runs(uri, name)) == {name, "blockout-0-s7", "blockout-1-s7", "blockout-2-s7"}


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, 10.0), (0.2, 10.0), (0.5, 25.0), (1.2, 60.0), (30.0, 60.0)])
def test_a_long_round_is_followed_by_a_long_pause(seconds: float, pause: float) -> None:
    assert pause_after(seconds) == pytest.approx(pause)


def test_nothing_follows_where_mlflow_is_off(name: str, store: Store) -> None:
    with following(None, name, CONFIG, store):
        assert not [thread for thread in threading.enumerate() if thread.name == "tracking"]
