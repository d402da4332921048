"""The architecture: what is valid, what survives JSON, and what the canonical hash ignores."""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.architecture import Architecture, Group, Layer, dense_architecture


def example() -> Architecture:
    """The architecture of the design's JSON example."""
    return Architecture(
        4,
        (
            Layer("features", (Group((0, 1, 2, 3), 64),)),
            Layer("hidden", (Group((0,), 30), Group((1, 2), 20))),
            Layer("classes", (Group((0,), 3, (2, 4, 5)), Group((1, 2), 2, (0, 1)), Group((2,), 1, (3,)))),
        ),
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    clusters = draw(st.integers(1, 5))
    memberships = st.sets(st.integers(0, clusters - 1), min_size=1).map(lambda members: tuple(sorted(members)))
    everywhere = tuple(range(clusters))
    layers = []
    for name in ("features", "hidden"):
        members = sorted(draw(st.sets(memberships, max_size=4)) | {everywhere})
        layers.append(Layer(name, tuple(Group(member, draw(st.integers(1, 9))) for member in members)))
    members = sorted(draw(st.sets(memberships, min_size=1, max_size=4)) | {everywhere})
    classes = [tuple(range(index, 3 * len(members), len(members))) for index in range(len(members))]
    groups = tuple(Group(member, 3, held) for member, held in zip(members, classes, strict=True))
    return Architecture(clusters, (*layers, Layer("classes", groups)))


def renumbered(architecture: Architecture, seed: int) -> Architecture:
    rng = random.Random(seed)
    order = list(range(architecture.clusters))
    rng.shuffle(order)
    layers = []
    for layer in architecture.layers:
        groups = [replace(g, clusters=tuple(sorted(order[c] for c in g.clusters))) for g in layer.groups]
        rng.shuffle(groups)
        layers.append(Layer(layer.name, tuple(groups)))
    return Architecture(architecture.clusters, tuple(layers))


@given(architectures())
@settings(max_examples=50, deadline=None)
def test_json_round_trip_is_exact(architecture: Architecture) -> None:
    assert Architecture.from_json(architecture.to_json()) == architecture


@given(architectures(), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_hash_ignores_cluster_numbers_and_group_order(architecture: Architecture, seed: int) -> None:
    assert renumbered(architecture, seed).hash == architecture.hash


def test_hash_ignores_unused_clusters() -> None:
    wider = Architecture(9, example().layers)
    assert wider.hash == example().hash


def test_hash_sees_widths_classes_and_connections() -> None:
    base = example()
    wider = Layer("features", (Group((0, 1, 2, 3), 65),))
    swapped = Layer("classes", (Group((0,), 3, (0, 4, 5)), Group((1, 2), 2, (1, 2)), Group((2,), 1, (3,))))
    joined = Layer("hidden", (Group((0,), 30), Group((0, 1, 2), 20)))
    others = [
        Architecture(4, (wider, *base.layers[1:])),
        Architecture(4, (*base.layers[:2], swapped)),
        Architecture(4, (base.layers[0], joined, base.layers[2])),
    ]
    assert len({base.hash, *(other.hash for other in others)}) == 4


def test_hash_of_many_symmetric_branches_is_quick_and_stable() -> None:
    hidden = Layer("hidden", tuple(Group((c,), 5) for c in range(12)))
    classes = Layer("classes", tuple(Group((c,), 1, (c,)) for c in range(12)))
    architecture = Architecture(12, (hidden, classes))
    assert renumbered(architecture, 3).hash == architecture.hash


def joined_by(pairs: Sequence[tuple[int, ...]], clusters: int) -> Architecture:
    """Two layers of groups of three nodes, each in the clusters of one entry, and classes that read all of them."""
    groups = tuple(Group(tuple(sorted(pair)), 3) for pair in pairs)
    classes = Layer("classes", (Group(tuple(range(clusters)), 10, tuple(range(10))),))
    return Architecture(clusters, (Layer("first", groups), Layer("second", groups), classes))


def ring(*clusters: int) -> list[tuple[int, int]]:
    return [(here, there) for here, there in pairwise((*clusters, clusters[0]))]


PETERSEN = [*ring(0, 1, 2, 3, 4), *ring(5, 7, 9, 6, 8), *((node, node + 5) for node in range(5))]


@pytest.mark.parametrize(
    ("pairs", "clusters"),
    [
        ([(cluster,) for cluster in range(16)], 16),  # 16! numberings without symmetries
        (ring(*range(16)), 16),
        ([*ring(*range(8)), *ring(*range(8, 16))], 16),
        (PETERSEN, 10),
        ([(here, there) for here in range(4) for there in range(4, 8)], 8),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_hash_of_symmetric_clusters_ignores_their_numbers(
    pairs: list[tuple[int, ...]], clusters: int, seed: int
) -> None:
    architecture = joined_by(pairs, clusters)
    assert renumbered(architecture, seed).hash == architecture.hash


def test_hash_tells_apart_what_refinement_cannot() -> None:
    one, two = joined_by(ring(*range(8)), 8), joined_by([*ring(0, 1, 2, 3), *ring(4, 5, 6, 7)], 8)
    assert one.hash != two.hash


# What 1938e82, which tried all numberings of clusters that refinement cannot tell apart, called them.
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (joined_by([(cluster,) for cluster in range(6)], 6), "c84a6aa35deac7ac"),
        (joined_by(ring(*range(7)), 7), "24068a6bc1aa50ae"),
        (joined_by([*ring(0, 1, 2), *ring(3, 4, 5)], 6), "0b81008017c655f2"),
    ],
)
def test_hashes_are_those_of_earlier_releases(architecture: Architecture, name: str) -> None:
    assert architecture.hash == name


def test_without_igraph_the_hash_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = joined_by(ring(*range(6)), 6)
    name = architecture.hash
    monkeypatch.setitem(sys.modules, "igraph", None)
    assert architecture.hash == name


def test_a_group_reads_exactly_the_groups_that_share_a_cluster() -> None:
    assert example().reads(1) == ((0,), (0,))
    assert example().reads(2) == ((0,), (1,), (1,))


def test_weights_count_the_connections_by_hand() -> None:
    # 64 nodes read 16 inputs; 30 and 20 read all 64; three classes read 30 nodes, three read 20
    assert example().weights(16) == (16 * 64, 50 * 64, 3 * 30 + 3 * 20)


def test_dense_has_one_group_a_layer() -> None:
    dense = dense_architecture(["hidden", "classes"], [8, 3])
    assert dense.is_dense
    assert dense.weights(4) == (32, 24)
    assert not example().is_dense


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: Group((1, 0), 3), "sorted"),
        (lambda: Group((), 3), "at least one"),
        (lambda: Group((0,), 0), "width=0"),
        (lambda: Group((0,), 2, (1,)), "one node a class"),
        (lambda: Layer("hidden", ()), "at least one group"),
        (lambda: Layer("hidden", (Group((0,), 1), Group((0,), 2))), "differ"),
        (lambda: Architecture(1, (Layer("classes", (Group((1,), 1, (0,)),)),)), r"0\.\.0"),
        (lambda: Architecture(0, ()), "clusters=0"),
        (lambda: Architecture(1, (Layer("classes", (Group((0,), 2, (0, 2)),)),)), "every class"),
        (lambda: Architecture(1, (Layer("classes", (Group((0,), 2),)),)), "every class"),
        (
            lambda: Architecture(
                2, (Layer("hidden", (Group((0,), 1),)), Layer("classes", (Group((1,), 1, (0,)), Group((0,), 1, (1,)))))
            ),
            "shares no cluster",
        ),
        (
            lambda: Architecture(
                2, (Layer("hidden", (Group((0,), 1), Group((1,), 1))), Layer("classes", (Group((0,), 1, (0,)),)))
            ),
            "read by nothing",
        ),
        (
            lambda: Architecture(
                1, (Layer("a", (Group((0,), 1),)), Layer("classes", (Group((0,), 1, (0,), constant=True),)))
            ),
            "constant group .* shares a cluster with layer 'a'",
        ),
        (
            lambda: Architecture(
                2,
                (
                    Layer("a", (Group((0,), 1), Group((1,), 1, constant=True))),
                    Layer("classes", (Group((0, 1), 1, (0,)),)),
                ),
            ),
            "layer 'a' reads the input",
        ),
        (
            lambda: Architecture(1, (Layer("a", (Group((0,), 1, (0,)),)), Layer("classes", (Group((0,), 1, (0,)),)))),
            "only the last layer",
        ),
        (
            lambda: Architecture(1, (Layer("a", (Group((0,), 1),)), Layer("a", (Group((0,), 1, (0,)),)))),
            "different names",
        ),
    ],
)
def test_invalid_values_are_refused_with_the_rule(build: object, rule: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=rule):
        build()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"schema_version": 3}, "schema_version must be 1 or 2, got 3"),
        ({"schema_version": 2}, "missing key 'edges'"),
        ({"clusters": "4"}, "whole number"),
        ({"clusters": True}, "whole number"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"layers": [{"name": "classes", "groups": [{"clusters": [0]}]}]}, "needs a width or classes"),
        ({"layers": [{"name": "classes"}]}, "missing key 'groups'"),
        ({"layers": [["classes"]]}, "expected an object"),
        (
            {"layers": [{"name": "classes", "groups": [{"clusters": [0], "classes": [0], "constant": 1}]}]},
            "constant must be true or false, got 1",
        ),
    ],
)
def test_hostile_documents_are_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Architecture.from_json({**example().to_json(), **change})


