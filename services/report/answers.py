"""Single test images: those that only one arm classifies correctly, and which blocks of a network each one keeps."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_blockout import plots
from nas_blockout.serialization import count_of
from services.analysis.comparison import ComparisonDocument
from services.report.figure import Picture, counted
from services.report.view import ReportView, in_order
from services.trial_record import Trial

MOST_SAMPLES = 6
MOST_EXTREMES, MOST_PATHS, MOST_GROUPS = 12, 8, 20
Answers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class UniqueAnswers:
    """The test images on which an arm differs from all others.

    Args:
        arm: Its name.
        seeds: Number of retrained models with stored predictions.
        only_correct: Numbers of the images that only this arm classifies correctly.
        only_incorrect: Numbers of the images that only this arm does not classify correctly.
    """

    arm: str
    seeds: int
    only_correct: tuple[int, ...]
    only_incorrect: tuple[int, ...]


def predictions(view: ReportView) -> dict[str, Answers]:
    """Return, by arm, the predicted class of each test image, (seeds, images), where predictions were stored."""
    by_arm: dict[str, list[Sequence[int]]] = {}
    for name in view.comparison["arms"]:
        stored = [trial.outcome["predictions"] for trial in view.models(name) if trial.outcome.get("predictions")]
        if stored:
            by_arm[name] = stored
    # Models tested on different numbers of images cannot be compared image by image.
    return {name: np.array(stored) for name, stored in by_arm.items() if len(set(map(len, stored))) == 1}


def unique_answers(view: ReportView, document: ComparisonDocument) -> list[UniqueAnswers]:
    """Return where each arm differs from all others; nothing without images or with predictions of fewer than two arms.

    An arm classifies an image correctly if more than half of its retrained models do.
    """
    answers = predictions(view)
    if len(answers) < 2 or view.album is None:
        return []
    labels = view.album.test_labels
    if any(predicted.shape[1] != len(labels) for predicted in answers.values()):
        return []
    correct = {name: (answers[name] == labels).mean(axis=0) > 0.5 for name in in_order(document) if name in answers}
    count = np.sum(list(correct.values()), axis=0)
    return [
        UniqueAnswers(
            name,
            len(answers[name]),
            tuple(np.flatnonzero(arm_correct & (count == 1)).tolist()),
            tuple(np.flatnonzero(~arm_correct & (count == len(correct) - 1)).tolist()),
        )
        for name, arm_correct in correct.items()
    ]


def only_correct_images(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield images that only one arm classifies correctly, if there are any."""
    arms = [arm for arm in unique_answers(view, document) if arm.only_correct]
    if not arms or view.album is None:
        return
    answers = predictions(view)
    names = view.names_of(max(int(view.album.test_labels.max()), *(int(a.max()) for a in answers.values())) + 1)
    yield Picture(
        "alone",
        "Test images that only one arm classifies correctly",
        "An arm classifies an image correctly if more than half of its retrained models do. Below each image are its "
        "class and the most frequent wrong prediction of the other arms. Each arm shows at most "
        f"{MOST_SAMPLES} images, in the order of the data. The images were chosen by test predictions, so they are for "
        "inspection, not for selection.",
        f"{counted([arm.seeds for arm in arms], 'seed')} per arm, {len(view.album.test_labels):,} test images",
        "the store, result.predictions",
        plots.figure_samples([_row(view, arm, answers, names) for arm in arms]),
    )


