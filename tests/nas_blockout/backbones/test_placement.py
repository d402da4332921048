"""Where dropping methods enter every backbone: where their papers have them, or where a study says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nas_blockout.backbones import stages_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build
from nas_blockout.methods import METHODS, NoneSettings
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings
from nas_blockout.training import TrainingSettings
from search_spaces.branched import Hierarchy, hierarchical

HEADS: dict[str, Any] = {
    "convnet": ConvNetSettings((4, 8), (7, 6)),
    "resnet": ResNetSettings(depth=8, width=0.125, hidden=(7, 6)),
    "inception": InceptionSettings(width=0.03, hidden=(7, 6)),
}
CLASSES = 10
METHODS_OF_MAPS = {"dropblock": 2, "spatial_dropout": 1, "dropcluster": None}  # and the last stages that they follow


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings(train_samples=40, validation_samples=40))


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def backbone(request: pytest.FixtureRequest) -> Any:
    return request.param


def network(backbone: Any, method: Any, splits: Splits) -> nn.Module:
    return build(Experiment(backbone=backbone, method=method), splits)


def dropped(model: nn.Module, splits: Splits) -> list[int]:
    """Widths of the layers of nodes whose nodes are dropped, in the order of the forward pass."""
    widths: list[int] = []
    for module in model.modules():
        if isinstance(module, Dropout):
            module.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    model.train()(splits.train.images[:8], torch.Generator().manual_seed(0))
    return widths


def masked(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the weights that are dropped."""
    return [tuple(module.weight.shape) for module in model.modules() if isinstance(module, DropConnect)]


def features_of(backbone: Any, splits: Splits) -> int:
    (shape, *_) = masked(network(backbone, DropConnectSettings(placement="all"), splits))
    return shape[1]


def test_dropout_follows_the_hidden_layers_and_leaves_the_pooled_features_alone(backbone: Any, splits: Splits) -> None:
    assert dropped(network(backbone, DropoutSettings(), splits), splits) == [7, 6]


def test_half_of_the_hidden_nodes_can_be_dropped_at_little_cost() -> None:
    """The fault of version 1: its dropout of the pooled features as well cost twenty points at this rate."""
    data = DataSettings(train_samples=100)
    splits = load(data)
    training = TrainingSettings(epochs=20, batch_size=25, learning_rate=4e-3)

    def accuracy(method: Any) -> float:
        *_, last = Run(Experiment(data, ConvNetSettings((8, 16), (64,)), method, training), splits)
        return last.validation_accuracy or 0.0

    without, dropped, everywhere = map(accuracy, (NoneSettings(), DropoutSettings(), DropoutSettings(placement="all")))
    assert without - dropped < 0.1 < without - everywhere


def test_dropout_before_the_classifier_alone(backbone: Any, splits: Splits) -> None:
    assert dropped(network(backbone, DropoutSettings(placement="classifier"), splits), splits) == [6]


def test_dropout_of_version_1_drops_what_every_linear_layer_reads(backbone: Any, splits: Splits) -> None:
    features = features_of(backbone, splits)
    assert dropped(network(backbone, DropoutSettings(placement="all"), splits), splits) == [features, 7, 6]


def test_dropconnect_is_of_the_hidden_layers_and_not_of_the_classifier(backbone: Any, splits: Splits) -> None:
    features = features_of(backbone, splits)
    assert masked(network(backbone, DropConnectSettings(), splits)) == [(7, features), (6, 7)]
    assert masked(network(backbone, DropConnectSettings(placement="classifier"), splits)) == [(CLASSES, 6)]


def followed(model: nn.Module, kind: type, splits: Splits) -> list[int]:
    """Channels of the maps that a method's layers get, in the order of the forward pass."""
    channels: list[int] = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(lambda _, inputs: channels.append(inputs[0].shape[1]))
    model.eval()(splits.train.images[:2])
    return channels


@pytest.mark.parametrize(("name", "last"), METHODS_OF_MAPS.items())
def test_methods_of_maps_follow_the_stages_of_their_papers(
    name: str, last: int | None, backbone: Any, splits: Splits
) -> None:
    kind, layer = METHODS[name].settings, METHODS[name].layer
    assert isinstance(layer, type)
    everywhere = followed(network(backbone, kind(last_stages=None), splits), layer, splits)
    assert len(everywhere) == (2 if isinstance(backbone, ConvNetSettings) else 3)
    assert followed(network(backbone, kind(), splits), layer, splits) == everywhere[-(last or 0) :]
    assert followed(network(backbone, kind(last_stages=9), splits), layer, splits) == everywhere


def test_stages_of_a_residual_network_decide_over_those_of_the_method(splits: Splits) -> None:
    backbone = replace(HEADS["resnet"], regularized_stages=3)
    assert followed(network(backbone, SpatialDropoutSettings(), splits), SpatialDropout, splits) == [2, 4, 8]


def test_branches_are_dropped_in_the_same_place(splits: Splits) -> None:
    backbone = HEADS["convnet"]
    stages = stages_of(backbone, splits.shape, CLASSES)
    hierarchy = Hierarchy(first_split=0, branches=2, splits_again=False, skew=0, shared=0, assignment=0)
    branched = Experiment(backbone=backbone, method=DropoutSettings(), architecture=hierarchical(hierarchy, stages))
    model = build(branched, splits)
    assert isinstance(model, BranchedNetwork)
    assert dropped(model, splits) == [layer.width for layer in model.full.layers[-3:-1]]


@pytest.mark.parametrize("method", [DropoutSettings(), DropConnectSettings()], ids=["dropout", "dropconnect"])
def test_a_head_without_hidden_layer_is_refused_and_the_remedies_work(
    backbone: Any, method: Any, splits: Splits
) -> None:
    bare = replace(backbone, hidden=())
    rule = r"method\.placement: drop\w+ with the placement hidden needs .* with hidden: \[\]; .* to classifier"
    with pytest.raises(ValueError, match=rule):
        network(bare, method, splits)
    model = network(bare, replace(method, placement="classifier"), splits)
    reads = features_of(bare, splits)
    assert (dropped(model, splits), masked(model)) in (([reads], []), ([], [(CLASSES, reads)]))
