"""The methods: what happens to a network in training. One file each, one row in `METHODS`.

A method is a frozen dataclass of settings, its mathematics as functions, and a thin layer that takes the settings.
Layers are called as ``layer(x, generator)``; in training they need the generator, in eval they draw nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.blockout import BlockoutSettings
from nas_blockout.methods.dropblock import DropBlock, DropBlockSettings
from nas_blockout.methods.dropcluster import DropCluster, DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from nas_blockout.methods.none import NoneSettings
from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings
from nas_blockout.serialization import from_json, near, to_json

__all__ = ["METHODS", "Method", "NoneSettings", "Site", "method_from_json", "method_name", "method_to_json"]

Site = Literal["none", "nodes", "maps", "weights", "structure", "paths"]


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Args:
        settings: Frozen dataclass of its settings, all with defaults.
        site: Where it enters a network: ``nodes``, a layer before every linear layer of the head, input
            ``(batch, features)``; ``maps``, a layer after every convolution stage, input
            ``(batch, channels, height, width)``; ``weights``, a wrapper of every linear layer of the head;
            ``structure`` and ``paths``, a wrapper of the whole network; ``none``, nowhere.
        layer: Builds the layer from the settings (for ``weights``: from the settings and the linear layer), or None.
    """

    settings: type
    site: Site
    layer: Callable[..., nn.Module] | None


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "none": Method(NoneSettings, "none", None),
        "dropout": Method(DropoutSettings, "nodes", Dropout),
        "spatial_dropout": Method(SpatialDropoutSettings, "maps", SpatialDropout),
        "dropconnect": Method(DropConnectSettings, "weights", DropConnect),
        "dropblock": Method(DropBlockSettings, "maps", DropBlock),
        "dropcluster": Method(DropClusterSettings, "maps", DropCluster),
        "blockout": Method(BlockoutSettings, "structure", None),
        "blockdrop": Method(BlockDropSettings, "paths", None),
    }
)


def method_from_json(document: Mapping[str, Any]) -> Any:
    """Return the settings of a registered method.

    Args:
        document: ``{"name": name, setting: value, ...}``; settings that are missing keep their defaults.

    Raises:
        ValueError: The name is missing or unknown, a setting is unknown, has the wrong type or is out of range; the
            message names it, its value and the nearest known name.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"method must be a mapping with a name, such as {{'name': 'dropout'}}, got {document!r}")
    values = dict(document)
    if "name" not in values:
        raise ValueError(f"method.name is required; known are {', '.join(sorted(METHODS))}")
    name = values.pop("name")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method.name: no such method {name!r}; {near(str(name), METHODS)}")
    return from_json(METHODS[name].settings, values, where="method")


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
    for name, method in METHODS.items():
        if method.settings is type(settings):
            return name
    known = ", ".join(method.settings.__name__ for method in METHODS.values())
    raise ValueError(f"method must be the settings of a registered method, one of {known}; got {settings!r}")
