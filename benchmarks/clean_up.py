"""What the clean-up costs: accuracy under the memberships as thresholded, after the clean-up, and after fine-tuning.

The data and the training are those of the study `quickstart`, and so is the network unless a narrower one is named.
Each recipe is run with and without the clean-up, on the same first stage; `raw` to `inherited` are validation
accuracies before fine-tuning, `tuned` after it. Test images are not read.

Run: ``python benchmarks/clean_up.py [--seeds 0 1 2 3 4] [--train-samples 150] [--only RECIPE...]``; prints a Markdown
table of means over the seeds, and the largest differences of the proof.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from nas_blockout.data import Splits, load
from nas_blockout.experiment import Derivation, Experiment, Run

TRAINING: Mapping[str, Any] = {"epochs": 32, "batch_size": 16, "learning_rate": 0.002}
QUICKSTART: Mapping[str, Any] = {"name": "convnet", "channels": [32, 64], "hidden": [128]}
NARROW: Mapping[str, Any] = {"name": "convnet", "channels": [8, 16], "hidden": [32]}
SEPARATING = {"preset": "paper", "masked": "all", "clusters": 6, "structure_lr_multiplier": 30.0}
SPARSE = {**SEPARATING, "first_probability": 0.4, "last_probability": 0.4, "logit_noise": 1.0}
# Name: backbone, method and distillation; the first is the arm of the study.
RECIPES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = {
    "quickstart": (QUICKSTART, {"polarization": 1.0}, {"target_macs": 0.5}),
    "P from .5": (QUICKSTART, SEPARATING, {}),
    "P from .5, groups of 8": (QUICKSTART, SEPARATING, {"min_group_size": 8}),
    "P from .5, at .25": (QUICKSTART, SEPARATING, {"target_macs": 0.25}),
    "P from .4, 8-16-32": (NARROW, SPARSE, {}),
    "P from .4, 8-16-32, threshold .6": (NARROW, SPARSE, {"threshold": 0.6}),
}
STEPS = ("soft", "raw", "hard", "inherited", "tuned")


def outcome(recipe: str, splits: Splits, data: Mapping[str, Any], *, seed: int, clean_up: bool) -> dict[str, float]:
    """Return the accuracies of one run, in percent, its cost, its constants and the largest differences."""
    backbone, method, distillation = RECIPES[recipe]
    document = {
        "backbone": backbone,
        "training": TRAINING,
        "data": data,
        "seed": seed,
        "method": {"name": "blockout", **method},
        "distillation": {**distillation, "clean_up": clean_up},
    }
    run = Run(Experiment.from_json(document), splits)
    for record in run:
        tuned = record.validation_accuracy
    assert run.outcome is not None
    derivation = run.outcome.derivation
    assert isinstance(derivation, Derivation)
    accuracies = {**derivation.gap, "tuned": tuned}
    row = {step: 100 * accuracies[step] for step in STEPS}
    groups = [group for layer in derivation.architecture.layers for group in layer.groups]
    row |= {"macs": run.outcome.macs, "constants": sum(group.width for group in groups if group.constant)}
    row |= {name: entry["max_abs_difference"] for name, entry in derivation.equality.items()}
    return row | {"spread": derivation.equality["raw_float64"]["spread"]}


def main() -> None:
    """Run all recipes and print what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--train-samples", type=int, default=150)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = {"name": "digits", "train_samples": options.train_samples}
    splits = load(Experiment.from_json({"backbone": QUICKSTART, "data": data}).data)
    worst = dict.fromkeys(("float64", "float32", "raw_float64", "raw_float32"), 0.0)
    print("| recipe | clean-up | constants | MACs | " + " | ".join(STEPS) + " | largest raw - hard |")
    print("|---|---|---" + "|---" * (len(STEPS) + 2) + "|")
    for recipe in options.only:
        for clean_up in (True, False):
            rows = [outcome(recipe, splits, data, seed=seed, clean_up=clean_up) for seed in options.seeds]
            worst = {name: max(value, *(row[name] for row in rows)) for name, value in worst.items()}
            mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
            steps = " | ".join(f"{mean[step]:.2f}" for step in STEPS)
            lost = max((row["raw"] - row["hard"] for row in rows), key=abs)
            print(
                f"| {recipe} | {'yes' if clean_up else 'no'} | {mean['constants']:.1f} | {mean['macs']:,.0f} "
                f"| {steps} | {lost:+.2f} |",
                flush=True,
            )
    print("largest differences: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))


if __name__ == "__main__":
    main()
