"""The study file: what is accepted, and that every refusal names the file, the key, the value and the rule."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nas_blockout.backbones.factory import call_factory
from nas_blockout.data import DataSettings, load
from nas_blockout.experiment import build
from nas_blockout.export import save_weights
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from services.study_config.errors import StudyError, StudyNotFound
from services.study_config.overrides import assigned
from services.study_config.resolution import parse, read, resolve, resolve_document
from services.study_config.schema import json_schema
from services.study_config.validation import cautions, check_against_data
from services.study_config.yaml_reader import bundled, find, read_document

MINIMAL = {
    "schema_version": 2,
    "name": "example",
    "data": {"name": "digits", "train_samples": 100},
    "training": {"epochs": 2, "batch_size": 32},
    "budget": {"sample_passes": 1200},
    "arms": {"dense": {"space": ["training"]}},
}


def changed(path: str, value: object) -> dict[str, object]:
    """The minimal study with one key replaced; the path is dotted."""
    document = json.loads(json.dumps(MINIMAL))
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return document  # type: ignore[no-any-return]


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("name", sorted(bundled()))
def test_bundled_studies_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = read(find(name))
    if "weights" in config.backbone:  # of a network that another bundled study trains and exports
        path = Path(config.backbone["weights"])
        runs, pretrain, models, arm, _ = path.relative_to(tmp_path).parts
        before = resolve(read(find(pretrain)), source=pretrain)
        assert (runs, models, arm in (before.config.export or ())) == ("runs", "models", True)
        path.parent.mkdir(parents=True)
        pretrained = {**before.arms[arm].experiment.to_json()["backbone"]}
        save_weights(call_factory(pretrained["factory"], {}, 94), path)
    study = resolve(config, source=name)
    assert study.name == name
    assert study.arms


def test_resolving_again_from_the_same_file_gives_the_same_hash_and_workers_do_not_count() -> None:
    study = resolve(parse(MINIMAL, source="x"), source="x")
    more = resolve(parse(changed("workers", {"max_concurrent_trials": 1}), source="x"), source="x")
    other = resolve(parse(changed("budget.sample_passes", 1300), source="x"), source="x")
    assert study.hash == more.hash
    assert study.hash != other.hash


def test_an_arm_that_extends_another_takes_its_entries() -> None:
    document = changed(
        "arms",
        {
            "blockout": {"method": {"name": "blockout", "clusters": 3}, "distillation": {"target_macs": 0.5}},
            "placebo": {"extends": "blockout", "distillation": {"placebo": "nodes"}},
        },
    )
    study = resolve(parse(document, source="x"), source="x")
    placebo = study.arms["placebo"].experiment
    assert placebo.method == study.arms["blockout"].experiment.method
    assert placebo.distillation is not None
    assert (placebo.distillation.target_macs, placebo.distillation.placebo) == (0.5, "nodes")


def test_an_arm_may_change_the_backbone_or_take_another() -> None:
    document = changed(
        "arms",
        {
            "wide": {"backbone": {"hidden": [24]}},
            "other": {"backbone": {"name": "resnet", "depth": 8}},
            "extends": {"extends": "other", "backbone": {"width": 0.5}},
        },
    )
    arms = resolve(parse(document, source="x"), source="x").arms
    assert arms["wide"].experiment.backbone.hidden == (24,)
    assert (arms["other"].experiment.backbone.depth, arms["other"].experiment.backbone.width) == (8, 1.0)
    assert (arms["extends"].experiment.backbone.depth, arms["extends"].experiment.backbone.width) == (8, 0.5)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("budgt", {}, r"budgt: no such key; did you mean 'budget'\?"),
        ("budget.sample_pass", 1, r"budget\.sample_pass: no such key; did you mean 'sample_passes'\?"),
        ("arms.dense.sapce", [], r"arms\.dense\.sapce: no such key; did you mean 'space'\?"),
        ("budget.sample_passes", "many", r"budget\.sample_passes: .*integer.*'many'"),
        ("budget.sample_passes", 0, r"budget\.sample_passes: .*greater than 0.*0"),
        ("budget.tolerance", 2.0, r"budget\.tolerance: .*less than or equal to 1"),
        ("schema_version", 3, r"schema_version: .*2.*3"),
        ("name", "Not A Name", r"name: .*pattern.*'Not A Name'"),
        ("arms", {}, r"arms: .*at least 1"),
        ("retrain.seeds", [1, 1], r"retrain\.seeds: seeds must be distinct"),
        ("arms.dense.extends", "dens", r"arms\.dense\.extends: no other arm 'dens'"),
        ("arms.dense.match", {"arm": "thick"}, r"arms\.dense\.match\.arm: no other arm 'thick'"),
        ("arms.dense.searcher", "annealing", r"arms\.dense\.searcher: .*'random'.*'annealing'"),
        (
            "arms.dense.space",
            ["trainin"],
            r"arms\.dense\.space: no such search space 'trainin'; did you mean 'training'\?",
        ),
        (
            "arms.dense.method",
            {"name": "blokout"},
            r"arms\.dense\.method\.name: no such method, got 'blokout'; did you mean 'blockout'\?",
        ),
        (
            "arms.dense.method",
            {"name": "blockout", "cluster": 3},
            r"arms\.dense\.method\.cluster: no such key; did you mean 'clusters'\?",
        ),
        (
            "arms.dense.backbone",
            {"name": "convnat"},
            r"arms\.dense\.backbone\.name: no such backbone, got 'convnat'; did you mean 'convnet'\?",
        ),
        ("arms.dense.distillation", {}, r"arms\.dense\.distillation: needs the method blockout"),
        (
            "arms.dense.pruning",
            {"target": 0.5},
            r"arms\.dense\.pruning\.target: no such key; did you mean 'target_macs'\?",
        ),
        (
            "arms.dense.confusion",
            {"branches": 1},
            r"arms\.dense\.confusion\.branches: .*greater than or equal to 2, got 1",
        ),
        (
            "arms",
            {"a": {}, "b": {"confusion": {}, "match": {"arm": "a"}}},
            r"arms\.b\.match: the cost of branches from confusions cannot be chosen",
        ),
        ("arms.dense", {"confusion": {}, "pruning": {}}, "an experiment derives one network"),
        (
            "arms.dense",
            {"method": {"name": "blockout"}, "distillation": {"placebo": "random"}},
            "placebo='random' has no weights to inherit",
        ),
        ("arms.dense.method", {"name": "blockdrop"}, "blockdrop needs a backbone whose blocks can be skipped, resnet"),
        (
            "arms.dense",
            {"backbone": {"name": "resnet"}, "method": {"name": "spatial_dropout"}, "pruning": {}},
            r"arms\.dense\.method\.name: on the backbone resnet, pruning goes with the methods none, blockout",
        ),
        (
            "arms.dense",
            {"backbone": {"name": "inception"}, "method": {"name": "spatial_dropout"}, "space": ["branched"]},
            r"arms\.dense\.space: on the backbone inception, architecture goes with the methods none",
        ),
        (
            "arms",
            {"a": {}, "b": {"backbone": {"name": "resnet"}, "confusion": {}, "match": {"arm": "a"}}},
            r"arms\.b\.match: the cost of branches from confusions cannot be chosen",
        ),
        (
            "arms",
            {"a": {}, "b": {"backbone": {"name": "resnet"}, "method": {"name": "blockdrop"}, "match": {"arm": "a"}}},
            r"arms\.b\.match: the cost of a learned policy follows from its reward: remove `match`",
        ),
        (
            "arms.dense",
            {"method": {"name": "dropout"}, "space": ["blockdrop"]},
            r"the space 'blockdrop' needs an arm whose method is blockdrop, with the policy learned or static",
        ),
        ("data.name", "digit", r"digit"),
        ("training.epochs", "ten", r"training\.epochs: must be a valid integer, got 'ten'"),
        ("training.epochs", 0, r"training\.epochs: must be greater than or equal to 1, got 0"),
    ],
)
def test_refusals_name_the_file_the_key_the_value_and_the_rule(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    file = written(tmp_path, changed(path, value))
    with pytest.raises(StudyError, match=message) as caught:
        resolve(read(file), source=str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "a study is a mapping"),
        ("arms: {a: {}, a: {}}", "the key 'a' occurs twice"),
        ("a: &x 1\nb: *x", r"aliases \(\*name\) are not allowed"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        read(written(tmp_path, text))


def test_files_that_are_too_large_or_no_text_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * (1 << 20))
    with pytest.raises(StudyError, match="at most 1048576 bytes"):
        read(large)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="UTF-8"):
        read(binary)


def test_studies_that_do_not_exist_are_not_found_with_a_near_match(tmp_path: Path) -> None:
    with pytest.raises(StudyNotFound, match=r"did you mean 'quickstart'\?"):
        find("quickstrat")
    with pytest.raises(StudyNotFound, match="there is no study file"):
        find(str(tmp_path / "nowhere.yaml"))


def test_values_that_only_the_data_refuses(tmp_path: Path) -> None:
    document = changed("arms.dense", {"method": {"name": "blockout", "clusters": 9}, "backbone": {"hidden": [8]}})
    study = resolve(parse(document, source="s.yaml"), source="s.yaml")
    splits = load(study.data)
    with pytest.raises(
        StudyError, match=r"s\.yaml: arms\.dense\.method\.clusters: must lie in 1\.\.nodes, got 9 for nodes=8"
    ):
        check_against_data(study, splits, source="s.yaml")
    narrow = changed("arms.dense", {"space": ["branched"], "backbone": {"hidden": [6]}})
    study = resolve(parse(narrow, source="s.yaml"), source="s.yaml")
    with pytest.raises(StudyError, match="the space 'branched' needs 8 nodes a layer or more, got 6"):
        check_against_data(study, splits, source="s.yaml")
    poor = resolve(parse(changed("budget.sample_passes", 1100), source="s.yaml"), source="s.yaml")
    with pytest.raises(StudyError, match=r"budget\.sample_passes: must be at least 1608 for arm 'dense', .*got 1100"):
        check_against_data(poor, splits, source="s.yaml")


def test_schema_for_editors_accepts_the_bundled_studies_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    for path in bundled().values():
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed("budgt", 1), schema)


@pytest.mark.parametrize("name", ["corruption", "scarce"])
def test_arms_that_drop_are_held_against_each_other_at_the_same_rates(name: str) -> None:
    study = resolve(read(bundled()[name]), source=name)
    rates = {arm: getattr(found.experiment.method, "rate", None) for arm, found in study.arms.items()}
    assert rates == {"dense": None, **dict.fromkeys(list(rates)[1:], 0.1)}
    learned = study.arms["dropcluster"].experiment
    for labels in ("random", "contiguous"):
        (ablation,) = [arm for arm in study.arms.values() if getattr(arm.experiment.method, "labels", None) == labels]
        assert replace(ablation.experiment, method=learned.method) == learned
        assert ablation.spaces == study.arms["dropcluster"].spaces


def test_the_study_of_few_images_has_one_budget_at_any_size() -> None:
    for images in (100, 300, 1000):
        sizes = {"data.train_samples": images, "data.validation_samples": images}
        changes = [f"name=scarce-{images}", *(f"{key}={value}" for key, value in sizes.items())]
        study = resolve(parse(assigned(read_document(bundled()["scarce"]), changes), source="x"), source="x")
        assert study.config.budget.trainings == 2 + len(study.config.retrain.seeds)
        assert len({arm.experiment.training.epochs for arm in study.arms.values()}) == 1
        assert (study.data.train_samples, study.data.validation_samples) == (images, images)


def test_controls_of_blockdrop_differ_from_what_is_learned_in_their_paths_alone() -> None:
    study = resolve(read(bundled()["blockdrop"]), source="blockdrop")
    learned = study.arms["learned"].experiment
    assert isinstance(learned.method, BlockDropSettings)
    controls = {name: arm for name, arm in study.arms.items() if name not in ("full", "learned")}
    assert {arm.match for arm in controls.values()} == {"learned"}
    assert [name for name in controls if name in ("static", "first", "random", "spread")] == list(controls)[:4]
    for arm in study.arms.values():
        assert replace(arm.experiment, method=learned.method) == learned
        assert arm.experiment.method.pretrain_fraction == learned.method.pretrain_fraction


def test_the_networks_of_the_study_of_blockdrop_learn_in_equally_many_epochs() -> None:
    study = resolve(read(bundled()["blockdrop"]), source="blockdrop")
    splits = load(DataSettings(train_samples=20, validation_samples=20))
    learning = {}
    for name, arm in study.arms.items():
        model, epochs = build(arm.experiment, splits), arm.experiment.training.epochs
        assert isinstance(model, BlockDrop)
        learning[name] = 0
        for epoch in range(epochs):
            model.prepare_epoch(epoch, epochs)
            learning[name] += all(parameter.requires_grad for parameter in model.network.parameters())
    assert len(set(learning.values())) == 1, learning


def test_a_network_that_is_frozen_while_others_learn_is_warned_of() -> None:
    document = {
        "schema_version": 2, "name": "s", "budget": {"trainings": 9}, "training": {"epochs": 8},
        "data": {"train_samples": 20, "validation_samples": 20}, "backbone": {"name": "resnet", "depth": 14},
        "arms": {
            "learned": {"method": {"name": "blockdrop"}},
            "joint": {"method": {"name": "blockdrop", "policy_fraction": 0}},
            "first": {"method": {"name": "blockdrop", "policy": "first"}},
            "all": {"method": {"name": "blockdrop", "policy": "all"}},
        },
    }  # fmt: skip
    study = resolve_document(document, source="s")
    warned = [text for text in cautions(study, load(study.data)) if text.startswith("warning")]
    assert warned == [
        "warning: arm 'learned': its network is frozen for 2 of 8 epochs, while that of first, all learns in all of "
        "them; set policy_fraction to 0 for equal terms"
    ]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({}, [r"arm 'a': the policy network costs [0-4]\.[0-9]% of the MACs of the network whose blocks it skips"]),
        (
            {"policy_widths": [16, 32, 64], "policy_pool": 1},
            [r"warning: arm 'a': the policy network costs \d{3}\.\d% of .*; leave out policy_widths and policy_pool"],
        ),
        (
            {"policy": "static", "blocks_per_epoch": 1},
            [r"warning: arm 'a': with blocks_per_epoch=1 the policy controls 2 of 6 blocks when its phase ends"],
        ),
        ({"policy": "static"}, []),
        ({"policy": "first"}, []),
    ],
)
def test_what_a_policy_costs_and_never_controls_is_told(method: dict[str, Any], told: list[str]) -> None:
    document = {
        "schema_version": 2, "name": "s", "budget": {"trainings": 9}, "training": {"epochs": 8},
        "data": {"train_samples": 20, "validation_samples": 20}, "backbone": {"name": "resnet", "depth": 14},
        "arms": {"a": {"method": {"name": "blockdrop", **method}}, "b": {"method": {"name": "spatial_dropout"}}},
    }  # fmt: skip
    if "policy_widths" in method:
        document["backbone"] = {"name": "resnet", "depth": 14, "width": 0.25}
    study = resolve_document(document, source="s")
    found = list(cautions(study, load(study.data)))
    assert len(found) == len(told)
    for text, pattern in zip(found, told, strict=True):
        assert re.match(pattern, text), text
