"""`nas-blockout replay`, `estimate` and `compare`: what they print, and the codes they end with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.study_config.resolution import resolve_document
from tests.services.program import Call, store_of

STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "tiny",
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
    "training": {"epochs": 2, "batch_size": 16},
    "budget": {"sample_passes": 804},
    "retrain": {"seeds": [0, 1]},
    "arms": {"random": {"space": ["training"]}, "tpe": {"space": ["training"], "searcher": "tpe"}},
}


@pytest.fixture
def recorded(home: Path, pretend: Any) -> None:
    """A study that has run, with made-up results."""
    study = resolve_document(STUDY, source="here")
    with store_of(home) as store:
        store.create_study("tiny", config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        pretend(store, study, max_concurrent_trials=1)


@pytest.mark.usefixtures("recorded")
def test_a_replay_says_that_it_is_faithful_and_how_long_it_takes(call: Call) -> None:
    ended = call("replay", "tiny", "--workers", "1, 4")
    assert ended.code == 0, ended.err
    assert "reproduced: random, 6 of 6 trials were proposed exactly as recorded" in ended.out
    assert "best validation accuracy so far in %" in ended.out
    document = call("replay", "tiny", "--workers", "1,4", "--arm", "tpe", "--repeats", "3", "--json").json
    assert document["reproduced"] is True
    assert [(outcome["arm"], outcome["workers"], outcome["repeats"]) for outcome in document["outcomes"]] == [
        ("tpe", 1, 3),
        ("tpe", 4, 3),
    ]
    assert document["outcomes"][0]["by_time"]["median"][-1] == document["outcomes"][0]["target"]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("nothing",), 3, "there is no study 'nothing'"),
        (("tiny", "--arm", "rundom"), 3, "no arm 'rundom'"),
        (("tiny", "--searcher", "tpa"), 2, "did you mean 'tpe'?"),
        (("tiny", "--workers", "1,x"), 2, "comma-separated list of whole numbers in 1..65536, got '1,x'"),
        (("tiny", "--target", "75"), 2, "--target"),
    ],
)
def test_a_replay_that_cannot_be_made_is_one_error(call: Call, words: tuple[str, ...], code: int, part: str) -> None:
    ended = call("replay", *words)
    assert (ended.code, ended.out) == (code, "")
    assert part in ended.err


def test_an_estimate_says_what_a_study_costs_and_writes_nothing(call: Call, home: Path) -> None:
    path = home / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    ended = call("estimate", path, "--quick")
    assert ended.code == 0, ended.err
    for part in ("study tiny, estimated cost", "retrain", "wall-clock", "2 concurrent trials", "disk"):
        assert part in ended.out
    assert "measuring random" in ended.err
    document = call("estimate", path, "--quick", "--json").json
    assert (document["total"]["trials"], document["total"]["sample_passes"]) == (12, 1608)
    assert document["phases"]["tpe"]["search"]["trials"] == 4
    assert document["wall_seconds"] > document["trials_seconds"] > 0
    assert list(home.iterdir()) == [path]


def test_an_estimate_of_a_study_that_cannot_run_is_one_error(call: Call, home: Path) -> None:
    path = home / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "budget": {"sample_passes": 10}}))
    ended = call("estimate", path)
    assert (ended.code, ended.out) == (2, "")
    assert "budget.sample_passes: must be at least 402" in ended.err


@pytest.mark.usefixtures("recorded")
def test_studies_are_compared_in_one_table(call: Call, home: Path, pretend: Any) -> None:
    other = resolve_document({**STUDY, "name": "other", "seed": 1}, source="here")
    with store_of(home) as store:
        store.finish_study("tiny", "complete")
        store.create_study("other", config=other.to_json(), config_hash=other.hash, arms=list(other.arms))
        pretend(store, other, max_concurrent_trials=1)
        store.finish_study("other", "complete")
    ended = call("compare", "tiny", "other")
    assert ended.code == 0, ended.err
    for part in ("tiny/random", "other/tpe", "95% interval", "paired by seed"):
        assert part in ended.out
    document = call("compare", "tiny", "other", "--arm", "tpe", "--json").json
    assert [pair["seeds"] for pair in document["pairs"]] == [2]
    assert call("compare", "tiny").code == 2
    assert call("compare", "tiny", "nothing").code == 3
