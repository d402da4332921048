"""Distillation: every result is valid and computes what the masked network computes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER, Masked
from nas_blockout.structure.distill import (
    TOLERANCE,
    DistillationSettings,
    Distilled,
    distill,
    harden,
    largest_difference,
    shuffled,
    threshold_for,
    transplant,
    unbranched,
)

SHAPE, CLASSES = (2, 8, 8), 5
STAGES = stages(ConvNetSettings((6, 8), (7,)), SHAPE, CLASSES)


def masked_network(seed: int, *, clusters: int = 3, masked: Masked = "all", normalize: bool = True) -> Blockout:
    """A Blockout network with random weights, random memberships and statistics of normalization that matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = BranchedNetwork(STAGES, dense_of(STAGES), channels=2, normalize_logits=normalize)
        for name, buffer in dense.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0)
        for parameter in dense.parameters():
            if parameter.dim() == 1:
                parameter.data.uniform_(-1, 1)
        settings = replace(PAPER, clusters=clusters, masked=masked)
        model = Blockout(dense, dense.connections, settings)
        for value in model.logits.values():
            value.data.normal_(0, 2)
    return model.eval()


def probabilities(model: Blockout) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.probabilities().items()}


def images(seed: int) -> Tensor:
    return torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(seed))


def branched_of(architecture: object, *, normalize: bool) -> BranchedNetwork:
    return BranchedNetwork(STAGES, architecture, channels=2, normalize_logits=normalize).eval()  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 10_000),
    threshold=st.floats(0.01, 0.99),
    masked=st.sampled_from(["head", "all", "last 1", "last 2", ("classes",), ("classes", "hidden", "features")]),
    clusters=st.integers(1, 5),
    normalize=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_branched_network_equals_the_masked_one(
    seed: int, threshold: float, masked: Masked, clusters: int, normalize: bool
) -> None:
    model = masked_network(seed, clusters=clusters, masked=masked, normalize=normalize)
    p = probabilities(model)
    distilled = distill(p, harden(p, threshold))
    branched = branched_of(distilled.architecture, normalize=normalize)
    for dtype, bound in TOLERANCE.items():
        assert largest_difference(model, distilled, branched, images(seed).to(dtype)) <= bound
    transplant(model, distilled, branched)
    hard = dict(distilled.memberships)
    torch.testing.assert_close(branched(images(1)), model.with_memberships(images(1), hard), rtol=1e-4, atol=1e-4)
    assert type(distilled.architecture).from_json(distilled.architecture.to_json()) == distilled.architecture
    assert macs_of(distilled.architecture, STAGES, 2) <= macs_of(dense_of(STAGES), STAGES, 2)


@given(seed=st.integers(0, 10_000), threshold=st.floats(0.3, 0.95))
@settings(max_examples=50, deadline=None)
def test_clean_up_changes_nothing_where_no_membership_had_to_be_put_back(seed: int, threshold: float) -> None:
    model = masked_network(seed)
    p = probabilities(model)
    raw = harden(p, threshold)
    cleaned = distill(p, raw).memberships
    if any((cleaned[name].bool() & ~raw[name]).any() for name in raw):
        return
    fed_all = _nodes_that_read_nothing(raw)
    if fed_all:
        return  # such nodes pass a constant on, which the clean-up removes on purpose
    before = model.with_memberships(images(2), {name: value.float() for name, value in raw.items()})
    after = model.with_memberships(images(2), dict(cleaned))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def _nodes_that_read_nothing(hard: dict[str, Tensor]) -> bool:
    names = list(hard)
    for before, after in pairwise(names):
        fed = (hard[after].float() @ hard[before].float().T).any(1)
        if (hard[after].any(1) & ~fed).any():
            return True
    return False


def test_a_hand_made_structure_gives_the_expected_groups() -> None:
    hard = {
        "features": torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0], [1, 1]], dtype=torch.bool),
        "hidden": torch.tensor([[1, 0], [0, 1], [0, 1], [0, 0]], dtype=torch.bool),
        "classes": torch.tensor([[1, 0], [0, 1]], dtype=torch.bool),
    }
    found = distill({name: value.double() for name, value in hard.items()}, hard)
    described = [[(g.clusters, g.width, g.classes) for g in layer.groups] for layer in found.architecture.layers]
    assert described == [
        [((0,), 2, None), ((0, 1), 1, None), ((1,), 1, None)],
        [((0,), 1, None), ((1,), 2, None)],
        [((0,), 1, (0,)), ((1,), 1, (1,))],
    ]
    assert [nodes.tolist() for nodes in found.nodes["features"]] == [[0, 1], [4], [2]]


