"""What a bounded history costs TPE: searches with and without the bound, on a surrogate of recorded trials.

The space is that of the study many-trials; a proposal gets the accuracy of the recorded trials nearest to it, as in
benchmarks/many_trials.py. Searches that differ in the bound alone have the same seed, so that they are the same until
it is reached, and are compared in pairs.

Run: ``python benchmarks/sampler_history.py [--trials N] [--repeats N] [--limits N,N]``; prints a line a search and a
Markdown table.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import mean

import numpy as np
from many_trials import RECORDED, Recorded, document
from scipy import stats

from search_spaces import SPACES, Context, compose
from services.search.proposals import derived_seed
from services.search.sampler_history import SamplerHistory
from services.search.samplers import ask, suggested
from services.study_config.resolution import resolve_document
from services.study_config.search_options import Rules
from services.trial_record import SEARCH, Trial

UNBOUNDED = 10**9


def search(seed: int, trials: int, limit: int, recorded: Recorded) -> tuple[list[float], float]:
    """Return the accuracy of each trial of a TPE search, and its CPU seconds."""
    arm = next(iter(resolve_document(document("tpe", trials), source="benchmark").arms.values()))
    space, context = compose([SPACES[name] for name in arm.spaces]), Context(arm.experiment, (1, 8, 8), 10)
    history, accuracies, began = SamplerHistory(Rules(), limit), list[float](), time.process_time()
    for number in range(trials):
        asked = ask("tpe", history, derived_seed(seed, number, 0))
        space(asked, context)
        params = suggested(asked)
        accuracies.append(recorded.accuracy(params.values))
        history.update(Trial(arm.name, SEARCH, number, 0, "complete", score=accuracies[-1], params=params.to_json()))
    return accuracies, time.process_time() - began


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean, by Student's distribution."""
    half = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5
    return mean(differences) - half, mean(differences) + half


def main() -> None:
    """Search with every bound and seed, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--limits", default="100,250")
    options = parser.parse_args()
    limits = [UNBOUNDED, *map(int, options.limits.split(","))]
    recorded = Recorded(RECORDED)
    best: dict[int, list[float]] = {limit: [] for limit in limits}
    late: dict[int, list[float]] = {limit: [] for limit in limits}
    for seed in range(options.repeats):
        for limit in limits:
            accuracies, seconds = search(seed, options.trials, limit, recorded)
            best[limit].append(100 * max(accuracies))
            late[limit].append(100 * mean(accuracies[-100:]))
            print(
                f"seed {seed} limit {limit}: {best[limit][-1]:.3f} {late[limit][-1]:.3f} in {seconds:.0f} s", flush=True
            )
    print("\n| limit | best, % | difference | mean of the last 100, % | difference |\n|---:|---:|---:|---:|---:|")
    for limit in limits:
        cells = [f"{limit:,}" if limit != UNBOUNDED else "none"]
        for found in (best, late):
            low, high = interval([a - b for a, b in zip(found[limit], found[UNBOUNDED], strict=True)])
            cells += [f"{mean(found[limit]):.2f}", f"{low:+.3f} .. {high:+.3f}" if limit != UNBOUNDED else ""]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
