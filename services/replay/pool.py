"""Recorded trials as a pool that answers proposals: each once, the nearest first."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.search import Entry

Parameters = Mapping[str, Mapping[str, Any]]  # `values` and `distributions` by name, as the store keeps them
_NOTHING: Parameters = {"values": {}, "distributions": {}}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A search trial that really ran.

    Args:
        entry: What it was and what it ended in.
        seconds: How long it trained.
    """

    entry: Entry
    seconds: float


def distance(a: Parameters | None, b: Parameters | None) -> float:
    """Return how far two trials lie apart in the space that was searched, in 0..1.

    Every parameter that one of them has counts alike. Numbers lie apart by their difference as a share of the range
    that was searched, on a logarithmic scale where it was searched so; choices by 0 if they are the same, else by 1; a
    parameter that only one of them has by 1. Two trials without parameters are the same.

    References:
        J. C. Gower, "A general coefficient of similarity and some of its properties", Biometrics 27, 1971.
    """
    a, b = a or _NOTHING, b or _NOTHING
    names = a["values"].keys() | b["values"].keys()
    return math.fsum(_apart(name, a, b) for name in names) / len(names) if names else 0.0


def nearest(parameters: Parameters | None, pool: Sequence[Recorded], among: Iterable[int]) -> tuple[int, float]:
    """Return the place of the recorded trial nearest to a proposal, the first of equals, and its distance.

    Args:
        parameters: What was proposed.
        pool: The recorded trials.
        among: Places that may be returned, at least one.
    """
    found = ((distance(parameters, pool[place].entry.parameters), place) for place in among)
    apart, place = min(found)
    return place, apart


def _apart(name: str, a: Parameters, b: Parameters) -> float:
    if name not in a["values"] or name not in b["values"]:
        return 1.0
    one, other = a["values"][name], b["values"][name]
    if one == other:
        return 0.0
    searched = json.loads(a["distributions"][name])["attributes"]
    if "choices" in searched:
        return 1.0
    scale = math.log if searched.get("log") else float
    span = scale(searched["high"]) - scale(searched["low"])
    return min(1.0, abs(scale(one) - scale(other)) / span) if span > 0 else 1.0
