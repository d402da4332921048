"""The plan: who comes next, what it may spend, and that an interrupted search goes on as if it had not been."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.search import RETRAIN, SEARCH, Entry, Plan
from services.study_config.schema import Study, parse, resolve

IMAGES, EPOCHS = 100, 2
ONE = IMAGES * EPOCHS
SEEDS = [0, 1]


def study(arms: dict[str, object], *, trials: int = 4) -> Study:
    document = {
        "schema_version": 2,
        "name": "example",
        "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
        "training": {"epochs": EPOCHS},
        "budget": {"sample_passes": ONE * (trials + len(SEEDS))},
        "retrain": {"seeds": SEEDS},
        "arms": arms,
    }
    return resolve(parse(document, source="x"), source="x")


THREE = {
    "random": {"space": ["training", "branched"]},
    "tpe": {"space": ["training", "branched"], "searcher": "tpe"},
    "thin": {"space": ["training"], "match": {"arm": "random"}},
}


def plan_of(entries: list[Entry] | None = None, *, arms: dict[str, object] = THREE, trials: int = 4) -> Plan:
    return Plan(study(arms, trials=trials), shape=(1, 8, 8), classes=10, images=IMAGES, entries=entries or [])


def outcome(entry: Entry, *, failing: bool = False) -> Entry:
    """A made-up result that depends on what was proposed and on nothing else."""
    if failing:
        return replace(entry, state="failed", spent=entry.planned // 2)
    score = random.Random(repr((entry.experiment.training.learning_rate, entry.seed))).random()
    return replace(entry, state="complete", spent=entry.planned, score=score, macs=1000 + entry.number)


def run_to_end(
    plan: Plan, *, max_concurrent_trials: int = 1, seed: int = 0, fails: frozenset[int] = frozenset()
) -> list[Entry]:
    rng, running, order = random.Random(seed), [], []
    while True:
        while len(running) < max_concurrent_trials and (proposal := plan.next()) is not None:
            entry = replace(proposal.entry, state="running")
            plan.update(entry)
            running.append(entry)
            order.append(entry)
        if not running:
            return order
        entry = running.pop(rng.randrange(len(running)))
        plan.update(outcome(entry, failing=entry.phase == SEARCH and entry.number in fails))


@given(max_concurrent_trials=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_every_arm_spends_exactly_its_budget(max_concurrent_trials: int, seed: int) -> None:
    plan = plan_of()
    run_to_end(plan, max_concurrent_trials=max_concurrent_trials, seed=seed)
    assert plan.finished
    for arm in THREE:
        entries = [*plan.of(arm, SEARCH), *plan.of(arm, RETRAIN)]
        assert sum(entry.spent for entry in entries) == ONE * 6
        assert [entry.seed for entry in plan.of(arm, RETRAIN)] == SEEDS


@pytest.mark.parametrize("stop_after", [1, 5, 9, 13])
def test_a_rebuilt_plan_goes_on_as_the_uninterrupted_one(stop_after: int) -> None:
    straight = run_to_end(plan_of())
    plan, entries = plan_of(), []
    for _ in range(stop_after):
        proposal = plan.next()
        assert proposal is not None
        plan.update(outcome(proposal.entry))
    entries = [entry for arm in THREE for phase in (SEARCH, RETRAIN) for entry in plan.of(arm, phase)]
    random.Random(1).shuffle(entries)
    resumed = run_to_end(plan_of(entries))
    assert [entry.experiment for entry in resumed] == [entry.experiment for entry in straight[stop_after:]]


def test_arms_with_the_same_space_and_searcher_get_the_same_proposals() -> None:
    arms = {"a": {"space": ["training"]}, "b": {"space": ["training"]}}
    plan = plan_of(arms=arms)
    run_to_end(plan)
    assert [e.experiment for e in plan.of("a", SEARCH)] == [e.experiment for e in plan.of("b", SEARCH)]


def test_an_architecture_is_not_proposed_twice_in_an_arm() -> None:
    plan = plan_of(arms={"random": {"space": ["branched"]}}, trials=12)
    run_to_end(plan)
    hashes = [entry.architecture_hash for entry in plan.of("random", SEARCH)]
    assert len(set(hashes)) == len(hashes) == 12


def test_what_cannot_vary_is_repeated_with_other_seeds() -> None:
    plan = plan_of(arms={"fixed": {}})
    run_to_end(plan)
    assert len({entry.seed for entry in plan.of("fixed", SEARCH)}) == 4


def test_matched_arms_wait_and_take_the_macs_of_the_other() -> None:
    plan = plan_of()
    order = run_to_end(plan)
    first_thin = next(i for i, entry in enumerate(order) if entry.arm == "thin")
    assert sum((entry.arm, entry.phase) == ("random", SEARCH) for entry in order[:first_thin]) == 4
    winner = plan.winner("random")
    assert winner is not None
    assert {entry.experiment.target_macs for entry in plan.of("thin", SEARCH)} == {winner.macs}
    for mine, theirs in zip(plan.of("thin", RETRAIN), plan.of("random", RETRAIN), strict=True):
        assert mine.experiment.target_macs == theirs.macs
        assert mine.seed == theirs.seed


def test_pruned_and_distilled_arms_meet_the_macs_of_the_other_as_a_share_of_the_dense_network() -> None:
    blockout = {"method": {"name": "blockout", "clusters": 1, "masked": "all"}, "distillation": {"target_macs": 0.9}}
    arms: dict[str, object] = {
        "random": THREE["random"],
        "pruned": {"pruning": {}, "match": {"arm": "random"}},
        "widths": {**blockout, "match": {"arm": "random"}},
    }
    plan = plan_of(arms=arms)
    run_to_end(plan)
    dense = 64 * 9 * 8 + 16 * 9 * 8 * 8 + 8 * 12 + 12 * 10
    for mine, widths, theirs in zip(*(plan.of(arm, RETRAIN) for arm in ("pruned", "widths", "random")), strict=True):
        assert theirs.macs is not None
        assert mine.experiment.pruning is not None
        assert mine.experiment.pruning.target_macs == theirs.macs / dense
        assert widths.experiment.distillation is not None
        assert widths.experiment.distillation.target_macs == theirs.macs / dense
        assert widths.experiment.distillation.fill_target
        assert mine.experiment.target_macs is None


def test_failed_trials_cost_what_they_spent_and_are_told_as_failed() -> None:
    plan = plan_of(arms={"tpe": THREE["tpe"]})
    run_to_end(plan, fails=frozenset({0, 1}))
    states = [entry.state for entry in plan.of("tpe", SEARCH)]
    assert states == ["failed", "failed", "complete", "complete", "complete"]  # two halves paid for one more
    assert plan.finished


def test_an_arm_that_only_fails_gives_up_and_whoever_matches_it_too() -> None:
    plan = plan_of(trials=30)
    order = run_to_end(plan, fails=frozenset(range(100)))
    assert plan.finished
    assert {entry.phase for entry in order} == {SEARCH}
    assert len(plan.of("random", SEARCH)) == 8
    assert plan.of("thin", SEARCH) == []
    assert plan.winner("random") is None


def test_winner_is_the_best_on_validation_and_the_first_of_equals() -> None:
    plan = plan_of(arms={"fixed": {}})
    for number in range(4):
        proposal = plan.next()
        assert proposal is not None
        score = [0.5, 0.9, 0.9, 0.1][number]
        plan.update(replace(proposal.entry, state="complete", spent=ONE, score=score, macs=1))
    winner = plan.winner("fixed")
    assert winner is not None
    assert winner.number == 1
