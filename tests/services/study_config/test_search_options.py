"""How arms search, as study files say it: what is accepted, inherited and refused, and that it survives the store."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nas_blockout.data import load
from services.study_config.errors import StudyError
from services.study_config.resolution import parse, read, resolve
from services.study_config.resolved_study import Study, parse_resolved
from services.study_config.schema import json_schema
from services.study_config.search_options import Constraints, Rules, Selection
from services.study_config.validation import check_against_data


def document(arm: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {
        "schema_version": 2,
        "name": "example",
        "data": {"name": "digits", "train_samples": 100},
        "training": {"epochs": 27, "batch_size": 32},
        "budget": {"sample_passes": 100_000},
        "arms": {"arm": arm},
        **top,
    }


def resolved(arm: dict[str, Any], **top: Any) -> Study:
    return resolve(parse(document(arm, **top), source="study.yaml"), source="study.yaml")


EVERYTHING = {
    "searcher": "grid",
    "grid_points": 5,
    "constraints": {"macs": 10, "latency_ms": 2},
    "objectives": ["accuracy", "macs"],
    "selection": {"objective": "macs", "tolerance": 0},
}


GAUSSIAN = {"searcher": "gp", "n_startup_trials": 2, "pruner": {"name": "asha", "rungs": [3, 9]}}


TPE = {"searcher": {"name": "tpe", "n_startup_trials": 10, "multivariate": True}, "pruner": {"name": "hyperband"}}
EVOLUTION = {
    "searcher": {"name": "evolution", "population_size": 8, "tournament_size": 2},
    "pruner": {"name": "patient", "patience": 2, "wraps": "median", "n_startup_trials": 3},
}


@pytest.mark.parametrize("arm", [{}, EVERYTHING, GAUSSIAN, TPE, EVOLUTION, {"searcher": "nsga2"}])
def test_rules_survive_the_store_and_the_schema_knows_them(arm: dict[str, Any]) -> None:
    study = resolved(arm)
    again = parse_resolved(json.loads(json.dumps(study.to_json())))
    assert (again.arms, again.hash) == (study.arms, study.hash)
    jsonschema.validate(document(arm), json_schema())


def test_a_searcher_with_settings_is_resolved_as_its_keys_are() -> None:
    one = resolved({"searcher": {"name": "tpe", "n_startup_trials": 10}})
    assert one.hash == resolved({"searcher": "tpe", "n_startup_trials": 10}).hash
    assert resolved({"searcher": {"name": "tpe"}}).hash == resolved({"searcher": "tpe"}).hash
    other = resolved({"searcher": {"name": "tpe", "n_startup_trials": 10, "multivariate": False}}).arms["arm"]
    assert other.searcher == "tpe"
    assert other.to_json()["searcher_settings"] == {"multivariate": False}


def test_the_hash_of_a_stored_study_with_asha_is_as_it_was_before_other_pruners() -> None:
    arm = resolved({"pruner": {"name": "asha"}}).arms["arm"].to_json()
    assert arm["pruner"] == {"name": "asha", "rungs": [1, 3, 9], "reduction_factor": 3}
    same = resolved({"pruner": {"name": "successive_halving"}}).arms["arm"].to_json()
    assert same["pruner"] == arm["pruner"]


def test_a_study_without_any_of_them_is_named_as_before() -> None:
    study = resolved({})
    assert study.arms["arm"].rules == Rules()
    keys = {"pruner", "constraints", "objectives", "selection", "grid_points", "n_startup_trials"}
    assert not keys & study.to_json()["arms"]["arm"].keys()
    assert study.hash != resolved({}, constraints={"macs": 10}).hash


def test_an_arm_takes_what_it_lacks_from_the_one_it_extends_and_from_the_study() -> None:
    study = resolve(
        parse(
            {
                **document({}),
                "constraints": {"macs": 10},
                "objectives": ["accuracy", "macs"],
                "arms": {
                    "plain": {},
                    "own": {"constraints": {"parameters": 5}, "selection": {"objective": "macs"}},
                    "extends": {"extends": "own", "searcher": "tpe"},
                },
            },
            source="x",
        ),
        source="x",
    )
    rules = {name: arm.rules for name, arm in study.arms.items()}
    assert rules["plain"].constraints == Constraints(macs=10)
    assert rules["own"].constraints == rules["extends"].constraints == Constraints(parameters=5)
    assert rules["extends"].selection == Selection(objective="macs")
    assert {each.objectives for each in rules.values()} == {("accuracy", "macs")}
    assert (study.arms["own"].searcher, study.arms["extends"].searcher) == ("random", "tpe")


@pytest.mark.parametrize(("factor", "rungs"), [(3, [1, 3, 9]), (2, [1, 3, 6, 13]), (5, [1, 5]), (27, [1])])
def test_rungs_are_the_epochs_over_powers_of_the_reduction_factor(factor: int, rungs: list[int]) -> None:
    pruner = resolved({"pruner": {"name": "asha", "reduction_factor": factor}}).arms["arm"].rules.pruner
    assert pruner is not None
    assert pruner.rungs == rungs


ASHA = {"name": "asha"}


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"searcher": "tpee"}, r"arms\.arm\.searcher: .*'grid',.* got 'tpee'; did you mean 'tpe'\?"),
        ({"searcher": "grid", "grid_points": 0}, r"arms\.arm\.grid_points: .*greater than or equal to 1, got 0"),
        ({"grid_points": 3}, r"arms\.arm\.grid_points: belongs to searcher grid, this arm has searcher random"),
        (
            {"n_startup_trials": 2},
            r"arms\.arm\.n_startup_trials: belongs to searcher tpe or gp or cmaes, this arm",
        ),
        (
            {"searcher": "tpe", "n_startup_trials": 0},
            r"n_startup_trials: .*greater than or equal to 1, got 0",
        ),
        ({"grid_point": 3}, r"arms\.arm\.grid_point: no such key; did you mean 'grid_points'\?"),
        ({"pruner": {}}, r"arms\.arm\.pruner\.name: this key is required"),
        ({"pruner": {"name": "medium"}}, r"arms\.arm\.pruner\.name: .*'asha',.* got 'medium'; did you mean 'median'\?"),
        (
            {"pruner": {"name": "median", "rungs": [1]}},
            r"pruner\.rungs: pruner median has no such setting; it has n_st",
        ),
        ({"pruner": {"name": "patient"}}, r"pruner\.patience: pruner patient needs this key"),
        ({"pruner": {"name": "patient", "patience": 1, "wraps": "patient"}}, r"pruner\.wraps: must be another pruner"),
        ({"pruner": {"name": "patient", "patience": 25}}, r"pruner: trials need at least 28 epochs \(patience \+ 3\)"),
        (
            {"pruner": {"name": "patient", "patience": 1, "wraps": "median", "reduction_factor": 3}},
            r"pruner\.reduction_factor: pruner patient has no such setting; it has patience, min_delta, wraps, n_s",
        ),
        (
            {"pruner": {"name": "hyperband", "min_epochs": 10}},
            r"pruner: trials need at least 30 epochs \(min_epochs ti",
        ),
        (
            {"pruner": {"name": "median", "max_epochs": 9}},
            r"pruner\.max_epochs: must be the 27 epochs of a trial, got 9",
        ),
        ({"searcher": {"name": "tpee"}}, r"arms\.arm\.searcher\.name: .*got 'tpee'; did you mean 'tpe'\?"),
        ({"searcher": {"nam": "tpe"}}, r"arms\.arm\.searcher\.nam: no such key; did you mean 'name'\?"),
        (
            {"searcher": {"name": "gp", "margin": True}},
            r"searcher\.margin: searcher gp has no such setting; its settings",
        ),
        (
            {"searcher": {"name": "cmaes", "population_size": 3}},
            r"population_size: must be at least 4 for cmaes, got 3",
        ),
        ({"searcher": {"name": "nsga2", "population_size": 1}}, r"searcher\.population_size: .*equal to 2, got 1"),
        (
            {"searcher": {"name": "evolution", "population_size": 4, "tournament_size": 5}},
            r"searcher\.tournament_size: must be at most the population of 4, got 5",
        ),
        (
            {"searcher": "cmaes", "objectives": ["accuracy", "macs"]},
            r"searcher: cmaes compares trials by accuracy alone",
        ),
        (
            {"searcher": "evolution", "objectives": ["accuracy", "macs"]},
            r"searcher: evolution compares trials by",
        ),
        ({"pruner": {**ASHA, "rung": [1]}}, r"arms\.arm\.pruner\.rung: no such key; did you mean 'rungs'\?"),
        ({"pruner": {**ASHA, "rungs": []}}, r"arms\.arm\.pruner\.rungs: .*got \[\]"),
        ({"pruner": {**ASHA, "rungs": [0, 1]}}, r"pruner\.rungs: rungs must be one epoch or more.*got \[0, 1\]"),
        ({"pruner": {**ASHA, "rungs": [3, 3]}}, r"pruner\.rungs: .*each later than the one before.*got \[3, 3\]"),
        (
            {"pruner": {**ASHA, "rungs": [3, 27]}},
            r"pruner\.rungs: must end before the last of 27 epochs, got \[3, 27\]",
        ),
        ({"pruner": {**ASHA, "reduction_factor": 1}}, r"reduction_factor: .*greater than or equal to 2, got 1"),
        ({"pruner": {**ASHA, "reduction_factor": 28}}, r"pruner: trials need at least 28 epochs"),
        ({"constraints": {"mac": 1}}, r"arms\.arm\.constraints\.mac: no such key; did you mean 'macs'\?"),
        ({"constraints": {"macs": 0}}, r"arms\.arm\.constraints\.macs: .*greater than 0, got 0"),
        ({"constraints": {"parameters": 1.5}}, r"arms\.arm\.constraints\.parameters: .*integer, got 1\.5"),
        ({"objectives": ["macs"]}, r"arms\.arm\.objectives: .*accuracy one of them, got \['macs'\]"),
        ({"objectives": ["accuracy", "accuracy"]}, r"arms\.arm\.objectives: .*distinct"),
        ({"objectives": ["accuracy", "latency"]}, r"objectives\.1: .*got 'latency'; did you mean 'latency_ms'\?"),
        ({"objectives": ["accuracy", "macs"], "pruner": ASHA}, r"arms\.arm\.pruner: trials with several objectives"),
        ({"selection": {"objective": "macs"}}, r"arms\.arm\.selection\.objective: must be one of the objectives"),
        ({"selection": {"objective": "accuracy"}}, r"arms\.arm\.selection\.objective: .*got 'accuracy'"),
        ({"selection": {"object": "macs"}}, r"arms\.arm\.selection\.object: no such key; did you mean 'objective'\?"),
    ],
)
def test_refusals_name_the_key_the_value_and_the_rule(arm: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        resolved(arm)
    assert str(caught.value).startswith("study.yaml: ")


def test_a_misspelt_key_of_the_study_itself_is_named() -> None:
    with pytest.raises(StudyError, match=r"objectivs: no such key; did you mean 'objectives'\?"):
        resolved({}, objectivs=["accuracy"])
    with pytest.raises(StudyError, match=r"constraints\.latency: no such key; did you mean 'latency_ms'\?"):
        resolved({}, constraints={"latency": 3})


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"space": ["training", "branched"], "searcher": "grid"},
            r"arms\.arm\.searcher: a grid has at most 1,000 points, this one 4,374 \(optim\.lr 3 x",
        ),
        (
            {"constraints": {"parameters": 10}},
            r"arms\.arm\.constraints\.parameters: the network has \d+ and .*, got 10; make",
        ),
    ],
)
def test_what_can_only_be_seen_with_the_data_is_refused_before_anything_runs(arm: dict[str, Any], message: str) -> None:
    study = resolved(arm)
    with pytest.raises(StudyError, match=message):
        check_against_data(study, load(study.data), source="study.yaml")


def test_what_may_still_be_met_is_accepted() -> None:
    for arm in (
        {"space": ["training", "branched"], "searcher": "grid", "grid_points": 2},
        {"space": ["branched"], "constraints": {"macs": 1}},
        {"constraints": {"macs": 10**9}},
    ):
        study = resolved(arm)
        check_against_data(study, load(study.data), source="study.yaml")


POINT = {"optim.lr": 0.002, "optim.weight_decay": 0.001}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([{"optim.lr": 0.002}], r"arms\.arm\.enqueue: point 1: parameter 'optim\.weight_decay' is missing"),
        ([POINT, {**POINT, "optim.lr": 9.0}], r"enqueue: point 2: optim\.lr must be a number in .*, got 9\.0"),
        ([{**POINT, "optim.l": 1}], r"enqueue: point 1: the spaces ask for no parameter 'optim\.l' .*mean 'optim\.lr'"),
    ],
)
def test_a_point_that_cannot_be_tried_is_refused_before_anything_runs(points: list[Any], message: str) -> None:
    study = resolved({"space": ["training"], "enqueue": points})
    with pytest.raises(StudyError, match=message):
        check_against_data(study, load(study.data), source="study.yaml")


def test_points_survive_the_store_and_a_grid_has_none() -> None:
    study = resolved({"space": ["training"], "enqueue": [POINT]})
    assert parse_resolved(json.loads(json.dumps(study.to_json()))).arms["arm"].rules.enqueue == (POINT,)
    check_against_data(study, load(study.data), source="study.yaml")
    with pytest.raises(StudyError, match=r"enqueue: a grid tries every point anyway"):
        resolved({"space": ["training"], "searcher": "grid", "enqueue": [POINT]})


def test_the_example_of_the_guide_is_a_study_that_could_be_run() -> None:
    path = Path(__file__).parents[3] / "docs/guides/examples/searchers.yaml"
    study = resolve(read(path), source=str(path))
    check_against_data(study, load(study.data), source=str(path))
    assert {arm.searcher for arm in study.arms.values()} == {"random", "tpe", "evolution"}
    hyperband = study.arms["hyperband"].rules.pruner
    assert hyperband is not None
    assert hyperband.brackets() == [[3, 9], [9], []]
