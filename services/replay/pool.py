"""The pool of recorded trials: for each proposal of a replay, the nearest one is used instead of training."""

import json
import math
from collections.abc import Iterable, Sequence

from services.trial_record import Trial


def distance(a: Trial, b: Trial) -> float:
    """Return the distance between the parameters of two trials, in [0, 1]: Gower's, with equal weights.

    It is the mean over all parameters that at least one of the trials has. For a number, the distance is the difference
    as a share of the searched range, on a logarithmic scale if it was searched on one; for a categorical value it is 0
    if equal and 1 otherwise; for a parameter that only one of the trials has it is 1. It is 0 without any parameters.

    References:
        J. C. Gower, "A general coefficient of similarity and some of its properties", Biometrics 27, 1971.
    """
    names = a.values.keys() | b.values.keys()
    # `fsum` is exact: a set of names has no order, and rounding must not decide which trial is nearest.
    return math.fsum(_distance_in(name, a, b) for name in names) / len(names) if names else 0.0


def nearest(proposal: Trial, pool: Sequence[Trial], among: Iterable[int]) -> tuple[int, float]:
    """Return the index in the pool of the trial nearest to a proposal, and its distance; ties go to the lowest index.

    Args:
        proposal: The proposed trial.
        pool: The recorded trials.
        among: Indices of the trials to choose from, at least one.
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
    # A range may depend on other parameters, so that `b` may lie outside of that of `a`: hence at most 1.
    return min(1.0, abs(scale(one) - scale(other)) / span) if span > 0 else 1.0
