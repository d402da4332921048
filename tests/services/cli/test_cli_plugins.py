"""`nas-blockout plugins`: what is installed, without an import, and the settings of one."""

from pathlib import Path

import pytest

from tests.plugin_packages import write_package
from tests.services.program import here

BACKBONES = "nas_blockout.backbones"


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed backbone, which leaves a file behind when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return write_package(tmp_path, "console_nets", {BACKBONES: {"console_net": "console_nets.nets:Net"}})


def test_plugins_are_listed_without_an_import(trace: Path) -> None:
    ended = here("plugins", "--json")
    assert ended.code == 0
    assert {
        "kind": "backbone",
        "name": "console_net",
        "distribution": "console-nets",
        "version": "1.0",
        "place": "console_nets.nets:Net",
    } in ended.json["plugins"]
    assert "console_net" in here("plugins", "backbone").out
    assert "console_net" not in here("plugins", "method").out
    assert not trace.exists()


def test_settings_of_one_are_shown_like_those_of_built_in_ones(trace: Path) -> None:
    ended = here("plugins", "backbone", "console_net", "--json")
    assert ended.json["settings"] == [
        {"setting": "width", "type": "int in [1, 64]", "default": "8", "what it is": "Nodes of the hidden layer."}
    ]
    assert ended.json["from"] == "console_net of console-nets 1.0 (console_nets.nets:Net)"
    built_in = here("plugins", "method", "dropout")
    assert "method dropout, built in: Settings of dropout." in built_in.out
    assert "float in [0, 1)" in built_in.out
    assert "Vary the drop rate" in here("plugins", "space", "regularizers").out


def test_settings_of_a_loss_are_shown(trace: Path) -> None:
    place = f"{Path(__file__).parents[3]}/docs/guides/examples/plugin/src/example_plugin/focal_loss.py:FOCAL"
    shown = here("plugins", "loss", place)
    assert "focal loss: what is right already counts less" in " ".join(shown.out.split())
    assert "float in [0, 10]" in shown.out
    assert "loss cross_entropy, built in: cross-entropy" in here("plugins", "loss", "cross_entropy").out


def test_settings_of_an_augmentation_are_shown(trace: Path) -> None:
    place = f"{Path(__file__).parents[3]}/docs/guides/examples/plugin/src/example_plugin/exposure.py:EXPOSURE"
    shown = here("plugins", "augmentation", place)
    assert "images are made darker or brighter" in " ".join(shown.out.split())
    assert "float in [0, 4]" in shown.out
    assert "augmentation shift-flip, built in" in here("plugins", "augmentation", "shift-flip").out


def test_what_there_is_not_is_told(trace: Path) -> None:
    ended = here("plugins", "backbone", "console_nte")
    assert ended.code == 3
    assert "no such backbone 'console_nte'; did you mean 'console_net'?" in ended.err
    assert (
        "there is no kind of plug-ins 'backbones'; known are backbone, method, space"
        in here("plugins", "backbones").err
    )


def test_settings_of_built_in_searchers_and_pruners_are_shown_too(trace: Path) -> None:
    (setting,) = here("plugins", "searcher", "gp", "--json").json["settings"]
    assert setting["setting"] == "n_startup_trials"
    assert setting["type"] == "int | None in [1, 1000]"
    settings = {each["setting"]: each for each in here("plugins", "pruner", "asha", "--json").json["settings"]}
    assert (settings["reduction_factor"]["type"], settings["reduction_factor"]["default"]) == ("int in [2, 64]", "3")
    assert "no such searcher 'tpa'; did you mean 'tpe'" in here("plugins", "searcher", "tpa").err
