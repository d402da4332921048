"""Clean-up and distillation over graphs of layers: cycles, rigid layers, weights that are not masked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas_blockout.architecture import Architecture
from nas_blockout.networks import masked_connections
from nas_blockout.structure.clean_up import cleaned, effective
from nas_blockout.structure.distill import Distilled, distill, harden, random_like, shuffled, threshold_for, unbranched
from nas_blockout.structure.wiring import Wiring, completed, extra_clusters
from tests.nas_blockout.structure.graphs import (
    Residual,
    entries,
    random_memberships,
    random_wiring,
    that_images_reach,
    that_matter,
)

CASES = {"seed": st.integers(0, 100_000), "clusters": st.integers(1, 4), "threshold": st.floats(0.2, 0.95)}


def hard_of(p: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Raw memberships: unlike those of `harden`, a class may have none."""
    return {name: value >= threshold for name, value in p.items()}


def mutual(wiring: Wiring) -> bool:
    """Whether layers that an unmasked edge connects are connected by a masked one as well, or one with itself."""
    masked = set(wiring.edges) - wiring.unmasked
    return any({(reader, source), (source, source), (reader, reader)} & masked for source, reader in wiring.unmasked)


@given(**CASES)
@settings(max_examples=150, deadline=None)
def test_what_has_no_effect_is_on_no_way_to_a_class(seed: int, clusters: int, threshold: float) -> None:
    wiring = random_wiring(seed)
    hard = hard_of(random_memberships(wiring, clusters, seed), threshold)
    left = effective(hard, wiring)
    before, after = (that_matter(wiring, entries(wiring, each)) for each in (hard, left))
    assert before == after
    assert that_images_reach(before) == that_images_reach(after)
    assert all(not (left[name] & ~hard[name]).any() for name in hard)
    again = effective(left, wiring)
    assert all(torch.equal(again[name], left[name]) for name in hard)
    # Whatever is left of a node that may go is on a way.
    used = {entry[1] for entry in after} | {entry[0] for entry in after}
    for name in set(wiring.layers) - wiring.whole:
        assert all((name, node) in used for node in left[name].any(1).nonzero().flatten().tolist())


@given(**CASES)
@settings(max_examples=150, deadline=None)
def test_after_the_clean_up_images_reach_every_node_and_every_node_counts(
    seed: int, clusters: int, threshold: float
) -> None:
    wiring = random_wiring(seed)
    p = random_memberships(wiring, clusters, seed)
    hard = harden(p, threshold)
    left = cleaned(p, hard, wiring)
    found = entries(wiring, left)
    fed, counting = ({entry[1] for entry in each} for each in (that_images_reach(found), that_matter(wiring, found)))
    for name, value in left.items():
        for node in value.any(1).nonzero().flatten().tolist():
            assert (name, node) in fed
            assert (name, node) in counting or name in wiring.whole
    assert left["classes"].any(1).all() or "classes" in wiring.read_images
    fed_before = {entry[1] for entry in that_images_reach(entries(wiring, hard))}
    for name, value in left.items():
        had = {node for node in hard[name].any(1).nonzero().flatten().tolist() if (name, node) in fed_before}
        for node in (value & ~hard[name]).any(1).nonzero().flatten().tolist():
            assert node not in had, "what reads something gets nothing back"
            assert name == "classes" or not had, "nor does a layer that has kept a node"


@given(**CASES, clean_up=st.booleans(), smallest=st.sampled_from([1, 1, 3]), masked=st.booleans())
@settings(max_examples=200, deadline=None)
def test_distilled_architectures_are_valid_and_say_what_is_computed(
    seed: int, clusters: int, threshold: float, clean_up: bool, smallest: int, masked: bool
) -> None:
    wiring = random_wiring(seed, masked=masked)
    if mutual(wiring):
        return
    p = random_memberships(wiring, clusters, seed)
    hard = harden(p, threshold)
    found = distill(p, hard, wiring=wiring, clean_up=clean_up, min_group_size=smallest)
    architecture = found.architecture
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.classes == wiring.layers["classes"]
    for layer, nodes in zip(architecture.layers, found.nodes.values(), strict=True):
        assert [len(each) for each in nodes] == [group.width for group in layer.groups]
        flat = sorted(torch.cat(list(nodes)).tolist())
        assert len(set(flat)) == len(flat)
        if layer.name in wiring.whole:
            assert flat == list(range(wiring.layers[layer.name])), "a rigid layer and the classes stay whole"
    if smallest == 1 and not clean_up and not wiring.is_chain:
        kept = {(name, int(node)) for name, nodes in found.nodes.items() for node in torch.cat(list(nodes))}
        computed = {
            (source, reader)
            for source, reader in that_matter(wiring, entries(wiring, hard))
            if reader in kept and (source is None or source in kept)
        }
        assert that_matter(wiring, entries(wiring, hard)) == computed, "no node that matters is lost"
        said = {
            ((source, read), (reader, node))
            for source, reader in architecture.edges
            if source is not None
            for group, positions in enumerate(architecture.reads(reader, source))
            for node in found.nodes[reader][group].tolist()
            for position in positions
            for read in found.nodes[source][position].tolist()
        }
        assert said == {entry for entry in computed if entry[0] is not None}


