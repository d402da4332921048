"""Regularized evolution: the best of a few recent trials, changed in one parameter.

References:
    Real, Aggarwal, Huang, Le. Regularized Evolution for Image Classifier Architecture Search. AAAI 2019.

Differs from the paper in: a mutation draws a parameter of the space anew, since a space is a function and not a cell of
operations. Trials that were stopped early are in the population, below all complete ones.
"""

import random
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from services.search.sampler_history import Rank, SamplerHistory
from services.study_config.searching.searchers import POPULATION, TOURNAMENT
from services.trial_record import Trial


def evolution(history: SamplerHistory, seed: int) -> BaseSampler:
    """Return what proposes a changed copy of a trial, or random draws while there is no whole population.

    The population is the latest trials that are complete or were stopped early: each that ends takes the place of the
    oldest. A tournament of draws from it, with replacement, has the best of them as parent.

    Args:
        history: Search trials of the arm.
        seed: Of this proposal.
    """
    settings = history.rules.settings
    size = settings.population_size or POPULATION
    population = history.latest(size)
    if len(population) < size:
        return RandomSampler(seed=seed)
    return Mutation(parent_of(population, settings.tournament_size or TOURNAMENT, random.Random(seed)), seed)  # noqa: S311  # no secret


def parent_of(population: Sequence[tuple[Rank, Trial]], tournament: int, draws: random.Random) -> Trial:
    """Return the best of so many draws from a population, the first drawn of equals.

    Args:
        population: Trials with their ranks, of which less is better.
        tournament: Number of draws, with replacement.
        draws: Source of random numbers.
    """
    return min((draws.choice(population) for _ in range(tournament)), key=lambda drawn: drawn[0])[1]


class Mutation(BaseSampler):
    """Proposes the parameters of a trial, one of them drawn anew from its range, with another value.

    Parameters that the parent lacks, or whose range does not contain the parent's value, are drawn at random: a change
    may open another part of a conditional space.

    Args:
        parent: The trial.
        seed: Of the draws.
    """

    def __init__(self, parent: Trial, seed: int) -> None:
        self._values, self._random = parent.values, RandomSampler(seed=seed)
        distributions = {name: json_to_distribution(text) for name, text in sorted(parent.distributions.items())}
        free = [name for name, distribution in distributions.items() if not distribution.single()]
        # Its own stream: the same seed has drawn the parent.
        self._mutated = random.Random(f"mutation {seed}").choice(free) if free else None  # noqa: S311  # no secret

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: every parameter is proposed by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: every parameter is proposed by itself."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the parent's value of a parameter, or another one where it changes."""

        def drawn() -> Any:
            return self._random.sample_independent(study, trial, param_name, param_distribution)

        if param_name not in self._values or not _contains(param_distribution, self._values[param_name]):
            return drawn()
        value = self._values[param_name]
        if param_name != self._mutated:
            return value
        while (other := drawn()) == value:  # Optuna asks for no parameter that has one value only
            pass
        return other


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return isinstance(value, int | float) and bool(distribution.low <= value <= distribution.high)  # type: ignore[attr-defined]  # a number has both
