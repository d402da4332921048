"""Data of a submitted study: files and plug-ins are refused, unless the operator allows the plug-in."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from services.api.requests.submitted_study import checked
from services.settings import Settings
from services.study_config.errors import StudyError
from tests.services.tiny import TINY

EXAMPLE = Path(__file__).parents[3] / "docs/guides/examples/plugin/src/example_plugin/stripes.py"


def settings(home: Path, **changes: Any) -> Settings:
    return Settings(home=home, store_url=f"sqlite:///{home / 'store.db'}", **changes)


def faults(data: dict[str, Any], given: Settings) -> dict[str, str]:
    """The rules that a study with this data violates, by key."""
    with pytest.raises(StudyError) as caught:
        checked({**TINY, "data": data, "arms": {"a": {}}}, given)
    return {".".join(map(str, each.path)): each.rule for each in caught.value.violations}


@pytest.mark.parametrize("key", ["folder", "table"])
def test_files_of_the_cluster_cannot_be_read(tmp_path: Path, key: str) -> None:
    data = {"name": "table", "table": "/data/labels.csv"} | {key: "/data/x"}
    assert faults(data, settings(tmp_path))[f"data.{key}"].startswith("must be omitted in studies submitted")


def test_a_source_is_imported_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLE, tmp_path / "stripes_of_a_client.py")
    monkeypatch.syspath_prepend(tmp_path)
    name = "stripes_of_a_client:STRIPES"
    refused = faults({"name": name}, settings(tmp_path))
    assert refused == {"data.name": "the operator of this service does not allow this plug-in"}
    assert "stripes_of_a_client" not in sys.modules
    in_file = faults({"name": f"{EXAMPLE}:STRIPES"}, settings(tmp_path, plugins=("*:*",)))
    assert in_file == {"data.name": "a file of yours cannot be run by the service"}
    study = checked({**TINY, "data": {"name": name}, "arms": {"a": {}}}, settings(tmp_path, plugins=(name,)))
    assert study.data.options.to_json() == {"side": 8, "images": 100, "noise": 0.2}


def test_a_loss_is_imported_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLE.with_name("focal_loss.py"), tmp_path / "focal_of_a_client.py")
    monkeypatch.syspath_prepend(tmp_path)
    name = "focal_of_a_client:FOCAL"
    given = {**TINY, "training": {**TINY["training"], "loss": name}, "arms": {"a": {"training": {"loss": name}}}}
    with pytest.raises(StudyError) as caught:
        checked(given, settings(tmp_path))
    rule = "the operator of this service does not allow this plug-in"
    faults = {".".join(map(str, each.path)): each.rule for each in caught.value.violations}
    assert faults == {"training.loss": rule, "arms.a.training.loss": rule}
    assert "focal_of_a_client" not in sys.modules
    study = checked(given, settings(tmp_path, plugins=(name,)))
    assert study.arms["a"].experiment.training.loss_options.to_json() == {"gamma": 2.0}


def test_an_augmentation_is_imported_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLE.with_name("exposure.py"), tmp_path / "exposure_of_a_client.py")
    monkeypatch.syspath_prepend(tmp_path)
    name = "exposure_of_a_client:EXPOSURE"
    refused = faults({**TINY["data"], "augment": name}, settings(tmp_path))
    assert refused == {"data.augment": "the operator of this service does not allow this plug-in"}
    assert "exposure_of_a_client" not in sys.modules
    given = {**TINY, "data": {**TINY["data"], "augment": name}, "arms": {"a": {}}}
    assert checked(given, settings(tmp_path, plugins=(name,))).data.augment_options.to_json() == {"stops": 0.5}
