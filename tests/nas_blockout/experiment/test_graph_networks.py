"""Experiments on networks that are known by their graph: what is learned, pruned, grouped or narrowed is built so."""

import io
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout.architecture import Architecture
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import (
    Experiment,
    Outcome,
    Run,
    Snapshot,
    build,
    count_macs,
    dense_macs,
    rebuild,
    structure_of_network,
    unbuildable,
)
from nas_blockout.experiment.branchable import narrowed, outline
from nas_blockout.export import save_weights
from nas_blockout.graph.branched import BranchedGraph
from nas_blockout.graph.network import GraphNetwork
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.dropout import DropoutSettings
from nas_blockout.methods.memberships.blockout_settings import PAPER, PRETRAINED
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"
SMALL = ModuleSettings(f"{NETWORKS}:Small")
RESNET = ResNetSettings(depth=8, width=0.25, hidden=(6,))
INCEPTION = InceptionSettings(variant="compact", width=0.1, hidden=(12, 12))  # one for all: it takes seconds to trace
SHAPE, CLASSES = (1, 8, 8), 10
LEARNING = {
    "method": replace(PAPER, clusters=3, masked="all", logit_noise=2.0),
    "distillation": DistillationSettings(target_macs=0.6, draws=2),
}
DERIVED: dict[str, dict[str, Any]] = {
    "learned": LEARNING,
    "raw": {**LEARNING, "distillation": DistillationSettings(draws=2, clean_up=False, trim_by="probability")},
    "scratch": {**LEARNING, "distillation": DistillationSettings(target_macs=0.6, draws=2, weights="scratch")},
    "unbranched": {**LEARNING, "distillation": DistillationSettings(target_macs=0.6, draws=2, placebo="unbranched")},
    "shuffled": {**LEARNING, "distillation": DistillationSettings(draws=2, placebo="nodes")},
    "random": {**LEARNING, "distillation": DistillationSettings(draws=2, placebo="random", weights="scratch")},
    "binary": {**LEARNING, "method": replace(PRETRAINED, clusters=3, logit_noise=3.0)},
    "pruned": {"pruning": PruningSettings(target_macs=0.5)},
    "confused": {"confusion": ConfusionSettings(branches=2, split_layers=2)},
}


def experiment(backbone: Any, **changes: Any) -> Experiment:
    data = DataSettings(train_samples=60, validation_samples=40)
    training = TrainingSettings(epochs=2, batch_size=20)
    return replace(Experiment(data=data, backbone=backbone, training=training, seed=3), **changes)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(experiment(RESNET).data)


def finished(run: Run) -> Outcome:
    for _ in run:
        pass
    assert run.failure is None
    assert run.outcome is not None
    return run.outcome


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_derived_is_proved_and_can_be_built_from_its_record(name: str, splits: Splits) -> None:
    wanted = experiment(RESNET, **DERIVED[name])
    outcome = finished(Run(wanted, splits))
    assert isinstance(outcome.model, BranchedGraph)
    assert outcome.derivation is not None
    for entry in outcome.derivation.equality.values():
        assert entry["max_abs_difference"] <= entry["bound"]
        assert entry["spread"] > 1e-4
    recorded = Architecture.from_json(outcome.derivation.to_json()["architecture"])
    assert recorded == outcome.architecture
    again = rebuild(wanted, recorded, splits).eval()
    again.load_state_dict(outcome.model.state_dict())
    images = splits.validation.images[:20]
    assert torch.equal(again(images), outcome.model(images))
    assert outcome.macs == count_macs(outcome.model, images[:1])
    structure = structure_of_network(outcome.model)
    assert structure is not None
    assert structure.macs == outcome.macs
    assert {layer.name: layer.dense_nodes for layer in structure.layers} == outline(RESNET, SHAPE, CLASSES).layers
    if name in ("learned", "confused", "pruned", "unbranched"):
        assert structure.is_branched == (name in ("learned", "confused"))
    assert structure_of_network(again) == structure, "as it is built from its record"
    if name not in ("raw", "shuffled", "random", "confused"):
        target = {"pruned": 0.5}.get(name, 0.6)
        assert outcome.macs <= target * dense_macs(wanted, splits)


