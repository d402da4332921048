"""The data that MLflow shows of a study: which, how much, for what, and a digest that changes with its content."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from nas_blockout.data import DataSettings, Splits, StreamedPart, load
from nas_blockout.data.streaming import ImageFiles
from services.store import Store
from services.tracking import Projection, data_sets
from tests.services.tiny import image_folder
from tests.services.tracking.example import CONFIG, EXPERIMENT, RESULT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def digits(samples: int = 40, seed: int = 0) -> Splits:
    return load(DataSettings(name="digits", train_samples=samples, split_seed=seed))


def test_a_digest_is_of_images_and_labels() -> None:
    training, validation = data_sets(digits(), name="digits")
    assert (training.context, training.samples, training.shape, training.classes) == ("training", 40, (1, 8, 8), 10)
    assert (training, validation) == data_sets(digits(), name="digits")
    assert len({training.digest, validation.digest, *(each.digest for each in data_sets(digits(seed=1), name="x"))}) > 2
    splits = digits()
    part = splits.train
    swapped = replace(part, labels=part.labels.roll(1))
    changed = Splits(
        swapped,
        splits.validation,
        preprocessing=splits.preprocessing,
        class_names=splits.class_names,
        load_test=lambda: pytest.fail("the test images are not for this"),
    )
    relabeled, same = data_sets(changed, name="digits")
    assert (relabeled.digest != training.digest, same.digest == validation.digest) == (True, True)


def streamed(folder: Path) -> Splits:
    """Image files that are decoded when they are needed, as those of a folder that does not fit into memory."""
    image_folder(folder)
    paths = tuple(sorted(folder.rglob("*.png")))
    labels = torch.tensor([int(path.parent.name[-1]) for path in paths])
    preprocessing = digits().preprocessing
    part = StreamedPart(ImageFiles(paths, labels, 8), preprocessing)
    names = ("a", "b", "c")
    return Splits(part, part, preprocessing=preprocessing, class_names=names, load_test=lambda: pytest.fail("read"))


def test_files_that_are_not_read_have_a_digest_of_names_and_sizes(tmp_path: Path) -> None:
    one, other = (data_sets(streamed(tmp_path / name), name="x")[0].digest for name in ("one", "other"))
    assert one == other
    splits = streamed(tmp_path / "third")
    (tmp_path / "third" / "class-0" / "0.png").write_bytes(b"another size")
    assert data_sets(splits, name="x")[0].digest != one


@pytest.fixture
def retrained(store: Store, name: str) -> Store:
    row = store.add_trial(name, arm="blockout", phase="retrain", number=0, seed=7, experiment=EXPERIMENT, planned=1)
    store.start_attempt(row.id)
    store.finish_trial(row.id, "complete", score=0.8, result=RESULT)
    return store


def test_a_study_and_its_retrained_models_have_their_data_as_inputs(uri: str, name: str, retrained: Store) -> None:
    client, told = mlflow.MlflowClient(tracking_uri=uri), data_sets(digits(), name="digits")
    for _ in range(2):
        projection = Projection(uri, name, CONFIG, retrained, data=told)
        projection.sync()
    experiment = client.get_experiment_by_name(projection.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    by_phase = {run.data.tags["nas.phase"]: run.inputs.dataset_inputs for run in found}
    expected = {(each.name, each.digest, each.context) for each in told}
    for phase in ("study", "retrain"):
        inputs = [(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in by_phase[phase]]
        assert (set(inputs), len(inputs)) == (expected, 2)
    assert by_phase["search"] == []


def test_with_folds_every_run_has_the_data_of_its_own(uri: str, name: str, store: Store) -> None:
    splits = load(DataSettings(folds=3, fold=0))
    told = data_sets(splits, name="digits")
    assert [(each.fold, each.context) for each in told] == [
        (fold, context) for fold in range(3) for context in ("training", "validation")
    ]
    assert len({each.digest for each in told}) == 6
    assert told[-2].samples == len(load(DataSettings(folds=3, fold=2)).train)
    for fold in (0, 2):
        experiment = {**EXPERIMENT, "data": {"name": "digits", "folds": 3, "fold": fold}}
        row = store.add_trial(
            name, arm="blockout", phase="retrain", number=fold, seed=fold, experiment=experiment, planned=1
        )
        store.start_attempt(row.id)
        store.finish_trial(row.id, "complete", score=0.8, result=RESULT)
    config = {**CONFIG, "data": {"name": "digits", "folds": 3, "fold": 0}}
    projection = Projection(uri, name, config, store, data=told)
    projection.sync()
    found = mlflow.MlflowClient(tracking_uri=uri).search_runs([projection._runs.experiment])
    digests = {
        (run.data.tags["nas.phase"], run.info.run_name[-2:]): {
            each.dataset.digest for each in run.inputs.dataset_inputs
        }
        for run in found
        if run.inputs.dataset_inputs
    }
    by_fold = {fold: {each.digest for each in told if each.fold == fold} for fold in range(3)}
    assert digests[("retrain", "s0")] == by_fold[0]
    assert digests[("retrain", "s2")] == by_fold[2]
    assert [inputs for (phase, _), inputs in digests.items() if phase == "study"] == [by_fold[0]]
