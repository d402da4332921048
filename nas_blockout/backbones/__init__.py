"""Networks to train: built from settings, the shape of an image, the number of classes, and where a method enters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from nas_blockout.architecture import Architecture, dense_architecture
from nas_blockout.backbones import convnet, plugin_networks
from nas_blockout.backbones import module as modules
from nas_blockout.backbones.branched import BranchedNetwork, Sites, Stage, macs_of
from nas_blockout.backbones.inception import Inception, InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.networks import Connection, Network, maskable_layers, masked_connections
from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.installed import Origin

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Backbone:
    """One kind of network.

    A plug-in is one of these, or a class of `nn.Module` as `nas_blockout.backbones.plugin_networks` describes it.

    Args:
        settings: Frozen dataclass of its settings.
        build: Builds the network; the architecture is None for the dense one.
        stages: Stages that an architecture may cover; None for networks that branch through their graph.
        scaled: Returns the settings with all widths multiplied by a factor.
        neighbors: Returns the settings that have one node more or less in one layer.
        skippable: Whether the network has blocks that can be skipped one by one.
        masks_convolutions: Whether it says itself which layers its convolutions connect; else its graph does.
        from_factory: Whether code of the user's makes it: nothing is known of it before it is built for images of one
            shape, and methods enter it only at its classes layer.
    """

    settings: type
    build: Callable[[Any, Shape, int, Architecture | None, Sites], Network]
    stages: Callable[[Any, Shape, int], Sequence[Stage]] | None = None
    scaled: Callable[[Any, float], Any] | None = None
    neighbors: Callable[[Any], list[Any]] | None = None
    skippable: bool = False
    masks_convolutions: bool = True
    from_factory: bool = False


def _build_convnet(
    settings: convnet.ConvNetSettings, shape: Shape, classes: int, architecture: Architecture | None, sites: Sites
) -> Network:
    stages = convnet.stages(settings, shape, classes)
    return BranchedNetwork(
        stages,
        architecture or dense_of(stages),
        channels=shape[0],
        sites=sites,
        normalize_logits=settings.normalize_logits,
    )


def _build_resnet(
    settings: ResNetSettings, shape: Shape, classes: int, architecture: Architecture | None, sites: Sites
) -> Network:
    _refuse_architecture(settings, architecture)
    return ResNet(settings, shape, classes, sites=sites)


def _build_inception(
    settings: InceptionSettings, shape: Shape, classes: int, architecture: Architecture | None, sites: Sites
) -> Network:
    _refuse_architecture(settings, architecture)
    return Inception(settings, shape, classes, sites=sites)


def _build_module(
    settings: ModuleSettings, shape: Shape, classes: int, architecture: Architecture | None, sites: Sites
) -> Network:
    _refuse_architecture(settings, architecture)
    device = torch.get_default_device()
    if device.type == "meta":
        return modules.outline(settings, shape, classes, sites)
    with torch.device("cpu"):
        network = modules.build(settings, shape, classes, sites)
    return network.to(device)


def _refuse_architecture(settings: Any, architecture: Architecture | None) -> None:
    if architecture is not None:
        name = name_of(settings)
        raise ValueError(f"the backbone {name} branches through its graph: give the architecture to an Experiment")


def _scaled_convnet(settings: convnet.ConvNetSettings, factor: float) -> convnet.ConvNetSettings:
    channels = tuple(max(1, round(width * factor)) for width in settings.channels)
    return replace(
        settings, channels=channels, hidden=tuple(max(1, round(width * factor)) for width in settings.hidden)
    )


def _neighbors_of_convnet(settings: convnet.ConvNetSettings) -> list[convnet.ConvNetSettings]:
    return [
        *(replace(settings, channels=channels) for channels in _nudged(settings.channels)),
        *(replace(settings, hidden=hidden) for hidden in _nudged(settings.hidden)),
    ]


def _nudged(widths: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [
        (*widths[:position], width + step, *widths[position + 1 :])
        for position, width in enumerate(widths)
        for step in (-1, 1)
        if width + step >= 1
    ]


def _read(found: Any, origin: Origin) -> Backbone:
    """Return the backbone that a plug-in stands for: a `Backbone`, or the class of a network.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(found, Backbone):
        return found
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"it must be a Backbone, or a class of nn.Module that is called with settings, shape and classes, got "
            f"{found!r}"
        )
    return Backbone(plugin_networks.settings_of(found), partial(_build_plugin, found, origin.place), from_factory=True)


