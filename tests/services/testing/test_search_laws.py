"""Built-in search algorithms and pruners keep the laws for plug-ins, and each law refuses what breaks it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.search_plugins import PRUNERS, SEARCHERS
from services.testing import PrunerCase, SearchCase, pruner_laws, searcher_laws

BUILT_IN = {
    "random": SearchCase("random", spaces=("training", "branched"), trials=4),
    "qmc": SearchCase("qmc", spaces=("training", "branched"), trials=4),
    "grid": SearchCase("grid", {"grid_points": 2}, trials=4),
    "tpe": SearchCase("tpe", {"n_startup_trials": 2}, spaces=("training", "branched"), trials=5),
    "gp": SearchCase("gp", {"n_startup_trials": 2}, trials=4),
    "cmaes": SearchCase("cmaes", {"n_startup_trials": 2, "population_size": 4}, trials=7),
    "nsga2": SearchCase("nsga2", {"population_size": 3}, trials=5),
    "nsga3": SearchCase("nsga3", {"population_size": 3}, trials=5),
    "evolution": SearchCase("evolution", {"population_size": 3, "tournament_size": 2}, trials=5),
}
STOPPED = {
    "asha": PrunerCase("asha"),
    "hyperband": PrunerCase("hyperband"),
    "median": PrunerCase("median", {"n_startup_trials": 2}),
    "patient": PrunerCase("patient", {"patience": 0, "wraps": "median", "n_startup_trials": 2}, trials=30),
}
# A plug-in that keeps every law; each broken one below differs from it in one place.
SAMPLER = '''
import random
from dataclasses import dataclass
from optuna.samplers import BaseSampler, RandomSampler
from services.search_plugins import SearchAlgorithm

CALLS = []

@dataclass(frozen=True, slots=True)
class Settings:
    """Settings.

    Args:
        shift: Added to the seed.
    """

    shift: int = 0

class Sampler(BaseSampler):
    def __init__(self, settings, seed):
        self.inner = RandomSampler(seed={seed})
        CALLS.append(seed)

    def infer_relative_search_space(self, study, trial):
        return dict()

    def sample_relative(self, study, trial, search_space):
        return dict()

    def sample_independent(self, study, trial, name, distribution):
        value = self.inner.sample_independent(study, trial, name, distribution)
        return {value}

OURS = SearchAlgorithm(Settings, Sampler)
'''


def test_every_built_in_one_is_under_the_laws() -> None:
    assert set(BUILT_IN) == set(SEARCHERS)
    assert set(STOPPED) == set(PRUNERS)


CASES = [
    *((f"{name}-{law}", run) for name, case in BUILT_IN.items() for law, run in searcher_laws(case).items()),
]


@pytest.mark.parametrize("law", [run for _, run in CASES], ids=[name for name, _ in CASES])
def test_searchers_keep_the_laws(law: Callable[[], None]) -> None:
    law()


STOPPING = [(f"{name}-{law}", run) for name, case in STOPPED.items() for law, run in pruner_laws(case).items()]


@pytest.mark.parametrize("law", [run for _, run in STOPPING], ids=[name for name, _ in STOPPING])
def test_pruners_keep_the_laws(law: Callable[[], None]) -> None:
    law()


def laws_of(folder: Path, **changes: Any) -> dict[str, Callable[[], None]]:
    code = {"seed": "seed + settings.shift", "value": "value", **changes}
    (folder / "mine.py").write_text(SAMPLER.replace("{seed}", code["seed"]).replace("{value}", code["value"]))
    return dict(searcher_laws(SearchCase(f"{folder}/mine.py:OURS", {"shift": 3}, trials=4)))


def test_a_plugin_that_keeps_the_laws_passes(tmp_path: Path) -> None:
    for law in laws_of(tmp_path).values():
        law()


@pytest.mark.parametrize(
    ("broken", "changes", "told"),
    [
        ("the_same_seed_proposes_the_same", {"seed": "len(CALLS)"}, "trial 0 has"),
        ("a_search_resumed_at_any_trial_goes_on_as_if_uninterrupted", {"seed": "len(CALLS)"}, "resumed after 1 trial"),
        ("proposing_consumes_no_global_randomness", {"seed": "random.getrandbits(31)"}, "global source"),
    ],
)
def test_a_law_refuses_what_breaks_it(tmp_path: Path, broken: str, changes: dict[str, str], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        laws_of(tmp_path, **changes)[broken]()


def test_a_proposal_outside_of_the_space_is_refused_with_the_name_of_the_plugin(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the searcher .*mine\.py:OURS proposed .* for optim\.lr, which is in"):
        laws_of(tmp_path, value="2 * value + 1")["proposals_are_in_the_space"]()


def test_an_error_of_a_sampler_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the searcher .*mine\.py:OURS failed: ZeroDivisionError at .*mine\.py:\d+"):
        laws_of(tmp_path, value="value / 0")["the_same_seed_proposes_the_same"]()


RULE = '''
from dataclasses import dataclass
from services.search.early_stopping import EarlyStopping
from services.search_plugins import StoppingRule

@dataclass(frozen=True, slots=True)
class Settings:
    """Settings.

    Args:
        bar: Accuracy below which trials are stopped.
    """

    bar: float = 0.1

class Rule(EarlyStopping):
    def __init__(self, settings, epochs):
        self.bar, self.epochs, self.told = settings.bar, epochs, []

    def rungs(self, number):
        return ({rung},)

    def update(self, trial):
        self.told.append(trial.number)

    def reason_at(self, trial, rung):
        return "too low" if trial.curve[rung - 1] < {bar} else None

OURS = StoppingRule(Settings, Rule)
'''


def pruner_laws_of(folder: Path, *, rung: str = "2", bar: str = "self.bar") -> dict[str, Callable[[], None]]:
    (folder / "stop.py").write_text(RULE.replace("{rung}", rung).replace("{bar}", bar))
    return dict(pruner_laws(PrunerCase(f"{folder}/stop.py:OURS", {"bar": 0.2})))


def test_early_stopping_that_keeps_the_laws_passes(tmp_path: Path) -> None:
    for law in pruner_laws_of(tmp_path).values():
        law()


@pytest.mark.parametrize(
    ("broken", "changes", "told"),
    [
        ("trials_are_compared_before_their_last_epoch", {"rung": "self.epochs"}, r"are in 1\.\.8"),
        ("some_trials_are_stopped_and_some_are_not", {"bar": "0"}, "no trial was stopped"),
        ("some_trials_are_stopped_and_some_are_not", {"bar": "2"}, "no trial was trained to its end"),
        ("an_interruption_changes_no_decision", {"bar": "0.05 * len(set(self.told[-9:]))"}, "resumed after"),
        (
            "decisions_do_not_depend_on_the_order_of_what_is_known",
            {"bar": "0.2 * self.told.index(0)"},
            "depend on the order",
        ),
    ],
)
def test_a_law_of_pruners_refuses_what_breaks_it(
    tmp_path: Path, broken: str, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        pruner_laws_of(tmp_path, **changes)[broken]()
