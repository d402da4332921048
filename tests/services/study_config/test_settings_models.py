"""One description of settings: what a file is checked against, its JSON Schema and the library say the same."""

import copy
from typing import Any

import jsonschema
import pytest

from nas_blockout.backbones import BACKBONES
from nas_blockout.experiment import DERIVATIONS
from nas_blockout.methods import METHODS, method_from_json
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.serialization import to_json
from nas_blockout.settings_fields import declared
from services.study_config import settings_models
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document, study_of
from services.study_config.schema import json_schema

STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "example",
    "data": {"name": "digits", "train_samples": 100},
    "training": {"epochs": 4},
    "budget": {"trainings": 9},
    "arms": {"arm": {}},
}


def with_arm(arm: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {**copy.deepcopy(STUDY), **top, "arms": {"arm": arm}}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_schema_has_every_setting_of_a_method_with_default_and_sentence(name: str) -> None:
    kind = METHODS[name].settings
    properties = json_schema()["$defs"][kind.__name__]["properties"]
    settings = declared(kind)
    assert set(properties) == {"name", *settings, *(["preset"] if METHODS[name].presets else [])}
    defaults = to_json(kind())
    for key, setting in settings.items():
        assert properties[key]["description"] == setting.sentence
        assert properties[key]["default"] == defaults[key]


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_schema_has_every_setting_of_a_backbone(name: str) -> None:
    kind = BACKBONES[name].settings
    assert set(json_schema()["$defs"][kind.__name__]["properties"]) == {"name", *declared(kind)}


@pytest.mark.parametrize("name", sorted(DERIVATIONS))
def test_the_schema_has_every_setting_of_a_derivation(name: str) -> None:
    place, _ = json_schema()["$defs"]["ArmConfig"]["properties"][name]["anyOf"]
    assert set(place["properties"]) == set(declared(DERIVATIONS[name]))


@pytest.mark.parametrize(
    ("arm", "key"),
    [
        ({"method": {"name": "dropout", "rate": 1.0}}, "arms.arm.method.rate"),
        ({"method": {"name": "blockout", "masked": "tail"}}, "arms.arm.method.masked"),
        ({"method": {"name": "blockout", "masked": "last 0"}}, "arms.arm.method.masked"),
        ({"method": {"name": "blockout", "masked": []}}, "arms.arm.method.masked"),
        ({"method": {"name": "blockout", "masked": ["classes", 2]}}, "arms.arm.method.masked"),
        ({"method": {"name": "blockout", "preset": "best"}}, "arms.arm.method.preset"),
        ({"method": {"name": "dropout", "clusters": 3}}, "arms.arm.method.clusters"),
        ({"backbone": {"name": "resnet", "depth": 9}}, "arms.arm.backbone.depth"),
        ({"backbone": {"channels": []}}, "arms.arm.backbone.channels"),
        ({"backbone": {"channels": [8, 0]}}, "arms.arm.backbone.channels.1"),
        ({"training": {"epochs": 2.5}}, "arms.arm.training.epochs"),
        ({"pruning": {"target_macs": 0}}, "arms.arm.pruning.target_macs"),
    ],
)
def test_what_a_file_may_not_say_the_schema_refuses_too(arm: dict[str, Any], key: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(with_arm(arm), json_schema())
    with pytest.raises(StudyError) as caught:
        resolve_document(with_arm(arm), source="x")
    assert [each.key for each in caught.value.violations] == [key]


@pytest.mark.parametrize("masked", ["head", "all", "last 1", "last 3", ["classes"], ["hidden", "classes"]])
@pytest.mark.parametrize("preset", ["compress", "paper"])
def test_every_form_of_the_masked_layers_is_in_the_schema_and_has_precedence_over_the_preset(
    preset: str, masked: Any
) -> None:
    document = with_arm({"method": {"name": "blockout", "preset": preset, "masked": masked}})
    jsonschema.validate(document, json_schema())
    study = resolve_document(document, source="x")
    found = study.arms["arm"].experiment.method.masked
    assert found == (tuple(masked) if isinstance(masked, list) else masked)
    assert study.to_json()["arms"]["arm"]["experiment"]["method"]["masked"] == masked
    assert study_of(study.to_json(), source="x").arms == study.arms


@pytest.mark.parametrize("section", ["data", "training", "pruning", "confusion", "distillation"])
def test_nothing_is_wrong_with_an_empty_section(section: str) -> None:
    assert settings_models.violations(section, {}) == []


def test_settings_without_a_name_change_those_of_the_base_and_the_schema_knows_them() -> None:
    arms = {"base": {"method": {"name": "dropblock"}}, "arm": {"extends": "base", "method": {"block_size": 5}}}
    document = {**STUDY, "arms": arms}
    jsonschema.validate(document, json_schema())
    assert resolve_document(document, source="x").arms["arm"].experiment.method.block_size == 5
    with pytest.raises(StudyError, match=r"arms\.arm\.method\.name: this key is required: known are blockdrop"):
        resolve_document(with_arm({"method": {"block_size": 5}}), source="x")


def test_the_default_preset_is_the_default_of_the_settings() -> None:
    presets = METHODS["blockout"].presets
    assert list(presets) == ["compress", "paper", "branch", "pretrained"]
    assert presets["compress"].settings == BlockoutSettings()
    assert method_from_json({"name": "blockout"}) == method_from_json({"name": "blockout", "preset": "compress"})
    assert method_from_json({"name": "blockout", "preset": "paper"}) == presets["paper"].settings
    pretrained = method_from_json({"name": "blockout", "preset": "pretrained"})
    assert (pretrained.mask_values, pretrained.rescale) == ("binary", False)
    with pytest.raises(ValueError, match=r"method\.preset: no such preset 'papper'; did you mean 'paper'\?"):
        method_from_json({"name": "blockout", "preset": "papper"})


def test_a_preset_gives_every_value_that_the_study_leaves_out_and_is_written_out() -> None:
    plain = resolve_document(with_arm({"method": {"name": "blockout"}, "distillation": {}}), source="x")
    experiment = plain.arms["arm"].experiment
    assert experiment.method == BlockoutSettings()
    assert experiment.backbone.normalize_logits
    assert experiment.distillation is not None
    assert experiment.distillation.trim_by == "magnitude"
    assert "preset" not in plain.to_json()["arms"]["arm"]["experiment"]["method"]


def test_whatever_the_study_says_itself_has_precedence_over_the_preset() -> None:
    arm = {
        "method": {"name": "blockout", "preset": "compress", "polarization": 1.0},
        "distillation": {"trim_by": "probability"},
    }
    for document in (
        with_arm({**arm, "backbone": {"normalize_logits": False}}),
        with_arm(arm, backbone={"name": "convnet", "normalize_logits": False}),
    ):
        experiment = resolve_document(document, source="x").arms["arm"].experiment
        assert experiment.method.polarization == 1.0
        assert not experiment.backbone.normalize_logits
        assert experiment.distillation is not None
        assert experiment.distillation.trim_by == "probability"


def test_the_paper_s_preset_leaves_the_backbone_alone_and_an_arm_may_change_the_preset_of_its_base() -> None:
    arms = {"base": {"method": {"name": "blockout"}}, "arm": {"extends": "base", "method": {"preset": "paper"}}}
    study = resolve_document({**STUDY, "arms": arms}, source="x")
    experiment = study.arms["arm"].experiment
    assert experiment.method == METHODS["blockout"].presets["paper"].settings
    assert not experiment.backbone.normalize_logits


def test_a_backbone_without_the_setting_of_a_preset_keeps_its_own() -> None:
    arm = {"backbone": {"name": "resnet", "depth": 8}, "method": {"name": "blockout"}}
    assert resolve_document(with_arm(arm), source="x").arms["arm"].experiment.backbone.depth == 8
