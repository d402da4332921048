"""Sections of a model card on use, training data, evaluation, how it was found, and its probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_RIVALS = 20


@dataclass(frozen=True, slots=True)
class Rival:
    """Another arm of the study.

    Args:
        name: Of the arm.
        role: What it is for: ``learned``, ``placebo``, ``ablation`` or ``baseline``.
        accuracy: Its test accuracy over seeds, as a text.
        macs: Multiply-accumulates an image of its model, or None.
    """

    name: str
    role: str
    accuracy: str
    macs: int | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from: its data, the search that found it, and what it ran on.

    Args:
        source: What the data set holds, in one line.
        validation_images: Images that every choice was made on.
        split_seed: Seed of the random choices of the split.
        augmentation: Of the training images, or ``none``.
        epochs: Of the training.
        searcher: Search algorithm of the arm.
        trials: Trials of the arm, retrainings included.
        budget: Of each arm, as a text.
        seeds: With which its winner was retrained.
        mean_accuracy: Mean test accuracy over those seeds, in [0, 1], or None.
        interval: 95% interval of that mean, or None where the seeds cannot give one.
        seeds_cover: What a seed repeats.
        rivals: The other arms of the study.
        environment: Version of each package, by name.
        commit: Of the source of nas_blockout, or None where it is not known.
        folds: Into how many folds the images were divided; None for one division.
        fold: The one that this training held out.
    """

    source: str
    validation_images: int
    split_seed: int
    augmentation: str
    epochs: int
    searcher: str
    trials: int
    budget: str
    seeds: Sequence[int]
    mean_accuracy: float | None = None
    interval: tuple[float, float] | None = None
    seeds_cover: str = "retraining"
    rivals: Sequence[Rival] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    folds: int | None = None
    fold: int | None = None


