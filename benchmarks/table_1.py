"""What the report of `table-1` does not say of the paper's claims: convergence as a budget, and classes over seeds.

- Claim 6: the share of the budget of an arm's own way to its final validation accuracy after which another arm first
  has it, by seed (`nas_blockout.statistics.convergence`).
- Claims 8 and 9: of the classes' membership probabilities P (classes, clusters), per pair of seeds or of widths, the
  rank correlation of the expected clusters of each class, and the correlation of the expected clusters that two classes
  share. The placebo shuffles the classes of one of the two.

Run: ``python -m benchmarks.table_1 [--study table-1] [--home DIR]``; prints Markdown tables.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from nas_blockout.statistics.convergence import Curve, budget_to_final
from services.settings import Settings
from services.store import Store
from services.trial_record import Trial

Array = NDArray[np.float64]
SHUFFLES = 200


def main() -> None:
    """Print convergence and consistency."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="table-1")
    parser.add_argument("--others", nargs="+", default=["baseline", "fc", "fc-dropout"], help="arms to be reached")
    parser.add_argument("--home", type=Path, help="home folder of the study (default: NAS_BLOCKOUT_HOME)")
    options = parser.parse_args()
    with Store.open(f"sqlite:///{options.home}/runs/nas_blockout.db" if options.home else _store()) as store:
        models = [trial for trial in store.trials(options.study) if trial.is_model]
        curves = {arm: {t.seed: _curve(store, t) for t in of} for arm, of in _by_arm(models).items()}
    _print_convergence(curves, options.others)
    _print_consistency({arm: found for arm, of in _by_arm(models).items() if (found := _classes(of))})


def _store() -> str:
    return Settings.from_environment().store_url


def _by_arm(models: Sequence[Trial]) -> dict[str, list[Trial]]:
    return {arm: [t for t in models if t.arm == arm] for arm in dict.fromkeys(t.arm for t in models)}


def _curve(store: Store, trial: Trial) -> Curve:
    return [(epoch.sample_passes, epoch.metrics["validation_accuracy"]) for epoch in store.epochs(trial.id)]


def _print_convergence(curves: Mapping[str, Mapping[int, Curve]], others: Sequence[str]) -> None:
    print("Share of the budget after which the arm first has the other's final validation accuracy: median over seeds,")
    print("smallest and largest; in brackets how many seeds never have it.\n")
    print("| arm | " + " | ".join(others) + " |")
    print("|---|" + "---|" * len(others))
    for arm in curves:
        cells = []
        for other in others:
            if arm == other:
                cells.append("")
                continue
            found = budget_to_final(curves[arm], curves[other])
            shares = found.ratios.values()
            cells.append(f"{_share(found.median)} ({_share(min(shares))} to {_share(max(shares))}) [{found.never}]")
        print(f"| `{arm}` | " + " | ".join(cells) + " |")


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"


def _classes(models: Sequence[Trial]) -> list[Array]:
    """Return the classes' P of each seed, (classes, clusters), if the arm learned some."""
    found = [(trial.outcome.get("probabilities") or {}).get("classes") for trial in models]
    return [np.asarray(p, dtype=np.float64) for p in found if p]


def _print_consistency(arms: Mapping[str, Sequence[Array]]) -> None:
    print("\n| arms | pairs | expected clusters a class | rank correlation | placebo | shared clusters | placebo |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, pairs in _pairs(arms):
        ranks, shared = [_ranks(a, b) for a, b in pairs], [_shared(a, b) for a, b in pairs]
        rng = np.random.default_rng(0)
        placebo = [(a, b[rng.permutation(len(b))]) for _ in range(SHUFFLES) for a, b in pairs[:1]]
        clusters = np.mean([p.sum(1).mean() for pair in pairs for p in pair])
        print(
            f"| {name} | {len(pairs)} | {clusters:.2f} | {_summary(ranks)} "
            f"| {_band([_ranks(a, b) for a, b in placebo])} | {_summary(shared)} "
            f"| {_band([_shared(a, b) for a, b in placebo])} |"
        )


def _pairs(arms: Mapping[str, Sequence[Array]]) -> Iterator[tuple[str, list[tuple[Array, Array]]]]:
    for name, found in arms.items():
        yield f"`{name}` over seeds", list(combinations(found, 2))
    wide = [name for name in ("hard-learned", "nodes-1024", "nodes-2048") if name in arms]
    for a, b in combinations(wide, 2):
        yield f"`{a}` and `{b}`", list(product(arms[a], arms[b]))


def _ranks(a: Array, b: Array) -> float:
    return float(spearmanr(a.sum(1), b.sum(1)).statistic)


def _shared(a: Array, b: Array) -> float:
    above = np.triu_indices(len(a), 1)
    return float(pearsonr((a @ a.T)[above], (b @ b.T)[above]).statistic)


def _summary(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _band(values: Sequence[float]) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
