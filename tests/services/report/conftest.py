"""Made-up studies to report on, with numbers as a real study has them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas_blockout.atomic_files import write_text
from nas_blockout.data import Preprocessing, Splits
from nas_blockout.data.tensor_dataset import Labeled
from nas_blockout.statistics import significance
from services.files.study_dir import Folder
from services.report import ReportView, render, write
from services.report.album import Album
from services.trial_record import Trial, TrialKey
from tests.once import once

ROLES = {
    "dense": "baseline", "dropout": "ablation", "random": "baseline", "bayesian": "baseline", "blockout": "learned",
    "placebo-nodes": "placebo", "thin": "ablation", "blockout-soft": "learned", "hard-fixed": "ablation",
    "confusion": "baseline", "placebo-classes": "placebo", "widths": "ablation",
}  # fmt: skip
LAYERS = {"features": 96, "hidden": 128}
EPOCH_PASSES = 150
IMAGES = 36
LEARNED = ("learned", "placebo")


def probabilities(draws: np.random.Generator, classes: int, clusters: int, sharpness: float) -> dict[str, np.ndarray]:
    widths = {**LAYERS, "classes": classes}
    return {
        name: 1 / (1 + np.exp(-(draws.choice([-1.0, 1.0], (nodes, clusters), p=[0.65, 0.35]) * sharpness
                                + draws.normal(0, 0.6, (nodes, clusters)))))
        for name, nodes in widths.items()
    }  # fmt: skip


def architecture(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    layers = []
    for name, p in found.items():
        hard = p > 0.5
        hard[np.arange(len(p)), p.argmax(1)] = True
        groups: dict[tuple[int, ...], list[int]] = {}
        for node, row in enumerate(hard):
            groups.setdefault(tuple(np.flatnonzero(row).tolist()), []).append(node)
        layers.append({"name": name, "groups": [
            {"clusters": list(clusters), **({"classes": nodes} if name == "classes" else {"width": len(nodes)})}
            for clusters, nodes in groups.items()
        ]})  # fmt: skip
    return {"schema_version": 1, "clusters": next(iter(found.values())).shape[1], "layers": layers}


def epochs(
    draws: np.random.Generator, accuracy: float, count: int, learned: Mapping[str, np.ndarray] | None
) -> list[dict[str, Any]]:
    records = []
    for epoch in range(count):
        late = epoch / max(count - 1, 1)
        telemetry: dict[str, Any] = {}
        stage = "train" if learned is None else "learn" if epoch < count // 2 else "finetune"
        if stage == "learn" and learned is not None:
            for name, p in learned.items():
                now = 0.5 + (p - 0.5) * min(1, 2.2 * late)
                telemetry[f"blockout/density/{name}"] = (np.histogram(now, 20, (0, 1))[0] / now.size).tolist()
                telemetry[f"blockout/median/{name}"] = float(np.median(now))
        value = accuracy * (1 - 0.6 * np.exp(-7 * late)) + draws.normal(0, 0.006)
        records.append({
            "epoch": epoch, "stage": stage, "sample_passes": EPOCH_PASSES * (epoch + 1), "seconds": 0.1 * (epoch + 1),
            "train_loss": float(2 * np.exp(-3 * late)), "validation_loss": float(1.8 * np.exp(-2 * late) + 0.3),
            "validation_accuracy": float(np.clip(value, 0, 1)), "telemetry": telemetry,
        })  # fmt: skip
    return records


def confusion(draws: np.random.Generator, classes: int, accuracy: float) -> list[list[int]]:
    counts = []
    for label in range(classes):
        shares = draws.dirichlet(np.full(classes, 0.15)) * (1 - accuracy)
        shares[label] += 1 - shares.sum()
        counts.append(draws.multinomial(IMAGES, shares).tolist())
    return counts


def retrained(
    draws: np.random.Generator, arm: str, seed: int, base: float, classes: int, length: int
) -> tuple[Trial, list[dict[str, Any]]]:
    accuracy = float(np.clip(base + draws.normal(0, 0.008), 0, 1))
    found = probabilities(draws, classes, 4, 3.0) if ROLES[arm] in LEARNED else None
    counts = confusion(draws, classes, accuracy)
    cells = np.array(counts)
    answers = [draws.permutation(np.repeat(np.arange(classes), row)) for row in cells]
    result: dict[str, Any] = {
        "validation_accuracy": min(1.0, accuracy + 0.01), "test_accuracy": float(np.trace(cells) / cells.sum()),
        "architecture": None, "test_images": int(cells.sum()), "confusion": counts,
        "predictions": np.concatenate(answers).tolist(),
    }  # fmt: skip
    if found is not None:
        result["probabilities"] = {name: p.round(4).tolist() for name, p in found.items()}
        result["architecture"] = architecture(found)
        losses = {"soft": 0.02, "drawn": 0.05, "raw": 0.03, "hard": 0.04, "inherited": 0.04}
        result["gap"] = {step: accuracy - loss for step, loss in losses.items()}
    elif arm in ("random", "bayesian", "confusion"):
        result["architecture"] = architecture(probabilities(draws, classes, 3, 3.0))
    trial = Trial(
        arm, "retrain", seed, seed, "complete", EPOCH_PASSES * length, seconds=0.1 * length,
        score=result["validation_accuracy"], result=result,
    )  # fmt: skip
    return trial, epochs(draws, accuracy, length, found)


def searched(draws: np.random.Generator, arm: str, number: int, base: float, length: int) -> Trial:
    state = ["complete", "complete", "complete", "failed", "complete", "pruned"][(number + len(arm)) % 6]
    share = 1.0 if state == "complete" else 0.4
    return Trial(
        arm, "search", number, number, state, int(EPOCH_PASSES * length * share), seconds=0.1 * length * share,
        score=base + draws.normal(-0.02, 0.02) if state == "complete" else None,
        params={"values": {"learning_rate": 0.002 * (number + 1), "rate": 0.1 * number}},
        reason=None if state == "complete" else "loss became NaN in epoch 12",
    )  # fmt: skip


def made_up(
    *,
    arms: Sequence[str] = tuple(ROLES)[:7],
    classes: int = 10,
    seeds: int = 5,
    trials: int = 6,
    length: int = 32,
    keep: Callable[[Trial], bool] = lambda trial: True,
    change: Callable[[Trial], Trial] = lambda trial: trial,
    with_epochs: bool = True,
) -> ReportView:
    """A study with invented results: the same for the same arguments.

    `keep` and `change` say which trials there are and what they are, before the arms are compared.
    """
    draws = np.random.default_rng(7)
    found: list[Trial] = []
    records: dict[TrialKey, list[dict[str, Any]]] = {}
    for index, arm in enumerate(arms):
        base = 0.90 - 0.006 * ((index * 5) % 7)
        if ROLES[arm] != "placebo":
            found += [searched(draws, arm, number, base, length) for number in range(trials)]
        for seed in range(seeds):
            trial, records_of_it = retrained(draws, arm, seed, base, classes, length)
            found.append(trial)
            records[trial.key] = records_of_it
    kept = [change(trial) for trial in found if keep(trial)]
    names = [str(label) for label in range(classes)] if classes <= 10 else [chr(33 + label) for label in range(classes)]
    study = {"schema_version": 2, "name": "made-up", "question": "Does learned structure beat searched structure?",
             "seed": 0, "retrain": {"seeds": list(range(seeds))}}  # fmt: skip
    environment = {"python": "3.11.2", "processors": 2, "packages": {"torch": "2.13.0", "mlflow": None}}
    budget = EPOCH_PASSES * length * (trials + seeds)
    return ReportView(
        compared(kept, arms, budget), study, environment, kept, records if with_epochs else {}, names,
        album=Album(made_up_splits(classes)),
        hierarchy={"half": [label * 2 // classes for label in range(classes)]}, importance=decided(kept),
    )  # fmt: skip


def decided(trials: Sequence[Trial]) -> dict[str, dict[str, tuple[float, float]]]:
    """What the parameters of each search decided: the learning rate everything that is beyond chance."""
    searched = dict.fromkeys(t.arm for t in trials if t.phase == "search" and t.state == "complete")
    return {arm: {"learning_rate": (0.8, 0.4), "rate": (0.2, 0.5)} for arm in searched}


def made_up_splits(classes: int) -> Splits:
    """Noise of 8 x 8 pixels: four validation images a class, and as many test images as were answered."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Labeled:
        pixels = torch.randint(256, (classes * count, 1, 8, 8), dtype=torch.uint8, generator=generator)
        return Labeled(pixels, torch.arange(classes).repeat_interleave(count))

    preprocessing = Preprocessing(1, 8, 8, mean=(0.5,), std=(0.3,))
    part, test = images(4).normalized(preprocessing), images(IMAGES)
    names = tuple(map(str, range(classes)))
    return Splits(part, part, preprocessing=preprocessing, class_names=names, load_test=lambda: test)


