"""A study file with a network from a factory: paths, errors with their lines, what is told, and hashes."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.data import load
from services.study_config.errors import StudyError
from services.study_config.overrides import read_resolved
from services.study_config.resolution import resolve_document, study_of
from services.study_config.resolved_study import parse_resolved
from services.study_config.schema import json_schema
from services.study_config.validation import cautions, check_against_data
from tests.services.tiny import TINY

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"
FACTORY = f"{NETWORKS}:thousand"


def study(backbone: dict[str, Any], arms: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {**TINY, "backbone": backbone, "arms": arms or {"plain": {}}, **changes}


def module(**settings: Any) -> dict[str, Any]:
    return {"name": "module", "factory": FACTORY, **settings}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a study file whose network is in the file beside it."""
    (tmp_path / "net.py").write_text(NETWORKS.read_text())
    return tmp_path


def written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def test_files_are_relative_to_the_study_file_wherever_it_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"plain": {}, "wide": {"backbone": {"arguments": {"width": 9}}}, "other": {"backbone": {"weights": "w.pt"}}}
    path = written(folder, study({"name": "module", "factory": "net.py:Small"}, arms))
    monkeypatch.chdir("/")
    with pytest.raises(StudyError) as caught:
        read_resolved(str(path))
    assert (
        str(caught.value)
        == f"{path}:{lines(path)['weights']}: arms.other.backbone.weights: there is no file {folder}/w.pt; "
        "give the path of one, or run first the study that exports it"
    )
    resolved, _ = read_resolved(str(path), ["arms.other.backbone.weights=null"])
    settings = {name: arm.experiment.backbone for name, arm in resolved.arms.items()}
    assert settings["wide"] == ModuleSettings(f"{folder}/net.py:Small", {"width": 9})
    assert settings["plain"] == settings["other"] == ModuleSettings(f"{folder}/net.py:Small")
    monkeypatch.chdir(folder.parent)
    changed, _ = read_resolved(str(path), ["arms={}", f"backbone.factory={folder.name}/net.py:thousand", "arms.a={}"])
    assert changed.arms["a"].experiment.backbone.factory == f"{folder}/net.py:thousand"


def lines(path: Path) -> dict[str, int]:
    found = enumerate(path.read_text().splitlines(), 1)
    return {line.partition(":")[0].strip("- "): number for number, line in found}


def test_every_fault_has_its_line_and_its_key(folder: Path) -> None:
    arms = {
        "typo": {"backbone": {"arguments": {"widht": 2}}},
        "method": {"method": {"name": "dropblock"}},
        "date": {"backbone": {"arguments": {"sizes": [1, 2], "when": [{"day": "DAY"}]}}},
        "form": {"backbone": {"factory": "net"}},
        "fits": {"backbone": {"factory": "net.py:Small"}},
    }
    path = written(folder, study({"name": "module", "factory": "net.py:thousand"}, arms))
    path.write_text(path.read_text().replace("DAY", "2026-01-01").replace("thousand", "Small"))
    with pytest.raises(StudyError) as caught:
        read_resolved(str(path))
    numbers = lines(path)
    assert [(each.line, str(each)) for each in caught.value.violations] == [
        (
            numbers["widht"] - 1,
            f"arms.typo.backbone.arguments: {folder}/net.py:Small takes no argument 'widht'; did you mean 'width'?",
        ),
        (
            numbers["method"] + 1,
            "arms.method.method.name: dropblock stands between the stages of a network, which the backbone module does "
            "not know, got dropblock; use none, blockout, or dropout or dropconnect with the placement classifier",
        ),
        (
            numbers["day"],
            "arms.date.backbone.arguments.when.0.day: must be a text, a finite number, true, false, null, or a list or "
            "mapping of these, got datetime.date(2026, 1, 1)",
        ),
        (
            numbers["form"] + 2,
            "arms.form.backbone.factory: must be 'package.module:name' or 'path/to/file.py:name', got 'net'",
        ),
    ]


@pytest.mark.parametrize(
    ("backbone", "key", "words"),
    [
        ({"name": "module"}, "backbone.factory", "this key is required"),
        ({"name": "module", "factory": "net.py:net"}, "backbone.factory", "must be an absolute path if the study does"),
        (module(weights="w.pt"), "backbone.weights", "must be an absolute path if the study does not come from a file"),
        (module(arguments=[1]), "backbone.arguments", "must be a mapping of keys"),
        (module(hidden=[3]), "backbone.hidden", "no such key"),
        (module(classes_layer=3), "backbone.classes_layer", "must be a valid string"),
        (module(weights="/w.bin"), "backbone.weights", "must be a file whose name ends in .safetensors, .pth or .pt"),
    ],
)
def test_settings_are_checked_without_importing_anything(backbone: dict[str, Any], key: str, words: str) -> None:
    before = set(sys.modules)
    with pytest.raises(StudyError) as caught:
        resolve_document(study(backbone), source="s")
    (found,) = caught.value.violations
    assert (found.key, found.rule[: len(words)]) == (key, words[: len(found.rule)])
    assert not any("factory_" in name for name in set(sys.modules) - before)


def test_resolving_and_reading_a_stored_study_import_nothing() -> None:
    arms = {
        "plain": {},
        "blockout": {"method": {"name": "blockout", "masked": ["fc"]}},
        "dropout": {"method": {"name": "dropout", "placement": "classifier"}},
    }
    document = study(
        {"name": "module", "factory": "no_such_package:net", "arguments": {"b": [1.5], "a": {"c": None}}}, arms
    )
    resolved = resolve_document(document, source="s")
    stored = json.loads(json.dumps(resolved.to_json()))
    assert stored["arms"]["plain"]["experiment"]["backbone"] == {
        "name": "module",
        "factory": "no_such_package:net",
        "arguments": {"b": [1.5], "a": {"c": None}},
        "weights": None,
        "classes_layer": None,
    }
    assert parse_resolved(stored).hash == resolved.hash == study_of(stored, source="s").hash


def test_the_hash_follows_the_settings_and_not_their_order() -> None:
    def hash_of(**arguments: Any) -> str:
        return resolve_document(study(module(arguments=arguments)), source="s").hash

    assert hash_of(a=1, b=2) == hash_of(b=2, a=1)
    assert len({hash_of(), hash_of(a=1), hash_of(a=2), hash_of(a=True), hash_of(a=1.0)}) == 5


def test_what_was_changed_in_the_network_is_told_by_arm() -> None:
    arms = {"plain": {}, "fits": {"backbone": {"factory": f"{NETWORKS}:Small"}}}
    resolved = resolve_document(study(module(), arms), source="s")
    splits = load(resolved.data)
    check_against_data(resolved, splits, source="s")
    assert list(cautions(resolved, splits)) == [
        "arm 'plain': the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes"
    ]


def test_the_schema_requires_the_factory_but_not_in_the_changes_of_an_arm() -> None:
    arms = {
        "wide": {"backbone": {"arguments": {"width": 9}}},
        "named": {"backbone": {"name": "module", "weights": "a.pt"}},
    }
    jsonschema.validate(study(module(), arms), json_schema())
    for backbone in ({"name": "module"}, module(factory="net"), module(arguments=[1]), module(weights="w.bin")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(study(backbone), json_schema())
