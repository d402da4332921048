"""Pruning keeps the nodes with the largest weights, meets its target, and computes what the masked network computes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.backbones.branched import BranchedNetwork, BranchedStage
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build, dense_macs
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.structure.pruning import PruningSettings, magnitudes
from nas_blockout.training import TrainingSettings
from tests.nas_blockout.structure.graphs import Grouped, Residual

PRUNED = Experiment(
    data=DataSettings(train_samples=100, validation_samples=100),
    backbone=ConvNetSettings((6, 8), (10,)),
    training=TrainingSettings(epochs=4, batch_size=25),
    pruning=PruningSettings(target_macs=0.5),
    seed=3,
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(PRUNED.data)


def stage(network: BranchedNetwork, name: str) -> BranchedStage:
    found = network.stages[name]
    assert isinstance(found, BranchedStage)
    return found


def test_magnitudes_equal_a_loop_over_nodes(splits: Splits) -> None:
    network = build(replace(PRUNED, pruning=None), splits)
    assert isinstance(network, BranchedNetwork)
    found = magnitudes(network)
    own, reader = stage(network, "features"), stage(network, "hidden")
    rows, columns = (stage.get_parameter("operations.0.weight").detach() for stage in (own, reader))
    energies = []
    for node in range(8):
        into = sum(float(value) ** 2 for value in rows[node].flatten())
        out = sum(float(value) ** 2 for value in columns[:, node].flatten())
        energies.append((into + 1.0 + out) / 3)  # batch normalization starts with a scale of one
    mean = sum(energies) / len(energies)
    expected = torch.tensor([[energy / mean / (1 + energy / mean)] for energy in energies])
    torch.testing.assert_close(found["features"], expected)
    assert list(found) == ["conv1", "features", "hidden", "classes"]
    assert found["classes"].eq(1).all()


def test_nodes_without_weights_go_first(splits: Splits) -> None:
    network = build(replace(PRUNED, pruning=None), splits)
    assert isinstance(network, BranchedNetwork)
    with torch.no_grad():
        stage(network, "hidden").get_parameter("operations.0.weight")[4] = 0
        stage(network, "classes").get_parameter("operations.0.weight")[:, 4] = 0
        stage(network, "hidden").get_parameter("normalize.weight")[4] = 0
    found = magnitudes(network)
    assert int(found["hidden"].argmin()) == 4
    assert float(found["hidden"][4]) == 0


def test_a_pruned_network_meets_its_target_and_costs_one_training(splits: Splits) -> None:
    run = Run(PRUNED, splits)
    records = list(run)
    assert [record.stage for record in records] == ["learn", "learn", "finetune", "finetune"]
    assert records[-1].sample_passes == 4 * (100 + 34)
    assert run.outcome is not None
    assert run.outcome.derivation is not None
    assert run.outcome.architecture is not None
    assert run.outcome.architecture.is_dense
    share = run.outcome.macs / dense_macs(PRUNED, splits)
    assert 0.35 < share <= 0.5
    assert set(run.outcome.derivation.gap) == {"soft", "raw", "hard", "inherited"}
    for found in run.outcome.derivation.equality.values():
        assert found["max_abs_difference"] <= found["bound"]


def test_pruning_needs_a_dense_network() -> None:
    with pytest.raises(ValueError, match="pruning needs a dense network"):
        replace(PRUNED, method=BlockoutSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_macs": 0.0}, "target_macs must be in"),
        ({"learn_fraction": 1.0}, "learn_fraction must be in"),
        ({"finetune_lr_multiplier": 0.0}, "finetune_lr_multiplier must be above 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningSettings(**change)


def test_in_a_graph_everything_that_stands_or_falls_with_a_node_counts() -> None:
    torch.manual_seed(0)
    network = Residual(width=6, inner=(4, 5))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    found = magnitudes(network)

    def expected(parts: list[Tensor]) -> Tensor:
        mean = torch.stack(parts).mean(0)
        mean = mean / mean.mean()
        return (mean / (1 + mean))[:, None]

    rows = [network.stem, network.second[0], network.second[1], network.alone]
    columns = [network.first[0], network.first[1], network.head]
    scales = [network.normalize, network.last[0], network.last[1]]
    parts = [torch.stack([row.square().sum() for row in module.weight]) for module in rows]
    parts += [module.weight.square() for module in scales]
    parts += [torch.stack([module.weight[:, at].square().sum() for at in range(6)]) for module in columns]
    torch.testing.assert_close(found["stream"], expected([part.detach() for part in parts]))
    first, scale, second = network.first[1].weight, network.inside[1].weight, network.second[1].weight
    inner = [first.square().flatten(1).sum(1), scale.square(), second.square().flatten(2).sum((0, 2))]
    torch.testing.assert_close(found["inner1"], expected([part.detach() for part in inner]))
    assert torch.equal(found["classes"], torch.ones(4, 1))


def test_groups_and_repeated_nodes_count_where_they_are_read_and_rigid_layers_stay() -> None:
    torch.manual_seed(0)
    network = Grouped(rigid=False)
    found = magnitudes(network)
    first = network.first.weight.flatten().square()
    read = torch.cat(
        [network.grouped.weight[:3].square().sum((0, 2, 3)), network.grouped.weight[3:].square().sum((0, 2, 3))]
    )
    importance = torch.stack([first, read]).mean(0).detach()
    importance = importance / importance.mean()
    torch.testing.assert_close(found["first"][:, 0], importance / (1 + importance))
    written = network.grouped.weight.flatten(1).square().sum(1)
    flat = network.head.weight[:, :24].unflatten(1, (6, 4)).square().sum((0, 2))
    importance = torch.stack([written, flat]).mean(0).detach()
    importance = importance / importance.mean()
    torch.testing.assert_close(found["grouped"][:, 0], importance / (1 + importance))
    kept = magnitudes(Grouped(rigid=True))
    assert torch.equal(kept["first"], torch.ones(4, 1))
    assert kept["grouped"].unique().numel() > 1
