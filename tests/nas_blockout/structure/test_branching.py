"""How far a network branches, against a loop over its nodes and against the networks themselves."""

import json
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas_blockout.architecture import Architecture, Group, Layer, dense_architecture
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.experiment import count_macs, structure_of_network
from nas_blockout.networks import Branchable
from nas_blockout.structure.branching import (
    NO_BRANCHES,
    Branch,
    GroupCost,
    LayerCost,
    LayerStructure,
    Place,
    Structure,
    recorded_structure,
    structure_metrics,
    structure_of,
    summary,
)
from nas_blockout.structure.distill import Distilled, distill, harden
from nas_blockout.structure.group_costs import group_costs
from nas_blockout.structure.wiring import Wiring
from tests.nas_blockout.structure.graphs import Grouped, Residual, random_memberships

STAGES = stages(ConvNetSettings((4, 6), (8,)), (1, 8, 8), 5)
COSTS = [LayerCost(stage.width, stage.kernel**2, stage.positions, 1 + stage.activation) for stage in STAGES[1:]]


def three_layers(features: list[Group], hidden: list[Group], classes: list[Group]) -> Architecture:
    layers = (features, hidden, classes)
    names = ("features", "hidden", "classes")
    return Architecture(3, tuple(Layer(name, tuple(groups)) for name, groups in zip(names, layers, strict=True)))


BRANCHED = three_layers(
    [Group((0,), 2), Group((1,), 2), Group((0, 1), 1)],
    [Group((0,), 3), Group((1,), 3), Group((0, 1, 2), 1)],
    [Group((0,), 3, (1, 2, 4)), Group((1, 2), 2, (0, 3))],
)
ONE_GROUP = three_layers([Group((0,), 4)], [Group((0, 1), 7)], [Group((1,), 5, (0, 1, 2, 3, 4))])
SEVERAL_GROUPS_AND_NO_BRANCH = three_layers(
    [Group((0,), 2), Group((1,), 4)], [Group((0, 1), 8)], [Group((0,), 2, (0, 1)), Group((1, 2), 3, (2, 3, 4))]
)
ALL = (BRANCHED, ONE_GROUP, SEVERAL_GROUPS_AND_NO_BRANCH)


def by_loops(architecture: Architecture, inputs: int) -> tuple[list[float], int, int, int]:
    """Density of every layer, and MACs, exclusive MACs and exclusive parameters, connection by connection."""
    nodes = [[frozenset(group.clusters) for group in layer.groups for _ in range(group.width)]
             for layer in architecture.layers]  # fmt: skip
    everything = frozenset(range(architecture.clusters))
    nodes = [[everything] * inputs, *nodes]
    density, macs, exclusive, parameters = [], 0, 0, 0
    branched = any(not a & b for before, after in pairwise(nodes) for a, b in product(before, after))
    for (before, after), cost in zip(pairwise(nodes), COSTS, strict=True):
        present = [(a, b) for a, b in product(before, after) if a & b]
        density.append(len(present) / len(before) / len(after))
        macs += len(present) * cost.weights * cost.positions
        own = {node for node in after if len(node) == 1} if branched and len(set(after)) > 1 else set()
        weights = sum(cost.weights for _, b in present if b in own)
        exclusive += weights * cost.positions
        parameters += weights + cost.node_parameters * sum(node in own for node in after)
    return density, macs, exclusive, parameters


@pytest.mark.parametrize("architecture", ALL)
def test_a_structure_is_what_a_loop_over_its_nodes_gives(architecture: Architecture) -> None:
    found = structure_of(architecture, costs=COSTS, inputs=4)
    density, macs, exclusive, parameters = by_loops(architecture, 4)
    assert [layer.density for layer in found.layers] == pytest.approx(density)
    assert (found.macs, found.exclusive_macs, found.exclusive_parameters) == (macs, exclusive, parameters)
    assert sum(branch.exclusive_macs or 0 for branch in found.branches) == exclusive
    assert sum(branch.exclusive_parameters or 0 for branch in found.branches) == parameters


def test_every_layer_has_its_nodes_and_groups_and_every_branch_its_classes() -> None:
    found = structure_of(BRANCHED, costs=COSTS, inputs=4)
    assert [(layer.name, layer.nodes, layer.dense_nodes, layer.groups) for layer in found.layers] == [
        ("features", 5, 6, 3),
        ("hidden", 7, 8, 3),
        ("classes", 5, 5, 2),
    ]
    assert {branch.cluster: branch.classes for branch in found.branches} == {0: (1, 2, 4), 1: (0, 3), 2: (0, 3)}
    assert found.removed == 2
    assert found.is_branched


@pytest.mark.parametrize("architecture", [ONE_GROUP, SEVERAL_GROUPS_AND_NO_BRANCH])
def test_a_network_whose_nodes_are_all_connected_has_no_branches(architecture: Architecture) -> None:
    found = structure_of(architecture, costs=COSTS, inputs=4)
    assert not found.is_branched
    assert (found.exclusive_macs, found.exclusive_parameters) == (0, 0)


