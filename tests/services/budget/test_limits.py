"""Budgets in passes, seconds and trainings: the first that ends, ends the search, and retraining stays paid for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_blockout.training import TrainingSettings, sample_passes
from services.budget.limits import RETRAINING_MARGIN, ended_by, limits, shares, trials_left
from services.budget.tally import Tally
from services.search.scheduler import Scheduler
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.study_config.schema import Budget
from services.trial_record import RETRAIN, SEARCH, Trial

IMAGES = 50
COST = sample_passes(TrainingSettings(2), IMAGES)


def ended_trial(passes: int, seconds: float) -> Trial:
    return Trial("arm", SEARCH, 0, 0, "complete", passes, COST, seconds)


def trials_of(count: int, *, seconds: float = 2.0, running: int = 0) -> list[Trial]:
    return [ended_trial(COST, seconds)] * count + [Trial("arm", SEARCH, 0, 0, "running", 0, COST)] * running


def left(budget: Budget, search: list[Trial], *, retrainings: int = 2) -> dict[str, int]:
    return dict(trials_left(budget, Tally.of(search), cost=COST, retrainings=retrainings))


def test_each_limit_pays_for_its_own_number_of_trials() -> None:
    budget = Budget(sample_passes=10 * COST, seconds=20.0, trainings=8)
    assert left(budget, trials_of(3)) == {"sample_passes": 5, "trainings": 3, "seconds": 4}
    assert limits(Budget(trainings=8)) == {"trainings": 8}
    assert left(Budget(trainings=8), trials_of(2, running=4)) == {"trainings": 0}


def test_the_first_limit_that_is_reached_ends_the_search() -> None:
    assert ended_by({"sample_passes": 0, "seconds": 0}) == "sample_passes"
    assert ended_by({"sample_passes": 1, "seconds": 0, "trainings": 0}) == "seconds"
    assert ended_by({"sample_passes": 1}) is None


def test_passes_of_running_trials_are_gone_and_those_that_a_failed_one_left_are_not() -> None:
    budget = Budget(sample_passes=5 * COST)
    assert left(budget, trials_of(1, running=1)) == {"sample_passes": 1}
    assert left(budget, [ended_trial(COST // 2, 1.0)] * 2) == {"sample_passes": 2}


def test_until_something_is_measured_one_trial_runs_at_a_time() -> None:
    budget = Budget(seconds=1000.0)
    assert left(budget, []) == {"seconds": 1}
    assert left(budget, trials_of(0, running=1)) == {"seconds": 0}
    assert left(budget, trials_of(1, running=1)) == {"seconds": 495}  # 1000 less 4.4, 2 and 2, by 2


@given(
    limit=st.floats(1, 1000),
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=30),
    retrainings=st.integers(1, 10),
)
def test_what_a_limit_of_seconds_pays_for_fits_into_it(limit: float, seconds: list[float], retrainings: int) -> None:
    search = [ended_trial(COST, each) for each in seconds]
    mean = sum(seconds) / len(seconds)
    found = left(Budget(seconds=limit), search, retrainings=retrainings)["seconds"]
    if found:
        assert sum(seconds) + found * mean + RETRAINING_MARGIN * retrainings * mean <= limit * (1 + 1e-9)


def test_shares_are_of_each_limit() -> None:
    spent = {"sample_passes": 50.0, "seconds": 30.0, "trainings": 2.0}
    assert shares(Budget(sample_passes=100, trainings=8), spent) == {"sample_passes": 0.5, "trainings": 0.25}


# -- in a plan


def study(budget: dict[str, float]) -> Study:
    document = {
        "schema_version": 2,
        "name": "example",
        "training": {"epochs": 2},
        "budget": budget,
        "retrain": {"seeds": [0, 1]},
        "arms": {"fast": {"space": ["training"]}, "slow": {"space": ["training"]}},
    }
    return resolve_document(document, source="x")


SECONDS = {"fast": 1.0, "slow": 3.0}


def run(budget: dict[str, float], *, max_concurrent_trials: int = 1) -> Scheduler:
    """Run a scheduler to its end; a trial takes its arm's seconds."""
    scheduler, running = Scheduler(study(budget), shape=(1, 8, 8), classes=10, images=IMAGES), []
    while True:
        while len(running) < max_concurrent_trials and (proposal := scheduler.next()) is not None:
            running.append(replace(proposal, state="running", suggest_seconds=0.0))
            scheduler.update(running[-1])
        if not running:
            return scheduler
        trial = running.pop(0)
        scheduler.update(replace(trial, state="complete", sample_passes=COST, seconds=SECONDS[trial.arm], score=0.5))


@pytest.mark.parametrize(
    ("budget", "fast", "slow"),
    [
        ({"trainings": 7}, 5, 5),
        ({"seconds": 30.0}, 27, 7),
        ({"seconds": 30.0, "trainings": 12}, 10, 7),
        ({"seconds": 30.0, "sample_passes": 6 * COST}, 4, 4),
    ],
)
@pytest.mark.parametrize("max_concurrent_trials", [1, 5])
def test_a_plan_spends_what_the_first_limit_allows(
    budget: dict[str, float], fast: int, slow: int, max_concurrent_trials: int
) -> None:
    scheduler = run(budget, max_concurrent_trials=max_concurrent_trials)
    assert scheduler.finished
    assert (len(scheduler.of("fast", SEARCH)), len(scheduler.of("slow", SEARCH))) == (fast, slow)
    for arm, seconds in SECONDS.items():
        assert len(scheduler.of(arm, RETRAIN)) == 2
        assert seconds * len([*scheduler.of(arm, SEARCH), *scheduler.of(arm, RETRAIN)]) <= budget.get("seconds", 1e9)


def test_a_budget_has_a_limit() -> None:
    with pytest.raises(StudyError, match="a budget has sample_passes, seconds or trainings"):
        study({"tolerance": 0.1})
    with pytest.raises(StudyError, match=r"budget\.trainings"):
        study({"trainings": 0})
    assert study({"seconds": 5}).to_json()["budget"] == {"seconds": 5.0, "tolerance": 0.02}
