"""A queued study names a plug-in that its operator has since disallowed: it fails with the reason, unimported."""

import sys
from pathlib import Path

import pytest

from nas_blockout.plugins.choices import Allows
from services.store import Store
from tests.plugin_packages import write_package
from tests.services.dispatch.grid import Grid, enqueue, state, study_named, worker


@pytest.fixture
def queued(sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Path]:
    """A store where study one has a plug-in and two has none, and the file that an import of the plug-in leaves."""
    monkeypatch.syspath_prepend(tmp_path)
    package = f"queued_nets_{tmp_path.name.replace('-', '_')}"
    trace = write_package(tmp_path, package, {"nas_blockout.backbones": {"queued_net": f"{package}.nets:Net"}})
    study = study_named("one", backbone={"name": "queued_net"})  # the API has imported it, in a process of its own
    sqlite_store.enqueue("one", document=study.to_json(), config_hash=study.hash, owner="me")
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    trace.unlink()
    enqueue(sqlite_store, "two")
    return sqlite_store, trace


def submitted(store: Store, **allows: Allows) -> list[str]:
    grid = Grid(store)
    worker(store, grid, **allows).round()
    return [grid.studies[job].name for job in grid.submitted]


@pytest.mark.parametrize("allows", [{}, {"allows": lambda origin: origin.name == "another_net"}], ids=["none", "other"])
def test_a_plugin_that_is_no_longer_allowed_fails_its_study_alone(queued, allows) -> None:
    store, trace = queued
    assert submitted(store, **allows) == ["two"]
    now, message = state(store, "one")
    assert now == "failed"
    assert message.startswith("study 'one' needs the backbone 'queued_net': the plug-in queued_net of ")
    assert message.endswith(
        "is not allowed here, and was not imported; NAS_BLOCKOUT_PLUGINS of the worker must allow it: ask the operator,"
        " then `resume` the study"
    )
    assert not trace.exists()


def test_a_plugin_that_is_allowed_is_imported_and_its_study_runs(queued) -> None:
    store, trace = queued
    assert submitted(store, allows=lambda origin: origin.name == "queued_net") == ["one", "two"]
    assert trace.exists()
