"""A network cut to some classes gives their logits as the whole one does, with less wherever classes are apart."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, load
from nas_blockout.experiment import Experiment, build, subset_of
from nas_blockout.experiment.branchable import build_branchable
from nas_blockout.graph.branched import BranchedGraph, branch
from nas_blockout.graph.network import GraphNetwork
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.networks import Network

INVENTIONS = Path(__file__).parents[2] / "fixtures" / "inventions.py"
SHAPE = (1, 8, 8)
EVEN, ODD = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
APART = Architecture(
    2,
    (
        Layer("features", (Group((0,), 6), Group((1,), 5), Group((0, 1), 1))),
        Layer("hidden", (Group((0,), 7), Group((1,), 9))),
        Layer("classes", (Group((0,), 5, EVEN), Group((1,), 5, ODD))),
    ),
)
CHOSEN = (9, 3, 0)


def invention(clusters: int, *, overlap: bool) -> Network:
    """A network with a residual stream and attention, whose nodes are in one cluster each, or most of them in two."""
    torch.manual_seed(2)
    settings = ModuleSettings(f"{INVENTIONS}:Invention")
    network = build_branchable(settings, SHAPE, 10, Sites())
    assert isinstance(network, GraphNetwork)
    memberships = {}
    for layer in network.analysis.layers:
        row = torch.arange(layer.width)
        value = torch.zeros(layer.width, clusters)
        value[row, row % clusters] = 1
        if overlap and layer.name != "classes":
            value[row, (row // 2) % clusters] = 1
        memberships[layer.name] = value
    return branch(network.analysis, memberships, network.module.state_dict())


def chain() -> Network:
    torch.manual_seed(1)
    return build(Experiment(backbone=ConvNetSettings((6, 12), (16,)), architecture=APART), load(DataSettings()))  # type: ignore[return-value]


def plain() -> Network:
    torch.manual_seed(1)
    return build(Experiment(backbone=ResNetSettings(depth=8, width=0.25)), load(DataSettings()))  # type: ignore[return-value]


def normalized() -> Network:
    """The same with logits that are normalized, without factors that are learned."""
    torch.manual_seed(1)
    backbone = ConvNetSettings((6, 12), (16,), normalize_logits=True)
    return build(Experiment(backbone=backbone, architecture=APART), load(DataSettings()))  # type: ignore[return-value]


WHOLE = {
    "chain": chain,
    "normalized logits": normalized,
    "no branches": plain,
    "graph apart": lambda: invention(2, overlap=False),
    "graph overlapping": lambda: invention(3, overlap=True),
}


def awake(network: nn.Module) -> nn.Module:
    """Give normalization statistics of its own, so that no value is what it is by chance of the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 5)
    return network.eval()


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("kind", WHOLE)
def test_the_logits_are_those_of_the_whole_network(kind: str) -> None:
    whole, chosen = awake(WHOLE[kind]()).double(), CHOSEN
    subset = subset_of(whole, SHAPE, 10, chosen)  # type: ignore[arg-type]
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    logits: Tensor = whole(images).detach()
    expected, found = logits[:, list(chosen)], subset.network(images).detach()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert float(expected.std(0).min()) > 1e-3, "equal to nothing in particular"
    for entry in subset.equality.values():
        assert entry["max_abs_difference"] <= entry["bound"] < entry["spread"]
    torch.testing.assert_close(subset.network.for_inference()(images), expected, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(found, logits[:, [*chosen[1:], chosen[0]]])


@pytest.mark.parametrize("kind", ["chain", "graph apart"])
def test_branches_of_other_classes_are_left_out(kind: str) -> None:
    whole = awake(WHOLE[kind]())
    even = subset_of(whole, SHAPE, 10, EVEN)  # type: ignore[arg-type]
    assert size(even.network) < 0.8 * size(whole)
    every = subset_of(whole, SHAPE, 10, tuple(range(10)))  # type: ignore[arg-type]
    assert size(every.network) == size(whole)
    assert even.network(torch.randn(2, *SHAPE)).requires_grad, "what is left can be trained"


def test_of_a_network_without_branches_only_the_rows_of_classes_go() -> None:
    whole = awake(plain())
    subset = subset_of(whole, SHAPE, 10, (1, 2, 3))  # type: ignore[arg-type]
    assert subset.architecture is None
    removed = size(whole) - size(subset.network)
    assert removed % 7 == 0  # a row of weights and a bias for each of the seven classes
    assert 0 < removed < 0.1 * size(whole)


def test_the_architecture_is_what_is_left_of_the_groups() -> None:
    architecture = subset_of(chain(), SHAPE, 10, (8, 2)).architecture
    assert architecture is not None
    groups = [[(group.clusters, group.width, group.classes) for group in layer.groups] for layer in architecture.layers]
    assert groups[-2:] == [[((0,), 7, None)], [((0,), 2, (0, 1))]]
    assert sum(width for _, width, _ in groups[-3]) == 6 + 1, "and the node that is in both branches"


def test_a_network_of_random_branches_over_a_graph_keeps_its_groups() -> None:
    whole = invention(2, overlap=False)
    assert isinstance(whole, BranchedGraph)
    architecture = subset_of(whole, SHAPE, 10, ODD).architecture
    assert architecture is not None
    settings = ModuleSettings(f"{INVENTIONS}:Invention")
    dense = build_branchable(settings, SHAPE, 10, Sites())
    assert isinstance(dense, GraphNetwork)
    kept = {layer.name: layer.width for layer in architecture.layers}
    assert all(2 * width == dense.layers[name] for name, width in kept.items())


@pytest.mark.parametrize(
    ("chosen", "told"),
    [((3, 10), "must lie in 0..9, got 10"), ((4, 4), "given once"), ((4,), "at least 2"), ((), "at least 2")],
)
def test_what_is_no_choice_of_classes_is_refused(chosen: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        subset_of(chain(), SHAPE, 10, chosen)


def test_a_network_in_which_each_image_takes_its_path_is_refused() -> None:
    experiment = Experiment(backbone=ResNetSettings(depth=8, width=0.25), method=BlockDropSettings())
    with pytest.raises(ValueError, match="a path of its own"):
        subset_of(build(experiment, load(DataSettings())), SHAPE, 10, (1, 2))  # type: ignore[arg-type]


def test_the_whole_network_is_left_as_it_was() -> None:
    whole = chain().train()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    subset_of(whole, SHAPE, 10, (1, 2))
    assert whole.training
    assert all(parameter.requires_grad for parameter in whole.parameters())
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
