"""Studies of the same data in one table; and trials.csv as pandas reads it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nas_blockout.training import TrainingSettings, sample_passes
from services.analysis.cross_study import CrossStudyComparison, compare
from services.files.study_dir import Folder
from services.finalize.finalize import write_comparison
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study

IMAGES = 50
ONE = sample_passes(TrainingSettings(2), IMAGES)


def study_of(name: str, **changes: Any) -> Study:
    document = {
        "schema_version": 2,
        "name": name,
        "data": {"name": "digits", "train_samples": IMAGES},
        "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
        "training": {"epochs": 2},
        "budget": {"sample_passes": 6 * ONE},
        "retrain": {"seeds": [0, 1, 2]},
        "arms": {"dense": {"space": ["training"]}, "random": {"space": ["training", "branched"]}},
        **changes,
    }
    return resolve_document(document, source="x")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, store_url=f"sqlite:///{tmp_path / 'store.db'}")


def record(settings: Settings, pretend: Any, name: str, *, finished: bool = True, **changes: Any) -> None:
    study = study_of(name, **changes)
    with Store.open(settings.store_url) as store:
        store.create_study(name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        pretend(store, study, max_concurrent_trials=1)
        if finished:
            store.finish_study(name, "complete")


def verdicts(found: CrossStudyComparison) -> dict[tuple[str, str], str]:
    return {(pair.a, pair.b): pair.verdict for pair in found.pairs}


def test_arms_of_two_studies_stand_in_one_table_best_first_and_are_tested_across(
    settings: Settings, pretend: Any
) -> None:
    record(settings, pretend, "one")
    record(settings, pretend, "two", seed=1)
    found = compare(settings, ["one", "two"])
    assert {arm.key for arm in found.arms} == {"one/dense", "one/random", "two/dense", "two/random"}
    means = [arm.result.test_accuracy.mean for arm in found.arms if arm.result.test_accuracy]
    assert means == sorted(means, reverse=True)
    assert {frozenset((pair.a.split("/")[0], pair.b.split("/")[0])) for pair in found.pairs} == {
        frozenset(("one", "two"))
    }
    assert len(found.pairs) == 4
    assert {pair.seeds for pair in found.pairs} == {3}
    assert all(pair.cost == pytest.approx(1.0, abs=0.02) for pair in found.pairs)
    document = found.to_json()
    assert document["data"]["train_samples"] == IMAGES
    assert document["arms"][0]["arm"] in ("dense", "random")


def test_an_arm_against_its_own_repetition_shows_no_difference(settings: Settings, pretend: Any) -> None:
    record(settings, pretend, "one")
    record(settings, pretend, "again")
    (pair,) = compare(settings, ["one", "again"], arms=["dense"]).pairs
    assert (pair.difference, pair.verdict, pair.seeds) == (0.0, "no difference shown", 3)


def test_arms_that_spent_unlike_get_no_verdict(settings: Settings, pretend: Any) -> None:
    record(settings, pretend, "small")
    record(settings, pretend, "large", budget={"sample_passes": 12 * ONE})
    found = compare(settings, ["small", "large"])
    assert set(verdicts(found).values()) == {"not at equal cost"}
    assert {round(max(pair.cost, 1 / pair.cost)) for pair in found.pairs} == {2}


def test_only_shared_seeds_are_compared(settings: Settings, pretend: Any) -> None:
    record(settings, pretend, "one")
    record(settings, pretend, "two", retrain={"seeds": [1, 2, 3]})
    record(settings, pretend, "three", retrain={"seeds": [2, 3, 4]})
    assert {pair.seeds for pair in compare(settings, ["one", "two"]).pairs} == {2}
    assert compare(settings, ["one", "three"]).pairs == ()


def test_studies_of_different_data_are_refused_and_the_keys_named(settings: Settings, pretend: Any) -> None:
    record(settings, pretend, "one")
    record(settings, pretend, "two", data={"name": "digits", "train_samples": 60, "split_seed": 1})
    with pytest.raises(StudyError) as infeasible:
        compare(settings, ["one", "two"])
    for part in ("data.train_samples is 50 in one and 60 in two", "data.split_seed is 0 in one and 1 in two"):
        assert part in str(infeasible.value)


def test_what_cannot_be_compared_is_refused(settings: Settings, pretend: Any) -> None:
    record(settings, pretend, "one")
    record(settings, pretend, "open", finished=False)
    with pytest.raises(StudyError, match="two or more studies, got one"):
        compare(settings, ["one", "one"])
    with pytest.raises(NotFound, match="study 'open' has not finished"):
        compare(settings, ["one", "open"])
    with pytest.raises(NotFound, match="there is no study 'ones'"):
        compare(settings, ["one", "ones"])
    record(settings, pretend, "two", seed=1)
    with pytest.raises(NotFound, match="has an arm 'thin'; they have dense, random"):
        compare(settings, ["one", "two"], arms=["thin"])


def test_trials_open_in_pandas_with_one_row_a_trial(settings: Settings, pretend: Any) -> None:
    record(settings, pretend, "one")
    folder = Folder(settings.folder("one"))
    with Store.open(settings.store_url) as store:
        rows = store.trials("one")
        write_comparison(study_of("one"), rows, folder, latency={})
    frame = pd.read_csv(folder.root / "trials.csv")
    assert len(frame) == len(rows)
    assert frame["trial"].is_unique
    kinds = {column: frame[column].dtype.kind for column in frame}
    for column in ("trial", "number", "seed", "sample_passes"):
        assert kinds[column] == "i", column
    for column in ("seconds", "validation_accuracy", "test_accuracy", "param.optim.lr", "param.branched.skew"):
        assert kinds[column] == "f", column
    assert kinds["stale"] == "b"
    assert set(frame["state"]) <= {"complete", "failed"}
    assert frame["test_accuracy"].notna().equals(frame["phase"] == "retrain")
    searched = frame[frame["phase"] == "search"]
    assert searched["param.optim.lr"].notna().all()
    assert frame.groupby("arm")["sample_passes"].sum().to_dict() == {
        arm: sum(row.sample_passes for row in rows if row.arm == arm) for arm in ("dense", "random")
    }


def test_folds_widen_tests_across_studies_and_a_seed_must_hold_out_one_fold(settings: Settings, pretend: Any) -> None:
    folded = {"data": {"name": "digits", "train_samples": IMAGES, "folds": 4}}
    for name, changes in {
        "one": {},
        "two": {"seed": 1},
        "folds-one": folded,
        "folds-two": {**folded, "seed": 1},
    }.items():
        record(settings, pretend, name, **changes)
    plain, wide = (compare(settings, [f"{first}one", f"{first}two"]).pairs for first in ("", "folds-"))
    for one, other in zip(
        sorted(plain, key=lambda pair: (pair.a, pair.b)), sorted(wide, key=lambda pair: (pair.a, pair.b)), strict=True
    ):
        if one.ci95 is not None and other.ci95 is not None and one.difference == other.difference:
            assert other.ci95[1] - other.ci95[0] == pytest.approx(2**0.5 * (one.ci95[1] - one.ci95[0]))
    record(settings, pretend, "folds-turned", **folded, retrain={"seeds": [2, 1, 0]})
    with pytest.raises(StudyError, match=r"seed 2 is fold 2 in folds-one and fold 0 in folds-turned"):
        compare(settings, ["folds-one", "folds-turned"])
