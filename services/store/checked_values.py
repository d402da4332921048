"""What may go into the store: finite numbers, texts that every database takes, and words that are known."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

MOST = 2**63 - 1
NON_FINITE = "non_finite"


def finite(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as JSON can hold it: what is no finite number becomes None, and its place is named.

    Args:
        document: Plain JSON types, tuples, and numbers of any kind.

    Returns:
        The document; if anything was replaced, its key ``non_finite`` says what stood where, such as
        ``{"telemetry.entropy.3": "nan"}``.
    """
    replaced: dict[str, str] = {}
    clean = {str(key): _finite(value, str(key), replaced) for key, value in document.items()}
    return clean | {NON_FINITE: replaced} if replaced else clean


def exact(what: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that must be kept as it is, as JSON can hold it.

    Raises:
        ValueError: It holds a number that is not finite.
    """
    replaced: dict[str, str] = {}
    clean = {str(key): _finite(value, str(key), replaced) for key, value in document.items()}
    if replaced:
        place, value = next(iter(replaced.items()))
        raise ValueError(f"{what} must hold finite numbers only, got {place}={value}")
    return clean


def _finite(value: Any, place: str, replaced: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        replaced[place] = str(float(value))
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item, f"{place}.{key}", replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{place}.{index}", replaced) for index, item in enumerate(value)]
    return storable(value) if isinstance(value, str) else value


def storable(text: str) -> str:
    """Return a text without what PostgreSQL does not take: NUL and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """Return a value that is one of those known.

    Raises:
        ValueError: It is not.
    """
    choices = tuple(known)
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}, got {value!r}")
    return value


def count(what: str, value: int) -> int:
    """Return a whole number in ``0..2**63-1``, which is what the databases hold.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not 0 <= value <= MOST or int(value) != value:
        raise ValueError(f"{what} must be a whole number in 0..2**63-1, got {value!r}")
    return int(value)


def amount(what: str, value: float) -> float:
    """Return a finite number that is not negative.

    Raises:
        ValueError: It is not.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} must be a finite number and not negative, got {value!r}")
    return float(value)
