"""The class of a network as a plug-in: its settings are those of its constructor, all else is found out by a try."""

from dataclasses import is_dataclass
from inspect import signature
from typing import Any, get_type_hints

from torch import nn

from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.module import ModuleNetwork, ModuleSettings, Shape, fitted
from nas_blockout.plugins.named_code import beside, file_of, told
from nas_blockout.settings_fields import Conflict, conflicts_in

_KEY, _SECTION = "backbone.name", "backbone"


def settings_of(make: type[nn.Module]) -> type:
    """Return the dataclass of the settings of a class of networks: the type of the first argument of its constructor.

    The class is called as ``make(settings, shape, classes)`` with the settings of the study, the channels, height and
    width of an image, and the number of classes, and takes a batch of images ``(batch, channels, height, width)`` to
    logits ``(batch, classes)``. Like the network of a factory it may be masked, pruned and branched if its graph can be
    traced.

    Args:
        make: The class.

    Raises:
        ValueError: Its constructor is another one.
    """
    parameters = list(signature(make.__init__).parameters)[1:]
    hints = get_type_hints(make.__init__)
    settings = hints.get(parameters[0]) if parameters else None
    if len(parameters) != 3 or not (isinstance(settings, type) and is_dataclass(settings)):
        raise ValueError(
            f"the constructor of {make.__name__} must take its settings, whose type is a dataclass, the shape of an "
            f"image and the number of classes, such as __init__(self, settings: SmallNetSettings, shape: tuple[int, "
            f"int, int], classes: int), got ({', '.join(parameters)})"
        )
    return settings


def build(make: type[nn.Module], place: str, settings: Any, shape: Shape, classes: int, sites: Sites) -> ModuleNetwork:
    """Return a network of a plug-in with one logit a class, as `nas_blockout.backbones.module.build` does.

    Args:
        make: Its class.
        place: Where the class is: ``package.module:name`` or ``path/to/file.py:name``.
        settings: Settings of the network.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        sites: Where a method enters; only at the linear layer that gives the logits.

    Raises:
        Conflict: The constructor fails, or the network does not take these images or give one logit a class.
    """
    try:
        with beside(file_of(place)):
            network = make(settings, shape, classes)
    except (Exception, SystemExit) as error:
        raise Conflict(f"{_KEY}: {place} failed: {told(error)}", _KEY, _SECTION, "data") from error
    try:
        return fitted(network, ModuleSettings(place), shape, classes, sites)
    except Conflict as error:
        raise Conflict.of(
            Conflict(_renamed(str(each)), _KEY, _SECTION, "data") for each in conflicts_in(error)
        ) from error


def _renamed(message: str) -> str:
    """Return a message about a factory or its classes layer, which a plug-in names by itself."""
    for key in ("backbone.factory", "backbone.classes_layer"):
        message = message.replace(f"{key}: ", f"{_KEY}: ", 1)
    return message
