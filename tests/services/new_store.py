"""A store with nothing in it: its eight migrations run once a process, and every test opens a copy of the file.

How a store is made and migrated is asked in ``store/test_store_database.py``, of databases that are really empty.
"""

import tempfile
from functools import cache
from pathlib import Path

from services.store import Store


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        Store.open(f"sqlite:///{path}").close()  # the last connection writes its log back into the file
        return path.read_bytes()


def new_store(path: Path) -> Store:
    """Open a new SQLite store at a path; all of them have the same identity, as copies of a store have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(_migrated())
    return Store.open(f"sqlite:///{path}")
