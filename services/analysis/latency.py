"""Latency of the exported models, and which of them it tells apart: those whose spreads do not overlap."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Self

from pydantic import Field, model_validator

from services.analysis.seed_metrics import Amount, Count, Strict

Quartiles = tuple[Amount, Amount]


class Latency(Strict):
    """Milliseconds a batch of the exported model: medians over interleaved rounds of all models, and their spread.

    Without quartiles, as in studies of earlier versions, every model was measured by itself: such figures show no
    difference between models.
    """

    batch_1: Amount
    batch_256: Amount
    batch_1_quartiles: Quartiles | None = Field(None, description="The middle half of the rounds.")
    batch_256_quartiles: Quartiles | None = Field(None, description="The middle half of the rounds.")
    rounds: Count | None = Field(None, description="In how many rounds all models were measured in turn.")

    @model_validator(mode="after")
    def _is_within_its_spread(self) -> Self:
        for median, spread in ((self.batch_1, self.batch_1_quartiles), (self.batch_256, self.batch_256_quartiles)):
            if spread is not None and not spread[0] <= median <= spread[1]:
                raise ValueError(f"a median lies between its quartiles, got {median} outside {spread}")
        return self

    @property
    def text(self) -> str:
        """Both medians with their spreads, in words."""
        one = f"one image {spread_text(self.batch_1, self.batch_1_quartiles)} ms"
        return f"{one}, a batch of 256 {spread_text(self.batch_256, self.batch_256_quartiles)} ms"


def spread_text(median: float, quartiles: Sequence[float] | None) -> str:
    """Return a median and the spread around it, such as ``0.31 (0.302 to 0.327)``."""
    if quartiles is None:
        return f"{_milliseconds(median)} (measured by itself, no spread)"
    return f"{_milliseconds(median)} ({_milliseconds(quartiles[0])} to {_milliseconds(quartiles[1])})"


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two spreads, each with a lower and an upper end, have a point in common: then they show no difference."""
    return one[0] <= other[1] and other[0] <= one[1]


def not_told_apart(spreads: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Return the groups of two or more whose spreads overlap, directly or through others of the group, lowest first.

    Args:
        spreads: By name the lower and the upper end.
    """
    groups: list[list[str]] = []
    reached = -inf  # the upper end of the group so far: whatever begins below it belongs to it
    for name in sorted(spreads, key=lambda name: (spreads[name][0], name)):
        if spreads[name][0] > reached:
            groups.append([])
        groups[-1].append(name)
        reached = max(reached, spreads[name][1])
    return [group for group in groups if len(group) > 1]


def undominated(points: Mapping[str, tuple[float, Sequence[float]]]) -> list[str]:
    """Return those that no other is shown to beat, the cheapest first.

    One beats another if its cost is shown to be lower, by spreads that do not overlap, and its accuracy is no lower;
    or if its accuracy is higher at exactly the same cost, which only costs without spread can have.

    Args:
        points: By name the accuracy, and the lower and the upper end of the cost; equal ends for a cost that is exact.
    """

    def beats(one: str, other: str) -> bool:
        (accuracy, cost), (other_accuracy, other_cost) = points[one], points[other]
        if cost[1] < other_cost[0]:
            return accuracy >= other_accuracy
        return cost[0] == cost[1] == other_cost[0] == other_cost[1] and accuracy > other_accuracy

    kept = [name for name in points if not any(beats(other, name) for other in points)]
    return sorted(kept, key=lambda name: (sum(points[name][1]), name))


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
