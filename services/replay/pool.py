"""Recorded trials as a pool that answers proposals: each once, the nearest first."""

import json
import math
from collections.abc import Iterable, Sequence

from services.trial_record import Trial


def distance(a: Trial, b: Trial) -> float:
    """Return how far the parameters of two trials lie apart in the space that was searched, in [0, 1].

    Every parameter that one of them has counts alike. Numbers lie apart by their difference as a share of the range
    that was searched, on a logarithmic scale where it was searched on one; categorical values by 0 if they are the
    same, else by 1; a parameter that only one of them has by 1. Two trials without parameters are the same.

    References:
        J. C. Gower, "A general coefficient of similarity and some of its properties", Biometrics 27, 1971.
    """
    names = a.values.keys() | b.values.keys()
    return math.fsum(_distance_in(name, a, b) for name in names) / len(names) if names else 0.0


def nearest(proposal: Trial, pool: Sequence[Trial], among: Iterable[int]) -> tuple[int, float]:
    """Return the index in the pool of the trial nearest to a proposal, the first of equals, and its distance.

    Args:
        proposal: What was proposed.
        pool: The recorded trials.
        among: Indices that may be returned, at least one.
    """
    apart, index = min((distance(proposal, pool[index]), index) for index in among)
    return index, apart


def _distance_in(name: str, a: Trial, b: Trial) -> float:
    if name not in a.values or name not in b.values:
        return 1.0
    one, other = a.values[name], b.values[name]
    if one == other:
        return 0.0
    searched = json.loads(a.distributions[name])["attributes"]
    if "choices" in searched:
        return 1.0
    scale = math.log if searched.get("log") else float
    span = scale(searched["high"]) - scale(searched["low"])
    return min(1.0, abs(scale(one) - scale(other)) / span) if span > 0 else 1.0
