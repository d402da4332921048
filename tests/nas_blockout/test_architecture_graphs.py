"""Architectures over graphs of layers: schema 2, cycles, rigid layers, and that chains stay what they were."""

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.architecture import Architecture, Edge, Group, Layer, dense_architecture

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "architectures.json").read_text())
CHAIN: tuple[Edge, ...] = ((None, "features"), ("features", "hidden"), ("hidden", "classes"))
# A residual block: the stem and the second convolution write the stream, which the first convolution and the head read.
RESIDUAL: tuple[Edge, ...] = ((None, "stream"), ("inner", "stream"), ("stream", "inner"), ("stream", "classes"))


def classes_in(*clusters: int, count: int = 2) -> Layer:
    return Layer("classes", (Group(clusters, count, tuple(range(count))),))


def residual(stream: tuple[Group, ...], inner: tuple[Group, ...], *, rigid: bool = False) -> Architecture:
    layers = (Layer("stream", stream, rigid), Layer("inner", inner), classes_in(0, 1))
    return Architecture(3, layers, RESIDUAL)


def resnet(clusters: int, *, blocks: int = 2) -> Architecture:
    """A residual network of four widths, of whose clusters each has one group in every layer: all are alike."""
    layers, edges = list[Layer](), list[Edge]()
    before: str | None = None
    for stage in range(4):
        stream, width = f"stage{stage}", 2 ** (2 + stage)
        layers.append(Layer(stream, tuple(Group((c,), width) for c in range(clusters))))
        edges.append((before, stream))
        for block in range(blocks):
            inner = f"stage{stage}.{block}"
            layers.append(Layer(inner, tuple(Group((c,), width) for c in range(clusters))))
            edges += [(stream, inner), (inner, stream)]
        before = stream
    everything = Group(tuple(range(clusters)), 10, tuple(range(10)))
    return Architecture(clusters, (*layers, Layer("classes", (everything,))), (*edges, (before, "classes")))


def renumbered(architecture: Architecture, seed: int) -> Architecture:
    rng = random.Random(seed)
    order = list(range(architecture.clusters))
    rng.shuffle(order)
    layers = []
    for layer in architecture.layers:
        groups = [replace(g, clusters=tuple(sorted(order[c] for c in g.clusters))) for g in layer.groups]
        rng.shuffle(groups)
        layers.append(replace(layer, groups=tuple(groups)))
    edges = list(architecture.edges)
    rng.shuffle(edges)
    return Architecture(architecture.clusters, tuple(layers), tuple(edges))


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: entry["hash"])
def test_chains_keep_their_json_and_their_hash(entry: dict[str, Any]) -> None:
    architecture = Architecture.from_json(entry["architecture"])
    assert json.dumps(architecture.to_json()) == json.dumps(entry["architecture"])
    assert architecture.hash == entry["hash"]
    assert architecture.is_chain
    explicit = Architecture(architecture.clusters, architecture.layers, tuple(reversed(architecture.edges)))
    assert explicit == architecture
    assert hash(explicit) == hash(architecture)
    assert explicit.to_json() == architecture.to_json()


@given(st.integers(1, 5), st.integers(0, 10_000), st.booleans())
@settings(max_examples=50, deadline=None)
def test_json_of_graphs_is_exact_and_names_ignore_numbers_and_order(clusters: int, seed: int, rigid: bool) -> None:
    architecture = random_graph(clusters, seed, rigid=rigid)
    document = json.loads(json.dumps(architecture.to_json()))
    assert document["schema_version"] == (1 if architecture.is_chain else 2)
    assert Architecture.from_json(document) == architecture
    assert renumbered(architecture, seed).hash == architecture.hash


