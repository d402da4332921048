"""Masks of weights whose sides are several layers, repeated nodes or no nodes at all, against loops over entries."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER, PRETRAINED
from nas_blockout.networks import Branchable, Connection
from nas_blockout.nodes import NO_NODE, Nodes

# Masks of 0 and 1 on networks that have no weights to start from.
BINARY = replace(PRETRAINED, magnitude_spread=0.0, start_at="probabilities", first_probability=0.98)


class Joined(Branchable):
    """Two first layers; a second that reads both, one of them twice, beside an input of its own; the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second, self.classes = nn.Linear(8, 2), nn.Linear(2, 2)

    @property
    def connections(self) -> tuple[Connection, ...]:
        read = Nodes((("left", 2), ("right", 2)), (2, 3, 0, 0, 1, 1, NO_NODE, NO_NODE))
        return (
            Connection.of(self, "left.weight", None, "left"),
            Connection.of(self, "right.weight", None, "right"),
            Connection.of(self, "second.weight", read, "second"),
            Connection.of(self, "classes.weight", "second", "classes"),
        )

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        left, right = torch.tanh(self.left(x)), torch.tanh(self.right(x))
        joined = torch.cat([right, left.repeat_interleave(2, 1), x], 1)
        return self.classes(torch.tanh(self.second(joined)))


def draws(layers: dict[str, int], clusters: int) -> list[dict[str, Tensor]]:
    numbers = sum(layers.values()) * clusters
    found = []
    for bits in itertools.product((0.0, 1.0), repeat=numbers):
        rows = torch.tensor(bits).reshape(-1, clusters).split(list(layers.values()))
        found.append(dict(zip(layers, rows, strict=True)))
    return found


def shared(connection: Connection, c: dict[str, Tensor], o: int, i: int) -> int | None:
    """Common clusters of the nodes of an entry, None where it reads no node."""
    assert connection.source_nodes is not None
    target, source = connection.target_nodes.identities[o], connection.source_nodes.identities[i]
    assert target is not None
    return None if source is None else int((c[target[0]][target[1]] * c[source[0]][source[1]]).sum())


@pytest.mark.parametrize("settings", [PAPER, BINARY])
def test_an_entry_is_scaled_or_kept_by_its_two_nodes_and_one_that_reads_no_node_stays(settings) -> None:
    torch.manual_seed(0)
    model = Blockout(Joined(), Joined().connections, replace(settings, clusters=2, masked="all", rescale=False))
    generator = torch.Generator().manual_seed(0)
    c = {name: torch.bernoulli(p.detach() * 0 + 0.5, generator=generator) for name, p in model.probabilities().items()}
    masked = model.masked_weights(c)
    for connection in model.masked_connections:
        weight = model.network.get_parameter(connection.weight)
        for o, i in itertools.product(*map(range, connection.shape)):
            common = shared(connection, c, o, i)
            scale = 1.0 if common is None else common / 2 if settings is PAPER else float(common > 0)
            assert masked[connection.weight][o, i].item() == pytest.approx(weight[o, i].item() * scale)


def test_binary_masks_of_probabilities_are_their_expectation() -> None:
    torch.manual_seed(0)
    settings = replace(BINARY, clusters=1, masked="all", first_probability=0.6, last_probability=0.6)
    model = Blockout(Joined(), Joined().connections, settings)
    layers = {name: len(p) for name, p in model.probabilities().items()}
    with torch.no_grad():
        total: dict[str, Tensor] = {}
        for c in draws(layers, 1):
            p = model.probabilities()
            chance = math.prod(float(torch.where(c[n] > 0, p[n], 1 - p[n]).prod()) for n in layers)
            for name, value in model.masked_weights(c).items():
                total[name] = total.get(name, 0) + chance * value
        for name, value in model.masked_weights(model.probabilities()).items():
            torch.testing.assert_close(total[name], value)


def counted(model: Blockout, c: dict[str, Tensor]) -> int:
    """Entries between nodes that share a cluster, one by one."""
    total = sum(2 * int(c[name].any(1).sum()) for name in ("left", "right"))
    for connection in model.masked_connections:
        for o, i in itertools.product(*map(range, connection.shape)):
            common = shared(connection, c, o, i)
            target = connection.target_nodes.identities[o]
            assert target is not None
            total += bool(c[target[0]][target[1]].any()) if common is None else common > 0
    return total


def test_expected_macs_are_the_mean_over_every_draw_of_such_a_network() -> None:
    settings = replace(PAPER, clusters=1, masked="all", first_probability=0.6, last_probability=0.7)
    network = Joined()
    model = Blockout(network, network.connections, settings)
    p = {name: value.detach() for name, value in model.probabilities().items()}
    layers, mean = {name: len(value) for name, value in p.items()}, 0.0
    for c in draws(layers, 1):
        mean += counted(model, c) * math.prod(float(torch.where(c[n] > 0, p[n], 1 - p[n]).prod()) for n in layers)
    assert float(model.expected_macs(p)) == pytest.approx(mean, rel=1e-5)


def test_the_count_of_a_draw_agrees_with_a_loop_over_entries() -> None:
    network, generator = Joined(), torch.Generator().manual_seed(0)
    model = Blockout(network, network.connections, replace(PAPER, clusters=2, masked="all"))
    for _ in range(50):
        c = {name: (torch.rand(width, 2, generator=generator) < 0.5).float() for name, width in network.layers.items()}
        assert network.macs_under(c) == network.weights_under(c) == counted(model, c)


def test_layers_may_have_the_names_of_modules() -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 2)})
    connections = (
        Connection.of(network, "a.weight", None, "block.0.a"),
        Connection.of(network, "b.weight", "block.0.a", "classes"),
    )
    model = Blockout(network, connections, replace(PAPER, clusters=1))
    assert model.layers == ("block.0.a", "classes") == tuple(model.probabilities())
    assert "blockout/mean/block.0.a" in model.telemetry()


def test_edges_tell_who_reads_whom_and_the_image() -> None:
    network = Joined()
    assert dict(network.layers) == {"left": 2, "right": 2, "second": 2, "classes": 2}
    assert network.edges == (
        (None, "left"),
        (None, "right"),
        ("left", "second"),
        ("right", "second"),
        (None, "second"),
        ("second", "classes"),
    )
