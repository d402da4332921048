"""MLflow's database after its folder was moved: it has recorded absolute places of all files, and still has the old.

MLflow has no call to change them. Only SQLite databases that stand beside their files are changed, and in them only
what lay beside the database before.
"""

import sqlite3
from contextlib import closing

from services.settings import sqlite_path

FOLDER = "mlartifacts"
_WAIT_SECONDS = 30.0
_PLACES = (  # every column in which MLflow records where files lie
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def root_of(uri: str) -> str | None:
    """Return the URL of the folder for the files of all experiments, or None if the server decides that."""
    if not uri.startswith("sqlite:///"):
        return None
    return (sqlite_path(uri).parent / FOLDER).absolute().as_uri()


def relocate(uri: str, recorded: str) -> str | None:
    """Change the recorded places of files that have moved with their database; return the old folder of all files.

    Args:
        uri: Tracking URI.
        recorded: Where MLflow says that the files of an experiment lie.

    Returns:
        None if nothing has moved, or the places were not given by this program.
    """
    root, old = root_of(uri), recorded.rpartition("/")[0]
    if root is None or old == root or not (old.startswith("file:") and old.endswith(f"/{FOLDER}")):
        return None
    with closing(sqlite3.connect(sqlite_path(uri), timeout=_WAIT_SECONDS)) as database, database:
        for table, column in _PLACES:
            columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            if column in columns:  # not every release of MLflow has all of them
                change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608  # names are ours
                database.execute(change, (root, len(old) + 1, len(old) + 1, f"{old}/"))
    return old
