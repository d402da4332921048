"""Stores of version 1: what the release before schema 0003 wrote is read under the names of version 2.

``version_1_study.json`` is the bundled study ``quickstart`` as the last release of version 1 (commit 1938e82) had it:
as written, resolved, and its hash.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services import migrations
from services.store import Store, StoreError, schema_version, this_process
from services.store.database import parse
from services.study_config.resolution import parse as parsed
from services.study_config.resolution import resolve as resolved
from services.study_config.resolved_study import parse_resolved
from tests.services.processes import outputs_at_once

STUDY: dict[str, Any] = json.loads((Path(__file__).parent / "version_1_study.json").read_text())
WRITTEN, RESOLVED, HASH = STUDY["written"], STUDY["resolved"], STUDY["hash"]
NOW = "2026-11-20 10:00:00.000000"
PARAMS = {
    "values": {"blockout.charge": 3.5, "blockout.clusters": 3},
    "distributions": {"blockout.charge": "{}"},
    "refused": [{"values": {"blockout.structure_lr": 2.0}, "exceeded": {"macs": [9, 8]}}],
}


def rows(table: str, *values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return insertions as the old release made them: JSON as text, moments as text."""
    return [
        (
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})",
            {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()},
        )
        for row in values
    ]


def study_row(**changes: Any) -> dict[str, Any]:
    row = {"id": 1, "name": "quickstart", "state": "complete", "config_hash": HASH, "created_at": NOW}
    return row | {"config": RESOLVED} | changes


def trial_row(number: int, arm: str = "blockout", **changes: Any) -> dict[str, Any]:
    experiment = RESOLVED["arms"][arm]["experiment"]
    row = {"id": number + 1, "arm_id": 1, "phase": "search", "number": number, "seed": 0, "state": "complete"}
    row |= {"planned": 9, "sample_passes": 9, "seconds": 1.0, "thinking_seconds": 0.25, "score": 0.5, "created_at": NOW}
    return row | {"params": PARAMS, "experiment": experiment} | changes


def queue_row(**changes: Any) -> dict[str, Any]:
    row = {"id": 1, "study": "quickstart", "owner": "ann", "state": "complete", "config_hash": HASH, "attempt": 0}
    row |= {"first_hash": HASH, "first_attempt": 0, "message": "", "created_at": NOW, "updated_at": NOW}
    return row | {"document": RESOLVED, "source": WRITTEN} | changes


ARM = {"id": 1, "study_id": 1, "name": "blockout", "position": 0}


