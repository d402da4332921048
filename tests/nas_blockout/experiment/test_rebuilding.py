"""Exported models are built again from what their folders record, importing no code that the caller does not name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import (
    Experiment,
    backbone_from_json,
    build,
    count_macs,
    load_model,
    origin_of,
    structure_of_network,
)
from nas_blockout.experiment.branchable import architecture_of
from nas_blockout.export import (
    ExportedModel,
    ModelDescription,
    Verification,
    VerificationError,
    export_models,
    verify_all,
)
from nas_blockout.export.model_summary import outline, structure_in
from nas_blockout.graph.branched import BranchedGraph
from nas_blockout.methods.blockdrop import BlockDropSettings
from tests.nas_blockout.export.examples import rehashed
from tests.plugin_packages import write_package

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"
SMALL = ModuleSettings(f"{NETWORKS}:Small", {"width": 8})
HALVES = Architecture(
    2,
    (
        Layer("conv", (Group((0,), 2, nodes=(0, 2)), Group((0, 1), 1, nodes=(6,)), Group((1,), 3, nodes=(1, 3, 5)))),
        Layer("classes", (Group((0,), 4, (0, 2, 4, 6)), Group((1,), 6, (1, 3, 5, 7, 8, 9)))),
    ),
    ((None, "conv"), ("conv", "classes")),
)
DATA = DataSettings(train_samples=60, validation_samples=40)
MADE = {
    "branched": Experiment(data=DATA, backbone=SMALL, architecture=HALVES),
    "dense": Experiment(data=DATA, backbone=SMALL),
    "thin": Experiment(data=DATA, backbone=ResNetSettings(depth=8, width=0.25), target_macs=20_000),
    "convnet": Experiment(data=DATA, backbone=ConvNetSettings((8, 8), (8,)), target_macs=6_000),
}


def description(name: str, experiment: Experiment, model: torch.nn.Module, splits: Splits) -> ModelDescription:
    asked, architecture = splits.preprocessing, architecture_of(model)
    return ModelDescription(
        name=name, study="example", question="?", data="digits", train_images=60, class_names=splits.class_names,
        channels=1, height=8, width=8, mean=asked.mean, std=asked.std, seed=0, test_accuracy=None, test_images=None,
        parameters=sum(each.numel() for each in model.parameters()),
        macs=count_macs(model, torch.zeros(1, *splits.shape)),
        accuracy="", verdict="", spent="", architecture=architecture.to_json() if architecture else None,
        structure=structure_of_network(model), origin=origin_of(experiment, model),
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, splits = tmp_path_factory.mktemp("models"), load(DATA)
    models = {name: build(experiment, splits).eval() for name, experiment in MADE.items()}
    export_models(
        [(model, folder / name, description(name, MADE[name], model, splits)) for name, model in models.items()]
    )
    return folder


@pytest.fixture(scope="module")
def older(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The branched model as it was exported before there was a record of how it is built."""
    folder = Path(shutil.copytree(exported / "branched", tmp_path_factory.mktemp("before") / "older"))
    (folder / "network.json").unlink()
    manifest = json.loads((folder / "verification.json").read_text())
    del manifest["files"]["network.json"]
    (folder / "verification.json").write_text(json.dumps(manifest))
    rehashed(folder)
    return folder