def test_networks_give_the_costs_of_their_own_layers() -> None:
    trunk = BranchedNetwork(STAGES, BRANCHED, channels=1).eval()
    dense = BranchedNetwork(STAGES, dense_of(STAGES), channels=1).eval()
    images = torch.zeros(1, 1, 8, 8)
    for network in (trunk, dense):
        found = structure_of_network(network)
        assert found is not None
        assert found.macs == count_macs(network, images)
        assert [layer.dense_nodes for layer in found.layers] == [4, 6, 8, 5]
    assert structure_of_network(nn.Linear(2, 2)) is None
    assert structure_of_network(ResNet(ResNetSettings(), (1, 8, 8), 5)) is None


def test_a_structure_is_read_back_and_an_older_result_has_what_its_architecture_says() -> None:
    found = structure_of(BRANCHED, costs=COSTS, inputs=4)
    document = json.loads(json.dumps(found.to_json()))
    assert Structure.from_json(document) == found
    assert recorded_structure({"structure": document, "architecture": None}) == found
    older = recorded_structure({"architecture": BRANCHED.to_json()})
    assert older is not None
    assert [layer.density for layer in older.layers] == [layer.density for layer in found.layers]
    assert (older.macs, older.exclusive_macs, older.exclusive_parameters) == (None, None, None)
    assert [branch.classes for branch in older.branches] == [branch.classes for branch in found.branches]
    assert recorded_structure({"architecture": None}) is None


def test_the_summary_says_how_far_it_branches_or_that_it_does_not() -> None:
    text = summary(structure_of(BRANCHED, costs=COSTS, inputs=4), learned=True)
    assert text.startswith("3 branches: groups of nodes 3 in features, 3 in hidden, 2 in classes; ")
    assert "of the MACs belong to one branch alone" in text
    assert summary(structure_of(ONE_GROUP, costs=COSTS, inputs=4), learned=True) == NO_BRANCHES
    assert NO_BRANCHES == "no branches were learned: nodes were removed"
    dense = structure_of(dense_architecture(["features", "hidden", "classes"], [6, 8, 5]), costs=COSTS, inputs=4)
    assert summary(dense, learned=True) == "no branches were learned, and no node was removed"
    assert summary(dense, learned=False) == "no branches"
    assert summary(structure_of(ONE_GROUP, costs=COSTS, inputs=4), learned=False) == "no branches, nodes were removed"
    assert summary(structure_of(ONE_GROUP), learned=True) == "no branches were learned"


def test_a_network_that_cuts_two_connections_of_a_thousand_hardly_branches() -> None:
    features = [Group((0,), 2), Group((0, 1), 31), Group((1,), 1)]
    nearly = three_layers(features, [Group((0,), 1), Group((0, 1), 29)], [Group((0, 1), 5, (0, 1, 2, 3, 4))])
    found = structure_of(nearly, costs=COSTS, inputs=4)
    assert found.is_branched
    assert found.hardly_branches
    assert not structure_of(BRANCHED, costs=COSTS, inputs=4).hardly_branches
    text = summary(found, learned=True)
    assert text == (
        "hardly any branches were learned; connections kept between nodes 99.9% in hidden, all in other layers"
    )
    fewer = structure_of(nearly, costs=[LayerCost(100, 1, 1, 1)] * 3, inputs=4)
    assert summary(fewer, learned=True).startswith(
        "hardly any branches were learned: nodes were removed; connections kept"
    )


def test_the_metrics_are_named_by_layer() -> None:
    found = structure_metrics(structure_of(BRANCHED, costs=COSTS, inputs=4))
    assert found["structure/groups/hidden"] == 3
    assert found["structure/density/features"] == 1
    assert found["structure/nodes/features"] == 5
    assert found["structure/exclusive_macs"] > 0
    assert "structure/exclusive_macs" not in structure_metrics(structure_of(BRANCHED))


def test_costs_belong_to_the_layers() -> None:
    with pytest.raises(ValueError, match="each of the 3 layers needs its cost, got 2"):
        structure_of(BRANCHED, costs=COSTS[:2], inputs=4)


def costs_in(network: Branchable, found: Distilled) -> dict[Place, GroupCost]:
    names = [name for name, _ in network.named_parameters()]
    return group_costs(found.architecture, found.nodes, network.connections, scales=network.scales, parameters=names)


@given(seed=st.integers(0, 10_000), threshold=st.floats(0.2, 0.9), clean_up=st.booleans())
@settings(max_examples=30, deadline=None)
def test_costs_by_group_are_those_by_layer_in_a_chain(seed: int, threshold: float, clean_up: bool) -> None:
    plan = stages(ConvNetSettings((6, 8), (7,)), (2, 8, 8), 5)
    dense = BranchedNetwork(plan, dense_of(plan), channels=2)
    p = random_memberships(Wiring.of(dense), 3, seed)
    found = distill(p, harden(p, threshold), clean_up=clean_up)
    branched = BranchedNetwork(plan, found.architecture, channels=2)
    expected = structure_of_network(branched)
    structure = structure_of(found.architecture, inputs=2, groups=costs_in(dense, found), widths=dense.layers)
    if not any(group.constant for layer in found.architecture.layers for group in layer.groups):
        assert structure == expected
    assert expected is not None
    assert structure.macs == expected.macs == dense.macs_under(found.complete)


