"""Optuna: proposes parameters, given the trials completed so far."""

from collections.abc import Container, Mapping, Sequence
from copy import copy
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState

from services.search import normal_tail
from services.search.sampler_history import SamplerHistory
from services.search.sampling.cma_es import KEPT, cma_es
from services.search.sampling.evolution import evolution
from services.search.sampling.genetic import GENERATION, Nsga2, Nsga3, genetic
from services.search.sampling.plugin_sampler import PluginSampler
from services.search.sampling.quasi_random import INDEX, quasi_random
from services.search_plugins import algorithm_named
from services.study_config.search_options import Rules
from services.trial_record import Infeasible, Params

optuna.logging.set_verbosity(optuna.logging.WARNING)

_GENETIC: Mapping[str, type[Nsga2] | type[Nsga3]] = {"nsga2": Nsga2, "nsga3": Nsga3}
_UNTOLD = frozenset({"random", "qmc", "evolution"})  # they ignore results, or read them themselves
_WHOLE = frozenset({"cmaes", *_GENETIC})  # they go through their generations from the first on
_KEPT = (GENERATION, INDEX, *KEPT)
_LEARNED = (TrialState.COMPLETE, TrialState.PRUNED)  # from which TPE learns

Asked = BaseTrial  # what a space takes its parameters from


def ask(
    searcher: str,
    history: SamplerHistory,
    seed: int,
    *,
    infeasible: Sequence[Infeasible] = (),
    study_seed: int = 0,
    attempt: int = 0,
) -> optuna.Trial:
    """Return a fresh Optuna trial of a study that has been told the trials so far.

    Args:
        searcher: Name of a search algorithm, built in or of a plug-in, other than ``grid``.
        history: Search trials of the arm from which it learns.
        seed: Of the sampler.
        infeasible: Proposals that have been rejected since the last trial.
        study_seed: Of the study: for what is the same for all of its proposals.
        attempt: Number of times that this proposal was asked for before.
    """
    rules = history.rules
    directions = [
        StudyDirection.MAXIMIZE if objective == "accuracy" else StudyDirection.MINIMIZE
        for objective in rules.objectives
    ]
    plugin = algorithm_named(searcher)
    whole = searcher in _WHOLE if plugin is None else plugin.all_trials
    told = [] if searcher in _UNTOLD else history.told(infeasible, whole=whole)
    # A new study each time: no state of a sampler has to be stored, and a resumed search asks the same one.
    if plugin is not None:
        sampler: BaseSampler = PluginSampler(searcher, lambda: plugin.sampler(rules.plugin_settings, seed))
    elif searcher == "qmc":
        sampler = quasi_random(history, seed, study_seed=study_seed, attempt=attempt)
    else:
        sampler = evolution(history, seed) if searcher == "evolution" else _sampler(searcher, seed, rules, told)
    return optuna.create_study(storage=ToldStorage(told), directions=directions, sampler=sampler).ask()


def fixed(point: Mapping[str, Any]) -> FixedTrial:
    """Return an Optuna trial that suggests given parameters."""
    return FixedTrial(dict(point))


def suggested(trial: BaseTrial) -> Params:
    """Return the parameters that an Optuna trial has suggested."""
    distributions = {name: distribution_to_json(value) for name, value in trial.distributions.items()}
    return Params(values=dict(trial.params), distributions=distributions, sampler=_noted(trial))


def _noted(trial: BaseTrial) -> dict[str, Any]:
    """Return what the sampler noted with a trial and must find again, which is not all that Optuna notes."""
    if not isinstance(trial, optuna.Trial):
        return {}
    noted = trial.storage.get_trial_system_attrs(trial._trial_id)
    return {name: noted[name] for name in _KEPT if name in noted}


def _sampler(searcher: str, seed: int, rules: Rules, told: Sequence[FrozenTrial]) -> BaseSampler:
    if searcher in ("tpe", "cmaes"):
        normal_tail.install()
    if searcher == "tpe":
        return _Tpe(seed, rules, told)
    if searcher == "gp":
        return GPSampler(seed=seed, n_startup_trials=rules.n_startup_trials, warn_independent_sampling=False)
    if searcher == "cmaes":
        return cma_es(rules, seed)
    if searcher in _GENETIC:
        return genetic(_GENETIC[searcher], rules, seed)
    return RandomSampler(seed=seed)


class _Tpe(TPESampler):
    """TPE that finds the parameters which all trials share by comparing what trials were drawn from, each only once.

    Optuna compares every parameter of every trial, for every proposal. Trials that `SamplerHistory` tells have the same
    dictionary of distributions if these are the same.
    """

    def __init__(self, seed: int, rules: Rules, told: Sequence[FrozenTrial]) -> None:
        together = rules.settings.multivariate
        super().__init__(seed=seed, n_startup_trials=rules.n_startup_trials, multivariate=together)
        self._together = len(rules.objectives) == 1 if together is None else together
        self._distinct = {id(trial.distributions): trial.distributions for trial in told if trial.state in _LEARNED}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together: those that all trials share and that have a choice."""
        if not self._together or not self._distinct:  # for several objectives Optuna samples each by itself
            return {}
        first, *others = self._distinct.values()
        shared = (name for name in sorted(first) if all(other.get(name) == first[name] for other in others))
        return {name: first[name] for name in shared if not first[name].single()}


class ToldStorage(InMemoryStorage):
    """A storage that has trials from the beginning, without a copy and a check of each.

    ``Study.add_trials`` would copy every trial deeply for every proposal, which takes longer than to sample.

    Args:
        told: The trials, numbered from 0.
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
