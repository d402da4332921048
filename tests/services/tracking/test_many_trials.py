"""However many trials a study has, writing some of them to MLflow costs what these cost, and loses none of them."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from services.store import Store, tables
from services.tracking import Projection, TrackingError
from tests.services.sql_counts import Counts, counted
from tests.services.tracking.example import CONFIG, RESULT, add, everything, runs

# MLflow's own use of its database is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def grow(store: Store, name: str, trials: int) -> None:
    """Add complete trials until there are so many, each a minute after the one before it."""
    engine = sa.create_engine(store.url)
    for number in range(len(store.trials(name)), trials):
        identity = add(store, name, number=number, state="complete", epochs=1)
        began = BEGAN + timedelta(minutes=number)
        times = {"started_at": began, "finished_at": began + timedelta(seconds=30)}
        with engine.begin() as connection:
            connection.execute(sa.update(tables.trials).where(tables.trials.c.id == identity).values(times))
    engine.dispose()


def round_of(projection: Projection, written: int) -> Counts:
    """Sync, and return what was read; asserts how many trials were written."""
    with counted() as counts:
        assert projection.sync().written == written
    return counts


def execute(uri: str, *statements: str) -> None:
    """Change MLflow's database."""
    engine = sa.create_engine(uri)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_round_reads_what_is_new_however_many_trials_there_are(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    busy, idle = {}, {}
    for trials in (6, 12, 24):
        grow(store, name, trials)
        projection.sync()
        grow(store, name, trials + 2)
        busy[trials], idle[trials] = round_of(projection, 2), round_of(projection, 0)
    assert busy[6] == busy[12] == busy[24]
    assert idle[6] == idle[12] == idle[24]
    assert idle[6].rows <= 2, "the one trial that has not ended, and the ID of the study"


def test_what_was_cut_off_by_an_outage_is_written_once(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    assert projection.sync().written == 3
    grow(store, name, 8)
    # In the midst of writing a trial: its run is there then, without what belongs in it.
    execute(uri, "CREATE TRIGGER away BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'away'); END")
    for _ in range(2):
        with pytest.raises(TrackingError, match="away"):
            projection.sync()
    store.finish_trial(store.trials(name, state="running")[0].id, "complete", score=0.8, result=RESULT)
    execute(uri, "DROP TRIGGER away")
    done = projection.sync()
    assert (done.written, done.present) == (5, 3)
    assert set(runs(uri, name)) == {name, "blockout", *(f"blockout-{number}-s7" for number in range(8))}
    assert {run.info.status for title, run in runs(uri, name).items() if title.startswith("blockout-")} == {
        "FINISHED",
        "FAILED",
        "KILLED",
    }


def test_a_resumed_driver_writes_what_is_missing_and_nothing_else(uri: str, name: str, store: Store) -> None:
    before = Projection(uri, name, CONFIG, store)
    before.sync()
    grow(store, name, 6)
    done = iter([False, True])
    assert before.sync(until=lambda: next(done)).written == 1  # killed in the midst of a round
    written = everything(uri, name)
    resumed = Projection(uri, name, CONFIG, store)
    add(store, name, number=6, state="complete")
    synced = resumed.sync()
    assert (synced.written, synced.present) == (2, 4)
    after = everything(uri, name)
    assert {title: after[title] for title in written} == written
    assert (resumed.sync().written, before.sync().written) == (0, 0)


def test_an_experiment_that_was_removed_for_good_is_written_anew(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    experiment = f"(SELECT experiment_id FROM experiments WHERE name = 'nas-blockout/{name}')"
    of_study = f"(SELECT run_uuid FROM runs WHERE experiment_id = {experiment})"
    tables_of_runs = ("tags", "params", "metrics", "latest_metrics", "runs")
    execute(uri, *(f"DELETE FROM {table} WHERE run_uuid IN {of_study}" for table in tables_of_runs))
    add(store, name, number=4, state="complete")
    done = projection.sync()
    assert (done.written, done.present) == (4, 0)
    assert len(runs(uri, name)) == 6
