"""Samplers that are rebuilt from the trials have the state that Optuna's keep, and propose what their papers say."""

import random
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import CmaEsSampler, NSGAIISampler
from optuna.trial import FrozenTrial

from services.search.sampler_history import SamplerHistory
from services.search.samplers import ToldStorage, ask, suggested
from services.search.sampling.cma_es import CmaEs
from services.search.sampling.evolution import parent_of
from services.search.sampling.genetic import GENERATION, Nsga2, Nsga3
from services.search.sampling.quasi_random import INDEX
from services.study_config.search_options import Rules
from services.study_config.searching.searchers import SearcherSettings
from services.trial_record import SEARCH, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)


def numbers(trial: Any) -> float:
    x, y = trial.suggest_float("x", -1, 1), trial.suggest_float("y", 0.01, 1, log=True)
    n = trial.suggest_int("n", 1, 9)
    return float(1 - (x - 0.3) ** 2 - (y - 0.1) ** 2 - abs(n - 5) / 10)


def conditional(trial: Any) -> float:
    if trial.suggest_categorical("kind", ["wide", "deep"]) == "wide":
        return float(trial.suggest_int("width", 1, 8)) / 8
    return float(sum(trial.suggest_float(f"layer {layer}", 0, 1) for layer in range(3))) / 3


def told(study: optuna.Study, trials: list[FrozenTrial], sampler: Any) -> optuna.Study:
    """A study without the attributes that Optuna keeps with a study."""
    return optuna.create_study(storage=ToldStorage(trials), directions=study.directions, sampler=sampler)


def test_parents_of_a_generation_are_those_that_optuna_has_selected() -> None:
    class Theirs(NSGAIISampler):
        """Optuna's, under the name that ours has in trials."""

    def objectives(trial: optuna.Trial) -> tuple[float, float]:
        value = numbers(trial)
        return value, abs(trial.params["x"])

    theirs = Theirs(population_size=4, seed=1)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=theirs)
    study.optimize(objectives, n_trials=18)
    generations = [trial.system_attrs["Theirs:generation"] for trial in study.trials]
    assert max(generations) == 4
    trials = study.get_trials()
    for trial in trials:
        trial.system_attrs = {GENERATION: trial.system_attrs["Theirs:generation"]}
    sampler = Nsga2(population_size=4, seed=1)
    ours = told(study, trials, sampler)
    for generation in range(5):
        expected = {trial.number for trial in theirs.get_parent_population(study, generation)}
        assert {trial.number for trial in sampler.get_parent_population(ours, generation)} == expected
    assert sampler.get_trial_generation(ours, ours.ask()._cached_frozen_trial) == 4


