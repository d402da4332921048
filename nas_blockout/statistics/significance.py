"""Intervals, paired tests, verdicts: what a comparison of arms may claim, and what it may not.

Scores are higher-is-better and one seed gives one score, whatever the unit. Two rules run through the module:

- what the data cannot give is ``None``, never a number that looks like an answer: there is no interval from one
  seed, nor from seeds that all gave the same score;
- with few seeds silence is no evidence: a verdict is "no difference shown", never "equal", and it comes with the
  smallest difference that this number of seeds could have shown; two seeds show nothing, and get no such number.

Seeds that are folds of a cross-validation share images that they are trained on, so their scores vary less than those
of independent trainings would. `overlap` widens intervals and tests for that; at 0 they are those of independent seeds.

``docs/concepts/statistics.md`` says why each method was chosen; ``benchmarks/statistics_calibration.py`` measures it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

from nas_blockout.serialization import count_of

Array = NDArray[np.float64]
Interval = tuple[float, float]
Outcome = Literal["better", "worse", "no difference shown"]

FEWEST_SEEDS = 3  # for a verdict: of two seeds the spread is known to within a factor of 30 only
_CONSTANT = 1e-12  # a spread below this share of the values is rounding, not variation
_SMALLEST_P = float(np.finfo(np.float64).tiny)  # Student's p underflows to 0 for a huge t
_EXACT_SEEDS = 14  # all 2**14 sign flips are still listed; more seeds are sampled
_SIGN_FLIPS = 9_999


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean of ``n`` independent scores; ``std`` needs two of them, ``ci95`` two that differ."""

    mean: float
    std: float | None
    ci95: Interval | None
    n: int


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Variance ``between`` searches, and ``within`` one search over its retrainings; ``None`` if unknown."""

    mean: float
    between: float | None
    within: float | None
    searches: int
    retrainings: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Difference a - b over the ``n`` seeds both have; ``p_value`` is Student's, ``p_permutation`` the sign flips'.

    Seeds that overlap have no ``p_permutation``: their signs cannot be flipped each for itself.
    """

    difference: float
    std: float | None
    ci95: Interval | None
    p_value: float
    p_permutation: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One tested pair of a family. ``ci95`` is the pair's own, uncorrected; the verdict follows ``p_holm``."""

    a: str
    b: str
    test: Paired
    p_holm: float
    verdict: Outcome
    smallest_effect: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Verdicts of a family of pairs and the arms by mean, best first, or the ``reason`` why they are not ranked."""

    pairs: tuple[Pair, ...]
    ranking: tuple[str, ...] | None
    reason: str | None


def _finite(values: Sequence[float] | Array, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{name} needs a flat list of at least one value, got shape {array.shape}: give one score a seed"
        )
    if not np.isfinite(array).all():
        value = float(array[~np.isfinite(array)][0])
        raise ValueError(
            f"{name} must be finite, got {value}: leave out the seeds that diverged and count them as failed"
        )
    return array


def _spread(values: Array) -> float | None:
    if values.size < 2:
        return None
    constant = float(np.ptp(values)) <= _CONSTANT * float(np.abs(values).max())
    return 0.0 if constant else float(values.std(ddof=1))


def overlap_of_folds(folds: int | None) -> float:
    """Return how far trainings of cross-validation overlap: images held out by one over images that it is trained on.

    Args:
        folds: Number of folds, 2 or more; None for seeds that are no folds.
    """
    return 0.0 if folds is None else 1 / (folds - 1)


def inflation(n: int, overlap: float) -> float:
    r"""Return by what factor the standard error of a mean over seeds is larger than that of independent seeds.

    .. math:: \sqrt{1 + n \cdot overlap}, \quad s \sqrt{1/n + overlap} = s / \sqrt n \cdot \sqrt{1 + n \cdot overlap}

    That is so if two trainings correlate by overlap / (1 + overlap), the share of the images that each holds out. On
    test images that all share, it holds as long as the draw of the training images makes up no more of the variance
    than ``docs/concepts/statistics.md`` says.

    Args:
        n: Number of seeds.
        overlap: Images that a training holds out over those that it is trained on, 0 for independent seeds.

    Raises:
        ValueError: ``overlap`` is negative or not finite.

    References:
        Nadeau & Bengio, "Inference for the generalization error", Machine Learning 52, 2003, section 3.
    """
    if not (overlap >= 0 and math.isfinite(overlap)):
        raise ValueError(f"overlap must be finite and 0 or more, got {overlap}: for K folds it is 1 / (K - 1)")
    return math.sqrt(1 + n * overlap)


def _interval(mean: float, std: float | None, n: int, overlap: float) -> Interval | None:
    if not std:
        return None
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) * inflation(n, overlap)
    return mean - half, mean + half


def summary(per_seed: Mapping[int, float], *, bounds: Interval | None = None, overlap: float = 0.0) -> Summary:
    """Summarize the scores of one arm over its seeds.

    The interval is Student's, mean +- t(n - 1, .975) std / sqrt(n). For five seeds it keeps its 95%, where the
    bootstraps (percentile, BCa) keep 84 to 85%.

    Args:
        per_seed: score of each seed, finite.
        bounds: lowest and highest possible score, (0, 1) for accuracies; the interval is cut there.
        overlap: of the trainings behind the seeds, as in `inflation`.

    Returns:
        The summary; ``std`` is the sample's (n - 1).

    Raises:
        ValueError: if there is no seed, or a score is not finite or out of bounds.

    References:
        Student, "The probable error of a mean", Biometrika, 1908.
    """
    values = _finite(list(per_seed.values()), "a summary")
    mean, std = float(values.mean()), _spread(values)
    ci95 = _interval(mean, std, values.size, overlap)
    if bounds is not None:
        low, high = bounds
        if values.min() < low or values.max() > high:
            raise ValueError(f"scores must lie in {low}..{high}, got {values.min()}..{values.max()}: check their unit")
        ci95 = ci95 and (max(low, ci95[0]), min(high, ci95[1]))
    return Summary(mean, std, ci95, int(values.size))


def search_means(values: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """Average the retraining seeds inside each search: ``values[search][seed]`` to ``{search: mean}``.

    The means of independent searches are independent, the retrainings of one search are not. So ``summary`` and
    ``paired`` of the result are right for several searches, where pooling all retrainings would claim too much.
    """
    return {search: float(_finite(list(seeds.values()), f"search {search}").mean()) for search, seeds in values.items()}


def variance_components(values: Mapping[int, Mapping[int, float]]) -> VarianceComponents:
    """Split the variance of ``values[search][seed]`` into that of searches and that of retrainings.

    One-way random effects by analysis of variance; a negative estimate between searches is reported as 0. Searches
    may have different numbers of retrainings. ``within`` needs a search with two retrainings, ``between`` two searches.

    References:
        Searle, Casella & McCulloch, "Variance Components", Wiley, 1992, section 3.6.
    """
    groups = [_finite(list(seeds.values()), f"search {search}") for search, seeds in values.items()]
    total = _finite(np.concatenate(groups) if groups else np.empty(0), "variance components")
    sizes = np.array([group.size for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    between: float | None = None
    within: float | None = None
    if total.size > len(groups):
        within = float(sum(((group - group.mean()) ** 2).sum() for group in groups) / (total.size - len(groups)))
    if within is not None and len(groups) > 1:
        mean_square = float((sizes * (means - total.mean()) ** 2).sum() / (len(groups) - 1))
        size = (total.size - float((sizes**2).sum()) / total.size) / (len(groups) - 1)
        between = max(0.0, (mean_square - within) / size)
    return VarianceComponents(float(means.mean()), between, within, len(groups), int(total.size))


@lru_cache(maxsize=8)
def _signs(n: int) -> Array:
    if n > _EXACT_SEEDS:
        # always the same sample for n seeds: a repeated analysis gives the same p-value
        return np.random.default_rng(n).choice([-1.0, 1.0], size=(_SIGN_FLIPS, n))
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return np.where(bits, -1.0, 1.0)


def _sign_flip_p(differences: Array) -> float:
    sums = np.abs(_signs(differences.size) @ differences)
    observed = abs(float(differences.sum()))
    # Sums that differ by rounding alone count as equal.
    extreme = int((sums >= observed - 1e-9 * float(np.abs(differences).sum())).sum())
    if differences.size > _EXACT_SEEDS:
        return (extreme + 1) / (sums.size + 1)  # the observed signs are part of the sample, so p is never 0
    return extreme / sums.size


def paired(a: Mapping[int, float], b: Mapping[int, float], *, overlap: float = 0.0) -> Paired:
    """Test whether two arms differ on the seeds they share.

    ``p_value`` is two-sided, of the paired t-test, and agrees with ``ci95``: below .05 exactly when 0 is outside.
    ``p_permutation`` flips the signs of the differences in all 2^n ways (a fixed sample of 9,999 beyond 14 seeds). It
    assumes less, but cannot fall below 2 / 2^n, .0625 for five seeds: it can confirm a verdict, not give one.
    Where all differences are the same number there is no t: ``p_value`` is then ``p_permutation``. Seeds that overlap
    have the t of Nadeau and Bengio and no ``p_permutation``; of equal differences their ``p_value`` is 1.

    Args:
        a: score of each seed of the first arm.
        b: score of each seed of the second.
        overlap: of the trainings behind the seeds, as in `inflation`.

    Returns:
        The difference a - b; one shared seed gives p-values of 1 and no interval.

    Raises:
        ValueError: if they share no seed, or a score is not finite.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise ValueError(f"paired arms must share a seed, got {sorted(a)} and {sorted(b)}: retrain with the same seeds")
    first, second = (_finite([arm[seed] for seed in seeds], "a paired test") for arm in (a, b))
    differences, n = first - second, len(seeds)
    scale = max(float(np.abs(first).max()), float(np.abs(second).max()))
    if np.ptp(differences) <= _CONSTANT * scale:
        nothing = bool(np.abs(differences).max() <= _CONSTANT * scale) or overlap > 0
        p_flips = 1.0 if nothing else _sign_flip_p(differences)
        constant = float(differences.mean()), 0.0 if n > 1 else None
        return Paired(*constant, None, p_flips, None if overlap else p_flips, n)
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    p_value = max(2 * float(stdtr(n - 1, -abs(mean) / std * math.sqrt(n) / inflation(n, overlap))), _SMALLEST_P)
    p_permutation = None if overlap else _sign_flip_p(differences)
    return Paired(mean, std, _interval(mean, std, n, overlap), p_value, p_permutation, n)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p-values for their number: any false verdict in the family has a chance of at most alpha.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return tuple(corrected.tolist())


