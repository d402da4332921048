import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.resnet import ResNet, ResNetSettings, from_torchvision
from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER

SMALL = (3, 32, 32)


def network(depth: int = 8, shape: tuple[int, int, int] = SMALL, classes: int = 10, **settings) -> ResNet:
    torch.manual_seed(0)
    return ResNet(ResNetSettings(depth=depth, **settings), shape, classes)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Recorder(nn.Module):
    """Passes on what it gets and keeps the shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x


class Doubled(nn.Module):
    """Twice the linear layer that it wraps."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return 2 * self.linear(x)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_table_6_of_he_et_al(depth, millions):
    digits = 1 if depth == 110 else 2
    assert round(parameters(network(depth)) / 1e6, digits) == millions


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (50, 25_557_032), (101, 44_549_160)])
def test_parameters_are_those_that_torchvision_publishes(depth, count):
    with torch.device("meta"):
        assert parameters(network(depth, (3, 224, 224), 1000, stem="imagenet")) == count


@pytest.mark.parametrize("depth", [18, 50])
def test_logits_equal_torchvision_for_its_weights(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).eval()
    ours = network(depth, (3, 64, 64), 5, stem="imagenet").eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("depth", "giga"), [(18, 1.814), (50, 4.089), (101, 7.801)])
def test_macs_of_the_connections_are_those_that_torchvision_publishes(depth, giga):
    with torch.device("meta"):
        built = network(depth, (3, 224, 224), 1000, stem="imagenet")
    macs = sum(built.get_parameter(c.weight).numel() * c.positions for c in built.connections)
    assert round(macs / 1e9, 3) == giga


@pytest.mark.parametrize(
    ("depth", "settings", "shape"),
    [
        (8, {}, (1, 28, 28)),
        (14, {"shortcut": "projection", "hidden": (12, 9)}, (3, 33, 20)),
        (20, {"stem": "imagenet", "width": 0.5}, (3, 64, 64)),
        (18, {"width": 0.25}, (3, 16, 16)),
        (50, {"width": 0.125, "stem": "imagenet"}, (3, 64, 48)),
    ],
)
def test_connections_cover_every_weight_with_its_nodes_and_its_uses(depth, settings, shape):
    built = network(depth, shape, **settings).eval()
    weights = {name for name, value in built.named_parameters() if value.dim() > 1}
    assert sorted(c.weight for c in built.connections) == sorted(weights)
    for connection in built.connections:
        weight = built.get_parameter(connection.weight)
        assert weight.shape[0] == built.widths[connection.targets[0]]
        assert weight.shape[1] == (built.widths[connection.sources[0]] if connection.sources else shape[0])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(torch.zeros(1, *shape))
    macs = sum(built.get_parameter(c.weight).numel() * c.positions for c in built.connections)
    assert macs == counter.get_total_flops() // 2


def _influence(built: ResNet) -> float:
    """Largest change of the even classes by odd nodes of the first stream, when no weight joins odd and even nodes."""
    parity = {name: torch.arange(nodes) % 2 for name, nodes in built.widths.items()}
    with torch.no_grad():
        for connection in built.connections:
            if connection.sources:
                weight = built.get_parameter(connection.weight)
                joined = parity[connection.targets[0]][:, None] == parity[connection.sources[0]][None, :]
                weight.mul_(joined.view(*joined.shape, *(1,) * (weight.dim() - 2)))
        x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        before = built.eval()(x)
        built.stem[0].weight[1::2] += 1.0
        return float((built(x) - before)[:, ::2].abs().max())


@pytest.mark.parametrize("depth", [14, 18, 50])
def test_nodes_that_share_no_cluster_do_not_reach_each_other(depth):
    settings = {"width": 0.25, "shortcut": "projection", "hidden": (8,)}
    assert _influence(network(depth, (3, 16, 16), **settings)) == 0.0


def test_padded_shortcuts_hand_channels_on_whatever_their_clusters():
    assert _influence(network(14, (3, 16, 16), width=0.1875)) > 0.0  # 3 channels, then 6: one of padding on the left


