"""Recipes that learn branches of wide heads, compared on validation data at equal cost: hypotheses, not verdicts.

Every row is one experiment with the same epochs over all stages. `thin` is a dense network of the target's MACs, `thin
head` one whose hidden layers alone are narrower, `pruned` reaches the target from a dense network, and
`RECIPE + unbranched` is the recipe's own nodes without its branches. Rows are appended to a CSV file as experiments
end; rows in the file are not run again.

Run: ``python -m benchmarks.branching --data glyphs --rows branching.csv [--target .3] [--seeds 0 1] [--only NAME...]``.
Test images are not read.
"""

import argparse
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.structure import append, read, separated
from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.data import Splits, load
from nas_blockout.experiment import Experiment, Run, build
from nas_blockout.structure.branching import structure_of

Document = dict[str, Any]
DATA: Mapping[str, Document] = {
    "glyphs": {
        "data": {"name": "glyphs", "train_samples": 4700, "validation_samples": 1880},
        "backbone": {"name": "convnet", "channels": [16, 32, 64], "hidden": [512, 512], "normalize_logits": True},
        "training": {"epochs": 8, "batch_size": 64, "learning_rate": 0.004},
    },
    "digits": {
        "data": {"name": "digits", "train_samples": 150},
        "backbone": {"name": "convnet", "channels": [32, 64], "hidden": [256, 256]},
        "training": {"epochs": 32, "batch_size": 16, "learning_rate": 0.002},
    },
    "quickstart": {
        "data": {"name": "digits", "train_samples": 150},
        "backbone": {"name": "convnet", "channels": [32, 64], "hidden": [128]},
        "training": {"epochs": 32, "batch_size": 16, "learning_rate": 0.002},
    },
    "quickstart-2": {
        "data": {"name": "digits", "train_samples": 150},
        "backbone": {"name": "convnet", "channels": [32, 64], "hidden": [128, 128]},
        "training": {"epochs": 32, "batch_size": 16, "learning_rate": 0.002},
    },
    "fashion_mnist": {
        "data": {"name": "fashion_mnist", "train_samples": 10000, "validation_samples": 2000},
        "backbone": {"name": "convnet", "channels": [16, 32], "hidden": [512, 512], "normalize_logits": True},
        "training": {"epochs": 6, "batch_size": 64, "learning_rate": 0.004},
    },
}
# By name, the changes to the preset `compress` and to the distillation; `cost_target` is a share of the target.
RECIPES: Mapping[str, Mapping[str, Document]] = {
    "compress": {},
    "to .5": {"method": {"first_probability": 0.95, "last_probability": 0.5}},
    "to .5 late": {"method": {"first_probability": 0.95, "last_probability": 0.5, "depth_exponent": 3.0}},
    "to .3 late": {"method": {"first_probability": 0.95, "last_probability": 0.3, "depth_exponent": 3.0}},
    "to .7 late": {"method": {"first_probability": 0.95, "last_probability": 0.7, "depth_exponent": 3.0}},
    "disjoint 1 everywhere": {"method": {"disjointness": 1.0, "depth_exponent": 0.5}},
    "disjoint 3 everywhere": {"method": {"disjointness": 3.0, "depth_exponent": 0.5}},
    "to .8 late": {"method": {"first_probability": 0.95, "last_probability": 0.8, "depth_exponent": 3.0}},
    "disjoint 1": {"method": {"disjointness": 1.0, "depth_exponent": 2.0}},
    "disjoint 3": {"method": {"disjointness": 3.0, "depth_exponent": 2.0}},
    "disjoint 2": {"method": {"disjointness": 2.0, "depth_exponent": 2.0}},
    "disjoint 5": {"method": {"disjointness": 5.0, "depth_exponent": 2.0}},
    "disjoint 1.5": {"method": {"disjointness": 1.5, "depth_exponent": 2.0}},
    "disjoint 1 steep": {"method": {"disjointness": 1.0, "depth_exponent": 4.0}},
    "disjoint 2 steep": {"method": {"disjointness": 2.0, "depth_exponent": 4.0}},
    "disjoint 10": {"method": {"disjointness": 10.0, "depth_exponent": 2.0}},
    "balance 3": {"method": {"balance": 3.0}},
    "balance 30": {"method": {"balance": 30.0}},
    "eight clusters": {"method": {"clusters": 8}},
    "three clusters": {"method": {"clusters": 3}},
    "straight-through": {"method": {"estimator": "straight-through"}},
    "binary": {"method": {"mask_values": "binary"}},
    "slow": {"method": {"structure_lr_multiplier": 30.0}},
    "noise 1": {"method": {"logit_noise": 1.0}},
    "unbranched": {"distillation": {"placebo": "unbranched"}},
    "placebo-nodes": {"distillation": {"placebo": "nodes"}},
    "learn a third": {"distillation": {"learn_fraction": 0.33}},
    "one cluster": {"method": {"clusters": 1, "first_probability": 0.95, "last_probability": 0.95}},
}
BASELINES = ("dense", "thin", "thin head", "pruned")
COLUMNS = (
    *("data", "target", "epochs", "seed", "recipe", "validation", "macs", "parameters", "soft", "hard", "inherited"),
    *("separated", "branches", "density"),
)
_SPLITS: dict[str, Splits] = {}


