"""A study from the command to the exported model, as a user runs it: real data, Ray, store, MLflow, report."""

import hashlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.data import DataSettings, load
from services.store import Store
from tests.services.program import RUNS_HERE, Ended, alone, here, of

pytestmark = [pytest.mark.slow(100), *RUNS_HERE]

SEEDS = [0, 1]
STUDY: dict[str, Any] = {
    "schema_version": 1,
    "name": "whole",
    "data": {"name": "digits", "train_samples": 100},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [16], "normalise_logits": True},
    "training": {"epochs": 4, "batch_size": 20},
    "budget": {"sample_passes": 1600},
    "retrain": {"seeds": SEEDS},
    "arms": {
        "dense": {"space": ["training"]},
        "bayesian": {"space": ["training", "branched"], "searcher": "tpe"},
        "confusion": {"confusion": {"branches": 2}},
        "blockout": {
            "method": {"name": "blockout", "clusters": 2, "masked": "all", "first_probability": 0.9},
            "distillation": {"target_macs": 0.8},
        },
        "placebo-nodes": {"like": "blockout", "distillation": {"placebo": "nodes"}},
        "pruned": {"pruning": {}, "match": {"arm": "blockout"}},
        "thin": {"match": {"arm": "blockout"}},
    },
    "export": ["dense", "blockout"],
}
ALONE = """
import sys, torch
from safetensors.torch import load_file
model = torch.export.load(sys.argv[1]).module()
held = load_file(sys.argv[2])
with torch.no_grad():
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(held["x"].split(90), held["y"].split(90)))
assert "nas_blockout" not in sys.modules
print(hits / len(held["y"]))
"""


def program(home: Path, *words: object) -> Ended:
    return here(*words, **of(home, tracking=None))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "study.yaml").write_text(yaml.safe_dump(STUDY))
    found = alone("run", home / "study.yaml", **of(home, tracking=None))
    assert found.code == 0, found.err[-3000:]
    assert "By mean test accuracy" in found.out
    return home


@pytest.fixture(scope="module")
def comparison(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / "whole" / "comparison.json").read_text())
    return found


def test_every_arm_spends_its_budget_and_is_tested_once_a_seed(home: Path, comparison: dict[str, Any]) -> None:
    assert set(comparison["arms"]) == set(STUDY["arms"])
    for arm in comparison["arms"].values():
        spent = arm["cost"]["search"]["sample_passes"] + arm["cost"]["retrain"]["sample_passes"]
        assert spent == 1600
        assert set(arm["test_accuracy"]["per_seed"]) == {"0", "1"}
    assert comparison["ranking"] is not None
    assert {(pair["a"], pair["b"]) for pair in comparison["pairs"]} == {
        ("blockout", name) for name in STUDY["arms"] if name != "blockout"
    }
    blockout, pruned, thin = (comparison["arms"][name]["macs_per_seed"] for name in ("blockout", "pruned", "thin"))
    for seed in ("0", "1"):
        assert pruned[seed] <= blockout[seed]
        assert abs(thin[seed] / blockout[seed] - 1) < 0.1


def test_what_the_study_leaves_is_whole(home: Path) -> None:
    folder = home / "runs" / "whole"
    for name in ("study.yaml", "environment.json", "trials.csv", "comparison.json", "report/index.html"):
        assert (folder / name).stat().st_size > 0
    assert {path.name for path in (folder / "models").iterdir()} == {"dense", "blockout"}
    rows = (folder / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * len(STUDY["arms"])


def test_the_store_knows_the_hash_of_every_exported_file(home: Path) -> None:
    with Store.open(f"sqlite:///{home}/runs/nas_blockout.db") as store:
        exports = store.exports("whole")
    assert {row.arm: row.verified for row in exports} == {"dense": True, "blockout": True}
    for row in exports:
        files = {path.name: path.read_bytes() for path in Path(row.path).iterdir()}
        assert row.hashes == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        assert "verification.json" in files


def test_the_exported_model_alone_has_the_recorded_test_accuracy(
    home: Path, comparison: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    splits = load(DataSettings(train_samples=100))
    part = splits.test()
    held = {"x": splits.preprocessing.undo(part.images.clone()).contiguous(), "y": part.labels}
    save_file(held, tmp_path / "test.safetensors")
    model = home / "runs" / "whole" / "models" / "blockout" / "model.pt2"
    command = [sys.executable, "-I", "-c", ALONE, str(model), str(tmp_path / "test.safetensors")]
    accuracy = float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    arm = comparison["arms"]["blockout"]
    assert accuracy == pytest.approx(arm["test_accuracy"]["per_seed"][str(arm["exported_seed"])], abs=1e-9)


def test_running_again_prints_the_result_and_trains_nothing(home: Path) -> None:
    before = (home / "runs" / "whole" / "comparison.json").stat().st_mtime_ns
    found = program(home, "run", home / "study.yaml")
    assert found.code == 0, found.err
    assert "By mean test accuracy" in found.out
    assert (home / "runs" / "whole" / "comparison.json").stat().st_mtime_ns == before
    shown = program(home, "show", "whole", "--json")
    assert shown.code == 0, shown.err
    assert shown.json


def test_an_exported_model_with_a_changed_byte_is_refused_until_it_is_exported_again(home: Path) -> None:
    model = home / "runs" / "whole" / "models" / "blockout"
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "weights.safetensors").write_bytes(content)
    refused = program(home, "verify", model)
    assert refused.code == 6
    assert "weights.safetensors" in refused.out + refused.err
    again = program(home, "export", "whole", "blockout")
    assert again.code == 0, again.err
    found = program(home, "verify", model)
    assert (found.code, found.out) == (0, f"{model}: verified\n"), found.err


def test_mlflow_has_the_study_once(home: Path) -> None:
    found = program(home, "sync", "whole")
    assert found.code == 0, found.err
    with sqlite3.connect(home / "runs" / "mlflow.db") as database:
        runs = database.execute("select name from runs where lifecycle_stage = 'active'").fetchall()
    assert len(runs) == 1 + 4 * len(STUDY["arms"])
    assert len({name for (name,) in runs}) == len(runs)


def test_an_arm_that_diverges_ends_the_study_with_4_and_no_ranking(tmp_path: Path) -> None:
    wild = {"training": {"optimizer": "sgd", "learning_rate": 1e30}}
    study = {**STUDY, "name": "wild", "arms": {"dense": {}, "wild": wild}, "export": ["dense"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    found = alone("run", tmp_path / "study.yaml", **of(tmp_path, tracking=None))
    assert found.code == 4, found.err[-3000:]
    document = json.loads((tmp_path / "runs" / "wild" / "comparison.json").read_text())
    assert document["ranking"] is None
    assert "no retrained model in wild" in document["reason"]
    assert document["arms"]["wild"]["failed"] > 0
    assert document["arms"]["dense"]["missing_seeds"] == []
