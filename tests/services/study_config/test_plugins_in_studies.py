"""A study with plug-ins: errors with their lines, what is recorded, what must stay the same, and the JSON Schema."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nas_blockout.plugins.choices import allowing
from services.execution.extension import additions
from services.files.network_files import files_of
from services.store import StudyConflict
from services.study_config.errors import StudyError
from services.study_config.overrides import read_resolved
from services.study_config.resolution import resolve_document, stored_study
from services.study_config.schema import json_schema
from services.study_config.settings_models import usable_plugins
from tests.plugin_packages import NETS, write_package
from tests.services.tiny import TINY

BACKBONES = "nas_blockout.backbones"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the search path of modules."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def with_backbone(backbone: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**TINY, "backbone": backbone, "arms": {"plain": {}}, **changes}


def test_every_fault_of_a_plugin_has_its_line(site: Path, tmp_path: Path) -> None:
    write_package(site, "told_nets", {BACKBONES: {"told_net": "told_nets.nets:Net"}})
    text = yaml.safe_dump(TINY | {"backbone": {"name": "told_net"}, "arms": {}}, sort_keys=False).replace(
        "arms: {}", ""
    )
    path = written(
        tmp_path,
        f"{text.rstrip()}\narms:\n"
        "  near: {backbone: {widht: 9}}\n"
        "  range: {backbone: {width: 900}}\n"
        "  name: {backbone: {name: told_nte}}\n"
        "  space: {space: [nowhere.spaces:one]}\n",
    )
    with pytest.raises(StudyError) as caught:
        read_resolved(str(path))
    first = text.rstrip().count("\n") + 3
    expected = [
        f"{path}:{first}: arms.near.backbone.widht: no such key; did you mean 'width'?",
        f"{path}:{first + 1}: arms.range.backbone.width: must be less than or equal to 64, got 900",
        f"{path}:{first + 2}: arms.name.backbone.name: no such backbone, got 'told_nte'; did you mean 'told_net'?",
        f"{path}:{first + 3}: arms.space.space: cannot import nowhere.spaces: ModuleNotFoundError: No module named "
        "'nowhere'",
    ]
    assert str(caught.value).splitlines()[:4] == expected


def test_a_study_records_distribution_and_version_and_a_missing_one_is_one_sentence(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(site, "kept_nets", {BACKBONES: {"kept_net": "kept_nets.nets:Net"}})
    study = resolve_document(with_backbone({"name": "kept_net", "width": 3}), source="x")
    document = study.to_json()
    record = {"place": "kept_nets.nets:Net", "distribution": "kept-nets", "version": "1.0"}
    assert document["plugins"] == {"backbones": {"kept_net": record}}
    assert stored_study(document, source="x").to_json() == document
    assert "plugins" not in resolve_document(TINY, source="x").to_json()
    (site / "kept_nets-1.0.dist-info" / "entry_points.txt").unlink()
    with pytest.raises(StudyError) as caught:
        stored_study(document, source="x")
    assert str(caught.value) == (
        "study 'tiny' needs the backbone 'kept_net' (kept_nets.nets:Net) of a plug-in that is not installed here: "
        "install kept-nets==1.0"
    )


def test_another_version_of_a_plugin_is_no_extension_and_further_plugins_are(site: Path) -> None:
    space = "\ndef same(trial, context):\n    return context.experiment\n"
    write_package(site, "grown_nets", {BACKBONES: {"grown_net": "grown_nets.nets:Net"}}, NETS + space)
    before = resolve_document(with_backbone({"name": "grown_net"}), source="x")
    arms = {"plain": {}, "more": {"backbone": {"name": "convnet"}, "space": ["grown_nets.nets:same"]}}
    after = resolve_document(with_backbone({"name": "grown_net"}, arms=arms), source="x")
    assert additions(before, after) == ["arm more"]
    (site / "grown_nets-1.0.dist-info" / "METADATA").write_text("Name: grown-nets\nVersion: 1.1\n")
    changed = resolve_document(with_backbone({"name": "grown_net"}), source="x")
    assert changed.hash != before.hash
    with pytest.raises(
        StudyConflict, match=r'another plugins\.backbones\.grown_net\.version: "1\.0" there, "1\.1" here'
    ):
        additions(before, changed)


def test_a_plugin_in_a_file_is_relative_to_the_study_and_its_content_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NETS)
    (tmp_path / "spaces.py").write_text("def same(trial, context):\n    return context.experiment\n")
    arms = {"plain": {"space": ["spaces.py:same"]}}
    path = written(tmp_path, yaml.safe_dump(with_backbone({"name": "mine.py:Net", "width": 3}, arms=arms)))
    study, _ = read_resolved(str(path))
    arm = study.arms["plain"].to_json()
    assert arm["experiment"]["backbone"] == {"name": f"{tmp_path}/mine.py:Net", "width": 3}
    assert arm["space"] == [f"{tmp_path}/spaces.py:same"]
    assert set(files_of(study)) == {f"{tmp_path}/mine.py", f"{tmp_path}/spaces.py"}
    with pytest.raises(StudyError, match=r"backbone\.name: must be an absolute path if the study does not come from"):
        resolve_document(with_backbone({"name": "mine.py:Net"}), source="x")


def test_the_json_schema_has_installed_plugins_where_they_are_asked_for(site: Path) -> None:
    trace = write_package(site, "shown_nets", {BACKBONES: {"shown_net": "shown_nets.nets:Net"}})
    write_package(site, "dead_nets", {BACKBONES: {"dead_net": "dead_nets.nets:Net"}}, "1 / 0\n")
    document = with_backbone({"name": "shown_net", "width": 3})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
    assert not trace.exists()
    with allowing(lambda origin: False):
        assert usable_plugins()[0] == []
    assert not trace.exists()
    usable, faults = usable_plugins()
    assert ("backbone", "shown_net") in usable
    assert any("dead_net of dead-nets 1.0" in fault and "ZeroDivisionError" in fault for fault in faults)
    schema = json_schema([("backbone", "shown_net")])
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(with_backbone({"name": "shown_net", "width": 0}), schema)


def test_a_source_of_data_is_resolved_recorded_and_its_faults_have_their_place(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "docs/guides/examples/plugin/src/example_plugin/stripes.py"
    (tmp_path / "stripes.py").write_text(example.read_text())
    data = {"name": "stripes.py:STRIPES", "options": {"images": 10}}
    path = written(tmp_path, yaml.safe_dump({**TINY, "data": data, "arms": {"plain": {}}}))
    study, _ = read_resolved(str(path))
    place = f"{tmp_path / 'stripes.py'}:STRIPES"
    document = study.to_json()
    assert document["data"]["name"] == place
    assert document["data"]["options"] == {"side": 8, "images": 10, "noise": 0.2}
    assert document["plugins"]["sources"][place]["place"] == place
    assert stored_study(document, source="x").hash == study.hash
    assert str(tmp_path / "stripes.py") in files_of(study)
    for options, fault in (({"side": 1}, "side must be in"), ({"sied": 8}, "no such setting; did you mean 'side'")):
        text = yaml.safe_dump({**TINY, "data": {**data, "options": options}, "arms": {"plain": {}}})
        with pytest.raises(StudyError, match=rf"data\.options.*{fault}"):
            read_resolved(str(written(tmp_path, text)))
