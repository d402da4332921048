"""Optuna: what a search tries next, given the trials told so far."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState, create_trial

from services.search.constraints import exceeded_after
from services.search.trial_state import TERMINAL, Entry
from services.study_config.search_options import Rules

optuna.logging.set_verbosity(optuna.logging.WARNING)


def ask(
    searcher: str, completed: Sequence[Entry], seed: int, *, rules: Rules | None = None, infeasible: Sequence[Any] = ()
) -> optuna.Trial:
    """Return a fresh Optuna trial of a search that knows the trials told so far.

    Complete trials are told with what they ended in, pruned ones as pruned with their last value, failed ones as
    failed; those that still run are left out. What was refused, or exceeds a limit after all, is told as infeasible.

    Args:
        searcher: ``random``, ``tpe`` or ``gp``.
        completed: Trials of the arm in the order of their numbers.
        seed: Of the sampler.
        rules: What is searched for and what is allowed.
        infeasible: What has just been refused, in the same form as in the parameters of an entry.
    """
    rules = rules or Rules()
    directions = [direction(objective) for objective in rules.objectives]
    study = optuna.create_study(directions=directions, sampler=_sampler(searcher, seed, rules.n_startup_trials))
    if searcher != "random":  # it draws the same whatever it was told, and telling it takes time
        study.add_trials(
            [*(trial for entry in completed for trial in _frozen(entry, rules)), *map(_infeasible, infeasible)]
        )
    return study.ask()


def fixed(point: Mapping[str, Any]) -> FixedTrial:
    """Return a trial that answers with given parameters."""
    return FixedTrial(dict(point))


def chosen(trial: BaseTrial) -> dict[str, Any]:
    """Return what a trial was asked for, as plain JSON types: its ``values`` and their ``distributions``."""
    return {
        "values": dict(trial.params),
        "distributions": {name: distribution_to_json(value) for name, value in trial.distributions.items()},
    }


def direction(objective: str) -> Literal["maximize", "minimize"]:
    """Return whether an objective should be high or low, as Optuna says it."""
    return "maximize" if objective == "accuracy" else "minimize"


def _sampler(searcher: str, seed: int, n_startup_trials: int) -> BaseSampler:
    if searcher == "tpe":
        return TPESampler(seed=seed, n_startup_trials=n_startup_trials)
    if searcher == "gp":
        return GPSampler(seed=seed, n_startup_trials=n_startup_trials, warn_independent_sampling=False)
    return RandomSampler(seed=seed)


def _frozen(entry: Entry, rules: Rules) -> Iterator[FrozenTrial]:
    yield from map(_infeasible, entry.infeasible)
    if entry.state not in TERMINAL or entry.parameters is None or "values" not in entry.parameters:
        return
    values = [entry.measured(objective) for objective in rules.objectives]
    if entry.state == "complete" and (exceeded := exceeded_after(entry, rules.constraints)):
        yield _infeasible({**entry.parameters, "exceeded": exceeded})
    elif entry.state == "complete" and None not in values:
        yield _told(entry.parameters, TrialState.COMPLETE, values=values)
    elif entry.state == "pruned" and entry.stopped is not None:
        rung, value = entry.stopped
        yield _told(entry.parameters, TrialState.PRUNED, intermediate_values={rung: value})
    else:
        yield _told(entry.parameters, TrialState.FAIL)


def _infeasible(proposal: Mapping[str, Any]) -> FrozenTrial:
    """Tell TPE, by how much each limit is exceeded; a Gaussian process learns nothing from what was not trained."""
    amounts = {name: found / limit - 1 for name, (found, limit) in proposal["exceeded"].items()}
    return _told(proposal, TrialState.PRUNED, constraints=amounts)


def _told(proposal: Mapping[str, Any], state: TrialState, **outcome: Any) -> FrozenTrial:
    return create_trial(
        state=state,
        params=dict(proposal["values"]),
        distributions={name: json_to_distribution(text) for name, text in proposal["distributions"].items()},
        **outcome,
    )