def test_blockout_masks_the_whole_network_by_its_connections():
    built = network(8, (3, 16, 16), width=0.25, hidden=(8,), shortcut="projection")
    chosen = replace(PAPER, clusters=2, masked="all", rescale=False)
    model = Blockout(built, built.connections, chosen)
    assert set(model.layers) == set(built.widths)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    everywhere = {name: torch.ones(nodes, 2) for name, nodes in built.widths.items()}
    torch.testing.assert_close(model.eval().with_memberships(x, everywhere), built(x))
    model.train().loss(x, torch.arange(4), torch.Generator().manual_seed(0)).backward()
    assert all(logits.grad.any() for logits in model.logits.values())


def test_blocks_between_stem_and_head_are_the_network():
    built = network(20).eval()
    x = torch.randn(2, *SMALL, generator=torch.Generator().manual_seed(0))
    h = built.stem(x)
    for block in built.blocks:
        h = block.complete(h, block.shortcut(h))
    assert len(built.blocks) == 9
    torch.testing.assert_close(built.head(h), built(x), rtol=0, atol=0)


def test_padded_shortcut_takes_every_second_position_between_zeros():
    built = network(8, width=0.125)  # 2, 4, 8 channels
    x = torch.arange(2 * 25.0).view(1, 2, 5, 5)
    y = built.blocks[1].shortcut(x)
    assert y.shape == (1, 4, 3, 3)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_maps_follow_each_stage_or_the_last_ones():
    for mapped, shapes in ((None, [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]), (1, [(2, 64, 8, 8)]), (0, [])):
        built = ResNet(ResNetSettings(depth=8, regularized_stages=mapped), SMALL, 10, sites=Sites(maps=Recorder))
        built(torch.zeros(2, *SMALL))
        assert [shape for layer in built.maps.values() for shape in layer.shapes] == shapes


def test_blocks_cannot_be_driven_past_layers_between_stages():
    built = ResNet(ResNetSettings(depth=8), SMALL, 10, sites=Sites(maps=Recorder))
    with pytest.raises(ValueError, match=r"got layers after stages 0, 1, 2; build the network without sites\.maps"):
        _ = built.blocks


def test_nodes_and_weights_enter_at_every_linear_layer_of_the_head():
    sites = Sites(nodes=Recorder, weights=Doubled)
    built = ResNet(ResNetSettings(depth=8, hidden=(12, 6)), SMALL, 10, sites=sites)
    built(torch.zeros(2, *SMALL))
    assert [layer.shapes for layer in built.head.before.values()] == [[(2, 64)], [(2, 12)], [(2, 6)]]
    assert all(isinstance(layer, Doubled) for layer in built.head.linears)


def test_eval_is_deterministic_and_a_copy_and_a_round_trip_give_the_same():
    built = network(8).eval()
    x = torch.randn(2, *SMALL, generator=torch.Generator().manual_seed(0))
    again = network(8).eval()
    again.load_state_dict(built.state_dict())
    for other in (built, copy.deepcopy(built), again):
        assert torch.equal(other(x), built(x))


def test_double_precision_and_memory_format_are_kept():
    built = network(8).double().to(memory_format=torch.channels_last).eval()
    x = torch.zeros(2, *SMALL, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert built(x).dtype == torch.float64
    assert built.stem(x).is_contiguous(memory_format=torch.channels_last)


def test_gradient_reaches_every_parameter():
    built = network(14, shortcut="projection", hidden=(8,))
    x = torch.randn(4, *SMALL, generator=torch.Generator().manual_seed(0))
    built(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in built.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 19}, r"depth must be one of 8, 14, 18, 20, 32, 50, 56, 101, 110, got depth=19"),
        ({"width": 0.0}, r"width must be above 0, got width=0\.0"),
        ({"hidden": (4, 0)}, r"each of hidden must be at least 1, got hidden=0"),
        ({"regularized_stages": 4}, r"regularized_stages must lie in 0\.\.3, got regularized_stages=4"),
        ({"stem": "big"}, r"stem must be one of small, imagenet, got 'big'"),
        ({"shortcut": "none"}, r"shortcut must be one of auto, pad, projection, got 'none'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNetSettings(**settings)
