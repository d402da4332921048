"""Exported models: every form computes what was trained, in a process without this package; nothing else passes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.export import (
    MANIFEST,
    ModelDescription,
    VerificationError,
    export_model,
    export_models,
    load_weights,
    measure_latency,
    save_weights,
    verify,
    verify_all,
)
from search_spaces.branched import Hierarchy, hierarchical

STAGES = stages(ConvNetSettings((4, 6), (8,)), (1, 8, 8), 5)
BRANCHED = hierarchical(Hierarchy(1, 2, False, 0.5, 0.2, 7), STAGES)


def network(*, branched: bool) -> BranchedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = BranchedNetwork(
            STAGES, BRANCHED if branched else dense_of(STAGES), channels=1, normalise_logits=branched
        )
        for name, buffer in found.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2)
    return found.eval()


DESCRIPTION = ModelDescription(
    name="branched",
    study="example",
    question="does it work?",
    data="digits",
    train_images=100,
    class_names=("a", "b", "c", "d", "e"),
    channels=1,
    height=8,
    width=8,
    mean=(0.3,),
    std=(0.4,),
    parameters=100,
    macs=1000,
    seed=0,
    test_accuracy=0.9,
    test_images=540,
    accuracy="90.00% on average, 5 seeds",
    verdict="No difference shown.",
    spent="1,000 sample passes",
    architecture=BRANCHED.to_json(),
    equality={"float64": {"max_abs_difference": 1e-15, "bound": 1e-10}},
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    models = [
        (network(branched=branched), folder / name, replace(DESCRIPTION, name=name))
        for name, branched in (("branched", True), ("dense", False))
    ]
    found = export_models(models)
    assert all(each.ok for each in found)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy of an exported model that a test may tamper with."""
    folder = tmp_path / "branched"
    folder.mkdir()
    for path in (exported / "branched").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def rehashed(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as somebody would who knows how."""
    import hashlib

    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_every_form_is_written_and_verified_with_its_bounds(exported: Path) -> None:
    names = {path.name for path in (exported / "branched").iterdir()}
    assert names == {
        "model.pt2", "model.onnx", "weights.safetensors", "architecture.json", "preprocessing.json", "card.md",
        "reference.safetensors", MANIFEST,
    }  # fmt: skip
    found = verify_all([exported / "branched", exported / "dense"])
    assert [each.ok for each in found] == [True, True]
    for form in ("model.pt2", "model.onnx"):
        assert set(found[0].differences[form]) == {"1", "7", "256"}
        assert max(found[0].differences[form].values()) < 1e-4


def test_exported_program_normalises_and_takes_any_batch(exported: Path) -> None:
    program = torch.export.load(str(exported / "branched" / "model.pt2")).module()
    model = network(branched=True)
    for batch in (1, 2, 33):
        images = torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            torch.testing.assert_close(program(images), model((images - 0.3) / 0.4), rtol=1e-4, atol=1e-5)


def test_card_says_what_how_well_and_how_to_load(exported: Path) -> None:
    text = (exported / "branched" / "card.md").read_text()
    for expected in (
        "90.00%",
        "540 images",
        "torch.export.load",
        "InferenceSession",
        "```mermaid",
        "1.0e-15",
        "## Limits",
    ):
        assert expected in text
    preprocessing = json.loads((exported / "branched" / "preprocessing.json").read_text())
    assert preprocessing["class_names"] == ["a", "b", "c", "d", "e"]


def test_an_export_again_replaces_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "old").write_text("old")
    assert export_model(network(branched=False), folder, replace(DESCRIPTION, name="dense")).ok
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "weights.safetensors", "preprocessing.json", "card.md"])
def test_a_changed_byte_is_refused(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    found = verify(copy)
    assert not found.ok
    assert found.findings == (f"{name} has been changed since it was written: export the model again",)


def test_missing_additional_and_unreadable_files_are_refused(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "extra.py").write_text("print()")
    assert verify(copy).findings == (
        "model.onnx is missing: export the model again",
        "extra.py does not belong here: remove it",
    )
    (copy / MANIFEST).write_text("{")
    assert "cannot be read" in verify(copy).findings[0]
    (copy / MANIFEST).unlink()
    assert "is missing" in verify(copy).findings[0]


def test_links_out_of_the_folder_are_refused(copy: Path) -> None:
    target = copy / "card.md"
    content = target.read_bytes()
    target.unlink()
    (copy.parent / "outside").write_bytes(content)
    target.symlink_to(copy.parent / "outside")
    assert "no plain file" in verify(copy).findings[0]


def test_a_hostile_pickle_in_place_of_weights_is_never_loaded(copy: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {copy.parent / 'owned'}",)

    for name in ("weights.safetensors", "model.pt2"):
        torch.save({"x": Hostile()}, copy / name)
        rehashed(copy, name)
    found = verify(copy)
    assert not found.ok
    assert {finding.split(":")[0] for finding in found.findings} == {"weights.safetensors", "model.pt2"}
    assert not (copy.parent / "owned").exists()


def test_weights_of_another_network_and_wrong_logits_are_refused(copy: Path) -> None:
    reference = load_file(copy / "reference.safetensors")
    save_file({**reference, "logits": reference["logits"] + 1}, copy / "reference.safetensors")
    rehashed(copy, "reference.safetensors")
    findings = verify(copy).findings
    assert any("model.pt2: logits differ by 1.00e+00" in finding for finding in findings)
    save_file({**reference, "logits": reference["logits"][:, :3].contiguous()}, copy / "reference.safetensors")
    rehashed(copy, "reference.safetensors")
    assert any("logits have the shape" in finding for finding in verify(copy).findings)


def test_a_model_that_cannot_be_reproduced_is_not_handed_over(tmp_path: Path) -> None:
    class Moody(BranchedNetwork):
        """Gives other logits each time it is asked, as a network left in training mode would."""

        calls = 0

        def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            Moody.calls += 1
            return super().forward(x, generator) + float(Moody.calls)

    model = Moody(STAGES, dense_of(STAGES), channels=1).eval()
    with pytest.raises(VerificationError, match="is not the model that was trained"):
        export_model(model, tmp_path / "moody", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def test_weights_survive_a_round_trip_and_refuse_what_is_not_theirs(tmp_path: Path) -> None:
    model, path = network(branched=True), tmp_path / "w.safetensors"
    save_weights(model, path)
    other = BranchedNetwork(STAGES, BRANCHED, channels=1, normalise_logits=True)
    load_weights(other, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(VerificationError, match="another network"):
        load_weights(network(branched=False), path)
    torch.save({"a": 1}, path)
    with pytest.raises(VerificationError, match="no safetensors file"):
        load_weights(model, path)
    with pytest.raises(VerificationError, match="is missing"):
        load_weights(model, tmp_path / "nowhere")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_export as t
original = Path.rename
def rename(self, target):
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename
t.export_model(t.network(branched=False), Path(sys.argv[1]) / "dense", t.DESCRIPTION)
"""


def test_a_kill_before_the_folder_is_in_place_leaves_what_was_there(exported: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "dense").exists()


def test_latency_is_measured_for_every_batch_size_and_threads_are_left_alone() -> None:
    threads = torch.get_num_threads()
    found = measure_latency(network(branched=False), (1, 8, 8), batches=(1, 32), repeats=3)
    assert set(found) == {1, 32}
    assert 0 < found[1] < found[32]
    assert torch.get_num_threads() == threads