def experiment_of(data: str, recipe: str, *, target: float, epochs: int | None, seed: int) -> Document:
    """Return the experiment of a row; the target MACs of a thin network are still a share here."""
    document: Document = {**DATA[data], "seed": seed}
    document["training"] = {**document["training"], "epochs": epochs or document["training"]["epochs"]}
    if recipe == "dense":
        return document
    if recipe.startswith("thin"):
        return {**document, "target_macs": target}
    if recipe == "pruned":
        return {**document, "pruning": {"target_macs": target}}
    method: Document = {"name": "blockout"}
    distillation: Document = {"target_macs": target}
    for name in recipe.split(" + "):
        method |= RECIPES[name].get("method", {})
        distillation |= RECIPES[name].get("distillation", {})
    method["cost_target"] = method.get("cost_target", 1.0) * target
    return {**document, "method": method, "distillation": distillation}


def trained(data: str, recipe: str, target: float, epochs: int | None, seed: int) -> dict[str, Any]:
    """Run one experiment; return its row."""
    torch.set_num_threads(1)
    document = experiment_of(data, recipe, target=target, epochs=epochs, seed=seed)
    if data not in _SPLITS:
        _SPLITS[data] = load(Experiment.from_json({**document, "target_macs": None}).data)
    splits = _SPLITS[data]
    dense = build(Experiment.from_json(DATA[data]), splits)
    assert isinstance(dense, BranchedNetwork)
    all_macs = macs_of(dense.full, dense.plan, splits.shape[0])
    if recipe == "thin":
        document["target_macs"] = round(target * all_macs)
    if recipe == "thin head":
        document = _with_thin_head(document, splits, target * all_macs)
    run = Run(Experiment.from_json(document), splits)
    *_, last = run
    row = {"data": data, "target": target, "epochs": document["training"]["epochs"], "seed": seed, "recipe": recipe}
    row["validation"] = round(100 * (last.validation_accuracy or 0.0), 2)
    if run.outcome is None:
        return row
    row["macs"], row["parameters"] = round(run.outcome.macs / all_macs, 3), run.outcome.parameters
    derivation = run.outcome.derivation
    if derivation is not None:
        row |= {name: round(100 * value, 1) for name, value in derivation.gap.items() if name in COLUMNS}
        row["separated"] = round(separated(derivation.probabilities), 2)
        structure = structure_of(derivation.architecture)
        row["branches"] = len(structure.branches)
        row["density"] = " ".join(f"{layer.density:.2f}" for layer in structure.layers)
    return row


def _with_thin_head(document: Document, splits: Splits, macs: float) -> Document:
    """Narrow the hidden layers alone, as far as the target asks; at least a node."""
    for width in range(document["backbone"]["hidden"][0], 0, -1):
        thin = {**document, "target_macs": None}
        thin["backbone"] = {**document["backbone"], "hidden": [width] * len(document["backbone"]["hidden"])}
        network = build(Experiment.from_json(thin), splits)
        if macs_of(network.full, network.plan, splits.shape[0]) <= macs:
            break
    return thin


def main() -> None:
    """Run the rows that are not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--target", type=float, nargs="*", default=[0.3])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", type=known, default=[*BASELINES, *RECIPES])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    wanted = [
        (options.data, name, target, options.epochs, seed)
        for seed in options.seeds
        for target in options.target
        for name in options.only
    ]
    there = {(r["data"], r["recipe"], float(r["target"]), int(r["seed"])) for r in read(options.rows)}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        rows = [pool.submit(trained, *each) for each in wanted if (each[0], each[1], each[2], each[4]) not in there]
        for done in as_completed(rows):
            append(options.rows, done.result(), COLUMNS)
            print(done.result(), flush=True)


def known(recipe: str) -> str:
    """Check the name of a recipe, or of several joined by a plus."""
    if recipe not in BASELINES and (unknown := [name for name in recipe.split(" + ") if name not in RECIPES]):
        raise argparse.ArgumentTypeError(
            f"no such recipe {unknown[0]!r}; there are {', '.join([*BASELINES, *RECIPES])}"
        )
    return recipe


if __name__ == "__main__":
    main()
