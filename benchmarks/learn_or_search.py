"""Repeats of the study `learn-or-search`: how much budget each arm needs for what random search ends with.

Every repeat is the whole study with a seed of its own: other proposals, other trainings, the same data and split. A
repeat that has ended is not run again. Then, over repeats:

- the best validation accuracy so far against the passes of the search, as quartiles (the figure);
- the passes after which an arm first had the median of what random search ended with, as a share of what random search
  spent; the median over repeats with its smallest and largest, repeats that never had it counted as infinite;
- the mean test accuracy of the retrained winners, and its spread over repeats, which an interval over seeds lacks.

Run: ``python -m benchmarks.learn_or_search [--seeds 0 1 2] [--reference random] [--rows FILE] [--figure FILE]``; prints
a Markdown table. Studies are kept in ``NAS_BLOCKOUT_HOME`` under the name of the study and the seed.
"""

import argparse
import csv
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
from matplotlib.figure import Figure

from nas_blockout.plots import Curve, figure_best_so_far
from nas_blockout.statistics.search_curves import Curve as SearchCurve
from nas_blockout.statistics.search_curves import best_so_far, cost_to_reach, quartile_band
from services.analysis.comparison import ComparisonDocument
from services.files.study_dir import Folder
from services.settings import Settings

Repeats = Mapping[str, Sequence[SearchCurve]]  # by arm, a curve a repeat


def main() -> None:
    """Run what is not there yet, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="learn-or-search", help="a bundled study or a file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seed of each repeat")
    parser.add_argument("--reference", default="random", help="the arm whose end is to be reached")
    parser.add_argument("--rows", type=Path, help="CSV of the search trials of all repeats")
    parser.add_argument("--figure", type=Path, help="PNG of the curves")
    options = parser.parse_args()
    settings = Settings.from_environment()
    folders = [_run(options.study, seed, settings) for seed in options.seeds]
    documents = [ComparisonDocument.read(folder.comparison) for folder in folders]
    trials = [_search_trials(folder) for folder in folders]
    curves = {
        arm: [
            best_so_far([float(row["sample_passes"]) for row in rows], [_score(row) for row in rows])
            for rows in (sorted(repeat[arm], key=lambda row: int(row["number"])) for repeat in trials)
        ]
        for arm in documents[0].arms
    }
    _print(curves, documents, options.reference)
    if options.rows:
        _write(options.rows, options.seeds, trials)
    if options.figure:
        _draw(curves, documents[0]).savefig(options.figure, dpi=150)


def _run(study: str, seed: int, settings: Settings) -> Folder:
    name = f"{Path(study).stem}-{seed}"
    folder = Folder(settings.folder(name))
    if not folder.comparison.exists():
        program = [sys.executable, "-c", "from services.entry_point import main; main()"]
        changes = ["--set", f"name={name}", "--set", f"seed={seed}"]
        subprocess.run([*program, "run", study, *changes, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return folder


def _search_trials(folder: Folder) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with (folder.root / "trials.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["phase"] == "search":
                found.setdefault(row["arm"], []).append(row)
    return found


def _score(row: Mapping[str, str]) -> float:
    is_complete = row["state"] == "complete" and row["validation_accuracy"]
    return float(row["validation_accuracy"]) if is_complete else math.nan


def _print(curves: Repeats, documents: Sequence[ComparisonDocument], reference: str) -> None:
    level = median(float(curve.best[-1]) for curve in curves[reference])
    spent = median(float(curve.cost[-1]) for curve in curves[reference])
    print(f"{len(documents)} repeats; {reference} ends at {level:.2%} in validation, after {spent:,.0f} passes\n")
    print("| arm | trials | best validation % | share of the budget | test % of winners | sd over repeats | MACs |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for arm, repeats in curves.items():
        reached = [math.inf if (cost := cost_to_reach(curve, level)) is None else cost / spent for curve in repeats]
        results = [document.arms[arm] for document in documents]
        tests = [result.test_accuracy.mean for result in results if result.test_accuracy is not None]
        print(
            f"| `{arm}` | {median(len(curve.cost) for curve in repeats):.0f} "
            f"| {mean(float(curve.best[-1]) for curve in repeats):.2%} "
            f"| {_share(median(reached))} ({_share(min(reached))} to {_share(max(reached))}) "
            f"| {mean(tests):.2%} | {f'{stdev(tests):.2%}' if len(tests) > 1 else ''} "
            f"| {median(result.macs or 0 for result in results):,.0f} |"
        )


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"


def _write(path: Path, seeds: Sequence[int], trials: Sequence[Mapping[str, Sequence[Mapping[str, str]]]]) -> None:
    columns = ["arm", "number", "state", "sample_passes", "validation_accuracy"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["search_seed", *columns])
        for seed, repeat in zip(seeds, trials, strict=True):
            writer.writerows([seed, *(row[column] for column in columns)] for rows in repeat.values() for row in rows)


def _draw(curves: Repeats, document: ComparisonDocument) -> Figure:
    grid = np.linspace(0, max(float(curve.cost[-1]) for repeats in curves.values() for curve in repeats), 200)[1:]
    drawn = []
    for arm, repeats in curves.items():
        band = quartile_band(repeats, grid)
        drawn.append(
            Curve(arm, document.arms[arm].role, tuple(grid), tuple(band.median), tuple(band.lower), tuple(band.upper),
                  note=f"n = {band.searches}")
        )  # fmt: skip
    return figure_best_so_far(drawn)


if __name__ == "__main__":
    main()
