"""Exported models on the command line: pictures are classified as recorded, and the tree adds up."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.branched import macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.export import ModelDescription, export_model
from nas_blockout.train import TrainingSettings
from services import cli

ARCHITECTURE = Architecture(
    2,
    (
        Layer("features", (Group((0,), 6), Group((1,), 6), Group((0, 1), 4))),
        Layer("hidden", (Group((0,), 8), Group((1,), 8))),
        Layer("classes", (Group((0,), 5, (0, 2, 4, 6, 8)), Group((1,), 5, (1, 3, 5, 7, 9)))),
    ),
)


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.excepthook

    def called(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        assert "Traceback" not in streams.err
        return Ended(int(ended.value.code or 0), streams.out, streams.err)

    yield called
    sys.excepthook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Made:
    """An exported model of branches over digits, and where pictures of its test images stand with what it said."""

    folder: Path
    model: nn.Module
    splits: Splits
    pictures: tuple[Path, ...]
    recorded: tuple[str, ...]


def picture(image: Tensor, path: Path) -> Path:
    Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    experiment = Experiment(
        data=DataSettings(),
        backbone=ConvNetSettings((8, 16), (16,)),
        architecture=ARCHITECTURE,
        training=TrainingSettings(epochs=3, batch_size=64),
    )
    splits = load(experiment.data)
    run = Run(experiment, splits)
    for _ in run:
        pass
    assert run.outcome is not None
    model, place = run.outcome.model.eval(), tmp_path_factory.mktemp("made")
    asked, plan = splits.preprocessing, stages(experiment.backbone, splits.shape, 10)  # type: ignore[arg-type]
    description = ModelDescription(
        name="branched", study="example", question="?", data="digits", train_images=len(splits.train),
        class_names=splits.class_names, channels=1, height=8, width=8, mean=asked.mean, std=asked.std,
        parameters=sum(parameter.numel() for parameter in model.parameters()), macs=macs_of(ARCHITECTURE, plan, 1),
        seed=0, test_accuracy=0.9, test_images=len(splits.test()), accuracy="", verdict="", spent="",
        architecture=ARCHITECTURE.to_json(),
    )  # fmt: skip
    export_model(model, place / "model", description)
    test = splits.test().images[:40]
    pictures = tuple(picture(image, place / f"{n}.png") for n, image in enumerate(asked.undo(test.clone())))
    with torch.no_grad():
        recorded = tuple(splits.class_names[label] for label in model(test).argmax(1))
    return Made(place / "model", model, splits, pictures, recorded)


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_pictures_of_the_test_split_get_the_recorded_classes(call: Call, made: Made, form: str) -> None:
    ended = call("predict", made.folder, *made.pictures, "--form", form, "--json", "--top", 10)
    assert ended.code == 0
    found = json.loads(ended.out)["predictions"]
    assert [each["image"] for each in found] == [str(path) for path in made.pictures]
    assert tuple(each["classes"][0]["name"] for each in found) == made.recorded
    assert len(set(made.recorded)) > 5, "it has learned to tell classes apart"
    for each in found:
        assert sum(best["probability"] for best in each["classes"]) == pytest.approx(1, abs=1e-4)


def test_a_person_reads_class_names_and_probabilities(call: Call, made: Made) -> None:
    ended = call("predict", made.folder, made.pictures[0], "--top", 2)
    name, _, rest = ended.out.partition(": ")
    assert name == str(made.pictures[0])
    assert rest.split()[0] == made.recorded[0]
    assert rest.count("%") == 2


def test_another_size_colour_and_format_are_fitted(call: Call, made: Made, tmp_path: Path) -> None:
    with Image.open(made.pictures[0]) as drawn:
        large = drawn.resize((80, 80), Image.Resampling.NEAREST).convert("RGB")
    large.save(tmp_path / "large.png")
    large.save(tmp_path / "large.jpg", quality=95)
    Image.fromarray(np.asarray(large.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("large.png", "large.jpg", "deep.png"):
        ended = call("predict", made.folder, tmp_path / name, "--json")
        assert json.loads(ended.out)["predictions"][0]["classes"][0]["name"] == made.recorded[0]


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("absent.png", None, 3, "there is no image file"),
        ("text.png", b"not an image", 1, "must be a whole image"),
        ("cut.png", "cut", 1, "must be a whole image"),
    ],
)
def test_what_is_no_picture_is_refused(
    call: Call, made: Made, tmp_path: Path, name: str, content: Any, code: int, message: str
) -> None:
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:-2000]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ended = call("predict", made.folder, made.pictures[0], tmp_path / name)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert str(tmp_path / name) in ended.err


def changed(folder: Path) -> None:
    content = bytearray((folder / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.pt2").write_bytes(content)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("tamper", "code", "message"),
    [
        (changed, 6, "model.pt2 has been changed since it was written"),
        (emptied, 6, "verification.json is missing"),
        (shutil.rmtree, 3, "there is no folder"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "show"])
def test_a_folder_that_is_not_what_was_exported_is_refused(
    call: Call, made: Made, tmp_path: Path, tamper: Callable[[Path], None], code: int, message: str, command: str
) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "model"))
    tamper(folder)
    ended = call(command, folder, *([made.pictures[0]] if command == "predict" else []))
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err or (command == "show" and "there is no study" in ended.err)


def test_the_tree_adds_up_to_the_parameters_and_macs(call: Call, made: Made) -> None:
    layers = json.loads(call("show", made.folder, "--json").out)["layers"]
    assert [layer["name"] for layer in layers] == ["conv1", "features", "hidden", "classes"]
    groups = [group for layer in layers for group in layer["groups"]]
    plan = stages(ConvNetSettings((8, 16), (16,)), (1, 8, 8), 10)
    assert sum(group["macs"] for group in groups) == macs_of(ARCHITECTURE, plan, 1)
    assert sum(group["parameters"] for group in groups) == sum(p.numel() for p in made.model.parameters())
    assert [group["reads"] for group in layers[2]["groups"]] == [10, 10]
    assert layers[3]["groups"][1]["classes"] == [str(made.splits.class_names[label]) for label in (1, 3, 5, 7, 9)]


def test_the_tree_shows_branches_with_classes_and_costs(call: Call, made: Made) -> None:
    ended = call("show", made.folder)
    assert ended.code == 0
    for part in (
        "branched: 10 classes, test accuracy 90.00%",
        "clusters 0 1: 4 nodes",
        "reads 10 nodes",
        "0, 2, 4, 6, 8",
    ):
        assert part in ended.out
    assert "10 8 5" in ended.out, "the nodes of a branch by layer"
