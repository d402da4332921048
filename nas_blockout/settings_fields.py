"""Settings, declared once: type, range, default and sentence of every field of a frozen dataclass of settings.

A field is declared as ``rate: Annotated[float, Range(ge=0, lt=1)] = 0.5`` and described under ``Args:`` of its class.
`check` enforces the ranges when a value is built; the services read the same declarations for the checks of study
files, their JSON Schema and the reference pages. Nothing here needs more than the standard library.
"""

import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Range:
    """The range of a number, named as in pydantic and annotated-types.

    Args:
        ge: Least value.
        gt: Value that must be exceeded.
        le: Largest value.
        lt: Value that must not be reached.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and not math.isnan(value)
        )

    def __str__(self) -> str:
        """The rule in words, such as ``in [0, 1)`` or ``at least 1``."""
        low, high = self.gt if self.ge is None else self.ge, self.lt if self.le is None else self.le
        if low is None or high is None:
            rules = (("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
            return " and ".join(f"{word} {_bound(bound)}" for word, bound in rules if bound is not None)
        opening, closing = "(" if self.ge is None else "[", ")" if self.le is None else "]"
        return f"in {opening}{_bound(low)}, {_bound(high)}{closing}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """The values that a field may have, where its type says less.

    Args:
        values: The values.
        others: Form of further texts, which are checked elsewhere, such as names of plug-ins; None for none.
    """

    values: tuple[Any, ...]
    others: "Pattern | None" = None


@dataclass(frozen=True, slots=True)
class Length:
    """The number of items of a list.

    Args:
        least: Least number.
        most: Largest number; None for any.
    """

    least: int = 0
    most: int | None = None

    def __contains__(self, value: Sequence[Any]) -> bool:
        """Whether a list has as many items."""
        return self.least <= len(value) <= (len(value) if self.most is None else self.most)

    def __str__(self) -> str:
        """The rule in words."""
        return f"a list of {self.least} or more" if self.most is None else f"a list of {self.least} to {self.most}"


# A layer takes memory and time even where only its shape is known: a list of thousands would keep a service busy.
LAYERS = Length(most=64)
SOME_LAYERS = Length(1, 64)


@dataclass(frozen=True, slots=True)
class Pattern:
    """The form of a text.

    Args:
        expression: Regular expression that the whole text must match.
        shown: The form in words, such as ``last N``.
        example: A text of this form.
    """

    expression: str
    shown: str
    example: str


_NOTHING: Mapping[str, Any] = MappingProxyType({})
PLAIN = "a text, a finite number, true, false, null, or a list or mapping of these"


class PlainMapping(Mapping[str, Any]):
    """A setting that is a mapping of plain JSON values: immutable and hashable, inner lists and mappings included.

    Two are equal if they are the same JSON: the order of keys does not matter, and 1, 1.0 and true are three values.

    Args:
        values: Texts, finite numbers, truth values, None, and lists, tuples and mappings of these, by name.

    Raises:
        Conflict: A value is none of these, or a name is no text.
    """

    __slots__ = ("_text",)

    def __init__(self, values: Mapping[str, Any] = _NOTHING) -> None:
        refuse(
            Conflict(f"{dotted(path)} must be {rule}, got {value!r}", dotted(path))
            for path, rule, value in unplain(values)
        )
        self._text = json.dumps(_thawed(values), sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """Return the values as dictionaries and lists, a new copy each time."""
        values: dict[str, Any] = json.loads(self._text)
        return values

    def __getitem__(self, name: str) -> Any:
        return self.to_json()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_json())

    def __len__(self) -> int:
        return len(self.to_json())

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, PlainMapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"PlainMapping({self.to_json()!r})"


Place = tuple[str | int, ...]


def unplain(value: Any, path: Place = ()) -> Iterator[tuple[Place, str, Any]]:
    """Yield what in a value is no plain JSON: where it is, what it must be, and what it is.

    Args:
        value: Any value, such as one read from YAML, which has dates, infinities and keys that are no texts.
        path: Keys and positions that lead to the value.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from unplain(inner, (*path, key))
            else:
                yield path, "a mapping whose keys are texts", key
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            yield from unplain(inner, (*path, position))
    elif not (value is None or isinstance(value, str | bool | int)) and not (
        isinstance(value, float) and math.isfinite(value)
    ):
        yield path, PLAIN, value


