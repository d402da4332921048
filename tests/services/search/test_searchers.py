"""Searchers, constraints, early stopping and objectives: a scheduler that is rebuilt goes on as the one before."""

import random
from dataclasses import replace
from typing import Any

import pytest

from nas_blockout.experiment import known_costs
from nas_blockout.training import TrainingSettings, sample_passes
from search_spaces import SPACES, Context, compose, grid
from services.search.asha import is_promoted
from services.search.proposals import MOST_ASKS
from services.search.sampler_history import SamplerHistory
from services.search.samplers import ask
from services.search.scheduler import Scheduler
from services.search_plugins import ONE_OBJECTIVE, PRUNERS, SEARCHERS
from services.study_config.resolved_study import Study
from services.study_config.schema import ArmConfig
from services.study_config.search_options import Constraints, Rules
from services.study_config.searching.searchers import Searcher, SearcherOptions
from services.trial_record import RETRAIN, SEARCH, Infeasible, Trial
from tests.services.search.example_study import CLASSES, IMAGES, SHAPE, example, scheduler_of

EPOCHS = 9
ONE = sample_passes(TrainingSettings(EPOCHS), IMAGES)
EPOCH = ONE // EPOCHS
SEEDS = [0]
BRANCHED = {"space": ["training", "branched"]}
TRAINING = {"space": ["training"]}


def study(arm: dict[str, Any], *, trials: int = 8, **top: Any) -> Study:
    return example({"arm": arm}, epochs=EPOCHS, trials=trials, seeds=SEEDS, **top)


def curve_of(trial: Trial) -> list[float]:
    """A made-up learning curve that depends on what was proposed and on nothing else."""
    draws = random.Random(repr(sorted(trial.values.items())))
    quality = draws.random()
    return [quality * (1 - 0.8 ** (epoch + 1)) + 0.01 * draws.random() for epoch in range(EPOCHS)]


def trained(scheduler: Scheduler, trial: Trial) -> Trial:
    """What the driver would make of a trial: epoch by epoch, stopped where the plan says."""
    if trial.search_exhausted is not None:
        return replace(trial, state="failed")
    curve = curve_of(trial)
    for epoch in range(1, EPOCHS + 1):
        trial = replace(trial, state="running", sample_passes=epoch * EPOCH, curve=tuple(curve[:epoch]))
        scheduler.update(trial)
        if epoch < EPOCHS and (stop := scheduler.reason_to_stop(trial, since=epoch - 1)) is not None:
            return replace(
                trial, state="pruned", result={"stopped_after": stop[0], "validation_accuracy": curve[stop[0] - 1]}
            )
    costs = known_costs(trial.config, shape=SHAPE, classes=CLASSES)
    return replace(trial, state="complete", score=curve[-1], result=costs)


def run_to_end(given: Study, *, interrupted: bool = False) -> list[Trial]:
    """All trials of one worker; if interrupted, the plan is forgotten after every trial and rebuilt, shuffled."""
    scheduler, found = scheduler_of(given), []
    while (proposal := scheduler.next()) is not None:
        # What the optimizer took differs from run to run.
        found.append(trained(scheduler, replace(proposal, suggest_seconds=0.0)))
        if interrupted:
            scheduler = scheduler_of(given, random.Random(len(found)).sample(found, len(found)))
        else:
            scheduler.update(found[-1])
    assert scheduler.finished
    return found


SEARCHED = {
    "random": BRANCHED,
    "tpe": {**BRANCHED, "searcher": "tpe"},
    "gp": {**TRAINING, "searcher": "gp"},
    "grid": {**TRAINING, "searcher": "grid", "grid_points": 4},
    "qmc": {**BRANCHED, "searcher": "qmc"},
    "cmaes": {**BRANCHED, "searcher": {"name": "cmaes", "n_startup_trials": 2, "population_size": 4}},
    "margin": {**BRANCHED, "searcher": {"name": "cmaes", "n_startup_trials": 2, "population_size": 4, "margin": True}},
    "nsga2": {**BRANCHED, "searcher": {"name": "nsga2", "population_size": 3}},
    "nsga3": {**BRANCHED, "searcher": {"name": "nsga3", "population_size": 3}},
    "evolution": {**BRANCHED, "searcher": {"name": "evolution", "population_size": 3, "tournament_size": 2}},
}
STOPPED = {
    "full": {},
    "asha": {"pruner": {"name": "asha"}},
    "hyperband": {"pruner": {"name": "hyperband"}},
    "median": {"pruner": {"name": "median", "n_startup_trials": 2}},
    "patient": {"pruner": {"name": "patient", "patience": 0, "wraps": "median", "n_startup_trials": 2}},
}