def make(url: str, *insertions: list[tuple[str, dict[str, Any]]]) -> sa.Engine:
    """Make a store of schema 0002 with rows in it."""
    parsed_url = parse(url)
    if parsed_url.drivername == "sqlite":
        Path(str(parsed_url.database)).parent.mkdir(exist_ok=True)
    engine = sa.create_engine(parsed_url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0002")
        for statement, values in (insertion for group in insertions for insertion in group):
            connection.execute(sa.text(statement), values)
    return engine


def old_names(document: Any) -> set[str]:
    """Return names of version 1 that stand as keys anywhere in a document."""
    if isinstance(document, list):
        return set().union(*(old_names(item) for item in document))
    if not isinstance(document, dict):
        return set()
    names = {"purpose", "at_once", "normalise_logits", "charge", "structure_lr", "polarisation", "refused", "surplus"}
    names |= {"learn_share", "soft_targets", "smallest_group", "startup", "blockout.charge", "blockout.structure_lr"}
    return (names & set(document)) | set().union(*(old_names(value) for value in document.values()))


def test_the_example_has_old_names_to_begin_with():
    assert old_names(RESOLVED) >= {"purpose", "at_once", "normalise_logits", "charge", "structure_lr"}
    assert old_names(PARAMS) == {"blockout.charge", "blockout.structure_lr", "refused"}


def test_an_empty_store_of_version_1_is_migrated(store_url):
    make(store_url).dispose()
    with Store.open(store_url) as store:
        assert (store.studies(), store.queue(), store.tokens()) == ((), (), ())
    assert schema_version.current(store_url) == migrations.HEAD


def test_a_study_and_its_trials_get_the_new_names_and_nothing_else_changes(store_url):
    untouched = trial_row(1, params={}, experiment={"width": 8}, result={"charge": 1})
    make(store_url, rows("studies", study_row()), rows("arms", ARM), rows("trials", trial_row(0), untouched)).dispose()
    with Store.open(store_url) as store:
        study, (first, second) = store.study("quickstart"), store.trials("quickstart")
    assert old_names(study.config) == set()
    assert study.config["schema_version"] == 2
    assert parse_resolved(study.config).hash == study.config_hash != HASH
    assert first.suggest_seconds == 0.25
    assert first.experiment == study.config["arms"]["blockout"]["experiment"]
    assert first.params == {
        "values": {"blockout.cost_penalty": 3.5, "blockout.clusters": 3},
        "distributions": {"blockout.cost_penalty": "{}"},
        "infeasible": [{"values": {"blockout.structure_lr_multiplier": 2.0}, "exceeded": {"macs": [9, 8]}}],
    }
    assert (second.params, second.experiment, second.result) == ({}, {"width": 8}, {"charge": 1})
    assert first.result is None


def test_a_study_file_of_version_1_has_the_hash_of_the_migrated_study(store_url):
    make(store_url, rows("studies", study_row())).dispose()
    with Store.open(store_url) as store:
        assert resolved(parsed(WRITTEN, source="x"), source="x").hash == store.study("quickstart").config_hash


def test_a_request_that_is_repeated_after_the_migration_is_recognized(store_url):
    make(store_url, rows("queue", queue_row(key="k"), queue_row(id=2, study="other", source=None))).dispose()
    study = resolved(parsed(WRITTEN, source="x"), source="x")
    with Store.open(store_url) as store:
        row = store.enqueue("quickstart", document=study.to_json(), config_hash=study.hash, owner="ann", key="k")
        other = store.queued_study("other")
    assert (row.id, row.new, row.config_hash) == (1, False, study.hash)
    assert old_names(row.document) == old_names(row.source) == set()
    assert other is not None
    assert other.source is None


def test_the_first_request_of_an_extended_study_is_recognized_by_its_event(store_url):
    longer = {**RESOLVED, "retrain": {**RESOLVED["retrain"], "seeds": [0, 1, 2, 3, 4, 5, 6]}}
    detail = {"reason": "seeds", "state": "complete", "error": None, "config": RESOLVED, "config_hash": HASH}
    event = {"id": 1, "study_id": 1, "at": NOW, "kind": "reopened", "detail": detail}
    created = {**event, "id": 2, "kind": "created", "detail": {}}
    make(
        store_url,
        rows("studies", study_row(config=longer, config_hash="longer")),
        rows("events", event, created),
        rows("queue", queue_row(document=longer, config_hash="longer")),
    ).dispose()
    study = resolved(parsed(WRITTEN, source="x"), source="x")
    with Store.open(store_url) as store:
        row = store.enqueue("quickstart", document=study.to_json(), config_hash=study.hash, owner="ann")
        events = store.events("quickstart")
        assert not row.new
        assert row.config_hash == store.study("quickstart").config_hash == parse_resolved(row.document).hash
    assert events[0].detail["config_hash"] == study.hash
    assert old_names(events[0].detail) == set()
    assert events[1].detail == {}


def test_what_is_absent_stays_null_and_not_the_json_value_null(store_url):
    engine = make(store_url, rows("studies", study_row()), rows("queue", queue_row(source=None)))
    Store.open(store_url).close()
    with engine.connect() as connection:
        assert connection.scalars(sa.text("SELECT count(*) FROM queue WHERE source IS NULL")).one() == 1
    engine.dispose()


def test_a_store_goes_down_and_up_again_with_the_same_rows(store_url):
    trials, queue = rows("trials", trial_row(0)), rows("queue", queue_row())
    make(store_url, rows("studies", study_row()), rows("arms", ARM), trials, queue).dispose()
    with Store.open(store_url) as store:
        before = store.study("quickstart"), store.trials("quickstart"), store.queued_study("quickstart")
    schema_version.downgrade(store_url, "0002")
    with Store.open(store_url) as store:
        study = replace(store.study("quickstart"), uuid=before[0].uuid)  # older versions have no column for it
        assert (study, store.trials("quickstart"), store.queued_study("quickstart")) == before


def test_more_trials_than_one_batch_are_all_migrated(store_url):
    trials = [trial_row(number, params={"refused": []}) for number in range(601)]
    make(store_url, rows("studies", study_row()), rows("arms", ARM), rows("trials", *trials)).dispose()
    with Store.open(store_url) as store:
        assert [row.params for row in store.trials("quickstart")] == [{"infeasible": []}] * 601


OPENER = """
import sys
from services.store import Store
print("ready", flush=True)
input()
with Store.open(sys.argv[1]) as store:
    print(*{tuple(row.params) for row in store.trials("quickstart")})
"""


def test_processes_that_open_a_store_of_version_1_at_once_migrate_it_once(store_url):
    trials = [trial_row(number, params={"refused": []}) for number in range(600)]
    make(store_url, rows("studies", study_row()), rows("arms", ARM), rows("trials", *trials)).dispose()
    assert outputs_at_once(OPENER, store_url, number=3) == ["('infeasible',)\n"] * 3


@pytest.mark.parametrize("owner", ["elsewhere/1:7", this_process()], ids=["another machine", "this process"])
def test_a_store_is_not_migrated_while_a_driver_runs_a_study(store_url, owner):
    engine = make(store_url, rows("studies", study_row(state="running", owner=owner)))
    with engine.begin() as connection:
        sqlite = engine.dialect.name == "sqlite"
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if sqlite else "clock_timestamp()"
        connection.execute(sa.text(f"UPDATE studies SET heartbeat_at = {now}"))
    message = rf"must be migrated, but study 'quickstart' is being run by {owner} \(heartbeat \d+ s ago\); wait until"
    with pytest.raises(StoreError, match=message):
        Store.open(store_url)
    assert schema_version.current(store_url) == "0002"
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE studies SET heartbeat_at = :at"), {"at": NOW})
    with Store.open(store_url) as store:
        assert store.study("quickstart").interrupted
        store.claim_study("quickstart", owner)
    with pytest.raises(StoreError, match="must be migrated"):
        schema_version.downgrade(store_url, "0002")
    engine.dispose()


def test_the_claim_of_a_process_that_has_ended_does_not_hold_a_migration_up(store_url):
    host = this_process().rpartition(":")[0]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    engine = make(store_url, rows("studies", study_row(state="running", owner=f"{host}:{ended.pid}")))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE studies SET heartbeat_at = '2999-01-01 00:00:00.000000'"))
    engine.dispose()
    Store.open(store_url).close()
    assert schema_version.current(store_url) == migrations.HEAD