def compared(trials: Sequence[Trial], arms: Sequence[str], budget: int) -> dict[str, Any]:
    """The comparison.json of the trials."""
    models = {arm: {t.seed: t for t in trials if t.arm == arm and t.is_model} for arm in arms}
    scores = {arm: {seed: t.outcome["test_accuracy"] for seed, t in own.items()} for arm, own in models.items() if own}
    learned = [arm for arm in scores if ROLES[arm] == "learned"]
    pairs = [(a, b) for a in learned for b in scores if b != a and not (b in learned and b < a)]
    found = significance.compare(scores, pairs=pairs or None)
    ranking = list(found.ranking) if found.ranking and len(scores) == len(arms) else None
    return {
        "schema_version": 2,
        "study": "made-up",
        "budget": {"unit": "sample_passes", "per_arm": budget, "tolerance": 0.02},
        "arms": {arm: arm_document(arm, index, trials, models[arm]) for index, arm in enumerate(arms)},
        "pairs": [pair_document(pair) for pair in found.pairs],
        "ranking": ranking,
        "ranking_seeds": sorted(scores[ranking[0]]) if ranking else [],
        "reason": None if ranking else (found.reason or "an arm has no retrained model"),
    }


def pair_document(pair: significance.Pair) -> dict[str, Any]:
    return {
        "a": pair.a, "b": pair.b, "difference": pair.test.difference, "ci95": pair.test.ci95, "seeds": pair.test.n,
        "p": pair.test.p_value, "p_permutation": pair.test.p_permutation, "p_holm": pair.p_holm,
        "smallest_effect": pair.smallest_effect, "verdict": pair.verdict,
    }  # fmt: skip


