"""Exported models: every form computes what was trained, says what it is, and holds nothing else."""

import json
import math
import re
import shutil
import sys
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from safetensors.torch import load_file

from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.experiment import structure_of_network
from nas_blockout.export import (
    MANIFEST,
    VerificationError,
    diagram,
    export_model,
    export_models,
    load_weights,
    measure_latency,
    save_weights,
)
from nas_blockout.export.cards import card
from nas_blockout.export.model_summary import outline
from nas_blockout.export.prediction import ExportedModel
from nas_blockout.structure.branching import NO_BRANCHES
from tests.nas_blockout.export.examples import (
    BRANCHED,
    CONSTANT,
    DESCRIPTION,
    MEAN,
    STAGES,
    STD,
    images,
    network,
    rehashed,
    unbranched,
    with_names_of_version_1,
)

ROOT = Path(__file__).resolve().parents[3]
FORMS = ("model.pt2", "model.onnx", "weights.safetensors")


def test_every_form_is_written_and_verified_within_its_bound(exported: Path) -> None:
    for name in ("branched", "constant", "dense"):
        assert {path.name for path in (exported / name).iterdir()} == {
            *FORMS, "architecture.json", "preprocessing.json", "card.md", "reference.safetensors", MANIFEST,
        }  # fmt: skip
        manifest = json.loads((exported / name / MANIFEST).read_text())
        assert manifest["skipped"] == {}
        assert (manifest["test_accuracy"], manifest["test_images"]) == (0.9, 540)
        assert manifest["versions"]["torch"] == torch.__version__
        for form in ("model.pt2", "model.onnx"):
            found = manifest["forms"][form]
            assert list(found["max_abs_difference"]) == ["1", "7", "256"]
            assert max(found["max_abs_difference"].values()) <= found["bound"]
            assert found["verified"]
        assert manifest["forms"]["weights.safetensors"]["max_abs_difference"] == {"tensors": 0.0}


def test_the_images_that_are_expected_at_a_time_are_recorded(exported: Path) -> None:
    for name, batch, line in (("dense", 256, "| images expected at a time | 256 |"), ("branched", None, "")):
        assert json.loads((exported / name / MANIFEST).read_text())["batch"] == batch
        card = (exported / name / "card.md").read_text()
        assert line in card
        assert ("expected at a time" in card) == bool(line)


def test_reference_holds_what_the_trained_network_computes(exported: Path) -> None:
    reference = load_file(exported / "branched" / "reference.safetensors")
    with torch.no_grad():
        logits = network(branched=True)((reference["images"] - MEAN) / STD)
    torch.testing.assert_close(reference["logits"], logits, rtol=0, atol=1e-5)
    assert logits.std(0).min() > 1e-2, "every logit depends on the images, a thousand times more than the tolerance"


def test_loading_as_the_card_says_gives_the_logits(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported / "branched")
    blocks = re.findall(r"```python\n(.+?)```", Path("card.md").read_text(), re.DOTALL)
    assert [block.count("\n") for block in blocks] == [3] * 5
    own = BranchedNetwork(STAGES, BRANCHED, channels=1, normalize_logits=True).eval()
    for batch in (1, 2, 33):
        given, expected = images(batch), network(branched=True)
        names: list[dict[str, Any]] = [{"images": given}, {"images": given.numpy()}, {"network": own}]
        with torch.no_grad():
            for block, values in zip((blocks[0], blocks[2], blocks[4]), names, strict=True):
                exec(block, values)
            logits = expected((given - MEAN) / STD)
            for found in (names[0]["logits"], torch.tensor(names[1]["logits"]), own((given - MEAN) / STD)):
                torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_images_of_another_type_are_refused_by_either_form(exported: Path, dtype: torch.dtype) -> None:
    """Bytes would be 255 times as large as what the model was trained on, and give logits all the same."""
    given = images(2).to(dtype)
    with pytest.raises(RuntimeError, match="dtype mismatch"):
        torch.export.load(exported / "branched" / "model.pt2").module()(given)
    session = onnxruntime.InferenceSession(exported / "branched" / "model.onnx")
    with pytest.raises(InvalidArgument, match="Unexpected input data type"):
        session.run(None, {"images": given.numpy()})


