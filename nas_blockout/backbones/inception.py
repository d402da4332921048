"""Inception with batch normalization: the full network for ImageNet and a compact one for small images."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.head import Head
from nas_blockout.networks import Connection, Network, layer_widths
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import LAYERS, Range, check


class Widths(NamedTuple):
    """Channels inside one module: a 1x1 path, a 3x3 path, a path of two 3x3, a path of pooling.

    Without a 1x1 path (``direct=0``) the module halves the sides: both 3x3 paths have stride 2, and the pooling, a
    maximum, is handed on as it is.
    """

    direct: int
    single_reduce: int
    single: int
    double_reduce: int
    double: int
    pool: Literal["mean", "max"]
    projection: int


_HALVING_3 = Widths(0, 128, 160, 64, 96, "max", 0)
_HALVING_4 = Widths(0, 128, 192, 192, 256, "max", 0)
_MODULES: Mapping[str, tuple[Widths, ...]] = {
    "group3": (Widths(64, 64, 64, 64, 96, "mean", 32), Widths(64, 64, 96, 64, 96, "mean", 64), _HALVING_3),
    "group4": (
        Widths(224, 64, 96, 96, 128, "mean", 128),
        Widths(192, 96, 128, 96, 128, "mean", 128),
        Widths(160, 128, 160, 128, 160, "mean", 128),
        Widths(96, 128, 192, 160, 192, "mean", 128),
        _HALVING_4,
    ),
    "group5": (Widths(352, 192, 320, 160, 224, "mean", 128), Widths(352, 192, 320, 192, 224, "max", 128)),
}


class Plan(NamedTuple):
    """Channels of the stem's convolutions, modules of each group, and the factor on all of these that is width 1."""

    stem: tuple[int, ...]
    groups: Mapping[str, tuple[Widths, ...]]
    factor: float


PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        "full": Plan((64, 192), _MODULES, 1.0),
        "compact": Plan(
            (192,),
            {
                "group3": (_MODULES["group3"][0], _HALVING_3),
                "group4": (_MODULES["group4"][0], _MODULES["group4"][3], _HALVING_4),
                "group5": (_MODULES["group5"][1],),
            },
            0.5,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class InceptionSettings:
    """Settings of the Inception network.

    Args:
        variant: ``full`` is the network for ImageNet, whose stem divides the sides by 8; ``compact`` has one 3x3
            convolution as stem and six of the ten modules with half of their channels.
        width: Factor on all channels of the variant's convolutions; every width is at least 1.
        hidden: Nodes of each fully connected layer before the classes; the Blockout paper adds two, of 512 nodes each
            for CIFAR-100 and of 4096 for ImageNet.
    """

    variant: Literal["compact", "full"] = "compact"
    width: Annotated[float, Range(gt=0)] = 1.0
    hidden: Annotated[tuple[Annotated[int, Range(ge=1)], ...], LAYERS] = ()

    def __post_init__(self) -> None:
        check(self)


class InceptionModule(nn.Module):
    """Parallel paths over one input, their channels concatenated.

    Args:
        inputs: Channels that come in.
        widths: Channels of the paths.
    """

    def __init__(self, inputs: int, widths: Widths) -> None:
        super().__init__()
        stride = 1 if widths.direct else 2
        self.paths = nn.ModuleList()
        if widths.direct:
            self.paths.append(_unit(inputs, widths.direct))
        self.paths.append(
            nn.Sequential(_unit(inputs, widths.single_reduce), _unit(widths.single_reduce, widths.single, 3, stride))
        )
        self.paths.append(
            nn.Sequential(
                _unit(inputs, widths.double_reduce),
                _unit(widths.double_reduce, widths.double, 3),
                _unit(widths.double, widths.double, 3, stride),
            )
        )
        pool = nn.MaxPool2d(3, stride, 1) if widths.pool == "max" else nn.AvgPool2d(3, stride, 1)
        self.paths.append(nn.Sequential(pool, _unit(inputs, widths.projection)) if widths.projection else pool)
        self.outputs = widths.direct + widths.single + widths.double + (widths.projection or inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, outputs, height, width)``, of half the height and width, rounded up, if it halves."""
        return torch.cat([path(x) for path in self.paths], 1)


class Inception(Network):
    """Inception with batch normalization after every convolution, with the places where methods enter.

    ``sites.maps`` makes a layer that follows each of the three groups of modules, or the last ``sites.last_maps``;
    ``sites.nodes`` one that stands before linear layers of the head (figure 5b of the Blockout paper, with Dropout);
    ``sites.weights`` wraps them; which ones, ``sites.placement`` says.

    Args:
        settings: Variant and widths.
        input_shape: Channels, height and width of an image.
        classes: Number of classes, 1 or more.
        sites: Where a method enters; nowhere by default.

    References:
        Ioffe, Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift.
        ICML 2015, figure 5. Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep
        Networks. CVPR 2016, figure 5, for the fully connected layers.

    Differs from the paper in: the first convolution is a plain one, not a separable one, and the pooling paths of the
    third and fourth module of group 4 project to 128 channels, not 96, both as in the published Caffe model.
    Convolutions have no bias, which batch normalization would remove. The compact variant is ours: the Blockout paper
    does not describe its own.
    """

    def __init__(
        self,
        settings: InceptionSettings,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        sites: Sites | None = None,
    ) -> None:
        super().__init__()
        sites = sites or Sites()
        self.settings = settings
        plan = PLANS[settings.variant]
        factor = plan.factor * settings.width
        self.stem = _stem(input_shape[0], [_width(channels, factor) for channels in plan.stem])
        self.groups = nn.ModuleDict()
        inputs = _width(plan.stem[-1], factor)
        for name, modules in plan.groups.items():
            built = []
            for widths in modules:
                built.append(InceptionModule(inputs, _scaled(widths, factor)))
                inputs = built[-1].outputs
            self.groups[name] = nn.Sequential(*built)
        entering = {name: sites.at_maps(number, len(self.groups)) for number, name in enumerate(self.groups)}
        self.maps = nn.ModuleDict({name: site.maps() for name, site in entering.items() if site.maps})
        self.head = Head(inputs, settings.hidden, classes, sites=sites)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The weights of the head, from ``features`` to ``classes``: what the Blockout paper masks.

        The convolutions are not among them: a module concatenates its paths, so the layer of nodes that the next module
        reads is no one weight's output.
        """
        return self.head.connections("features")

    @property
    def widths(self) -> dict[str, int]:
        """Nodes of every layer of nodes in `connections`."""
        return layer_widths(self.connections)

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = self.stem(x)
        for name, group in self.groups.items():
            x = group(x)
            if name in self.maps:
                x = self.maps[name](x, generator)
        logits: Tensor = self.head(x, generator)
        return logits


def _stem(channels: int, widths: list[int]) -> nn.Sequential:
    if len(widths) == 1:
        return nn.Sequential(_unit(channels, widths[0], 3))
    first, second = widths
    pools = [nn.MaxPool2d(3, stride=2, padding=1) for _ in range(2)]
    return nn.Sequential(_unit(channels, first, 7, 2), pools[0], _unit(first, first), _unit(first, second, 3), pools[1])


def _width(channels: int, factor: float) -> int:
    return max(1, round(channels * factor))


def _scaled(widths: Widths, factor: float) -> Widths:
    channels: dict[str, Any] = {
        name: _width(value, factor) for name, value in widths._asdict().items() if isinstance(value, int) and value
    }
    return widths._replace(**channels)


def _unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    if not convolution.weight.is_meta:  # there torch takes most of the time of a check for values that nobody reads
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