def arm_document(arm: str, index: int, trials: Sequence[Trial], models: Mapping[int, Trial]) -> dict[str, Any]:
    own = [t for t in trials if t.arm == arm]

    def spent(phase: str) -> dict[str, float]:
        of_phase = [t for t in own if t.phase == phase]
        return {"sample_passes": sum(t.sample_passes for t in of_phase), "seconds": sum(t.seconds for t in of_phase)}

    def accuracy(key: str) -> dict[str, Any] | None:
        values = {seed: t.outcome[key] for seed, t in models.items()}
        if not values:
            return None
        found = significance.summary(values, bounds=(0, 1))
        named = {str(seed): value for seed, value in values.items()}
        return {"mean": found.mean, "std": found.std, "ci95": found.ci95, "per_seed": named}

    size = 40_000 + 37_000 * ((index * 3) % 7)
    lost = [t for t in own if t.state in ("failed", "pruned")]
    return {
        "description": "made up",
        "role": ROLES[arm],
        "seeds_cover": "retraining",
        "trials": len(own),
        "failed": sum(t.state == "failed" for t in own),
        "pruned": sum(t.state == "pruned" for t in own),
        "missing_seeds": [],
        "cost": {
            "search": spent("search"),
            "retrain": spent("retrain"),
            "overhead_seconds": 1.5,
            "forfeited_sample_passes": sum(t.sample_passes for t in lost if t.state == "failed"),
        },
        "validation_accuracy": accuracy("validation_accuracy"),
        "test_accuracy": accuracy("test_accuracy"),
        "exported_seed": max(models, key=lambda seed: models[seed].score or 0.0, default=None),
        "parameters": size if models else None,
        "macs": 9 * size if models else None,
        "macs_per_seed": {str(seed): 9 * size for seed in models},
        "latency_ms": latency_document(size) if models else None,
        "architecture": f"{index:016x}" if models else None,
        "settings": {"seed": 0},
    }


def latency_document(size: int) -> dict[str, Any]:
    one, many = 0.1 + size / 4e5, 2 + size / 3e4
    return {
        "batch_1": one, "batch_256": many, "batch_1_quartiles": [0.98 * one, 1.03 * one],
        "batch_256_quartiles": [0.97 * many, 1.05 * many], "rounds": 20,
    }  # fmt: skip


@pytest.fixture(scope="session", name="made_up")
def made_up_studies() -> Callable[..., ReportView]:
    """The function `made_up`."""
    return made_up


@pytest.fixture(scope="session")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of seven arms, with its report."""
    return once(tmp_path_factory, "report", lambda folder: write(made_up(), Folder(folder)))


@pytest.fixture(scope="session")
def large_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of twelve arms and 94 classes, with its report."""
    large = made_up(arms=tuple(ROLES), classes=94, trials=10, length=40)
    # The page alone: to write its figures as files, too, takes as long once more.
    return once(tmp_path_factory, "large-report", lambda folder: write_text(Folder(folder).report, render(large)))
