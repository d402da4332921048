"""Frozen settings to and from plain JSON types, with errors that name the key, the value, the rule and a near match."""

import difflib
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nas_blockout.settings_fields import Conflict, PlainMapping, conflicts_in, dotted, unplain

Value = TypeVar("Value")


def to_json(value: Any) -> dict[str, Any]:
    """Return a frozen dataclass of plain values as a dictionary; tuples become lists."""
    assert is_dataclass(value)
    return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}


def from_json(kind: type[Value], document: Mapping[str, Any], *, where: str) -> Value:
    """Build a frozen dataclass from a dictionary.

    Args:
        kind: Dataclass whose fields are numbers, texts, truth values, `Literal`, tuples of these, optional, or a
            `PlainMapping`.
        document: Values by field name; fields with a default may be missing.
        where: Name of the place, for errors, such as ``training``.

    Raises:
        ValueError: A key is unknown or missing, a value has the wrong type, or the dataclass refuses it.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"{where} must be a mapping of settings, got {document!r}")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # a dataclass type, by contract
    for key in document:
        if key not in known:
            raise ValueError(f"{where}.{key}: no such setting; {near(str(key), known)}")
    for name, item in known.items():
        if item.default is MISSING and item.default_factory is MISSING and name not in document:
            raise ValueError(f"{where}.{name}: this setting is required")
    hints = get_type_hints(kind)
    values = {key: _checked(hints[key], value, f"{where}.{key}") for key, value in document.items()}
    try:
        return kind(**values)
    except ValueError as error:
        found = (
            Conflict(f"{where}: {each}", *[f"{where}.{key}" for key in each.keys] or [where])
            for each in conflicts_in(error)
        )
        raise Conflict.of(found) from None


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 node`` or ``1,024 nodes``.

    Args:
        number: How many there are.
        noun: In the singular.
        plural: Where it is more than the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def near(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    match = closest(name, names)
    return f"did you mean {match!r}?" if match else f"known are {', '.join(names)}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another, or None if none is like it."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


def _plain(value: Any) -> Any:
    if isinstance(value, PlainMapping):
        return value.to_json()
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        # A list is meant as the list that the setting may be, anything else as one of the others; the last one says no.
        fitting = [kind for kind in kinds if (get_origin(kind) is tuple) == isinstance(value, list | tuple)] or kinds
        for kind in fitting[:-1]:
            with suppress(ValueError):
                return _checked(kind, value, where)
        return _checked(fitting[-1], value, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):  # True equals 1, and would pass for it
            raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_checked(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if hint is PlainMapping:
        return _plain_mapping(value, where)
    return _scalar(hint, value, where)


def _plain_mapping(value: Any, where: str) -> PlainMapping:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping, got {value!r}")
    for path, rule, found in unplain(value):
        raise ValueError(f"{dotted((where, *path))} must be {rule}, got {found!r}")
    return PlainMapping(value)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    # YAML and JSON write 1.0 as 1; the setting, and the hash of the study, must not depend on that.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {names.get(kind, kind.__name__)}, got {value!r}")
    if kind is float and value != value:  # NaN, the only value that differs from itself
        raise ValueError(f"{where} must be a number, got {value!r}")
    return value
