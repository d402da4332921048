"""Single test images: those that only one arm classifies correctly, as a table and a figure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_blockout import plots
from services.analysis.comparison import ComparisonDocument
from services.report.figure import Picture, counted
from services.report.view import ReportView, in_order

MOST_SAMPLES = 6
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
        "inspection, not for selection. There is no band.",
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