def random_graph(clusters: int, seed: int, *, rigid: bool) -> Architecture:
    """A random graph, often with cycles, in which every layer has a group of all clusters, which keeps it valid."""
    rng = random.Random(seed)
    names = [*(f"layer{number}" for number in range(rng.randint(1, 6))), "classes"]
    edges = {(None, names[0]), *((rng.choice(names[:at]), name) for at, name in enumerate(names[1:], 1))}
    edges |= {(name, rng.choice(names[at + 1 :])) for at, name in enumerate(names[:-1])}  # each is read
    edges |= {(rng.choice(names[:-1]), rng.choice(names)) for _ in range(rng.randint(0, 6))}
    everywhere, layers = tuple(range(clusters)), list[Layer]()
    for name in names:
        members = {everywhere, *(tuple(sorted(rng.sample(everywhere, rng.randint(1, clusters)))) for _ in range(3))}
        ordered = sorted(members)
        held = [tuple(range(at, 2 * len(ordered), len(ordered))) for at in range(len(ordered))]
        groups = tuple(
            Group(member, 2, classes) if name == "classes" else Group(member, rng.randint(1, 5))
            for member, classes in zip(ordered, held, strict=True)
        )
        layers.append(Layer(name, groups, rigid and name != "classes" and rng.random() < 0.5))
    return Architecture(clusters, tuple(layers), tuple(edges))


def test_the_hash_tells_graphs_apart_by_their_edges_and_by_what_is_rigid() -> None:
    group = (Group((0,), 3),)
    layers = (Layer("a", group), Layer("b", group), classes_in(0))
    chain: tuple[Edge, ...] = ((None, "a"), ("a", "b"), ("b", "classes"))
    others = [chain, (*chain, ("a", "classes")), (*chain, ("b", "a")), (*chain, ("a", "a")), (*chain, (None, "b"))]
    found = [Architecture(1, layers, edges) for edges in others]
    found.append(Architecture(1, (replace(layers[0], rigid=True), *layers[1:]), chain))
    assert len({each.hash for each in found}) == len(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "architecture",
    [
        resnet(8),
        Architecture(
            16,
            tuple(
                Layer(name, tuple(Group((c,), 1, (c,) if name == "classes" else None) for c in range(16)))
                for name in ("hidden", "classes")
            ),
        ),
        Architecture(16, (Layer("hidden", tuple(Group((c,), 3) for c in range(16))), classes_in(*range(16)))),
    ],
    ids=["residual, 13 layers, 8 clusters", "16 clusters told apart by classes", "16 symmetric clusters"],
)
def test_the_hash_of_symmetric_clusters_takes_milliseconds(architecture: Architecture) -> None:
    assert len(architecture.layers) in (2, 13)
    seconds, expected = [], architecture.hash
    for seed in range(5):
        other = renumbered(architecture, seed)
        began = time.perf_counter()
        assert other.hash == expected
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05, "2 to 4 ms where it was written; 16! numberings would take days"


def test_a_group_reads_over_every_edge() -> None:
    found = residual((Group((0,), 4), Group((1,), 6)), (Group((0, 1), 3), Group((1,), 2)))
    assert found.sources("stream") == (None, "inner")
    assert found.reads("stream", "inner") == ((0,), (0, 1))
    assert found.reads("inner") == found.reads(1) == found.reads("inner", "stream") == ((0, 1), (1,))
    assert found.pairs(9) == {
        (None, "stream"): 9 * 10,
        ("inner", "stream"): 4 * 3 + 6 * 5,
        ("stream", "inner"): 3 * 10 + 2 * 6,
        ("stream", "classes"): 2 * 10,
    }
    assert found.weights(9) == (90 + 42, 42, 20)
    with pytest.raises(ValueError, match=r"source must be one of the layers that 'stream' reads, \['inner'\], got 'x'"):
        found.reads("stream", "x")
    with pytest.raises(ValueError, match="there is no layer 'x'"):
        found.reads("x")
    both = Architecture(1, dense_architecture(["a", "b", "classes"], [1, 1, 1]).layers, (*CHAIN_ABC, ("a", "classes")))
    with pytest.raises(ValueError, match=r"'classes' reads, \['a', 'b'\], got None"):
        both.reads("classes")


CHAIN_ABC: tuple[Edge, ...] = ((None, "a"), ("a", "b"), ("b", "classes"))


