"""Recorded searches run again: what really happened is proposed again, and simulated workers keep time and order."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_blockout.training import TrainingSettings, sample_passes
from services.replay import Request, faithful
from services.replay import replay as replayed
from services.replay.pool import distance
from services.replay.results import outcome
from services.replay.simulation import ShuffledProposer, simulate
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import SEARCH, Params, Trial

IMAGES = 50
ONE = sample_passes(TrainingSettings(2), IMAGES)
TRIALS = 6
DOCUMENT: dict[str, Any] = {
    "schema_version": 2,
    "name": "recorded",
    "data": {"name": "digits", "train_samples": IMAGES},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
    "training": {"epochs": 2},
    "budget": {"sample_passes": ONE * (TRIALS + 2)},
    "retrain": {"seeds": [0, 1]},
    "arms": {
        "random": {"space": ["training", "branched"]},
        "tpe": {"space": ["training", "branched"], "searcher": "tpe"},
        "thin": {"space": ["training"], "match": {"arm": "random"}},
    },
}


def study(**changes: Any) -> Study:
    return resolve_document({**DOCUMENT, **changes}, source="x")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, store_url=f"sqlite:///{tmp_path / 'store.db'}")


def record(settings: Settings, pretend: Any, *, max_concurrent_trials: int = 1) -> None:
    """Record the study, run with made-up results by so many workers."""
    resolved = study()
    with Store.open(settings.store_url) as store:
        store.create_study("recorded", config=resolved.to_json(), config_hash=resolved.hash, arms=list(resolved.arms))
        pretend(store, resolved, max_concurrent_trials=max_concurrent_trials)


def pool_of(seconds: list[float], scores: list[float | None]) -> list[Trial]:
    return [
        Trial("random", SEARCH, number, number, "failed" if score is None else "complete", 100, 100, length,
              score=score)
        for number, (length, score) in enumerate(zip(seconds, scores, strict=True))
    ]  # fmt: skip


# -- what really happened


@pytest.mark.parametrize("max_concurrent_trials", [1, 3])
def test_every_trial_that_really_ran_is_proposed_again(
    settings: Settings, pretend: Any, max_concurrent_trials: int
) -> None:
    record(settings, pretend, max_concurrent_trials=max_concurrent_trials)
    found = replayed(settings, "recorded", Request(repeats=1))
    assert faithful(found.reproduction)
    with Store.open(settings.store_url) as store:
        assert sum(each.equal for each in found.reproduction.values()) == len(store.trials("recorded")) >= 20


def test_the_original_searchers_with_one_worker_run_again_trial_by_trial(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    found = replayed(settings, "recorded", Request(repeats=1))
    with Store.open(settings.store_url) as store:
        rows = store.trials("recorded", phase=SEARCH)
    for each in found.outcomes:
        mine = [row for row in rows if row.arm == each.arm]
        assert (each.proposals, each.exact, each.distance) == (len(mine), len(mine), 0.0)
        assert each.seconds[1] == pytest.approx(sum(row.seconds for row in mine))
        best = max(row.score or 0.0 for row in mine)
        first = next(index for index, row in enumerate(mine) if row.score == best)
        assert each.target_seconds[1] == pytest.approx(sum(row.seconds for row in mine[: first + 1]))
        assert each.target_passes[1] == sum(row.sample_passes for row in mine[: first + 1])


def test_what_would_not_be_proposed_again_is_found(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    with Store.open(settings.store_url) as store:
        row = store.study("recorded")
        store.finish_study("recorded", "complete")
        other = {**row.config, "seed": 7}
        store.reopen_study("recorded", reason="to spoil it")
    import sqlalchemy as sa

    engine = sa.create_engine(settings.store_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE studies SET config = :config"), {"config": json.dumps(other)})
    engine.dispose()
    found = replayed(settings, "recorded", Request(repeats=1))
    assert not faithful(found.reproduction)
    assert found.reproduction["random"].difference is not None
    assert found.reproduction["random"].difference.startswith("search trial 0: seed ")
    assert found.to_json()["reproduced"] is False


def test_a_study_that_was_extended_is_asked_as_it_was_at_the_time(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    longer = study(budget={"sample_passes": ONE * (TRIALS + 6)}, retrain={"seeds": [0, 1, 2]})
    with Store.open(settings.store_url) as store:
        store.finish_study("recorded", "complete")
        store.reopen_study("recorded", reason="more", config=longer.to_json(), config_hash=longer.hash)
        before = len(store.trials("recorded"))
        pretend(store, longer, max_concurrent_trials=2)
        assert len(store.trials("recorded")) > before
    assert faithful(replayed(settings, "recorded", Request(repeats=1)).reproduction)


# -- other searchers, seeds and workers


@pytest.mark.parametrize("searcher", ["tpe", "qmc", "cmaes", "nsga2", "evolution"])
def test_another_searcher_is_answered_by_the_nearest_recorded_trials_each_once(
    settings: Settings, pretend: Any, searcher: str
) -> None:
    record(settings, pretend)
    found = replayed(settings, "recorded", Request(searcher=searcher, seed=3, repeats=2, arm="random"))
    (each,) = found.outcomes
    assert found.searchers == {"random": searcher}
    assert each.proposals == 2 * each.trials
    assert each.exact < each.proposals
    assert each.distance is not None
    assert 0 < each.distance < 1
    assert each.reached == 2


def test_a_searcher_of_a_plugin_is_replayed_with_its_defaults(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    place = Path(__file__).parents[3] / "docs/guides/examples/plugin/src/example_plugin/one_plus_one.py"
    name = f"{place}:ONE_PLUS_ONE"
    (each,) = replayed(settings, "recorded", Request(searcher=name, seed=3, repeats=1, arm="random")).outcomes
    assert each.proposals == each.trials
    with pytest.raises(StudyError, match=r"--searcher: .*one_plus_one\.py has no 'ONE'"):
        replayed(settings, "recorded", Request(searcher=f"{place}:ONE"))


def test_random_search_with_another_seed_draws_without_replacement(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    (each,) = replayed(settings, "recorded", Request(seed=3, repeats=50, arm="random")).outcomes
    assert (each.proposals, each.exact, each.distance) == (0, 0, None)
    assert each.reached == 50
    lower, median, upper = each.target_seconds
    assert None not in (lower, median, upper)
    assert [lower, median, upper] == sorted({lower, median, upper})


def test_the_same_request_has_the_same_answer(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    request = Request(searcher="tpe", workers=(1, 4), repeats=3)
    assert replayed(settings, "recorded", request).to_json() == replayed(settings, "recorded", request).to_json()


def test_more_workers_take_less_time_and_the_same_budget(settings: Settings, pretend: Any) -> None:
    record(settings, pretend)
    found = replayed(settings, "recorded", Request(workers=(1, 2, 64), repeats=20, arm="random", seed=3)).outcomes
    medians = [each.seconds[1] for each in found]
    assert medians == sorted(medians, reverse=True)
    assert len(set(medians)) == 3
    assert {each.by_budget.grid[-1] for each in found} == {found[0].trials * ONE}


def test_what_is_not_recorded_is_refused(settings: Settings) -> None:
    resolved = study()
    with Store.open(settings.store_url) as store:
        store.create_study("recorded", config=resolved.to_json(), config_hash=resolved.hash, arms=list(resolved.arms))
    with pytest.raises(NotFound, match="no arm of study 'recorded' has a recorded search"):
        replayed(settings, "recorded", Request())
    with pytest.raises(NotFound, match="no arm 'rundom'; did you mean 'random'"):
        replayed(settings, "recorded", Request(arm="rundom"))
    with pytest.raises(StudyError, match="no such searcher 'tpa'; did you mean 'tpe'"):
        replayed(settings, "recorded", Request(searcher="tpa"))


# -- simulated time


@given(seconds=st.lists(st.floats(0.1, 100), min_size=1, max_size=12), workers=st.integers(1, 15))
def test_workers_never_idle_while_there_is_work(seconds: list[float], workers: int) -> None:
    pool = pool_of(seconds, [0.5] * len(seconds))
    ended = simulate(pool, ShuffledProposer(pool, seed=1), workers)
    assert sorted(each.trial.index for each in ended) == list(range(len(pool)))
    assert [each.finished for each in ended] == sorted(each.finished for each in ended)
    for each in ended:
        assert each.finished == each.started + pool[each.trial.index].seconds
    for each in ended:
        if each.started > 0:  # it began when another ended, and all workers were busy until then
            assert any(other.finished == each.started for other in ended)
            assert sum(other.started < each.started <= other.finished for other in ended) >= workers
        assert sum(other.started <= each.started < other.finished for other in ended) <= workers


def test_two_workers_by_hand() -> None:
    pool = pool_of([3.0, 1.0, 1.0, 5.0], [0.9, 0.1, None, 0.95])

    class InOrder(ShuffledProposer):
        def __init__(self) -> None:
            super().__init__(pool, seed=0)
            self._order = [0, 1, 2, 3]

    ended = simulate(pool, InOrder(), workers=2)
    assert [(each.trial.index, each.started, each.finished) for each in ended] == [
        (1, 0.0, 1.0),
        (2, 1.0, 2.0),
        (0, 0.0, 3.0),
        (3, 2.0, 7.0),
    ]
    found = outcome("random", pool, [ended], workers=2, target=0.9)
    assert found.target_seconds == (3.0, 3.0, 3.0)
    assert found.target_passes == (300.0, 300.0, 300.0)
    assert found.seconds == (7.0, 7.0, 7.0)
    never = outcome("random", pool, [ended], workers=2, target=0.96)
    assert (never.reached, never.target_seconds) == (0, (None, None, None))
    json.dumps(never.to_json(), allow_nan=False)


# -- distances


def searched(**values: Any) -> Trial:
    ranges = {
        "rate": {"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 2.0, "log": False, "step": None}},
        "lr": {"name": "FloatDistribution", "attributes": {"low": 0.001, "high": 0.1, "log": True, "step": None}},
        "kind": {"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}},
    }
    distributions = {name: json.dumps(ranges[name]) for name in values}
    return Trial("random", SEARCH, 0, 0, "complete", params=Params(values, distributions).to_json())


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"rate": 1.0}, {"rate": 1.5}, 0.25),
        ({"lr": 0.001}, {"lr": 0.01}, 0.5),
        ({"kind": "a"}, {"kind": "b"}, 1.0),
        ({"kind": "a"}, {"kind": "a"}, 0.0),
        ({"kind": "a", "rate": 1.0}, {"kind": "a"}, 0.5),
        ({"kind": "a", "lr": 0.001}, {"kind": "b", "lr": 0.1}, 1.0),
        ({}, {}, 0.0),
    ],
)
def test_distances_by_hand(a: dict[str, Any], b: dict[str, Any], expected: float) -> None:
    assert distance(searched(**a), searched(**b)) == pytest.approx(expected)
    assert distance(searched(**b), searched(**a)) == pytest.approx(expected)


def test_trials_without_parameters_are_the_same() -> None:
    assert distance(Trial("random", SEARCH, 0, 0, "complete"), searched()) == 0.0
