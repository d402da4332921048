"""Exported models on the command line: pictures are classified as recorded, and the tree adds up."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.branched import macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build, count_macs, origin_of, structure_of_network
from nas_blockout.experiment.branchable import outline
from nas_blockout.export import ModelDescription
from nas_blockout.export.models import export_models
from nas_blockout.networks import masked_connections
from nas_blockout.structure.branching import summary
from nas_blockout.structure.distill import distill, harden
from nas_blockout.structure.wiring import Wiring
from nas_blockout.training import TrainingSettings
from tests.nas_blockout.export.examples import CONSTANT, DESCRIPTION, Hostile, network, rehashed, saved
from tests.services.program import Call, here

ARCHITECTURE = Architecture(
    2,
    (
        Layer("features", (Group((0,), 6), Group((1,), 6), Group((0, 1), 4))),
        Layer("hidden", (Group((0,), 8), Group((1,), 8))),
        Layer("classes", (Group((0,), 5, (0, 2, 4, 6, 8)), Group((1,), 5, (1, 3, 5, 7, 9)))),
    ),
)

ENDED = "membership probabilities diverged in hidden (1 of 1 seed)"


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return partial(here, NAS_BLOCKOUT_HOME=str(tmp_path), COLUMNS="200")


@dataclass(frozen=True, slots=True)
class Made:
    """An exported model of branches over digits, and where pictures of its test images stand with what it said.

    Beside it one with constants, and one of a graph in which a layer has no masks: all of them are verified in one
    process, since to import what does it costs more than the tests.
    """

    folder: Path
    model: nn.Module
    splits: Splits
    pictures: tuple[Path, ...]
    recorded: tuple[str, ...]
    constant: Path
    graph: Path
    graph_model: nn.Module


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
        architecture=ARCHITECTURE.to_json(), memberships=ENDED,
    )  # fmt: skip
    constant = replace(DESCRIPTION, name="constant", architecture=CONSTANT.to_json())
    graph, described = graph_model(splits)
    export_models([
        (model, place / "model", description),
        (network(branched=True, architecture=CONSTANT), place / "constant", constant),
        (graph, place / "graph", described),
    ])  # fmt: skip
    test = splits.test().images[:40]
    pictures = tuple(picture(image, place / f"{n}.png") for n, image in enumerate(asked.undo(test.clone())))
    with torch.no_grad():
        recorded = tuple(splits.class_names[label] for label in model(test).argmax(1))
    return Made(place / "model", model, splits, pictures, recorded, place / "constant", place / "graph", graph)


def graph_model(splits: Splits) -> tuple[nn.Module, ModelDescription]:
    """A branched residual network, of which one node is read only by layers without masks."""
    backbone = ResNetSettings(depth=8, width=0.25)
    whole = outline(backbone, splits.shape, 10)
    masked = masked_connections(whole.connections, "head")
    learned = [name for name in whole.layers if any(name in each.layers for each in masked)]
    p = {name: torch.eye(2).repeat(whole.layers[name], 1)[: whole.layers[name]] for name in learned}
    p[learned[0]] = torch.cat([p[learned[0]][:-1], torch.zeros(1, 2)])  # read by what has no masks alone
    architecture = distill(p, harden(p, 0.5), wiring=Wiring.of(whole, masked)).architecture
    model = build(Experiment(backbone=backbone, architecture=architecture), splits).eval()
    return model, replace(
        DESCRIPTION, name="graph", class_names=splits.class_names, architecture=architecture.to_json(),
        structure=structure_of_network(model), equality=None,
        origin=origin_of(Experiment(backbone=backbone), model),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_pictures_of_the_test_split_get_the_recorded_classes(call: Call, made: Made, form: str) -> None:
    ended = call("predict", made.folder, *made.pictures, "--form", form, "--json", "--top", 10)
    assert ended.code == 0
    predictions = json.loads(ended.out)["predictions"]
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in made.pictures]
    assert tuple(prediction["classes"][0]["name"] for prediction in predictions) == made.recorded
    assert len(set(made.recorded)) > 5, "it has learned to tell classes apart"
    for prediction in predictions:
        assert sum(best["probability"] for best in prediction["classes"]) == pytest.approx(1, abs=1e-4)


def test_a_person_reads_class_names_and_probabilities(call: Call, made: Made) -> None:
    ended = call("predict", made.folder, made.pictures[0], "--top", 2)
    name, _, rest = ended.out.partition(": ")
    assert name == str(made.pictures[0])
    assert rest.split()[0] == made.recorded[0]
    assert rest.count("%") == 2


def test_another_size_color_and_format_are_fitted(call: Call, made: Made, tmp_path: Path) -> None:
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
        ("empty.png", b"", 1, "must be a whole image"),
        ("cut.png", "cut", 1, "must be a whole image"),
    ],
)
def test_what_is_no_picture_is_named_and_the_others_are_answered(
    call: Call, made: Made, tmp_path: Path, name: str, content: Any, code: int, message: str
) -> None:
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:-2000]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    bad = tmp_path / name
    ended = call("predict", made.folder, bad)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert str(bad) in ended.err
    ended = call("predict", made.folder, made.pictures[0], bad, made.pictures[1])
    assert ended.code == 4
    assert [line.partition(": ")[0] for line in ended.out.splitlines()] == list(map(str, made.pictures[:2]))
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert "1 of 3 files could not be read; the others are answered" in ended.err
    ended = call("predict", made.folder, made.pictures[0], bad, "--json")
    assert ended.code == 4
    assert len(ended.json["predictions"]) == 1
    assert [failed["image"] for failed in ended.json["failed"]] == [str(bad)]
    assert message in ended.json["failed"][0]["problem"]


def test_a_transparent_picture_gets_the_background_of_the_model(call: Call, made: Made, tmp_path: Path) -> None:
    with Image.open(made.pictures[0]) as drawn:
        ink = drawn.convert("L")
    clear = Image.new("RGBA", ink.size, (255, 255, 255, 0))
    clear.putalpha(ink)  # white strokes, and below all that is transparent white as well
    clear.save(tmp_path / "clear.png")
    answers: dict[str | None, Any] = {}
    for background in ("black", "white", "dropped", None):  # None: of a model that was exported before there was one
        folder = tmp_path / str(background)
        shutil.copytree(made.folder, folder)
        asked = json.loads((folder / "preprocessing.json").read_text())
        del asked["background"]
        more = {"background": background} if background else {}
        (folder / "preprocessing.json").write_text(json.dumps(asked | more))
        rehashed(folder, "preprocessing.json")
        ended = call("predict", folder, tmp_path / "clear.png", made.pictures[0], "--json", "--top", 10)
        answers[background] = [prediction["classes"] for prediction in ended.json["predictions"]]
    assert answers["black"][0] == answers["black"][1], "the strokes on black are the picture that was drawn"
    assert answers["white"][0] != answers["white"][1]
    assert answers["dropped"][0] == answers[None][0] == answers["white"][0], "white lies below all that is transparent"


def flip(folder: Path, name: str = "model.pt2") -> None:
    content = bytearray((folder / name).read_bytes())
    place = content.index(b"test_accuracy") if name == "verification.json" else len(content) // 2
    content[place] ^= 1
    (folder / name).write_bytes(content)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("tamper", "code", "message"),
    [
        (flip, 6, "model.pt2 has been changed since it was written"),
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


@pytest.mark.parametrize("name", ["drawn.svg", "deep/drawn.PNG"])
def test_the_architecture_is_drawn_into_a_file(call: Call, made: Made, tmp_path: Path, name: str) -> None:
    ended = call("show", made.folder, "--figure", tmp_path / name, "--json")
    assert (ended.code, json.loads(ended.out)["name"]) == (0, "branched")
    assert f"wrote {tmp_path / name}" in ended.err
    assert [path.name for path in (tmp_path / name).parent.iterdir() if path.suffix] == [Path(name).name]
    if name.endswith("svg"):
        texts = [node.text for node in ElementTree.parse(tmp_path / name).iter("{http://www.w3.org/2000/svg}text")]
        assert {"features", "hidden", "classes"} <= set(texts)
        assert "0  2  4  6  8" in texts, "the classes of the first branch"
        return
    with Image.open(tmp_path / name) as picture:
        assert picture.format == "PNG"
        assert picture.getextrema() != ((255, 255),) * len(picture.getbands()), "something is drawn on the white"


@pytest.mark.parametrize("asked", ["drawn.pdf", "drawn"])
def test_a_figure_of_another_kind_is_refused(call: Call, made: Made, tmp_path: Path, asked: str) -> None:
    ended = call("show", made.folder, "--figure", tmp_path / asked)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: --figure must name a file that ends in .svg or .png, got {tmp_path / asked}\n"
    assert list(tmp_path.iterdir()) == []


def test_no_figure_is_drawn_of_what_is_no_exported_model(call: Call, tmp_path: Path) -> None:
    ended = call("show", "quickstart", "--figure", tmp_path / "drawn.svg")
    assert ended.code == 2
    assert "quickstart is no folder of one" in ended.err


# What somebody did to a model's folder, and what `verify` says of it, in one line.
TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"changed byte of {name}": (partial(flip, name=name), f"{name} has been changed since it was written")
        for name in (
            "model.pt2", "model.onnx", "weights.safetensors", "reference.safetensors", "architecture.json",
            "preprocessing.json", "card.md", "verification.json",
        )
    },
    **{
        f"missing {name}": (lambda folder, name=name: (folder / name).unlink(), f"{name} is missing")
        for name in ("model.pt2", "weights.safetensors", "verification.json")
    },
    "pickle as weights": (
        lambda folder: torch.save({"a": 1}, folder / "weights.safetensors"),
        "weights.safetensors has been changed since it was written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERED)
def test_what_was_tampered_with_ends_with_6_and_one_line(call: Call, made: Made, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "model"))
    tamper, message = TAMPERED[kind]
    tamper(folder)
    ended = call("verify", folder)
    assert ended.code == 6
    assert ended.out.splitlines()[0] == f"{folder}: NOT verified"
    (finding,) = ended.out.splitlines()[1:]
    assert finding.startswith(f"  {message}")
    assert finding.endswith(": export the model again")


def test_who_also_forges_the_hashes_is_found_out_by_what_the_files_hold(call: Call, made: Made, tmp_path: Path) -> None:
    folders = {name: Path(shutil.copytree(made.folder, tmp_path / name)) for name in ("pickle", "shape", "whole")}
    (folders["pickle"] / "weights.safetensors").write_bytes(saved(Hostile(tmp_path / "mark")))
    weights = load_file(folders["shape"] / "weights.safetensors")
    weights["stages.conv1.operations.0.weight"] = torch.zeros(1, 1, 3, 3)
    save_file(weights, folders["shape"] / "weights.safetensors")
    for name in ("pickle", "shape"):
        rehashed(folders[name], "weights.safetensors")
    ended = call("verify", *folders.values(), "--json")
    results = json.loads(ended.out)
    assert ended.code == 6
    (pickle,), (shape,) = (results[str(folders[name])]["findings"] for name in ("pickle", "shape"))
    assert pickle.startswith("weights.safetensors: cannot be used: SafetensorError")
    assert "stages.conv1 has 1 nodes that are not zero, not 8 as in model.pt2" in shape
    assert results[str(folders["whole"])] == {"ok": True, "findings": []}
    assert not (tmp_path / "mark").exists(), "code of the file was run"


def test_the_tree_shows_branches_with_classes_and_costs(call: Call, made: Made) -> None:
    ended = call("show", made.folder)
    assert ended.code == 0
    for part in (
        "branched: 10 classes, test accuracy 90.00%",
        "clusters 0 1: 4 nodes",
        "reads 10 nodes",
        "0, 2, 4, 6, 8",
        "Membership probabilities diverged in hidden (1 of 1 seed).",
    ):
        assert part in ended.out
    assert json.loads(call("show", made.folder, "--json").out)["memberships"] == ENDED
    assert "10 8 5" in ended.out, "the nodes of a branch by layer"


def test_show_tells_how_far_a_model_branches(call: Call, made: Made) -> None:
    found = structure_of_network(made.model)
    assert found is not None
    shown = json.loads(call("show", made.folder, "--json").out)["structure"]
    without = {**json.loads(json.dumps(found.to_json()))}
    for layer in without["layers"]:
        layer["dense_nodes"] = None  # this one was exported without its structure, as by earlier releases
    assert shown == without
    text = " ".join(call("show", made.folder).out.split())
    assert summary(found, learned=False) in text.replace(" . ", ". ")
    assert "exclusive_macs" in shown


def test_the_tree_names_constants(call: Call, made: Made) -> None:
    ended = call("show", made.constant)
    assert ended.code == 0
    for part in ("cluster 1: 2 nodes, 4 parameters, 0 MACs, reads nothing", "constant: 1 node, 1 parameter", "c\n"):
        assert part in ended.out


def test_the_tree_and_the_picture_of_a_graph_show_no_branch_where_there_are_no_masks(
    call: Call, made: Made, tmp_path: Path
) -> None:
    ended = call("show", made.graph, "--figure", tmp_path / "graph.svg")
    assert ended.code == 0
    assert "without masks: 1 node" in ended.out
    assert "cluster 0: " in ended.out
    assert "clusters 0 2" not in ended.out
    layers = json.loads(call("show", made.graph, "--json").out)["layers"]
    assert {cluster for layer in layers for group in layer["groups"] for cluster in group["clusters"]} == {0, 1}
    assert sum(group["macs"] for layer in layers for group in layer["groups"]) == count_macs(
        made.graph_model, torch.zeros(1, *made.splits.shape)
    )
    assert ElementTree.parse(tmp_path / "graph.svg").getroot().tag.endswith("svg")  # our own file