def test_dense_means_that_every_edge_is_read() -> None:
    dense = dense_architecture(["stream", "inner", "classes"], [4, 5, 2], edges=RESIDUAL, rigid=["stream", "classes"])
    assert dense.is_dense
    assert not dense.is_chain
    assert [layer.rigid for layer in dense.layers] == [True, False, False]
    assert dense.weights(3) == (12 + 20, 20, 8)
    layers = (Layer("a", (Group((0,), 1),)), Layer("b", (Group((0, 1), 1),)), classes_in(1))
    assert Architecture(2, layers).is_dense
    assert not Architecture(2, layers, (*CHAIN_ABC, ("a", "classes"))).is_dense


def test_rigid_nodes_without_clusters_are_constant_groups() -> None:
    stream = (Group((), 2, constant=True), Group((0,), 4))
    found = residual(stream, (Group((0,), 3),), rigid=True)
    assert found.pairs(1)[None, "stream"] == 6, "no mask keeps the image from them"
    assert found.reads("stream", "inner") == ((), (0,))
    assert Architecture.from_json(found.to_json()) == found
    assert found.to_json()["layers"][0]["rigid"] is True
    inner = Layer("inner", (Group((), 2, constant=True), Group((0,), 1), Group((1,), 3, constant=True)), rigid=True)
    within = Architecture(2, (Layer("features", (Group((0,), 4),)), inner, classes_in(0)))
    assert within.weights(1) == (4, 4, 2)
    assert not within.is_chain


def test_a_layer_of_which_nothing_is_left_keeps_a_placeholder() -> None:
    found = residual((Group((0,), 4),), (Group((), 1, constant=True),))
    assert found.weights(1) == (4, 0, 8)
    assert Architecture.from_json(found.to_json()).hash == found.hash


def test_a_cycle_that_the_image_never_enters_begins_with_constants() -> None:
    """`stream` reads `features` in cluster 0 alone; its nodes in cluster 1 begin as biases and read `inner`."""
    layers = (
        Layer("features", (Group((0,), 4),)),
        Layer("stream", (Group((0,), 3), Group((1,), 3))),
        Layer("inner", (Group((1,), 2),)),
        classes_in(0, 1),
    )
    cycle = [("stream", "inner"), ("inner", "stream")]
    edges: list[Edge] = [(None, "features"), ("features", "stream"), ("stream", "classes"), *cycle]
    found = Architecture(2, layers, tuple(edges))
    assert found.reads("stream", "features") == ((0,), ())
    assert found.reads("stream", "inner") == ((), (0,))


GROUP = (Group((0,), 1),)


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: graph(("a", "x")), r"an edge must connect layers, or the image to one, got \('a', 'x'\)"),
        (lambda: graph(("x", "a")), "an edge must connect layers"),
        (lambda: graph(("a", None)), "an edge must connect layers"),
        (lambda: graph(("a", "b")), r"each edge must be given once, got \('a', 'b'\) again"),
        (lambda: Architecture(1, layers_abc(), CHAIN_ABC[1:]), "no edges lead from the image to layer 'a'"),
        (
            lambda: Architecture(1, layers_abc(), (CHAIN_ABC[0], ("a", "classes"), ("b", "classes"))),
            "no edges lead from the image to layer 'b'",
        ),
        (
            lambda: Architecture(1, layers_abc(), ((None, "a"), ("a", "b"), ("a", "classes"))),
            r"group \(0,\) of layer 'b' is read by nothing on a way to the classes, of \[\]",
        ),
        (
            lambda: Architecture(1, layers_abc(), ((None, "a"), ("a", "b"), ("b", "b"), ("a", "classes"))),
            "group .* of layer 'b' is read by nothing in 'b'",  # only by itself
        ),
        (
            lambda: residual((Group((0,), 1), Group((2,), 1)), (Group((0, 2), 1), Group((2,), 2))),
            None,  # cluster 2 of the stream is read by the first group of `inner`, which the classes reach
        ),
        (
            lambda: residual((Group((0,), 1), Group((2,), 1)), (Group((0,), 1), Group((2,), 2))),
            r"group \(2,\) of layer 'stream' is read by nothing on a way to the classes, of \['inner', 'classes'\]",
        ),
        (lambda: residual((Group((0,), 1),), (Group((1,), 1),)), r"group \(1,\) of layer 'inner' shares no cluster"),
        (
            lambda: residual((Group((0,), 1),), (Group((0,), 1, constant=True),)),
            r"constant group \(0,\) of layer 'inner' shares a cluster with layer 'stream'",
        ),
        (
            lambda: residual((Group((0,), 1), Group((1,), 1, constant=True)), GROUP),
            "layer 'stream' reads the input: a constant group in it has no clusters",
        ),
        (lambda: Architecture(1, (replace(classes_in(0), rigid=True),)), "must not be called rigid"),
    ],
)
def test_graphs_that_make_no_network_are_refused(build: Callable[[], Architecture], rule: str | None) -> None:
    if rule is None:
        assert not build().is_chain
        return
    with pytest.raises(ValueError, match=rule):
        build()


