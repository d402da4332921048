"""The schema version and the identity of a store: read them, migrate up to this release, or down for an older one."""

import sqlalchemy as sa

from services import migrations
from services.store import tables
from services.store.database import Database, parse
from services.store.errors import StoreError


def current(url: str) -> str | None:
    """Return the schema version of the store at a URL, or None for an empty database; changes nothing.

    Raises:
        StoreUnreachable: The server does not answer.
        StoreError: The URL is invalid, or the database is not a store.
    """
    database = Database(parse(url))  # not `Database.open`, which would migrate
    try:
        return database.version()
    finally:
        database.close()


def identity(url: str) -> str | None:
    """Return the identity of the store at a URL, or None for an empty or older database; changes nothing.

    Raises:
        StoreUnreachable: The server does not answer.
        StoreError: The URL is invalid, or the database is not a store.
    """
    database = Database(parse(url))
    try:
        if database.version() is None:
            return None
        with database.reading() as connection:
            if not sa.inspect(connection).has_table(tables.identity.name):
                return None
            return connection.scalars(sa.select(tables.identity.c.uuid)).one_or_none()
    finally:
        database.close()


def upgrade(url: str) -> str:
    """Migrate the store at a URL to the schema version of this release, and return that version; keeps all data.

    Raises:
        StoreUnreachable: The server does not answer.
        StoreError: The URL is invalid, the database is not a store or was written by a newer version, or a driver is
            running one of its studies.
    """
    Database.open(url).close()
    return migrations.HEAD


def downgrade(url: str, version: str) -> None:
    """Migrate the store at a URL down to an older schema version.

    Tables and columns that the older version does not have are dropped with their data. Study documents keep the names
    of the newest version, which older releases may not read: to go back for good, restore a backup.

    Args:
        url: URL of the store.
        version: Target version, such as ``0001``.

    Raises:
        StoreUnreachable: The server does not answer.
        StoreError: The version does not exist, the store is already older, or a driver is running one of its studies.
    """
    known = migrations.versions()  # numbered with leading zeros, so that they compare as strings
    if version not in known:
        raise StoreError(f"schema version must be one of {', '.join(known)}, got {version!r}")
    database = Database(parse(url))
    try:
        present = database.version()
        if present is None or present < version:
            raise StoreError(
                f"the store {database.url} has schema version {present or 'none'}, which is older than {version}"
            )
        database.migrate_down(version)
    finally:
        database.close()
