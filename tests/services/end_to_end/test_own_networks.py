"""Networks from a factory in whole studies: what one study exports another reads, and what is changed is refused."""

import json
import re
from pathlib import Path

import pytest
from torch import Tensor

from tests.services.cli.test_module_studies import written
from tests.services.program import RUNS_HERE, here, store_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60), *RUNS_HERE]

COMPRESSING = Path(__file__).parents[3] / "docs" / "guides" / "compress-a-pretrained-network.md"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of all commands of a test."""
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NAS_BLOCKOUT_TRACKING_URI", "none")
    return tmp_path / "home"


@pytest.mark.usefixtures("home")
def test_the_guide_s_pretrained_network_is_named_by_the_study_that_compresses_it(tmp_path: Path) -> None:
    """What the first study exports, the second reads as it is; before, it says which file is not there."""
    blocks = re.findall(r"```(yaml|python)\n(.*?)```", COMPRESSING.read_text(), re.DOTALL)
    pretrain, smaller = [text for kind, text in blocks if kind == "yaml"]
    (network,) = [text for kind, text in blocks if kind == "python"]
    (tmp_path / "pretrain.yaml").write_text(pretrain)
    (tmp_path / "smaller.yaml").write_text(smaller)
    (tmp_path / "my_networks.py").write_text(network)
    ended = here("validate", tmp_path / "smaller.yaml")
    weights = f"{tmp_path}/runs/pretrain/models/dense/weights.safetensors"
    assert f"there is no file {weights}; give the path of one, or run first the study that exports it" in ended.err
    assert ended.code == 2
    assert here("run", tmp_path / "pretrain.yaml", "--quiet", NAS_BLOCKOUT_HOME=str(tmp_path)).code == 0
    ended = here("validate", tmp_path / "smaller.yaml")
    assert (ended.code, "weights" in ended.err) == (0, False)


def test_a_study_of_a_network_of_ones_own_is_run_exported_and_verified(home: Path, tmp_path: Path) -> None:
    """One arm can be trained and not exported: the others are, and all else that the study leaves is there."""
    dropping = {"method": {"name": "dropconnect", "placement": "classifier"}}
    turning = {"backbone": {"name": "module", "factory": "net.py:Branching"}}
    path = written(
        tmp_path, {"factory": "net.py:thousand"}, arms={"dropping": dropping, "turning": turning},
        budget={"trainings": 2}, retrain={"seeds": [0]},
    )  # fmt: skip
    ended = here("run", path, "--quiet")
    assert ended.code == 6, ended.err
    assert "error: the model of turning was not exported: " in ended.err
    assert "the model of dropping" not in ended.err
    with store_of(home) as store:
        results = [trial.result for trial in store.trials("tiny") if trial.arm == "dropping"]
        assert store.study("tiny").state == "complete"
    note = "the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes"
    assert [result["notes"] for result in results] == [[note]] * 2
    assert not (home / "runs" / "tiny" / "models" / "turning").exists()
    model = home / "runs" / "tiny" / "models" / "dropping"
    forms = json.loads((model / "verification.json").read_text())["forms"]
    assert {name for name, each in forms.items() if each["verified"]} >= {"model.pt2", "weights.safetensors"}
    assert (home / "runs" / "tiny" / "report" / "index.html").is_file()
    assert here("verify", model).code == 0
    content = (model / "model.pt2").read_bytes()
    network = tmp_path / "net.py"
    text = network.read_text()
    network.write_text(f"{text}\nSmall.forward = lambda self, x: -self.fc(self.conv(x).mean((2, 3)))\n")
    ended = here("export", "tiny", "dropping")
    assert ended.code == 2
    assert f"study 'tiny' was begun with another content of {network}" in ended.err
    ended = here("sync", "tiny", NAS_BLOCKOUT_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")
    assert (ended.code, "another content of" in ended.err) == (2, True)
    network.write_text(text)
    with pytest.MonkeyPatch.context() as patch:  # as code does that the file imports
        patch.setattr(Tensor, "relu", lambda x: -x)
        ended = here("export", "tiny", "dropping")
    assert ended.code == 6
    assert "dropping is not the network that was trained: " in ended.err
    assert (model / "model.pt2").read_bytes() == content
    assert here("export", "tiny", "dropping").code == 0
