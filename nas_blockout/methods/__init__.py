"""The methods: what happens to a network in training. One file each, one row in `METHODS`.

A method is a frozen dataclass of settings, its mathematics as functions, and a thin layer that takes the settings.
Layers are called as ``layer(x, generator)``; in training they need the generator, in eval they draw nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from nas_blockout.methods import blockdrop
from nas_blockout.methods.dropblock import DropBlock, DropBlockSettings
from nas_blockout.methods.dropcluster import DropCluster, DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from nas_blockout.methods.memberships.blockout_settings import BRANCH, PAPER, PRETRAINED, BlockoutSettings
from nas_blockout.methods.none import NoneSettings
from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.installed import Origin
from nas_blockout.serialization import from_json, near, to_json

__all__ = [
    "METHODS",
    "Method",
    "NoneSettings",
    "Preset",
    "Site",
    "method_from_json",
    "method_name",
    "method_named",
    "method_of",
    "method_to_json",
    "preset_of",
]

Site = Literal["none", "nodes", "maps", "weights", "structure", "paths"]
# Of the sites that layers enter at: the setting that says where.
_PLACED_BY: Mapping[str, str] = MappingProxyType({"nodes": "placement", "weights": "placement", "maps": "last_stages"})
_EXAMPLES = MappingProxyType({"placement": "DropoutSettings", "last_stages": "SpatialDropoutSettings"})


@dataclass(frozen=True, slots=True)
class Preset:
    """A named recipe: settings of a method, with what they ask of the rest. What a study sets itself has precedence.

    Args:
        settings: Settings of the method.
        backbone: Defaults of the backbone's settings under this method, for backbones that have such settings.
        distillation: Defaults of the distillation's settings, if there is a distillation.
    """

    settings: Any
    backbone: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """One method; a plug-in is one of these, with a layer.

    Args:
        settings: Frozen dataclass of its settings, all with defaults.
        site: Where it enters a network: ``nodes``, a layer before linear layers of the head, input
            ``(batch, features)``; ``maps``, a layer after every convolution stage, input
            ``(batch, channels, height, width)``; ``weights``, a wrapper of linear layers of the head;
            ``structure`` and ``paths``, a wrapper of the whole network; ``none``, nowhere. Which linear layers or
            stages, the settings ``placement`` and ``last_stages`` say.
        layer: Builds the layer from the settings (for ``weights``: from the settings and the linear layer), or None.
        presets: Its recipes by name, the default first; none if its settings need none.
    """

    settings: type
    site: Site
    layer: Callable[..., nn.Module] | None
    presets: Mapping[str, Preset] = field(default_factory=dict)


# The first preset is the default. `paper` holds the defaults of version 1, too: upgraded study files name it.
_BLOCKOUT = {
    # Masked weights give small logits; normalized, they learn at the rates that suit the plain network.
    "compress": Preset(BlockoutSettings(), {"normalize_logits": True}, {"trim_by": "magnitude"}),
    "paper": Preset(PAPER, {}, {"trim_by": "probability"}),
    "branch": Preset(BRANCH, {"normalize_logits": True}, {"trim_by": "magnitude"}),
    # What has been learned ranks the nodes, down to the target and no further; most of the epochs train what is left.
    "pretrained": Preset(PRETRAINED, {}, {"trim_by": "probability", "fill_target": True, "learn_fraction": 0.25}),
}

# What is derived are widths and branches that could be chosen; trimmed by magnitude, it would be other nodes.
_DARTS = {"search": Preset(DartsSettings(), {"normalize_logits": True}, {"trim_by": "probability"})}

_BLOCKDROP = {"short": Preset(blockdrop.BlockDropSettings()), "paper": Preset(blockdrop.PAPER)}

# The built-in ones; `method_named` finds those of plug-ins as well.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "none": Method(NoneSettings, "none", None),
        "dropout": Method(DropoutSettings, "nodes", Dropout),
        "spatial_dropout": Method(SpatialDropoutSettings, "maps", SpatialDropout),
        "dropconnect": Method(DropConnectSettings, "weights", DropConnect),
        "dropblock": Method(DropBlockSettings, "maps", DropBlock),
        "dropcluster": Method(DropClusterSettings, "maps", DropCluster),
        "blockout": Method(BlockoutSettings, "structure", None, _BLOCKOUT),
        "darts": Method(DartsSettings, "structure", None, _DARTS),
        "blockdrop": Method(blockdrop.BlockDropSettings, "paths", None, _BLOCKDROP),
    }
)


def _read(found: Any, origin: Origin) -> Method:
    """Return the method that a plug-in stands for.

    Raises:
        ValueError: It is none, or lacks the setting that says where it enters a network.
    """
    if not isinstance(found, Method):
        raise ValueError(f"it must be a Method, got {found!r}")
    if found.layer is None or found.site not in _PLACED_BY:
        raise ValueError(
            f"it must have a layer, and one of the sites {', '.join(_PLACED_BY)}, got the site {found.site}"
            f"{'' if found.layer else ' without a layer'}"
        )
    needed, names = _PLACED_BY[found.site], {item.name for item in fields(found.settings)}
    if needed not in names:
        raise ValueError(f"the settings of a method for {found.site} must have {needed}, as in {_EXAMPLES[needed]}")
    return found


CHOICES: Choices[Method] = Choices(
    "method", METHODS, _read, settings_of=lambda method: method.settings, key="method.name"
)


def method_named(name: Any) -> Method:
    """Return the method of a name; a plug-in is imported.

    Raises:
        Conflict: There is none of that name, or the plug-in cannot be imported or is no method.
    """
    return CHOICES.named(name)


def method_of(settings: Any) -> Method:
    """Return the method that settings are of.

    Raises:
        ValueError: They are the settings of no registered method.
    """
    return CHOICES.of(settings)


def method_from_json(document: Mapping[str, Any]) -> Any:
    """Return the settings of a registered method.

    Args:
        document: ``{"name": name, setting: value, ...}``; settings that are missing have the values of the preset that
            it names under ``preset``, or their defaults.

    Raises:
        ValueError: The name is missing or unknown, a setting is unknown, has the wrong type or is out of range; the
            message names it, its value and the nearest known name.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"method must be a mapping with a name, such as {{'name': 'dropout'}}, got {document!r}")
    values = dict(document)
    if "name" not in values:
        raise ValueError(f"method.name is required; known are {', '.join(sorted(METHODS))}")
    kind = method_named(values.pop("name")).settings
    preset = preset_of(document)
    if "preset" in values and preset is not None:
        del values["preset"]
        values = {**to_json(preset.settings), **values}
    return from_json(kind, values, where="method")


def preset_of(document: Mapping[str, Any]) -> Preset | None:
    """Return the preset that the settings of a method name, or its default one; None of a method without presets.

    Args:
        document: ``{"name": name, "preset": preset, setting: value, ...}`` of a registered method.

    Raises:
        ValueError: The method has presets, but none of that name.
    """
    presets = method_named(document["name"]).presets
    if not presets:
        return None
    name = document.get("preset", next(iter(presets)))
    if name not in presets:
        raise ValueError(f"method.preset: no such preset {name!r}; {near(str(name), presets)}")
    return presets[name]


def method_to_json(settings: Any) -> dict[str, Any]:
    """Return ``{"name": name, setting: value, ...}`` of the settings of a registered method.

    Raises:
        ValueError: They are the settings of no registered method.
    """
    return {"name": method_name(settings), **to_json(settings)}


def method_name(settings: Any) -> str:
    """Return the registered name of a method's settings.

    Raises:
        ValueError: They are the settings of no registered method.
    """
    return CHOICES.name_of(settings)
