"""The search spaces on networks that are known by their graph: residual, Inception, and one from a factory."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch

from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, build, known_costs, outline
from nas_blockout.graph.branched import BranchedGraph
from nas_blockout.graph.network import memberships_of
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.structure.confusion import ConfusionSettings, memberships, most_branches
from search_spaces import SPACES, Context, Recorded, grid, require_fit

optuna.logging.set_verbosity(optuna.logging.WARNING)
SHAPE, CLASSES = (1, 8, 8), 10
BACKBONES: Mapping[str, Any] = {
    "resnet": ResNetSettings(depth=8, width=0.25),
    "projection": ResNetSettings(depth=8, width=0.25, shortcut="projection"),
    "inception": InceptionSettings(width=0.25, hidden=(16,)),
    "module": ModuleSettings("tests/fixtures/inventions.py:Invention", {"width": 8}),
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings("digits", train_samples=50))


def context_of(backbone: Any, **parts: Any) -> Context:
    return Context(Experiment(backbone=backbone, **parts), SHAPE, CLASSES)


def proposed(name: str, context: Context, seed: int = 1) -> Experiment:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    found = SPACES[name](trial, context)
    assert SPACES[name](Recorded(trial.params), context) == found
    assert Experiment.from_json(found.to_json()) == found
    return found


@every_backbone
def test_branches_are_proposed_counted_and_built(backbone: Any, splits: Splits) -> None:
    context = context_of(backbone)
    require_fit([SPACES["branched"]], context)
    found = proposed("branched", context)
    assert found.architecture is not None
    network, dense = build(found, splits), outline(backbone, SHAPE, CLASSES)
    assert isinstance(network, BranchedGraph)
    assert network(splits.train.images[:2]).shape == (2, CLASSES)
    costs = known_costs(found, shape=SHAPE, classes=CLASSES)
    assert costs["macs"] < dense.macs_under({})
    assert costs["macs"] >= dense.macs_under(memberships_of(found.architecture, dense.layers))
    assert costs["parameters"] == sum(each.numel() for each in network.parameters())


@every_backbone
def test_clusters_are_at_most_the_nodes_of_every_layer_of_the_graph(backbone: Any, splits: Splits) -> None:
    context = context_of(backbone, method=BlockoutSettings())
    require_fit([SPACES["blockout"]], context)
    require_fit([SPACES["structure"]], context)
    found = proposed("blockout", context)
    network = build(found, splits)
    assert isinstance(network, Blockout)
    narrowest = min(len(value) for value in network.probabilities().values())
    most = replace(found, method=replace(found.method, clusters=min(8, narrowest)))
    assert isinstance(build(most, splits), Blockout)
    trial = optuna.create_study().ask()
    SPACES["blockout"](trial, context)
    assert trial.distributions["blockout.clusters"].high == min(8, narrowest)  # type: ignore[attr-defined]


@every_backbone
def test_branches_from_confusions_lie_within_what_each_layer_can_hold(backbone: Any) -> None:
    context, network = context_of(backbone, confusion=ConfusionSettings()), outline(backbone, SHAPE, CLASSES)
    require_fit([SPACES["confusion"]], context)
    most = most_branches(network)
    for seed in range(5):
        settings = proposed("confusion", context, seed).confusion
        assert settings is not None
        assert settings.branches <= most[settings.split_layers - 1]
    points = grid(SPACES["confusion"], context, points=2)
    assert {point["confusion.branches"] for point in points} == {2, min(6, most[0])}
    deepest = sum(each >= 2 for each in most)
    assert max(point["confusion.split_layers"] for point in points) == deepest  # type: ignore[type-var]


def test_a_narrow_layer_that_stays_whole_belongs_to_all_branches(splits: Splits) -> None:
    backbone = ModuleSettings("tests/fixtures/inventions.py:Normalized", {"width": 3})
    network = build(Experiment(backbone=backbone, confusion=ConfusionSettings(branches=5)), splits)
    given = outline(backbone, SHAPE, CLASSES)
    assert given.rigid
    assert most_branches(given)[0] == CLASSES
    classes = torch.eye(5).repeat(2, 1).bool()
    found = memberships(network, classes, ConfusionSettings(branches=5))  # type: ignore[arg-type]
    assert all(found[name].all() for name in given.rigid if name in found and name != "classes")
