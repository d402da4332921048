"""What a diagram shows of an architecture: chains as they are, large graphs folded into stages, arrows along edges."""

import json
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.architecture import dense_architecture
from nas_blockout.structure.distill import distill, harden
from nas_blockout.structure.folding import MOST_COLUMNS, by_module, drawing
from nas_blockout.structure.wiring import Wiring
from tests.nas_blockout.structure.graphs import random_memberships, random_wiring

GROUPS = [{"clusters": [0], "nodes": [0, 3]}, {"clusters": [1], "nodes": [1, 2, 4]}]
CLASSES = {"name": "classes", "groups": [{"clusters": [0], "classes": [0]}, {"clusters": [1], "classes": [1]}]}


def test_every_layer_of_a_chain_is_a_column_however_many_there_are() -> None:
    names = [*(f"block{number}.conv" for number in range(3 * MOST_COLUMNS)), "classes"]
    drawn = drawing(dense_architecture(names, [2] * len(names)).to_json())
    assert [column.layers for column in drawn.columns] == [(name,) for name in names]
    assert drawn.edges == tuple(pairwise(range(len(names))))


@given(seed=st.integers(0, 10_000), most=st.integers(2, MOST_COLUMNS))
@settings(max_examples=60, deadline=None)
def test_columns_hold_every_node_once_and_links_follow_edges_between_groups_that_share_a_cluster(
    seed: int, most: int
) -> None:
    wiring = random_wiring(seed, masked=True)
    p = random_memberships(wiring, 3, seed)
    architecture = distill(p, harden(p, 0.5), wiring=wiring).architecture
    document = json.loads(json.dumps(architecture.to_json()))
    drawn = drawing(document, most=most)
    assert len(drawn.columns) <= max(most, len(wiring.layers) if architecture.is_chain else 0)
    assert sorted(name for column in drawn.columns for name in column.layers) == sorted(wiring.layers)
    nodes = {layer.name: layer.width for layer in architecture.layers}
    for column in drawn.columns:
        assert sum(group.nodes for group in column.groups) == sum(nodes[name] for name in column.layers)
    column_of = {name: number for number, column in enumerate(drawn.columns) for name in column.layers}
    expected = {
        ((column_of[source], read.clusters), (column_of[reader], group.clusters))
        for source, reader in architecture.edges
        for read in (architecture.layers[list(nodes).index(source)].groups if source else ())
        for group in architecture.layers[list(nodes).index(reader)].groups
        if source and column_of[source] != column_of[reader] and read.overlap(group)
    }
    told = {
        tuple((number, drawn.columns[number].groups[group].clusters) for number, group in link) for link in drawn.links
    }
    assert told == expected


def test_the_layers_of_a_large_graph_are_folded_by_module_as_fine_as_there_is_room_for() -> None:
    names = [f"body.group{group}.{block}.conv{conv}" for group in range(3) for block in range(3) for conv in (1, 2)]
    layers = [{"name": name, "groups": GROUPS} for name in names] + [CLASSES]
    edges = [[None, names[0]], *map(list, pairwise([*names, "classes"])), [names[0], "classes"]]
    document = {"clusters": 2, "layers": layers, "edges": edges}
    drawn = drawing(document)
    assert [(column.name, len(column.layers)) for column in drawn.columns] == [
        ("group0", 6),
        ("group1", 6),
        ("group2", 6),
        ("classes", 1),
    ]
    assert [group.nodes for group in drawn.columns[0].groups] == [12, 18]
    assert drawn.edges == ((0, 1), (1, 2), (2, 3), (0, 3))
    assert [column.name for column in drawing(document, most=10).columns][:4] == [
        "group0.0",
        "group0.1",
        "group0.2",
        "group1.0",
    ]
    assert len(drawing(document, most=99).columns) == len(names) + 1


def test_layers_without_modules_are_folded_with_those_that_follow() -> None:
    names = [f"conv{number}" for number in range(12)]
    layers = [{"name": name, "groups": GROUPS} for name in names] + [CLASSES]
    edges = [[None, names[0]], *map(list, pairwise([*names, "classes"]))]
    drawn = drawing({"clusters": 2, "layers": layers, "edges": edges}, most=5)
    assert [column.name for column in drawn.columns] == [
        "from conv0",
        "from conv3",
        "from conv6",
        "from conv9",
        "classes",
    ]
    assert drawn.edges == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_paths_are_cut_where_they_tell_a_few_stages_apart() -> None:
    paths = ["net.stem", "net.stage1.conv", "net.stage1.norm", "net.stage2.conv"]
    assert by_module(paths) == ["net.stem", "net.stage1", "net.stage1", "net.stage2"]
    assert by_module(["a", "b"]) == ["a", "b"]
    assert by_module([]) == []


def test_clusters_that_stand_for_weights_without_masks_are_no_branches() -> None:
    edges = ((None, "stem"), ("stem", "features"), ("features", "hidden"), ("hidden", "classes"))
    wiring = Wiring({"stem": 4, "features": 6, "hidden": 6, "classes": 4}, edges, unmasked=frozenset({edges[1]}))
    torch.manual_seed(0)
    halves = {name: torch.eye(2).repeat(wiring.layers[name] // 2, 1) for name in ("features", "hidden", "classes")}
    found = distill(halves, harden(halves, 0.5), wiring=wiring)
    assert found.architecture.clusters == 3
    drawn = drawing(found.architecture.to_json())
    assert drawn.branches == {0, 1}
    assert [group.clusters for group in drawn.columns[0].groups] == [(2,)]
    assert {link for link in drawn.links if link[1][0] == 1} == {((0, 0), (1, 0)), ((0, 0), (1, 1))}
