"""Migrations of the store's database: one file per schema version in ``versions/``, run by alembic.

To change the schema: change `services.store.tables`, copy the newest file in ``versions/`` to the next number, write
its ``upgrade`` and ``downgrade``, and set `HEAD`. The tests in ``test_store_database.py`` print what still differs.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0010"
VERSION_TABLE = "nas_blockout_schema"

_lock = threading.Lock()  # alembic keeps the context of the running migration in a global


def versions() -> tuple[str, ...]:
    """Return all schema versions, oldest first."""
    return tuple(path.stem[:4] for path in sorted((Path(__file__).parent / "versions").glob("[0-9]*.py")))


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Migrate a database up to a revision, inside the connection's transaction."""
    from alembic import command

    with _lock:
        command.upgrade(_configuration(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Migrate a database down to a revision, inside the connection's transaction; ``base`` drops all tables."""
    from alembic import command

    with _lock:
        command.downgrade(_configuration(connection), revision)


def _configuration(connection: Connection) -> "Config":
    from alembic.config import Config  # imported late: it is slow, and most stores need no migration

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
