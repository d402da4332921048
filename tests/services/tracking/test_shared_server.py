"""Several stores on one MLflow, with studies of one name and trials of the same numbers: each keeps what is its own."""

import re
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Experiment, ViewType
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from services.settings import sqlite_url
from services.store import Store
from services.tracking import Projection, TrackingError
from services.tracking.mlflow_client import as_mlflow_reads
from services.tracking.relocation import relocate
from tests.services.tracking.example import ARMS, CONFIG, RESULT, add, artifacts, everything, filled, runs

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def other(tmp_path: Path, name: str) -> Iterator[Store]:
    """Another store, with a study of the same name, whose trials have the same numbers and arms."""
    with filled(tmp_path / "other.db", name, ("complete", "complete", "failed", "pruned", "complete")) as opened:
        yield opened


def client_of(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=uri)


def experiment(uri: str, name: str) -> Experiment:
    found = client_of(uri).get_experiment_by_name(f"nas-blockout/{name}")
    assert found is not None
    return found


def execute(uri: str, *statements: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        for statement in statements:
            database.execute(statement)


TABLES_OF_RUNS = ("tags", "params", "metrics", "latest_metrics", "runs")


def without_arms(uri: str, name: str) -> None:
    """Leave an experiment as releases wrote it that had no runs of arms: every trial is a child of the study."""
    parent = runs(uri, name)[name].info.run_id
    arms = [run.info.run_id for run in runs(uri, name).values() if run.data.tags["nas.trial"] == "arm"]
    number = int(experiment(uri, name).experiment_id)
    execute(
        uri,
        *(f"DELETE FROM {table} WHERE run_uuid = '{arm}'" for arm in arms for table in TABLES_OF_RUNS),
        f"UPDATE tags SET value = '{parent}' WHERE key = 'mlflow.parentRunId' AND run_uuid IN "
        f"(SELECT run_uuid FROM runs WHERE experiment_id = {number})",
        f"DELETE FROM experiment_tags WHERE experiment_id = {number} AND key LIKE 'mlflow.sharedViewState.%'",
    )


def trials_alone(uri: str, name: str) -> dict[str, Any]:
    """The runs of trials, but for whose children they are."""
    found = {title: run for title, run in everything(uri, name).items() if run[4]["nas.trial"].isdecimal()}
    for run in found.values():
        del run[4]["mlflow.parentRunId"]
    return found


def forget_identities(uri: str, name: str) -> None:
    """Leave an experiment as releases wrote it that had no identities."""
    without_arms(uri, name)
    number = int(experiment(uri, name).experiment_id)
    of_runs = f"run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = {number})"
    execute(
        uri,
        f"DELETE FROM experiment_tags WHERE experiment_id = {number}",
        f"DELETE FROM tags WHERE key IN ('nas.study_uuid', 'nas.store_uuid') AND {of_runs}",
    )


def finish(uri: str, name: str, store: Store, folder: Path, text: str) -> Projection:
    """Write a study whose comparison is the text."""
    folder.mkdir(exist_ok=True)
    (folder / "comparison.json").write_text(text)
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    projection.finish(ARMS, folder)
    return projection


def trials_of(uri: str, name: str) -> list[str]:
    return sorted(run.data.tags["nas.trial"] for run in runs(uri, name).values())


def test_two_homes_with_one_study_name_lose_nothing(
    uri: str, name: str, store: Store, other: Store, tmp_path: Path
) -> None:
    finish(uri, name, store, tmp_path / "one", "first")
    before = everything(uri, name)
    second = finish(uri, name, other, tmp_path / "two", "second")
    identity = other.study(name).uuid
    assert second.name == f"nas-blockout/{name}.{identity[:8]}"
    assert second.notes == [
        f"nas-blockout/{name} in MLflow is a study of another store: this one is in {second.name}",
    ]
    finish(uri, name, store, tmp_path / "one", "first")
    assert everything(uri, name) == before
    apart = f"{name}.{identity[:8]}"
    assert (trials_of(uri, name), trials_of(uri, apart)) == (
        ["1", "2", "3", "arm", "arm", "study"],  # both arms of the comparison
        ["1", "2", "3", "4", "5", "arm", "arm", "study"],
    )
    for title, of, text in ((name, store, "first"), (apart, other, "second")):
        assert artifacts(uri, runs(uri, title)[name]) == {"comparison.json": text}
        tags = {"nas.store_uuid": of.identity(), "nas.study_uuid": of.study(name).uuid, "nas.study": name}
        assert tags.items() <= experiment(uri, title).tags.items()
        assert all(tags.items() <= run.data.tags.items() for run in runs(uri, title).values())


def test_two_homes_that_come_at_the_same_moment_have_an_experiment_each(
    uri: str, name: str, store: Store, other: Store
) -> None:
    together = threading.Barrier(2)

    def write(of: Store) -> tuple[str, int]:
        projection = Projection(uri, name, CONFIG, of)
        together.wait()
        done = projection.sync()
        return done.experiment, done.written

    with ThreadPoolExecutor(2) as pool:
        (one, three), (two, five) = pool.map(write, (store, other))
    assert (three, five) == (3, 5)
    assert f"nas-blockout/{name}" in (one, two)
    assert one != two


def test_an_experiment_that_was_renamed_is_still_that_of_the_study(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    client_of(uri).rename_experiment(experiment(uri, name).experiment_id, f"nas-blockout/{name}.of-mine")
    again = Projection(uri, name, CONFIG, store)
    assert (again.sync().present, again.name, again.notes) == (3, f"nas-blockout/{name}.of-mine", [])
    assert again.parent == projection.parent


def test_runs_of_a_release_without_identities_are_adopted_once(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    before, study = trials_alone(uri, name), runs(uri, name)[name].info.run_id
    forget_identities(uri, name)
    adopted = Projection(uri, name, CONFIG, store)
    assert (adopted.sync().written, adopted.sync().present, adopted.notes) == (0, 3, [])
    assert (trials_alone(uri, name), adopted.parent) == (before, study)
    assert experiment(uri, name).tags["nas.study_uuid"] == store.study(name).uuid


def test_of_an_experiment_that_two_stores_had_mixed_each_gets_its_own(
    uri: str, name: str, store: Store, other: Store
) -> None:
    """As releases without identities left it: the second store took runs of the first for its own, and added two."""
    first = Projection(uri, name, CONFIG, store)
    first.sync()
    client = client_of(uri)
    for trial in other.trials(name)[3:]:
        tags = {"nas.trial": str(trial.id), "nas.arm": trial.arm, "nas.seed": str(trial.seed)}
        began = int((trial.started_at or trial.created_at).timestamp() * 1000)
        client.create_run(experiment(uri, name).experiment_id, began, run_name=f"theirs-{trial.id}", tags=tags)
    forget_identities(uri, name)
    second = Projection(uri, name, CONFIG, other)
    assert (second.sync().written, second.name) == (5, f"nas-blockout/{name}.{other.study(name).uuid[:8]}")
    again = Projection(uri, name, CONFIG, store)
    assert (again.sync().present, again.parent) == (3, first.parent)
    assert again.notes == [
        f"2 runs in nas-blockout/{name} are of another store or of a trial that is no more: they stay"
    ]
    add(store, name, number=4, state="complete")  # the number of a run of the other store
    assert again.sync().written == 1
    assert "theirs-5" in runs(uri, name)


def test_an_experiment_of_something_else_is_left_alone(uri: str, name: str, store: Store) -> None:
    client = client_of(uri)
    number = client.create_experiment(f"nas-blockout/{name}")
    client.create_run(number, run_name="by hand")
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    assert projection.name == f"nas-blockout/{name}.{store.study(name).uuid[:8]}"
    assert set(runs(uri, name)) == {"by hand"}


def test_a_trial_that_a_restored_backup_has_otherwise_is_written_beside_the_old_run(
    uri: str, name: str, store: Store, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "store.db")) as source, closing(sqlite3.connect(tmp_path / "b.db")) as copy:
        source.backup(copy)
    add(store, name, number=4, state="complete")
    assert Projection(uri, name, CONFIG, store).sync().written == 4
    lost = runs(uri, name)["blockout-4-s7"].info.run_id
    with Store.open(f"sqlite:///{tmp_path / 'b.db'}") as restored:
        add(restored, name, number=4, state="failed")
        assert (restored.identity(), restored.study(name)) == (store.identity(), store.study(name))
        done = Projection(uri, name, CONFIG, restored).sync()
    assert (done.written, done.present) == (1, 3)
    found = client_of(uri).search_runs([experiment(uri, name).experiment_id], "attributes.run_name = 'blockout-4-s7'")
    assert {(run.info.run_id == lost, run.info.status) for run in found} == {(True, "FINISHED"), (False, "FAILED")}


def test_deleted_runs_stay_deleted_until_somebody_asks_for_them(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    before = everything(uri, name)
    for number in (0, 1):
        client_of(uri).delete_run(before[f"blockout-{number}-s7"][0])
    left = Projection(uri, name, CONFIG, store)
    assert (left.sync().written, len(runs(uri, name))) == (0, 3)
    assert left.notes == [f"2 runs were deleted in MLflow: `nas-blockout sync {name}` restores them"]
    asked = Projection(uri, name, CONFIG, store, restore=True).sync()
    assert (asked.written, asked.present, asked.restored) == (0, 3, 2)
    assert everything(uri, name) == before


@pytest.mark.parametrize("what", ["experiment", "run"])
def test_a_deleted_study_says_how_to_restore_it_and_is_restored(uri: str, name: str, store: Store, what: str) -> None:
    Projection(uri, name, CONFIG, store).sync()
    before = everything(uri, name)
    if what == "experiment":
        client_of(uri).delete_experiment(experiment(uri, name).experiment_id)
    else:
        client_of(uri).delete_run(before[name][0])
    with pytest.raises(TrackingError, match=rf"has been deleted: .*`nas-blockout sync {name}` restores it"):
        Projection(uri, name, CONFIG, store).sync()
    restoring = Projection(uri, name, CONFIG, store, restore=True)
    assert (restoring.sync().written, len(restoring.notes)) == (0, 1)
    assert everything(uri, name) == before


def test_trials_whose_study_was_removed_for_good_get_another(uri: str, name: str, store: Store) -> None:
    first = Projection(uri, name, CONFIG, store)
    first.sync()
    execute(
        uri, *(f"DELETE FROM {table} WHERE run_uuid = '{first.parent}'" for table in TABLES_OF_RUNS)
    )  # as `mlflow gc` does
    second = Projection(uri, name, CONFIG, store)
    assert second.sync().present == 3
    assert second.parent != first.parent
    assert len(runs(uri, name)) == 5


def test_settings_that_an_extension_changes_are_tags_that_change(uri: str, name: str, store: Store) -> None:
    config: dict[str, Any] = {
        **CONFIG,
        "seed": 3,
        "workers": {"max_concurrent_trials": 2},
        "retrain": {"seeds": [0, 1]},
    }
    config["budget"] = {"sample_passes": 400, "seconds": 60}
    Projection(uri, name, config, store).sync()
    config |= {
        "workers": {"max_concurrent_trials": 8},
        "retrain": {"seeds": [0, 1, 2]},
        "budget": {"sample_passes": 900},
    }
    config["arms"] = {"blockout": {}, "dense": {}}
    Projection(uri, name, config, store).sync()
    parent = runs(uri, name)[name].data
    assert parent.params == {"name": "example", "seed": "3"}
    tags = {"nas.budget.sample_passes": "900", "nas.retrain.seeds": "[0, 1, 2]", "nas.arms": "blockout, dense"}
    assert {**tags, "nas.workers.max_concurrent_trials": "8"}.items() <= parent.tags.items()
    assert "nas.budget.seconds" not in parent.tags, "a limit that there is no more"
    without = {key: value for key, value in config.items() if key != "workers"}
    Projection(uri, name, without, store).sync()
    assert runs(uri, name)[name].data.tags["nas.workers.max_concurrent_trials"] == "8"


def test_a_description_is_cut_to_what_mlflow_takes(uri: str, name: str, store: Store) -> None:
    arms = {f"arm-{number}": {"description": "x" * 80} for number in range(100)}
    Projection(uri, name, {**CONFIG, "arms": arms}, store).sync(until=lambda: True)
    assert len(experiment(uri, name).tags["mlflow.note.content"]) == 4000


def test_the_pages_have_a_description_and_the_kind_and_leave_what_people_wrote(
    uri: str, name: str, store: Store
) -> None:
    Projection(uri, name, CONFIG, store).sync()
    tags = experiment(uri, name).tags
    assert tags["mlflow.note.content"].partition(". ")[2] == "Does it hold?\n\nArms:\n\n- `blockout`: structure"
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    Projection(uri, name, {**CONFIG, "arms": {"dense": {}}}, store).sync()  # an extension has another arm
    assert experiment(uri, name).tags["mlflow.note.content"].endswith("Does it hold?\n\nArms:\n\n- `dense`")
    client_of(uri).set_experiment_tag(experiment(uri, name).experiment_id, "mlflow.note.content", "Mine")
    Projection(uri, name, CONFIG, store).sync()
    assert experiment(uri, name).tags["mlflow.note.content"] == "Mine"


@pytest.fixture
def home(uri: str, tmp_path: Path) -> Path:
    """A folder with an MLflow database of its own."""
    (tmp_path / "home").mkdir()
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "home" / "mlflow.db")
    return tmp_path / "home"


def test_a_home_of_any_name_has_mlflow_inside_and_nothing_beside(
    home: Path, name: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "homes").mkdir()
    odd = home.rename(tmp_path / "homes" / "a b#c?d%20e")
    uri = sqlite_url(odd / "mlflow.db")
    finish(uri, name, store, odd / "study", "first")
    assert runs(as_mlflow_reads(uri), name)[name]
    assert list((odd / "mlartifacts").rglob("comparison.json"))
    assert list((tmp_path / "homes").iterdir()) == [odd]


def test_a_moved_home_never_writes_to_the_old_place(home: Path, name: str, store: Store, tmp_path: Path) -> None:
    finish(f"sqlite:///{home / 'mlflow.db'}", name, store, tmp_path / "study", "first")
    assert list((home / "mlartifacts").rglob("comparison.json"))
    moved = home.rename(tmp_path / "moved")
    _artifact_repos_cache.clear()  # of this process, which MLflow fills by run; whoever moves a home starts another
    uri = f"sqlite:///{moved / 'mlflow.db'}"
    again = finish(uri, name, store, tmp_path / "study", "second")
    assert not home.exists()
    assert again.notes == [
        f"MLflow's files were recorded in {home.as_uri()}/mlartifacts, and are now in {moved.as_uri()}/mlartifacts: "
        "their database was moved"
    ]
    parent = runs(uri, name)[name]
    assert artifacts(uri, parent) == {"comparison.json": "second"}
    assert finish(uri, name, store, tmp_path / "study", "second").notes == []


@pytest.mark.parametrize(
    ("uri", "recorded"),
    [
        ("http://127.0.0.1:5000", "file:///old/mlartifacts/x"),
        ("sqlite:////new/mlflow.db", "file:///new/mlartifacts/x"),
        ("sqlite:////new/mlflow.db", "s3://bucket/mlartifacts/x"),
        ("sqlite:////new/mlflow.db", "file:///somewhere/else/x"),
    ],
)
def test_places_that_this_program_did_not_give_stay(uri: str, recorded: str) -> None:
    assert relocate(uri, recorded) is None


def test_names_of_studies_of_other_stores_cannot_be_names_of_studies(store: Store) -> None:
    name = f"{'a' * 55}.{uuid.uuid4().hex[:8]}"
    with pytest.raises(ValueError, match=re.escape(name)):
        store.create_study(name, config={}, config_hash="x", arms=["a"])


def test_no_run_is_made_twice_by_what_is_deleted(uri: str, name: str, store: Store) -> None:
    Projection(uri, name, CONFIG, store).sync()
    client_of(uri).delete_run(runs(uri, name)["blockout-0-s7"].info.run_id)
    store.finish_trial(store.trials(name, state="running")[0].id, "complete", score=0.8, result=RESULT)
    Projection(uri, name, CONFIG, store).sync()
    Projection(uri, name, CONFIG, store, restore=True).sync()
    every = client_of(uri).search_runs([experiment(uri, name).experiment_id], run_view_type=ViewType.ALL)
    assert sorted(run.data.tags["nas.trial"] for run in every) == ["1", "2", "3", "4", "arm", "study"]
