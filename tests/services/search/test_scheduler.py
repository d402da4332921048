"""The scheduler: who comes next, what it may spend, and that an interrupted search goes on as if it had not been."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.training import TrainingSettings, sample_passes
from services.search.scheduler import Scheduler
from services.trial_record import RETRAIN, SEARCH, Trial
from tests.services.search.example_study import IMAGES, example, scheduler_of

EPOCHS = 2
ONE = sample_passes(TrainingSettings(EPOCHS), IMAGES)
SEEDS = [0, 1]
THREE = {
    "random": {"space": ["training", "branched"]},
    "tpe": {"space": ["training", "branched"], "searcher": "tpe"},
    "thin": {"space": ["training"], "match": {"arm": "random"}},
}


def planned(known: Sequence[Trial] = (), *, arms: Mapping[str, Any] = THREE, trials: int = 4) -> Scheduler:
    return scheduler_of(example(arms, epochs=EPOCHS, trials=trials, seeds=SEEDS), known)


def outcome(trial: Trial, *, failing: bool = False) -> Trial:
    """A made-up result that depends on what was proposed and on nothing else."""
    if failing:
        return replace(trial, state="failed", sample_passes=trial.planned // 2)
    score = random.Random(repr((trial.config.training.learning_rate, trial.seed))).random()
    return replace(
        trial, state="complete", sample_passes=trial.planned, score=score, result={"macs": 1000 + trial.number}
    )


def run_to_end(
    scheduler: Scheduler, *, max_concurrent_trials: int = 1, seed: int = 0, fails: frozenset[int] = frozenset()
) -> list[Trial]:
    rng, running, order = random.Random(seed), [], []
    while True:
        while len(running) < max_concurrent_trials and (proposal := scheduler.next()) is not None:
            trial = replace(proposal, state="running")
            scheduler.update(trial)
            running.append(trial)
            order.append(trial)
        if not running:
            return order
        trial = running.pop(rng.randrange(len(running)))
        scheduler.update(outcome(trial, failing=trial.phase == SEARCH and trial.number in fails))


@given(max_concurrent_trials=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_every_arm_spends_exactly_its_budget(max_concurrent_trials: int, seed: int) -> None:
    scheduler = planned()
    run_to_end(scheduler, max_concurrent_trials=max_concurrent_trials, seed=seed)
    assert scheduler.finished
    for arm in THREE:
        known = [*scheduler.of(arm, SEARCH), *scheduler.of(arm, RETRAIN)]
        assert sum(trial.sample_passes for trial in known) == ONE * 6
        assert [trial.seed for trial in scheduler.of(arm, RETRAIN)] == SEEDS


@pytest.mark.parametrize("stop_after", [1, 5, 9, 13])
def test_a_rebuilt_plan_goes_on_as_the_uninterrupted_one(stop_after: int) -> None:
    straight = run_to_end(planned())
    scheduler, known = planned(), []
    for _ in range(stop_after):
        proposal = scheduler.next()
        assert proposal is not None
        scheduler.update(outcome(proposal))
    known = [trial for arm in THREE for phase in (SEARCH, RETRAIN) for trial in scheduler.of(arm, phase)]
    random.Random(1).shuffle(known)
    resumed = run_to_end(planned(known))
    assert [trial.config for trial in resumed] == [trial.config for trial in straight[stop_after:]]


def test_arms_with_the_same_space_and_searcher_get_the_same_proposals() -> None:
    arms = {"a": {"space": ["training"]}, "b": {"space": ["training"]}}
    scheduler = planned(arms=arms)
    run_to_end(scheduler)
    assert [e.config for e in scheduler.of("a", SEARCH)] == [e.config for e in scheduler.of("b", SEARCH)]


def test_an_architecture_is_not_proposed_twice_in_an_arm() -> None:
    scheduler = planned(arms={"random": {"space": ["branched"]}}, trials=12)
    run_to_end(scheduler)
    hashes = [trial.architecture_hash for trial in scheduler.of("random", SEARCH)]
    assert len(set(hashes)) == len(hashes) == 12


def test_what_cannot_vary_is_repeated_with_other_seeds() -> None:
    scheduler = planned(arms={"fixed": {}})
    run_to_end(scheduler)
    assert len({trial.seed for trial in scheduler.of("fixed", SEARCH)}) == 4


def test_matched_arms_wait_and_take_the_macs_of_the_other() -> None:
    scheduler = planned()
    order = run_to_end(scheduler)
    first_thin = next(i for i, trial in enumerate(order) if trial.arm == "thin")
    assert sum((trial.arm, trial.phase) == ("random", SEARCH) for trial in order[:first_thin]) == 4
    winner = scheduler.winner("random")
    assert winner is not None
    assert {trial.config.target_macs for trial in scheduler.of("thin", SEARCH)} == {winner.macs}
    for mine, theirs in zip(scheduler.of("thin", RETRAIN), scheduler.of("random", RETRAIN), strict=True):
        assert mine.config.target_macs == theirs.macs
        assert mine.seed == theirs.seed


def test_pruned_and_distilled_arms_meet_the_macs_of_the_other_as_a_share_of_the_dense_network() -> None:
    blockout = {"method": {"name": "blockout", "clusters": 1, "masked": "all"}, "distillation": {"target_macs": 0.9}}
    arms: dict[str, object] = {
        "random": THREE["random"],
        "pruned": {"pruning": {}, "match": {"arm": "random"}},
        "widths": {**blockout, "match": {"arm": "random"}},
    }
    scheduler = planned(arms=arms)
    run_to_end(scheduler)
    dense = 64 * 9 * 8 + 16 * 9 * 8 * 8 + 8 * 12 + 12 * 10
    for mine, widths, theirs in zip(
        *(scheduler.of(arm, RETRAIN) for arm in ("pruned", "widths", "random")), strict=True
    ):
        assert theirs.macs is not None
        assert mine.config.pruning is not None
        assert mine.config.pruning.target_macs == theirs.macs / dense
        assert widths.config.distillation is not None
        assert widths.config.distillation.target_macs == theirs.macs / dense
        assert widths.config.distillation.fill_target
        assert mine.config.target_macs is None


def test_failed_trials_cost_what_they_spent_and_are_told_as_failed() -> None:
    scheduler = planned(arms={"tpe": THREE["tpe"]})
    run_to_end(scheduler, fails=frozenset({0, 1}))
    states = [trial.state for trial in scheduler.of("tpe", SEARCH)]
    assert states == ["failed", "failed", "complete", "complete", "complete"]  # two halves paid for one more
    assert scheduler.finished


def test_an_arm_that_only_fails_gives_up_and_whoever_matches_it_too() -> None:
    scheduler = planned(trials=30)
    order = run_to_end(scheduler, fails=frozenset(range(100)))
    assert scheduler.finished
    assert {trial.phase for trial in order} == {SEARCH}
    assert len(scheduler.of("random", SEARCH)) == 8
    assert scheduler.of("thin", SEARCH) == []
    assert scheduler.winner("random") is None


def test_winner_is_the_best_on_validation_and_the_first_of_equals() -> None:
    scheduler = planned(arms={"fixed": {}})
    for number in range(4):
        proposal = scheduler.next()
        assert proposal is not None
        score = [0.5, 0.9, 0.9, 0.1][number]
        scheduler.update(replace(proposal, state="complete", sample_passes=ONE, score=score, result={"macs": 1}))
    winner = scheduler.winner("fixed")
    assert winner is not None
    assert winner.number == 1


FOLDED = {"name": "digits", "folds": 4}


def folded(known: Sequence[Trial] = (), *, arms: Mapping[str, Any] = THREE) -> Scheduler:
    study = example(arms, epochs=EPOCHS, trials=2, seeds=[7, 3, 5], data=FOLDED)
    return Scheduler(study, shape=(1, 8, 8), classes=10, images=75, images_of_folds=[75, 70, 80, 75], trials=known)


def test_the_search_holds_out_one_fold_and_every_seed_another() -> None:
    trials = run_to_end(folded())
    assert {trial.config.data.fold for trial in trials if trial.phase == SEARCH} == {0}
    for arm in THREE:
        retrained = [trial for trial in trials if (trial.arm, trial.phase) == (arm, RETRAIN)]
        assert [(trial.seed, trial.config.data.fold) for trial in retrained] == [(7, 0), (3, 1), (5, 2)]
        assert {trial.config.data.folds for trial in retrained} == {4}
        # The last fold leaves more images to train on than the first, and costs as many passes.
        passes = [sample_passes(TrainingSettings(EPOCHS), images) for images in (75, 70, 80)]
        assert [trial.planned for trial in retrained] == passes


def test_a_resumed_study_goes_on_with_the_folds_that_are_missing() -> None:
    trials = [outcome(trial) if trial.phase == RETRAIN else trial for trial in run_to_end(folded())]
    ended = {trial.key: outcome(trial) for trial in trials}
    last = [key for key in ended if key[1] == RETRAIN and ended[key].seed == 5]
    scheduler = folded([trial for key, trial in ended.items() if key not in last])
    again = run_to_end(scheduler)
    assert {trial.key: trial.config for trial in again} == {key: ended[key].config for key in last}


def test_a_retraining_that_held_out_another_fold_is_stale() -> None:
    trials = [outcome(trial) for trial in run_to_end(folded())]
    other = [replace(trial, experiment=replace(trial.config, data=replace(trial.config.data, fold=3)).to_json())
             if (trial.phase, trial.seed) == (RETRAIN, 3) else trial for trial in trials]  # fmt: skip
    scheduler = folded(other)
    assert sorted(scheduler.current(scheduler.study.arms["random"])) == [5, 7]
