"""How a graph is rewritten: layouts, moves that cost nothing, layers that act otherwise in training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.analysis import GraphAnalysis, analyze
from nas_blockout.graph.branched import BranchedGraph, branch, settled
from nas_blockout.graph.rewrite.layout import Axis, common, dim_groups, merged, split
from nas_blockout.graph.rewrite.training_layers import AttentionWithDropout, DropPath, MapDropout
from tests.nas_blockout.graph.masked_networks import analyzed as analyzed_by_name
from tests.nas_blockout.graph.masked_networks import dense_enough, masked
from tests.nas_blockout.graph.networks import CLASSES, SHAPE


class Layered(nn.Module):
    """A convolution, some layers over its twelve channels, and a linear layer over their means."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.layers, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Sequential(*layers), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layers(self.conv(x)).mean((2, 3)))
        return logits


def branched_half(network: nn.Module) -> tuple[BranchedGraph, GraphAnalysis, Tensor]:
    """A network in which every other channel is removed, its analysis, and the channels that are left."""
    analysis = analyze(network, SHAPE)
    half = (torch.arange(12) % 2)[:, None]
    memberships = {
        layer.name: half if layer.name == "conv" else torch.ones(layer.width, 1) for layer in analysis.layers
    }
    return branch(analysis, memberships, network.state_dict()), analysis, half[:, 0].nonzero().flatten()


def module_of(network: nn.Module, kind: type[nn.Module]) -> nn.Module:
    (module,) = [each for each in network.modules() if isinstance(each, kind)]
    return module


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_cut_to_its_nodes_and_trains_as_before(momentum: float | None, affine: bool) -> None:
    network = Layered(nn.BatchNorm2d(12, eps=0.01, momentum=momentum, affine=affine))
    original = module_of(network, nn.BatchNorm2d)
    for batch in range(3):
        network(torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(batch)))
    branched, _, kept = branched_half(network)
    norm = module_of(branched, nn.BatchNorm2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(original, nn.BatchNorm2d)
    assert (norm.num_features, norm.eps, norm.momentum, norm.affine) == (len(kept), 0.01, momentum, affine)
    assert norm.num_batches_tracked == 3
    with torch.no_grad():
        network.fc.weight[:, ::2] = 0
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(branched.train()(x), network.train()(x), rtol=1e-4, atol=1e-5)
    assert norm.num_batches_tracked == 4
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(norm.get_buffer(name), original.get_buffer(name)[kept])


def test_batch_norm_without_running_statistics_uses_those_of_the_batch() -> None:
    network = Layered(nn.BatchNorm2d(12, track_running_stats=False))
    branched, _, _ = branched_half(network)
    with torch.no_grad():
        network.fc.weight[:, ::2] = 0
    x = torch.randn(4, *SHAPE)
    for training in (True, False):
        torch.testing.assert_close(branched.train(training)(x), network.train(training)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Dropout(0.4), nn.Dropout),
        (nn.Dropout2d(0.4), MapDropout),
        (nn.AlphaDropout(0.4), nn.AlphaDropout),
        (nn.FeatureAlphaDropout(0.4), nn.FeatureAlphaDropout),
    ],
)
def test_dropout_of_any_kind_drops_in_training_only(layer: nn.Module, kind: type[nn.Module]) -> None:
    branched, _, _ = branched_half(Layered(layer))
    module = module_of(branched, kind)
    assert module.p == 0.4
    x = torch.randn(6, *SHAPE)
    assert torch.equal(branched.eval()(x), branched(x))
    branched.train()
    assert not torch.equal(branched(x), branched(x))


def test_whole_maps_are_dropped() -> None:
    dropped = MapDropout(0.5)(torch.ones(40, 6, 3, 3))
    shares = dropped.mean((2, 3))
    assert set(shares.unique().tolist()) == {0.0, 2.0}
    assert 0.35 < float((shares == 0).float().mean()) < 0.65


def test_stochastic_depth_is_kept() -> None:
    _, analysis = analyzed_by_name("mobile")
    branched = masked("mobile", dense_enough(analysis)).branched
    module = module_of(branched, DropPath)
    assert isinstance(module, DropPath)
    assert (round(module.p, 6), module.per_image, module.scale) == (0.2, True, True)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_paths_are_dropped_whole(per_image: bool, scale: bool) -> None:
    torch.manual_seed(0)
    path = DropPath(0.25, per_image=per_image, scale=scale)
    x = torch.ones(50, 2, 3)
    draws = torch.stack([path(x) for _ in range(200)])
    kept = 1 / 0.75 if scale else 1.0
    torch.testing.assert_close(draws.unique(), torch.tensor([0.0, kept]))
    assert torch.equal(draws.amax((2, 3)), draws.amin((2, 3)))  # all of an image, or nothing
    alike = bool((draws.amax((1, 2, 3)) == draws.amin((1, 2, 3))).all())
    assert alike is not per_image
    assert 0.15 < float((draws == 0).float().mean()) < 0.35
    assert torch.equal(path.eval()(x), x)


def test_dropout_within_attention_is_kept() -> None:
    _, analysis = analyzed_by_name("attention-module")
    branched = masked("attention-module", dense_enough(analysis)).branched
    module = module_of(branched, AttentionWithDropout)
    assert module.p == 0.1
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    assert torch.equal(branched(x), branched(x))
    branched.train()
    assert not torch.equal(branched(x), branched(x))


