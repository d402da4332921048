"""Estimates: the plan is counted exactly, the seconds are measured on some of the images, and no test image is read."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nas_blockout.data import DataSettings, load
from nas_blockout.experiment import Experiment
from nas_blockout.training import EpochRecord, TrainingSettings, sample_passes
from services.estimate import Estimate, crowding, estimate
from services.estimate.crowding import Crowd, slowdown
from services.estimate.forecast import TRIAL_SECONDS, forecast
from services.estimate.measurement import Measured, epoch_seconds, measure, part_of
from services.settings import Settings
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.study_config.schema import Robustness
from services.trial_record import RETRAIN, SEARCH

IMAGES, EPOCHS = 60, 2
ONE = sample_passes(TrainingSettings(EPOCHS), IMAGES)
ARMS: dict[str, Any] = {
    "random": {"space": ["training"]},
    "tpe": {"space": ["training"], "searcher": "tpe"},
    "blockout": {
        "method": {"name": "blockout", "clusters": 2, "masked": "all"},
        "distillation": {"target_macs": 0.5},
    },
    "thin": {"match": {"arm": "blockout"}},
}


def study_of(*, workers: int = 2, **others: Any) -> Study:
    document = {
        "schema_version": 2,
        "name": "estimated",
        "data": {"name": "digits", "train_samples": IMAGES},
        "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
        "training": {"epochs": EPOCHS},
        "budget": {"sample_passes": 5 * ONE},
        "retrain": {"seeds": [0, 1]},
        "workers": {"max_concurrent_trials": workers, **others},
        "arms": ARMS,
    }
    return resolve_document(document, source="x")


def settings_of(home: Path, **changes: Any) -> Settings:
    return Settings(home=home, store_url=f"sqlite:///{home / 'store.db'}", **changes)


def forecast_of(home: Path, *, workers: int, processors: int = 2, **settings: Any) -> Estimate:
    """The forecast where a training of each arm takes 10 s, and nothing besides but what a worker waits for."""
    study = study_of(workers=workers)
    measured = dict.fromkeys(study.arms, Measured(10.0, 0.0, 1000))
    splits = load(study.data)
    return forecast(study, splits, settings_of(home, **settings), measured, processors=processors)


def test_trials_and_passes_are_those_of_the_plan(tmp_path: Path) -> None:
    found = estimate(study_of(), settings_of(tmp_path), source="x", quick=True, log=lambda text: None)
    for arm in ARMS:
        assert {phase: cost.trials for phase, cost in found.phases[arm].items()} == {SEARCH: 3, RETRAIN: 2}
        assert found.phases[arm][SEARCH].sample_passes == 3 * ONE
        assert found.phases[arm][SEARCH].seconds > 0
    assert found.total.trials == 20
    assert list(tmp_path.iterdir()) == []


def test_wall_clock_follows_from_the_workers(tmp_path: Path) -> None:
    trial = 10 + TRIAL_SECONDS
    one, two, crowd = (forecast_of(tmp_path, workers=workers) for workers in (1, 2, 8))
    assert one.trials_seconds == pytest.approx(20 * trial)
    assert two.trials_seconds == pytest.approx(10 * trial, rel=0.11)
    assert one.total.seconds == two.total.seconds == 200
    assert crowd.total.seconds == 800  # eight threads on two processors take turns
    many = forecast_of(tmp_path, workers=8, processors=8)
    assert many.total.seconds == 200
    assert 3 * trial <= many.trials_seconds < two.trials_seconds  # seeds wait for searches, thin for blockout
    assert two.wall_seconds > two.trials_seconds


def test_ranks_share_the_work_of_a_trial_and_take_processors(tmp_path: Path) -> None:
    given = study_of(workers=2, ranks=2)
    splits, measured = load(given.data), dict.fromkeys(given.arms, Measured(10.0, 0.0, 1000))
    roomy, narrow = (
        forecast(given, splits, settings_of(tmp_path), measured, processors=processors) for processors in (4, 2)
    )
    alone = forecast_of(tmp_path, workers=2)
    assert (roomy.total.seconds, narrow.total.seconds) == (alone.total.seconds / 2, alone.total.seconds)
    assert [note for note in roomy.notes if note.startswith("2 ranks are taken to train in 1/2 of the time")]


def test_decoded_images_that_are_kept_take_disk_space(tmp_path: Path) -> None:
    for number in range(24):
        (folder := tmp_path / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (number, 0, 0)).save(folder / f"{number}.png")
    data = DataSettings(
        "imagefolder", folder=str(tmp_path / "images"), image_size=8, resize_size=10, augment="resized-crop-flip"
    )
    splits = load(data)
    found = {}
    for cache in ("none", "disk"):
        given = study_of(workers=2, image_cache=cache)
        measured = dict.fromkeys(given.arms, Measured(10.0, 0.0, 1000))
        found[cache] = forecast(replace(given, data=data), splits, settings_of(tmp_path), measured, processors=2)
    images = len(splits.train) + len(splits.validation)
    assert found["disk"].disk_bytes - found["none"].disk_bytes == images * 10 * 20 * 3
    assert not [path for path in tmp_path.iterdir() if path.name != "images"]


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    given = study_of()
    config = given.config.model_copy(update={"robustness": Robustness(images=200, severities=[1, 3])})
    splits, measured = load(given.data), dict.fromkeys(given.arms, Measured(10.0, 0.0, 1000))
    found = forecast(replace(given, config=config), splits, settings_of(tmp_path), measured, processors=2)
    assert [note for note in found.notes if "200 images corrupted in 30 ways" in note]


def test_a_cluster_and_mlflow_are_reckoned_with(tmp_path: Path) -> None:
    plain = forecast_of(tmp_path, workers=8)
    there = forecast_of(tmp_path, workers=8, ray_address="auto", tracking_uri="sqlite:///mlflow.db")
    assert plain.notes == ()
    assert there.notes == ("measured on this machine, not on the cluster at auto",)
    assert there.total.seconds == 200
    assert there.disk_bytes > plain.disk_bytes


def test_a_share_of_the_images_stands_for_all() -> None:
    splits = load(DataSettings("digits"))
    part = part_of(splits, 0.25)
    assert len(part.train) == round(len(splits.train) / 4)
    assert len(part.validation) == round(len(splits.validation) / 4)
    assert set(part.train.labels.tolist()) == set(range(10))
    with pytest.raises(AssertionError, match="no test image"):
        part.test()


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_dry_run_measures_every_kind_of_arm(arm: str) -> None:
    found = measure(study_of().arms[arm].experiment, load(DataSettings("digits", train_samples=IMAGES)), seconds=0.1)
    assert found.seconds > 0
    assert found.overhead_seconds > 0
    assert found.parameters > 0


def test_seconds_of_stages_are_weighed_by_their_epochs() -> None:
    experiment = study_of().arms["blockout"].experiment
    ends = [("learn", 5.0), ("learn", 8.0), ("finetune", 20.0), ("finetune", 21.0)]
    records = [EpochRecord(n, 0, end, 0.1, 0.0, 0.0, 0.5, stage) for n, (stage, end) in enumerate(ends)]
    share = experiment.distillation.learn_fraction if experiment.distillation else 0.0
    assert epoch_seconds(experiment, records) == pytest.approx(share * 3.0 + (1 - share) * 1.0)
    assert epoch_seconds(experiment, records[:1]) == 5.0


def test_a_measured_slowdown_takes_the_place_of_what_processors_suggest(tmp_path: Path) -> None:
    study = study_of(workers=2)
    measured = dict.fromkeys(study.arms, Measured(10.0, 0.0, 1000))
    found = forecast(study, load(study.data), settings_of(tmp_path), measured, processors=2, crowding=1.5)
    trials = sum(phase.trials for arm in found.phases.values() for phase in arm.values())
    assert found.total.seconds == 15 * trials


def crowd_of(experiment: Experiment, *, copies: int = 2) -> Crowd:
    return Crowd(experiment, None, copies, 1, ("cpu",) * copies, seconds=0.2)


def test_trainings_are_measured_beside_one_another() -> None:
    found = slowdown(crowd_of(study_of().arms["random"].experiment))
    assert found is not None
    assert found >= 1


def test_a_process_that_fails_leaves_the_slowdown_unknown_and_nobody_waiting() -> None:
    experiment = study_of().arms["random"].experiment
    missing = replace(experiment, data=replace(experiment.data, name="imagefolder", folder="/nowhere"))
    began = time.monotonic()
    assert slowdown(crowd_of(missing)) is None
    assert time.monotonic() - began < crowding.START_SECONDS  # not the wait for processes that start slowly


@pytest.mark.parametrize(
    ("workers", "asked"), [({}, 2), ({"max_concurrent_trials": 1}, None), ({"max_concurrent_trials": 99}, None)]
)
def test_as_many_are_measured_at_once_as_will_run(
    workers: dict[str, Any], asked: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowds: list[Crowd] = []
    monkeypatch.setattr("services.estimate.forecast.slowdown", lambda crowd: crowds.append(crowd) or 2.0)
    study = study_of()
    config = study.config.model_copy(update={"workers": study.config.workers.model_copy(update=workers)})
    estimate(replace(study, config=config), settings_of(tmp_path), source="x", log=lambda _: None)
    assert [crowd.copies for crowd in crowds] == ([asked] if asked else [])
