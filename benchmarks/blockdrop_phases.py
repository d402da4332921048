"""What the phase in which BlockDrop's policy learns alone costs its network: validation data, at equal sample passes.

For every seed the network of the bundled study is trained five times, on as many images for as many epochs: with the
learned policy and with one path that never changes, each with the phase (3 of 16 epochs, the network frozen) and
without it; and on its first blocks. Paths have the cost of the learned policy without the phase. A path that never
changes is a policy ``static`` whose learning rate is practically 0, so that the same code freezes both networks.

Run: ``python benchmarks/blockdrop_phases.py [--seeds 4] [--first-seed 200] [--csv docs/results/blockdrop-phases.csv]``;
prints Markdown. Test images are not read.
"""

import argparse
import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nas_blockout.data import Loader, Splits, load
from nas_blockout.experiment import EVALUATION_BATCH, Experiment, Run, matched, paths_taken
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from nas_blockout.statistics import significance
from nas_blockout.training import evaluate
from services.study_config.resolution import read, resolve
from services.study_config.yaml_reader import bundled

PHASE = 0.2  # of the epochs: 3 of 16
STANDING_STILL = 1e-9  # multiple of the learning rate
LEARNED, PATH, FIRST = "learned", "one path", "first"
FROZEN = ", network frozen for 3 epochs"
PAIRS = ((LEARNED + FROZEN, LEARNED), (PATH + FROZEN, PATH), (LEARNED, PATH), (LEARNED, FIRST))


@dataclass(frozen=True, slots=True)
class Row:
    """One training: the final accuracy, in [0, 1], is on all validation images, `curve` on the study's alone."""

    arm: str
    seed: int
    validation_accuracy: float
    macs: int
    paths: int
    curve: str


def arms(experiment: Experiment) -> Mapping[str, Experiment]:
    """Return what is trained, from the experiment of the bundled study's learned arm; the costs are matched later."""
    method = experiment.method
    assert isinstance(method, BlockDropSettings)
    alone = replace(method, policy_fraction=0.0)
    still = replace(alone, policy="static", policy_lr_multiplier=STANDING_STILL)
    methods = {
        LEARNED: alone,
        LEARNED + FROZEN: replace(alone, policy_fraction=PHASE),
        PATH: still,
        PATH + FROZEN: replace(still, policy_fraction=PHASE),
        FIRST: replace(alone, policy="first"),
    }
    return {name: replace(experiment, method=each) for name, each in methods.items()}


def trained(arm: str, experiment: Experiment, splits: Splits, every: Splits) -> Row:
    """Train once and return the row."""
    run = Run(experiment, splits)
    curve = [record.validation_accuracy or 0.0 for record in run]
    outcome = run.outcome
    assert outcome is not None, run.failure
    assert isinstance(outcome.model, BlockDrop)
    images = Loader(every.validation, EVALUATION_BATCH)
    paths = paths_taken(outcome.model, images.batches())["paths"]
    accuracy = evaluate(outcome.model, images).accuracy
    text = " ".join(f"{100 * value:.1f}" for value in curve)
    return Row(arm, experiment.seed, accuracy, outcome.macs, len(paths), text)


def rows_of(seeds: Sequence[int]) -> Iterator[Row]:
    """Train all arms for every seed."""
    experiment = resolve(read(bundled()["blockdrop"]), source="blockdrop").arms["learned"].experiment
    splits = load(experiment.data)
    every = load(replace(experiment.data, validation_samples=None))
    for seed in seeds:
        macs = 0
        for name, arm in arms(replace(experiment, seed=seed)).items():
            if name.startswith((PATH, FIRST)):
                arm = matched(arm, macs, shape=splits.shape, classes=len(splits.class_names))
            row = trained(name, arm, splits, every)
            macs = row.macs if name == LEARNED else macs
            yield row


def print_tables(rows: Sequence[Row]) -> None:
    """Print means over the seeds, and the differences paired by seed with their intervals."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row.arm, {})[row.seed] = row.validation_accuracy
    print("| arm | validation %, mean (sd) | million MACs, mean | n |\n|---|---|---|---|")
    for arm, by_seed in scores.items():
        points = [100 * value for value in by_seed.values()]
        macs = statistics.mean(row.macs for row in rows if row.arm == arm) / 1e6
        print(
            f"| {arm} | {statistics.mean(points):.2f} ({statistics.stdev(points):.2f}) | {macs:.2f} | {len(points)} |"
        )
    print("\n| pair | points | 95% interval | p, Holm |\n|---|---|---|---|")
    for pair in significance.compare(scores, pairs=PAIRS).pairs:
        low, high = (100 * bound for bound in pair.test.ci95 or (float("nan"), float("nan")))
        print(
            f"| {pair.a} - {pair.b} | {100 * pair.test.difference:+.2f} | {low:+.2f} .. {high:+.2f} | "
            f"{significance.p_text(pair.p_holm)} |"
        )


def main() -> None:
    """Train, write the rows as they come, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=200)
    parser.add_argument("--csv", type=Path, default=Path("docs/results/blockdrop-phases.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row.__slots__)
        for row in rows_of(range(options.first_seed, options.first_seed + options.seeds)):
            rows.append(row)
            writer.writerow([getattr(row, name) for name in Row.__slots__])
            file.flush()
    print_tables(rows)


if __name__ == "__main__":
    main()
