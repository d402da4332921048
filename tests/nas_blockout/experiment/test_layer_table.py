"""The table of a network's layers: what each costs, what of it can be masked, and what stays whole."""

from pathlib import Path

import pytest
import torch

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, load
from nas_blockout.experiment import Experiment, build, count_macs
from nas_blockout.experiment.layer_table import layer_table

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"


def test_a_network_of_ones_own_is_told_layer_by_layer() -> None:
    before = torch.get_rng_state()
    table = layer_table(ModuleSettings(f"{NETWORKS}:thousand", {"width": 5}), (1, 8, 8), 10)
    conv, classes = table.layers
    assert (conv.layer, conv.nodes, conv.producers, conv.readers) == ("conv", 5, ("conv.weight",), ("fc.weight",))
    assert (conv.macs, conv.maskable_share, conv.rigid) == (5 * 9 * 64, 0.0, None)
    assert (classes.layer, classes.nodes, classes.macs, classes.maskable_share) == ("classes", 10, 50, 1.0)
    assert (table.macs, table.classes, table.image) == (5 * 9 * 64 + 50, 10, (1, 8, 8))
    assert table.maskable_share == pytest.approx(50 / table.macs)
    assert table.notes == ("the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes",)
    assert table.to_json()["layers"][0]["layer"] == "conv"
    assert torch.equal(torch.get_rng_state(), before)


def test_costs_are_those_that_are_counted_and_built_in_layers_have_their_names() -> None:
    splits = load(DataSettings("digits", train_samples=20))
    for backbone, names in (
        (ResNetSettings(8, shortcut="projection"), ["stream1", "block1a", "stream2", "block2a", "block3a", "features"]),
        (ConvNetSettings((4, 6), (8,)), ["conv1", "features", "hidden"]),
    ):
        table = layer_table(backbone, splits.shape, 10)
        assert sorted(row.layer for row in table.layers[:-1]) == sorted(names)
        network = build(Experiment(backbone=backbone), splits).eval()
        assert table.macs == sum(row.macs for row in table.layers) == count_macs(network, splits.train.images[:1])


def test_what_stays_whole_is_counted_and_told_with_its_reason() -> None:
    table = layer_table(ModuleSettings(f"{NETWORKS}:Normalized"), (1, 8, 8), 10)
    stream = next(row for row in table.layers if row.rigid)
    first, second = table.summary()
    assert first == (
        f"3 layers of nodes; {table.maskable_share:.1%} of {table.macs:,} MACs are between nodes and can be masked; "
        "1 layer stays whole"
    )
    assert second == f"{stream.layer} ({stream.nodes} nodes) stays whole: {stream.rigid}"
    assert stream.maskable_share == 0.0  # it reads the image


def test_the_share_of_what_has_no_masks_is_told() -> None:
    table = layer_table(ModuleSettings(f"{NETWORKS}:Recurrent"), (1, 8, 8), 10)
    _, told, *_ = table.summary()
    share = table.unmasked[0].macs / table.macs
    assert told == f"{share:.1%} of the MACs are not maskable: gru in gru; `nas-blockout inspect` says why"
