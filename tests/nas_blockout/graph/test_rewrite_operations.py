"""Operations beyond those of the small networks: each stays equal when nodes are removed, moved and separated."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.analysis import GraphAnalysis
from tests.nas_blockout.graph.masked_networks import images, masked_network, prepared
from tests.nas_blockout.graph.networks import CLASSES

Between = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """A convolution to twelve channels, a function of them, and a convolution that reads what it gives."""

    def __init__(self, between: Between, channels: int = 12, **layers: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.other = nn.Conv2d(3, 12, 1)
        self.layers = nn.ModuleDict(layers)
        self.gain = nn.Parameter(torch.rand(12, 1, 1))
        self.register_buffer("fixed", torch.rand(12, 1, 1))
        self.register_buffer("order", torch.tensor([3, 1, 2, 0, 7, 5, 6, 4, 11, 10, 9, 8]))
        self.conv2, self.fc = nn.Conv2d(channels, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self, torch.stack([F.relu(self.norm(self.conv1(x))), self.other(x)]))
        logits: Tensor = self.fc(F.relu(self.conv2(y)).mean((2, 3)))
        return logits


def each(function: Callable[[Tensor], Tensor]) -> Between:
    """The function of the first convolution alone."""
    return lambda network, pair: function(pair[0])


def attended(x: Tensor) -> Tensor:
    """Attention over positions, whose products sum over channels."""
    tokens = x.flatten(2)
    return (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).view(x.shape)


CASES: dict[str, Callable[[], Around]] = {
    "sum-of-a-stack": lambda: Around(lambda network, pair: pair.sum(0)),
    "maximum": lambda: Around(lambda network, pair: torch.maximum(pair[0], pair[1])),
    "where": lambda: Around(lambda network, pair: torch.where(pair[0] > 0.1, pair[0], pair[1])),
    "gain": lambda: Around(lambda network, pair: pair[0] * network.gain),
    "gain-read-twice": lambda: Around(lambda network, pair: pair[0] * network.gain + pair[1] * network.gain),
    "fixed-factor": lambda: Around(lambda network, pair: pair[0] * network.fixed + network.fixed.square()),
    "computed-gain": lambda: Around(lambda network, pair: pair[0] * network.gain.exp()),
    "glu": lambda: Around(each(lambda x: F.glu(x, 1)), channels=6),
    "prelu": lambda: Around(lambda network, pair: network.layers["prelu"](pair[0]), prelu=nn.PReLU(12)),
    "instance-norm": lambda: Around(
        lambda network, pair: network.layers["norm"](pair[0]), norm=nn.InstanceNorm2d(12, affine=True)
    ),
    "group-norm": lambda: Around(lambda network, pair: network.layers["norm"](pair[0]), norm=nn.GroupNorm(3, 12)),
    "softmax-over-positions": lambda: Around(each(lambda x: x.flatten(2).softmax(2).view(x.shape))),
    "softmax-over-channels": lambda: Around(each(lambda x: x.softmax(1))),
    "flip": lambda: Around(each(lambda x: x.flip(1))),
    "roll": lambda: Around(each(lambda x: x.roll(3, 1).roll((1, 2), (2, 3)))),
    "index": lambda: Around(lambda network, pair: pair[0][:, network.order]),
    "index-select": lambda: Around(lambda network, pair: pair[0].index_select(1, network.order)),
    "step": lambda: Around(each(lambda x: x[:, 1::3]), channels=4),
    "parts": lambda: Around(each(lambda x: torch.cat(list(reversed(x.split([2, 3, 7], 1))), 1))),
    "one-channel": lambda: Around(each(lambda x: x[:, 4].unsqueeze(1) + x[:, 7:8]), channels=1),
    "repeat-positions": lambda: Around(each(lambda x: x.mean((2, 3), keepdim=True).repeat(1, 1, 4, 4))),
    "repeat-channels": lambda: Around(each(lambda x: x.repeat(1, 2, 1, 1)), channels=24),
    "expand": lambda: Around(each(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4))),
    "twice": lambda: Around(each(lambda x: torch.cat([x, F.relu(-x)], 1)), channels=24),
    "padded-channels": lambda: Around(each(lambda x: F.pad(x, (1, 1, 1, 1, 2, 3))), channels=17),
    "reflected": lambda: Around(each(lambda x: F.pad(x, (1, 2, 1, 2), mode="reflect"))),
    "resized": lambda: Around(each(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"))),
    "max-pool-with-places": lambda: Around(each(lambda x: F.adaptive_max_pool2d(x, 2))),
    "largest": lambda: Around(each(lambda x: x.flatten(2).max(2).values[:, :, None, None])),
    "space-to-depth": lambda: Around(each(lambda x: F.pixel_unshuffle(x, 2)), channels=48),
    "windows": lambda: Around(each(lambda x: x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).amax((3, 5)))),
    "positions-mixed-by-a-constant": lambda: Around(
        each(lambda x: (x.flatten(2) @ torch.eye(64, dtype=x.dtype).flip(0)).view(x.shape))
    ),
    "positions-last": lambda: Around(
        each(
            lambda x: (
                (torch.eye(64, dtype=x.dtype).flip(0) @ x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)
            )
        )
    ),
    "channels-last": lambda: Around(
        lambda network, pair: network.layers["mlp"](pair[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        mlp=nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 12)),
    ),
    "gate-of-means": lambda: Around(each(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid())),
    "single-head-attention": lambda: Around(each(attended)),
    "depthwise-multiplier": lambda: Around(
        lambda network, pair: network.layers["conv"](pair[0]), channels=24, conv=nn.Conv2d(12, 24, 3, groups=12)
    ),
    "dilated": lambda: Around(
        lambda network, pair: network.layers["conv"](pair[0]),
        conv=nn.Conv2d(12, 12, 3, padding="same", dilation=2, groups=2),
    ),
    "spatial-gate": lambda: Around(
        lambda network, pair: pair[0] * network.layers["gate"](pair[0]).sigmoid(), gate=nn.Conv2d(12, 1, 3, padding=1)
    ),
    "shared-convolution-of-moved-channels": lambda: Around(
        lambda network, pair: network.layers["conv"](network.layers["conv"](pair[0]).flip(1)),
        conv=nn.Conv2d(12, 12, 3, padding=1),
    ),
    "shared-depthwise": lambda: Around(
        lambda network, pair: network.layers["conv"](network.layers["conv"](pair[0]).flip(1)),
        conv=nn.Conv2d(12, 12, 3, padding=1, groups=12),
    ),
    "gain-of-two-layers": lambda: Around(
        lambda network, pair: torch.cat([pair[0] * network.gain, (pair[1] * network.gain).flip(1)], 1), channels=24
    ),
    "transposed": lambda: Around(
        lambda network, pair: network.layers["up"](pair[0]), up=nn.ConvTranspose2d(12, 12, 2, 2)
    ),
    "unknown": lambda: Around(each(lambda x: torch.cumsum(x, 1).erfinv().nan_to_num())),
}


@cache
def analyzed(name: str) -> tuple[nn.Module, GraphAnalysis]:
    torch.manual_seed(2)
    return prepared(CASES[name]())


@pytest.mark.parametrize("density", [0.3, 0.7])
@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_the_same_for_removed_and_separated_nodes(name: str, density: float) -> None:
    network, analysis = analyzed(name)
    generator = torch.Generator().manual_seed(5)
    memberships = {
        layer.name: (torch.rand(layer.width, 2, generator=generator) < density).double() for layer in analysis.layers
    }
    memberships["classes"][:] = 1
    if density > 0.5:  # the cases of few nodes may be constant
        memberships["conv2"][:] = 1
    case = masked_network(copy.deepcopy(network), analysis, memberships)
    with torch.no_grad():
        for number in (1, 4):
            batch = images(number)
            expected = case.logits(batch)
            torch.testing.assert_close(case.branched(batch), expected, rtol=0, atol=1e-10)
    assert density < 0.5 or float(expected.std(0).max()) > 1e-4
