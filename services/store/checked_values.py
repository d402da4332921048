"""Checks and conversions of values before they are stored: numbers, strings and names of states."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_INTEGER = 2**63 - 1
NON_FINITE = "non_finite"
EPOCH_COLUMNS = ("epoch", "stage", "sample_passes", "seconds")
_SUSPECT = re.compile(r"\\u(0000|d[89a-f])")  # how `json` writes a NUL character and surrogates, in pairs or alone


def replace_non_finite(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that JSON can represent: numbers that are not finite become None, and their places are listed.

    Args:
        document: Plain JSON types and tuples; floats may be NaN or infinite.

    Returns:
        The document. If anything was replaced, its key ``non_finite`` maps each place to what was there, such as
        ``{"telemetry.entropy.3": "nan"}``.
    """
    if (plain := _as_plain(document)) is not None:
        return plain
    replaced: dict[str, str] = {}
    clean = {str(key): _finite(value, str(key), replaced) for key, value in document.items()}
    return clean | {NON_FINITE: replaced} if replaced else clean


def require_finite(what: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that JSON can represent without a change.

    Raises:
        ValueError: It contains a number that is not finite.
    """
    if (plain := _as_plain(document)) is not None:
        return plain
    replaced: dict[str, str] = {}
    clean = {str(key): _finite(value, str(key), replaced) for key, value in document.items()}
    if replaced:
        place, value = next(iter(replaced.items()))
        raise ValueError(f"{what} must contain only finite numbers, got {place}={value}")
    return clean


def _as_plain(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a document that needs no change, in plain JSON types; None if it may need one.

    Almost no document does, and `json` finds that out many times faster than a look at each value.
    """
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError):  # not finite, or of a type that `json` does not know
        return None
    if _SUSPECT.search(text):
        return None
    plain: dict[str, Any] = json.loads(text)
    return plain


def _finite(value: Any, place: str, replaced: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        replaced[place] = str(float(value))  # "nan", "inf" or "-inf", also of a NumPy number
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item, f"{place}.{key}", replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{place}.{index}", replaced) for index, item in enumerate(value)]
    return storable(value) if isinstance(value, str) else value


def storable(text: str) -> str:
    """Return a string without what PostgreSQL cannot store: NUL characters and lone surrogates are replaced."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """Return a value that is one of the known ones.

    Raises:
        ValueError: It is anything else.
    """
    choices = tuple(known)
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}, got {value!r}")
    return value


def whole_number(what: str, value: int) -> int:
    """Return a whole number in ``[0, 2**63 - 1]``, the range of the databases' columns.

    Raises:
        ValueError: It is anything else.
    """
    # True is an int in Python, but never meant as a number here.
    if isinstance(value, bool) or not 0 <= value <= MAX_INTEGER or int(value) != value:
        raise ValueError(f"{what} must be a whole number in [0, 2**63 - 1], got {value!r}")
    return int(value)


def non_negative(what: str, value: float) -> float:
    """Return a finite number that is 0 or more.

    Raises:
        ValueError: It is anything else.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} must be a finite number of 0 or more, got {value!r}")
    return float(value)


def epoch_values(trial: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an epoch from what a worker has recorded.

    Raises:
        ValueError: The record lacks a required key, or its value is out of range.
    """
    if missing := {"epoch", "sample_passes", "seconds"} - set(record):
        raise ValueError(
            f"an epoch record must have epoch, sample_passes and seconds, this one lacks {', '.join(missing)}"
        )
    return {
        "trial_id": trial,
        "epoch": whole_number("epoch", record["epoch"]),
        "stage": str(record.get("stage", "train")),
        "sample_passes": whole_number("sample_passes", record["sample_passes"]),
        "seconds": non_negative("seconds", record["seconds"]),
        "metrics": replace_non_finite({key: value for key, value in record.items() if key not in EPOCH_COLUMNS}),
    }


def check_end(trial: int, state: str, score: float | None, reason: str | None) -> None:
    """Require of the end of a trial what its state needs.

    Raises:
        ValueError: A complete trial without a finite score, or a failed one without a reason.
    """
    if score is not None and not math.isfinite(score):
        raise ValueError(f"the score of trial {trial} must be finite, got {score}; finish it as failed, with a reason")
    if state == "complete" and score is None:
        raise ValueError(f"a complete trial must have a score, trial {trial} has none")
    if state == "failed" and not reason:
        raise ValueError(f"a failed trial must have a reason, trial {trial} has none")
