"""NSGA-II and NSGA-III of Optuna, whose generations are read from the trials instead of the study.

Optuna notes with each trial its generation, which the store keeps, and with the study the parents of each generation.
The parents follow from the trials: they are selected again, from the first generation on.
"""

import warnings
from typing import Any

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIIISampler, NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from services.study_config.search_options import Rules
from services.study_config.searching.searchers import POPULATION

GENERATION = "nsga:generation"


class _Generations:
    """Generations of trials as they are told; mixed into a sampler of Optuna."""

    _elite_population_selection_strategy: Any
    _rng: Any

    @classmethod
    def _get_generation_key(cls) -> str:
        return GENERATION

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the parents of a generation: the best of the one before and of its own parents."""
        parents: list[FrozenTrial] = []
        drawn = self._rng.rng.get_state()
        for earlier, trials in sorted(_by_generation(study).items()):
            if earlier >= generation:
                break
            # NSGA-III draws among equals: the same ones whenever this generation is selected again.
            self._rng.rng.seed(earlier)
            parents = self._elite_population_selection_strategy(study, [*trials, *parents])
        self._rng.rng.set_state(drawn)
        return parents


def _by_generation(study: Study) -> dict[int, list[FrozenTrial]]:
    generations: dict[int, list[FrozenTrial]] = {}
    generation = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        # Of trials that the sampler did not propose, that of the one before: their accuracy counts as well.
        generation = trial.system_attrs.get(GENERATION, generation)
        generations.setdefault(generation, []).append(trial)
    return generations


class Nsga2(_Generations, NSGAIISampler):
    """NSGA-II, rebuilt from the trials."""


class Nsga3(_Generations, NSGAIIISampler):
    """NSGA-III, rebuilt from the trials."""


def genetic(kind: type[Nsga2] | type[Nsga3], rules: Rules, seed: int) -> Nsga2 | Nsga3:
    """Return the sampler of an arm.

    Args:
        kind: NSGA-II or NSGA-III.
        rules: How the arm searches.
        seed: Of this proposal.
    """
    settings = rules.settings
    size = settings.population_size or POPULATION
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of NSGA-III
        return kind(population_size=size, mutation_prob=settings.mutation_probability, seed=seed)