@pytest.mark.parametrize("backbone", [SMALL, INCEPTION], ids=["module", "inception"])
def test_other_networks_learn_their_structure_too(backbone: Any, splits: Splits) -> None:
    method = replace(PAPER, clusters=2, masked="all", logit_noise=2.0)
    outcome = finished(Run(experiment(backbone, **{**LEARNING, "method": method}), splits))
    assert isinstance(outcome.model, BranchedGraph)
    assert outcome.derivation is not None
    assert all(entry["max_abs_difference"] <= entry["bound"] for entry in outcome.derivation.equality.values())


def test_layers_without_masks_are_no_branch_and_what_they_cost_belongs_to_none(splits: Splits) -> None:
    method = replace(PAPER, clusters=2, masked="head", logit_noise=3.0)
    outcome = finished(Run(experiment(INCEPTION, method=method, distillation=DistillationSettings(draws=2)), splits))
    assert outcome.architecture is not None
    assert outcome.architecture.clusters == 3, "one more for what has no masks"
    structure = structure_of_network(outcome.model)
    assert structure is not None
    assert structure.is_branched
    assert [branch.cluster for branch in structure.branches] == [0, 1]
    assert sorted({label for branch in structure.branches for label in branch.classes}) == list(range(CLASSES))
    assert {layer.name for layer in structure.layers if layer.density < 1} <= {"hidden1", "hidden2", "classes"}
    convolutions = sum(layer.nodes for layer in structure.layers if not layer.name.startswith(("hidden", "classes")))
    assert convolutions > 24
    assert (structure.exclusive_macs or 0) < (structure.macs or 0)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_goes_on_from_either_stage_with_the_numbers_of_one_that_was_never_stopped(
    epochs: int, splits: Splits
) -> None:
    wanted = experiment(RESNET, **LEARNING, training=TrainingSettings(epochs=3, batch_size=20))
    whole = finished(Run(wanted, splits))
    stopped = Run(wanted, splits)
    for _ in range(epochs):
        next(stopped)
    file = io.BytesIO()
    torch.save(stopped.snapshot().to_state(), file)
    file.seek(0)
    resumed = finished(Run(wanted, splits, start=Snapshot.from_state(torch.load(file, weights_only=True))))
    assert resumed.architecture == whole.architecture
    images = splits.validation.images[:20]
    assert torch.equal(resumed.model(images), whole.model(images))


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "masked"},
        {"estimator": "straight-through"},
        {"estimator": "arm"},
        {"mode": "soft-learned"},
        {"mode": "hard-fixed"},
        {"mask_values": "binary"},
        {"cost_penalty": 4.0, "cost_target": 0.5, "polarization": 1.0, "balance": 1.0},
    ],
    ids=str,
)
def test_every_estimator_and_mode_trains_the_original_module_under_masks(
    changes: dict[str, Any], splits: Splits
) -> None:
    method = replace(PAPER, clusters=2, masked="all", structure_lr_multiplier=30.0, **changes)
    run = Run(experiment(SMALL, method=method), splits)
    *_, last = (run.snapshot() for _ in run)
    first = build(run.experiment, splits)
    assert isinstance(first, Blockout)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    after = last.checkpoint.model
    moved = {
        name for name, value in before.items() if name.startswith("logits") and not torch.equal(value, after[name])
    }
    assert bool(moved) == (method.mode != "hard-fixed")
    assert not torch.equal(before["network.module.conv.weight"], after["network.module.conv.weight"])
    assert set(run.records[-1].telemetry) >= {"blockout/expected_macs", "blockout/mean/classes"}


def test_masks_without_a_derivation_are_folded_into_the_plain_network(splits: Splits) -> None:
    wanted = experiment(SMALL, method=replace(PAPER, clusters=2, masked="all"))
    run = Run(wanted, splits)
    *_, last = (run.snapshot() for _ in run)
    outcome = run.outcome
    assert outcome is not None
    assert outcome.architecture is None
    model = build(wanted, splits)
    assert isinstance(model, Blockout)
    assert isinstance(model.network, GraphNetwork)
    model.load_state_dict(last.checkpoint.model)
    images = splits.validation.images[:20]
    torch.testing.assert_close(outcome.model(images), model.eval()(images), rtol=1e-5, atol=1e-5)