def p_text(p_value: float) -> str:
    """Write a p-value for readers, as ``p = 0.012`` or ``p < 0.0001``; never as 0."""
    return "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"


def verdict(difference: float, p_holm: float, *, alpha: float = 0.05) -> Outcome:
    """Say in words what a corrected p-value allows: "better" or "worse" at ``p_holm <= alpha``."""
    if not math.isfinite(difference) or not 0 <= p_holm <= 1:
        raise ValueError(f"a verdict needs a finite difference and p in [0, 1], got {difference} and {p_holm}")
    if p_holm > alpha or difference == 0:
        return "no difference shown"
    return "better" if difference > 0 else "worse"


def smallest_effect(
    std_of_differences: float,
    n: int,
    *,
    alpha: float = 0.05,
    comparisons: int = 1,
    power: float = 0.8,
    overlap: float = 0.0,
) -> float:
    r"""Give the smallest true difference that ``n`` shared seeds show with the given power.

    .. math:: P(T'_{n-1}(\delta \sqrt n / s) > t_{n-1, 1 - \alpha / 2m}) = power

    ``std_of_differences`` is s and ``comparisons`` m; T' is the noncentral t. Every comparison is held to the first,
    hardest step of Holm's procedure, so the true power is this or a little more. s from five seeds is itself known
    only to within a factor of .6 to 2.9: the result says "about". With ``overlap`` it is larger by `inflation`.

    Raises:
        ValueError: if a quantity is out of range.
    """
    if not (std_of_differences > 0 and math.isfinite(std_of_differences)):
        raise ValueError(f"std_of_differences must be positive and finite, got {std_of_differences}")
    if n < 2:
        raise ValueError(f"n must be at least 2 seeds, got {n}: one seed shows no effect of any size")
    if not (0 < alpha < 1 and 0.5 <= power < 1 and comparisons >= 1):
        raise ValueError(
            f"needs alpha in (0, 1), power in [.5, 1) and comparisons >= 1, got {alpha=} {power=} {comparisons=}"
        )
    critical = float(stdtrit(n - 1, 1 - alpha / (2 * comparisons)))
    # nctdtrinc inverts the noncentral t in its noncentrality, which is the effect in standard errors.
    return float(nctdtrinc(n - 1, 1 - power, critical)) * std_of_differences / math.sqrt(n) * inflation(n, overlap)