def test_the_contract_has_a_row_for_every_searcher_and_every_pruner() -> None:
    assert set(SEARCHERS) <= {options_of(arm).name for arm in SEARCHED.values()}
    assert set(PRUNERS) <= {arm["pruner"]["name"] for arm in STOPPED.values() if arm}


def options_of(arm: dict[str, Any]) -> Searcher:
    searcher = ArmConfig.model_validate(arm).searcher
    return searcher or SearcherOptions(name="random")


@pytest.mark.parametrize("searcher", SEARCHED)
@pytest.mark.parametrize("stopped", ["full", "asha"])
def test_ten_interruptions_change_no_proposal(searcher: str, stopped: str) -> None:
    given = study({**SEARCHED[searcher], **STOPPED[stopped]}, trials=10)
    straight = run_to_end(given)
    assert len(straight) > 10
    assert run_to_end(given, interrupted=True) == straight
    assert any(trial.state == "pruned" for trial in straight) is (stopped != "full")


@pytest.mark.parametrize("searcher", ["tpe", "evolution", "nsga2"])
@pytest.mark.parametrize("stopped", ["hyperband", "median", "patient"])
def test_no_decision_to_stop_depends_on_an_interruption(searcher: str, stopped: str) -> None:
    given = study({**SEARCHED[searcher], **STOPPED[stopped]}, trials=10)
    straight = run_to_end(given)
    assert run_to_end(given, interrupted=True) == straight
    if stopped != "patient":  # made-up curves rise nearly always
        assert any(trial.state == "pruned" for trial in straight)


@pytest.mark.parametrize("searcher", ["qmc", "cmaes", "margin", "nsga2", "nsga3", "evolution"])
def test_another_seed_searches_elsewhere(searcher: str) -> None:
    first, second = (run_to_end(study(SEARCHED[searcher], trials=5, seed=seed)) for seed in (0, 1))
    assert first[:5] != second[:5]


@pytest.mark.parametrize("searcher", ["tpe", "gp"])
def test_what_was_told_decides_what_is_proposed(searcher: str) -> None:
    completed = run_to_end(study(SEARCHED[searcher]))[:8]
    worse = [replace(trial, score=1 - (trial.score or 0)) for trial in completed]

    def asked(known: list[Trial]) -> list[float]:
        trial = ask(searcher, SamplerHistory.of(known), 1)
        rate = trial.suggest_float("optim.lr", 0.0005, 0.008, log=True)
        return [rate, trial.suggest_float("optim.weight_decay", 1e-5, 1e-2, log=True)]

    assert asked(completed) == asked(completed)
    assert asked(completed) != asked(worse)


@pytest.mark.parametrize("searcher", ["tpe", "gp"])
def test_a_searcher_draws_at_random_until_its_startup_is_over(searcher: str) -> None:
    completed = run_to_end(study(SEARCHED["tpe"]))[:8]

    def asked(who: str, n_startup_trials: int) -> float:
        rules = Rules(n_startup_trials=n_startup_trials)
        return ask(who, SamplerHistory.of(completed, rules), 1).suggest_float("optim.lr", 0.0005, 0.008, log=True)

    assert asked(searcher, len(completed) + 1) == asked("random", 1)
    assert asked(searcher, len(completed)) != asked("random", 1)


def test_a_grid_is_tried_whole_once_and_ends_its_arm() -> None:
    given = study({**TRAINING, "searcher": "grid", "grid_points": 3}, trials=30)
    found = run_to_end(given)
    searched = [trial for trial in found if trial.phase == SEARCH]
    points = grid(SPACES["training"], Context(given.arms["arm"].experiment, SHAPE, CLASSES), points=3)
    tried = [trial.values for trial in searched]
    assert sorted(map(repr, tried)) == sorted(map(repr, map(dict, points)))
    assert tried != list(map(dict, points))  # in an order of its own: a budget that ends early has seen all sides
    assert [trial.phase for trial in found if trial.phase == RETRAIN] == [RETRAIN]
    assert sum(trial.sample_passes for trial in found) == 10 * ONE


def test_a_space_without_parameters_is_a_grid_of_one_point() -> None:
    assert [trial.phase for trial in run_to_end(study({"searcher": "grid"}, trials=30))] == [SEARCH, RETRAIN]