def _row(view: ReportView, arm: UniqueAnswers, answers: Mapping[str, Answers], names: Sequence[str]) -> plots.SampleRow:
    assert view.album is not None, "unique answers need the images"
    chosen = arm.only_correct[:MOST_SAMPLES]
    labels = view.album.test_labels
    samples = []
    for number, image in zip(chosen, view.album.of_test(chosen), strict=True):
        others = Counter(
            int(label) for name, predicted in answers.items() if name != arm.arm for label in predicted[:, number]
        )
        # Some models of the other arms may be correct; a majority of each arm is not, so a wrong class remains.
        del others[int(labels[number])]
        predicted_class = min(others, key=lambda label: (-others[label], label))
        samples.append(plots.Sample(image, names[int(labels[number])], f"not {names[predicted_class]}"))
    count = len(arm.only_correct)  # of all of them, not only of those shown
    return plots.SampleRow(arm.arm, f"{count} image{'s' * (count > 1)}", tuple(samples))


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The blocks that one retrained model keeps for each test image.

    Args:
        trial: The retraining.
        keep: Whether each block is kept, bool, (images, blocks).
        fixed: Multiply-accumulates an image of what always runs, but for the policy.
        policy: Likewise of the policy.
        costs: Likewise of each block.
    """

    trial: Trial
    keep: NDArray[np.bool_]
    fixed: int
    policy: int
    costs: tuple[int, ...]

    @property
    def full(self) -> int:
        """Multiply-accumulates an image of the network with all blocks and without a policy."""
        return self.fixed + sum(self.costs)

    @property
    def macs(self) -> float:
        """Mean multiply-accumulates a test image, the policy counted in."""
        return self.policy + self.fixed + float((self.keep @ np.array(self.costs)).mean())


def kept_blocks(view: ReportView, document: ComparisonDocument) -> dict[str, list[Kept]]:
    """Return, by arm whose networks skip blocks, what each retrained model keeps."""
    by_arm: dict[str, list[Kept]] = {}
    for name in in_order(document):
        for trial in view.models(name):
            if blocks := trial.outcome.get("blocks"):
                keep = np.array(blocks["paths"], dtype=bool)[np.array(blocks["path_of"], dtype=np.int64)]
                costs = tuple(blocks["blocks"])
                by_arm.setdefault(name, []).append(Kept(trial, keep, blocks["fixed"], blocks["policy"], costs))
    return by_arm


def paths(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield what a policy that reads the image does with the test images: how many blocks, which, and for which."""
    for number, (name, models) in enumerate(kept_blocks(view, document).items()):
        if not any(model.policy for model in models):
            continue  # one path for all images
        shown = next((model for model in models if model.trial.seed == document.arms[name].exported_seed), models[0])
        yield _histogram(number, name, models)
        if view.album is None or len(view.album.test_labels) != len(shown.keep):
            continue
        yield from _by_group(view, number, name, shown)
        if len(np.unique(shown.keep, axis=0)) > 1:
            yield _extremes(view, number, name, shown)
            yield _common(view, number, name, shown)


def _histogram(number: int, name: str, models: Sequence[Kept]) -> Picture:
    blocks = models[0].keep.shape[1]
    counts = [np.bincount(model.keep.sum(axis=1), minlength=blocks + 1) / len(model.keep) for model in models]
    return Picture(
        f"blocks-{number}",
        "Blocks that the policy keeps",
        "Above, how many blocks the test images keep; below, how many images keep each block. Bars are means over "
        "seeds, dots are seeds. A block that all images keep or drop needs no policy.",
        f"{counted([len(models)], 'seed')}, {len(models[0].keep):,} test images",
        "the store, result.blocks",
        plots.figure_kept_blocks(
            [row.tolist() for row in counts], [model.keep.mean(axis=0).tolist() for model in models]
        ),
        name,
    )


