"""A network of one's own in a study of everything: fixed branches searched, learned ones, controls, pruning, export."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.architecture import Architecture
from tests.services.program import RUNS_HERE, here, of, store_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60), *RUNS_HERE]

NETWORKS = Path(__file__).parents[2] / "fixtures" / "inventions.py"
WHOLE = 112_208  # multiply-accumulates of the whole network, the products of its attention included
STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "own",
    "data": {"name": "digits", "train_samples": 60},
    "backbone": {"name": "module", "factory": "net.py:Invention", "arguments": {"width": 8}},
    "training": {"epochs": 2, "batch_size": 20, "learning_rate": 0.01},
    "budget": {"trainings": 2},
    "retrain": {"seeds": [0]},
    "arms": {
        "random-branched": {"space": ["branched"], "constraints": {"macs": 100_000}},
        "tpe-branched": {"space": ["branched"], "searcher": "tpe"},
        "blockout": {
            "method": {"name": "blockout", "clusters": 2},
            "distillation": {"target_macs": 0.6},
            "space": ["blockout"],
        },
        "unbranched": {"extends": "blockout", "space": [], "distillation": {"placebo": "unbranched"}},
        "pruned": {"pruning": {"target_macs": 0.6}},
        "confusion": {"confusion": {}, "space": ["confusion"]},
        "thin": {"match": {"arm": "blockout"}},
    },
    "export": ["random-branched", "blockout"],
}


def test_everything_that_a_study_can_ask_works_on_a_network_of_ones_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "net.py").write_text(NETWORKS.read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    ended = here("run", tmp_path / "study.yaml", "--quiet", **of(home))
    assert ended.code == 0, ended.err
    with store_of(home) as store:
        trials = store.trials("own")
    assert sorted((trial.arm, trial.state) for trial in trials) == sorted(
        2 * [(arm, "complete") for arm in STUDY["arms"]]
    )
    for trial in trials:
        result = trial.result
        assert result is not None
        if trial.arm.endswith("branched") and trial.arm != "unbranched":
            assert trial.config.architecture is not None
            assert trial.config.architecture.edges, "over the graph, not over a chain"
            assert trial.arm != "random-branched" or result["macs"] <= 100_000
        if trial.arm in ("blockout", "unbranched", "pruned", "confusion"):
            assert Architecture.from_json(result["architecture"]).edges
            for entry in result["equality"].values():
                assert entry["max_abs_difference"] <= entry["bound"]
    costs = {trial.arm: trial.result["macs"] for trial in trials if trial.phase == "retrain" and trial.result}
    assert costs["thin"] == pytest.approx(costs["blockout"], rel=0.15)
    assert max(costs[arm] for arm in ("blockout", "unbranched", "pruned")) <= 0.6 * WHOLE
    runs = home / "runs" / "own"
    comparison = json.loads((runs / "comparison.json").read_text())
    assert set(comparison["arms"]) == set(STUDY["arms"])
    assert (runs / "report" / "index.html").is_file()
    assert list(json.loads((runs / "environment.json").read_text())["files"]) == [str(tmp_path / "net.py")]
    for arm in STUDY["export"]:
        forms = json.loads((runs / "models" / arm / "verification.json").read_text())["forms"]
        assert {name for name, each in forms.items() if each["verified"]} >= {"model.pt2", "model.onnx"}
    (tmp_path / "net.py").write_text(NETWORKS.read_text() + "\n")
    again = here("run", tmp_path / "study.yaml", "--quiet", **of(home))
    assert again.code != 0
    assert f"study 'own' was begun with another content of {tmp_path / 'net.py'}" in again.err
