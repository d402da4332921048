"""What settings are made of: variables with their documentation, the error of a bad value, and how values are read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "NAS_BLOCKOUT_"
MAX_WHOLE = 10**9
_MAX_DIGITS = 12
_MOST_SHOWN = 80


class SettingsError(ValueError):
    """An environment variable is invalid: the message has its name, the rule, its value unless secret, and a remedy."""


@dataclass(frozen=True, slots=True)
class Variable:
    """Documentation of an environment variable.

    Args:
        name: Name of the variable.
        description: What it sets, in Markdown.
        default: Description of the default.
    """

    name: str
    description: str
    default: str


def masked(url: str) -> str:
    """Return a URL with passwords masked, also those in its query."""
    # Up to the last @: a password may contain one, too.
    shown = re.sub(r"(://[^:/@\s]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(?i)(\w*(?:password|passwd|token|secret)\w*=)[^&\s]*", r"\1***", shown)


def whole(values: Mapping[str, str], variable: str, default: int, *, most: int = MAX_WHOLE) -> int:
    """Return a whole number in ``[1, most]``, or the default for an empty variable.

    Raises:
        SettingsError: It is anything else.
    """
    text = values.get(PREFIX + variable, "").strip()
    if not text:
        return default
    # Cut before it is converted: Python takes quadratic time for a number of many digits, and refuses 4,300 of them.
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:_MAX_DIGITS]) <= most:
        raise SettingsError(f"{PREFIX}{variable} must be a whole number in [1, {most}], got {text[:40]!r}")
    return int(text)


def limit(values: Mapping[str, str], variable: str, *, most: int = MAX_WHOLE) -> int | None:
    """Return a whole number in ``[1, most]``, or None for an empty variable; raises as `whole`."""
    return whole(values, variable, 1, most=most) if values.get(PREFIX + variable, "").strip() else None


def page(values: Mapping[str, str], variable: str) -> str | None:
    """Return the URL of a page without a slash at its end, or None for an empty variable.

    Raises:
        SettingsError: It is no URL, or has a password, a query or a fragment.
    """
    text = values.get(PREFIX + variable, "").strip().rstrip("/")
    if not text:
        return None
    if not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", text):
        raise SettingsError(
            f"{PREFIX}{variable} must be a URL such as http://127.0.0.1:5000, without a password, got {masked(text)!r}"
        )
    return text


def listed(values: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """Return the values that a variable lists, separated by commas."""
    parts = (part.strip() for part in values.get(PREFIX + variable, "").split(","))
    return tuple(part for part in parts if part)


def one_of(values: Mapping[str, str], variable: str, known: tuple[str, ...]) -> str:
    """Return a value that is one of the known ones, the first of them for an empty variable.

    Raises:
        SettingsError: It is anything else.
    """
    text = values.get(PREFIX + variable, "").strip()
    if text and text not in known:
        raise SettingsError(f"{PREFIX}{variable} must be one of {', '.join(known)}, got {text[:_MOST_SHOWN]!r}")
    return text or known[0]


def pairs(values: Mapping[str, str], variable: str, example: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs ``name=value`` that a variable lists; the value may have further signs of equality.

    Raises:
        SettingsError: One of them has no name, or no value.
    """
    found = []
    for part in listed(values, variable):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if not name or not value:
            raise SettingsError(
                f"{PREFIX}{variable} must be pairs such as {example}, separated by commas, got {part[:_MOST_SHOWN]!r}"
            )
        found.append((name, value))
    return tuple(found)