def _build_plugin(
    make: type[nn.Module],
    place: str,
    settings: Any,
    shape: Shape,
    classes: int,
    architecture: Architecture | None,
    sites: Sites,
) -> Network:
    _refuse_architecture(settings, architecture)
    device = torch.get_default_device()
    with torch.device("cpu"):  # as a factory
        network = plugin_networks.build(make, place, settings, shape, classes, sites)
    return network.to(device)


# The built-in ones; `backbone_named` finds those of plug-ins as well.
BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "convnet": Backbone(
            convnet.ConvNetSettings, _build_convnet, convnet.stages, _scaled_convnet, _neighbors_of_convnet
        ),
        "inception": Backbone(InceptionSettings, _build_inception, masks_convolutions=False),
        "module": Backbone(ModuleSettings, _build_module, from_factory=True),
        "resnet": Backbone(ResNetSettings, _build_resnet, skippable=True),
    }
)


CHOICES: Choices[Backbone] = Choices(
    "backbone", BACKBONES, _read, settings_of=lambda backbone: backbone.settings, key="backbone.name"
)


def backbone_named(name: Any) -> Backbone:
    """Return the backbone of a name; a plug-in is imported.

    Raises:
        Conflict: There is none of that name, or the plug-in cannot be imported or is no backbone.
    """
    return CHOICES.named(name)


def backbone_of(settings: Any) -> Backbone:
    """Return the backbone that settings are of.

    Raises:
        ValueError: They are the settings of no registered backbone.
    """
    return CHOICES.of(settings)


def name_of(settings: Any) -> str:
    """Return the registered name of a backbone's settings.

    Raises:
        ValueError: They are the settings of no registered backbone.
    """
    return CHOICES.name_of(settings)


def runs_code_of_others(settings: Any) -> bool:
    """Return whether code outside of this package makes the network: a factory or a plug-in.

    Args:
        settings: Of a backbone.
    """
    return isinstance(settings, ModuleSettings) or name_of(settings) not in BACKBONES


def dense_of(stages: Sequence[Stage]) -> Architecture:
    """Return the architecture with one cluster over all stages."""
    return dense_architecture([stage.name for stage in stages], [stage.width for stage in stages])


def require_blocks(settings: Any, wanted: str) -> None:
    """Refuse what only a network of blocks that can be skipped can have.

    Args:
        settings: Of a backbone.
        wanted: What is asked of it, the beginning of the message.

    Raises:
        ValueError: The backbone has no such blocks.
    """
    name = name_of(settings)
    if not backbone_of(settings).skippable:
        able = " or ".join(other for other, backbone in BACKBONES.items() if backbone.skippable)
        raise ValueError(f"{wanted} needs a backbone whose blocks can be skipped, {able}; got {name}")


