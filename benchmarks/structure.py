"""Recipes of learned structure, compared on validation data with baselines of equal cost: hypotheses, not verdicts.

Every row is one experiment with the same number of epochs over all stages: Blockout learns and is distilled to the
target share of the dense network's MACs, `thin` is a dense network of that share, `pruned` reaches it from a dense one,
and `one cluster` learns widths without branches. Rows are appended to a CSV file as experiments end; rows in the
file are not run again.

Run: ``python benchmarks/structure.py --data glyphs --rows structure.csv [--target .5] [--seeds 0 1] [--only NAME...]``;
prints a Markdown table of all rows of the file. Test images are not read.
"""

import argparse
import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.data import Splits, load
from nas_blockout.experiment import Experiment, Run, build

Document = dict[str, Any]
DATA: Mapping[str, Document] = {
    "glyphs": {
        "data": {"name": "glyphs", "train_samples": 4700, "validation_samples": 1880},
        "backbone": {"name": "convnet", "channels": [16, 32, 64], "hidden": [128], "normalize_logits": True},
    },
    "fashion_mnist": {
        "data": {"name": "fashion_mnist", "train_samples": 10000, "validation_samples": 2000},
        "backbone": {"name": "convnet", "channels": [16, 32], "hidden": [64], "normalize_logits": True},
    },
}
BLOCKOUT: Document = {
    "name": "blockout",
    "preset": "paper",  # every key that is not listed here as version 1 had it
    "clusters": 4,
    "masked": "all",
    "first_probability": 0.95,
    "last_probability": 0.75,
    "logit_noise": 0.3,
    "structure_lr_multiplier": 60.0,
    "cost_penalty": 8.0,
    "cost_target": 0.9,
    "cost_warmup": 0.3,
    "polarization": 2.0,
}
# By name, the changes to method and distillation; `cost_target` is a share of the target. The names identify the rows
# recorded in docs/results/structure.csv, hence old words: "charge" is the cost penalty, "surplus" the nodes to trim.
RECIPES: Mapping[str, Mapping[str, Document]] = {
    "blockout": {},
    "filled": {"distillation": {"fill_target": True}},
    "charged to the target": {"method": {"cost_target": 1.0}},
    "both sides": {"method": {"cost_penalty_sides": "both"}},
    "charged to 1.2 of it": {"method": {"cost_target": 1.2}},
    "charged to 1.5 of it": {"method": {"cost_target": 1.5}},
    "charged to twice it": {"method": {"cost_target": 2.0}},
    "surplus by magnitude": {"distillation": {"trim_by": "magnitude"}},
    "learn a quarter": {"distillation": {"learn_fraction": 0.25}},
    "learn three eighths": {"distillation": {"learn_fraction": 0.375}},
    "learn two thirds": {"distillation": {"learn_fraction": 0.67}},
    "one decay": {"distillation": {"learn_schedule": "constant", "finetune_lr_multiplier": 1.0}},
    "soft-learned": {"method": {"mode": "soft-learned"}},
    "straight-through": {"method": {"estimator": "straight-through"}},
    "arm": {"method": {"estimator": "arm"}},
    "two clusters": {"method": {"clusters": 2}},
    "eight clusters": {"method": {"clusters": 8}},
    "structure at 30": {"method": {"structure_lr_multiplier": 30.0}},
    "structure at 120": {"method": {"structure_lr_multiplier": 120.0}},
    "P from .95 to .9": {"method": {"last_probability": 0.9}},
    "P from .95 to .5": {"method": {"last_probability": 0.5}},
    "P from .8 to .6": {"method": {"first_probability": 0.8, "last_probability": 0.6}},
    "P .6": {"method": {"first_probability": 0.6, "last_probability": 0.6}},
    "P from .75 to .98": {"method": {"first_probability": 0.75, "last_probability": 0.98}},
    "P .95": {"method": {"first_probability": 0.95, "last_probability": 0.95}},
    "P from .9 to .98": {"method": {"first_probability": 0.9, "last_probability": 0.98}},
    "P from .99 to .9": {"method": {"first_probability": 0.99, "last_probability": 0.9}},
    "no polarization": {"method": {"polarization": 0.0}},
    "polarization .5": {"method": {"polarization": 0.5}},
    "polarization 8": {"method": {"polarization": 8.0}},
    "balance 1": {"method": {"balance": 1.0}},
    "charge late": {"method": {"cost_warmup": 0.8}},
    "P .99, charge late": {"method": {"first_probability": 0.99, "last_probability": 0.9, "cost_warmup": 0.8}},
    "charge 1": {"method": {"cost_penalty": 1.0}},
    "charge 4": {"method": {"cost_penalty": 4.0}},
    "charge 16": {"method": {"cost_penalty": 16.0}},
    "noise 1": {"method": {"logit_noise": 1.0}},
    "soft targets .5": {"distillation": {"soft_target_weight": 0.5}},
    "full rate again": {"distillation": {"finetune_lr_multiplier": 1.0}},
    "a third of the rate": {"distillation": {"finetune_lr_multiplier": 0.33}},
    "placebo-nodes": {"distillation": {"placebo": "nodes"}},
    "scratch": {"distillation": {"weights": "scratch"}},
    "one cluster": {"method": {"clusters": 1}},
    "one cluster, P .95": {"method": {"clusters": 1, "last_probability": 0.95}},
    "one cluster, P .99": {"method": {"clusters": 1, "first_probability": 0.99, "last_probability": 0.99}},
    "one cluster, P .95, charge 2": {"method": {"clusters": 1, "last_probability": 0.95, "cost_penalty": 2.0}},
    "one cluster, P .95, slow": {
        "method": {
            "clusters": 1,
            "last_probability": 0.95,
            "cost_penalty": 2.0,
            "polarization": 0.5,
            "structure_lr_multiplier": 15.0,
        }
    },
    "one cluster, soft": {"method": {"clusters": 1, "last_probability": 0.95, "mode": "soft-learned"}},
    "one cluster, filled": {"method": {"clusters": 1, "last_probability": 0.95}, "distillation": {"fill_target": True}},
}
BASELINES = ("dense", "thin", "pruned", "pruned, one decay")
COLUMNS = ("data", "target", "epochs", "seed", "recipe", "validation", "macs", "soft", "hard", "inherited", "separated")
_SPLITS: dict[str, Splits] = {}