@pytest.fixture(scope="module")
def verified(exported: Path, older: Path) -> dict[str, Verification]:
    """All folders by their names, reloaded in one process."""
    folders = [*(exported / name for name in MADE), older]
    return dict(zip([*MADE, "older"], verify_all(folders), strict=True))


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the branched model with another network.json, as somebody may who knows how to hash."""

    def copy(**values: Any) -> Path:
        folder = Path(shutil.copytree(exported / "branched", tmp_path / "changed"))
        document = json.loads((folder / "network.json").read_text())
        (folder / "network.json").write_text(json.dumps({**document, **values}))
        rehashed(folder, "network.json")
        return folder

    return copy


@pytest.mark.parametrize("name", MADE)
def test_a_model_is_built_again_and_can_be_trained(exported: Path, name: str) -> None:
    folder = exported / name
    made = load_model(folder, factory=SMALL.factory if "Small" in (folder / "network.json").read_text() else None)
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(made(images), ExportedModel.open(folder).logits(images), rtol=1e-5, atol=1e-5)
    assert not made.training
    assert isinstance(made.network, BranchedGraph) == (name in ("branched", "thin"))
    made.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_the_folders_are_verified_with_the_record_among_their_files(
    exported: Path, verified: dict[str, Verification]
) -> None:
    for name in MADE:
        assert verified[name].ok
        assert "network.json" in json.loads((exported / name / "verification.json").read_text())["files"]


def test_the_folder_records_what_builds_the_network_and_no_place_of_this_machine(exported: Path) -> None:
    document = json.loads((exported / "branched" / "network.json").read_text())
    assert document["backbone"]["factory"] == "networks.py:Small"
    assert document["backbone"]["arguments"] == {"width": 8}
    assert len(document["graph_hash"]) == 16
    assert document["versions"].keys() == {"nas_blockout", "torch", "networks.py"}
    for folder in exported.iterdir():
        assert str(NETWORKS.parent) not in (folder / "network.json").read_text()


def test_no_code_is_imported_that_the_caller_does_not_name(changed: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).mkdir()\n")
    backbone = {"name": "module", "factory": f"{tmp_path / 'hostile.py'}:net", "arguments": {"width": 8}}
    with pytest.raises(VerificationError, match=r"its factory .*hostile.py:net, called with .* only if you name it"):
        load_model(changed(backbone=backbone))
    assert not mark.exists()


def test_a_network_of_a_plugin_is_built_again_only_if_the_caller_names_the_plugin(
    changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    group = "nas_blockout.backbones"
    trace = write_package(tmp_path, "unseen_nets", {group: {"unseen_net": "unseen_nets.nets:Net"}})
    rule = r"its backbone unseen_net is a plug-in, which is imported only if you name it: .*factory='unseen_net'"
    with pytest.raises(VerificationError, match=rule):
        load_model(changed(backbone={"name": "unseen_net", "width": 5}))
    assert not trace.exists()
    write_package(tmp_path, "seen_nets", {group: {"seen_net": "seen_nets.nets:Net"}})
    splits = load(DATA)
    experiment = Experiment(data=DATA, backbone=backbone_from_json({"name": "seen_net", "width": 5}))
    model = build(experiment, splits).eval()
    export_models([(model, tmp_path / "model", description("seen", experiment, model, splits))])
    assert json.loads((tmp_path / "model" / "network.json").read_text())["versions"]["seen-nets"] == "1.0"
    for name in ("seen_net", "seen_nets.nets:Net"):
        images = torch.rand(3, 1, 8, 8)
        again = load_model(tmp_path / "model", factory=name)
        torch.testing.assert_close(
            again(images), ExportedModel.open(tmp_path / "model").logits(images), rtol=1e-5, atol=1e-5
        )


def test_without_the_library_the_forms_are_named_and_run(exported: Path) -> None:
    folder = exported / "branched"
    with pytest.raises(VerificationError, match=r"cannot import no_such_library: ModuleNotFoundError.*ExportedModel"):
        load_model(folder, factory="no_such_library:Small")
    assert ExportedModel.open(folder).logits(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_factory_that_makes_another_network_by_now_is_refused_with_both_hashes(
    exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "networks.py").write_text(
        NETWORKS.read_text().replace(").relu().mean((2, 3))", ").tanh().mean((2, 3))")
    )
    recorded = json.loads((exported / "branched" / "network.json").read_text())
    with pytest.raises(VerificationError) as refused:
        load_model(exported / "branched", factory=f"{tmp_path / 'networks.py'}:Small")
    text = str(refused.value)
    assert recorded["graph_hash"] in text
    assert "makes another network than it did" in text
    assert text.count(f"torch {torch.__version__}") == 2
    assert text.count("networks.py sha256:") == 2
    assert recorded["versions"]["networks.py"] in text


def test_a_dense_network_that_computes_something_else_by_now_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(
        NETWORKS.read_text().replace(").relu().mean((2, 3))", ").tanh().mean((2, 3))")
    )
    with pytest.raises(VerificationError, match=r"does not compute the recorded logits: it was exported with"):
        load_model(exported / "dense", factory=f"{tmp_path / 'networks.py'}:Small")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema_version": 2}, "has schema_version 2, this program reads 1"),
        ({"backbone": {"name": "nothing"}}, "no such backbone 'nothing'"),
        ({"backbone": {"name": "resnet", "depth": 8}}, "factory must be left out"),
    ],
)
def test_what_cannot_be_followed_is_refused(changed: Callable[..., Path], values: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        load_model(changed(**values), factory=SMALL.factory)


def test_a_folder_from_before_is_verified_and_run_but_not_built(older: Path, verified: dict[str, Verification]) -> None:
    assert verified["older"].ok
    with pytest.raises(VerificationError, match=r"has no network.json.*Export it again"):
        load_model(older, factory=SMALL.factory)


def test_the_outline_of_a_graph_has_what_its_weights_cost(exported: Path) -> None:
    model = ExportedModel.open(exported / "branched")
    layers, structure = outline(model), structure_in(model)
    assert [(layer.name, [(g.clusters, g.width, g.reads) for g in layer.groups]) for layer in layers] == [
        ("conv", [((0,), 2, 1), ((0, 1), 1, 1), ((1,), 3, 1)]),
        ("classes", [((0,), 4, 3), ((1,), 6, 4)]),
    ]
    network = load_model(exported / "branched", factory=SMALL.factory).network
    groups = [group for layer in layers for group in layer.groups]
    assert sum(group.macs for group in groups) == count_macs(network, torch.zeros(1, 1, 8, 8))
    assert sum(group.parameters for group in groups) == sum(each.numel() for each in network.parameters())
    assert structure is not None
    assert [layer.density for layer in structure.layers] == [1, (4 * 3 + 6 * 4) / 60]


def test_a_network_that_blockdrop_steers_has_no_record(exported: Path) -> None:
    steered = replace(MADE["thin"], target_macs=None, method=BlockDropSettings())
    assert origin_of(steered, torch.nn.Identity()) is None
