"""Verification: what is not the model that was exported is refused, with the file and the remedy, and never run."""

import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nas_blockout.backbones.inference_cost import Operations
from nas_blockout.export import MANIFEST, Verification, verify, verify_all
from nas_blockout.export.subprocess_check import _weights
from nas_blockout.export.verification import Job, check_files, collect, judge, sealed, submit
from tests.nas_blockout.export.examples import (
    RUNS_CODE,
    Hostile,
    edit,
    network,
    rehashed,
    rewrite,
    saved,
    with_names_of_version_1,
)

Tamper = Callable[[Path], None]
AGAIN = "export the model again"


def changed_byte(name: str) -> Tamper:
    def tamper(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return tamper


def manifest(change: Callable[[Any], None]) -> Tamper:
    def tamper(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        change(document)
        (folder / MANIFEST).write_text(sealed(document))

    return tamper


def written(name: str, content: str | bytes) -> Tamper:
    return lambda folder: void((folder / name).write_bytes(content.encode() if isinstance(content, str) else content))


def forged(name: str, change: Callable[[Path], object]) -> Tamper:
    """Change a file and its recorded hash."""

    def tamper(folder: Path) -> None:
        change(folder / name)
        rehashed(folder, name)

    return tamper


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def void(_: object) -> None:
    return None


def link(folder: Path) -> None:
    (folder / "card.md").rename(folder.parent / f"{folder.name}-outside")
    (folder / "card.md").symlink_to(folder.parent / f"{folder.name}-outside")


def huge(folder: Path) -> None:
    with (folder / "weights.safetensors").open("wb") as file:
        file.truncate(5 << 30)  # holds nothing, takes no room


def without_onnx(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    manifest(lambda document: document["files"].pop("model.onnx"))(folder)


def skipped_onnx(folder: Path) -> None:
    without_onnx(folder)
    manifest(lambda document: document.update(skipped={"model.onnx": "not installed"}))(folder)


def reference(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Tamper:
    def tamper(path: Path) -> None:
        save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)

    return forged("reference.safetensors", tamper)


def weights(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Tamper:
    return forged("weights.safetensors", lambda path: save_file(dict(change(load_file(path))), path))


def first(tensors: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "stages.conv1.operations.0.weight"
    return {**tensors, name: change(tensors[name]).contiguous()}


def program(entry: str, content: bytes) -> Tamper:
    return forged("model.pt2", lambda path: rewrite(path, lambda entries: entries.update({entry: content})))


def graph(change: Callable[[Any], None]) -> Tamper:
    return forged("model.pt2", lambda path: edit(path, "models/model.json", change))


def bomb(path: Path) -> None:
    rewrite(path, lambda entries: entries.update({"byteorder": bytes(64 << 20)}), compression=zipfile.ZIP_DEFLATED)


def twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"what another reader might take instead")


def operator(target: str) -> Tamper:
    return graph(lambda document: document["graph_module"]["graph"]["nodes"][0].update(target=target))


CHANGED = "has been changed since it was written: export the model again"
# What somebody did to the folder, and what verification says of it.
TAMPERED: dict[str, tuple[Tamper, str]] = {
    **{
        f"changed byte of {name}": (changed_byte(name), rf"{name} {CHANGED}")
        for name in (
            "model.pt2", "model.onnx", "weights.safetensors", "reference.safetensors", "architecture.json",
            "preprocessing.json", "card.md",
        )
    },
    "missing form": (lambda f: (f / "model.onnx").unlink(), f"model.onnx is missing: {AGAIN}"),
    "unlisted form": (without_onnx, f"{MANIFEST} does not list model.onnx: {AGAIN}"),
    "additional file": (written("extra.py", "print()"), "extra.py does not belong here: remove it"),
    "additional folder": (lambda f: (f / "data").mkdir(), "data does not belong here: remove it"),
    "link out of the folder": (link, f"card.md is no plain file of a reasonable size: {AGAIN}"),
    "huge file": (huge, f"weights.safetensors is no plain file of a reasonable size: {AGAIN}"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), f"{MANIFEST} is missing or no plain file .*: {AGAIN}"),
    "huge manifest": (written(MANIFEST, " " * (2 << 20)), f"{MANIFEST} is missing or no plain file of a reasonable"),
    "broken manifest": (written(MANIFEST, "{"), rf"{MANIFEST} cannot be read \(JSONDecodeError.*: {AGAIN}"),
    "deep manifest": (written(MANIFEST, "[" * 500_000), rf"{MANIFEST} cannot be read \(RecursionError"),
    "manifest of a list": (written(MANIFEST, "[]"), rf"{MANIFEST} cannot be read \(TypeError"),
    "binary manifest": (written(MANIFEST, b"\xff"), rf"{MANIFEST} cannot be read \(UnicodeDecodeError"),
    "earlier manifest": (
        manifest(lambda document: document.update(schema_version=1)),
        f"{MANIFEST} has schema_version 1, this program reads 2: {AGAIN}",
    ),
    "better accuracy": (
        lambda f: replaced(f / MANIFEST, '"test_accuracy": 0.9', '"test_accuracy": 1.0'),
        f"{MANIFEST} {CHANGED}",
    ),
    "other class names beside the program": (
        forged("preprocessing.json", lambda path: replaced(path, '"a"', '"z"')),
        f"model.pt2: cannot be used: ValueError: its description of images and classes differs from .*; {AGAIN}",
    ),
    "other class names beside the graph": (
        forged("preprocessing.json", lambda path: replaced(path, '"a"', '"z"')),
        f"model.onnx: cannot be used: ValueError: its description of images and classes differs from .*; {AGAIN}",
    ),
    "pickle as weights": (
        forged("weights.safetensors", lambda path: path.write_bytes(saved(Hostile(path.parent / "mark")))),
        f"weights.safetensors: cannot be used: SafetensorError: .*; {AGAIN}",
    ),
    "pickle as program": (
        forged("model.pt2", lambda path: path.write_bytes(saved(Hostile(path.parent / "mark")))),
        f"model.pt2: cannot be used: ValueError: its entry '.*data.pkl' does not belong to a plain program; {AGAIN}",
    ),
    **{
        name: (
            forged("model.pt2", lambda path, change=change: change(path, path.parent / "mark")),
            "model.pt2: cannot be used: ValueError: .* (pickle|does not belong|which is more than a computation)",
        )
        for name, change in RUNS_CODE.items()
    },
    "compiled library": (
        program("data/aotinductor/model/model.so", b"\x7fELF"),
        "model.pt2: .*its entry 'model/data/aotinductor/model/model.so' does not belong",
    ),
    "guard with code": (
        graph(lambda document: document.update(guards_code=["__import__('os').mkdir('mark')"])),
        "model.pt2: .*models/model.json holds guards_code=.* more than a computation of tensors",
    ),
    "operator of Python": (operator("torch.serialization.os.mkdir"), r"holds target='torch.serialization.os.mkdir'"),
    "operator that reads files": (operator("torch.ops.aten.from_file.default"), "holds target='torch.ops.aten.from_f"),
    "zip bomb": (forged("model.pt2", bomb), "model.pt2: .*its entries unpack to more than the file holds"),
    "entry twice": (forged("model.pt2", twice), "model.pt2: .*its entry 'model/.*' does not belong"),
    "no archive": (forged("model.pt2", lambda path: path.write_bytes(b"x")), "model.pt2: .*BadZipFile"),
    "no graph": (forged("model.onnx", lambda path: path.write_bytes(b"x")), "model.onnx: cannot be used: InvalidProto"),
    "weights of another network": (
        weights(lambda tensors: {"other": torch.ones(1)}),
        f"weights.safetensors: cannot be used: ValueError: it holds other tensors than model.pt2; {AGAIN}",
    ),
    "weights of another shape": (
        weights(lambda tensors: first(tensors, lambda weight: weight[:2])),
        "weights.safetensors: .*stages.conv1 has 2 nodes that are not zero, not 4 as in model.pt2",
    ),
    "weights that differ": (
        weights(lambda tensors: first(tensors, lambda weight: weight + 1)),
        rf"weights.safetensors: weights differ by \d\.\d\de\+00, more than 0e.00; {AGAIN}",
    ),
    "weights that are no numbers": (
        weights(lambda tensors: first(tensors, lambda weight: weight * math.nan)),
        "weights.safetensors: .*conv1.operations.0.weight is not finite",
    ),
    "other logits": (
        reference(lambda found: {**found, "logits": found["logits"] + 1}),
        rf"model.pt2: logits differ by 1.00e\+00, more than .*; {AGAIN}",
    ),
    "logits that are no numbers": (
        reference(lambda found: {**found, "logits": found["logits"] * math.nan}),
        f"reference.safetensors: cannot be used: ValueError: a recorded number is not finite; {AGAIN}",
    ),
    "fewer classes": (
        reference(lambda found: {**found, "logits": found["logits"][:, :3]}),
        r"reference.safetensors: .*logits have the shape \(256, 3\), not \(256, 5\) as in preprocessing.json",
    ),
    "fewer images": (
        reference(lambda found: {name: value[:1] for name, value in found.items()}),
        r"reference.safetensors: .*images have the shape \(1, 1, 8, 8\), not \(256, 1, 8, 8\) as in preprocessing.json",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def verified(
    exported: Path, copied: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Verification]]:
    """All tampered folders, three that are in order, and one that is not there, verified in one go."""
    root = tmp_path_factory.mktemp("tampered")
    in_order = ("in order", "skipped ONNX", "of version 1")
    folders = {name: copied(root / name.replace(" ", "-")) for name in (*TAMPERED, *in_order)}
    for name, (tamper, _) in TAMPERED.items():
        tamper(folders[name])
    skipped_onnx(folders["skipped ONNX"])
    forged("weights.safetensors", with_names_of_version_1)(folders["of version 1"])
    folders["nowhere"] = root / "nowhere"
    return dict(zip(folders, zip(folders.values(), verify_all(list(folders.values())), strict=True), strict=True))


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_tampered_with_is_refused_with_file_and_remedy(
    verified: Mapping[str, tuple[Path, Verification]], name: str
) -> None:
    folder, found = verified[name]
    assert not found.ok
    expected = re.compile(TAMPERED[name][1])
    assert any(expected.search(finding) for finding in found.findings), found.findings
    assert all("export the model again" in finding or "remove it" in finding for finding in found.findings)
    assert not (folder / "mark").exists(), "code of the file was run"


def test_what_is_in_order_is_verified_among_what_is_not(verified: Mapping[str, tuple[Path, Verification]]) -> None:
    _, found = verified["in order"]
    assert (found.ok, found.findings) == (True, ())
    for form in ("model.pt2", "model.onnx"):
        assert set(found.differences[form]) == {"1", "7", "256"}
        assert max(found.differences[form].values()) <= found.bounds[form] < 1e-3
    _, skipped = verified["skipped ONNX"]
    assert (skipped.ok, set(skipped.differences)) == (True, {"model.pt2", "weights.safetensors"})


def test_exported_models_of_version_1_are_verified(verified: Mapping[str, tuple[Path, Verification]]) -> None:
    _, found = verified["of version 1"]
    assert (found.ok, found.findings) == (True, ())
    assert found.differences["weights.safetensors"] == {"tensors": 0.0}


def test_a_folder_that_is_not_there_is_a_finding(verified: Mapping[str, tuple[Path, Verification]]) -> None:
    folder, found = verified["nowhere"]
    assert found.findings == (f"{folder} is no folder of an exported model: name one that holds {MANIFEST}",)


LOADS = """
import gc, sys, torch
gc.disable()  # to look through all that is imported takes longer than to load four small files
for path in sys.argv[1:]:
    try:
        torch.export.load(path)
    except Exception as error:
        pass
"""


def test_the_archives_that_are_refused_do_run_code_where_torch_loads_them(
    copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    model, paths = copied(tmp_path / "model") / "model.pt2", {}
    for name, change in RUNS_CODE.items():
        paths[name] = tmp_path / f"{name}.pt2"
        paths[name].write_bytes(model.read_bytes())
        change(paths[name], tmp_path / f"{name}-ran")
    command = [sys.executable, "-I", "-W", "ignore", "-c", LOADS, *map(str, paths.values())]
    subprocess.run(command, check=True, capture_output=True)
    assert {name for name in RUNS_CODE if (tmp_path / f"{name}-ran").is_dir()} == set(RUNS_CODE)


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_no_byte_of_the_manifest_can_change(exported: Path, place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path in (exported / "branched").iterdir():
            Path(folder, path.name).symlink_to(path)  # what is judged after the manifest, and not here
        content = bytearray(Path(folder, MANIFEST).read_bytes())
        content[place % len(content)] ^= 1 << bit
        Path(folder, MANIFEST).unlink()
        Path(folder, MANIFEST).write_bytes(content)
        _, (finding,) = check_files(Path(folder))
    assert finding.startswith(MANIFEST)
    assert finding.endswith(AGAIN)


def test_a_number_that_is_none_is_not_within_a_bound() -> None:
    found = judge({"model.pt2": {"max_abs_difference": {"1": 0.0, "7": math.nan, "256": 0.0}, "bound": 1e-4}})
    assert found.findings == ("model.pt2: logits differ by nan, more than 1e-04; export the model again",)


def test_weights_of_a_graph_are_those_whose_hash_its_program_holds(tmp_path: Path) -> None:
    save_file({"body.conv.bundles.0.weight": torch.ones(2, 1)}, tmp_path / "weights.safetensors")
    content = (tmp_path / "weights.safetensors").read_bytes()
    program = SimpleNamespace(state_dict={"network.body.conv.0.weight": torch.ones(2, 2)})
    assert _weights(content, lambda: program, lambda: hashlib.sha256(content).hexdigest()) == {"tensors": 0.0}
    for other in ("", hashlib.sha256(b"others").hexdigest()):
        with pytest.raises(ValueError, match=r"not the file of weights that model\.pt2 was made of"):
            _weights(content, lambda: program, lambda other=other: other)  # type: ignore[misc]  # bound at once


@pytest.mark.parametrize("operations", get_args(Operations))
@pytest.mark.parametrize("branched", [True, False])
def test_weights_are_those_of_the_program_however_it_divides_its_layers(
    operations: Operations, branched: bool, tmp_path: Path
) -> None:
    """Of a sum no name stays, and of a dense first layer that two branches read only the order of its nodes."""
    trained = network(branched=branched)
    run = trained.for_inference(operations=operations)
    held = {f"network.{name}": value for name, value in run.state_dict().items()}
    assert any(".terms." in name for name in held) == (branched and operations == "summed")
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")

    def differences() -> dict[str, float]:
        content = (tmp_path / "weights.safetensors").read_bytes()
        return _weights(content, lambda: SimpleNamespace(state_dict=held), lambda: "no hash is asked for")

    assert differences() == {"tensors": 0.0}
    numbers = next(value for name, value in held.items() if name.endswith("weight")).view(-1)
    numbers[numbers.nonzero()[0]] *= 1.001
    assert differences()["tensors"] > 0
    for name in [name for name in held if ".features." in name]:
        del held[name]
    with pytest.raises(ValueError, match=r"it holds other tensors than model\.pt2"):
        differences()


def test_what_was_not_compared_is_not_verified() -> None:
    values = {"max_abs_difference": {"1": 1e-4}, "bound": 1e-4}
    assert judge({"model.pt2": values, "weights.safetensors": values}).ok
    assert judge({"model.pt2": values}).findings == ("weights.safetensors: was not compared; export the model again",)


ANSWERS_ONCE = """
import json, sys
first = json.loads(sys.stdin.readline())
print('{"model.pt2": "answered"}')
sys.exit("out of memory")
"""


def test_a_model_that_the_process_dies_of_is_blamed_alone(exported: Path) -> None:
    hashes = json.loads((exported / "dense" / MANIFEST).read_text())["files"]
    command = [sys.executable, "-I", "-c", ANSWERS_ONCE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        jobs = [Job(exported / "dense", hashes)] * 3
        for job in jobs:
            submit(job, process)
        first, second, third = collect(jobs, process)
    assert first == {"model.pt2": "answered"}
    (blamed,) = judge(second).findings
    assert blamed.startswith("reloading: cannot be used: the process ended with 1: out of memory")
    assert judge(third).ok, "the rest is examined in a process of its own"


def test_one_folder_is_verified_like_many(copied: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    (folder / "card.md").unlink()
    assert verify(folder).findings == (f"card.md is missing: {AGAIN}",)
    assert verify_all([]) == []


def test_the_folder_of_a_study_is_told_from_that_of_a_model_and_its_models_are_named(
    copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    model = copied(tmp_path / "study" / "models" / "learned")
    for folder in (tmp_path / "study", tmp_path / "study" / "models"):
        (finding,) = verify(folder).findings
        assert finding == f"it is the folder of several models, not of one: name {model}"
