"""The store's database, SQLite or PostgreSQL: opened at the newest schema version, with uniform errors."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from services import migrations
from services.settings import masked
from services.store.errors import StoreError, StoreUnreachable
from services.store.locks import file_lock, process_has_ended, session_lock
from services.store.records import STALE_SECONDS
from services.store.tables import Instant, studies, to_json_text

LOCK_SECONDS = 10.0
# Another process may be migrating: 100,000 trials took 40 s on SQLite and 130 s on PostgreSQL, on a busy machine.
MIGRATION_LOCK_SECONDS = 600.0
CONNECT_SECONDS = 5
RETRY_SECONDS = 30.0
_RETRY_INTERVAL_SECONDS = 0.2
_LOCK_NOT_AVAILABLE = "55P03"
# SQLSTATE classes of a server that may be back soon: connection failure, authorization not yet set up, database not yet
# created, too many connections, shutting down.
_UNREACHABLE = frozenset({"08", "28", "3D", "53", "57"})
_DRIVERS = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
_MIGRATION_LOCK = 7_361_902_455  # arbitrary, but the same in all releases: the key of a PostgreSQL advisory lock
SERVER_URL = "postgresql+psycopg://user:password@host/name"
_REMEDIES = {
    "not a database": "; move the file away, or name another in NAS_BLOCKOUT_STORE_URL",
    "malformed": "; move the file away, or name another in NAS_BLOCKOUT_STORE_URL",
    "disk is full": "; free space on the disk of the database, then repeat: nothing that was written is lost",
    "No space left": "; free space on the disk of the database, then repeat: nothing that was written is lost",
    "readonly": "; its folder must exist and be writable",
    "unable to open": "; its folder must exist and be writable",
}


class Database:
    """A database at the newest schema version; safe to use from many threads.

    Every read or write is one transaction, and none is ever retried: a SQLite write takes the write lock when it begins
    (``BEGIN IMMEDIATE``), so that it cannot fail halfway on an upgrade from a read lock; a PostgreSQL write locks the
    rows on which it decides (``SELECT ... FOR UPDATE``). Only connecting is retried, while a server restarts.
    """

    def __init__(self, url: sa.URL, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.url = masked(url.render_as_string(hide_password=False))
        self._parsed = url
        self._is_server = url.get_backend_name() == "postgresql"
        self._insertions: dict[tuple[Table, str | None], Any] = {}
        self._retry_seconds = 0.0  # while opening: a wrong URL is to fail at once
        self._engine = _engine(url, lock_seconds=lock_seconds)
        self._writer = self._engine.execution_options(nas_blockout_writes=True)  # the same pool; see `_begin_sqlite`

    @classmethod
    def open(cls, url: str, *, retry_seconds: float = RETRY_SECONDS, lock_seconds: float = LOCK_SECONDS) -> "Database":
        """Connect and migrate to the newest schema version; several processes may do so at once.

        Args:
            url: URL of the database.
            retry_seconds: How long to keep trying to connect to a server that has gone away.
            lock_seconds: How long to wait for a lock that another program holds.

        Raises:
            StoreUnreachable: The server does not answer.
            StoreError: The URL is invalid, the database is not a store, was written by a newer version, or needs a
                migration while a driver runs one of its studies.
        """
        database = cls(parse(url), lock_seconds=lock_seconds)
        try:
            database._migrate_to_head()
        except StoreError:
            database.close()
            raise
        database._retry_seconds = retry_seconds
        return database

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection in a transaction for reading."""
        with self._translated(), self._connected(self._engine) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that is committed at the end, or rolled back on an error."""
        with self._translated(), self._connected(self._writer) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def exclusive(self, name: str, *, wait_seconds: float) -> Iterator[bool]:
        """Yield whether a named lock was acquired within `wait_seconds`; held until the block or the process ends."""
        if not self._is_server:
            path = Path(str(self._parsed.database)).absolute()
            with file_lock(path.with_name(f"{path.name}.locks") / name, wait_seconds=wait_seconds) as acquired:
                yield acquired
            return
        # A lock of the session, not of a transaction: the block may take minutes, and a transaction that stays
        # open that long keeps PostgreSQL from cleaning up deleted rows.
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with (
            self._translated(),
            self._connected(engine) as connection,
            session_lock(connection, name, wait_seconds=wait_seconds) as acquired,
        ):
            yield acquired

    def insert(self, table: Table) -> Any:
        """Return an ``INSERT`` with ``on_conflict_do_nothing`` and ``on_conflict_do_update``, unlike generic SQL."""
        return (postgresql if self._is_server else sqlite).insert(table)

    def insert_new(self, table: Table, *, returning: sa.Column[Any] | None = None) -> Any:
        """Return an ``INSERT`` of parameters that leaves rows which are there as they are; made once for each table.

        Args:
            table: The table.
            returning: A column that is returned of a row that was not there.
        """
        key = table, None if returning is None else returning.name
        if key not in self._insertions:
            insertion = self.insert(table).on_conflict_do_nothing()
            self._insertions[key] = insertion if returning is None else insertion.returning(returning)
        return self._insertions[key]

    def now(self, connection: Connection) -> datetime:
        """Return the time of the clock that all processes share: the server's, or, with SQLite, this machine's."""
        if self._is_server:
            # Not now(): that is the beginning of the transaction, perhaps long before it acquired its locks.
            return connection.scalars(sa.select(sa.func.clock_timestamp(type_=Instant))).one()
        return datetime.now(UTC)

    def serialize(self, connection: Connection, lock: int) -> None:
        """Wait for all other write transactions that hold the same lock, and hold it until this one ends.

        For decisions that depend on rows which do not exist yet, and so cannot be locked. SQLite needs nothing: it has
        one writer at a time.
        """
        if self._is_server:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))

    def version(self) -> str | None:
        """Return the schema version, or None for an empty database; does not create a SQLite file."""
        if not self._is_server and not Path(str(self._parsed.database)).exists():
            return None
        with self.reading() as connection:
            return self._revision(connection)

    def migrate_down(self, version: str) -> None:
        """Migrate down to an older schema version."""
        self._engine.dispose()
        self._migrate(down_to=version)

    def stop_retrying(self) -> None:
        """Stop waiting for a server that has gone away, in all threads."""
        self._retry_seconds = 0.0

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _migrate_to_head(self) -> None:
        if not self._is_server:
            folder = Path(str(self._parsed.database)).absolute().parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"the store {self.url} cannot be created: {error}") from None
        with self.reading() as connection:
            revision = self._revision(connection)
        if revision != migrations.HEAD:
            self._engine.dispose()  # SQLite switches to write-ahead logging only while nobody else has the file open
            self._migrate()

    def _revision(self, connection: Connection) -> str | None:
        """Return the schema version, or None for an empty database."""
        inspector = sa.inspect(connection)
        if inspector.has_table(migrations.VERSION_TABLE):
            version = sa.table(migrations.VERSION_TABLE, sa.column("version_num", sa.Text))
            revision = connection.scalars(sa.select(version.c.version_num)).one_or_none()
            if revision is not None and revision > migrations.HEAD:
                raise StoreError(
                    f"the store {self.url} was written by a newer version of nas_blockout (schema {revision}, this "
                    f"version knows {migrations.HEAD}); update nas_blockout"
                )
            return revision
        if names := inspector.get_table_names():
            raise StoreError(
                f"the database {self.url} belongs to another program: it has a table {names[0]!r}; "
                "give the store its own database"
            )
        return None

    def _migrate(self, *, down_to: str | None = None) -> None:
        engine = _engine(self._parsed, lock_seconds=MIGRATION_LOCK_SECONDS, migrating=True)
        with self._translated(), engine.connect() as connection, connection.begin():
            if self._is_server:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            revision = self._revision(connection)  # again, now that nobody else can change it
            if revision not in (down_to or migrations.HEAD, None):  # another process may have been first
                self._require_no_driver(connection)
            if down_to is not None:
                migrations.downgrade(connection, down_to)
            else:
                migrations.upgrade(connection)

    def _require_no_driver(self, connection: Connection) -> None:
        """Refuse to migrate under a running driver: it is of another release, and would fail at its next write."""
        columns, now = studies.c, self.now(connection)
        query = sa.select(columns.name, columns.owner, columns.heartbeat_at).where(columns.owner.is_not(None))
        for name, owner, heartbeat_at in connection.execute(query.where(columns.state == "running")):
            age = (now - heartbeat_at).total_seconds()
            if age <= STALE_SECONDS and not process_has_ended(owner):
                raise StoreError(
                    f"the store {self.url} must be migrated, but study {name!r} is being run by {owner} (heartbeat "
                    f"{max(0.0, age):.0f} s ago); wait until it has ended, or stop it: it can be resumed afterwards"
                )

    def _connected(self, engine: Engine) -> Connection:
        """Connect, and keep trying while a server restarts."""
        began = time.monotonic()
        while True:
            try:
                return engine.connect()
            except OperationalError:  # nothing has been sent yet, so that trying again cannot do anything twice
                if not self._is_server or time.monotonic() - began > self._retry_seconds:
                    raise
                time.sleep(_RETRY_INTERVAL_SECONDS)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn a database error into a `StoreError` without the statement, its values or a password."""
        try:
            yield
        except SQLAlchemyError as error:
            raise self._store_error(error) from error

    def _store_error(self, error: SQLAlchemyError) -> StoreError:
        original = error.orig if isinstance(error, DBAPIError) else error
        text = " ".join(str(original).split())
        # Drivers quote the URL or the parameters of the connection in their errors.
        text = text.replace(self._parsed.password, "***") if self._parsed.password else text
        sqlstate = getattr(original, "sqlstate", None)
        if "locked" in text or sqlstate == _LOCK_NOT_AVAILABLE:
            return StoreError(f"the store {self.url} is locked by another program: {text}")
        # psycopg sets no SQLSTATE where it could not connect at all.
        if self._is_server and isinstance(error, OperationalError) and (sqlstate or "08")[:2] in _UNREACHABLE:
            return StoreUnreachable(f"the store {self.url} cannot be reached: {text}")
        remedy = next((remedy for words, remedy in _REMEDIES.items() if words in text), "")
        return StoreError(f"the store {self.url} cannot be used: {text}{remedy}")


def parse(url: str) -> sa.URL:
    """Parse the URL of a store.

    Raises:
        StoreError: It is not a URL, or names a database that is not supported.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(
            f"the store's URL must be like sqlite:////absolute/path.db or {SERVER_URL}, got {masked(url)!r}"
        ) from None
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.drivername not in _DRIVERS.values():
        raise StoreError(f"the store's URL must begin with sqlite: or postgresql+psycopg:, got {masked(url)!r}")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError(f"the store's URL must name a file, such as sqlite:////absolute/path.db, got {url!r}")
    return parsed


def _engine(url: sa.URL, *, lock_seconds: float, migrating: bool = False) -> Engine:
    options: dict[str, Any] = {"json_serializer": to_json_text}
    if migrating:
        options |= {"poolclass": sa.NullPool, "execution_options": {"nas_blockout_writes": True}}
    if url.get_backend_name() == "postgresql":
        defaults = {"connect_timeout": CONNECT_SECONDS, "application_name": "nas_blockout"}
        defaults["options"] = f"-c lock_timeout={max(1, round(1000 * lock_seconds))}"  # 0 would mean no limit
        # What the URL says itself takes precedence.
        arguments = {key: value for key, value in defaults.items() if key not in url.query}
        return sa.create_engine(url, connect_args=arguments, pool_pre_ping=not migrating, **options)
    engine = sa.create_engine(url, connect_args={"timeout": lock_seconds}, **options)
    sa.event.listen(engine, "connect", lambda connection, _: _prepare_sqlite(connection, migrating=migrating))
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, *, migrating: bool) -> None:
    connection.isolation_level = None  # otherwise Python begins transactions by itself, and never IMMEDIATE ones
    # With a write-ahead log NORMAL cannot corrupt the file; a power failure may lose the last transactions.
    connection.execute("PRAGMA synchronous=NORMAL")
    # Alembic changes a SQLite table by copying and dropping it, which would delete or refuse rows that refer to it.
    connection.execute(f"PRAGMA foreign_keys={'OFF' if migrating else 'ON'}")
    if migrating:
        _use_wal(connection)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("nas_blockout_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead logging, which it keeps; SQLite's own timeout does not apply to this lock."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