def _family(arms: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    if pairs is None:
        return list(combinations(arms, 2))
    for a, b in pairs:
        if a == b or a not in arms or b not in arms:
            raise ValueError(f"a pair names two different arms out of {sorted(arms)}, got {(a, b)}")
    if len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise ValueError(f"each pair is tested once, in one order, got {list(pairs)}")
    return list(pairs)


def _ranking(arms: Mapping[str, Mapping[int, float]]) -> tuple[tuple[str, ...] | None, str | None]:
    if len(arms) < 2:
        return None, "a ranking needs two arms"
    short = sorted(name for name, scores in arms.items() if len(scores) < 2)
    if short:
        return None, f"fewer than 2 seeds in {', '.join(short)}"
    common = sorted(set.intersection(*(set(scores) for scores in arms.values())))
    if len(common) < 2:
        return None, f"the arms share {count_of(len(common), 'seed')}, and a ranking needs 2"
    means = {name: math.fsum(scores[seed] for seed in common) for name, scores in arms.items()}
    return tuple(sorted(arms, key=lambda name: (-means[name], name))), None


def compare(
    arms: Mapping[str, Mapping[int, float]],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    alpha: float = 0.05,
    overlap: float = 0.0,
) -> Comparison:
    """Test a family of pairs of arms and rank the arms.

    Args:
        arms: score of each seed of each arm; arms without any result are left out by the caller.
        pairs: the family, fixed before the results are seen; all pairs if ``None``.
        alpha: chance that any verdict of the family is false, at most.
        overlap: of the trainings behind the seeds, as in `inflation`.

    Returns:
        Verdicts with Holm's correction over the family, each on the seeds its two arms share (a verdict needs three),
        and the arms by mean on the seeds that all of them have. The order of the ranking is no verdict: the pairs say
        which differences count.

    Raises:
        ValueError: if a pair is unknown or given twice, two arms of a pair share no seed, or a score is not finite.
    """
    for name, scores in arms.items():
        _finite(list(scores.values()), f"arm {name!r}")
    family = _family(arms, pairs)
    tests = [paired(arms[a], arms[b], overlap=overlap) for a, b in family]
    results = []
    for (a, b), test, p in zip(family, tests, holm([test.p_value for test in tests]), strict=True):
        enough = test.n >= FEWEST_SEEDS
        # without a spread there is nothing to size an effect by
        sized = (
            smallest_effect(test.std, test.n, alpha=alpha, comparisons=len(family), overlap=overlap)
            if enough and test.std
            else None
        )
        outcome = verdict(test.difference, p, alpha=alpha) if enough else "no difference shown"
        results.append(Pair(a, b, test, p, outcome, sized))
    return Comparison(tuple(results), *_ranking(arms))


def budget_disagreement(
    costs: Mapping[str, float], tolerance: float, *, budget: float | None = None, unit: str = "sample passes"
) -> str | None:
    """Say which arms spent too much or too little for a fair comparison, or ``None`` if the spending agrees.

    Args:
        costs: what each arm spent, not negative.
        tolerance: largest share by which spending may differ, [0, 1].
        budget: what each arm was promised; without it the arms are held against the one that spent most.
        unit: of the costs, for the sentence.

    Raises:
        ValueError: if a quantity is out of range, or no arm is given.
    """
    spent = _finite(list(costs.values()), "a budget")
    target = float(spent.max()) if budget is None else budget
    if spent.min() < 0 or not 0 <= tolerance <= 1 or not (target > 0 or spent.max() == 0):
        raise ValueError(f"needs costs >= 0, tolerance in [0, 1], budget > 0, got {dict(costs)}, {tolerance}, {budget}")
    shares = {arm: (cost - target) / target for arm, cost in costs.items() if target > 0}
    # a share equal to the tolerance up to rounding is within it
    wrong = [arm for arm in costs if abs(shares.get(arm, 0.0)) > tolerance * (1 + 1e-9)]
    if not wrong:
        return None
    yardstick = "the budget" if budget is not None else max(costs, key=lambda arm: costs[arm])
    listed = ", ".join(
        f"{arm} {abs(shares[arm]):.1%} {'more' if shares[arm] > 0 else 'less'} ({costs[arm]:,.6g})" for arm in wrong
    )
    return f"spending differs by more than {tolerance:.1%} from {yardstick} ({target:,.6g} {unit}): {listed}"
