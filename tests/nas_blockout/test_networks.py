"""Connections check themselves; a network that says nothing of itself fails with its name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.networks import (
    Connection,
    Network,
    layer_widths,
    maskable_layers,
    masked_connections,
    require_weights,
)
from nas_blockout.nodes import NO_NODE, Nodes

FOUR = Nodes.whole("features", 4)
CLASSES = Nodes.whole("classes", 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", (6, 4), FOUR, CLASSES), "weight must be a name"),
        (
            ("head.weight", (6, 4), FOUR, CLASSES, 1, 0),
            "positions must be at least 1, got positions=0 for 'head.weight'",
        ),
        (("head.weight", (6, 4), FOUR, CLASSES, 0), "groups must be at least 1, got groups=0 for 'head.weight'"),
        (
            ("head.weight", (6, 5), FOUR, CLASSES),
            r"from 4 nodes of 'features' to 6 nodes of 'classes' in groups=1 must have shape \(6, 4\); "
            r"'head.weight' has shape \(6, 5\)",
        ),
        (("head.weight", (4, 6), FOUR, CLASSES), r"must have shape \(6, 4\); 'head.weight' has shape \(4, 6\)"),
        (
            ("mix.weight", (6, 1, 3, 3), FOUR, CLASSES),
            r"must have shape \(6, 4, window\); 'mix.weight' has shape \(6, 1, 3, 3\)",
        ),
        (("mix.weight", (6, 4, 3, 3), FOUR, CLASSES, 2), r"groups=2 must have shape \(6, 2, window\)"),
        (("mix.weight", (6, 1, 3, 3), FOUR, CLASSES, 4), "divide .* got groups=4 for 6 target nodes"),
        (("mix.weight", (6, 1, 3, 3), FOUR, CLASSES, 3), "divide .* got groups=3 for 4 source nodes"),
        (("stem.weight", (5, 3, 3, 3), None, CLASSES), r"from the image to 6 nodes .*\(6, 3, window\)"),
        (("bias", (6,), None, CLASSES), r"must have shape \(6, channels, window\); 'bias' has shape \(6,\)"),
    ],
)
def test_an_impossible_connection_is_refused(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Connection(*values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", 4, 0), "different names"),
        (("joined", 4, 3, 5), r"lie in 0\.\.4, got start=3 and stop=5"),
        (("joined", 4, 2, 2), "must hold nodes"),
        (("joined", 4, -1), "got start=-1"),
        (("joined", 0, 0), "must hold nodes"),
    ],
)
def test_impossible_nodes_are_refused(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nodes.slice(*values)


def test_nodes_are_rows_of_their_layers_and_a_whole_layer_is_not_copied() -> None:
    rows = {"joined": torch.arange(5), "other": torch.arange(10, 13)}
    assert Nodes.whole("joined", 5).of(rows) is rows["joined"]
    assert Nodes.slice("joined", 5, 3).of(rows).tolist() == [3, 4]
    assert Nodes.slice("joined", 5, 1, 3).count == 2
    both = Nodes((("other", 3), ("joined", 5)), (7, NO_NODE, 0, 0))
    assert (both.count, both.names, both.are_all) == (4, ("other", "joined"), False)
    assert both.of(rows).tolist() == [4, 0, 10, 10]
    assert both.identities == (("joined", 4), None, ("other", 0), ("other", 0))


@pytest.mark.parametrize(
    ("layers", "positions", "message"),
    [
        ((), None, "different names"),
        ((("a", 2), ("a", 3)), None, "different names"),
        ((("", 2),), None, "different names"),
        ((("a", 0),), None, "at least one node wide"),
        ((("a", 2), ("b", 3)), (0, 5), r"lie in 0\.\.4, or be -1 for none, got 0 to 5"),
    ],
)
def test_impossible_layers_and_positions_are_refused(
    layers: tuple[tuple[str, int], ...], positions: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Nodes(layers, positions)


def test_a_connection_of_a_network_has_the_shape_and_the_groups_of_its_module() -> None:
    network = nn.ModuleDict(
        {"deep": nn.Conv2d(4, 8, 3, groups=4), "head": nn.Linear(8, 3), "up": nn.ConvTranspose2d(8, 4, 2)}
    )
    deep = Connection.of(network, "deep.weight", "features", "wide", positions=9)
    assert deep == Connection("deep.weight", (8, 1, 3, 3), Nodes.whole("features", 4), Nodes.whole("wide", 8), 4, 9)
    assert (deep.sources, deep.targets, deep.is_linear) == (("features",), ("wide",), False)
    assert Connection.of(network, "head.weight", "wide", "classes").is_linear
    with pytest.raises(ValueError, match=r"'head.weight' has shape \(3, 8\)"):
        Connection.of(network, "head.weight", Nodes.whole("wide", 9), "classes")
    with pytest.raises(ValueError, match=r"begin with its target nodes; 'up.weight' is that of a transposed"):
        Connection.of(network, "up.weight", "wide", "features")


def test_connections_that_contradict_each_other_or_the_network_are_refused() -> None:
    network = nn.ModuleDict({"first": nn.Linear(4, 6), "second": nn.Linear(5, 3)})
    pair = (
        Connection.of(network, "first.weight", "features", "hidden"),
        Connection.of(network, "second.weight", "hidden", "classes"),
    )
    with pytest.raises(ValueError, match=r"layer 'hidden' .* it has 6 for 'first.weight', 5 for 'second.weight'"):
        layer_widths(pair)
    with pytest.raises(ValueError, match=r"layer 'hidden' must have as many nodes for every weight"):
        Blockout(network, pair, PAPER)
    network["second"] = nn.Linear(6, 3)
    with pytest.raises(ValueError, match=r"'second.weight' must have shape \(3, 5\), the network has shape \(3, 6\)"):
        require_weights(network, pair)
    with pytest.raises(ValueError, match=r"'second.weight' must have .* the network has no such weight"):
        Blockout(nn.ModuleDict({"first": network["first"]}), pair, PAPER)


class Chain(Network):
    """Two convolutions with a shortcut's weight beside the second, three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList((nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
        self.linears = nn.ModuleList((nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)))

    @property
    def connections(self) -> tuple[Connection, ...]:
        weights = [f"convs.{n}.weight" for n in range(3)] + [f"linears.{n}.weight" for n in range(3)]
        pairs = [(None, "stem"), ("stem", "features"), ("stem", "features"), ("features", "hidden1")]
        pairs += [("hidden1", "hidden2"), ("hidden2", "classes")]
        return tuple(Connection.of(self, weight, *pair) for weight, pair in zip(weights, pairs, strict=True))