def test_program_and_graph_say_what_they_take_and_what_their_classes_are(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported / "branched")
    blocks = re.findall(r"```python\n(.+?)```", Path("card.md").read_text(), re.DOTALL)
    for block in (blocks[1], blocks[3]):
        values: dict[str, Any] = {}
        exec(block, values)
        assert values["asked"] == DESCRIPTION.preprocessing()


def test_card_says_the_least_version_of_every_runtime(exported: Path) -> None:
    text = (exported / "branched" / "card.md").read_text()
    assert f"\n`model.pt2` needs torch {torch.__version__.partition('+')[0]} or newer.\n" in text
    # 1.18 was the first to read version 10 of the file format, says its table of versions.
    assert onnx.load(exported / "branched" / "model.onnx").ir_version == 10
    assert "\n`model.onnx` needs onnxruntime 1.18 or newer.\n" in text


def test_card_says_what_how_well_and_at_what_cost(exported: Path) -> None:
    text = (exported / "branched" / "card.md").read_text()
    for expected in (
        "| data | digits, 100 training images |",
        "| classes | 5: a, b, c, d, e |",
        "| test accuracy of this model | 90.00% on 540 test images (seed 0) |",
        "95% interval 89.00% to 91.00%",
        "| spent to find and train it | 1,000 sample passes |",
        "No difference shown.",
        "| of this model | float64 | 1.0e-15 | 1e-10 | 3.25 |",
        "| as thresholded | float64 | 2.0e-15 | 1e-10 | not recorded |",
        diagram(BRANCHED.to_json(), DESCRIPTION.class_names),
        "## Limits",
    ):
        assert expected in text
    preprocessing = json.loads((exported / "branched" / "preprocessing.json").read_text())
    assert preprocessing["class_names"] == ["a", "b", "c", "d", "e"]
    assert (preprocessing["mean"], preprocessing["std"]) == ([MEAN], [STD])


def test_card_says_how_far_it_branches_and_what_the_study_recommends() -> None:
    found = structure_of_network(network(branched=True))
    assert found is not None
    rows = (("recommended model", "this one"), ("why", "it | is best"))
    text = card(replace(DESCRIPTION, structure=found, branches="3 branches (5 of 5 seeds)", recommendation=rows))
    assert "| recommended model | this one |\n| why | it \\| is best |" in text
    assert "| branches | 3 branches (5 of 5 seeds) |" in text
    assert "## Structure\n\n3 branches (5 of 5 seeds). Density is" in text
    assert "| hidden | 7 | 8 | 2 |" in text
    branch = found.branches[0]
    assert f"| 0 | {branch.exclusive_macs:,} | {branch.exclusive_parameters:,} | b, c, e |" in text
    dense = replace(DESCRIPTION, structure=structure_of_network(network(branched=False)), branches=NO_BRANCHES)
    assert f"| branches | {NO_BRANCHES} |" in card(dense)
    assert "No branches were learned: nodes were removed. Density is" in card(dense)
    assert "MACs of its own" not in card(dense)
    ended = "membership probabilities diverged in hidden (5 of 5 seeds)"
    assert f"| learning | {ended} |" in card(replace(dense, memberships=ended))
    assert "| learning |" not in card(dense)