def test_a_point_of_the_grid_with_a_known_architecture_is_a_replicate() -> None:
    scheduler, numbers = scheduler_of(study({**BRANCHED, "searcher": "grid", "grid_points": 2}, trials=300)), []
    while (proposal := scheduler.next()) is not None and len(numbers) < 40:
        scheduler.update(trained(scheduler, proposal))
        numbers.append(proposal.replicate_of)
    replicates = [number for number in numbers if number is not None]
    known = scheduler.of("arm", SEARCH)
    assert replicates
    for number, same in enumerate(numbers):
        assert same is None or known[number].architecture_hash == known[same].architecture_hash


@pytest.mark.parametrize(
    ("value", "reached", "factor", "on"),
    [
        (0.5, [0.5], 3, True),  # the first goes on
        (0.4, [0.5, 0.4], 3, False),  # one place, taken by the better one
        (0.5, [0.5, 0.5], 2, True),  # of equals all go on
        (0.7, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 3, False),  # two places of six
        (0.8, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 3, True),
        (0.7, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 2, True),  # three places of six
        (0.8, [0.9, 0.8, 0.7, 0.6, 0.5], 3, False),  # five thirds round down to one place
    ],
)
def test_asha_on_rungs_worked_by_hand(value: float, reached: list[float], factor: int, on: bool) -> None:
    assert is_promoted(value, sorted(reached), factor) is on


def curved(scheduler: Scheduler, number: int, curve: list[float], state: str = "running") -> Trial:
    experiment = scheduler.study.arms["arm"].experiment
    trial = Trial(
        "arm",
        SEARCH,
        number,
        number,
        state,
        sample_passes=EPOCH * len(curve),
        planned=ONE,
        experiment=experiment.to_json(),
        curve=tuple(curve),
    )
    scheduler.update(trial)
    return trial


def test_a_trial_is_compared_with_all_that_have_reached_its_rung_also_if_they_were_stopped_or_failed() -> None:
    scheduler = scheduler_of(study({**TRAINING, "pruner": {"name": "asha", "rungs": [2, 4], "reduction_factor": 2}}))
    curved(scheduler, 0, [0.1, 0.9], "pruned")
    curved(scheduler, 1, [0.1, 0.8, 0.9, 0.1], "failed")
    curved(scheduler, 2, [0.9])
    trial = curved(scheduler, 3, [0.1, 0.7])
    stop = scheduler.reason_to_stop(trial, since=1)
    assert stop is not None
    assert stop[0] == 2
    assert "after 2 epochs: validation accuracy 0.7000, 2 of the 3 trials that reached this rung are better" in stop[1]
    curved(scheduler, 4, [0.1, 0.2])
    assert scheduler.reason_to_stop(trial, since=1) is not None  # 2 places of 4
    curved(scheduler, 1, [0.1, 0.6, 0.9, 0.1], "failed")
    assert scheduler.reason_to_stop(trial, since=1) is None


def test_the_reason_to_stop_names_the_metric_of_the_study() -> None:
    arm = {**TRAINING, "pruner": {"name": "asha", "rungs": [2, 4], "reduction_factor": 2}}
    scheduler = scheduler_of(study(arm, metric="balanced_accuracy"))
    curved(scheduler, 0, [0.1, 0.9])
    stop = scheduler.reason_to_stop(curved(scheduler, 1, [0.1, 0.7]), since=1)
    assert stop is not None
    assert "after 2 epochs: validation balanced accuracy 0.7000, 1 of the 2" in stop[1]


def test_a_rung_left_behind_is_not_looked_at_again_but_the_last_one_is() -> None:
    scheduler = scheduler_of(study({**TRAINING, "pruner": {"name": "asha", "rungs": [2, 4], "reduction_factor": 2}}))
    curved(scheduler, 0, [0.9, 0.9, 0.9])
    behind = curved(scheduler, 1, [0.1, 0.1, 0.1])
    assert scheduler.reason_to_stop(behind, since=3) is None
    assert scheduler.reason_to_stop(behind, since=2) is not None  # the driver died before it could say so
    assert scheduler.reason_to_stop(behind, since=0) is not None  # several epochs came in one report


def test_nothing_is_stopped_without_a_pruner_or_in_retraining() -> None:
    scheduler = scheduler_of(study(TRAINING))
    curved(scheduler, 0, [0.9] * EPOCHS)
    assert scheduler.reason_to_stop(curved(scheduler, 1, [0.1] * 3), since=0) is None
    scheduler = scheduler_of(study({**TRAINING, "pruner": {"name": "asha"}}))
    curved(scheduler, 0, [0.9] * EPOCHS)
    retrained = replace(curved(scheduler, 1, [0.1] * 3), phase=RETRAIN)
    assert scheduler.reason_to_stop(retrained, since=0) is None


