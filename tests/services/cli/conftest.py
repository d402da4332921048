"""An installation with nothing in it, and the command line that works on it."""

from pathlib import Path

import pytest

from tests.services.program import Call, here


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the home of all commands of the test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(folder))
    monkeypatch.setenv("NAS_BLOCKOUT_TRACKING_URI", "none")
    monkeypatch.setenv("COLUMNS", "250")  # no table is wrapped
    return folder


@pytest.fixture
def call(home: Path) -> Call:
    """Calls the program as its script does, in this process."""
    return here
