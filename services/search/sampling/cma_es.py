"""CMA-ES of Optuna, whose distribution is computed again from the trials.

Optuna stores the whole optimizer, pickled, with a trial. Here the store keeps the generation of a trial, and the
optimizer is told generation after generation again: the same, as far as trials are told in the order of their numbers.
"""

import warnings
from typing import Any

import numpy as np
from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import CmaEsSampler, TPESampler
from optuna.trial import FrozenTrial

from services.study_config.search_options import Rules

KEPT = ("cma:generation", "cmawm:generation", "x_for_tell")  # what Optuna notes of a trial, and the store keeps


class CmaEs(CmaEsSampler):
    """CMA-ES over the numbers that all trials share; everything else is proposed by TPE, each parameter by itself."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a draw from the distribution of the present generation."""
        self._searched, self._sign = search_space, 1 if study.direction.name == "MINIMIZE" else -1
        self._study = study
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Return the optimizer after every generation that is complete."""
        with_margin = self._with_margin
        transform = _SearchSpaceTransform(self._searched, transform_step=not with_margin, transform_0_1=True)
        optimizer: Any = self._init_optimizer(transform, self._study.direction)
        while True:
            generation = self._get_solution_trials(completed_trials, optimizer.generation)
            if len(generation) < optimizer.population_size:
                return optimizer
            optimizer.tell([self._solution(trial, transform) for trial in generation[: optimizer.population_size]])

    def _solution(self, trial: FrozenTrial, transform: _SearchSpaceTransform) -> tuple[Any, float]:
        assert trial.value is not None, "a complete trial has a value"
        at = np.array(trial.system_attrs["x_for_tell"]) if self._with_margin else transform.transform(trial.params)
        return at, self._sign * trial.value


def cma_es(rules: Rules, seed: int) -> CmaEs:
    """Return the sampler of an arm.

    Args:
        rules: How the arm searches.
        seed: Of this proposal.
    """
    settings = rules.settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of the margin
        return CmaEs(
            seed=seed,
            n_startup_trials=rules.n_startup_trials,
            independent_sampler=TPESampler(seed=seed, n_startup_trials=rules.n_startup_trials),
            warn_independent_sampling=False,
            popsize=settings.population_size,
            with_margin=bool(settings.margin),
        )
