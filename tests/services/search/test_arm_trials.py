"""Running counts of an arm equal a recount, whatever happens in whatever order, and no step looks at every trial."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler

from services.budget.limits import FAILURES_IN_A_ROW
from services.budget.tally import Tally
from services.search.arm_trials import ArmTrials
from services.search.asha import is_promoted
from services.search.constraints import could_win
from services.search.sampler_history import SamplerHistory
from services.search.samplers import ask
from services.search.scheduler import Scheduler
from services.search.selection import select
from services.study_config.search_options import Constraints, Rules, Selection
from services.study_config.searching.pruners import Pruner
from services.trial_record import SEARCH, Trial
from tests.services.function_calls import calls
from tests.services.search.example_study import CLASSES, IMAGES, SHAPE, example

DISTRIBUTION = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'
PRUNER = Pruner(name="asha", rungs=[1, 2], reduction_factor=2)
LIMIT = 6
RULES = [
    Rules(),
    Rules(pruner=PRUNER),
    Rules(constraints=Constraints(macs=60)),
    Rules(objectives=("accuracy", "macs"), selection=Selection(objective="macs", tolerance=0.2)),
]


def trial_of(number: int, state: str, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Trial:
    score = draw(st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.9]))
    macs = draw(st.integers(1, 100))
    curve = tuple(draw(st.lists(st.sampled_from([0.1, 0.3, 0.5]), max_size=3)))
    result: dict[str, Any] | None = {"macs": macs, "overhead_seconds": 0.1} if state == "complete" else None
    if state == "pruned":
        result = {"stopped_after": 1, "validation_accuracy": score}
    exhausted = state == "failed" and draw(st.booleans())
    rejected = {"values": {"x": 0.5}, "distributions": {"x": DISTRIBUTION}, "exceeded": {"macs": [70, 60]}}
    params: dict[str, Any] = {"infeasible": [rejected] * draw(st.integers(0, 2))}
    params |= (
        {"search_exhausted": "nothing"} if exhausted else {"values": {"x": score}, "distributions": {"x": DISTRIBUTION}}
    )
    return Trial(
        "arm",
        SEARCH,
        number,
        seed=number,
        state=state,
        sample_passes=draw(st.integers(0, 50)),
        planned=50,
        seconds=draw(st.floats(0, 1e3)),
        score=score if state == "complete" else None,
        params=params,
        result=result,
        architecture_hash=draw(st.sampled_from([None, "one", "other"])),
        curve=curve,
    )


@st.composite
def updates(draw: Callable[[st.SearchStrategy[Any]], Any]) -> list[Trial]:
    """Trials in the order in which they are told: mostly as they happen, and sometimes back, as in a replay."""
    numbers = draw(st.lists(st.integers(0, 11), max_size=30))
    states = st.sampled_from(["queued", "running", "complete", "complete", "failed", "pruned"])
    return [trial_of(number, draw(states), draw) for number in numbers]


def told(history: SamplerHistory) -> list[tuple[Any, ...]]:
    return [
        (each.number, each.state, each.params, each.system_attrs, each.intermediate_values)
        + ((tuple(each.values),) if each.values else ())
        for each in history.told()
    ]


@settings(max_examples=60, deadline=None)
@given(updates(), st.sampled_from(RULES))
def test_running_counts_equal_a_recount(changes: list[Trial], rules: Rules) -> None:
    arm, bounded = ArmTrials(rules), SamplerHistory(rules, LIMIT)
    for trial in changes:
        arm.update(trial)
        bounded.update(trial)
    known = {trial.number: trial for trial in changes}
    trials = [known[number] for number in sorted(known)]
    assert arm.in_order() == trials
    assert len(arm) == len(trials)
    assert arm.tally == Tally.of(trials)
    assert arm.tally.ended == sum(trial.ended for trial in trials)
    assert arm.tally.charged_passes == sum(trial.charged_passes for trial in trials)
    assert abs(arm.tally.ended_seconds - sum(trial.charged_seconds for trial in trials if trial.ended)) < 1e-6
    assert arm.tried == sum(len(trial.infeasible) + (trial.search_exhausted is None) for trial in trials)
    latest = [trial.state for trial in trials[-FAILURES_IN_A_ROW:]]
    assert arm.exhausted == (any(trial.search_exhausted for trial in trials) or latest == ["failed"] * 8)
    assert arm.winner == select([trial for trial in trials if could_win(trial, rules.constraints)], rules.selection)
    for name in ("one", "other"):
        assert list(arm.same(name)) == [trial.number for trial in trials if trial.architecture_hash == name]
    assert told(arm.history) == told(SamplerHistory.of(trials, rules))
    assert told(bounded) == told(SamplerHistory.of(trials, rules, LIMIT))
    assert len(bounded.told()) <= max(LIMIT, LIMIT // 4 * 3)
    if arm.stopping is not None:
        for trial in trials:
            for rung in PRUNER.rungs or ():
                reached = sorted(each.curve[rung - 1] for each in trials if len(each.curve) >= rung)
                if len(trial.curve) == rung:
                    stopped = not is_promoted(trial.curve[-1], reached, PRUNER.reduction_factor)
                    assert (arm.stopping.reason_to_stop(trial, since=rung) is not None) == stopped


def test_the_choice_within_a_tolerance_is_that_of_a_look_at_all() -> None:
    selection = Selection(objective="macs", tolerance=0.1)

    def complete(number: int, score: float, macs: int) -> Trial:
        return Trial("arm", SEARCH, number, number, "complete", score=score, result={"macs": macs})

    trials = [complete(0, 0.5, 10), complete(1, 0.9, 50), complete(2, 0.85, 40), complete(3, 0.95, 90)]
    assert [each.number for each in (select(trials[:count], selection) for count in (1, 2, 3, 4)) if each] == [
        0,
        1,
        2,
        2,
    ]
    assert select([*trials, complete(4, 0.96, 95)], selection) == trials[1]  # 0.85 has left the tolerance, 0.9 has not


def grown(arm: dict[str, Any], trials: int) -> Scheduler:
    study = example({"arm": {"space": ["training"], **arm}}, epochs=9, trials=10_000, seeds=[0])
    scheduler = Scheduler(study, shape=SHAPE, classes=CLASSES, images=IMAGES)
    first = scheduler.next()
    assert first is not None
    for number in range(trials):
        score = number % 97 / 100
        curve = (score,) * 9 if number % 3 == 0 else (score,)
        done = {"state": "complete", "score": score, "sample_passes": 900, "seconds": 1.0, "result": {"macs": 5}}
        scheduler.update(replace(first, number=number, curve=curve, **done))
    return scheduler


def one_trial(scheduler: Scheduler) -> None:
    """What the driver asks of the scheduler for one trial."""
    trial = scheduler.next()
    assert trial is not None
    scheduler.update(replace(trial, state="running", curve=(0.2,), sample_passes=100))
    scheduler.reason_to_stop(scheduler.trial(trial.key), since=0)
    scheduler.update(replace(trial, state="complete", score=0.3, curve=(0.2,) * 9, result={}))
    assert scheduler.winner("arm") is not None
    assert not scheduler.finished


def test_a_trial_takes_as_many_steps_however_many_there_were() -> None:
    for arm in ({}, {"pruner": {"name": "asha"}}):
        few, many = grown(arm, 50), grown(arm, 500)
        one_trial(few), one_trial(many)  # what is computed once has been
        assert calls(lambda few=few: one_trial(few)) + 100 > calls(lambda many=many: one_trial(many))


def history_of(trials: int) -> SamplerHistory:
    history = SamplerHistory(Rules(), limit=40)
    for number in range(trials):
        params = {"values": {"x": number / trials}, "distributions": {"x": DISTRIBUTION}}
        score = 0.9 if number == 7 else (number * 37 % trials) / 1000
        history.update(Trial("arm", SEARCH, number, 0, "complete", score=score, params=params))
    return history


def test_what_a_sampler_is_told_is_bounded_and_has_the_best_and_the_latest() -> None:
    numbers = [round(200 * each.params["x"]) for each in history_of(200).told()]
    assert len(numbers) == 40
    assert numbers == sorted(numbers)
    assert numbers[-30:] == list(range(170, 200))
    assert 7 in numbers


def test_a_sampler_takes_as_many_steps_however_many_trials_there_were() -> None:
    short, long = history_of(100), history_of(500)
    ask("tpe", history_of(100), 1)  # the first proposal of a process imports and compares
    assert calls(lambda: ask("tpe", long, 1)) < calls(lambda: ask("tpe", short, 1)) + 100


@settings(max_examples=10, deadline=None)
@given(updates(), st.integers(0, 3))
def test_what_is_told_without_copies_is_what_optuna_would_be_told(changes: list[Trial], seed: int) -> None:
    history = SamplerHistory(Rules(n_startup_trials=2))
    for trial in changes:
        history.update(trial)
    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed, n_startup_trials=2))
    study.add_trials([copy(told) for told in history.told()])
    expected = study.ask().suggest_float("x", 0, 1)
    assert [ask("tpe", history, seed).suggest_float("x", 0, 1) for _ in range(2)] == [expected, expected]
