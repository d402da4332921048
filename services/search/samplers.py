"""Optuna: proposes parameters, given the trials completed so far."""

from collections.abc import Container, Mapping, Sequence
from copy import copy
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState

from services.search.sampler_history import SamplerHistory
from services.trial_record import Infeasible, Params

optuna.logging.set_verbosity(optuna.logging.WARNING)

Asked = BaseTrial  # what a space takes its parameters from


def ask(searcher: str, history: SamplerHistory, seed: int, *, infeasible: Sequence[Infeasible] = ()) -> optuna.Trial:
    """Return a fresh Optuna trial of a study that has been told the trials so far.

    Args:
        searcher: ``random``, ``tpe`` or ``gp``.
        history: Search trials of the arm.
        seed: Of the sampler.
        infeasible: Proposals that have been rejected since the last trial.
    """
    rules = history.rules
    directions = [
        StudyDirection.MAXIMIZE if objective == "accuracy" else StudyDirection.MINIMIZE
        for objective in rules.objectives
    ]
    told = [] if searcher == "random" else history.told(infeasible)  # random sampling ignores the history
    # A new study each time: no state of a sampler has to be stored, and a resumed search asks the same one.
    sampler = _sampler(searcher, seed, rules.n_startup_trials)
    return optuna.create_study(storage=_Told(told), directions=directions, sampler=sampler).ask()


def fixed(point: Mapping[str, Any]) -> FixedTrial:
    """Return an Optuna trial that suggests given parameters."""
    return FixedTrial(dict(point))


def suggested(trial: BaseTrial) -> Params:
    """Return the parameters that an Optuna trial has suggested."""
    distributions = {name: distribution_to_json(value) for name, value in trial.distributions.items()}
    return Params(values=dict(trial.params), distributions=distributions)


def _sampler(searcher: str, seed: int, n_startup_trials: int) -> BaseSampler:
    if searcher == "tpe":
        return TPESampler(seed=seed, n_startup_trials=n_startup_trials)
    if searcher == "gp":
        return GPSampler(seed=seed, n_startup_trials=n_startup_trials, warn_independent_sampling=False)
    return RandomSampler(seed=seed)


class _Told(InMemoryStorage):
    """A storage that has trials from the beginning, without a copy and a check of each.

    ``Study.add_trials`` would copy every trial deeply for every proposal, which takes longer than to sample.
    """

    def __init__(self, told: list[FrozenTrial]) -> None:
        super().__init__()
        self._told = told

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return what was told, and after it the trial that is being asked for."""
        asked = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        told = (trial for trial in self._told if states is None or trial.state in states)
        return [*told, *map(self._last, asked)]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return the trial that is being asked for."""
        return self._last(super().get_trial(trial_id))

    def _last(self, trial: FrozenTrial) -> FrozenTrial:
        # TPE knows by its number which of the trials is the one that is asked for, and leaves it out.
        numbered = copy(trial)
        numbered.number = len(self._told)
        return numbered
