"""A purge removes files, shared files, MLflow's runs and rows; it completes whatever was interrupted."""

import shutil
import uuid
from dataclasses import replace

import pytest

from services.files.shared_place import claim_place
from services.removal import TidyRound, purge
from services.settings import Settings
from services.store import Store
from services.tracking import Projection, TrackingUnreachable
from services.tracking.experiments import PREFIX
from tests.services.serving import closed_port, settings_of
from tests.services.tracking.example import filled

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return replace(settings_of(tmp_path), artifacts=f"file://{tmp_path}/shared")


@pytest.fixture
def deleted(tmp_path, settings):
    """A store with a deleted study that has files here and on shared storage."""
    name = f"s{uuid.uuid4().hex[:10]}"
    with filled(tmp_path / "store.db", name) as store:
        store.finish_study(name, "cancelled")
        claim_place(settings, store, store.study(name), log=print)
        for folder in (settings.folder(name), tmp_path / "shared" / name):
            (folder / "models").mkdir(parents=True)
            (folder / "models" / "model.onnx").touch()
        store.delete_study(name, grace_seconds=0.0, by="ann")
        yield store, name


def test_nothing_is_left(deleted, settings, tmp_path):
    store, name = deleted
    assert purge(settings, store, name)
    assert not settings.folder(name).exists()
    assert not (tmp_path / "shared" / name).exists()
    assert not store.has_study(name)
    assert not purge(settings, store, name)


def test_a_folder_of_another_stores_study_is_kept(deleted, settings, tmp_path):
    store, name = deleted
    (tmp_path / "shared" / name / ".owners" / "another").touch()
    assert purge(settings, store, name)
    assert (tmp_path / "shared" / name / "models" / "model.onnx").exists()


def test_runs_are_deleted_in_mlflow_and_names_are_free(deleted, settings, mlflow_uri):
    store, name = deleted
    at = replace(settings, tracking_uri=mlflow_uri)
    projection = Projection(mlflow_uri, name, {}, store)
    projection.sync()
    client = projection._client
    experiment = client.get_experiment_by_name(PREFIX + name).experiment_id
    assert client.search_runs([experiment])
    assert purge(at, store, name)
    assert client.search_runs([experiment]) == []
    assert client.get_experiment(experiment).lifecycle_stage == "deleted"
    assert client.get_experiment_by_name(PREFIX + name) is None


def test_what_fails_is_told_once_and_tried_again(deleted, settings):
    store, name = deleted
    store.record_projection(name, target="mlflow", external_id="x")
    away = replace(settings, tracking_uri=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(TrackingUnreachable):
        purge(away, store, name)
    assert settings.folder(name).exists()
    lines: list[str] = []
    tidy = TidyRound(away, store, log=lines.append)
    tidy()
    tidy()
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: not purged yet: MLflow does not answer")
    TidyRound(settings, store, log=lines.append)()
    assert lines[1:] == [f"{name}: purged; its name is free"]
    assert [row.action for row in store.audit_log(subject=name)] == ["purge"]


def test_a_purge_that_was_interrupted_is_completed(deleted, settings):
    store, name = deleted
    assert store.begin_purge(name)
    shutil.rmtree(settings.folder(name))  # as far as it came
    assert store._delete_trials(name)
    TidyRound(settings, store, log=print)()
    assert not store.has_study(name)
    assert store.due_for_purge() == ()


def test_studies_kept_long_enough_are_deleted(tmp_path, settings):
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.enqueue("old", document={}, config_hash="a", owner="ann")
        store.request_cancel("old")
        TidyRound(settings, store, log=print)()
        assert store.deleted_studies() == ()
        with store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE queue SET updated_at = '2020-01-01 00:00:00'")
        TidyRound(replace(settings, retention_days=30), store, log=print)()
        (row,) = store.deleted_studies()
        assert (row.study, row.deleted_by, (row.purge_at - row.deleted_at).days) == ("old", "retention", 7)
        assert [(each.actor, each.action) for each in store.audit_log()] == [("retention", "delete")]