def test_layers_that_only_read_each_other_are_removed_and_rigid_ones_stay() -> None:
    layers = {"a": 2, "b": 2, "c": 2, "classes": 2}
    edges = [(None, "a"), ("a", "b"), ("b", "c"), ("c", "b"), ("b", "b"), ("a", "classes"), ("b", "classes")]
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    hard = {
        "a": torch.stack([first, first]),
        "b": torch.stack([second, first]),
        "c": torch.stack([second, second]),
        "classes": torch.stack([first, first]),
    }
    wiring = Wiring(layers, tuple(edges))
    left = effective(hard, wiring)
    assert left["b"].any(1).tolist() == [False, True]
    assert not left["c"].any(), "it reads and is read by the first node of b alone, which leads nowhere else"
    found = distill({name: value.double() for name, value in hard.items()}, hard, wiring=wiring, clean_up=False)
    placeholder = found.architecture.layers[2].groups
    assert [(group.clusters, group.width, group.constant) for group in placeholder] == [((), 1, True)]
    stays = effective(hard, Wiring(layers, tuple(edges), frozenset(["c"])))  # type: ignore[arg-type]
    assert all(torch.equal(stays[name], hard[name]) for name in hard)


def test_rigid_nodes_without_clusters_are_a_constant_group() -> None:
    wiring = Wiring({"a": 3, "classes": 2}, ((None, "a"), ("a", "classes")), frozenset(["a", "classes"]))
    hard = {"a": torch.tensor([[True], [False], [False]]), "classes": torch.tensor([[True], [True]])}
    p = {name: value.double() for name, value in hard.items()}
    for clean_up in (False, True):
        found = distill(p, hard, wiring=wiring, clean_up=clean_up)
        assert [(group.clusters, group.width, group.constant) for group in found.architecture.layers[0].groups] == [
            ((), 2, True),
            ((0,), 1, False),
        ]
        assert [nodes.tolist() for nodes in found.nodes["a"]] == [[1, 2], [0]]
        assert [layer.rigid for layer in found.architecture.layers] == [True, False]
        assert found.architecture.weights(5) == (15, 2)


@given(seed=st.integers(0, 100_000))
@settings(max_examples=100, deadline=None)
def test_extra_clusters_open_what_is_not_masked_and_nothing_else(seed: int) -> None:
    wiring = random_wiring(seed, masked=False)
    p = random_memberships(wiring, 3, seed)
    hard = hard_of(p, 0.6)
    if mutual(wiring):
        with pytest.raises(ValueError, match="reads itself or the other under masks"):
            completed(hard, wiring)
        return
    found = completed(hard, wiring)
    everything_masked = Wiring(wiring.layers, wiring.edges, wiring.rigid)
    assert entries(everything_masked, found) == entries(wiring, hard)


@given(**CASES)
@settings(max_examples=150, deadline=None)
def test_the_clean_up_puts_nothing_back_into_a_cluster_that_stands_for_what_is_not_masked(
    seed: int, clusters: int, threshold: float
) -> None:
    wiring = random_wiring(seed, masked=False)
    if mutual(wiring):
        return
    p = random_memberships(wiring, clusters, seed)
    hard = harden(p, threshold)
    found, extra = distill(p, hard, wiring=wiring), completed(hard, wiring)
    assert not any((found.complete[name] & ~extra[name])[:, clusters:].any() for name in extra)
    again = {name: value[:, :clusters] for name, value in found.complete.items()}
    alive = {entry[1] for entry in that_images_reach(entries(wiring, again))}
    starved = [node for node in range(wiring.layers["classes"]) if ("classes", node) not in alive]
    assert not starved, "every class reads something, under learned memberships too"