def test_a_channel_shuffle_costs_no_operation() -> None:
    _, analysis = analyzed_by_name("shuffle")
    branched = masked("shuffle", dense_enough(analysis)).branched
    names = [str(node.target) for node in branched.body.graph.nodes if node.op == "call_function"]
    assert not any(kind in name for name in names for kind in ("transpose", "permute", "reshape", "view", "chunk"))


class Mixed(nn.Module):
    """Channels are cut in groups, transposed, and added to others before they are joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).unflatten(1, (3, 4)).transpose(1, 2)
        x = F.relu(x).flatten(1, 2)
        logits: Tensor = self.fc(F.relu(self.conv2(x)).mean((2, 3)))
        return logits


def test_what_turns_out_rigid_keeps_its_layer_whole_and_settled_knows_it_beforehand() -> None:
    torch.manual_seed(0)
    network = Mixed().eval()
    analysis = analyze(network, SHAPE)
    assert not analysis.rigid
    assert settled(analysis).rigid == {"conv": "a view that mixes nodes"}
    memberships = {layer.name: torch.ones(layer.width, 1) for layer in analysis.layers}
    memberships["conv"][[0, 5, 6]] = 0
    state = network.state_dict()
    kept = memberships["conv"][:, 0].view(3, 4).T.flatten()
    state["conv2.weight"] = state["conv2.weight"] * kept[:, None, None]
    with torch.no_grad():
        network.conv2.weight.mul_(kept[:, None, None])
        for known in (analysis, settled(analysis)):
            branched = branch(known, memberships, state).eval()
            x = torch.randn(3, *SHAPE)
            torch.testing.assert_close(branched(x), network(x))
            rigid = {layer.name for layer in branched.architecture.layers if layer.rigid}
            assert rigid == {"conv"}
            assert sum(map(len, branched.nodes["conv"])) == 12


class Tied(nn.Module):
    """One weight in two operations; `gate` says in which."""

    def __init__(self, tie: str) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.conv3, self.fc = nn.Conv2d(12, 12, 1), nn.Linear(12, CLASSES)
        self.tie = tie
        if tie == "bias":
            self.conv3.bias = self.conv2.bias

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(self.conv(x)))
        if self.tie == "stride":
            x = F.conv2d(x, self.conv2.weight, self.conv2.bias, stride=2)
        if self.tie == "elsewhere":
            x = x * self.conv2.weight.mean()
        logits: Tensor = self.fc(F.relu(self.conv3(x)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("tie", ["bias", "stride", "elsewhere"])
def test_parameters_that_different_operations_share_are_refused_by_name(tie: str) -> None:
    analysis = analyze(Tied(tie), SHAPE)
    with pytest.raises(ValueError, match=r"the network cannot be branched: .*'conv2"):
        settled(analysis)


# ---- layouts


def axis_of(places: list[int]) -> Axis:
    return Axis(torch.tensor(places), max(places) + 1)


def test_an_axis_knows_its_order_and_what_it_keeps() -> None:
    axis = Axis(torch.tensor([4, -1, 0, 1]), 5)
    assert axis.order.tolist() == [2, 3, 0]
    assert not axis.is_exact
    compact = axis.compact()
    assert compact is not None
    assert compact.places.tolist() == [2, -1, 0, 1]
    assert Axis(torch.tensor([0, 1, 2]), 3).compact() is None
    assert Axis.none(3).is_empty


@given(data=st.data())
def test_joining_dims_is_undone_by_dividing_them(data: st.DataObject) -> None:
    axes = []
    for _ in range(2):
        size = data.draw(st.integers(1, 4))
        order = data.draw(st.permutations(range(size)))
        kept = order[: data.draw(st.integers(1, size))]
        axes.append(Axis.in_order(torch.tensor(kept), size) or Axis.identity(size))
    joined = merged(axes)
    assert joined.size == axes[0].size * axes[1].size
    pieces = split(joined, [len(axis.places) for axis in axes])
    assert pieces is not None
    layout, order = pieces
    assert torch.equal(order, torch.arange(joined.size))
    for axis, piece in zip(axes, layout, strict=True):
        assert torch.equal((piece or Axis.identity(len(axis.places))).places, axis.places)


def test_a_dim_is_not_divided_between_kept_and_removed_positions() -> None:
    assert split(axis_of([0, 1, 2, -1]), [2, 2]) is None
    pieces = split(axis_of([2, -1, 0, -1, 1, -1]), [3, 2])
    assert pieces is not None
    layout, order = pieces
    assert layout[0] is not None
    assert layout[0].order.tolist() == [1, 2, 0]
    assert order.tolist() == [0, 1, 2]


def test_operands_meet_in_what_all_have() -> None:
    first, second = axis_of([1, 0, -1]), axis_of([0, 1, 2])
    (axis,) = common([(first,), (None,), (second,)], [3])
    assert axis is not None
    assert axis.order.tolist() == [1, 0]
    assert common([(None,), (None,)], [3]) == (None,)


def test_views_are_taken_apart_into_groups_of_dims() -> None:
    assert dim_groups([7, 12, 4, 4], [7, 2, 6, 16]) == [([0], [0]), ([1], [1, 2]), ([2, 3], [3])]
    assert dim_groups([7, 12, 1, 1], [7, 12]) == [([0], [0]), ([1, 2, 3], [1])]
    with pytest.raises(ValueError, match="as many positions"):
        dim_groups([7, 12], [7, 11])
