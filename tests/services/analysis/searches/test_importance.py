"""Importance finds the parameter that decides, and is held against shuffled scores."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from services.analysis.searches.importance import FEWEST_TRIALS, MOST_TRIALS, evenly_spaced, importances
from services.trial_record import SEARCH, Params, Trial
from tests.services.function_calls import calls

SPACE = {
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "width": FloatDistribution(0.0, 1.0),
    "deep": CategoricalDistribution([False, True]),
}
TEXTS = {name: distribution_to_json(distribution) for name, distribution in SPACE.items()}


def trial_of(values: dict[str, Any], score: float, number: int = 0) -> Trial:
    params = Params(values, {name: TEXTS[name] for name in values})
    return Trial("arm", SEARCH, number, number, "complete", score=score, params=params.to_json())


def search(trials: int, *, seed: int = 0, matters: float = 1.0) -> list[Trial]:
    """Trials whose score depends on `width` alone, as far as it `matters`."""
    draws = random.Random(seed)
    found = []
    for number in range(trials):
        values = {"rate": 10 ** draws.uniform(-4, -1), "width": draws.random(), "deep": draws.random() < 0.5}
        score = matters * values["width"] + (1 - matters) * draws.random()
        found.append(trial_of(values, score, number))
    return found


def test_the_parameter_that_decides_comes_first_and_beyond_chance() -> None:
    found = importances(search(40))
    assert next(iter(found)) == "width"
    assert found["width"].share > 0.6
    assert found["width"].share > found["width"].by_chance
    assert sum(each.share for each in found.values()) == pytest.approx(1)


def test_parameters_that_decide_nothing_are_rarely_beyond_chance() -> None:
    every = [each for seed in range(30) for each in importances(search(12, seed=seed, matters=0.0)).values()]
    beyond = np.mean([each.share > each.by_chance for each in every])
    assert beyond < 0.12
    assert max(each.by_chance for each in every) > 0.5, "with few trials chance alone makes a parameter important"


def test_it_is_the_same_every_time() -> None:
    assert importances(search(10)) == importances(search(10))


def test_parameters_of_some_trials_only_are_known_too() -> None:
    trials = search(12)
    for number, trial in enumerate(trials[::2]):
        values = {name: value for name, value in trial.values.items() if name != "deep"}
        trials[2 * number] = trial_of(values, trial.score or 0.0)
    assert set(importances(trials)) == set(SPACE)


@pytest.mark.parametrize(
    "trials",
    [
        search(FEWEST_TRIALS - 1),
        [replace(trial, score=0.5) for trial in search(10)],
        [],
        [trial_of({}, 0.1), trial_of({}, 0.2)] * 4,
    ],
)
def test_too_little_says_nothing(trials: list[Trial]) -> None:
    assert importances(trials) == {}


def test_without_shuffles_there_is_no_chance_to_hold_it_against() -> None:
    assert {each.by_chance for each in importances(search(8), shuffles=0).values()} == {0.0}


def test_a_long_search_takes_no_more_than_the_trials_that_are_used() -> None:
    made = {trials: calls(lambda trials=trials: importances(search(trials), shuffles=2)) for trials in (2_000, 4_000)}
    drawn = calls(lambda: search(2_000))
    assert made[4_000] - made[2_000] < 2 * drawn
    assert importances(search(3 * MOST_TRIALS), shuffles=1).keys() == set(SPACE)


def test_trials_that_are_used_are_at_equal_distances_with_both_ends() -> None:
    numbers = [trial.number for trial in evenly_spaced(search(101), 11)]
    assert numbers == list(range(0, 101, 10))
    assert evenly_spaced(search(7), 7) == search(7)
