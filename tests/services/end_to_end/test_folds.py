"""A study over folds, from the command line: every seed holds out another fold, whose numbers its model has."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.data import DataSettings, load
from services.trial_record import RETRAIN, SEARCH
from tests.services.program import RUNS_HERE, here, of, store_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(30), *RUNS_HERE]

STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "folded",
    "data": {"name": "digits", "folds": 3, "split_seed": 4},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 3, "batch_size": 16},
    "budget": {"trainings": 4},
    "retrain": {"seeds": [5, 6, 7]},
    "calibrate": True,
    "arms": {"dense": {}, "dropout": {"method": {"name": "dropout"}}},
}


def test_a_study_over_folds(tmp_path: Path) -> None:
    path, folder = tmp_path / "study.yaml", tmp_path / "runs" / "folded"
    path.write_text(yaml.safe_dump(STUDY))
    ended = here("run", "--quiet", path, **of(tmp_path))
    assert ended.code == 0, ended.err
    told = "over 3 folds, with the corrected t"
    assert told in " ".join(ended.out.split())
    assert told in (folder / "report" / "index.html").read_text(encoding="utf-8")

    with store_of(tmp_path) as store:
        trials = store.trials("folded")
    assert {trial.fold for trial in trials if trial.phase == SEARCH} == {0}
    retrained = {(trial.arm, trial.seed): trial for trial in trials if trial.phase == RETRAIN}
    assert {key: trial.fold for key, trial in retrained.items()} == {
        (arm, 5 + fold): fold for arm in ("dense", "dropout") for fold in range(3)
    }
    data = {fold: load(DataSettings(folds=3, fold=fold, split_seed=4)) for fold in range(3)}
    assert [trial.sample_passes for trial in retrained.values()] == [trial.planned for trial in retrained.values()]
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        assert {row["fold"] for row in csv.DictReader(file)} == {"0", "1", "2"}

    document = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert document["folds"] == 3
    assert [pair["p_permutation"] for pair in document["pairs"]] == [None]
    exported = {arm: retrained[arm, result["exported_seed"]] for arm, result in document["arms"].items()}
    assert {trial.fold for trial in exported.values()} != {0}, "one of the models is of another fold than the search"
    for arm, trial in exported.items():
        assert trial.fold is not None
        written = json.loads((folder / "models" / arm / "preprocessing.json").read_text(encoding="utf-8"))
        assert written["mean"] == pytest.approx(data[trial.fold].preprocessing.mean)
        assert written["probabilities"]["novelty"]["images"] == len(data[trial.fold].validation)
        card = (folder / "models" / arm / "card.md").read_text(encoding="utf-8")
        assert f"this training held out fold {trial.fold}" in card

    for words in (("export", "folded", "dropout"), ("bundle", "folded", "--output", tmp_path / "folded.tar.gz")):
        again = here(*words, **of(tmp_path))
        assert again.code == 0, again.err
    checked = here("bundle", "--check", tmp_path / "folded.tar.gz", **of(tmp_path))
    assert checked.code == 0, checked.out + checked.err