def training_data(
    known: Provenance, *, data: str, train_images: int, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Return the section on the images that the model was trained and chosen on.

    Args:
        known: Where the model comes from.
        data: Name of the data set.
        train_images: Images that it was trained on.
        mean: Of each channel, of images in [0, 1].
        std: Likewise the standard deviation.
    """
    of_folds = _of_folds(known)
    numbers = ", ".join(f"{a:.4g} and {b:.4g}" for a, b in zip(mean, std, strict=True))
    return f"""## Training data

`{data}`: {known.source}. {train_images:,} images were trained on for {known.epochs} epochs, with the augmentation
`{known.augmentation}`; {known.validation_images:,} other images decided every choice. The split has the seed
{known.split_seed}. Mean and standard deviation of each channel, of the training images alone: {numbers}.{of_folds}"""


def _of_folds(known: Provenance) -> str:
    if known.folds is None:
        return ""
    return (
        f" For cross-validation all images that are no test images are in {known.folds} folds: this training held out "
        f"fold {known.fold}, those with other seeds the others."
    )


def evaluation(known: Provenance, *, seed: int, accuracy: float | None, images: int | None) -> str:
    """Return the section on what was measured on test images.

    Args:
        known: Where the model comes from.
        seed: Of the training that is exported.
        accuracy: Test accuracy of this very model, in [0, 1], or None.
        images: Test images behind it.
    """
    if accuracy is None:
        return "## Evaluation\n\nThe test accuracy of this model was not measured."
    rows = [f"| this model, seed {seed} | {accuracy:.2%} | | 1 |"]
    if known.mean_accuracy is not None:
        interval = "not known" if known.interval is None else f"{known.interval[0]:.2%} to {known.interval[1]:.2%}"
        number = len(known.seeds)
        rows.append(f"| mean over seeds | {known.mean_accuracy:.2%} | {interval} | {number} |")
    lines = "\n".join(rows)
    of_folds = ", each on the fold that it held out" if known.folds is not None else ""
    corrected = "" if known.folds is None else " Trainings of folds share images: the interval is by the corrected t."
    return f"""## Evaluation

Accuracy on {images or 0:,} test images, which were read once for each retrained model, after every choice had been made
on validation images. A seed repeats {known.seeds_cover}, not the search. The exported seed is that with the best
validation accuracy{of_folds}.{corrected}

| | test accuracy | 95% interval | n |
|---|---|---|---|
{lines}"""


def how_found(known: Provenance, *, study: str, arm: str, verdict: str) -> str:
    """Return the section on the study: search, budget, seeds, rivals, verdict, software.

    Args:
        known: Where the model comes from.
        study: Name of the study.
        arm: The arm that the model won.
        verdict: What the study found, in one sentence.
    """
    seeds = ", ".join(map(str, known.seeds)) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in known.environment.items())
    commit = f", commit `{known.commit}`" if known.commit else "; the commit of nas_blockout is not known"
    text = f"""## How it was found

nas_blockout, study `{study}`, arm `{arm}`: {known.trials} trials, retrainings included, by `{known.searcher}`, each
arm with a budget of {known.budget}. The trial with the best validation result was retrained with the seeds {seeds}."""
    if known.rivals:
        rows = "\n".join(
            f"| `{rival.name}` | {rival.role} | {rival.accuracy} | {'' if rival.macs is None else f'{rival.macs:,}'} |"
            for rival in known.rivals[:MOST_RIVALS]
        )
        more = len(known.rivals) - MOST_RIVALS
        text += "\n\nIt was compared under the same rules with:\n\n| arm | role | test accuracy | MACs an image |\n"
        text += f"|---|---|---|---|\n{rows}" + (f"\n\nand {more} more arms." if more > 0 else "")
    said = f"\n\nVerdict of the study: {verdict}" if verdict.strip() else ""
    return f"{text}{said}\n\nSoftware: {versions}{commit}." if versions else f"{text}{said}"


def probabilities(found: Mapping[str, Any]) -> str:
    """Return the section on how good the probabilities are, and on images that are unlike those of validation.

    Args:
        found: ``temperature``, ``calibration`` and ``novelty``, as in ``preprocessing.json``; empty if not known.
    """
    parts = ["## Probabilities"]
    temperature, calibration, novelty = (found.get(key) for key in ("temperature", "calibration", "novelty"))
    if temperature is None:
        parts.append(
            "The softmax of the logits is not calibrated: `nas-blockout export STUDY ARM --calibrate` does it."
        )
    else:
        parts.append(
            f"Divide the logits by the temperature {temperature:.4g} before the softmax. It was fitted on validation "
            "images, does not\nchange which class is most probable, and is in `preprocessing.json`; the model gives "
            "logits without it."
        )
    if calibration:
        parts.append(_calibration_table(calibration))
    if novelty:
        parts.append(
            f"An image is less like the validation images than {1 - novelty['quantile']:.0%} of {novelty['images']:,} "
            "of them if the energy of its\nlogits, the logarithm of the sum of their exponentials, is below "
            f"{novelty['energy']:.4g}, or if its mean, standard\ndeviation and mean step between neighbors lie far "
            "from theirs (`preprocessing.json`). It may still be classified\nrightly, and an image of another kind may "
            "pass."
        )
    return "\n\n".join(parts)


def _calibration_table(calibration: Mapping[str, Any]) -> str:
    rows = []
    for part in ("validation", "test"):
        for name, label in (("nll", "negative log-likelihood"), ("ece", "expected calibration error")):
            found = calibration.get(part)
            if found:
                before, after = (_with_interval(found[when][name]) for when in ("before", "after"))
                rows.append(f"| {part}, {found['before']['images']:,} images | {label} | {before} | {after} |")
    untested = (
        ""
        if calibration.get("test")
        else (
            "\n\nThere are no numbers of test images: they had been classified before the temperature was fitted, and "
            "are not read a second time."
        )
    )
    table = "\n".join(("| images | | logits as they are | divided by the temperature |", "|---|---|---|---|", *rows))
    return f"""{table}

With 95% intervals over the images (bootstrap). The error has 15 bins of equal width by the largest probability. On
validation images it is measured where the temperature was fitted, which flatters it.{untested}"""


def _with_interval(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['value']:.4f} ({low:.4f} to {high:.4f})"
