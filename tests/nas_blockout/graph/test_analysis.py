"""Layers of nodes and the weights between them; a node whose readers are masked does not matter."""

import copy
import pickle
import time
from collections.abc import Mapping
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nas_blockout.backbones.inception import Inception, InceptionSettings
from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.graph.analysis import GraphAnalysis, NodeLayer, analyze
from nas_blockout.graph.trace import Untraceable
from nas_blockout.graph.unmasked import UnmaskedOperation
from nas_blockout.networks import Connection
from nas_blockout.nodes import NO_NODE, Nodes
from tests.nas_blockout.graph.networks import CLASSES, NETWORKS, SHAPE, Alias, Residual, analysis_of

CLUSTERS = 3


@cache
def analyzed(name: str) -> tuple[nn.Module, GraphAnalysis]:
    """A network in float64, and its analysis."""
    torch.manual_seed(0)
    return NETWORKS[name]().double(), analysis_of(name)


def layers(analysis: GraphAnalysis) -> dict[str, tuple[int, str | None]]:
    return {layer.name: (layer.width, layer.rigid) for layer in analysis.layers}


def drawn(analysis: GraphAnalysis, seed: int) -> dict[str, Tensor]:
    """Memberships of every layer, which leave about one node of eight without a cluster."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer.name: (torch.rand(layer.width, CLUSTERS, generator=generator) < 0.5).double() for layer in analysis.layers
    }


def mask(connection: Connection, memberships: Mapping[str, Tensor]) -> Tensor:
    """Whether the two ends of each entry share a cluster; what reads no node is not masked."""
    shape = connection.shape
    nodes = connection.source_nodes
    if nodes is None or connection.filters_each_node_alone:
        return torch.ones(shape, dtype=torch.float64)
    targets, sources = connection.target_nodes.of(memberships), nodes.of(memberships)
    no_node = torch.tensor([each is None for each in nodes.identities])
    shared = ((targets @ sources.T) > 0) | no_node
    rows, columns = shape[0] // connection.groups, shape[1]
    shares = [
        shared[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns]
        for group in range(connection.groups)
    ]
    return torch.cat(shares).double().view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)


def masked_state(module: nn.Module, analysis: GraphAnalysis, memberships: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under masks, with batch norms calibrated to them: otherwise no signal comes through."""
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for connection in analysis.connections:
        state[connection.weight] *= mask(connection, memberships)
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    outputs(module.train(), state, seed=5)
    for norm in norms:
        norm.momentum = 0.1
    return state


def outputs(module: nn.Module, state: Mapping[str, Tensor], *, seed: int) -> Tensor:
    images = torch.randn(6, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)  # of dropout and stochastic depth
    with torch.no_grad():
        logits: Tensor = functional_call(module, dict(state), (images,))
    return logits