@pytest.mark.parametrize(
    "network", [Residual(), Grouped(rigid=False), Grouped(rigid=True)], ids=["residual", "grouped", "rigid"]
)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0.2, 0.9))
@settings(max_examples=30, deadline=None)
def test_costs_by_group_are_those_of_the_weights_of_a_graph(network: Branchable, seed: int, threshold: float) -> None:
    p = random_memberships(Wiring.of(network), 3, seed)
    found = distill(p, harden(p, threshold), wiring=Wiring.of(network))
    structure = structure_of(found.architecture, inputs=2, groups=costs_in(network, found), widths=network.layers)
    assert structure.macs == network.macs_under(found.complete)
    assert {layer.name: layer.dense_nodes for layer in structure.layers} == network.layers
    assert structure.exclusive_macs is not None
    assert structure.exclusive_macs == sum(branch.exclusive_macs or 0 for branch in structure.branches)
    assert structure.exclusive_macs <= structure.macs
    assert not (structure.is_branched and found.architecture.is_dense)


def test_a_dense_graph_has_all_parameters_and_no_branches() -> None:
    for network in (Residual(), Grouped(rigid=False), Grouped(rigid=True)):
        wiring = Wiring.of(network)
        ones = {name: torch.ones(width, 1) for name, width in network.layers.items()}
        found = distill(ones, harden(ones, 0.5), wiring=wiring)
        costs = costs_in(network, found)
        assert sum(cost.parameters for cost in costs.values()) == sum(each.numel() for each in network.parameters())
        assert sum(cost.macs for cost in costs.values()) == network.macs_under(ones)
        structure = structure_of(found.architecture, inputs=2, groups=costs)
        assert not structure.is_branched
        assert structure.exclusive_macs == 0
    with pytest.raises(ValueError, match="costs by layer are those of a chain"):
        structure_of(found.architecture, costs=COSTS, inputs=4)


def test_groups_of_a_convolution_and_repeated_nodes_cost_what_they_read() -> None:
    network = Grouped(rigid=False)
    hard = {
        "first": torch.tensor([[1, 0], [0, 1], [1, 1], [0, 1]], dtype=torch.bool),
        "grouped": torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1], [0, 1]], dtype=torch.bool),
        "classes": torch.tensor([[1, 0], [0, 1], [0, 1]], dtype=torch.bool),
    }
    p = {name: value.double() for name, value in hard.items()}
    found = distill(p, hard, wiring=Wiring.of(network))
    costs = costs_in(network, found)
    by_node = {"grouped": [1, 1, 2, 1, 2, 2], "classes": [3 * 4 + 1, 4 * 4 + 1, 4 * 4 + 1]}
    positions = {"grouped": 4, "classes": 1}
    for number, layer in enumerate(found.architecture.layers[1:], 1):
        for position, nodes in enumerate(found.nodes[layer.name]):
            expected = sum(by_node[layer.name][node] for node in nodes.tolist()) * positions[layer.name]
            assert costs[number, position].macs == expected


def test_rigid_nodes_without_clusters_make_no_branches() -> None:
    network = Grouped(rigid=True)
    ones = {name: torch.ones(width, 1, dtype=torch.bool) for name, width in network.layers.items()}
    ones["first"][1:3] = False
    found = distill({name: value.double() for name, value in ones.items()}, ones, wiring=Wiring.of(network))
    assert len(found.architecture.layers[0].groups) == 2
    structure = structure_of(found.architecture, inputs=1, groups=costs_in(network, found), widths=network.layers)
    assert not structure.is_branched
    assert [layer.density for layer in structure.layers] == [1.0, 1.0, 1.0]
    assert structure.layers[0].nodes == 4
    assert costs_in(network, found)[0, 0].macs == 2 * 4, "they are computed, and read by nothing"
    assert network.macs_under(ones) == 4 * 4 + 4 * (3 + 3) + 3 * 25


def test_many_layers_are_summed_up() -> None:
    layers = [LayerStructure(f"layer{at}", 4, 6, 1 + at % 3, 0.5 if at % 3 else 0.25) for at in range(15)]
    text = summary(Structure(tuple(layers), (Branch(0, (), None, None),) * 2, None, None, None), learned=True)
    assert text == (
        "2 branches: groups of nodes up to 3 in 10 layers; connections kept between nodes 25% to 50% in 15 of 15 layers"
    )


def test_more_clusters_than_a_number_has_bits_cost_the_same() -> None:
    network = Residual()
    few = {name: value > 0.5 for name, value in random_memberships(Wiring.of(network), 3, 1).items()}
    many = {name: torch.cat([value, torch.zeros(len(value), 67, dtype=torch.bool)], 1) for name, value in few.items()}
    assert network.macs_under(many) == network.macs_under(few) < network.macs_under({"classes": torch.ones(4, 1)})
    assert network.weights_under(many) == network.weights_under(few)
