"""Studies of networks from a factory on the command line: validated, run, and refused where files cannot follow."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.services.program import RUNS_HERE, Call, store_of
from tests.services.tiny import TINY

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"


def written(folder: Path, backbone: dict[str, Any], **changes: Any) -> Path:
    (folder / "net.py").write_text(NETWORKS.read_text())
    path = folder / "study.yaml"
    document = {**TINY, "backbone": {"name": "module", **backbone}, "arms": {"plain": {}}, **changes}
    path.write_text(yaml.safe_dump(document))
    return path


def test_validate_tells_what_is_changed_in_the_network(home: Path, call: Call, tmp_path: Path) -> None:
    ended = call("validate", written(tmp_path, {"factory": "net.py:thousand"}))
    assert (ended.code, [*home.iterdir()]) == (0, [])
    assert (
        "arm 'plain': the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes" in ended.err
    )
    assert f"factory: {tmp_path}/net.py:thousand" in ended.out


def test_validate_names_the_line_of_the_study_and_that_of_the_network(call: Call, tmp_path: Path) -> None:
    path = written(tmp_path, {"factory": "net.py:broken"})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "factory" in text)
    raised = next(n for n, text in enumerate(NETWORKS.read_text().splitlines(), 1) if "out of ideas" in text)
    ended = call("validate", path)
    assert ended.code == 2
    assert ended.err == (
        f"error: {path}:{line}: backbone.factory: {tmp_path}/net.py:broken failed: RuntimeError at "
        f"{tmp_path}/net.py:{raised}: out of ideas\n"
    )


def test_files_of_this_machine_do_not_travel_with_a_submitted_study(call: Call, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    arms = {"file": {}, "weights": {"backbone": {"factory": "torchvision.models:resnet18", "weights": str(weights)}}}
    path = written(tmp_path, {"factory": "net.py:Small"}, arms=arms, data={"name": "imagefolder", "folder": "absent"})
    told = {"NAS_BLOCKOUT_JOBS_ADDRESS": "http://127.0.0.1:1"}
    ended = call("submit", path, **told)
    assert ended.code == 2
    file, in_folder = ended.err.splitlines()
    assert file == (
        f"error: {path}: arms.file.backbone.factory: a file does not travel with a submitted study, got "
        f"{tmp_path}/net.py:Small; install it as a package on the cluster and name it as package.module:name, or use "
        "`nas-blockout run`"
    )
    assert in_folder.startswith(
        f"error: {path}: arms.weights.backbone.weights: a file does not travel with a submitted"
    )
    ended = call("submit", path, NAS_BLOCKOUT_WEIGHTS=str(tmp_path), **told)
    assert [line.split(": ")[2] for line in ended.err.splitlines()] == ["arms.file.backbone.factory"]


class TestRun:
    pytestmark = RUNS_HERE

    def test_a_study_of_a_network_of_ones_own_is_run_exported_and_verified(
        self, home: Path, call: Call, tmp_path: Path
    ) -> None:
        dropping = {"method": {"name": "dropconnect", "placement": "classifier"}}
        path = written(
            tmp_path, {"factory": "net.py:thousand"}, arms={"dropping": dropping}, budget={"trainings": 2},
            retrain={"seeds": [0]},
        )  # fmt: skip
        ended = call("run", path, "--quiet")
        assert ended.code == 0, ended.err
        with store_of(home) as store:
            results = [trial.result for trial in store.trials("tiny")]
        note = "the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes"
        assert [result["notes"] for result in results] == [[note]] * 2
        model = home / "runs" / "tiny" / "models" / "dropping"
        forms = json.loads((model / "verification.json").read_text())["forms"]
        assert {name for name, each in forms.items() if each["verified"]} >= {"model.pt2", "weights.safetensors"}
        assert (home / "runs" / "tiny" / "report" / "index.html").is_file()
        assert call("verify", model).code == 0
