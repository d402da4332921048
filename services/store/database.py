"""The store's database, SQLite or PostgreSQL: opened at the newest schema, with errors of one form."""

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
from services.store.locks import file_lock, session_lock
from services.store.tables import Instant, to_json_text

LOCK_SECONDS = 10
CONNECT_SECONDS = 5
PATIENCE_SECONDS = 30.0
_RETRY_SECONDS = 0.2
_LOCK_NOT_AVAILABLE = "55P03"
_AWAY = frozenset({"08", "28", "3D", "53", "57"})  # no connection, not let in, no such database, full, shutting down
_DRIVERS = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
_MIGRATION_LOCK = 7_361_902_455  # any number that other users of the PostgreSQL database do not take


class Database:
    """A database at the newest schema; may be used by many threads.

    A read or a write is one transaction. In SQLite a write takes its lock at the beginning, so that it never has to be
    begun again; in PostgreSQL it locks the rows it decides on. A server that has gone away is waited for.
    """

    def __init__(self, url: sa.URL) -> None:
        self.url = masked(url.render_as_string(hide_password=False))
        self._parsed = url
        self._server = url.get_backend_name() == "postgresql"
        self._patience = 0.0
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(nas_blockout_writes=True)

    @classmethod
    def open(cls, url: str, *, patience: float | None = None) -> "Database":
        """Connect, and bring the schema up to date; several processes may do so at once.

        Args:
            url: Of the database.
            patience: Seconds for which a server that has gone away is waited for; half a minute if left out.

        Raises:
            StoreUnreachable: Nobody answers.
            StoreError: The URL cannot be used, or what lies there is no store, or is that of a newer version.
        """
        database = cls(parse(url))
        try:
            database._bring_up_to_date()
        except StoreError:
            database.close()
            raise
        database._patience = PATIENCE_SECONDS if patience is None else patience
        return database

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that only reads."""
        with self._translated(), self._connected(self._engine) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that is committed at the end, or undone by an error."""
        with self._translated(), self._connected(self._writer) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def exclusive(self, name: str, *, patience: float) -> Iterator[bool]:
        """Yield whether the lock of a name was got within `patience` seconds; it is let go at the end, or by death."""
        if not self._server:
            path = Path(str(self._parsed.database)).absolute()
            with file_lock(path.with_name(f"{path.name}.locks") / name, patience=patience) as got:
                yield got
            return
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with (
            self._translated(),
            self._connected(engine) as connection,
            session_lock(connection, name, patience=patience) as got,
        ):
            yield got

    def insert(self, table: Table) -> Any:
        """Return an insertion that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        return (postgresql if self._server else sqlite).insert(table)

    def now(self, connection: Connection) -> datetime:
        """Return the time by the one clock that all drivers share: that of the server, or of this machine."""
        if self._server:
            return connection.scalars(sa.select(sa.func.clock_timestamp(type_=Instant))).one()
        return datetime.now(UTC)

    def serialize(self, connection: Connection, lock: int) -> None:
        """Let no other transaction go on that asks for the same lock, until this one, which writes, has ended."""
        if self._server:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))

    def version(self) -> str | None:
        """Return the version of the tables, or None of an empty database; no file is made."""
        if not self._server and not Path(str(self._parsed.database)).exists():
            return None
        with self.reading() as connection:
            return self._revision(connection)

    def migrate_down(self, version: str) -> None:
        """Take the tables down to an older version."""
        self._engine.dispose()
        self._migrate(down_to=version)

    def stop_retrying(self) -> None:
        """Wait for a server that has gone away no longer, in any thread."""
        self._patience = 0.0

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _bring_up_to_date(self) -> None:
        if not self._server:
            self._make_folder()
        with self.reading() as connection:
            revision = self._revision(connection)
        if revision != migrations.HEAD:
            self._engine.dispose()  # SQLite's log is switched on while nobody else has the file open
            self._migrate()

    def _make_folder(self) -> None:
        folder = Path(str(self._parsed.database)).absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store {self.url} cannot be made: {error}") from None

    def _revision(self, connection: Connection) -> str | None:
        """Return the revision of the schema, or None for an empty database."""
        inspector = sa.inspect(connection)
        if inspector.has_table(migrations.VERSION_TABLE):
            version = sa.table(migrations.VERSION_TABLE, sa.column("version_num", sa.Text))
            found = connection.scalars(sa.select(version.c.version_num)).one_or_none()
            if found is not None and found > migrations.HEAD:
                raise StoreError(
                    f"the store {self.url} was written by a newer version (schema {found}, this one knows "
                    f"{migrations.HEAD}); update nas_blockout"
                )
            return found
        if names := inspector.get_table_names():
            raise StoreError(
                f"the store {self.url} holds tables of something else, such as {names[0]!r}; "
                "give the store a database of its own"
            )
        return None

    def _migrate(self, *, down_to: str | None = None) -> None:
        engine = _engine(self._parsed, migrating=True)
        with self._translated(), engine.connect() as connection, connection.begin():
            if self._server:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            if down_to is not None:
                migrations.downgrade(connection, down_to)
            else:
                migrations.upgrade(connection)  # which finds nothing to do if another process was first

    def _connected(self, engine: Engine) -> Connection:
        """Connect; wait a while for a server that is being started again."""
        began = time.monotonic()
        while True:
            try:
                return engine.connect()
            except OperationalError:
                if not self._server or time.monotonic() - began > self._patience:
                    raise
                time.sleep(_RETRY_SECONDS)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn an error of the database into one of ours, without its statement, its values or a password."""
        try:
            yield
        except SQLAlchemyError as error:
            raise self._error(error) from error

    def _error(self, error: SQLAlchemyError) -> StoreError:
        original = error.orig if isinstance(error, DBAPIError) else error
        text = " ".join(str(original).split())
        text = text.replace(self._parsed.password, "***") if self._parsed.password else text
        sqlstate = getattr(original, "sqlstate", None)
        if "locked" in text or sqlstate == _LOCK_NOT_AVAILABLE:
            return StoreError(
                f"the store {self.url} is locked by another program, for more than {LOCK_SECONDS} s: {text}"
            )
        if self._server and isinstance(error, OperationalError) and (sqlstate or "08")[:2] in _AWAY:
            return StoreUnreachable(f"the store {self.url} cannot be reached: {text}")
        return StoreError(f"the store {self.url} cannot be used: {text}{_remedy(text)}")


