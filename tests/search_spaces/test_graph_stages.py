"""Fixed hierarchies over graphs: stages, rigid and narrow layers, and that every proposal is a valid architecture."""

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.architecture import Architecture, Edge, dense_architecture
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.experiment import outline
from nas_blockout.networks import Branchable, Connection
from nas_blockout.nodes import Nodes
from search_spaces import Recorded
from search_spaces.branched import Hierarchy, branched_graph, hierarchical_graph
from search_spaces.graph_stages import StagedGraph

optuna.logging.set_verbosity(optuna.logging.WARNING)
CLASSES = 10


class Outlined(Branchable):
    """A network of which only the layers are known: weights without values."""

    def __init__(self, connections: tuple[Connection, ...], rigid: dict[str, str] | None = None) -> None:
        super().__init__()
        self._connections, self._rigid = connections, rigid or {}

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All weights."""
        return self._connections

    @property
    def rigid(self) -> dict[str, str]:
        """Layers that stay whole."""
        return self._rigid


def weight(source: str | None, target: str, widths: dict[str, int], positions: int) -> Connection:
    inputs = 3 if source is None else widths[source]
    value = torch.empty(widths[target], inputs, device="meta")
    read = None if source is None else Nodes.whole(source, inputs)
    return Connection.between(f"{source}-{target}", value, read, target, positions=positions)


def residual() -> Outlined:
    """Three stages of a residual network with two blocks each, one of which weighs its channels."""
    widths, found, before = {"classes": CLASSES}, list[Connection](), None
    for stage, (width, positions) in enumerate([(16, 256), (32, 64), (64, 16)]):
        stream = f"stage{stage}"
        names = [f"stage{stage}.{block}.conv1" for block in range(2)]
        widths |= {stream: width, f"stage{stage}.0.squeeze": width // 8, **dict.fromkeys(names, width // 2)}
        found.append(weight(before, stream, widths, positions))
        for name in names:
            found += [weight(stream, name, widths, positions), weight(name, stream, widths, positions)]
        squeeze = f"stage{stage}.0.squeeze"
        found += [weight(names[0], squeeze, widths, 1), weight(squeeze, names[0], widths, 1)]
        before = stream
    return Outlined((*found, weight(before, "classes", widths, 1)))


def transformer(blocks: int = 4) -> Outlined:
    """A stream under LayerNorm, which is rigid, heads and hidden nodes: all of one resolution."""
    widths, names = {"embed": 48, "classes": CLASSES}, list[str]()
    found = [weight(None, "embed", widths, 16)]
    for block in range(blocks):
        for name in (f"blocks.{block}.attention", f"blocks.{block}.mlp.fc1"):
            widths[name] = 12 if "attention" in name else 96
            found += [weight("embed", name, widths, 16), weight(name, "embed", widths, 16)]
            names.append(name)
    found.append(weight("embed", "classes", widths, 1))
    return Outlined(tuple(found), {"embed": "LayerNorm", "classes": "the logits"})


def test_stages_are_divided_where_the_resolution_falls_for_good() -> None:
    graph = StagedGraph.of(residual())
    assert [stage[0] for stage in graph.stages] == ["stage0", "stage1", "stage2"]
    assert [len(stage) for stage in graph.stages] == [4, 4, 4]
    assert "stage1.0.squeeze" in graph.stages[1], "one position in the middle of a stage begins none"
    assert sum(len(stage) for stage in graph.stages) == len(graph.layers) - 1


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_a_stream_that_later_stages_write_too_does_not_join_them_to_the_first(shortcut: str) -> None:
    backbone = ResNetSettings(depth=8, width=0.25, shortcut=shortcut)  # type: ignore[arg-type]
    network = outline(backbone, (1, 8, 8), CLASSES)
    assert StagedGraph.of(network).stages == (
        ("stream1", "block1a"),
        tuple(name for name in network.layers if name in ("block2a", "stream2")),
        tuple(name for name in network.layers if name in ("block3a", "features")),
    )


def test_a_network_of_one_resolution_is_divided_by_its_modules() -> None:
    graph = StagedGraph.of(transformer())
    assert graph.stages == (
        ("embed",),
        *((f"blocks.{block}.attention", f"blocks.{block}.mlp.fc1") for block in range(4)),
    )
    assert graph.splits(8) == {}, "all that is divided reads and writes the rigid stream alone"


def with_heads() -> Outlined:
    """A transformer behind whose blocks two hidden layers are read by the classes."""
    network = transformer()
    widths = {"embed": 48, "head.0": 32, "head.1": 16, "classes": CLASSES}
    found = [each for each in network.connections if "classes" not in each.targets]
    for pair in [("embed", "head.0"), ("head.0", "head.1"), ("head.1", "classes")]:
        found.append(weight(*pair, widths, 1))
    return Outlined(tuple(found), network.rigid)


GRAPHS = {"residual": StagedGraph.of(residual()), "rigid stream": StagedGraph.of(with_heads())}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_hierarchies_over_graphs_are_valid_and_cost_at_most_the_dense_network(graph: StagedGraph, seed: int) -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    found = branched_graph(trial, graph)
    assert set(trial.params) == {f"branched.{name}" for name in Hierarchy.__slots__}
    assert branched_graph(Recorded(trial.params), graph) == found
    assert Architecture.from_json(found.to_json()) == found
    assert found.hash == Architecture.from_json(found.to_json()).hash
    assert not found.is_dense
    assert [(layer.name, layer.width) for layer in found.layers] == list(graph.layers.items()), "no node is removed"
    dense = dense_architecture(list(graph.layers), list(graph.layers.values()), edges=graph.edges, rigid=graph.rigid)
    costs = list(zip(found.weights(3), dense.weights(3), strict=True))
    assert all(cost <= whole for cost, whole in costs)
    assert costs != [(whole, whole) for _, whole in costs]
    everywhere = tuple(range(found.clusters))
    for layer in found.layers[:-1]:
        assert layer.rigid == (layer.name in graph.rigid)
        if layer.rigid:
            assert [group.clusters for group in layer.groups] == [everywhere]


def test_a_stage_branches_as_a_whole() -> None:
    graph = GRAPHS["residual"]
    hierarchy = Hierarchy(first_split=1, branches=2, splits_again=True, skew=1.0, shared=0.25, assignment=3)
    found = {layer.name: layer for layer in hierarchical_graph(hierarchy, graph).layers}
    described = {name: [(group.clusters, group.width) for group in layer.groups] for name, layer in found.items()}
    everywhere = (0, 1, 2, 3)
    assert described["stage0"] == [(everywhere, 16)]
    assert described["stage0.1.conv1"] == [(everywhere, 8)]
    assert described["stage1"] == [((0, 1), 8), ((2, 3), 16), (everywhere, 8)]
    assert described["stage1.1.conv1"] == [((0, 1), 4), ((2, 3), 8), (everywhere, 4)]
    assert described["stage1.0.squeeze"] == [((0, 1), 1), ((2, 3), 2), (everywhere, 1)]
    assert [members for members, _ in described["stage2"]] == [(0,), (1,), (2,), (3,), everywhere]
    assert [members for members, _ in described["classes"]] == [(0,), (1,), (2,), (3,)]


def test_layers_with_fewer_nodes_than_branches_stay_whole() -> None:
    hierarchy = Hierarchy(first_split=0, branches=3, splits_again=False, skew=0.0, shared=0.0, assignment=0)
    found = {layer.name: layer for layer in hierarchical_graph(hierarchy, GRAPHS["residual"]).layers}
    assert [(group.clusters, group.width) for group in found["stage0.0.squeeze"].groups] == [((0, 1, 2), 2)]
    assert [group.clusters for group in found["stage0"].groups] == [(0,), (1,), (2,)]


def test_a_graph_whose_layers_are_all_rigid_or_narrow_is_refused() -> None:
    edges: tuple[Edge, ...] = ((None, "a"), ("a", "b"), ("b", "classes"))
    for graph in (
        StagedGraph({"a": 64, "b": 7, "classes": CLASSES}, edges, frozenset(["a"]), (("a",), ("b",))),
        StagedGraph.of(transformer()),
    ):
        with pytest.raises(
            ValueError, match="needs layers of 8 nodes or more that may be divided and of which one reads"
        ):
            branched_graph(Recorded({}), graph)