def experiment_of(data: str, recipe: str, *, target: float, epochs: int, seed: int) -> Document:
    """Return the experiment of a row; the target MACs of a thin network are still a share here."""
    training = {"epochs": epochs, "batch_size": 64, "learning_rate": 0.004}
    document: Document = {**DATA[data], "training": training, "seed": seed}
    if recipe == "dense":
        return document
    if recipe == "thin":
        return {**document, "target_macs": target}
    if recipe.startswith("pruned"):
        changes = RECIPES["one decay"]["distillation"] if recipe.endswith("one decay") else {}
        return {**document, "pruning": {"target_macs": target, **changes}}
    method, distillation = dict(BLOCKOUT), {"target_macs": target}
    for name in recipe.split(" + "):
        method |= RECIPES[name].get("method", {})
        distillation |= RECIPES[name].get("distillation", {})
    method["cost_target"] *= target
    return {**document, "method": method, "distillation": distillation}


def trained(data: str, recipe: str, target: float, epochs: int, seed: int) -> dict[str, Any]:
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
    run = Run(Experiment.from_json(document), splits)
    *_, last = run
    row = {"data": data, "target": target, "epochs": epochs, "seed": seed, "recipe": recipe}
    row["validation"] = round(100 * (last.validation_accuracy or 0.0), 2)
    if run.outcome is None:
        return row
    row["macs"] = round(run.outcome.macs / all_macs, 3)
    if run.outcome.derivation is not None:
        row |= {name: round(100 * value, 1) for name, value in run.outcome.derivation.gap.items() if name in COLUMNS}
        row["separated"] = round(separated(run.outcome.derivation.probabilities), 2)
    return row


def separated(probabilities: Mapping[str, list[list[float]]]) -> float:
    """Return the smallest share, over layers, of entries of P below .05 or above .95."""
    layers = (torch.tensor(p) for p in probabilities.values())
    return min(float(((p < 0.05) | (p > 0.95)).float().mean()) for p in layers)


def main() -> None:
    """Run the rows that are not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="glyphs")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--target", type=float, nargs="*", default=[0.5])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument(
        "--only",
        nargs="*",
        type=known,
        default=[*BASELINES, *RECIPES],
        help="recipes to run; 'A + B' combines the changes of both",
    )
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    wanted = [
        (options.data, name, target, options.epochs, seed)
        for target in options.target
        for seed in options.seeds
        for name in options.only
    ]
    there = {(r["data"], r["recipe"], float(r["target"]), int(r["epochs"]), int(r["seed"])) for r in read(options.rows)}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(trained, *each) for each in wanted if each not in there]):
            append(options.rows, done.result())
            print(done.result(), flush=True)
    print_table(list(read(options.rows)))


def known(recipe: str) -> str:
    """Check the name of a recipe, or of several joined by a plus."""
    if recipe not in BASELINES and (unknown := [name for name in recipe.split(" + ") if name not in RECIPES]):
        raise argparse.ArgumentTypeError(
            f"no such recipe {unknown[0]!r}; there are {', '.join([*BASELINES, *RECIPES])}"
        )
    return recipe


def read(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a file; none if the file does not exist."""
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def append(path: Path, row: Mapping[str, Any], columns: Sequence[str] = COLUMNS) -> None:
    """Append a row, with a header line if the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)


def print_table(rows: list[dict[str, str]]) -> None:
    """Print means over seeds, best first."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["target"], row["epochs"], row["recipe"]), []).append(row)
    print(
        "| data | target | epochs | recipe | seeds | validation % | sd | MACs | soft | hard | inherited | separated |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for key, runs in sorted(groups.items(), key=lambda item: (*item[0][:3], -_mean(item[1], "validation"))):
        accuracies = [float(row["validation"]) for row in runs]
        sd = f"{statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
        others = [f"{_mean(runs, name):.4g}" if runs[0][name] else "" for name in COLUMNS[6:]]
        print("| " + " | ".join([*key, str(len(runs)), f"{_mean(runs, 'validation'):.2f}", sd, *others]) + " |")


def _mean(rows: list[dict[str, str]], name: str) -> float:
    return statistics.fmean(float(row[name]) for row in rows)


if __name__ == "__main__":
    main()