def test_diagram_shows_what_every_group_holds_and_reads() -> None:
    assert diagram(BRANCHED.to_json(), ("a", 'b"]', "c", "d", "e")).splitlines() == [
        "graph LR",
        '  n0_0["features: 2 nodes"]',
        '  n0_1["features: 3 nodes"]',
        '  n0_2["features: 1 node"]',
        '  n1_0["hidden: 3 nodes"]',
        "  n0_0 --> n1_0",
        "  n0_2 --> n1_0",
        '  n1_1["hidden: 4 nodes"]',
        "  n0_1 --> n1_1",
        "  n0_2 --> n1_1",
        '  n2_0["classes: b#34;#93;, c, e"]',
        "  n1_0 --> n2_0",
        '  n2_1["classes: a, d"]',
        "  n1_1 --> n2_1",
    ]


def test_files_name_no_machine_and_hold_no_pickle_and_no_image(exported: Path) -> None:
    with zipfile.ZipFile(exported / "branched" / "model.pt2") as archive:
        contents = {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}
    assert contents["data/sample_inputs/model.pt"] == b""
    assert not any(content.startswith((b"\x80", b"PK")) for content in contents.values())
    for form in FORMS:
        content = (exported / "branched" / form).read_bytes()
        assert str(ROOT).encode() not in content
        assert b"nas_blockout" not in content


def test_onnx_is_valid_with_named_inputs_and_a_free_batch(exported: Path) -> None:
    model = onnx.load(exported / "branched" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    for value, name, rest in ((model.graph.input, "images", [1, 8, 8]), (model.graph.output, "logits", [5])):
        (found,) = value
        batch, *others = found.type.tensor_type.shape.dim
        assert (found.name, batch.dim_param, [axis.dim_value for axis in others]) == (name, "batch", rest)


def test_files_may_be_read_by_everyone_and_nothing_is_left_beside_them(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"branched", "constant", "dense", *unbranched()}
    assert (exported / "branched").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (exported / "branched").iterdir()} == {0o644}


@pytest.mark.parametrize("name", ["blockdrop", "first-block", "resnet", "inception"])
def test_networks_that_are_not_built_from_stages_are_exported(exported: Path, name: str) -> None:
    assert json.loads((exported / name / "architecture.json").read_text()) == {}
    assert "mermaid" not in (exported / name / "card.md").read_text()
    given = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch.export.load(exported / name / "model.pt2").module()(given)
        torch.testing.assert_close(found, unbranched()[name]((given - 0.5) / 0.25), rtol=1e-4, atol=1e-5)


def test_without_onnxruntime_there_is_no_onnx_and_the_reason_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what importlib takes for a package that is not there
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "old").write_text("what was there is replaced")
    assert export_model(network(branched=False), folder, replace(DESCRIPTION, name="dense")).ok
    assert {"model.onnx", "old"} & {path.name for path in folder.iterdir()} == set()
    reason = "onnxruntime not installed: pip install onnxruntime"
    assert json.loads((folder / MANIFEST).read_text())["skipped"] == {"model.onnx": reason}
    assert f"There is no ONNX form: {reason}." in (folder / "card.md").read_text()


def test_a_model_that_cannot_be_reproduced_is_not_handed_over(tmp_path: Path) -> None:
    class Moody(BranchedNetwork):
        """Gives other logits each time it is asked, as a network left in training mode would."""

        calls = 0

        def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            Moody.calls += 1
            return super().forward(x, generator) + float(Moody.calls)

    model = Moody(STAGES, BRANCHED, channels=1).eval()
    (tmp_path / "moody").mkdir()
    with pytest.raises(
        VerificationError, match=r"is not the model that was trained: with weights\.safetensors its logits differ"
    ):
        export_model(model, tmp_path / "moody", DESCRIPTION)
    assert list(tmp_path.rglob("*")) == [tmp_path / "moody"]


