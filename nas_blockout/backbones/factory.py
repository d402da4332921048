"""Factories of networks: imported by name from a package or a file, called, and every failure told at its line."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from nas_blockout.plugins.named_code import beside, file_of, load_named, name_of_module, told
from nas_blockout.serialization import near
from nas_blockout.settings_fields import Conflict

FORM_EXAMPLE = "torchvision.models:resnet18"
_KEY, _ARGUMENTS = "backbone.factory", "backbone.arguments"


def load_factory(factory: str) -> Callable[..., Any]:
    """Import a factory.

    Args:
        factory: ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        Conflict: The module cannot be imported, it has no such name, or what it has cannot be called.
    """
    found = load_named(factory, key=_KEY)
    if not callable(found):
        place, _, name = factory.rpartition(":")
        raise Conflict(
            f"{_KEY}: must be a function or a class that makes the network, got {name!r} of {place}, a value of type "
            f"{type(found).__name__}",
            _KEY,
        )
    return found  # type: ignore[no-any-return]  # `callable` has just said so


def call_factory(factory: str, arguments: Mapping[str, Any], classes: int) -> nn.Module:
    """Return the network that a factory makes.

    Args:
        factory: As of `load_factory`.
        arguments: Keyword arguments. ``num_classes`` is added if the factory has a parameter of this name.
        classes: Number of classes of the data.

    Raises:
        Conflict: The factory cannot be imported, does not take these arguments, fails, or makes no network.
    """
    with torch.device("cpu"):  # what a module computes when it is imported has values, wherever networks are made
        make = load_factory(factory)
    parameters = _parameters(make)
    if parameters is not None and "num_classes" in parameters:
        arguments = {"num_classes": classes, **arguments}
    _require_taken(factory, make, arguments)
    try:
        with beside(file_of(factory)):
            network = make(**arguments)
    except (Exception, SystemExit) as error:
        raise Conflict(f"{_KEY}: {factory} failed: {told(error)}", _KEY, _ARGUMENTS) from error
    if not isinstance(network, nn.Module):
        raise Conflict(f"{_KEY}: {factory} must return an nn.Module, got {type(network).__name__}", _KEY, _ARGUMENTS)
    return network


_OUTLINED: set[str] = set()


def note_outlined(factory: str) -> None:
    """Note that a factory has been called where tensors have no values, of which it may have kept some."""
    _OUTLINED.add(factory)


def forget_outlined(factory: str) -> bool:
    """Forget the module of a factory that has been called where tensors have no values.

    A module may keep what it has computed once, such as a table of positions; where that was on ``meta`` the network
    fails when it is given values.

    Args:
        factory: As of `load_factory`.

    Returns:
        Whether there was such a call, and the module is a file, which will run again when it is next asked for.
    """
    file = file_of(factory)
    if factory not in _OUTLINED or file is None or not file.is_file():
        return False
    _OUTLINED.remove(factory)
    return sys.modules.pop(name_of_module(file), None) is not None


def several_inputs(module: nn.Module) -> str | None:
    """Return why the forward of a network cannot be called with images alone, with its line; None where it can."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]
    if len(needed) < 2:
        return None
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    place = f" at {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    return (
        f"a network must take one input, a batch of images; {type(module).__name__}.forward{place} takes several: "
        f"{', '.join(needed)}. Wrap it in a module whose forward takes the images, or give the others defaults"
    )


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # some that are written in C have none
        return None


def _require_taken(factory: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    parameters = _parameters(make)
    if parameters is None:
        return
    named = {name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [] if takes_any else [name for name in arguments if name not in named]
    if unknown:
        known = near(unknown[0], named) if named else "it takes none"
        raise Conflict(f"{_ARGUMENTS}: {factory} takes no argument {unknown[0]!r}; {known}", _ARGUMENTS, _KEY)
    missing = [
        name for name in parameters if name in named - {*arguments} and parameters[name].default is inspect._empty
    ]
    if missing:
        raise Conflict(
            f"{_ARGUMENTS}: {factory} needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}",
            _ARGUMENTS,
            _KEY,
        )
