"""What tests of the worker stand on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.store import Store


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """An empty store on the cheaper of its databases."""
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened
