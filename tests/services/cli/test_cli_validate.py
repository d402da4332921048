"""Every command that takes a study reports all of its errors in one round."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.program import here

STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "broken",
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 2, "batch_size": 16},
    "budget": {"sample_passes": 401},  # one less than a search trial and two retrainings need
    "retrain": {"seeds": [0, 1]},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the home of all commands."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(folder))
    monkeypatch.setenv("NAS_BLOCKOUT_TRACKING_URI", "none")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("validate",),
        ("validate", "--upgrade"),
        ("run",),
        ("estimate", "--quick"),
        ("submit", "--address", "http://127.0.0.1:1"),
    ],
)
def test_every_command_reports_errors_of_all_kinds_in_one_round(home: Path, command: tuple[str, ...]) -> None:
    arms = {
        "key": {"training": {"momentum": 2}},
        "between": {"training": {"warmup_epochs": 7}},
        "network": {"method": {"name": "blockout", "clusters": 9}},
        "extends": {"extends": "network", "method": {"cluster": 1}},
    }
    path = home.parent / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "arms": arms}))
    ended = here(command[0], path, *command[1:])
    assert (ended.code, ended.out, [*home.iterdir()]) == (2, "", [])
    *errors, note = ended.err.splitlines()
    keys = [text.split(": ")[2] for text in errors]
    assert sorted(keys) == [
        "arms.between.training.warmup_epochs",
        "arms.extends.method.cluster",
        "arms.key.training.momentum",
        "arms.network.method.clusters",
        "budget.sample_passes",
    ]
    lines = [int(text.split(":")[2]) for text in errors]
    assert lines == sorted(lines)
    assert note == "note: further checks follow once these errors are fixed: of the arm extends"


def test_a_study_whose_network_cannot_be_built_is_not_upgraded(home: Path) -> None:
    path = home.parent / "study.yaml"
    arms = {"blockout": {"method": {"name": "blockout", "clusters": 9}}}
    text = yaml.safe_dump({**STUDY, "schema_version": 1, "budget": {"trainings": 9}, "arms": arms})
    path.write_text(text)
    ended = here("validate", path, "--upgrade", "--write")
    assert (ended.code, ended.out, path.read_text()) == (2, "", text)
    assert "arms.blockout.method.clusters: must lie in 1..nodes, got 9 for nodes=" in ended.err
    assert ended.err.count("\n") == 1