def test_what_stopping_saves_buys_more_trials_and_winners_are_complete() -> None:
    given = study({**TRAINING, "pruner": {"name": "asha"}}, trials=10)
    found = run_to_end(given)
    searched = [trial for trial in found if trial.phase == SEARCH]
    assert len(searched) > 14
    assert {trial.sample_passes for trial in searched if trial.state == "pruned"} <= {EPOCH, 3 * EPOCH}
    left = 10 * ONE - sum(trial.sample_passes for trial in searched)
    assert 0 <= left < ONE
    winner = scheduler_of(given, found).winner("arm")
    assert winner is not None
    assert winner.state == "complete"
    assert winner.score == max(trial.score for trial in searched if trial.score is not None)


@pytest.mark.parametrize("searcher", ["random", "tpe", "qmc", "cmaes", "nsga2", "evolution"])
def test_enqueued_points_come_first_and_are_learned_from(searcher: str) -> None:
    points = [{"optim.lr": 0.002, "optim.weight_decay": decay} for decay in (0.001, 0.002, 0.003)]
    given = study({**SEARCHED[searcher], **TRAINING, "enqueue": points}, trials=8)
    found = run_to_end(given)
    searched = [trial for trial in found if trial.phase == SEARCH]
    assert [trial.values for trial in searched[:3]] == points
    assert [trial.params.get("enqueued", False) for trial in searched] == [True] * 3 + [False] * 5
    assert len(searched) == 8  # charged like others
    assert run_to_end(given, interrupted=True) == found
    if searcher == "evolution":  # whose population they are: one of both parameters is that of a point
        decays = [point["optim.weight_decay"] for point in points]
        assert (searched[3].values["optim.lr"] == 0.002) != (searched[3].values["optim.weight_decay"] in decays)


def limit_of(share: float) -> int:
    dense = known_costs(study(TRAINING).arms["arm"].experiment, shape=SHAPE, classes=CLASSES)
    return int(share * dense["macs"])


@pytest.mark.parametrize("searcher", [name for name in SEARCHED if name not in ("grid", "margin")])
def test_what_exceeds_a_constraint_is_never_trained_costs_nothing_and_is_counted(searcher: str) -> None:
    limit = limit_of(0.8 if searcher.startswith("nsga") else 0.85)  # crossing keeps what parents keep within it
    trials = 5 if searcher == "gp" else 8
    given = study({**SEARCHED[searcher], **BRANCHED, "constraints": {"macs": limit}}, trials=trials)
    found = run_to_end(given)
    searched = [trial for trial in found if trial.phase == SEARCH]
    assert all(known_costs(trial.config, shape=SHAPE, classes=CLASSES)["macs"] <= limit for trial in found)
    assert len(searched) == trials
    assert sum(trial.sample_passes for trial in found) == (trials + 1) * ONE
    infeasible = [each for trial in searched for each in trial.infeasible]
    assert infeasible
    assert all(each.exceeded["macs"][0] > limit == each.exceeded["macs"][1] for each in infeasible)
    assert run_to_end(given, interrupted=True) == found


def test_tpe_learns_from_what_was_refused() -> None:
    distribution = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'

    def infeasible(at: float, found: float) -> Infeasible:
        return Infeasible({"x": at}, {"x": distribution}, exceeded={"macs": (found, 10.0)})

    completed = [infeasible(step / 20, 10 + step) for step in range(1, 20)]
    draws = [
        ask("tpe", SamplerHistory(Rules(constraints=Constraints(macs=10))), seed, infeasible=completed).suggest_float(
            "x", 0, 1
        )
        for seed in range(40)
    ]
    assert sum(draws) / len(draws) < 0.3  # the nearer to what is allowed, the smaller x


def test_an_arm_that_finds_nothing_within_its_constraints_gives_up_with_the_reason() -> None:
    given = study({**BRANCHED, "constraints": {"macs": 10}})
    (trial,) = run_to_end(given)
    assert (trial.state, trial.planned, trial.sample_passes) == ("failed", 0, 0)
    assert len(trial.infeasible) == MOST_ASKS
    assert trial.search_exhausted is not None
    assert trial.search_exhausted.startswith(
        "no network within the constraints among 100 proposals; the nearest: macs "
    )
    assert trial.search_exhausted.endswith(" exceeds 10")