def test_a_constant_group_reads_nothing_and_costs_nothing() -> None:
    architecture = Architecture(
        3,
        (
            Layer("features", (Group((0,), 4), Group((1,), 2))),
            Layer("hidden", (Group((0,), 3), Group((1, 2), 5), Group((2,), 7, constant=True))),
            Layer("classes", (Group((), 1, (2,), constant=True), Group((0, 2), 1, (0,)), Group((1,), 1, (1,)))),
        ),
    )
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.to_json()["layers"][1]["groups"][2] == {"clusters": [2], "width": 7, "constant": True}
    assert architecture.reads(1) == ((0,), (1,), ())
    assert architecture.reads(2) == ((), (0, 1, 2), (1,))
    assert architecture.weights(10) == (60, 4 * 3 + 2 * 5, 3 + 5 + 7 + 5)
    assert not architecture.is_dense
    assert renumbered(architecture, 3).hash == architecture.hash


def test_before_a_layer_of_constants_nothing_is_read() -> None:
    placeholder = Layer("hidden", (Group((), 1, constant=True),))
    constants = Layer("classes", (Group((), 2, (0, 1), constant=True),))
    architecture = Architecture(1, (Layer("features", (Group((0,), 4),)), placeholder, constants))
    assert architecture.weights(9) == (36, 0, 0)
    assert Architecture.from_json(architecture.to_json()).hash == architecture.hash
    assert not architecture.is_dense