HEAD = ["linears.0.weight", "linears.1.weight", "linears.2.weight"]
CONVS = ["convs.1.weight", "convs.2.weight"]


@pytest.mark.parametrize(
    ("masked", "weights", "layers"),
    [
        ("head", HEAD, ["features", "hidden1", "hidden2", "classes"]),
        ("all", CONVS + HEAD, ["stem", "features", "hidden1", "hidden2", "classes"]),
        ("last 1", HEAD[2:], ["hidden2", "classes"]),
        ("last 2", HEAD[1:], ["hidden1", "hidden2", "classes"]),
        ("last 4", CONVS + HEAD, ["stem", "features", "hidden1", "hidden2", "classes"]),
        (("classes",), HEAD[2:], ["hidden2", "classes"]),
        (("classes", "hidden1"), [HEAD[0], HEAD[2]], ["features", "hidden1", "hidden2", "classes"]),
        (("features",), CONVS, ["stem", "features"]),
    ],
)
def test_layers_to_mask_are_named_by_the_nodes_that_their_weights_end_in(
    masked: Any, weights: list[str], layers: list[str]
) -> None:
    network = Chain()
    assert maskable_layers(network.connections) == ("features", "hidden1", "hidden2", "classes")
    assert [each.weight for each in masked_connections(network.connections, masked)] == weights
    model = Blockout(network, network.connections, replace(PAPER, clusters=2, masked=masked))
    assert list(model.layers) == layers
    assert list(model.masked_weights(model.probabilities())) == weights


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        ("last 5", r"masked: N of 'last N' must lie in 1\.\.4, got 'last 5'; .*: features, hidden1, hidden2, classes$"),
        (("stem",), "reads the image, which has no memberships, cannot be masked, got 'stem'; .*: features, hidden1"),
        (("hiden1",), "got 'hiden1'; did you mean 'hidden1'[?] layers that can be masked on the network: features"),
        (("tail",), "got 'tail'; layers that can be masked on the network: features, hidden1, hidden2, classes$"),
        (("classes", "classes"), "each layer must be named once"),
    ],
)
def test_layers_that_cannot_be_masked_are_refused_with_those_that_can(masked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_connections(Chain().connections, masked)


def test_a_network_without_a_weight_between_layers_of_nodes_has_nothing_to_mask() -> None:
    network = nn.ModuleDict({"only": nn.Linear(4, 3)})
    with pytest.raises(ValueError, match="no such weight between two layers of nodes, got 'head'"):
        Blockout(network, (Connection.of(network, "only.weight", None, "classes"),), PAPER)


class Silent(Network):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.linear(x)


def test_what_runs_by_default_is_a_copy() -> None:
    network, x = Silent(), torch.ones(1, 2)
    copied = network.for_inference(runtime="onnxruntime", batch=1)
    assert torch.equal(copied(x), network(x))
    copied.get_parameter("linear.weight").data.zero_()
    assert not torch.equal(copied(x), network(x))


def test_a_network_without_connections_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Silent must say which layers of nodes its weights connect"):
        _ = Silent().connections