def test_a_grid_skips_what_is_refused_and_gives_up_where_nothing_is_left() -> None:
    space = {"space": ["branched"], "searcher": "grid", "grid_points": 2}
    given = study({**space, "constraints": {"macs": limit_of(0.8)}}, trials=80)
    found = run_to_end(given)
    arm = given.arms["arm"]
    points = grid(compose([SPACES["branched"]]), Context(arm.experiment, SHAPE, CLASSES), points=2)
    trained_points = [trial for trial in found if trial.phase == SEARCH and trial.search_exhausted is None]
    assert 0 < len(trained_points) < len(points)
    proposed = [*trained_points, *(each for trial in found if trial.phase == SEARCH for each in trial.infeasible)]
    assert len(proposed) == len(points)
    assert run_to_end(given, interrupted=True) == found


def test_a_learned_network_that_turns_out_too_large_is_charged_and_cannot_win() -> None:
    arm = {
        "space": ["training"],
        "searcher": "tpe",
        "method": {"name": "blockout", "clusters": 2, "masked": "all"},
        "distillation": {"target_macs": 0.5},
        "constraints": {"macs": limit_of(0.55), "parameters": 600},
    }
    scheduler = scheduler_of(study(arm))
    for parameters in (700, 500, 650):
        proposal = scheduler.next()
        assert proposal is not None
        assert not proposal.infeasible  # its target is within the limit, its parameters are not known yet
        score = parameters / 1000
        ended = replace(
            proposal, state="complete", sample_passes=ONE, score=score, result={"macs": 10, "parameters": parameters}
        )
        scheduler.update(ended)
    winner = scheduler.winner("arm")
    assert winner is not None
    assert winner.measured("parameters") == 500
    assert scheduler.next() is not None  # what exceeds a limit is told as infeasible
    tight = scheduler_of(study({**arm, "constraints": {"macs": limit_of(0.45)}})).next()
    assert tight is not None
    assert tight.search_exhausted is not None


@pytest.mark.parametrize(
    "searcher", [name for name in SEARCHED if options_of(SEARCHED[name]).name not in ONE_OBJECTIVE]
)
def test_several_objectives_are_searched_and_the_most_accurate_is_retrained(searcher: str) -> None:
    points = {"grid_points": 2} if searcher == "grid" else {}
    arm = {**SEARCHED[searcher], "space": ["branched"], "objectives": ["accuracy", "macs"], **points}
    given = study(arm, trials=6)
    found = run_to_end(given)
    assert run_to_end(given, interrupted=True) == found
    searched = [trial for trial in found if trial.phase == SEARCH]
    winner = scheduler_of(given, found).winner("arm")
    assert winner is not None
    assert winner.score == max(trial.score or 0 for trial in searched)


@pytest.mark.parametrize(("tolerance", "number"), [(0.0, 2), (0.05, 2), (0.1, 1), (0.5, 1), (0.6, 0)])
def test_a_preference_takes_the_least_of_those_almost_as_accurate(tolerance: float, number: int) -> None:
    arm = {**TRAINING, "objectives": ["accuracy", "macs"], "selection": {"objective": "macs", "tolerance": tolerance}}
    scheduler = scheduler_of(study(arm))
    for score, macs in ((0.3, 1), (0.8, 5), (0.9, 9), (0.8, 5)):
        proposal = scheduler.next()
        assert proposal is not None
        scheduler.update(replace(proposal, state="complete", sample_passes=ONE, score=score, result={"macs": macs}))
    winner = scheduler.winner("arm")
    assert winner is not None
    assert winner.number == number


def test_tpe_seeks_few_macs_where_they_are_an_objective() -> None:
    """Accuracy says nothing: what is drawn after the start must have fewer MACs than under accuracy alone."""

    def mean_macs(objectives: list[str]) -> float:
        given = study({"space": ["branched"], "searcher": "tpe", "objectives": objectives}, trials=24)
        scheduler, macs = scheduler_of(given), []
        while (proposal := scheduler.next()) is not None and proposal.phase == SEARCH:
            costs = known_costs(proposal.config, shape=SHAPE, classes=CLASSES)
            score = random.Random(proposal.number).random()
            scheduler.update(replace(proposal, state="complete", sample_passes=ONE, score=score, result=costs))
            macs.append(costs["macs"])
        return sum(macs[8:]) / len(macs[8:])

    assert mean_macs(["accuracy", "macs"]) < mean_macs(["accuracy"])
