"""Optuna: proposes parameters, given the trials completed so far."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState, create_trial

from services.search.constraints import exceeded_after
from services.study_config.search_options import Rules
from services.trial_record import Infeasible, Params, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

Asked = BaseTrial  # what a space takes its parameters from


def ask(
    searcher: str,
    trials: Sequence[Trial],
    seed: int,
    *,
    rules: Rules | None = None,
    infeasible: Sequence[Infeasible] = (),
) -> optuna.Trial:
    """Return a fresh Optuna trial of a study that has been told the trials so far.

    Complete trials are told with their values, pruned ones as pruned with their last value, failed ones as failed;
    trials that still run are left out. Infeasible proposals, and trials that exceed a limit after all, are told as
    pruned with their constraints.

    Args:
        searcher: ``random``, ``tpe`` or ``gp``.
        trials: Search trials of the arm in the order of their numbers.
        seed: Of the sampler.
        rules: Objectives and constraints.
        infeasible: Proposals that have been rejected since the last trial.
    """
    rules = rules or Rules()
    directions = [
        StudyDirection.MAXIMIZE if objective == "accuracy" else StudyDirection.MINIMIZE
        for objective in rules.objectives
    ]
    # A new study each time: no state of a sampler has to be stored, and a resumed search asks the same one.
    study = optuna.create_study(directions=directions, sampler=_sampler(searcher, seed, rules.n_startup_trials))
    if searcher != "random":  # random sampling ignores the history, and telling it takes time
        study.add_trials([*(told for trial in trials for told in _frozen(trial, rules)), *map(_pruned, infeasible)])
    return study.ask()


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


def _frozen(trial: Trial, rules: Rules) -> Iterator[FrozenTrial]:
    yield from map(_pruned, trial.infeasible)  # what was rejected before this trial was proposed
    if not trial.ended or not trial.is_suggested:
        return
    values = [trial.measured(objective) for objective in rules.objectives]
    if trial.state == "complete" and (exceeded := exceeded_after(trial, rules.constraints)):
        yield _pruned(Infeasible(trial.values, trial.distributions, exceeded))
    elif trial.state == "complete" and None not in values:
        yield _told(trial, TrialState.COMPLETE, values=values)
    elif (stopped := trial.stopped_at) is not None:
        epoch, accuracy = stopped
        yield _told(trial, TrialState.PRUNED, intermediate_values={epoch: accuracy})
    else:
        yield _told(trial, TrialState.FAIL)


def _pruned(proposal: Infeasible) -> FrozenTrial:
    """Return an infeasible proposal as TPE learns from it: pruned, with the share by which each limit is exceeded.

    The Gaussian process ignores it: without a value it has nothing to fit.
    """
    amounts = {name: value / limit - 1 for name, (value, limit) in proposal.exceeded.items()}
    return _told(proposal, TrialState.PRUNED, constraints=amounts)


def _told(source: Trial | Infeasible, state: TrialState, **outcome: Any) -> FrozenTrial:
    return create_trial(
        state=state,
        params=dict(source.values),
        distributions={name: json_to_distribution(text) for name, text in source.distributions.items()},
        **outcome,
    )