def test_unreachable_nodes_and_unshared_memberships_go() -> None:
    hard = {
        "features": torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.bool),
        "hidden": torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.bool),
        "classes": torch.tensor([[1, 0, 0], [1, 0, 0]], dtype=torch.bool),
    }
    found = distill({name: value.double() for name, value in hard.items()}, hard)
    # feature 1 feeds hidden 1, which no class reads; hidden 2 reads nothing; cluster 2 of hidden 0 meets nobody
    assert found.memberships["features"].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert found.memberships["hidden"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_every_class_keeps_its_most_probable_cluster_that_can_be_reached() -> None:
    p = {
        "hidden": torch.tensor([[0.9, 0.1], [0.8, 0.1]]),
        "classes": torch.tensor([[0.1, 0.3], [0.2, 0.1], [0.4, 0.6]]),
    }
    found = distill(p, harden(p, 0.5))
    # classes 0 and 2 would like cluster 1, but no hidden node belongs to it
    assert found.memberships["classes"].tolist() == [[1, 0], [1, 0], [1, 0]]
    assert found.architecture.classes == 3


def test_a_layer_without_any_membership_keeps_its_most_probable_node() -> None:
    p = {
        "features": torch.full((3, 2), 0.9),
        "hidden": torch.tensor([[0.1, 0.2], [0.3, 0.1]]),
        "classes": torch.rand(2, 2),
    }
    found = distill(p, harden(p, 0.5))
    assert found.architecture.layers[1].width == 1
    assert found.nodes["hidden"][0].tolist() == [1]


@given(seed=st.integers(0, 1000), target=st.floats(0.2, 1.0))
@settings(max_examples=20, deadline=None)
def test_threshold_meets_its_target(seed: int, target: float) -> None:
    p = probabilities(masked_network(seed))
    dense = macs_of(dense_of(STAGES), STAGES, 2)

    def share_of(distilled: Distilled) -> float:
        return macs_of(distilled.architecture, STAGES, 2) / dense

    threshold = threshold_for(p, target, share_of)
    assert share_of(distill(p, harden(p, threshold))) <= target


def test_a_target_that_no_threshold_meets_is_refused() -> None:
    p = probabilities(masked_network(0, masked="head"))
    with pytest.raises(ValueError, match=r"no threshold reaches 1\.0%"):
        threshold_for(p, 0.01, lambda distilled: macs_of(distilled.architecture, STAGES, 2) / 10_000)


def test_small_groups_join_the_most_similar_large_one() -> None:
    rows = [[1, 0, 0]] * 3 + [[0, 1, 1]] * 2 + [[0, 0, 1], [0, 0, 0]]
    hard = {
        "hidden": torch.tensor(rows, dtype=torch.bool),
        "classes": torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool),
    }
    p = {name: value.double() for name, value in hard.items()}
    found = distill(p, hard, min_group_size=2)
    assert [(g.clusters, g.width) for g in found.architecture.layers[0].groups] == [((0,), 3), ((1, 2), 3)]
    assert found.memberships["hidden"][-1].tolist() == [0, 0, 0], "a node without a cluster stays without"
    everything = distill(p, hard, min_group_size=100)
    assert [(g.clusters, g.width) for g in everything.architecture.layers[0].groups] == [((0,), 6)]
    assert distill(p, hard, min_group_size=1).architecture == distill(p, hard).architecture


def test_placebo_keeps_the_rows_of_every_layer_and_the_cost() -> None:
    p = probabilities(masked_network(4))
    hard = harden(p, 0.5)
    moved = shuffled(hard, torch.Generator().manual_seed(1))
    for name in hard:
        assert sorted(map(tuple, moved[name].tolist())) == sorted(map(tuple, hard[name].tolist()))
    assert any(not torch.equal(moved[name], hard[name]) for name in hard)
    only_classes = shuffled(hard, torch.Generator().manual_seed(1), placebo="classes")
    assert torch.equal(only_classes["features"], hard["features"])
    assert macs_of(distill(p, moved).architecture, STAGES, 2) == macs_of(distill(p, hard).architecture, STAGES, 2)
    assert shuffled(hard, torch.Generator(), placebo="none") == hard


def test_undivided_keeps_the_nodes_and_every_connection_between_them() -> None:
    p = probabilities(masked_network(4))
    divided, whole = harden(p, 0.5), harden(unbranched(p), 0.5)
    found = distill(unbranched(p), whole).architecture
    assert [layer.width for layer in found.layers] == [int(hard.any(1).sum()) for hard in divided.values()]
    assert all(torch.equal(whole[name][:, 0], hard.any(1)) for name, hard in divided.items())
    assert found.is_dense
    assert macs_of(found, STAGES, 2) > macs_of(distill(p, divided).architecture, STAGES, 2)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"threshold": 0.0}, "threshold must be in"),
        ({"thresholds": (0.5, 1.0)}, r"each of thresholds must be in \(0, 1\), got thresholds=1\.0"),
        ({"thresholds": (0.5,), "fill_target": True}, "give thresholds without it"),
        ({"learn_fraction": 1.0}, "learn_fraction must be in"),
        ({"target_macs": 1.5}, r"in \(0, 1\], got target_macs=1\.5"),
        ({"finetune_lr_multiplier": 0.0}, "above 0"),
        ({"thresholds": (0.6,), "trim_by": "magnitude"}, "give them with trim_by='probability'"),
        ({"trim_by": "size"}, "trim_by must be one of probability, magnitude"),
        ({"learn_schedule": "linear"}, "learn_schedule must be one of same, cosine, constant"),
        ({"draws": 0}, "draws=0"),
        ({"min_group_size": 0}, "min_group_size=0"),
        ({"target_parameters": 0.0}, "target_parameters=0.0"),
        ({"weights": "old"}, "weights must be one of"),
        ({"placebo": "rows"}, "placebo must be one of"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        DistillationSettings(**values)  # type: ignore[arg-type]
