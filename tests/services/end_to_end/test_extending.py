"""A study that Ray has run is extended from the command line: nothing that stands is trained again."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.trial_record import Trial
from tests.services.program import RUNS_HERE, Ended, here, of, store_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(50), *RUNS_HERE]

STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "grows",
    "data": {"name": "digits", "train_samples": 60},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
    "training": {"epochs": 3},
    "budget": {"sample_passes": 960},
    "retrain": {"seeds": [0, 1]},
    "workers": {"max_concurrent_trials": 1},
    "export": ["random"],
    "arms": {
        "random": {"space": ["training", "branched"]},
        "thin": {"space": ["training"], "match": {"arm": "random"}},
    },
}
MORE = ("budget.sample_passes=1680", "retrain.seeds=[0, 1, 2]", "arms.dropout={method: {name: dropout}}", "export=null")


def call(home: Path, *words: object) -> Ended:
    return here(*words, **of(home))


def trials(home: Path) -> tuple[Trial, ...]:
    with store_of(home) as store:
        return store.trials("grows")


def test_a_finished_study_is_extended_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    ended = call(tmp_path, "run", "--quiet", path)
    assert ended.code == 0, ended.err
    first, folder = trials(tmp_path), tmp_path / "runs" / "grows"
    before = (folder / "comparison.json").read_text()

    assignments = [word for assignment in MORE for word in ("--set", assignment)]
    ended = call(tmp_path, "run", "--quiet", path, *assignments)
    assert ended.code == 0, ended.err
    assert "the study was extended once after its result was known" in " ".join(ended.out.split())
    rows = trials(tmp_path)
    assert rows[: len(first)] == first
    assert (folder / "comparison.1.json").read_text() == before
    document = json.loads((folder / "comparison.json").read_text())
    assert document["extensions"] == 1
    for arm in ("random", "thin", "dropout"):
        assert set(document["arms"][arm]["test_accuracy"]["per_seed"]) == {"0", "1", "2"}
        assert document["arms"][arm]["cost"]["search"]["sample_passes"] == 960
        assert (folder / "models" / arm / "model.onnx").exists()

    again = call(tmp_path, "run", "--quiet", "--json", path)
    assert again.json == document
    assert trials(tmp_path) == rows
    replayed = call(tmp_path, "replay", "grows", "--repeats", "2", "--json")
    assert replayed.json["reproduced"] is True