@pytest.mark.parametrize("precision", ["float64", "raw_float64", "float32", "raw_float32"])
@pytest.mark.parametrize("difference", [2e-4, math.nan])
def test_a_network_that_is_not_the_one_that_was_learned_is_not_handed_over(
    tmp_path: Path, precision: str, difference: float
) -> None:
    equality = {**(DESCRIPTION.equality or {}), precision: {"max_abs_difference": difference, "bound": 1e-4}}
    memberships = "thresholded" if precision.startswith("raw_") else "its"
    text = (
        f"a is not the network that was learned: under {memberships} memberships its logits differ by {difference:.2e}"
    )
    with pytest.raises(VerificationError, match=re.escape(text)):
        export_model(network(branched=True), tmp_path / "a", replace(DESCRIPTION, equality=equality))
    assert list(tmp_path.iterdir()) == []


def test_constants_are_run_written_and_outlined(exported: Path) -> None:
    folder = exported / "constant"
    reference = load_file(folder / "reference.safetensors")
    with torch.no_grad():
        logits = network(branched=True, architecture=CONSTANT)((reference["images"] - MEAN) / STD)
    torch.testing.assert_close(reference["logits"], logits, rtol=0, atol=1e-5)
    assert logits.std(0).gt(1e-3).tolist() == [True, True, False, True, True], "class 2 reads nothing"
    layers = outline(ExportedModel.open(folder))
    assert [[(g.width, g.reads, g.constant) for g in layer.groups] for layer in layers] == [
        [(4, 1, False)],
        [(3, 4, False), (1, 4, False), (2, 0, True)],
        [(3, 4, False), (4, 3, False)],
        [(1, 0, True), (2, 3, False), (2, 4, False)],
    ]
    assert sum(g.macs for layer in layers for g in layer.groups) == macs_of(CONSTANT, STAGES, 1)
    parameters = sum(value.numel() for value in network(branched=True, architecture=CONSTANT).parameters())
    assert sum(g.parameters for layer in layers for g in layer.groups) == parameters
    assert '  n1_2["features: 2 nodes, constant"]' in diagram(CONSTANT.to_json(), DESCRIPTION.class_names)


def test_a_diagram_counts_the_nodes_that_a_group_of_a_graph_names() -> None:
    groups = [{"clusters": [0], "nodes": [0, 3]}, {"clusters": [1], "nodes": [1, 2, 4]}]
    layers = [{"name": "conv", "groups": groups}, {"name": "classes", "groups": [{"clusters": [0], "classes": [0]}]}]
    document = {"schema_version": 2, "clusters": 2, "edges": [[None, "conv"], ["conv", "classes"]], "layers": layers}
    drawn = diagram(document, ("a",))
    assert '"conv: 2 nodes"' in drawn
    assert '"conv: 3 nodes"' in drawn


def test_the_arrows_of_a_diagram_follow_the_edges_of_a_graph_and_many_layers_are_folded() -> None:
    names = [f"stage{stage}.conv{conv}" for stage in range(4) for conv in range(5)]
    groups = [{"clusters": [0], "nodes": [0]}, {"clusters": [1], "nodes": [1, 2]}]
    classes = {"name": "classes", "groups": [{"clusters": [0], "classes": [0]}, {"clusters": [1], "classes": [1]}]}
    layers = [*({"name": name, "groups": groups} for name in names), classes]
    edges = [[None, names[0]], *pairwise([*names, "classes"]), [names[0], names[15]], [names[7], names[2]]]
    lines = diagram({"clusters": 2, "layers": layers, "edges": edges}, ("a", "b")).splitlines()
    assert [line for line in lines if "_0 --> n" in line] == [
        "  n1_0 --> n0_0",
        "  n0_0 --> n1_0",
        "  n1_0 --> n2_0",
        "  n2_0 --> n3_0",
        "  n0_0 --> n3_0",
        "  n3_0 --> n4_0",
    ]
    assert '  n0_1["stage0 (5 layers): 10 nodes"]' in lines
    assert '  n4_1["classes: b"]' in lines