def _by_group(view: ReportView, number: int, name: str, shown: Kept) -> Iterator[Picture]:
    """Yield blocks by class and by difficulty, which is how many models of other arms an image misleads."""
    assert view.album is not None, "the caller has looked"
    labels, used = view.album.test_labels, shown.keep.sum(axis=1)
    others = [answers for arm, answers in predictions(view).items() if arm != name]
    others = [answers for answers in others if answers.shape[1] == len(labels)]
    if not others:
        return
    wrong = (np.concatenate(others) != labels).mean(axis=0)
    bins = [(-1.0, 0.0), (0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.999), (0.999, 1.0)]
    texts = ["0", "to 25", "to 50", "to 75", "to 99", "100"]
    difficulty = [
        _group(text, used[(wrong > low) & (wrong <= high)]) for text, (low, high) in zip(texts, bins, strict=True)
    ]
    names = view.names_of(int(labels.max()) + 1)
    classes = [_group(text, used[labels == label]) for label, text in enumerate(names) if (labels == label).any()]
    widest = sorted(classes, key=lambda group: group.mean)
    if len(widest) > MOST_GROUPS:
        widest = [*widest[: MOST_GROUPS // 2], *widest[-MOST_GROUPS // 2 :]]
    yield Picture(
        f"difficulty-{number}",
        "Blocks by difficulty and by class",
        "Above, test images grouped by the share of the other arms' models that classify them incorrectly; the number "
        "of images stands below each group. Below, the classes"
        f"{'' if len(widest) == len(classes) else ' with the fewest and the most blocks'}. Bars are standard errors of "
        "the mean over images. If hard images took longer paths, the upper line would rise.",
        f"n = 1 model, seed {shown.trial.seed}, {len(labels):,} test images, {sum(map(len, others))} other models",
        "the store, result.blocks and result.predictions",
        plots.figure_blocks_by_group([group for group in difficulty if group.images], widest),
        name,
    )


def _group(name: str, used: NDArray[np.int64]) -> plots.Group:
    error = float(used.std() / len(used) ** 0.5) if len(used) else 0.0
    return plots.Group(name, float(used.mean()) if len(used) else 0.0, error, len(used))


def _extremes(view: ReportView, number: int, name: str, shown: Kept) -> Picture:
    assert view.album is not None, "the caller has looked"
    labels, used = view.album.test_labels, shown.keep.sum(axis=1)
    order = np.argsort(used, kind="stable")
    names = view.names_of(int(labels.max()) + 1)
    rows = []
    for heading, chosen in (("fewest blocks", order[:MOST_EXTREMES]), ("most blocks", order[::-1][:MOST_EXTREMES])):
        images = view.album.of_test(chosen.tolist())
        samples = tuple(
            plots.Sample(image, names[int(labels[index])], count_of(int(used[index]), "block"))
            for image, index in zip(images, chosen.tolist(), strict=True)
        )
        as_many = int((used == used[chosen[0]]).sum())
        rows.append(plots.SampleRow(heading, f"{as_many:,} images keep as many as the first", samples))
    return Picture(
        f"extremes-{number}",
        "Test images that keep the fewest and the most blocks",
        "Of images that keep equally many, the first or the last in the order of the data.",
        f"n = 1 model, seed {shown.trial.seed}, {len(labels):,} test images",
        "the store, result.blocks",
        plots.figure_samples(rows),
        name,
    )


def _common(view: ReportView, number: int, name: str, shown: Kept) -> Picture:
    assert view.album is not None, "the caller has looked"
    distinct, path_of, counts = np.unique(shown.keep, axis=0, return_inverse=True, return_counts=True)
    path_of = path_of.ravel()
    most = np.argsort(-counts, kind="stable")[:MOST_PATHS]
    rows = [
        plots.CommonPath(
            tuple(map(bool, distinct[path])),
            float(counts[path] / len(path_of)),
            tuple(view.album.of_test(np.flatnonzero(path_of == path)[: plots.IMAGES_A_PATH].tolist())),
        )
        for path in most
    ]
    return Picture(
        f"paths-{number}",
        "The most common paths and images that take them",
        "A strip is a path: from left to right the blocks of the network, colored where the block is kept. Beside it "
        f"are the first test images that take it. These {len(rows)} of {len(distinct)} distinct paths are taken by "
        f"{counts[most].sum() / len(path_of):.1%} of the images.",
        f"n = 1 model, seed {shown.trial.seed}, {len(path_of):,} test images",
        "the store, result.blocks",
        plots.figure_common_paths(rows),
        name,
    )
