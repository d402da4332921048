"""How the store's database came to its present shape: one file a step in ``versions/``, run by alembic.

To change the shape: change `services.store.tables`, copy the newest file in ``versions/`` to the next number, write its
``upgrade`` and ``downgrade``, and name it in `HEAD`. The tests in ``test_store_database.py`` print what still differs.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
VERSION_TABLE = "nas_blockout_schema"

_one_at_a_time = threading.Lock()  # alembic keeps the migration that runs in a global


def versions() -> tuple[str, ...]:
    """Return all versions of the tables, the oldest first."""
    return tuple(path.stem[:4] for path in sorted((Path(__file__).parent / "versions").glob("[0-9]*.py")))


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database of a connection to a newer revision, inside its transaction."""
    from alembic import command

    with _one_at_a_time:
        command.upgrade(_configuration(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Bring the database of a connection to an older revision, inside its transaction; ``base`` removes everything."""
    from alembic import command

    with _one_at_a_time:
        command.downgrade(_configuration(connection), revision)


def _configuration(connection: Connection) -> "Config":
    from alembic.config import Config  # alembic is slow to import, and most openings find nothing to do

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