def test_a_network_of_half_the_cost_keeps_the_same_share_of_every_layer(splits: Splits) -> None:
    dense = dense_macs(experiment(RESNET), splits)
    wanted = experiment(RESNET, target_macs=dense // 2)
    outcome = finished(Run(wanted, splits))
    assert isinstance(outcome.model, BranchedGraph)
    assert outcome.architecture == narrowed(RESNET, dense // 2, SHAPE, CLASSES)
    assert outcome.architecture.is_dense
    assert abs(outcome.macs - dense // 2) < 0.1 * dense


def test_a_narrower_network_starts_from_new_weights_beside_one_that_is_pretrained(
    splits: Splits, tmp_path: Path
) -> None:
    """Nodes that happen to come first in a pretrained network are neither initial weights nor chosen ones."""
    save_weights(build(experiment(SMALL, seed=9), splits), tmp_path / "weights.safetensors")
    pretrained = replace(SMALL, weights=str(tmp_path / "weights.safetensors"))
    macs = dense_macs(experiment(SMALL), splits) // 2
    found, new = (
        build(experiment(backbone, target_macs=macs), splits).state_dict() for backbone in (pretrained, SMALL)
    )
    assert all(torch.equal(value, new[name]) for name, value in found.items())
    pruned = build(experiment(pretrained, pruning=PruningSettings()), splits).state_dict()
    assert not torch.equal(
        pruned["module.conv.weight"], build(experiment(SMALL), splits).state_dict()["module.conv.weight"]
    )


def test_weights_of_nodes_that_read_less_start_as_much_larger_as_those_of_a_smaller_layer(splits: Splits) -> None:
    whole = build(experiment(RESNET), splits).state_dict()
    small = build(experiment(RESNET, target_macs=dense_macs(experiment(RESNET), splits) // 3), splits)
    assert isinstance(small, BranchedGraph)
    name = "stages.0.0.residual.0"
    narrow = next(value for key, value in small.state_dict().items() if name in key and value.dim() == 4)
    wide = whole[f"{name}.weight"]
    outputs, inputs = narrow.shape[:2]
    assert inputs < wide.shape[1]
    torch.testing.assert_close(narrow, wide[:outputs, :inputs] * (wide.shape[1] / inputs) ** 0.5)


def test_methods_of_other_places_do_not_go_with_a_graph() -> None:
    message = "on the backbone resnet, pruning goes with the methods none, blockout and darts only, got dropout"
    with pytest.raises(ValueError, match=message):
        experiment(RESNET, method=DropoutSettings(), pruning=PruningSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": replace(PAPER, masked=("conw",)), "distillation": None},
            "layers that can be masked on the network: classes",
        ),
        ({"method": replace(PAPER, masked="last 9"), "distillation": None}, r"lie in 1\.\."),
        ({"distillation": DistillationSettings(target_macs=0.001)}, "distillation.target_macs: with one node left"),
    ],
)
def test_what_a_graph_does_not_allow_is_said_before_anything_is_trained(changes: dict[str, Any], message: str) -> None:
    wanted = experiment(SMALL, **{**LEARNING, **changes})
    found = [str(conflict) for conflict in unbuildable(wanted, shape=SHAPE, classes=CLASSES)]
    assert len(found) == 1
    assert re.search(message, found[0])


def test_the_outline_of_a_network_holds_no_values() -> None:
    assert all(parameter.is_meta for parameter in outline(RESNET, SHAPE, CLASSES).parameters())


def test_a_network_is_checked_however_wide_without_memory_for_its_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = ResNetSettings(depth=8, width=150.0)
    network = outline(wide, SHAPE, CLASSES)
    assert sum(parameter.numel() for parameter in network.parameters()) * 4 > 6 << 30, "bytes"
    assert list(unbuildable(experiment(wide, pruning=PruningSettings()), shape=SHAPE, classes=CLASSES)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20, "KiB"
