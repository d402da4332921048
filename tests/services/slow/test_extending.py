"""A study that Ray has run is extended from the command line: nothing that stands is trained again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.store import Store, TrialRow

pytestmark = pytest.mark.slow

PROGRAM = "from services.cli import main; main()"
STUDY: dict[str, Any] = {
    "schema_version": 1,
    "name": "grows",
    "data": {"name": "digits", "train_samples": 60},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
    "training": {"epochs": 3},
    "budget": {"sample_passes": 720},
    "retrain": {"seeds": [0, 1]},
    "arms": {
        "random": {"space": ["training", "branched"]},
        "thin": {"space": ["training"], "match": {"arm": "random"}},
    },
}
MORE = ("budget.sample_passes=1260", "retrain.seeds=[0, 1, 2]", "arms.dropout={method: {name: dropout}}")


def call(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "NAS_BLOCKOUT_HOME": str(home), "NAS_BLOCKOUT_TRACKING_URI": "none"}
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def trials(home: Path) -> tuple[TrialRow, ...]:
    with Store.open(f"sqlite:///{home / 'runs' / 'nas_blockout.db'}") as store:
        return store.trials("grows")


def test_a_finished_study_is_extended_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    ended = call(tmp_path, "run", "--quiet", str(path))
    assert ended.returncode == 0, ended.stderr
    first, folder = trials(tmp_path), tmp_path / "runs" / "grows"
    before = (folder / "comparison.json").read_text()

    assignments = [word for assignment in MORE for word in ("--set", assignment)]
    ended = call(tmp_path, "run", "--quiet", str(path), *assignments)
    assert ended.returncode == 0, ended.stderr
    assert "the study was extended once after its result was known" in " ".join(ended.stdout.split())
    rows = trials(tmp_path)
    assert rows[: len(first)] == first
    assert (folder / "comparison.1.json").read_text() == before
    document = json.loads((folder / "comparison.json").read_text())
    assert document["extensions"] == 1
    for arm in ("random", "thin", "dropout"):
        assert set(document["arms"][arm]["test_accuracy"]["per_seed"]) == {"0", "1", "2"}
        assert document["arms"][arm]["cost"]["search"]["sample_passes"] == 720
        assert (folder / "models" / arm / "model.onnx").exists()

    again = call(tmp_path, "run", "--quiet", "--json", str(path))
    assert json.loads(again.stdout) == document
    assert trials(tmp_path) == rows
    replayed = call(tmp_path, "replay", "grows", "--repeats", "2", "--json")
    assert json.loads(replayed.stdout)["reproduced"] is True
