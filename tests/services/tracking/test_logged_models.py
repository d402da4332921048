"""The model that a study logs to MLflow: the winner's, once, replaced where an extension trained another."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import LoggedModel, Run
from mlflow.utils import requirements_utils

from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.export import Deployed
from services.tracking import Projection
from tests.services.new_store import new_store

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

STAGES = stages(ConvNetSettings((4, 6), (8,)), (1, 8, 8), 3)
IMAGES = np.linspace(0, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
CLASSES = ("a", "b", "c")


@pytest.fixture
def projection(mlflow_uri: str, tmp_path: Path, name: str) -> Iterator[Projection]:
    with new_store(tmp_path / "store.db") as opened:
        opened.create_study(name, config={}, config_hash="cafe", arms=["dense"])
        yield Projection(mlflow_uri, name, {}, opened)


def network(seed: int) -> Deployed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Deployed(BranchedNetwork(STAGES, dense_of(STAGES), channels=1), (0.3,), (0.4,)).eval()


def log(projection: Projection, seed: int, *, arm: str = "dense") -> None:
    projection.log_model(arm, network(seed), IMAGES, class_names=CLASSES, requirements=["torch"])


def models(projection: Projection) -> dict[str, LoggedModel]:
    client = mlflow.MlflowClient(tracking_uri=projection.uri)
    experiment = client.get_experiment_by_name(projection.name)
    assert experiment is not None
    return {model.model_id: model for model in client.search_logged_models([experiment.experiment_id])}


def parent(projection: Projection) -> Run:
    return mlflow.MlflowClient(tracking_uri=projection.uri).get_run(projection.parent)


def test_the_logged_model_computes_the_networks_logits_from_images(projection: Projection) -> None:
    log(projection, 0)
    mlflow.set_tracking_uri(projection.uri)
    model = mlflow.pyfunc.load_model(f"models:/{parent(projection).data.tags['nas.model']}")
    many = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        for given in (IMAGES, many, many[:1]):
            np.testing.assert_allclose(model.predict(given), network(0)(torch.from_numpy(given)), rtol=1e-5, atol=1e-6)
    assert model.metadata.metadata["class_names"] == list(CLASSES)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 3)


def test_logging_a_model_does_not_look_through_all_installed_packages(
    projection: Projection, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[None] = []
    monkeypatch.setattr(requirements_utils, "_init_packages_to_modules_map", lambda: looked.append(None))
    log(projection, 0)
    assert looked == []


def test_the_same_model_is_logged_once(projection: Projection) -> None:
    log(projection, 0)
    before = models(projection)
    log(projection, 0)
    assert models(projection).keys() == before.keys()
    assert len(before) == 1
    assert parent(projection).info.status == "FINISHED"


@pytest.mark.parametrize(("arm", "seed"), [("dense", 1), ("thin", 0)], ids=["other-weights", "other-arm"])
def test_a_model_that_an_extension_replaced_names_its_successor(projection: Projection, arm: str, seed: int) -> None:
    log(projection, 0)
    first = parent(projection).data.tags["nas.model"]
    log(projection, seed, arm=arm)
    latest, found = parent(projection).data.tags["nas.model"], models(projection)
    assert found.keys() == {first, latest}
    assert found[first].tags["nas.stale"] == latest
    assert "nas.stale" not in found[latest].tags
    assert found[latest].name == arm
    mlflow.set_tracking_uri(projection.uri)
    with torch.no_grad():
        served = mlflow.pyfunc.load_model(f"models:/{latest}").predict(IMAGES)
        np.testing.assert_allclose(served, network(seed)(torch.from_numpy(IMAGES)), rtol=1e-5, atol=1e-6)


def test_a_model_whose_logging_was_cut_off_is_logged_again(projection: Projection) -> None:
    log(projection, 0)
    client = mlflow.MlflowClient(tracking_uri=projection.uri)
    first = parent(projection).data.tags["nas.model"]
    client.delete_tag(projection.parent, "nas.model.digest")
    log(projection, 0)
    tags = parent(projection).data.tags
    assert tags["nas.model"] != first
    assert models(projection)[first].tags["nas.stale"] == tags["nas.model"]


def registered(projection: Projection) -> tuple[str, dict[str, str]]:
    """The name of the registered model of a study, and the logged model behind each alias."""
    client = mlflow.MlflowClient(tracking_uri=projection.uri)
    name = parent(projection).data.tags["nas.model.registered"].rpartition("/")[0]
    versions = {str(each.version): each.tags["nas.model"] for each in client.search_model_versions(f"name = '{name}'")}
    aliases = client.get_registered_model(name).aliases
    return name, {alias: versions[str(version)] for alias, version in aliases.items()}


def test_the_recommended_model_is_registered_and_its_aliases_follow_the_study(
    projection: Projection, name: str
) -> None:
    log(projection, 0)
    first = parent(projection).data.tags["nas.model"]
    assert registered(projection) == (f"nas-blockout.{name}", {"recommended": first, "arm-dense": first})
    log(projection, 0)
    log(projection, 1, arm="thin")
    second = parent(projection).data.tags["nas.model"]
    found, aliases = registered(projection)
    assert aliases == {"recommended": second, "arm-dense": first, "arm-thin": second}
    client = mlflow.MlflowClient(tracking_uri=projection.uri)
    assert len(client.search_model_versions(f"name = '{found}'")) == 2
    assert client.get_registered_model(found).tags["nas.study_uuid"] == projection.identity.uuid
    mlflow.set_tracking_uri(projection.uri)
    served = mlflow.pyfunc.load_model(f"models:/{found}@recommended").predict(IMAGES)
    assert served.shape == (2, 3)


def test_a_registered_model_of_another_store_or_that_was_deleted_is_not_in_the_way(
    projection: Projection, name: str
) -> None:
    client = mlflow.MlflowClient(tracking_uri=projection.uri)
    client.create_registered_model(f"nas-blockout.{name}")
    log(projection, 0)
    own, aliases = registered(projection)
    assert own == f"nas-blockout.{name}.{projection.identity.uuid[:8]}"
    assert client.search_model_versions(f"name = 'nas-blockout.{name}'") == []
    client.delete_registered_model(own)
    log(projection, 0)
    assert registered(projection) == (own, aliases)
    assert len(models(projection)) == 1
