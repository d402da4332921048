"""Residual networks whose blocks can be skipped one by one: He et al.'s for small images, and torchvision's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.head import Head
from nas_blockout.networks import Connection, Network, layer_widths
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import LAYERS, Conflict, OneOf, Range, check


class Plan(NamedTuple):
    """Blocks of each stage, channels of the first (they double from stage to stage), kind of block, usual shortcut."""

    blocks: tuple[int, ...]
    channels: int
    bottleneck: bool
    shortcut: Literal["pad", "projection"]


PLANS: Mapping[int, Plan] = MappingProxyType(
    {depth: Plan(((depth - 2) // 6,) * 3, 16, False, "pad") for depth in (8, 14, 20, 32, 56, 110)}
    | {
        18: Plan((2, 2, 2, 2), 64, False, "projection"),
        50: Plan((3, 4, 6, 3), 64, True, "projection"),
        101: Plan((3, 4, 23, 3), 64, True, "projection"),
    }
)


@dataclass(frozen=True, slots=True)
class ResNetSettings:
    """Settings of a residual network.

    Args:
        depth: Weighted layers: 8, 14, 20, 32, 56 or 110 have three stages of 16, 32 and 64 channels for small images;
            18, 50 and 101 have torchvision's four stages.
        stem: ``small`` is one 3x3 convolution; ``imagenet`` is a 7x7 convolution and a max pooling, each of stride 2.
        width: Factor on all channels.
        hidden: Nodes of each fully connected layer before the classes.
        shortcut: Where channels change, ``pad`` adds zero channels (He et al.'s option A), ``projection`` is a 1x1
            convolution (option B); ``auto`` is what is usual: ``pad`` with three stages, ``projection`` with four.
        regularized_stages: How many of the last stages a method's layer for maps follows, whatever `last_stages` of the
            method says; None for what it says.
    """

    depth: Annotated[int, OneOf(tuple(sorted(PLANS)))] = 20
    stem: Literal["small", "imagenet"] = "small"
    width: Annotated[float, Range(gt=0)] = 1.0
    hidden: Annotated[tuple[Annotated[int, Range(ge=1)], ...], LAYERS] = ()
    shortcut: Literal["auto", "pad", "projection"] = "auto"
    regularized_stages: Annotated[int, Range(ge=0)] | None = None

    def __post_init__(self) -> None:
        check(self)
        stages = len(PLANS[self.depth].blocks)
        if self.regularized_stages is not None and self.regularized_stages > stages:
            raise Conflict(
                f"regularized_stages must lie in 0..{stages}, got regularized_stages={self.regularized_stages}",
                "regularized_stages",
                "depth",
            )


class PaddedShortcut(nn.Module):
    """Take every second position and add channels of zeros on both sides: a shortcut without parameters.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, at least as many.
        stride: Distance of the positions that are kept.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.low = (outputs - inputs) // 2
        self.high = outputs - inputs - self.low

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, outputs, ceil(height / stride), ceil(width / stride))``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.low, self.high))


