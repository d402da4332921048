"""Calibration of the intervals and verdicts of ``statistics.significance`` on simulated data with known truth.

Prints the tables of docs/results/statistics-calibration.md: ``python benchmarks/statistics_calibration.py``.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import norm

from nas_blockout.statistics.significance import (
    compare,
    holm,
    overlap_of_folds,
    paired,
    search_means,
    smallest_effect,
    summary,
    variance_components,
)

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
RESAMPLES = 1999


def digits_like(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Accuracies on 360 test images, near the ceiling."""
    return generator.binomial(360, np.clip(generator.normal(0.97, 0.006, shape), 0, 1)) / 360


def cifar_like(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Accuracies on 10,000 test images."""
    return generator.binomial(10_000, generator.normal(0.9, 0.003, shape)) / 10_000


def sometimes_collapsed(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One training in ten ends 3 points lower."""
    return generator.normal(0.9, 0.003, shape) - 0.03 * (generator.random(shape) < 0.1)


DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda generator, shape: generator.normal(0.9, 0.003, shape), 0.9),
    "360 test images, 97%": (digits_like, 0.97),
    "10,000 test images, 90%": (cifar_like, 0.9),
    "one in ten collapses": (sometimes_collapsed, 0.897),
}


def chunks(data: Array, generator: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
    """Bootstrap 100 samples at a time: (samples, means, standard deviations), the latter (samples, resamples)."""
    n = data.shape[1]
    for start in range(0, len(data), 100):
        sample = data[start : start + 100]
        weights = generator.multinomial(n, [1 / n] * n, RESAMPLES).T / n
        centered = sample - sample.mean(1, keepdims=True)
        shift = centered @ weights
        variance = np.maximum((centered**2) @ weights - shift**2, 0) * n / (n - 1)
        yield sample, sample.mean(1, keepdims=True) + shift, np.sqrt(variance)


def percentile(sample: Array, means: Array, _: Array) -> Array:
    return np.quantile(means, [0.025, 0.975], axis=1)


def bca(sample: Array, means: Array, _: Array) -> Array:
    """Efron's bias-corrected and accelerated bootstrap."""
    centered = sample - sample.mean(1, keepdims=True)
    squares = np.maximum((centered**2).sum(1), 1e-300)
    acceleration = (centered**3).sum(1) / (6 * squares**1.5)
    mean = sample.mean(1, keepdims=True)
    below = ((means < mean - 1e-12).mean(1) + (means < mean + 1e-12).mean(1)) / 2
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    limits = []
    for z in norm.ppf([0.025, 0.975]):
        shares = norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        limits.append([np.quantile(row, share) for row, share in zip(means, shares, strict=True)])
    return np.array(limits)


def bootstrap_t(sample: Array, means: Array, stds: Array) -> Array:
    """Studentized bootstrap; resamples of one repeated value have no t and are left out."""
    n = sample.shape[1]
    mean, std = sample.mean(1, keepdims=True), sample.std(1, ddof=1, keepdims=True)
    t = np.where(stds > 1e-9, (means - mean) / np.maximum(stds, 1e-9) * math.sqrt(n), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        high, low = np.nanquantile(t, [0.975, 0.025], axis=1)
    error = std[:, 0] / math.sqrt(n)
    return np.array([mean[:, 0] - high * error, mean[:, 0] - low * error])


def student(data: Array) -> Array:
    """The library's own intervals; where it gives none, an empty one, which counts as a miss."""
    intervals = [summary(dict(enumerate(row))).ci95 or (math.inf, -math.inf) for row in data]
    return np.array(intervals).T


def scored(limits: Array, truth: float) -> tuple[float, float]:
    """Coverage and median width."""
    low, high = limits
    return float(((low <= truth) & (truth <= high)).mean()), float(np.median(high - low))


def interval_table(simulations: int) -> Iterator[str]:
    yield "| scores | seeds | Student t (ours) | percentile | BCa | bootstrap-t |"
    yield "|---|---|---|---|---|---|"
    for name, (draw, truth) in DISTRIBUTIONS.items():
        for n in (5, 10, 20):
            generator = np.random.default_rng(n)
            data = draw(generator, (simulations, n))
            parts = list(chunks(data, generator))
            limits = [student(data)]
            limits += [
                np.concatenate([method(*part) for part in parts], axis=1) for method in (percentile, bca, bootstrap_t)
            ]
            cells = [f"{100 * c:.1f} ({100 * w:.2f})" for c, w in (scored(limit, truth) for limit in limits)]
            yield f"| {name} | {n} | " + " | ".join(cells) + " |"


def nested_percentile(data: Array, generator: np.random.Generator) -> Array:
    """Resample searches, then the seeds of each; data (simulations, searches, seeds)."""
    _, searches, seeds = data.shape
    limits = []
    for values in data:
        drawn = generator.integers(searches, size=(RESAMPLES, searches, 1))
        means = values[drawn, generator.integers(seeds, size=(RESAMPLES, searches, seeds))].mean((1, 2))
        limits.append(np.quantile(means, [0.025, 0.975]))
    return np.array(limits).T


def nested(values: Array) -> dict[int, dict[int, float]]:
    return {search: dict(enumerate(row)) for search, row in enumerate(values.tolist())}


def hierarchy_table(simulations: int) -> Iterator[str]:
    columns = ["searches x seeds", "std between / within", "t on search means (ours)", "t on all pooled"]
    yield "| " + " | ".join([*columns, "nested percentile bootstrap", "estimated between / within"]) + " |"
    yield "|---|---|---|---|---|---|"
    for searches, seeds in ((3, 3), (5, 3), (5, 5), (10, 3)):
        for between in (0.0, 0.003):
            generator = np.random.default_rng(searches * 100 + seeds)
            shape = (simulations, searches, seeds)
            data = 0.9 + generator.normal(0, between, (*shape[:2], 1)) + generator.normal(0, 0.003, shape)
            means = np.array([list(search_means(nested(values)).values()) for values in data])
            pooled = student(data.reshape(simulations, -1))
            results = [student(means), pooled, nested_percentile(data, generator)]
            cells = [f"{100 * c:.1f} ({100 * w:.2f})" for c, w in (scored(limit, 0.9) for limit in results)]
            parts = [variance_components(nested(values)) for values in data]
            stds = [math.sqrt(np.mean([getattr(p, kind) for p in parts])) * 100 for kind in ("between", "within")]
            truth = f"{100 * between:.1f} / 0.3"
            yield f"| {searches} x {seeds} | {truth} | {' | '.join(cells)} | {stds[0]:.2f} / {stds[1]:.2f} |"


def pooled_p(data: Array) -> list[float]:
    """All pairs with one variance pooled over the arms (randomized blocks): the rejected alternative."""
    arms, n = data.shape
    rest = data - data.mean(0) - data.mean(1, keepdims=True) + data.mean()
    freedom = (arms - 1) * (n - 1)
    error = math.sqrt(max(2 * float((rest**2).sum()) / freedom / n, 1e-30))
    a, b = np.triu_indices(arms, 1)
    means = data.mean(1)
    return [2 * float(stdtr(freedom, -abs(gap) / error)) for gap in means[a] - means[b]]


def noisy(*spreads: float) -> Draw:
    """Seven equal arms with a shared effect of the seed and these standard deviations of their own."""

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        luck, own = generator.normal(0, 0.002, shape[1]), generator.normal(size=shape)
        return np.asarray(0.9 + luck + own * np.array(spreads)[:, None])

    return draw


FAMILIES: dict[str, Draw] = {
    "alike": noisy(*[0.003] * 7),
    "one arm 5 times noisier": noisy(0.015, *[0.003] * 6),
    "two arms 5 times noisier": noisy(0.015, 0.015, *[0.003] * 5),
    "360 test images, 97%": digits_like,
    "one in ten collapses": sometimes_collapsed,
}


def family_table(simulations: int) -> Iterator[str]:
    columns = ["7 equal arms, noise", "seeds", "paired t, Holm (ours)", "sign flips, Holm", "pooled variance, Holm"]
    yield "| " + " | ".join([*columns, "paired t, uncorrected"]) + " |"
    yield "|---|---|---|---|---|---|"
    for name, draw in FAMILIES.items():
        for n in (5, 10):
            generator = np.random.default_rng(n)
            wrong = np.zeros(4)
            for _ in range(simulations):
                data = draw(generator, (7, n))
                pairs = compare({str(arm): dict(enumerate(row)) for arm, row in enumerate(data.tolist())}).pairs
                wrong += [
                    any(pair.verdict != "no difference shown" for pair in pairs),
                    min(holm([pair.test.p_permutation for pair in pairs])) <= 0.05,
                    min(holm(pooled_p(data))) <= 0.05,
                    any(pair.test.p_value <= 0.05 for pair in pairs),
                ]
            yield f"| {name} | {n} | " + " | ".join(f"{share:.1f}" for share in 100 * wrong / simulations) + " |"


def best_table(simulations: int) -> Iterator[str]:
    """What is lost by pairs of the best arm, which is known only from the data, corrected as if it had been fixed."""
    columns = ["pairs of one arm", "and of the best by test", "and of the best by validation", "all pairs"]
    yield "| equal arms | seeds | " + " | ".join(columns) + " |"
    yield "|---|---|---|---|---|---|"
    for arms, n in ((3, 5), (7, 5), (7, 10), (12, 5)):
        generator = np.random.default_rng(0)
        wrong = np.zeros(4)
        for _ in range(simulations):
            # A seed's luck is shared; the images of validation add noise as large as that of training.
            test = generator.normal(size=(arms, n)) + generator.normal(0, 0.5, n)
            by_validation = int((test + generator.normal(size=(arms, n))).mean(1).argmax())
            differences = test[:, None] - test[None]
            error = differences.std(2, ddof=1) / math.sqrt(n)
            np.fill_diagonal(error, 1.0)
            p = 2 * stdtr(n - 1, -np.abs(differences.mean(2)) / error)
            fixed = {(0, other) for other in range(1, arms)}
            of = [fixed | {tuple(sorted((best, o))) for o in range(arms) if o != best}
                  for best in (0, int(test.mean(1).argmax()), by_validation)]  # fmt: skip
            lowest = [min(p[pair] for pair in pairs) for pairs in of]
            pairs_of_all = arms * (arms - 1) // 2
            wrong += [low * len(pairs) <= 0.05 for low, pairs in zip(lowest, of, strict=True)] + [
                lowest[1] * pairs_of_all <= 0.05
            ]
        yield f"| {arms} | {n} | " + " | ".join(f"{share:.1f}" for share in 100 * wrong / simulations) + " |"


def power_table(simulations: int) -> Iterator[str]:
    yield "| seeds | comparisons | smallest effect, in standard deviations of the differences | measured power |"
    yield "|---|---|---|---|"
    for n in (3, 5, 10, 20):
        for comparisons in (1, 6, 21):
            effect = smallest_effect(1.0, n, comparisons=comparisons)
            generator = np.random.default_rng(n)
            zeros = dict.fromkeys(range(n), 0.0)
            draws = (effect + generator.normal(size=(simulations, n))).tolist()
            shown = np.mean([paired(dict(enumerate(row)), zeros).p_value <= 0.05 / comparisons for row in draws])
            yield f"| {n} | {comparisons} | {effect:.2f} | {100 * shown:.1f}% |"


def folds_table(simulations: int) -> Iterator[str]:
    """Equal arms over folds: their differences share the effects of images that several trainings have seen."""
    yield "| folds | variance of training images | correlation of folds | t of independent seeds | corrected t (ours) |"
    yield "|---|---|---|---|---|"
    for folds in (3, 5, 10):
        assumed = (folds - 1) / (folds * (folds - 2))  # at which trainings correlate by 1 / folds
        for share in sorted((0.0, assumed, 0.5, 1.0)):
            generator = np.random.default_rng(folds)
            images = generator.normal(size=(simulations, folds))  # what the images of each fold do to the difference
            trained_on = (images.sum(1, keepdims=True) - images) / math.sqrt(folds - 1)
            rest = generator.normal(size=images.shape)
            rows = (math.sqrt(share) * trained_on + math.sqrt(1 - share) * rest).tolist()
            zeros = dict.fromkeys(range(folds), 0.0)
            wrong = [
                100 * np.mean([paired(dict(enumerate(row)), zeros, overlap=overlap).p_value <= 0.05 for row in rows])
                for overlap in (0.0, overlap_of_folds(folds))
            ]
            correlation = share * (folds - 2) / (folds - 1)
            yield f"| {folds} | {share:.0%} | {correlation:.2f} | {wrong[0]:.1f} | {wrong[1]:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=10_000)
    simulations = parser.parse_args().simulations
    for title, table in {
        "Intervals: coverage in % (median width in points); nominal 95": interval_table,
        "Several searches: coverage in % (median width in points)": hierarchy_table,
        "False verdicts: families with at least one, in %; nominal at most 5": family_table,
        "False verdicts with the pairs of the best arm: families with at least one, in %": best_table,
        "Folds: false verdicts on two equal arms, in %; nominal at most 5": folds_table,
        "Power at the smallest effect stated; nominal 80%": power_table,
    }.items():
        print(f"\n### {title}\n", *table(simulations), sep="\n", flush=True)


if __name__ == "__main__":
    main()
