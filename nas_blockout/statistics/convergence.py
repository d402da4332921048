"""How soon one training reaches what another one ends with: convergence as a budget, paired by seed.

An accuracy that goes up and down reaches a level sooner than it stays there, whoever's it is. So what is reached is
held against the budget after which the other training itself first had its final accuracy, not against all of it.
That would flatter whoever is compared with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

Curve = Sequence[tuple[float, float]]
"""Cumulated cost and accuracy after each epoch, in the order of the epochs."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """What one arm needs to reach the final accuracy of another, by seed.

    Args:
        reached: Cost after which it first has the other's final accuracy or better; None if it never has.
        own: Cost after which the other first has it.
    """

    reached: Mapping[int, float | None]
    own: Mapping[int, float]

    @property
    def ratios(self) -> dict[int, float]:
        """By seed, the first cost as a share of the second; infinite where it is never reached."""
        return {
            seed: math.inf if (cost := self.reached[seed]) is None else cost / own for seed, own in self.own.items()
        }

    @property
    def median(self) -> float:
        """The median of the ratios: .5 means half of the budget; infinite if most seeds never get there."""
        return median(self.ratios.values())

    @property
    def never(self) -> int:
        """Seeds that never reach it."""
        return sum(cost is None for cost in self.reached.values())


def budget_to_final(curves: Mapping[int, Curve], others: Mapping[int, Curve]) -> Convergence:
    """Compare the budgets that two arms need for the final accuracy of the second, over the seeds that both have.

    Args:
        curves: Of the arm, by seed.
        others: Of the other arm, by seed; the accuracy after its last epoch is what is to be reached.

    Raises:
        ValueError: They share no seed, a curve has no epoch, or its costs are not positive and rising.
    """
    seeds = sorted(curves.keys() & others.keys())
    if not seeds:
        raise ValueError(f"curves must share a seed, got seeds {sorted(curves)} and {sorted(others)}")
    for curve in [curve for seed in seeds for curve in (curves[seed], others[seed])]:
        costs = [0.0, *(cost for cost, _ in curve)]
        if len(costs) < 2 or any(after <= before for before, after in pairwise(costs)):
            raise ValueError(f"costs of a curve must be positive and rise from epoch to epoch, got {costs[1:]}")
    finals = {seed: others[seed][-1][1] for seed in seeds}
    reached = {seed: _first(curves[seed], finals[seed]) for seed in seeds}
    own = {seed: min(cost for cost, value in others[seed] if value >= finals[seed]) for seed in seeds}
    return Convergence(reached, own)


def _first(curve: Curve, accuracy: float) -> float | None:
    return next((cost for cost, value in curve if value >= accuracy), None)