def changed(
    analysis: GraphAnalysis, state: Mapping[str, Tensor], chosen: Tensor, memberships: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state with other weights, biases, filters and scales of some nodes, by their numbers."""
    state = {name: value.clone() for name, value in state.items()}
    starts, start = {}, 1
    for layer in analysis.layers:
        starts[layer.name] = torch.arange(start, start + layer.width)
        start += layer.width
    sides = {each.weight: each.target_nodes for each in analysis.connections} | dict(analysis.scales)
    for weight, nodes in sides.items():
        rows = chosen[nodes.of(starts)]
        for name in (weight, weight[: -len("weight")] + "bias"):
            if name in state:
                state[name][rows] += 1 + torch.rand(state[name][rows].shape, dtype=torch.float64)
    return state


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_a_node_without_clusters_does_not_matter(name: str, seed: int) -> None:
    module, analysis = analyzed(name)
    memberships = drawn(analysis, seed)
    state = masked_state(module, analysis, memberships)
    lonely = (analysis.memberships(memberships).sum(1) == 0) & ~analysis.rigid_nodes
    for mode in (False, True):
        expected = outputs(module.train(mode), state, seed=seed)
        actual = outputs(module, changed(analysis, state, lonely, memberships), seed=seed)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_other_nodes_do_matter(name: str) -> None:
    """The negative control: signals come through, and a change of nodes with clusters is seen."""
    module, analysis = analyzed(name)
    memberships = {layer: torch.ones_like(value) for layer, value in drawn(analysis, 0).items()}
    state = masked_state(module, analysis, memberships)
    for number in range(1, len(analysis.rigid_nodes)):
        chosen = torch.arange(len(analysis.rigid_nodes)) == number
        expected = outputs(module.eval(), state, seed=1)
        assert float(expected.std(0).max()) > 1e-4
        actual = outputs(module, changed(analysis, state, chosen, memberships), seed=1)
        assert float((actual - expected).abs().max()) > 1e-6, f"node {number} has no part in the output"


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_say_whose_each_entry_is(name: str) -> None:
    _, analysis = analyzed(name)
    nodes = sum(layer.width for layer in analysis.layers)
    assert analysis.rigid_nodes.shape == (nodes + 1,)
    for node, labels in analysis.labels.items():
        value = analysis.values[node]
        if isinstance(value, Tensor):
            assert isinstance(labels, Tensor)
            assert labels.shape == value.shape
            assert labels.dtype == torch.long
            assert not labels.numel() or 0 <= int(labels.min()) <= int(labels.max()) <= nodes
            assert not (analysis.is_constant[node] and labels.any())
    output = analysis.labels[analysis.output]
    assert isinstance(output, Tensor)
    assert output[0].tolist() == [analysis.node_of("classes", number) for number in range(CLASSES)]


class TestLayers:
    def test_a_residual_stream_is_one_layer_and_a_padded_shortcut_adds_nodes(self) -> None:
        _, analysis = analyzed("residual")
        assert layers(analysis) == {
            "stem": (6, None),
            "conv1": (8, None),
            "conv2": (10, None),
            "conv3": (4, None),
            "classes": (CLASSES, None),
        }
        assert analysis.layers[2] == NodeLayer(
            "conv2",
            10,
            None,
            ("conv2.weight", "project.weight", "conv3.weight"),
            ("conv3.weight", "fc.weight"),
        )
        assert analysis.edges == (
            (None, "stem"),
            ("stem", "conv1"),
            ("conv1", "conv2"),
            ("stem", "conv2"),
            ("conv2", "conv3"),
            ("conv2", "conv2"),
            ("conv3", "classes"),
            ("conv2", "classes"),
        )
        conv3 = analysis.connections[4]
        padded = (0, 1, *range(4, 14), 2, 3)
        assert conv3.target_nodes == Nodes((("conv3", 4), ("conv2", 10)), padded)
        assert analysis.connections[5].source_nodes == Nodes(
            (("conv3", 4), ("conv2", 10)), tuple(node for node in padded for _ in range(4))
        )
        assert analysis.scales["norm2.weight"] == Nodes.whole("conv2", 10)

    def test_concatenation_reads_whole_layers(self) -> None:
        _, analysis = analyzed("dense")
        read = {each.weight: each.source_nodes for each in analysis.connections}
        assert read["convs.2.weight"] == Nodes((("stem", 6), ("convs.0", 4), ("convs.1", 4)))
        assert analysis.scales["norms.2.weight"] == read["convs.2.weight"]

    def test_a_shuffle_is_an_order_of_positions(self) -> None:
        _, analysis = analyzed("shuffle")
        assert [layer.width for layer in analysis.layers] == [3, 3, 6, 3, 3, 6, CLASSES]
        last = analysis.connections[-1].source_nodes
        assert last is not None
        assert last.positions is not None
        assert sorted(last.positions) == list(range(12))

    def test_a_gate_and_its_depthwise_convolution_are_of_the_layer_that_they_scale(self) -> None:
        _, analysis = analyzed("mobile")
        assert layers(analysis) == {
            "stem": (6, None),
            "expand": (12, None),
            "squeeze": (4, None),
            "classes": (CLASSES, None),
        }
        assert [each.weight for each in analysis.connections if each.filters_each_node_alone] == ["depthwise.weight"]
        assert ("expand", "expand") not in analysis.edges
        assert ("expand", "stem") in analysis.edges

    def test_values_and_gates_of_a_unit_are_one_node(self) -> None:
        _, analysis = analyzed("gated")
        assert analysis.connections[0].target_nodes == Nodes((("conv", 8),), (*range(8), *range(8)))

    def test_channels_of_a_small_group_are_one_node(self) -> None:
        pairs = tuple(number // 2 for number in range(12))
        _, analysis = analyzed("grouped")
        conv = analysis.connections[2]
        assert (conv.source_nodes, conv.target_nodes) == (Nodes((("reduce", 6),), pairs), Nodes((("conv", 6),), pairs))
        _, analysis = analyzed("few-groups")
        assert layers(analysis)["conv"] == (12, None)

    @pytest.mark.parametrize("name", ["fused-attention", "attention-apart", "attention-module"])
    def test_a_head_is_a_node_and_the_stream_stays_whole_under_layer_norm(self, name: str) -> None:
        _, analysis = analyzed(name)
        assert analysis.rigid == {"patches": "LayerNorm over nodes"}
        heads = {layer.name: layer.width for layer in analysis.layers if layer.width == 3}
        assert len(heads) == 1
        (attention,) = heads
        writers = [each for each in analysis.connections if each.targets == (attention,)]
        blocks = tuple(number // 4 for number in range(12))
        assert all(each.target_nodes.positions == blocks * (each.shape[0] // 12) for each in writers)

    def test_flattened_positions_are_of_their_channel(self) -> None:
        _, analysis = analyzed("flat")
        assert analysis.connections[2].source_nodes == Nodes((("conv2", 8),), tuple(n // 4 for n in range(32)))

    def test_a_shared_weight_is_one_connection_and_its_nodes_stay(self) -> None:
        _, analysis = analyzed("shared")
        assert analysis.rigid == {"stem": "shared weight"}
        (conv,) = (each for each in analysis.connections if each.weight == "conv.weight")
        assert conv.positions == 2 * 64
        assert set(analysis.weight_of.values()) == {each.weight for each in analysis.connections}
        assert list(analysis.weight_of.values()).count("conv.weight") == 2

    def test_a_tied_parameter_is_a_shared_weight_under_its_first_name(self) -> None:
        module = NETWORKS["padded"]()
        convs = module.convs
        assert isinstance(convs, nn.ModuleList)
        convs[2].weight, convs[2].bias = convs[1].weight, convs[1].bias
        analysis = analyze(module, SHAPE)
        assert analysis.rigid == {"convs.0": "shared weight"}
        assert [each.weight for each in analysis.connections] == [
            "convs.0.weight",
            "convs.1.weight",
            "fc.weight",
        ]

    def test_weights_that_mix_positions_are_told(self) -> None:
        _, analysis = analyzed("token-mixer")
        (found,) = analysis.unmasked
        assert found == UnmaskedOperation("linear in mix", ("mix.weight",), 64 * 64 * 8, "mixes positions, not nodes")

    def test_a_filter_of_image_channels_is_no_connection(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, CLASSES))
        analysis = analyze(module, SHAPE)
        reason = "filters the image channel by channel"
        assert analysis.unmasked == (UnmaskedOperation("conv2d in 0", ("0.weight",), 3 * 36 * 9, reason),)
        assert analysis.edges == ((None, "1"), ("1", "classes"))

    def test_what_is_no_nodes_has_no_position(self) -> None:
        class Beside(Alias):
            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.fc(torch.cat([x[:, :2], self.conv(x)[:, :6]], 1).mean((2, 3)))
                return logits

        analysis = analyze(Beside(), SHAPE)
        last = analysis.connections[-1].source_nodes
        assert last is not None
        assert last.positions == (NO_NODE, NO_NODE, *range(6))
        assert (None, "classes") in analysis.edges
        assert layers(analysis) == {"conv": (6, None), "conv:2": (2, None), "classes": (CLASSES, None)}


class TestNames:
    def test_layers_are_called_as_asked(self) -> None:
        names = {"stem.weight": "classes", "project.weight": "stream", "fc.weight": "elsewhere"}
        analysis = analyze(Residual(), SHAPE, names=names)
        # Only the last layer is called classes.
        assert list(layers(analysis)) == ["classes:2", "conv1", "stream", "conv3", "classes"]

    @pytest.mark.parametrize(
        "settings_", [ResNetSettings(8, shortcut="projection", hidden=(12,)), ResNetSettings(18, width=0.1)]
    )
    def test_a_residual_backbone_has_the_layers_that_it_tells_of_itself(self, settings_: ResNetSettings) -> None:
        network = ResNet(settings_, SHAPE, CLASSES)
        told = network.connections
        analysis = analyze(network, SHAPE, names={each.weight: each.targets[0] for each in told})
        assert {layer.name: layer.width for layer in analysis.layers} == network.widths
        assert {each.weight: each for each in analysis.connections} == {each.weight: each for each in told}
        assert analysis.rigid == {}

    def test_inception_is_maskable_throughout(self) -> None:
        network = Inception(InceptionSettings(width=0.1, hidden=(16, 16)), SHAPE, CLASSES)
        network.groups = nn.ModuleDict({"group3": network.groups["group3"]})  # two modules, of which one halves
        network.head.linears[0] = nn.Linear(network.groups["group3"][-1].outputs, 16)
        analysis = analyze(network, SHAPE)
        assert analysis.rigid == {}
        assert len(analysis.connections) == sum(value.dim() > 1 for value in network.parameters())
        assert any(len(each.sources) == 4 for each in analysis.connections)  # the paths of a module


class Head(nn.Module):
    """One convolution, and what is given for the logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.fc, self.more = nn.Conv2d(3, CLASSES, 3), nn.Linear(CLASSES, 6), nn.Linear(CLASSES, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        match self.kind:
            case "two heads":
                return torch.cat([self.more(x), self.fc(x)], 1)
            case "convolution":
                return F.log_softmax(x, 1)
            case "doubled":
                return torch.cat([self.fc(x), self.fc(x)], 1)
            case "turned":
                return self.fc(x).flip(1)
        return x.sort(1)[0]


class TestClasses:
    def test_two_linear_layers_may_make_the_classes(self) -> None:
        analysis = analyze(Head("two heads"), SHAPE)
        assert analysis.classes == CLASSES
        assert [each.target_nodes for each in analysis.connections[1:]] == [
            Nodes((("classes", 10),), (0, 1, 2, 3)),
            Nodes((("classes", 10),), (4, 5, 6, 7, 8, 9)),
        ]

    def test_a_convolution_may_make_the_classes(self) -> None:
        assert layers(analyze(Head("convolution"), SHAPE)) == {"classes": (CLASSES, None)}

    def test_classes_are_in_the_order_of_the_logits(self) -> None:
        analysis = analyze(Head("turned"), SHAPE)
        assert analysis.connections[-1].target_nodes.positions == (5, 4, 3, 2, 1, 0)

    @pytest.mark.parametrize("kind", ["doubled", "sorted"])
    def test_a_network_without_a_layer_for_them_is_refused(self, kind: str) -> None:
        with pytest.raises(Untraceable, match="must end in a layer for its classes") as caught:
            analyze(Head(kind), SHAPE)
        assert "\n" not in str(caught.value)

    def test_the_image_itself_is_no_layer(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten())
        with pytest.raises(Untraceable, match="must end in a layer for its classes"):
            analyze(module, SHAPE)


class TestAnalysis:
    def test_a_copy_is_the_analysis_itself_and_it_cannot_be_pickled(self) -> None:
        _, analysis = analyzed("flat")
        assert copy.deepcopy(analysis) is analysis
        assert copy.copy(analysis) is analysis
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(analysis)

    def test_it_holds_no_weights(self) -> None:
        module = NETWORKS["fused-attention"]()
        analysis = analyze(module, SHAPE)
        weights = {each.data_ptr() for each in (*module.parameters(), *module.buffers())}
        values = [each for each in analysis.values.values() if isinstance(each, Tensor) and not each.is_meta]
        assert not weights & {each.data_ptr() for each in values}
        assert not any(isinstance(each, nn.Parameter) for each in analysis.values.values())

    def test_more_nodes_may_be_kept_whole(self) -> None:
        _, analysis = analyzed("flat")
        conv1, conv2 = analysis.layers[:2]
        first = analysis.with_rigid({analysis.node_of("conv1", 2): "asked for"})
        assert layers(first) == {
            "conv1": (5, None),
            "conv1:2": (1, "asked for"),
            "conv2": (8, None),
            "fc1": (12, None),
            "classes": (CLASSES, None),
        }
        assert first.connections[0].target_nodes == Nodes((("conv1", 5), ("conv1:2", 1)), (0, 1, 5, 2, 3, 4))
        assert first.rigid_nodes.nonzero().flatten().tolist() == [0, first.node_of("conv1:2", 0), *range(27, 37)]
        both = first.with_rigid({first.node_of("conv2", node): "too" for node in range(8)})
        assert both.rigid == {"conv1:2": "asked for", "conv2": "too"}
        assert analysis.layers[:2] == (conv1, conv2)
        assert both.graph_hash == analysis.graph_hash

    def test_memberships_are_put_together(self) -> None:
        _, analysis = analyzed("flat")
        memberships = drawn(analysis, 0)
        joined = analysis.memberships(memberships)
        assert joined.shape == (6 + 8 + 12 + CLASSES + 1, CLUSTERS)
        assert not joined[0].any()
        assert torch.equal(joined[analysis.node_of("conv2", 3)], memberships["conv2"][3])
        with pytest.raises(ValueError, match="layer 'conv1' needs memberships of 6 nodes, got 5"):
            analysis.memberships({**memberships, "conv1": memberships["conv1"][:5]})
        with pytest.raises(ValueError, match="layer 'fc1' needs memberships of 12 nodes, got none"):
            analysis.memberships({name: value for name, value in memberships.items() if name != "fc1"})

    def test_nodes_that_are_not_there(self) -> None:
        _, analysis = analyzed("flat")
        with pytest.raises(IndexError, match=r"layer 'conv1' has nodes 0\.\.5, got 6"):
            analysis.node_of("conv1", 6)
        with pytest.raises(KeyError, match="there is no layer 'conv9'"):
            analysis.node_of("conv9", 0)


class TestHash:
    def test_it_is_that_of_the_graph_and_not_of_the_weights(self) -> None:
        _, first = analyzed("flat")
        second = analyze(NETWORKS["flat"](), SHAPE, names={"conv1.weight": "renamed"})
        assert first.graph_hash == second.graph_hash
        assert len(first.graph_hash) == 16

    def test_it_changes_with_operations_shapes_and_names(self) -> None:
        def network(width: int = 6, padding: int = 1, name: str = "a", slope: float = 0.1) -> nn.Module:
            module = nn.Sequential()
            module.add_module(name, nn.Conv2d(3, width, 3, padding=padding))
            module.extend([nn.LeakyReLU(slope), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)])
            return module

        networks = (network(), network(8), network(padding=0), network(name="b"), network(slope=0.2))
        hashes = [analyze(each, SHAPE).graph_hash for each in networks]
        hashes.append(analyze(network(), (3, 9, 9)).graph_hash)
        assert len(set(hashes)) == len(hashes)

    def test_it_changes_with_indices(self) -> None:
        class Chosen(Alias):
            def __init__(self, order: list[int]) -> None:
                super().__init__()
                self.order = order

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.fc(self.conv(x).mean((2, 3))[:, self.order])
                return logits

        orders = (list(range(8)), [7, *range(1, 7), 0])
        hashes = {analyze(Chosen(order), SHAPE).graph_hash for order in orders}
        assert len(hashes) == 2


def test_a_wide_flatten_is_quick() -> None:
    """25,088 features, as in VGG: every step over all of them at once."""
    module = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512 * 49, 4))
    begun = time.process_time()
    analysis = analyze(module, (3, 7, 7))
    assert time.process_time() - begun < 10
    nodes = analysis.connections[1].source_nodes
    assert nodes is not None
    assert nodes.count == 512 * 49


class Tied(nn.Module):
    """Two convolutions of one weight, each with a bias of its own, or with none, or with one for both."""

    def __init__(self, *, bias: bool, one: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.second.weight = self.first.weight
        if one:
            self.second.bias = self.first.bias
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # calls of modules are untyped


def test_a_weight_with_two_biases_is_refused_with_the_line_and_with_one_or_none_it_is_not() -> None:
    told = r"first\.weight is used with first\.bias and, at .*test_analysis\.py:\d+, with second\.bias: give them one"
    with pytest.raises(ValueError, match=told):
        analyze(Tied(bias=True), (1, 8, 8))
    for network in (Tied(bias=False), Tied(bias=True, one=True)):
        assert {*analyze(network, (1, 8, 8)).rigid.values()} == {"shared weight"}
