"""Studies of networks from a factory on the command line: validated, run, and refused where files cannot follow."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.program import Call
from tests.services.tiny import TINY

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "your-own-network.md"
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
    assert (
        "network of plain: 2 layers of nodes; 1.7% of 3,516 MACs are between nodes and can be masked; no layer stays "
        "whole\n"
    ) in ended.err


def test_validate_tells_what_stays_whole_and_what_has_no_graph(call: Call, tmp_path: Path) -> None:
    arms = {
        "whole": {"backbone": {"factory": "net.py:Normalized"}},
        "seeded": {"extends": "whole", "training": {"batch_size": 8}},
        "branching": {"backbone": {"factory": "net.py:Branching"}},
    }
    ended = call("validate", written(tmp_path, {"factory": "net.py:Small"}, arms=arms))
    assert ended.code == 0
    told = [line for line in ended.err.splitlines() if line.startswith("network of ")]
    assert told[0].startswith("network of branching: it can be trained, but neither masked nor branched: ")
    assert told[1].startswith("network of seeded, whole: 3 layers of nodes; ")
    assert told[2].startswith("network of seeded, whole: stem (12 nodes) stays whole: ")
    assert len(told) == 3


def test_inspect_shows_every_layer_as_table_and_as_json(home: Path, call: Call) -> None:
    words = ("inspect", f"{NETWORKS}:Normalized", "--image", "1x8x8", "--classes", "7")
    ended = call(*words)
    assert (ended.code, ended.err, [*home.iterdir()]) == (0, "", [])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines() if "│" in line]
    assert [row[:6] for row in rows] == [
        ["stem", "12", "stem", "hidden", "768", "0.0%"],
        ["hidden", "8", "hidden", "fc", "96", "100.0%"],
        ["classes", "7", "fc", "", "56", "100.0%"],
    ]
    assert [bool(row[6]) for row in rows] == [True, False, False]
    document = call(*words, "--json").json
    assert (document["image"], document["classes"], document["macs"]) == ([1, 8, 8], 7, 920)
    assert [layer["rigid"] is not None for layer in document["layers"]] == [True, False, False]
    assert document["layers"][1]["producers"] == ["hidden.weight"]


def test_inspect_lists_what_is_not_maskable_with_its_cost_and_why(call: Call) -> None:
    words = ("inspect", f"{NETWORKS}:Recurrent", "--image", "1x8x8")
    document = call(*words, "--json").json
    macs = 8 * 3 * 12 * (4 + 12)
    assert document["unmasked"] == [
        {
            "operation": "gru in gru",
            "weights": ["gru.weight_ih_l0", "gru.weight_hh_l0"],
            "macs": macs,
            "reason": "read by a GRU",
        }
    ]
    assert document["macs"] == sum(layer["macs"] for layer in document["layers"]) + macs
    text = " ".join(call(*words).out.split())
    assert "not maskable" in text
    assert "gru in gru" in text


def test_inspect_knows_the_built_in_networks_and_says_what_a_factory_was_changed_in(call: Call) -> None:
    ended = call("inspect", "resnet", "--argument", "depth=8", "--argument", "hidden=[9]", "--json")
    assert [layer["layer"] for layer in ended.json["layers"]][-2:] == ["hidden", "classes"]
    ended = call("inspect", f"{NETWORKS}:thousand", "--argument", "width=3", "--image", "1x8x8")
    assert ended.err == "the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes\n"
    assert "images of 1x8x8, 10 classes" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resnett",), "backbone.name: no such backbone 'resnett'; did you mean 'resnet'?"),
        (("resnet", "--argument", "dept=8"), "backbone.dept: no such setting; did you mean 'depth'?"),
        (("resnet", "--argument", "depth"), "--argument takes KEY=VALUE, such as width=32, got 'depth'"),
        (("resnet", "--argument", "depth=[1"), "--argument depth: the value is not valid YAML: "),
        (("resnet", "--image", "64"), "--image must be channels, height and width, such as 3x64x64, got '64'"),
        ((f"{NETWORKS}:Smal",), f"backbone.factory: {NETWORKS} has no 'Smal'; did you mean 'Small'?"),
        ((f"{NETWORKS}:ForEight",), "backbone.factory: the network of "),
        ((f"{NETWORKS}:Branching", "--image", "1x8x8"), "Branching decides by the values of its input"),
    ],
)
def test_inspect_refuses_in_one_sentence(call: Call, words: tuple[str, ...], message: str) -> None:
    ended = call("inspect", *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1


def test_the_guide_s_study_and_script_work(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```(yaml|python)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (study,) = [text for kind, text in blocks if kind == "yaml"]
    network, script = [text for kind, text in blocks if kind == "python"][:2]  # the others read a finished model
    (tmp_path / "my-study.yaml").write_text(study)
    (tmp_path / "my_networks.py").write_text(network)
    assert call("validate", tmp_path / "my-study.yaml").code == 0
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "guide", "exec"), {})  # our own text
    assert len(capsys.readouterr().out.splitlines()) == 10


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


def test_weights_of_this_machine_do_not_travel_with_a_submitted_study(call: Call, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    arms = {"file": {}, "weights": {"backbone": {"factory": "torchvision.models:resnet18", "weights": str(weights)}}}
    path = written(tmp_path, {"factory": "net.py:Small"}, arms=arms, data={"name": "imagefolder", "folder": "absent"})
    told = {"NAS_BLOCKOUT_JOBS_ADDRESS": "http://127.0.0.1:1"}
    ended = call("submit", path, **told)
    assert ended.code == 2
    (in_folder,) = ended.err.splitlines()
    assert in_folder.startswith(
        f"error: {path}: arms.weights.backbone.weights: a file does not travel with a submitted"
    )
    assert call("submit", path, NAS_BLOCKOUT_WEIGHTS=str(tmp_path), **told).code == 5  # nothing answers there
