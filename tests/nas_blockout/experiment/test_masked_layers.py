"""Every choice of masked layers from training to the exported model, and what is refused before anything is trained."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout import plots
from nas_blockout.backbones import BACKBONES
from nas_blockout.backbones.branched import BranchedNetwork, Sites
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build, rebuild, unbuildable
from nas_blockout.experiment.config import needs_graph
from nas_blockout.export import export_models
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER, PRETRAINED, Masked
from nas_blockout.networks import maskable_layers
from nas_blockout.structure.distill import DistillationSettings, Placebo
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings
from tests.nas_blockout.export.examples import DESCRIPTION

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"
LEARNED = Experiment(
    data=DataSettings(train_samples=60, validation_samples=40),
    backbone=ConvNetSettings((5, 6), (8, 7), normalize_logits=True),
    method=replace(PAPER, clusters=2, logit_noise=2.0, structure_lr_multiplier=30.0),
    training=TrainingSettings(epochs=2, batch_size=20),
    distillation=DistillationSettings(draws=2),
    seed=3,
)
STAGES = ("conv1", "features", "hidden1", "hidden2", "classes")
TO_THE_CLASSES: list[tuple[Masked, int]] = [  # with the number of layers of nodes that carry memberships
    ("all", 5),
    ("head", 4),
    ("last 1", 2),
    ("last 2", 3),
    ("last 4", 5),
    (("classes",), 2),
    (("classes", "hidden2"), 3),
    (("features", "hidden1", "hidden2", "classes"), 5),
]
SOME: list[tuple[Any, Masked]] = [
    (LEARNED.backbone, ("hidden1", "classes")),
    (LEARNED.backbone, ("features",)),
    (ResNetSettings(depth=8, width=0.25), "last 2"),
    (ResNetSettings(depth=8, width=0.25, hidden=(6,)), ("block3a", "hidden")),
    (InceptionSettings(variant="compact", width=0.05, hidden=(6, 5)), "last 2"),
    (InceptionSettings(variant="compact", width=0.05, hidden=(6, 5)), ("hidden1", "classes")),
]


def masking(masked: Masked, **changes: Any) -> Experiment:
    return replace(LEARNED, method=replace(LEARNED.method, masked=masked), **changes)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(LEARNED.data)


def finished(experiment: Experiment, splits: Splits) -> Run:
    assert Experiment.from_json(experiment.to_json()) == experiment
    run = Run(experiment, splits)
    for _ in run:
        pass
    assert run.outcome is not None
    return run


@pytest.mark.parametrize(("masked", "carrying"), TO_THE_CLASSES)
def test_the_branches_are_those_of_the_masked_layers_and_compute_the_same(
    masked: Masked, carrying: int, splits: Splits
) -> None:
    outcome = finished(masking(masked), splits).outcome
    assert outcome is not None
    assert outcome.derivation is not None
    assert outcome.architecture is not None
    assert tuple(outcome.derivation.probabilities) == STAGES[-carrying:]
    assert tuple(layer.name for layer in outcome.derivation.architecture.layers) == STAGES[-carrying:]
    assert outcome.derivation.architecture.clusters == 2
    for each in outcome.derivation.equality.values():
        assert each["max_abs_difference"] <= each["bound"]
    again = rebuild(masking(masked), outcome.architecture, splits)
    again.load_state_dict(outcome.model.state_dict())
    images = splits.validation.images[:4]
    torch.testing.assert_close(again.eval()(images), outcome.model(images))


@pytest.mark.parametrize("masked", ["last 1", ("hidden2", "classes")])
@pytest.mark.parametrize("placebo", ["nodes", "classes", "random", "unbranched"])
def test_every_placebo_has_the_layers_of_the_structure_that_it_stands_in_for(
    placebo: Placebo, masked: Masked, splits: Splits
) -> None:
    chosen = DistillationSettings(
        draws=2, target_macs=0.99, placebo=placebo, weights="scratch" if placebo == "random" else "inherited"
    )
    outcome = finished(masking(masked, distillation=chosen), splits).outcome
    assert outcome is not None
    assert outcome.derivation is not None
    layers = outcome.derivation.architecture.layers
    assert tuple(layer.name for layer in layers) == tuple(outcome.derivation.probabilities)
    assert layers[-1].width == 10
    for each in outcome.derivation.equality.values():
        assert each["max_abs_difference"] <= each["bound"]


@pytest.mark.parametrize(("backbone", "masked"), SOME)
@pytest.mark.parametrize("mode", ["hard-learned", "soft-learned"])
def test_without_a_derivation_any_layers_are_masked_and_folded_into_a_plain_network(
    mode: Any, backbone: Any, masked: Masked, splits: Splits
) -> None:
    experiment = masking(masked, backbone=backbone, distillation=None)
    experiment = replace(experiment, method=replace(experiment.method, mode=mode))
    run = Run(experiment, splits)
    *_, last = (run.snapshot() for _ in run)
    assert run.outcome is not None
    model = build(experiment, splits)
    assert isinstance(model, Blockout)
    plain = [name for name, _ in model.network.named_parameters()]
    masks = set(model.masked_weights(model.probabilities()))
    model.load_state_dict(last.checkpoint.model)
    assert 0 < len(masks) < len([connection for connection in model.connections if connection.sources])
    images = splits.validation.images[:20]
    torch.testing.assert_close(run.outcome.model(images), model.eval()(images), rtol=1e-5, atol=1e-5)
    folded = run.outcome.model.state_dict()
    for name in plain:
        assert torch.equal(folded[name], model.network.get_parameter(name)) == (name not in masks), name


def test_what_ends_in_branches_and_what_is_folded_is_exported_and_verified(splits: Splits, tmp_path: Path) -> None:
    folded, models = masking(("hidden1", "classes"), distillation=None), []
    for name, experiment in {"branched": masking("last 1"), "folded": folded}.items():
        outcome = finished(experiment, splits).outcome
        assert outcome is not None
        assert isinstance(outcome.model, BranchedNetwork)
        described = replace(
            DESCRIPTION,
            name=name,
            class_names=tuple(splits.class_names),
            architecture=outcome.model.full.to_json(),
            equality=outcome.derivation.equality if outcome.derivation else None,
        )
        models.append((outcome.model, tmp_path / name, described))
    for found in export_models(models):
        assert found.ok
        assert set(found.differences) == {"model.pt2", "model.onnx", "weights.safetensors"}


@pytest.mark.parametrize("masked", ["last 1", "last 2"])
def test_the_figures_of_memberships_have_the_masked_layers(masked: Masked, splits: Splits) -> None:
    outcome = finished(masking(masked), splits).outcome
    assert outcome is not None
    assert outcome.derivation is not None
    probabilities = outcome.derivation.probabilities
    masks = plots.figure_masks(probabilities)
    assert len([axes for axes in masks.axes if axes.get_images()]) >= len(probabilities) - 1
    figure, _ = plots.figure_projection(probabilities, splits.class_names)
    assert figure.axes


def test_branches_need_layers_without_a_gap_up_to_the_classes() -> None:
    for masked, missing in (
        (("hidden1", "classes"), "hidden2"),
        (("features",), "hidden1 and hidden2 and classes"),
        (("hidden1", "hidden2"), "classes"),
    ):
        with pytest.raises(ValueError, match=rf"method\.masked: branches .* so {missing} must be named too, got \['"):
            masking(masked)
        assert masking(masked, distillation=None).method.masked == masked


def test_a_cost_that_the_layers_without_masks_exceed_is_refused_before_anything_is_trained(splits: Splits) -> None:
    for target in ({"target_macs": 0.5}, {"target_parameters": 0.5}):
        asked = masking("last 1", distillation=replace(DistillationSettings(), **target))
        (name,) = target
        with pytest.raises(ValueError, match=rf"distillation\.{name}: .* \(hidden2\), .* still cost 0\.\d+.*got 0\.5"):
            build(asked, splits)
        build(replace(asked, method=replace(asked.method, masked="all")), splits)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (
            {"method": replace(PAPER, masked="all"), "distillation": DistillationSettings(target_macs=0.3)},
            "distillation",
        ),
        ({"method": replace(PRETRAINED, cost_target=0.3), "distillation": DistillationSettings()}, "method"),
        ({"pruning": PruningSettings(target_macs=0.3)}, "pruning"),
    ],
    ids=["distillation", "start", "pruning"],
)
def test_a_cost_that_what_has_no_masks_exceeds_is_refused_before_anything_is_trained(
    settings: dict[str, Any], key: str
) -> None:
    asked = Experiment(backbone=ModuleSettings(f"{NETWORKS}:Recurrent"), **settings)
    found, *_ = unbuildable(asked, shape=(1, 8, 8), classes=10)
    told = re.fullmatch(
        rf"{key}\.(target_macs|cost_target): with one node left .* still cost (0\.\d+), so it must be at least "
        r"that, got 0\.3; raise it.*; (0\.\d+) of the cost has no masks at all: `nas-blockout inspect` lists it",
        str(found),
    )
    assert told is not None
    assert float(told[3]) == pytest.approx(8 * 3 * 12 * (4 + 12) / (4 * 9 * 64 * 5 + 8 * 3 * 12 * 16 + 120), abs=1e-4)
    assert found.keys[0] == f"{key}.{told[1]}"


@pytest.mark.parametrize("target", ["target_macs", "target_parameters"])
def test_the_least_cost_that_is_allowed_is_met_by_what_is_learned(target: str, splits: Splits) -> None:
    with pytest.raises(ValueError, match="still cost") as caught:
        build(masking("last 2", distillation=replace(DistillationSettings(), **{target: 0.01})), splits)
    least = float(str(caught.value).split("still cost ")[1].split(",")[0]) + 1e-4
    finished(masking("last 2", distillation=replace(DistillationSettings(draws=1), **{target: least})), splits)


@pytest.mark.parametrize(
    "backbone",
    [
        ConvNetSettings((3,), ()),
        ConvNetSettings((3, 4, 5), (6,)),
        ResNetSettings(depth=14, hidden=(5, 4)),
        ResNetSettings(depth=18, stem="imagenet"),
        ResNetSettings(depth=50),
        InceptionSettings(hidden=(8,)),
    ],
)
def test_every_layer_that_an_error_lists_can_be_masked_on_images_of_any_size(backbone: Any) -> None:
    with torch.device("meta"):
        network = BACKBONES[type(backbone).__name__.removesuffix("Settings").lower()].build(
            backbone, (1, 32, 40), 7, None, Sites()
        )
    names = maskable_layers(network.connections)
    assert names[-1] == "classes"
    for chosen in ((name,) for name in names):
        assert masking(chosen, backbone=backbone, distillation=None).method.masked == chosen
    assert masking(f"last {len(names)}", backbone=backbone, distillation=None)
    if isinstance(backbone, InceptionSettings):  # its graph has more layers, of which only its head says so itself
        assert needs_graph(masking(f"last {len(names) + 1}", backbone=backbone, distillation=None))
        return
    with pytest.raises(ValueError, match=rf"lie in 1\.\.{len(names)}, got 'last {len(names) + 1}'"):
        masking(f"last {len(names) + 1}", backbone=backbone, distillation=None)
