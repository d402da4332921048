"""A study of a test's own in a store, beside an MLflow database that all tests of a file share."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.store import Store
from tests.services.tracking.example import filled


@pytest.fixture
def uri(mlflow_uri: str) -> str:
    return mlflow_uri


@pytest.fixture
def name() -> str:
    """A study of this test alone, so that all may share the database."""
    return f"s{uuid.uuid4().hex[:10]}"


@pytest.fixture
def store(tmp_path: Path, name: str) -> Iterator[Store]:
    """A store with a study of four trials: complete, failed, pruned, running."""
    with filled(tmp_path / "store.db", name) as opened:
        yield opened