def _remedy(text: str) -> str:
    if "not a database" in text or "malformed" in text:
        return "; move the file away, or name another in NAS_BLOCKOUT_STORE_URL"
    if "disk is full" in text or "No space left" in text:
        return "; free room on the disk of the database, then do the same again: what was written before is kept"
    if "readonly" in text or "unable to open" in text:
        return "; its folder must exist and be writable"
    return ""


def parse(url: str) -> sa.URL:
    """Read the URL of a store.

    Raises:
        StoreError: It is none, or of a kind of database that is not supported.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(f"the store's URL {masked(url)!r} is none; it is like sqlite:////absolute/path.db") from None
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.drivername not in _DRIVERS.values():
        raise StoreError(f"the store is kept in sqlite or postgresql+psycopg, got {masked(url)!r}")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError(f"the store must name a file, such as sqlite:////absolute/path.db, got {url!r}")
    return parsed


def _engine(url: sa.URL, *, migrating: bool = False) -> Engine:
    options: dict[str, Any] = {"json_serializer": to_json_text}
    if migrating:
        options |= {"poolclass": sa.NullPool, "execution_options": {"nas_blockout_writes": True}}
    if url.get_backend_name() == "postgresql":
        given = {"connect_timeout": CONNECT_SECONDS, "application_name": "nas_blockout"}
        given["options"] = f"-c lock_timeout={1000 * LOCK_SECONDS}"
        arguments = {key: value for key, value in given.items() if key not in url.query}
        return sa.create_engine(url, connect_args=arguments, pool_pre_ping=not migrating, **options)
    engine = sa.create_engine(url, connect_args={"timeout": LOCK_SECONDS}, **options)
    sa.event.listen(engine, "connect", lambda connection, _: _prepare_sqlite(connection, migrating=migrating))
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, *, migrating: bool) -> None:
    connection.isolation_level = None  # Python is not to begin transactions of its own
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA foreign_keys={'OFF' if migrating else 'ON'}")  # a migrated table is dropped and renamed
    if migrating:
        _use_wal(connection)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("nas_blockout_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file, once and for all, to a log ahead of writing; SQLite does not wait for this lock itself."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