class ResidualBlock(nn.Module):
    """A residual block in two halves, the shortcut and the residual branch, so that the branch can be skipped.

    Args:
        block: One of torchvision's blocks, whose layers are taken over.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n in (1, 2, 3):
            if hasattr(block, f"conv{n}"):
                layers += [getattr(block, f"conv{n}"), getattr(block, f"bn{n}"), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = block.downsample if block.downsample is not None else nn.Identity()

    def complete(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Return the output for an input whose shortcut is already there, ``relu(shortcut + residual(x))``."""
        return F.relu(self.residual(x).add_(shortcut), inplace=True)

    def connections(
        self, prefix: str, nodes: tuple[str, str, str], sides: tuple[int, ...]
    ) -> tuple[list[Connection], tuple[int, ...]]:
        """Return the block's weights, and height and width of its output.

        Args:
            prefix: Name under which the network holds this block.
            nodes: Names of the layer that it reads, of those inside it (a letter is added), and of that it ends in.
            sides: Height and width of its input.
        """
        source, inside, target = nodes
        convolutions = len(self.residual) // 3 + 1
        path = (source, *(f"{inside}{letter}" for letter in "ab"[: convolutions - 1]), target)
        connections = []
        for n, (start, stop) in enumerate(pairwise(path)):
            sides = _strided(sides, _stride_of(self.residual[3 * n]))
            connections.append(self._connection(f"residual.{3 * n}.weight", prefix, (start, stop), sides))
        if isinstance(self.shortcut, nn.Sequential):
            connections.append(self._connection("shortcut.0.weight", prefix, (source, target), sides))
        return connections, sides

    def _connection(self, weight: str, prefix: str, layers: tuple[str, str], sides: tuple[int, ...]) -> Connection:
        connection = Connection.of(self, weight, *layers, positions=math.prod(sides))
        return replace(connection, weight=f"{prefix}.{weight}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output ``(batch, channels, height, width)``."""
        return self.complete(x, self.shortcut(x))


class ResNet(Network):
    """A residual network, with the places where methods enter.

    ``sites.maps`` makes a layer that follows the last block of a stage, after its ReLU (each stage, or the last
    ``regularized_stages`` or ``sites.last_maps``); ``sites.nodes`` one that stands before linear layers of the head;
    ``sites.weights`` wraps them; which ones, ``sites.placement`` says.

    Args:
        settings: Depth, stem and widths.
        input_shape: Channels, height and width of an image.
        classes: Number of classes, 1 or more.
        sites: Where a method enters; nowhere by default.

    References:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016, sections 3.4 and 4.2.

    Differs from the paper in: bottlenecks have their stride in the 3x3 convolution, as torchvision's have.
    """

    def __init__(
        self,
        settings: ResNetSettings,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        sites: Sites | None = None,
    ) -> None:
        super().__init__()
        sites = sites or Sites()
        self.settings = settings
        self.input_shape = input_shape
        plan = PLANS[settings.depth]
        base = [max(1, round(plan.channels * settings.width * 2**stage)) for stage in range(len(plan.blocks))]
        self.stem = _stem(input_shape[0], base[0], settings.stem)
        self.stages = nn.ModuleList()
        inputs = base[0]
        for stage, (width, blocks) in enumerate(zip(base, plan.blocks, strict=True)):
            outputs = width * (4 if plan.bottleneck else 1)
            stride = 1 if stage == 0 else 2
            self.stages.append(_stage(settings, inputs, width, outputs=outputs, blocks=blocks, stride=stride))
            inputs = outputs
        if settings.regularized_stages is not None:
            sites = replace(sites, last_maps=settings.regularized_stages)
        entering = [sites.at_maps(stage, len(base)) for stage in range(len(base))]
        self.maps = nn.ModuleDict({str(stage): site.maps() for stage, site in enumerate(entering) if site.maps})
        self.head = Head(inputs, settings.hidden, classes, sites=sites)
        # He et al.'s initialization, as in torchvision; the head keeps PyTorch's.
        for module in (*self.stem.modules(), *self.stages.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> tuple[ResidualBlock, ...]:
        """The residual blocks in order, each with `shortcut` and `complete`, between `stem` and `head`.

        Raises:
            ValueError: Layers of a method stand between the stages; driving the blocks alone would leave them out.
        """
        if self.maps:
            raise ValueError(
                f"blocks can be driven one by one only where no layer stands between stages, got layers after stages "
                f"{', '.join(self.maps)}; build the network without sites.maps"
            )
        return tuple(self._blocks().values())

    def _blocks(self) -> dict[str, ResidualBlock]:
        blocks = {
            f"stages.{n}.{m}": block for n, stage in enumerate(self.stages) for m, block in enumerate(stage.children())
        }
        return {name: block for name, block in blocks.items() if isinstance(block, ResidualBlock)}

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every weight of the network with its layers of nodes, in the order of the forward pass.

        The stream of a stage, which the identity shortcuts carry from block to block, is one layer of nodes:
        ``stream1`` and so on, the last one ``features``; a bottleneck's first block reads the ``stem``. Inside block n
        lie ``block<n>a`` and, in a bottleneck, ``block<n>b``. A padded shortcut hands channels on to the next stream
        without a weight, whatever their clusters: where branches shall stay apart use projections.
        """
        streams = [f"stream{n}" for n in range(1, len(self.stages))] + ["features"]
        blocks = self._blocks()
        source = streams[0] if isinstance(blocks["stages.0.0"].shortcut, nn.Identity) else "stem"
        sides = _strided(self.input_shape[1:], _stride_of(self.stem[0]))
        connections = [Connection.of(self, "stem.0.weight", None, source, positions=math.prod(sides))]
        if self.settings.stem == "imagenet":
            sides = _strided(sides, 2)  # max pooling
        for number, (prefix, block) in enumerate(blocks.items(), 1):
            target = streams[int(prefix.split(".")[1])]
            inside, sides = block.connections(prefix, (source, f"block{number}", target), sides)
            connections += inside
            source = target
        return (*connections, *self.head.connections("features"))

    @property
    def widths(self) -> dict[str, int]:
        """Nodes of every layer of nodes."""
        return layer_widths(self.connections)

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = self.stem(x)
        for position, stage in enumerate(self.stages):
            x = stage(x)
            if str(position) in self.maps:
                x = self.maps[str(position)](x, generator)
        logits: Tensor = self.head(x, generator)
        return logits


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of torchvision's ResNet so that a `ResNet` of the same depth, stem and classes loads them.

    Args:
        state: State dictionary of ``torchvision.models.resnet18``, ``resnet50`` or ``resnet101``.
    """
    inside = {f"conv{n}": f"residual.{3 * n - 3}" for n in (1, 2, 3)}
    inside |= {f"bn{n}": f"residual.{3 * n - 2}" for n in (1, 2, 3)}
    outside = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head.linears.0"}
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in outside:
            parts[:1] = [outside[parts[0]]]
        else:
            parts[:1] = ["stages", str(int(parts[0].removeprefix("layer")) - 1)]
            parts[3] = inside.get(parts[3], "shortcut")
        renamed[".".join(parts)] = value
    return renamed


def _stem(channels: int, width: int, kind: str) -> nn.Sequential:
    small = kind == "small"
    convolution = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
    layers = [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers) if small else nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def _stage(
    settings: ResNetSettings, inputs: int, width: int, *, outputs: int, blocks: int, stride: int
) -> nn.Sequential:
    from nas_blockout.lazy_torchvision import torchvision  # which takes two seconds, and only these networks need it

    plan = PLANS[settings.depth]
    kind = torchvision.models.resnet.Bottleneck if plan.bottleneck else torchvision.models.resnet.BasicBlock
    shortcut = None
    if stride != 1 or inputs != outputs:
        pad = (plan.shortcut if settings.shortcut == "auto" else settings.shortcut) == "pad"
        shortcut = PaddedShortcut(inputs, outputs, stride=stride) if pad else _projection(inputs, outputs, stride)
    made = [kind(inputs, width, stride, shortcut), *(kind(outputs, width) for _ in range(blocks - 1))]
    return nn.Sequential(*map(ResidualBlock, made))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stride_of(convolution: nn.Module) -> int:
    assert isinstance(convolution, nn.Conv2d)
    return convolution.stride[0]


def _strided(sides: tuple[int, ...], stride: int) -> tuple[int, ...]:
    return tuple(-(-side // stride) for side in sides)