def test_nsga3_selects_the_same_parents_whoever_asks() -> None:
    history = filled("nsga3", numbers, 17, SearcherSettings(population_size=4))

    def parents(seed: int) -> list[int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = Nsga3(population_size=4, seed=seed)
        study = optuna.create_study(storage=ToldStorage(history.told()), direction="maximize", sampler=sampler)
        return sorted(trial.number for trial in sampler.get_parent_population(study, 4))

    assert len(parents(0)) == 4
    assert parents(0) == parents(1) == parents(2)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("margin", [False, True])
def test_the_distribution_of_cma_es_is_the_one_that_optuna_has_stored(margin: bool) -> None:
    theirs = CmaEsSampler(seed=3, popsize=4, with_margin=margin)
    study = optuna.create_study(direction="maximize", sampler=theirs)
    study.optimize(numbers, n_trials=22)
    trials = study.get_trials()
    stored = theirs._restore_optimizer(trials)
    assert stored is not None
    ours = CmaEs(seed=5, popsize=4, with_margin=margin)
    again = told(study, trials, ours)
    ours.sample_relative(again, again.ask()._cached_frozen_trial, ours.infer_relative_search_space(again, trials[0]))
    rebuilt = ours._restore_optimizer(trials)
    assert rebuilt.generation == stored.generation > 3
    np.testing.assert_allclose(rebuilt.mean, stored.mean, rtol=1e-12)
    covariances = [getattr(each, "_cma", each)._C for each in (rebuilt, stored)]  # that with margin has another in it
    np.testing.assert_allclose(*covariances, rtol=1e-12)


def filled(searcher: str, objective: Any, trials: int, settings: SearcherSettings, seed: int = 0) -> SamplerHistory:
    history = SamplerHistory(Rules(settings=settings))
    for number in range(trials):
        asked = ask(searcher, history, random.Random(f"{seed} {number}").getrandbits(31), study_seed=seed)
        score = objective(asked)
        history.update(Trial("arm", SEARCH, number, 0, "complete", score=score, params=suggested(asked).to_json()))
    return history


def test_points_of_a_low_discrepancy_sequence_are_each_taken_once() -> None:
    history = filled("qmc", numbers, 33, SearcherSettings())
    trials = list(history.backwards())[::-1]
    assert [trial.sampler.get(INDEX) for trial in trials] == [None, *range(32)]
    # 32 points of a scrambled Sobol sequence: one in each of 32 equal parts of every axis, which no random draw has.
    assert Counter(int((trial.values["x"] + 1) * 16) for trial in trials[1:]) == dict.fromkeys(range(32), 1)


def test_another_attempt_is_the_next_point() -> None:
    history = filled("qmc", numbers, 5, SearcherSettings())
    first, second = (ask("qmc", history, 1, study_seed=0, attempt=attempt) for attempt in (0, 1))
    assert [numbers(each) != 0 and suggested(each).sampler[INDEX] for each in (first, second)] == [4, 5]


def test_a_child_of_evolution_differs_from_its_parent_in_one_parameter() -> None:
    settings = SearcherSettings(population_size=4, tournament_size=4)
    history = filled("evolution", numbers, 12, settings)
    trials = list(history.backwards())[::-1]
    for number in range(4, 12):
        older = [trial.values for trial in trials[number - 4 : number]]  # the four before it, and no others
        changes = [sum(trials[number].values[name] != values[name] for name in values) for values in older]
        assert 1 in changes


def test_the_oldest_dies_however_good_it_was() -> None:
    history = SamplerHistory(Rules(settings=SearcherSettings(population_size=3, tournament_size=30)))
    distribution = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'
    for number, score in enumerate([0.99, 0.5, 0.8, 0.6]):
        params = {
            "values": {"a": number / 10, "b": number / 10},
            "distributions": {"a": distribution, "b": distribution},
        }
        history.update(Trial("arm", SEARCH, number, 0, "complete", score=score, params=params))
    # All that is left in 30 draws from three is found: the parent is trial 2 with 0.8, never trial 0.
    for seed in range(20):
        asked = ask("evolution", history, seed)
        child = [asked.suggest_float(name, 0, 1) for name in ("a", "b")]
        assert child.count(0.2) == 1


def test_a_tournament_of_one_takes_anyone_and_a_large_one_the_best() -> None:
    population = [((float(rank),), Trial("arm", SEARCH, rank, 0, "complete")) for rank in range(5)]
    draws = random.Random(0)
    assert {parent_of(population, 1, draws).number for _ in range(100)} == set(range(5))
    assert {parent_of(population, 60, draws).number for _ in range(100)} == {0}


def test_a_change_may_open_another_part_of_a_conditional_space() -> None:
    history = filled("evolution", conditional, 60, SearcherSettings(population_size=5, tournament_size=2))
    kinds = Counter(trial.values["kind"] for trial in history.backwards())
    assert set(kinds) == {"wide", "deep"}
    for trial in history.backwards():
        assert len(trial.values) == (2 if trial.values["kind"] == "wide" else 4)


def test_what_was_stopped_early_ranks_below_what_is_complete_and_the_later_the_better() -> None:
    complete = Trial("arm", SEARCH, 0, 0, "complete", score=0.1, params={"values": {}, "distributions": {}})
    stopped = {"stopped_after": 3, "validation_accuracy": 0.9}
    early = replace(complete, number=1, state="pruned", score=None, result=stopped)
    late = replace(early, number=2, result={"stopped_after": 9, "validation_accuracy": 0.2})
    failed = replace(complete, number=3, state="failed", score=None)
    ranked = SamplerHistory.of([complete, early, late, failed]).latest(9)
    assert [trial.number for _, trial in sorted(ranked, key=lambda each: each[0])] == [0, 2, 1]


@pytest.mark.parametrize("searcher", ["nsga2", "cmaes", "evolution"])
def test_what_learns_ends_nearer_to_the_best_than_random_draws(searcher: str) -> None:
    settings = SearcherSettings(population_size=8, tournament_size=3 if searcher == "evolution" else None)

    def late(who: str) -> float:
        scores = [
            trial.score or 0.0
            for seed in range(3)
            for trial in list(filled(who, numbers, 60, settings, seed).backwards())[:20]
        ]
        return sum(scores) / len(scores)

    assert late(searcher) > late("random") + 0.05
