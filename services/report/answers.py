"""Single test images: those that only one arm gets right, as a table and a figure."""

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
class Alone:
    """An arm against all others, image by image.

    Args:
        arm: Its name.
        seeds: Retrained models that answered.
        right: Numbers of the images that it alone gets right.
        wrong: Numbers of the images that it alone does not get right.
    """

    arm: str
    seeds: int
    right: tuple[int, ...]
    wrong: tuple[int, ...]


def predictions(view: ReportView) -> dict[str, Answers]:
    """Return, by arm, the predicted class of each test image, (seeds, images), where predictions were stored."""
    found: dict[str, list[Sequence[int]]] = {}
    for name in view.comparison["arms"]:
        kept = [trial.outcome["predictions"] for trial in view.models(name) if trial.outcome.get("predictions")]
        if kept:
            found[name] = kept
    return {name: np.array(kept) for name, kept in found.items() if len({len(answers) for answers in kept}) == 1}


def apart(view: ReportView, document: ComparisonDocument) -> list[Alone]:
    """Return each arm against all others; nothing if the answers of fewer than two arms, or the images, are missing.

    An arm gets an image right if more than half of its retrained models do.
    """
    answers = predictions(view)
    if len(answers) < 2 or view.album is None:
        return []
    labels = view.album.test_labels
    if any(found.shape[1] != len(labels) for found in answers.values()):
        return []
    right = {name: (answers[name] == labels).mean(axis=0) > 0.5 for name in in_order(document) if name in answers}
    count = np.sum(list(right.values()), axis=0)
    return [
        Alone(
            name,
            len(answers[name]),
            tuple(np.flatnonzero(own & (count == 1)).tolist()),
            tuple(np.flatnonzero(~own & (count == len(right) - 1)).tolist()),
        )
        for name, own in right.items()
    ]


def alone(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield images that only one arm gets right, if there are any."""
    found = [each for each in apart(view, document) if each.right]
    if not found or view.album is None:
        return
    answers = predictions(view)
    names = view.names_of(max(int(view.album.test_labels.max()), *(int(a.max()) for a in answers.values())) + 1)
    yield Picture(
        "alone",
        "Test images that only one arm gets right",
        "An arm gets an image right if more than half of its retrained models do. Below each image its class, and what "
        f"the models of the other arms took it for most often; at most {MOST_SAMPLES} images an arm, in the order of "
        "the data. They were chosen by the answers to the test: to look at, not to select by. There is no band.",
        f"{counted([each.seeds for each in found], 'seed')} an arm, {len(view.album.test_labels):,} test images",
        "the store, result.predictions",
        plots.figure_samples([_row(view, each, answers, names) for each in found]),
    )


def _row(view: ReportView, each: Alone, answers: Mapping[str, Answers], names: Sequence[str]) -> plots.SampleRow:
    assert view.album is not None, "without images nothing was found"
    chosen = each.right[:MOST_SAMPLES]
    labels = view.album.test_labels
    samples = []
    for number, image in zip(chosen, view.album.of_test(chosen), strict=True):
        others = Counter(int(a) for name, found in answers.items() if name != each.arm for a in found[:, number])
        del others[int(labels[number])]
        taken_for = min(others, key=lambda label: (-others[label], label))
        samples.append(plots.Sample(image, names[int(labels[number])], f"not {names[taken_for]}"))
    return plots.SampleRow(each.arm, f"{len(each.right)} alone", tuple(samples))
