"""One study never stops the others: what cannot be read, what nobody thought of, and what wrote to another place."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.cluster.jobs import Job
from services.dispatch.dispatcher import MOST_TROUBLES
from services.dispatch.loop import destination_options
from services.execution.destination import require
from services.settings import Settings
from services.store import Store
from services.study_config.resolved_study import Study
from tests.services.dispatch.grid import NAMES, STUDIES, Grid, driven, enqueue, state, study_named, worker


def test_a_job_that_wrote_to_another_store_completes_nothing(store: Store) -> None:
    grid, dispatcher, job = driven(store)
    store.release_study("one", job)
    grid.jobs[job] = Job(job, "succeeded", exit_code=0)
    dispatcher.round()
    assert state(store)[0] == store.study("one").state == "failed"
    assert "the job has written to another one; start Ray with the NAS_BLOCKOUT_ variables" in state(store)[1]


def test_a_study_that_was_extended_without_the_service_ends_complete(store: Store) -> None:
    grid, dispatcher, job = driven(store)
    store.finish_study("one", "cancelled", error="it is extended")
    larger = study_named("one", budget={"sample_passes": 5360})
    store.reopen_study("one", reason="larger", config=larger.to_json(), config_hash=larger.hash)
    store.claim_study("one", job)
    grid.end(job, "succeeded", 0)
    dispatcher.round()
    assert state(store) == ("complete", "")


def test_jobs_carry_the_identities_of_store_and_home(store: Store, tmp_path: Path) -> None:
    settings = Settings.from_environment({"NAS_BLOCKOUT_HOME": str(tmp_path), "NAS_BLOCKOUT_STORE_URL": store.url})
    options, grid = destination_options(settings, store), Grid(store)
    enqueue(store)
    worker(store, grid, options=options).round()
    assert list(grid.options.values()) == [(*options, "--workers", "2")]
    home = (tmp_path / "runs" / ".identity").read_text().strip()
    assert options == ("--store-id", store.identity(), "--home-id", home)
    assert destination_options(settings, store) == options
    require(settings, store=options[1] if "***" not in store.url else None, home=home, log=pytest.fail)


POISON = {
    "no study at all": {"x": 1},
    "a list": [1],
    "a setting that is not there": {**STUDIES["two"].to_json(), "arms": {"dense": {"experiment": {"backbone": 7}}}},
    "a schema to come": {**STUDIES["two"].to_json(), "schema_version": 3},
    "a method to come": json.loads(
        json.dumps(STUDIES["two"].to_json()).replace('{"name": "none"}', '{"name": "telepathy"}')
    ),
    "no JSON": None,
}


def poison(store: Store, name: str, document: object) -> None:
    """Write into the queue what no release of today would, past the checks of the store."""
    text = "{]" if document is None else json.dumps(document)
    with store._database.writing() as connection:
        connection.execute(
            sa.text("UPDATE queue SET document = :text WHERE study = :name"), {"text": text, "name": name}
        )


@pytest.mark.parametrize("document", POISON.values(), ids=POISON)
def test_a_study_that_cannot_be_read_fails_alone_with_its_reason(sqlite_store: Store, document: object) -> None:
    store = sqlite_store
    grid = Grid(store)
    for name in NAMES:
        enqueue(store, name)
    poison(store, "two", document)
    dispatcher = worker(store, grid)
    dispatcher.round()
    assert dispatcher.held == ("one", "three")
    assert state(store, "two")[0] == "failed"
    assert state(store, "two")[1].startswith("this release cannot read the study as it is stored: study two: ")
    assert state(store, "two")[1].endswith("submit it again by another name")
    assert len(grid.submitted) == 2
    poison(store, "one", document)  # while its job runs, as where the worker is upgraded or goes back
    dispatcher.round()
    assert state(store, "one")[0] == "running"
    grid.drive(job := grid.submitted[0])
    grid.end(job, "succeeded", 0)
    dispatcher.round()
    assert state(store, "one") == ("complete", "")


class Broken(Grid):
    """Fails on one study, in a way that nobody has thought of."""

    def submit(self, study: Study, *, attempt: int = 0, options: Sequence[str] = ()) -> Job:
        if study.name == "two":
            raise ZeroDivisionError("of all things")
        return super().submit(study, attempt=attempt, options=options)


def test_an_error_that_nobody_thought_of_fails_its_study_and_no_other(sqlite_store: Store) -> None:
    grid, said = Broken(sqlite_store), []
    for name in NAMES:
        enqueue(sqlite_store, name)
    dispatcher = worker(sqlite_store, grid, log=said.append)
    dispatcher.round()
    assert dispatcher.held == NAMES
    for _ in range(MOST_TROUBLES - 1):
        assert state(sqlite_store, "two")[0] == "running"
        dispatcher.round()
    assert state(sqlite_store, "two") == (
        "failed",
        "the worker cannot handle this study: ZeroDivisionError: of all things",
    )
    assert dispatcher.held == ("one", "three")
    assert len(grid.submitted) == 2


def test_a_study_that_is_deleted_from_the_queue_is_let_go(sqlite_store: Store) -> None:
    grid, dispatcher, _ = driven(sqlite_store)
    with sqlite_store._database.writing() as connection:
        connection.execute(sa.text("DELETE FROM queue"))
    dispatcher.round()
    assert dispatcher.held == ()
    assert grid.submitted
