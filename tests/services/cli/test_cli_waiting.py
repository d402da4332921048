"""`list` and `show` say of studies that wait in the service that they wait, where in line, and why."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services.store import Waiting
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from tests.services.program import Call, store_of

AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def study_named(name: str) -> Study:
    document: dict[str, Any] = {
        "schema_version": 2,
        "name": name,
        "data": {"name": "digits", "train_samples": 50},
        "budget": {"sample_passes": 2000},
        "training": {"epochs": 2},
        "arms": {"dense": {}},
    }
    return resolve_document(document, source="here")


@pytest.fixture
def waiting(home: Path) -> None:
    """Two studies that wait, one of them set aside, and one that nobody has looked at yet."""
    with store_of(home) as store:
        for name in ("second", "aside", "new"):
            study = study_named(name)
            store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner="ann", priority=2)
        store.set_waiting(
            {"second": Waiting(2, "waits for a place", AT), "aside": Waiting(None, "set aside: too wide")}
        )


@pytest.mark.usefixtures("waiting")
def test_a_list_has_those_that_wait_in_their_order(call: Call) -> None:
    ended = call("list")
    assert ended.code == 0
    table = ended.out[ended.out.index("waiting in the service") :]
    lines = [line for line in table.splitlines() if "│ ann" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["second", "aside", "new"]
    assert "waits for a place" in lines[0]
    assert "2026-01-02 03:04" in lines[0]
    found = {each["name"]: each for each in call("list", "--json").json["waiting"]}
    assert (found["second"]["position"], found["second"]["expected_at"]) == (2, AT.isoformat())
    assert (found["aside"]["position"], found["aside"]["reason"]) == (None, "set aside: too wide")


@pytest.mark.usefixtures("waiting")
def test_a_study_that_no_driver_has_begun_is_shown_as_waiting(call: Call) -> None:
    line = (
        "study second: waiting in the service, 2 in line, expected to start at 2026-01-02 03:04 UTC: waits for a place"
    )
    assert call("show", "second").out.strip() == line
    assert call("show", "second", "--json").json["state"] == "waiting"
    assert call("show", "new").out.strip() == "study new: waiting in the service"
    assert call("show", "nothing").code == 3


def test_a_study_that_waits_to_go_on_is_shown_with_what_it_has(home: Path, call: Call) -> None:
    study = study_named("begun")
    with store_of(home) as store:
        store.create_study("begun", config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        store.enqueue("begun", document=study.to_json(), config_hash=study.hash, owner="ann")
    ended = call("show", "begun")
    assert "study begun: created" in ended.out
    assert "study begun: waiting in the service" in ended.out
    assert call("show", "begun", "--json").json["waiting"]["state"] == "waiting"


@pytest.mark.parametrize("config", ["{]", "[]", '{"schema_version": 9}'])
def test_a_study_that_cannot_be_read_is_listed_and_shown_beside_the_others(home: Path, call: Call, config: str) -> None:
    with store_of(home) as store:
        for name in ("good", "bad"):
            study = study_named(name)
            store.create_study(name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
            store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner="ann")
        with store._database.writing() as connection:
            connection.execute(sa.text("UPDATE studies SET config = :x WHERE name = 'bad'"), {"x": config})
            connection.execute(sa.text("UPDATE queue SET document = :x WHERE study = 'bad'"), {"x": config})
    for words in (("list",), ("list", "--json"), ("show", "good"), ("show", "bad"), ("show", "bad", "--json")):
        ended = call(*words)
        assert ended.code == 0, ended.err
        assert "bad" in ended.out or words[1] == "good"
    assert "note: this release cannot read the settings of the study as they are stored: bad: " in ended.err