def require_masked(settings: Any, masked: str | Sequence[str], *, branched: bool = False) -> None:
    """Refuse layers that Blockout cannot mask on a backbone.

    Args:
        settings: Settings of a backbone.
        masked: Layers that are to be masked, as in the settings of Blockout.
        branched: Whether branches are derived from them, for which they must be the last ones without a gap.

    Raises:
        ValueError: The backbone lacks one of these layers, its weights cannot be masked, or there is a gap.
    """
    name = name_of(settings)
    # Every backbone has a head, and it is what comes last. What a factory makes is not built to check settings.
    if masked in ("head", "all") or backbone_of(settings).from_factory:
        return
    connections = _connections_of(settings)
    try:
        found = masked_connections(connections, masked, network=name)
    except ValueError as error:
        raise ValueError(f"method.{error}") from None
    known = maskable_layers(connections)
    chosen = {layer for connection in found for layer in connection.targets}
    gaps = [layer for layer in known[min(map(known.index, chosen)) :] if layer not in chosen]
    if branched and gaps:
        raise ValueError(
            f"method.masked: branches are derived from layers that are masked without a gap up to the classes, so "
            f"{' and '.join(gaps)} must be named too, got {[*masked]}; name them or leave out the distillation"
        )


def _connections_of(settings: Any) -> tuple[Connection, ...]:
    """Return the connections of the network for images of some shape: their layers are those for images of any shape.

    The network has no values, so that neither memory nor random numbers are used.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return backbone_of(settings).build(settings, (3, 64, 64), 2, None, Sites()).connections


def require_site(settings: Any, method: str, site: str, placement: str | None) -> None:
    """Refuse a method that enters a network where a backbone does not know its layers.

    Args:
        settings: Of a backbone.
        method: Name of the method, for the message.
        site: Where it enters, as in `Method.site`.
        placement: Which linear layers it is for, of a method that has this setting.

    Raises:
        ValueError: A factory makes the network, and the method enters elsewhere than at its classes layer.
    """
    name = name_of(settings)
    if not backbone_of(settings).from_factory:
        return
    if site == "maps":
        raise ValueError(
            f"method.name: {method} stands between the stages of a network, which the backbone {name} does not know, "
            f"got {method}; use none, blockout, or dropout or dropconnect with the placement classifier"
        )
    if site in ("nodes", "weights") and placement != "classifier":
        raise ValueError(
            f"method.placement: on the backbone {name}, only the classifier is known to {method}, got {placement!r}; "
            "set it to classifier"
        )


def require_hidden_layer(settings: Any, method: str) -> None:
    """Refuse a method that belongs to hidden layers where the head has none.

    Args:
        settings: Of a backbone.
        method: Its name, for the message.

    Raises:
        ValueError: The backbone has no fully connected hidden layer.
    """
    if not backbone_of(settings).from_factory and not getattr(settings, "hidden", ()):
        raise ValueError(
            f"method.placement: {method} with the placement hidden needs a backbone with a hidden layer; "
            f"got {name_of(settings)} with hidden: []; give the backbone hidden layers, or set the placement to "
            "classifier"
        )


def stages_of(settings: Any, shape: Shape, classes: int) -> Sequence[Stage]:
    """Return the stages from which a backbone is built.

    Raises:
        ValueError: It is not built from stages.
    """
    stages = backbone_of(settings).stages
    if stages is None:
        name = name_of(settings)
        able = " or ".join(other for other, backbone in BACKBONES.items() if backbone.stages)
        raise ValueError(f"only a backbone that is built from stages has some, {able}; got {name}")
    return stages(settings, shape, classes)


def scaled_to(settings: Any, macs: int, shape: Shape, classes: int) -> Any:
    """Return the settings scaled to given MACs: all widths times one factor, then one node more or less.

    Args:
        settings: Of a backbone that has stages.
        macs: Multiply-accumulates an image to come near to, 1 or more.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """
    backbone = backbone_of(settings)
    if backbone.scaled is None or backbone.neighbors is None:
        raise ValueError(f"backbone {name_of(settings)!r} has no single width that can be scaled")

    def error(candidate: Any) -> int:
        stages = stages_of(candidate, shape, classes)
        return abs(macs_of(dense_of(stages), stages, shape[0]) - macs)

    # Factors up to 2. Whole widths change in jumps; a node more or less in one layer comes closer than any factor.
    scaled = min((backbone.scaled(settings, step / 512) for step in range(1, 1025)), key=error)
    return min([scaled, *backbone.neighbors(scaled)], key=error)