@pytest.mark.parametrize("threshold", [0.9, 1 - 1e-9])
def test_few_memberships_in_a_masked_head_leave_it_few_weights(threshold: float) -> None:
    network = Residual()
    masked = masked_connections(network.connections, ("classes",))
    wiring = Wiring.of(network, masked)
    p = {name: torch.rand(network.layers[name], 3, generator=seeded()) * 0.9 for name in ("stream", "classes")}
    found = distill(p, harden(p, threshold), wiring=wiring)
    assert found.architecture.pairs(1)["stream", "classes"] == 4, "each class reads the likeliest node"
    assert threshold_for(
        p, 0.999, lambda each: network.macs_under(each.complete) / network.macs_under({}), wiring=wiring
    )


def test_layers_that_no_mask_touches_need_no_memberships() -> None:
    network = Residual()
    masked = masked_connections(network.connections, ("classes",))
    wiring = Wiring.of(network, masked)
    p = {name: torch.rand(network.layers[name], 2, generator=seeded()) for name in ("stream", "classes")}
    hard = harden(p, 0.5)
    found = distill(p, hard, wiring=wiring)
    assert list(found.memberships) == ["stream", "classes"]
    assert list(found.complete) == ["stream", "inner0", "inner1", "classes"]
    assert found.memberships["stream"].shape == (6, 2)
    assert found.architecture.clusters == 3
    assert found.architecture.pairs(1)["stream", "inner0"] == 6 * 4, "no mask removes a node that the block reads"
    masks = hard["classes"].double() @ found.memberships["stream"].double().T
    assert found.architecture.pairs(1)["stream", "classes"] == int((masks > 0).sum())
    blocks = masked_connections(network.connections, ("stream",))
    with pytest.raises(ValueError, match="'inner0' reads 'stream' without masks, but one of them"):
        extra_clusters(Wiring.of(network, blocks))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 1000), target=st.floats(0.25, 1.0), clean_up=st.booleans())
@settings(max_examples=20, deadline=None)
def test_targets_and_controls_know_graphs(seed: int, target: float, clean_up: bool) -> None:
    network = Residual()
    wiring = Wiring.of(network)
    p = random_memberships(wiring, 3, seed)
    dense = network.macs_under({"classes": torch.ones(4, 1)})

    def share_of(distilled: Distilled) -> float:
        return network.macs_under(distilled.complete) / dense

    threshold = threshold_for(p, target, share_of, wiring=wiring, clean_up=clean_up)
    found = distill(p, harden(p, threshold), wiring=wiring, clean_up=clean_up)
    assert share_of(found) <= target
    drawn = random_like(p, target, share_of, seed=seed, wiring=wiring, clean_up=clean_up)
    assert share_of(distill(p, drawn, wiring=wiring, clean_up=clean_up)) <= target
    moved = shuffled(harden(p, threshold), seeded(seed))
    assert distill(p, moved, wiring=wiring, clean_up=clean_up).architecture.clusters == 3
    whole = distill(unbranched(p), harden(unbranched(p), threshold), wiring=wiring)
    assert whole.architecture.is_dense or any(len(layer.groups) == 1 for layer in whole.architecture.layers)


@pytest.mark.parametrize(
    ("edges", "unmasked", "rule"),
    [
        (((None, "a"), ("a", "x")), (), r"an edge must connect layers of \['a', 'classes'\], or None to one"),
        (((None, "a"),), (), "no edges lead from the image to layer 'classes'"),
        (((None, "a"), ("a", "classes")), (("a", "a"),), r"unmasked must be some of the edges, got \('a', 'a'\)"),
    ],
)
def test_wirings_that_make_no_network_are_refused(edges: object, unmasked: tuple[object, ...], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Wiring({"a": 1, "classes": 2}, edges, unmasked=frozenset(unmasked))  # type: ignore[arg-type]


def test_layers_are_as_far_from_the_classes_as_their_shortest_way() -> None:
    assert Wiring.of(Residual()).distances() == {"classes": 0, "stream": 1, "inner0": 2, "inner1": 2}
    assert Wiring.chain({"a": 1, "b": 1, "classes": 1}).distances() == {"classes": 0, "b": 1, "a": 2}