def layers_abc() -> tuple[Layer, ...]:
    return Layer("a", GROUP), Layer("b", GROUP), classes_in(0)


def graph(edge: Any) -> Architecture:
    return Architecture(1, layers_abc(), (*CHAIN_ABC, edge))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"edges": []}, "edges must say which layer reads which, got none"),
        ({"edges": ["ab"]}, "an edge must be the name of a layer that is read, or null for the image, .* got 'ab'"),
        ({"edges": [["a", None]]}, "an edge must be the name"),
        ({"edges": [[1, "a"]]}, "an edge must be the name"),
        ({"edges": [["a", "b", "c"]]}, "an edge must be the name"),
        ({"schema_version": 1}, "unknown key 'edges'"),
        ({"schema_version": True}, "schema_version must be 1 or 2, got True"),
        ({"layers": [{"name": "a", "groups": [{"clusters": [0], "width": 1}], "rigid": 1}]}, "rigid must be true or"),
    ],
)
def test_hostile_documents_of_graphs_are_refused(change: dict[str, Any], rule: str) -> None:
    document = residual(GROUP, GROUP).to_json()
    with pytest.raises(ValueError, match=rule):
        Architecture.from_json({**document, **change})
    chain = dense_architecture(["a", "classes"], [1, 1]).to_json()
    chain["layers"][0]["rigid"] = True
    with pytest.raises(ValueError, match="unknown key 'rigid'"):
        Architecture.from_json(chain)


def test_groups_may_say_which_nodes_they_are_without_another_name() -> None:
    last = Layer("classes", (Group((0,), 1, (0,)), Group((1,), 1, (1,))))
    plain = Architecture(2, (Layer("a", (Group((0,), 2), Group((1,), 1))), last))
    named = Architecture(2, (Layer("a", (Group((0,), 2, nodes=(1, 4)), Group((1,), 1, nodes=(2,)))), last))
    assert (plain.to_json()["schema_version"], named.to_json()["schema_version"]) == (1, 2)
    assert Architecture.from_json(named.to_json()) == named != plain
    assert named.hash == plain.hash
    document = plain.to_json()
    document["layers"][0]["groups"][0] = {"clusters": [0], "nodes": [1, 4]}
    with pytest.raises(ValueError, match="unknown key 'nodes'"):
        Architecture.from_json(document)


@pytest.mark.parametrize("nodes", [(1,), (2, 1), (1, 1), (-1, 0)])
def test_impossible_nodes_of_a_group_are_refused(nodes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="nodes"):
        Group((0,), 2, nodes=nodes)


def test_the_examples_of_the_docs_are_valid() -> None:
    page = Path(__file__).parents[2] / "docs" / "concepts" / "architecture.md"
    documents = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)]
    assert [document["schema_version"] for document in documents] == [1, 2]
    for document in documents:
        assert Architecture.from_json(document).to_json() == document
