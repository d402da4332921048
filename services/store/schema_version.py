"""The version of a store's tables: asked for, brought up, and taken down again before an older release is used."""

from services import migrations
from services.store.database import Database, parse
from services.store.errors import StoreError


def current(url: str) -> str | None:
    """Return the version of the tables at a URL, or None of an empty database; nothing is changed.

    Raises:
        StoreUnreachable: Nobody answers.
        StoreError: The URL cannot be used, or what lies there is no store.
    """
    database = Database(parse(url))
    try:
        return database.version()
    finally:
        database.close()


def upgrade(url: str) -> str:
    """Bring the tables at a URL to the version that this release uses, and return it; nothing is lost.

    Raises:
        StoreUnreachable: Nobody answers.
        StoreError: The URL cannot be used, or what lies there is no store, or is that of a newer version.
    """
    Database.open(url).close()
    return migrations.HEAD


def downgrade(url: str, version: str) -> None:
    """Take the tables at a URL down to an older version; what only newer ones hold is lost.

    Args:
        url: Of the store.
        version: Such as ``0001``.

    Raises:
        StoreUnreachable: Nobody answers.
        StoreError: There is no such version, or the store is older already.
    """
    known = migrations.versions()
    if version not in known:
        raise StoreError(f"the tables have the versions {', '.join(known)}, there is no {version!r}")
    database = Database(parse(url))
    try:
        found = database.version()
        if found is None or found < version:
            raise StoreError(f"the store {database.url} has version {found or 'none'}, which is older than {version}")
        database.migrate_down(version)
    finally:
        database.close()
