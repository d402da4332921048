"""What TPE is given instead of a function of Optuna is equal to it to the last bit, and so are its proposals."""

import math

import numpy as np
import optuna
import pytest
from optuna.samplers._tpe import _truncnorm
from scipy.special import log_ndtr as of_scipy

from services.search import normal_tail, samplers
from services.search.sampler_history import SamplerHistory
from services.study_config.search_options import Rules
from services.trial_record import SEARCH, Infeasible, Trial
from tests.services.function_calls import calls

EDGES = [np.nextafter(edge, to) for edge in (-20.0, 6.0, -1.0, 1.0) for to in (-math.inf, math.inf)]
SPECIAL = [-20.0, -1.0, 0.0, 1.0, 6.0, -0.0, 1e-300, -1e120, 1e120, math.inf, -math.inf, math.nan]
DRAWN = [np.random.default_rng(0).normal(0, scale, 4_000) for scale in (0.5, 3, 15, 200, 1e5)]
NUMBERS = np.concatenate([*DRAWN, SPECIAL, EDGES])


def theirs(numbers: np.ndarray) -> np.ndarray:
    single = _truncnorm._log_ndtr_single.__wrapped__
    return np.array([single(number) for number in numbers.tolist()])


def test_every_number_is_that_of_optuna() -> None:
    np.testing.assert_array_equal(normal_tail.log_ndtr(NUMBERS), theirs(NUMBERS))
    square = NUMBERS[:400].reshape(20, 20)
    np.testing.assert_array_equal(normal_tail.log_ndtr(square).ravel(), theirs(square.ravel()))


def test_it_is_the_logarithm_of_the_normal_distribution_function() -> None:
    usual = NUMBERS[np.abs(NUMBERS) < 1e4]
    np.testing.assert_allclose(normal_tail.log_ndtr(usual), of_scipy(usual), rtol=1e-9, atol=1e-15)


def searched(searcher: str, trials: int, *, rules: Rules | None = None) -> list[dict[str, object]]:
    """Propose trials of a space in which one parameter is conditional and another has no choice."""
    history = SamplerHistory(rules or Rules(n_startup_trials=5), 40)
    for number in range(trials):
        rejected = [Infeasible({"rate": 0.1}, {"rate": RATE}, {"macs": (2.0, 1.0)})] if number % 7 == 0 else []
        asked = samplers.ask(searcher, history, number, infeasible=rejected)
        rate = asked.suggest_float("rate", 1e-4, 1.0, log=True)
        width = asked.suggest_int("width", 1, 64)
        if asked.suggest_categorical("deep", [False, True]):
            asked.suggest_int("layers", 1, 1 + width % 3)
        asked.suggest_int("fixed", 3, 3)
        params = samplers.suggested(asked).to_json()
        history.update(Trial("arm", SEARCH, number, 0, "complete", score=width / 64 - rate, params=params))
    return [dict(trial.values) for trial in history._trials.values()]


RATE = optuna.distributions.distribution_to_json(optuna.distributions.FloatDistribution(1e-4, 1.0, log=True))


def test_proposals_are_those_of_plain_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = searched("tpe", 60)
    monkeypatch.setattr(_truncnorm, "_log_ndtr", lambda a: theirs(np.ravel(a)).reshape(np.shape(a)))
    monkeypatch.setattr(normal_tail, "install", lambda: None)
    monkeypatch.setattr(samplers._Tpe, "infer_relative_search_space", samplers.TPESampler.infer_relative_search_space)
    assert searched("tpe", 60) == ours


def test_a_proposal_calls_no_function_for_every_number() -> None:
    history = SamplerHistory(Rules(n_startup_trials=5))
    for number in range(250):
        asked = samplers.ask("random", history, number)
        asked.suggest_float("rate", 1e-4, 1.0, log=True)
        asked.suggest_int("width", 1, 64)
        params = samplers.suggested(asked).to_json()
        history.update(Trial("arm", SEARCH, number, 0, "complete", score=(number * 37) % 100 / 100, params=params))

    def propose() -> None:
        asked = samplers.ask("tpe", history, 250)
        asked.suggest_float("rate", 1e-4, 1.0, log=True)
        asked.suggest_int("width", 1, 64)

    propose()
    assert calls(propose) < 25_000, "Optuna by itself takes several times as many"
