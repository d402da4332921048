"""Figures that would have nothing to show, and the sentence that stands in their place."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from services.analysis.comparison import ArmResult
from services.report.figure import Remark

FLAT = 0.05  # probabilities that differ by less tell nothing apart


def spread(rows: Sequence[Sequence[float]]) -> float:
    """Return the largest difference between two rows in one of their columns; 0 without rows."""
    return max((max(column) - min(column) for column in zip(*rows, strict=True)), default=0.0)


def flat_projection(number: int, name: str, probabilities: Mapping[str, Sequence[Sequence[float]]]) -> Remark | None:
    """Return what is said in place of the nodes by their probabilities, if all nodes have the same ones."""
    rows = [row for p in probabilities.values() for row in p]
    if (most := spread(rows)) >= FLAT:
        return None
    return Remark(
        f"projection-{number}",
        "Nodes by their membership probabilities",
        f"The membership probabilities of all {len(rows):,} nodes differ by {most:.4f} at most, so no node belongs to "
        "a branch of its own.",
        name,
    )


def flat_masks(number: int, name: str, probabilities: Mapping[str, Sequence[Sequence[float]]]) -> Remark | None:
    """Return what is said in place of the masks, if all weights are kept with the same probability."""
    layers = list(probabilities.values())
    if any(spread(p) >= FLAT for p in layers):
        return None
    kept = [1 - _lost(before[0], after[0]) for before, after in pairwise(layers)]  # of any node as of the first
    return Remark(
        f"masks-{number}",
        "Masks, with nodes sorted by cluster",
        f"All weights are kept with nearly the same probability ({min(kept):.3f} to {max(kept):.3f}): the masks have "
        "no blocks and separate no branches.",
        name,
    )


def flat_classes(number: int, name: str, expected: Sequence[Sequence[float]], clusters: int) -> Remark | None:
    """Return what is said in place of the clusters of each class, if all classes are expected to have as many."""
    low, high = _ends(expected)
    if high - low >= FLAT:
        return None
    return Remark(
        f"classes-{number}",
        "Expected clusters of each class",
        f"Every class is expected to belong to the same number of clusters, {low:.4f} to {high:.4f} of {clusters}, in "
        f"{len(expected)} seed{'s' * (len(expected) > 1)}: no class has a branch of its own.",
        name,
    )


def flat_front(
    arms: Mapping[str, ArmResult], known: Mapping[str, float], name: str, title: str, label: str
) -> Remark | None:
    """Return what is said in place of a front, if there are not two arms of different cost to draw."""
    drawn = {arm: cost for arm, cost in known.items() if arms[arm].test_accuracy is not None}
    if len(set(drawn.values())) > 1 or not drawn:
        return None
    cost = next(iter(drawn.values()))
    which = f"All {len(drawn)} arms have" if len(drawn) > 1 else f"Only {next(iter(drawn))} has a known cost,"
    return Remark(name, title, f"{which} {cost:,.4g} {label}: there is no trade-off to draw.")


def _ends(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    values = [value for row in rows for value in row]
    return min(values), max(values)


def _lost(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the probability that two nodes share no cluster."""
    lost = 1.0
    for a, b in zip(before, after, strict=True):
        lost *= 1 - a * b
    return lost
