"""A study with plug-ins: errors with their lines, what is recorded, what must stay the same, and the JSON Schema."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nas_blockout.data import dimensions
from nas_blockout.plugins.choices import allowing
from services.execution.extension import additions
from services.files.network_files import files_of
from services.renamed_keys import study_hash
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


def test_the_json_schema_has_settings_of_losses_augmentations_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(__file__).parents[3] / "docs/guides/examples/plugin/src"
    monkeypatch.syspath_prepend(package)
    names = {"loss": "focal_loss:FOCAL", "augmentation": "exposure:EXPOSURE", "source": "stripes:STRIPES"}
    places = {kind: f"example_plugin.{place}" for kind, place in names.items()}
    schema = json_schema(places.items())

    def study(gamma: float = 1, stops: float = 1, side: int = 8) -> dict[str, Any]:
        augment = {"augment": places["augmentation"], "augment_options": {"stops": stops}}
        training = {"epochs": 2, "loss": places["loss"], "loss_options": {"gamma": gamma}}
        source = {"name": places["source"], "options": {"side": side}, **augment}
        return {**TINY, "data": source, "training": training, "arms": {"a": {"training": training}}}

    jsonschema.validate(study(), schema)
    jsonschema.validate({**TINY, "arms": {"a": {}}}, schema)
    for wrong in (study(gamma=-1), study(stops=9), study(side=1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


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


def test_a_loss_is_resolved_recorded_and_its_faults_have_their_place(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "docs/guides/examples/plugin/src/example_plugin/focal_loss.py"
    (tmp_path / "focal.py").write_text(example.read_text())
    training = {**TINY["training"], "loss": "focal.py:FOCAL", "loss_options": {"gamma": 3}}
    arms = {"focal": {}, "plain": {"training": {"loss": "cross_entropy"}}}
    path = written(tmp_path, yaml.safe_dump({**TINY, "training": training, "arms": arms}))
    study, _ = read_resolved(str(path))
    place = f"{tmp_path / 'focal.py'}:FOCAL"
    trained = {name: arm.experiment.training for name, arm in study.arms.items()}
    assert (trained["focal"].loss, trained["focal"].loss_options.to_json()) == (place, {"gamma": 3.0})
    assert (trained["plain"].loss, trained["plain"].loss_options.to_json()) == ("cross_entropy", {})
    document = study.to_json()
    assert document["plugins"] == {"losses": {place: {"place": place, "distribution": None, "version": None}}}
    assert stored_study(document, source="x").hash == study.hash
    assert set(files_of(study)) == {str(tmp_path / "focal.py")}
    for changes, fault in (
        ({"loss_options": {"gamma": -1}}, r"loss_options.*: gamma must be in \[0, 10\], got gamma=-1"),
        ({"loss_options": {"gama": 1}}, "loss_options.*: no such setting; did you mean 'gamma'"),
        ({"loss": "cross_entrop", "loss_options": {}}, "loss: must be one of cross_entropy, .*; did you mean"),
        ({"loss": "focal.py:FOCL"}, "loss: .*focal.py has no 'FOCL'"),
    ):
        text = yaml.safe_dump({**TINY, "training": training | changes, "arms": arms})
        with pytest.raises(StudyError, match=fault) as caught:
            read_resolved(str(written(tmp_path, text)))
        assert len(str(caught.value).splitlines()) == 1, "one fault is told once"
    with pytest.raises(StudyError, match=r"training\.loss: must be an absolute path if the study does not come from"):
        resolve_document({**TINY, "training": training, "arms": arms}, source="x")


def test_an_augmentation_is_resolved_recorded_and_its_faults_have_their_place(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "docs/guides/examples/plugin/src/example_plugin/exposure.py"
    (tmp_path / "light.py").write_text(example.read_text())
    data = {**TINY["data"], "augment": "light.py:EXPOSURE", "augment_options": {"stops": 1}}
    path = written(tmp_path, yaml.safe_dump({**TINY, "data": data, "arms": {"plain": {}}}))
    study, _ = read_resolved(str(path))
    place = f"{tmp_path / 'light.py'}:EXPOSURE"
    assert (study.data.augment, study.data.augment_options.to_json()) == (place, {"stops": 1.0})
    document = study.to_json()
    assert document["plugins"] == {"augmentations": {place: {"place": place, "distribution": None, "version": None}}}
    assert stored_study(document, source="x").hash == study.hash
    assert set(files_of(study)) == {str(tmp_path / "light.py")}
    for changes, fault in (
        ({"augment_options": {"stops": -1}}, r"augment_options.*: stops must be in \[0, 4\], got stops=-1"),
        ({"augment_options": {"stop": 1}}, "augment_options.*: no such setting; did you mean 'stops'"),
        (
            {"augment": "shift-flp", "augment_options": {}},
            "augment: must be one of none, .*; did you mean 'shift-flip'",
        ),
        ({"augment": "light.py:EXPOSED"}, "augment: .*light.py has no 'EXPOSED'"),
        ({"augment": "sparkle", "augment_options": {}}, "augment: must be one of none, .*, got 'sparkle'"),
    ):
        text = yaml.safe_dump({**TINY, "data": data | changes, "arms": {"plain": {}}})
        with pytest.raises(StudyError, match=fault) as caught:
            read_resolved(str(written(tmp_path, text)))
        first, *rest = str(caught.value).splitlines()
        assert not [line for line in rest if "further checks" not in line], "one fault is told once"
        assert first.count(" shift-flip-trivialaugment-cutout") <= 1, "names are told once"
    with pytest.raises(StudyError, match=r"data\.augment: must be an absolute path if the study does not come from"):
        resolve_document({**TINY, "data": data, "arms": {"plain": {}}}, source="x")


def test_a_study_without_a_loss_or_an_augmentation_of_a_plugin_keeps_its_hash() -> None:
    study = resolve_document(TINY, source="x")
    document = study.to_json()
    del document["data"]["augment_options"]
    for arm in document["arms"].values():
        del arm["experiment"]["data"]["augment_options"]
        del arm["experiment"]["training"]["loss"], arm["experiment"]["training"]["loss_options"]
    assert study_hash(document) == study.hash
    assert stored_study(document, source="x").hash == study.hash


SEARCH = '''
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from optuna.samplers import RandomSampler
from nas_blockout.settings_fields import Range, check
from services.search.asha import Rungs
from services.search_plugins import SearchAlgorithm, StoppingRule

Path(__file__).with_name("imported").touch()

@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a plug-in.

    Args:
        step: How far it goes.
        least: Must be below the step.
    """

    step: Annotated[float, Range(gt=0, le=1)] = 0.5
    least: Annotated[float, Range(ge=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        check(self)
        if self.least >= self.step:
            raise ValueError(f"least must be below step, got least={self.least} for step={self.step}")

FOUND = SearchAlgorithm(Settings, lambda settings, seed: RandomSampler(seed), "a way to search")
PLAIN = SearchAlgorithm(
    Settings, lambda settings, seed: RandomSampler(seed), constraints=False, conditional_spaces=False
)
STOPPED = StoppingRule(Settings, lambda settings, epochs: Rungs([1], 2))
BROKEN = SearchAlgorithm(Settings, lambda settings, seed: RandomSampler(sed=seed))

def forked(trial, context):
    if trial.suggest_categorical("fork", [True, False]):
        trial.suggest_float("left", 0, 1)
    return context.experiment
'''
OF_SEARCH = {
    "nas_blockout.searchers": {"told_search": "told_search.nets:FOUND"},
    "nas_blockout.pruners": {"told_stop": "told_search.nets:STOPPED"},
}


def searching(arm: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**TINY, "training": {"epochs": 3}, "budget": {"trainings": 9}, "arms": {"a": arm}, **changes}


def faults_of(arm: dict[str, Any], **changes: Any) -> dict[str, str]:
    """The rules that a study with this arm violates, by key."""
    with pytest.raises(StudyError) as caught:
        resolve_document(searching(arm, **changes), source="x")
    return {".".join(map(str, each.path)): each.rule for each in caught.value.violations}


def test_a_searcher_and_a_pruner_are_resolved_recorded_and_hashed(site: Path) -> None:
    write_package(site, "told_search", OF_SEARCH, SEARCH)
    arm = {"space": ["training"], "searcher": {"name": "told_search", "step": 0.4}, "pruner": {"name": "told_stop"}}
    study = resolve_document(searching(arm), source="x")
    document = study.to_json()
    resolved = document["arms"]["a"]
    assert (resolved["searcher"], resolved["searcher_settings"]) == ("told_search", {"step": 0.4, "least": 0.1})
    assert resolved["pruner"] == {"name": "told_stop", "step": 0.5, "least": 0.1, "max_epochs": 3}
    record = {"distribution": "told-search", "version": "1.0"}
    assert document["plugins"] == {
        "pruners": {"told_stop": {"place": "told_search.nets:STOPPED", **record}},
        "searchers": {"told_search": {"place": "told_search.nets:FOUND", **record}},
    }
    assert stored_study(document, source="x").to_json() == document
    by_place = {**arm, "searcher": {"name": "told_search.nets:FOUND", "step": 0.4}}
    assert resolve_document(searching(by_place), source="x").hash == study.hash
    (site / "told_search-1.0.dist-info" / "METADATA").write_text("Name: told-search\nVersion: 1.1\n")
    assert resolve_document(searching(arm), source="x").hash != study.hash
    (site / "told_search-1.0.dist-info" / "entry_points.txt").unlink()
    with pytest.raises(StudyError, match=r"study 'tiny' needs the pruner 'told_stop' .* install told-search==1\.0"):
        stored_study(document, source="x")


@pytest.mark.parametrize(
    ("searcher", "key", "rule"),
    [
        ("told_serch", "searcher", "must be 'random', .* or 'told_search'"),
        ({"name": "told_serch"}, "searcher.name", "must be 'random'"),
        ({"name": "told_search", "stpe": 0.3}, "searcher.stpe", "no such key"),
        ({"name": "told_search", "step": 3.0}, "searcher.step", "less than or equal to 1"),
        ({"name": "told_search", "step": 0.05}, "searcher", "least must be below step"),
        ("told_search.nets:STOPPED", "searcher", "it must be a services.search_plugins.SearchAlgorithm"),
        ("told_search.nets:GONE", "searcher", "told_search.nets has no 'GONE'"),
        ("told_search.nets:BROKEN", "searcher", "cannot be used: TypeError at .*nets.py"),
        ("nowhere.search:ONE", "searcher", "cannot import nowhere.search"),
        ("mine.py:ONE", "searcher", "must be an absolute path"),
    ],
)
def test_faults_of_a_searcher_have_their_place(site: Path, searcher: Any, key: str, rule: str) -> None:
    write_package(site, "told_search", OF_SEARCH, SEARCH)
    found = faults_of({"space": ["training"], "searcher": searcher})
    (place,) = found
    assert place == f"arms.a.{key}"
    assert re.search(rule, found[place]), found


def test_faults_of_a_pruner_have_their_place(site: Path) -> None:
    write_package(site, "told_search", OF_SEARCH, SEARCH)
    assert list(faults_of({"pruner": {"name": "told_stop", "step": 3.0}})) == ["arms.a.pruner.step"]
    assert list(faults_of({"pruner": {"name": "told_stpo", "step": 0.3}})) == ["arms.a.pruner.name"]
    found = faults_of({"pruner": {"name": "told_search.nets:FOUND"}})
    assert "it must be a services.search_plugins.StoppingRule" in found["arms.a.pruner.name"]
    beside = faults_of({"searcher": "told_search", "n_startup_trials": 3})
    assert (
        "belongs to searcher tpe or gp or cmaes, this arm has searcher told_search" in beside["arms.a.n_startup_trials"]
    )


def test_what_a_searcher_declares_that_it_cannot_is_refused(site: Path) -> None:
    write_package(site, "told_search", OF_SEARCH, SEARCH)
    arm = {"space": ["training"], "searcher": "told_search.nets:PLAIN"}
    assert resolve_document(searching(arm), source="x").arms["a"].searcher == "told_search.nets:PLAIN"
    several = faults_of({**arm, "objectives": ["accuracy", "macs"]})
    assert "declares that it cannot search for several objectives" in several["arms.a.searcher"]
    limited = faults_of({**arm, "constraints": {"macs": 10**9}})
    assert "declares that it cannot search under constraints" in limited["arms.a.searcher"]
    forked = {**arm, "space": ["told_search.nets:forked"]}
    with pytest.raises(
        StudyError, match=r"searcher: .*cannot search spaces whose parameters depend on others, as left"
    ):
        resolve_document(searching(forked), source="x", measure=dimensions)
    resolve_document(searching({**forked, "searcher": "told_search"}), source="x", measure=dimensions)


def test_a_searcher_in_a_file_is_relative_to_the_study_and_its_content_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SEARCH)
    arm = {"space": ["training"], "searcher": "mine.py:FOUND", "pruner": {"name": "mine.py:STOPPED"}}
    study, _ = read_resolved(str(written(tmp_path, yaml.safe_dump(searching(arm)))))
    assert study.arms["a"].searcher == f"{tmp_path}/mine.py:FOUND"
    assert set(files_of(study)) == {f"{tmp_path}/mine.py"}


def test_the_json_schema_has_searchers_and_pruners_where_they_are_asked_for(site: Path) -> None:
    trace = write_package(site, "told_search", OF_SEARCH, SEARCH)
    arm = {"searcher": {"name": "told_search", "step": 0.4}, "pruner": {"name": "told_stop", "least": 0.2}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(searching(arm), json_schema())
    assert not trace.exists()
    shown = [("searcher", "told_search"), ("pruner", "told_stop")]
    assert set(shown) <= set(usable_plugins()[0])
    schema = json_schema(shown)
    jsonschema.validate(searching(arm), schema)
    jsonschema.validate(searching({"searcher": "told_search"}), schema)
    jsonschema.validate(searching({"searcher": "tpe", "pruner": {"name": "asha"}}), schema)
    for wrong in ({"searcher": {"name": "told_search", "step": 4}}, {"pruner": {"name": "told_stop", "least": -1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(searching(wrong), schema)