def dotted(path: Place) -> str:
    """Return keys and positions as a text, such as ``widths[2]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".") or "the mapping"


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(inner) for key, inner in value.items()}
    return [_thawed(inner) for inner in value] if isinstance(value, list | tuple) else value


Rule = Range | OneOf | Length | Pattern
SEED = Range(ge=0, le=2**63 - 1)  # the largest column of the databases; torch takes one more bit


class Conflict(ValueError):
    """Settings that are valid one by one but do not fit together.

    Args:
        message: Rule, value and remedy; of several conflicts, one line for each.
        keys: Names of the settings that the rule compares, first the one to change. A section, such as ``method``,
            stands for all of its settings; without any name, the conflict may depend on every setting.
        parts: The conflicts that this one stands for; empty for a single one.
    """

    def __init__(self, message: str, *keys: str, parts: tuple["Conflict", ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys
        self.parts = parts

    @classmethod
    def of(cls, conflicts: Iterable["Conflict"]) -> "Conflict":
        """Return several conflicts as one error, so that all of them are reported at once."""
        parts = tuple(conflicts)
        return parts[0] if len(parts) == 1 else cls("\n".join(map(str, parts)), parts=parts)


def conflicts_in(error: ValueError) -> tuple[Conflict, ...]:
    """Return the conflicts that an error reports; an error without any is one conflict of unknown settings."""
    if not isinstance(error, Conflict):
        return (Conflict(str(error)),)
    return error.parts or (error,)


def refuse(conflicts: Iterable[Conflict]) -> None:
    """Raise the conflicts, all of them in one error; return if there are none.

    Raises:
        Conflict: There is a conflict.
    """
    if found := tuple(conflicts):
        raise Conflict.of(found)


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared field.

    Args:
        hint: Its type, with the rules in `Annotated`.
        default: Its default, or `dataclasses.MISSING` of a setting that must be given.
        sentence: What it is.
    """

    hint: Any
    default: Any
    sentence: str


@cache
def declared(kind: type) -> Mapping[str, Setting]:
    """Return the settings of a dataclass by name, inherited ones first.

    Raises:
        ValueError: A field has no sentence under ``Args:`` of the docstring of the class or of a parent.
    """
    hints = get_type_hints(kind, include_extras=True)
    words = {name: text for each in reversed(kind.__mro__[:-1]) for name, text in sentences(each.__doc__).items()}
    if missing := [item.name for item in fields(kind) if item.name not in words]:
        raise ValueError(f"the docstring of {kind.__name__} must describe every setting under Args: {missing} are not")
    return MappingProxyType(
        {item.name: Setting(hints[item.name], item.default, words[item.name]) for item in fields(kind)}
    )


def sentences(docstring: str | None) -> dict[str, str]:
    """Return the descriptions by name from the ``Args:`` of a docstring in Google's form."""
    section = re.search(r"^Args:\n(.*?)(?=\n\s*\n|\Z)", inspect.cleandoc(docstring or ""), re.DOTALL | re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", section.group(1), flags=re.MULTILINE)[1:] if section else []
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {name: re.sub(r"\s+", " ", text).strip().replace("``", "`") for name, text in pairs}


def check(settings: Any) -> None:
    """Check every field of a dataclass against its declaration: choices, ranges, and that numbers are finite.

    Raises:
        ValueError: A value breaks the rule of its field; the message names both.
    """
    for name, hint in _hints(settings.__class__).items():
        _check(name, hint, getattr(settings, name))


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _check(name: str, hint: Any, value: Any) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        parts = [part for part in arguments if part is not type(None)]
        if value is not None and len(parts) == 1:
            _check(name, parts[0], value)
        elif value is not None:
            _require(any(_holds(name, part, value) for part in parts), name, alternatives(hint), value)
    elif origin is Literal:
        _require(value in arguments, name, f"one of {_listed(arguments)}", value)
    elif origin is tuple:
        for item in value:
            _check(f"each of {name}", arguments[0], item)
    elif origin is Annotated:
        _check(name, arguments[0], value)
        for rule in arguments[1:]:
            _check_rule(name, rule, value)
    elif hint is float:
        _require(math.isfinite(value), name, "a finite number", value)


def alternatives(hint: Any) -> str:
    """Return what a setting of several types may be, in words, such as ``'head', 'all', 'last N' or a list of names``.

    Args:
        hint: A union of literals, of texts of a form, and of a list of names.
    """
    words: list[str] = []
    for part in get_args(hint):
        if get_origin(part) is Literal:
            words += map(repr, get_args(part))
        else:
            rule = next((rule for rule in get_args(part)[1:] if isinstance(rule, Pattern)), None)
            words.append(repr(rule.shown) if rule else "a list of names")
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _holds(name: str, hint: Any, value: Any) -> bool:
    """Whether a value is of one of the types of a union and keeps its rules."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    types = (tuple, list) if get_origin(kind) is tuple else kind  # where a list stands alone, either will do as well
    if get_origin(kind) is not Literal and not isinstance(value, types):
        return False
    try:
        _check(name, hint, value)
    except ValueError:
        return False
    return True


def _check_rule(name: str, rule: Rule, value: Any) -> None:
    if isinstance(rule, Pattern):
        _require(re.fullmatch(rule.expression, value) is not None, name, rule.shown, value)
    elif isinstance(rule, Range):
        _require(value in rule, name, str(rule), value)
    elif isinstance(rule, OneOf):
        other = rule.others is not None and isinstance(value, str) and re.fullmatch(rule.others.expression, value)
        _require(value in rule.values or bool(other), name, f"one of {_listed(rule.values)}", value)
    else:
        _require(value in rule, name, str(rule), value)


def _require(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        shown = repr(value) if isinstance(value, str) else f"{name.removeprefix('each of ')}={value!r}"
        raise ValueError(f"{name} must be {rule}, got {shown}")


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


def _bound(value: float) -> str:
    return "2**63-1" if value == 2**63 - 1 else f"{value:g}"
