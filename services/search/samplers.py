"""Optuna: what a search tries next, given the trials told so far."""

from collections.abc import Sequence

import optuna
from optuna.distributions import distribution_to_json as to_text
from optuna.distributions import json_to_distribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from services.search.entries import TERMINAL, Entry

_TPE_STARTUP = 4

__all__ = ["ask", "to_text"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


def ask(searcher: str, told: Sequence[Entry], seed: int) -> optuna.Trial:
    """Return a fresh Optuna trial of a search that knows the trials told so far.

    Args:
        searcher: ``random`` or ``tpe``.
        told: Trials of the arm in the order of their numbers; complete ones are told with their score, failed ones as
            failed, and those that still run are left out.
        seed: Of the sampler.
    """
    study = optuna.create_study(direction="maximize", sampler=_sampler(searcher, seed))
    study.add_trials([_frozen(entry) for entry in told if entry.state in TERMINAL and entry.parameters is not None])
    return study.ask()


def _sampler(searcher: str, seed: int) -> BaseSampler:
    if searcher == "tpe":
        return TPESampler(seed=seed, n_startup_trials=_TPE_STARTUP)
    return RandomSampler(seed=seed)


def _frozen(entry: Entry) -> optuna.trial.FrozenTrial:
    assert entry.parameters is not None
    states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}
    return create_trial(
        state=states[entry.state],
        value=entry.score if entry.state == "complete" else None,
        params=dict(entry.parameters["values"]),
        distributions={name: json_to_distribution(text) for name, text in entry.parameters["distributions"].items()},
    )
