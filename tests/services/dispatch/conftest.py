"""What tests of the worker stand on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.store import Store
from tests.services.new_store import new_store


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """An empty store on the cheaper of its databases."""
    with new_store(tmp_path / "store.db") as opened:
        yield opened