def test_wrong_classes_and_one_folder_for_two_models_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one logit a class, got the shape \(256, 5\) for 256 images and 2 class"):
        export_model(network(branched=False), tmp_path / "a", replace(DESCRIPTION, class_names=("a", "b")))
    with pytest.raises(ValueError, match="must be exported to different folders"):
        export_models([(network(branched=False), tmp_path / "a", DESCRIPTION)] * 2)
    assert list(tmp_path.iterdir()) == []
    assert export_models([]) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"std": (0.0,)}, r"std must be above 0 in every channel, got \(0.0,\)"),
        ({"mean": (0.1, 0.2)}, "each of the 1 channels needs one mean and one std"),
        ({"height": 0}, "must be at least 1, got"),
        ({"class_names": ()}, "must be at least 1, got"),
        ({"batch": 0}, "batch must be at least 1, or None for one image as well as many, got 0"),
    ],
)
def test_descriptions_that_describe_no_images_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DESCRIPTION, **changed)


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    model, other = network(branched=True), BranchedNetwork(STAGES, BRANCHED, channels=1, normalize_logits=True)
    save_weights(model, tmp_path / "deep" / "w.safetensors")
    load_weights(other, tmp_path / "deep" / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_of_version_1_are_read(tmp_path: Path) -> None:
    model, other = network(branched=True), BranchedNetwork(STAGES, BRANCHED, channels=1, normalize_logits=True)
    save_weights(model, tmp_path / "w.safetensors")
    with_names_of_version_1(tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_exported_models_of_version_1_are_shown(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "branched", tmp_path / "model"))
    layers = outline(ExportedModel.open(folder))
    with_names_of_version_1(folder / "weights.safetensors")
    rehashed(folder, "weights.safetensors")
    assert outline(ExportedModel.open(folder)) == layers


def test_weights_that_are_not_the_networks_are_refused_and_leave_it_as_it_was(tmp_path: Path) -> None:
    model, path = network(branched=False), tmp_path / "w.safetensors"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_weights(network(branched=True), path)
    with pytest.raises(VerificationError, match=r"another network: normalize_logits.num_batches_tracked has .*no such"):
        load_weights(model, path)
    torch.save({"a": 1}, path)
    with pytest.raises(VerificationError, match="no safetensors file"):
        load_weights(model, path)
    with pytest.raises(VerificationError, match="is missing: run the study again"):
        load_weights(model, tmp_path / "nowhere")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    path = tmp_path / "w.safetensors"
    save_weights(tied, path)
    before = path.read_bytes()
    tied[1].weight = tied[0].weight  # safetensors refuses tensors that share memory
    with pytest.raises(RuntimeError, match="share memory"):
        save_weights(tied, path)
    assert [found.name for found in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.read_bytes() == before


def test_latency_is_measured_for_every_batch_size_and_threads_are_left_alone() -> None:
    threads = torch.get_num_threads()
    found = measure_latency(network(branched=False), (1, 8, 8), batches=(1, 32), repeats=3)
    assert set(found) == {1, 32}
    assert all(milliseconds > 0 for milliseconds in found.values())
    with pytest.raises(RuntimeError):
        measure_latency(network(branched=False), (0, 8, 8), repeats=1)
    assert torch.get_num_threads() == threads


def test_a_card_has_no_empty_cells_or_sections_where_little_is_known() -> None:
    found = structure_of_network(network(branched=True))
    assert found is not None
    layers = tuple(replace(layer, dense_nodes=None) for layer in found.layers)
    branches = tuple(replace(branch, exclusive_macs=None, exclusive_parameters=None) for branch in found.branches)
    bare = replace(found, layers=layers, branches=branches)
    text = card(replace(DESCRIPTION, structure=bare, question="", verdict="", accuracy=""))
    assert "| layer | nodes | groups | density |" in text
    assert "| branch | classes |" in text
    assert f"of the study `{DESCRIPTION.study}`.\n" in text
    assert "|  |" not in text
    assert "\n\n\n" not in text
    assert ": \n" not in text
