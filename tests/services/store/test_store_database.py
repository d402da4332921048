"""The database below the store: what is opened, what is refused, how it is migrated, what it survives."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from services import migrations
from services.store import Store, StoreError, StoreUnreachable, database
from services.store.tables import METADATA


def fill(store: Store) -> int:
    store.create_study("example", config={"x": 1}, config_hash="cafe", arms=["a"])
    trial = store.add_trial("example", arm="a", phase="search", number=0, seed=0, planned=9, experiment={}).id
    store.start_attempt(trial)
    store.record_epochs(trial, [{"epoch": 0, "sample_passes": 3, "seconds": 0.5}])
    return trial


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    """A plain connection to the database of `store_url`, whose SQLite file has a folder."""
    url = database.parse(store_url)
    if url.drivername == "sqlite":
        Path(str(url.database)).parent.mkdir(exist_ok=True)
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def test_a_store_is_made_where_there_is_none_and_kept_when_it_is_opened_again(store_url):
    with Store.open(store_url) as store:
        trial = fill(store)
        row = store.trial(trial)
    with Store.open(store_url) as again:
        assert again.trial(trial) == row
        assert again.epochs(trial)[0].sample_passes == 3


def test_the_migrations_make_the_tables_that_the_code_knows(store_url, engine):
    Store.open(store_url).close()
    with engine.connect() as connection:
        options = {"version_table": migrations.VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []


def test_a_difference_between_tables_and_code_is_found(store_url, engine):
    Store.open(store_url).close()
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE studies ADD COLUMN mood TEXT"))
        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
        assert [difference[0] for difference in compare_metadata(context, METADATA)] == ["remove_column"]


def test_the_schema_goes_down_to_nothing_and_up_again(store_url, engine):
    Store.open(store_url).close()
    with engine.connect() as connection:
        made = shape(connection)
    with engine.begin() as connection:
        migrations.downgrade(connection, "base")
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == [migrations.VERSION_TABLE]
    with Store.open(store_url) as store:
        fill(store)
    with engine.connect() as connection:
        assert shape(connection) == made


def shape(connection: sa.Connection) -> dict[str, object]:
    inspector = sa.inspect(connection)
    return {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted((index["name"], *index["column_names"], index["unique"]) for index in inspector.get_indexes(table)),
            sorted((key["name"], key["referred_table"]) for key in inspector.get_foreign_keys(table)),
            sorted((rule["name"], rule["sqltext"]) for rule in inspector.get_check_constraints(table)),
        )
        for table in sorted(inspector.get_table_names())
    }


def test_the_newest_migration_is_the_one_that_is_named():
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_the_database_itself_refuses_what_makes_no_sense(store_url, engine):
    with Store.open(store_url) as store:
        fill(store)
        bad = {
            "UPDATE trials SET state = 'done'": "ck_trials_state|CHECK",
            "UPDATE trials SET phase = 'play'": "ck_trials_phase|CHECK",
            "UPDATE studies SET state = 'odd'": "ck_studies_state|CHECK",
            "UPDATE attempts SET state = 'odd'": "ck_attempts_state|CHECK",
            "UPDATE epochs SET trial_id = 99": "fk_epochs_trial_id|FOREIGN KEY",
            "INSERT INTO arms (study_id, name, position) VALUES (1, 'a', 7)": "uq_arms_study_id_name|UNIQUE",
            "UPDATE studies SET name = NULL": "null|NULL",
        }
        for statement, message in bad.items():
            with pytest.raises(StoreError, match=message), store._database.writing() as connection:
                connection.execute(sa.text(statement))


def fail_within_a_write(store: Store) -> None:
    with store._database.writing() as connection:
        connection.execute(sa.text("UPDATE studies SET state = 'failed'"))
        raise KeyError("in the middle")


def test_a_write_that_fails_is_undone(store_url):
    with Store.open(store_url) as store:
        fill(store)
        with pytest.raises(KeyError):
            fail_within_a_write(store)
        assert store.study("example").state == "created"


def test_a_database_of_something_else_is_left_alone(store_url, engine):
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num TEXT)"))
    with pytest.raises(
        StoreError, match=r"belongs to another program: it has a table 'alembic_version'; give the store"
    ):
        Store.open(store_url)
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]


def test_a_store_of_a_newer_version_is_left_alone(store_url, engine):
    Store.open(store_url).close()
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(
        StoreError, match=rf"\(schema 9999, this version knows {migrations.HEAD}\); update nas_blockout"
    ):
        Store.open(store_url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("runs/store.db", "URL must be like sqlite:////absolute/path.db or .*, got 'runs/store.db'"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        (
            "mysql://me:hunter22@h/x",
            r"URL must begin with sqlite: or postgresql\+psycopg:, got 'mysql://me:\*\*\*@h/x'",
        ),
        ("postgresql+asyncpg://me:hunter22@h/x", r"got 'postgresql\+asyncpg://me:\*\*\*@h/x'"),
        ("postgresql://me:hunter22@h:port/x", r"got 'postgresql://me:\*\*\*@h:port/x'"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused_without_its_password(url, message):
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(url)
    assert "hunter22" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_without_its_password():
    message = r"the store postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x cannot be reached"
    with pytest.raises(StoreUnreachable, match=message) as caught:
        Store.open("postgresql://me:hunter22@127.0.0.1:1/x")
    assert "hunter22" not in str(caught.value)


def test_a_database_that_is_not_there_is_named(postgres):
    postgres.connect().close()  # waits for a server that has just been started
    with pytest.raises(StoreUnreachable, match='database "nothing" does not exist'):
        Store.open(postgres.url("nothing"))


def test_a_database_without_room_says_what_to_do(tmp_path):
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        with store._database.reading() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1")  # it grows no more
        with pytest.raises(StoreError, match="free space on the disk of the database, then repeat"):
            store.create_study("large", config={"text": "x" * 10**6}, config_hash="cafe", arms=["dense"])
        assert store.studies() == ()


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"the store sqlite:///{path} cannot be used: .*; move the file away"):
        Store.open(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_a_store_that_was_damaged_gives_one_clear_error(tmp_path):
    path = tmp_path / "store.db"
    with Store.open(f"sqlite:///{path}") as store:
        fill(store)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damaged = path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096)
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="malformed"), Store.open(f"sqlite:///{path}") as store:
        store.studies()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be created: .*file"):
        Store.open(f"sqlite:///{tmp_path}/file/store.db")
    with pytest.raises(StoreError, match="unable to open database file; its folder must exist and be writable"):
        Store.open(f"sqlite:///{tmp_path}")


def test_sqlite_reads_while_it_writes_and_keeps_references(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store, store._database.reading() as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in (
            "journal_mode", "foreign_keys", "synchronous", "busy_timeout")]  # fmt: skip
    assert settings == ["wal", 1, 1, 1000 * database.LOCK_SECONDS]


def test_a_reader_does_not_wait_for_a_writer(store_url):
    with Store.open(store_url) as writer, Store.open(store_url) as reader:
        trial = fill(writer)
        with writer._database.writing() as connection:
            connection.execute(sa.text("UPDATE trials SET state = 'failed'"))
            assert reader.trial(trial).state == "running"
        assert reader.trial(trial).state == "failed"


def test_a_lock_that_is_not_given_up_is_named(store_url):
    with Store.open(store_url, lock_seconds=0.05) as store, Store.open(store_url) as other:
        fill(store)
        with other._database.writing() as connection:
            connection.execute(sa.text("UPDATE trials SET number = 5"))
            with pytest.raises(StoreError, match="is locked by another program"):
                store.finish_trial(1, "failed", reason="x")
        assert store.trial(1).state == "running"


@pytest.fixture(scope="module")
def own_server(postgres):
    """A server that tests may kill, and start again."""
    server = type(postgres)(postgres.programs)
    yield server
    server.close()


def test_a_server_that_dies_and_comes_back_is_waited_for_and_has_lost_nothing(own_server):
    with Store.open(own_server.make_database()) as store:
        trial = fill(store)
        own_server.kill()
        back = threading.Timer(0.5, own_server.start)
        back.start()
        store.record_epochs(trial, [{"epoch": 1, "sample_passes": 6, "seconds": 1.0}])
        back.join()
        assert [row.epoch for row in store.epochs(trial)] == [0, 1]


def test_a_server_that_stays_away_is_named(own_server):
    with Store.open(own_server.make_database(), retry_seconds=0.3) as store:
        trial = fill(store)
        own_server.kill()
        with pytest.raises(StoreUnreachable, match="cannot be reached"):
            store.finish_trial(trial, "failed", reason="x")
        own_server.start()
        own_server.connect().close()
        assert store.trial(trial).state == "running"


def test_who_has_to_end_waits_no_longer(own_server):
    with Store.open(own_server.make_database(), retry_seconds=200) as store, ThreadPoolExecutor(1) as pool:
        trial = fill(store)
        own_server.kill()
        waits = pool.submit(store.epochs, trial)
        with pytest.raises(TimeoutError):
            waits.result(timeout=0.5)
        store.stop_retrying()
        with pytest.raises(StoreUnreachable, match="cannot be reached"):
            waits.result(timeout=20)
        own_server.start()


def die_within_a_write(store: Store, server: object) -> None:
    with store._database.writing() as connection:
        connection.execute(sa.text("UPDATE trials SET state = 'failed'"))
        server.kill()
        connection.execute(sa.text("UPDATE trials SET state = 'pruned'"))


def test_a_server_that_dies_within_a_write_undoes_it(own_server):
    with Store.open(own_server.make_database()) as store:
        trial = fill(store)
        with pytest.raises(StoreUnreachable):
            die_within_a_write(store, own_server)
        own_server.start()
        assert store.trial(trial).state == "running"
