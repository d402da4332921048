"""Study files of version 1: they keep their meaning when they are read, and become files of version 2 with comments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.experiment import Experiment
from nas_blockout.methods import METHODS, method_name, method_to_json
from nas_blockout.methods.dropblock import DropBlockSettings
from nas_blockout.methods.dropconnect import DropConnectSettings
from nas_blockout.methods.dropout import DropoutSettings
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.spatial_dropout import SpatialDropoutSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.training import sample_passes
from services.renamed_keys import upgraded_experiment
from services.study_config.errors import StudyError
from services.study_config.resolution import read, resolve, resolve_document
from services.study_config.resolved_study import Study
from services.study_config.upgrade import upgraded_text
from services.study_config.yaml_reader import yaml_value
from tests.services.version_1 import PLACES, in_version_2

VERSION_1 = Path(__file__).parents[2] / "fixtures" / "version_1" / "studies"
BARE = """\
schema_version: 1 # the first
name: bare
budget: {trainings: 9}
arms:
  flow:
    purpose: settings that are left out have the defaults of version 1
    method: {name: blockout, charge: 2.0} # in braces
    distillation: {target_macs: 0.5}
  block:
    method:
      clusters: 2
      name: blockout # by lines
      polarisation: 1.0
    distillation: {placebo: undivided}
  other: {like: block, method: {mode: soft-learned}}
  nodes: {method: {name: dropout, rate: 0.2}}
  weights:
    method:
      name: dropconnect
  maps: {method: {name: dropblock}}
  channels: {method: {name: spatial_dropout}}
"""


def study(path: Path) -> Study:
    return resolve(read(path), source=str(path))


def scored_as_now(experiment: Experiment) -> Experiment:
    """An experiment of version 1 with the one thing that version 2 changed on purpose, and version 1 keeps."""
    assert experiment.training.evaluation_statistics == "running"
    return replace(experiment, training=replace(experiment.training, evaluation_statistics="estimated"))


def trainings(found: Study) -> float:
    """How many trainings the budget of an arm pays for, each with what its evaluations are charged."""
    budget, images = found.config.budget, found.data.train_samples
    if budget.trainings is not None:
        return budget.trainings
    assert images is not None
    (cost,) = {sample_passes(arm.experiment.training, images) for arm in found.arms.values()}
    assert budget.sample_passes is not None
    return budget.sample_passes / cost


def in_its_papers_form(arm: tuple[Any, ...]) -> tuple[Any, ...]:
    """What an arm is today whose method stood everywhere in version 1, not only where its paper has it."""
    experiment, *rest = arm
    name = method_name(experiment.method)
    if name not in PLACES:
        return arm
    key, then, now = PLACES[name]
    assert getattr(experiment.method, key) == then
    return (replace(experiment, method=replace(experiment.method, **{key: now})), *rest)


def experiments(found: Study) -> dict[str, Any]:
    return {name: (arm.experiment, arm.spaces, arm.searcher, arm.match, arm.rules) for name, arm in found.arms.items()}


NAMES = sorted(path.stem for path in VERSION_1.glob("*.yaml"))  # later studies were never of version 1


@pytest.mark.parametrize("name", NAMES)
def test_bundled_studies_of_version_2_began_with_the_experiments_of_version_1(name: str) -> None:
    before, now = study(VERSION_1 / f"{name}.yaml"), study(in_version_2(name))
    named = {{"undivided": "unbranched"}.get(arm, arm): found for arm, found in experiments(before).items()}
    named = {name: (scored_as_now(first), *rest) for name, (first, *rest) in named.items()}
    assert {name: in_its_papers_form(found) for name, found in named.items()} == experiments(now)
    assert trainings(now) == trainings(before)
    assert (now.config.retrain, now.config.seed, now.data) == (before.config.retrain, before.config.seed, before.data)


@pytest.mark.parametrize("name", NAMES)
def test_an_upgraded_file_is_the_same_study_and_keeps_its_comments(name: str) -> None:
    text = (VERSION_1 / f"{name}.yaml").read_text()
    upgraded = upgraded_text(text, source=name)
    document = yaml_value(upgraded)
    assert document["schema_version"] == 2
    assert resolve_document(document, source=name).hash == study(VERSION_1 / f"{name}.yaml").hash
    assert comments(upgraded) == comments(text)
    assert upgraded_text(upgraded, source=name) == upgraded


def test_dropping_methods_of_version_1_stay_where_they_were() -> None:
    upgraded = upgraded_text(BARE, source="bare")
    assert "nodes: {method: {name: dropout, placement: all, rate: 0.2}}" in upgraded
    assert "      name: dropconnect\n      placement: all\n      masks: batch\n" in upgraded
    arms = resolve_document(yaml_value(BARE), source="bare").arms
    assert arms["nodes"].experiment.method == DropoutSettings(0.2, placement="all")
    assert arms["weights"].experiment.method == DropConnectSettings(placement="all", masks="batch")
    assert "maps: {method: {name: dropblock, last_stages: null}}" in upgraded
    assert arms["maps"].experiment.method == DropBlockSettings(last_stages=None)
    assert arms["channels"].experiment.method == SpatialDropoutSettings(last_stages=None)
    block = Experiment.from_json(upgraded_experiment({"method": {"name": "dropblock"}})).method
    assert block == DropBlockSettings(last_stages=None)
    for method in ({"name": "dropout", "rate": 0.3}, {"name": "dropconnect"}):
        again = Experiment.from_json(upgraded_experiment({"method": method})).method
        assert again.placement == "all"
    with_names = Experiment(method=DropoutSettings()).to_json()
    assert upgraded_experiment(with_names) == with_names


def comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


def test_keys_are_renamed_in_braces_and_by_lines_and_the_preset_is_named() -> None:
    upgraded = upgraded_text(BARE, source="bare")
    assert "schema_version: 2 # the first" in upgraded
    assert "method: {name: blockout, preset: paper, cost_penalty: 2.0} # in braces" in upgraded
    assert "      name: blockout # by lines\n      preset: paper\n      polarization: 1.0\n" in upgraded
    assert "placebo: unbranched" in upgraded
    assert "other: {extends: block, method: {mode: soft-learned}}" in upgraded


def test_what_version_1_left_out_keeps_the_defaults_of_version_1() -> None:
    paper = METHODS["blockout"].presets["paper"].settings
    found = resolve_document(yaml_value(BARE), source="bare")
    assert found.hash == resolve_document(yaml_value(upgraded_text(BARE, source="bare")), source="bare").hash
    flow, other = found.arms["flow"].experiment, found.arms["other"].experiment
    assert isinstance(flow.method, BlockoutSettings)
    assert (flow.method.masked, flow.method.cost_penalty, flow.method.cost_penalty_sides) == ("head", 2.0, "above")
    assert (other.method.clusters, other.method.polarization, other.method.masked) == (2, 1.0, "head")
    assert not flow.backbone.normalize_logits
    assert flow.distillation is not None
    assert flow.distillation.trim_by == "probability"
    assert (paper.first_probability, paper.structure_lr_multiplier, paper.polarization) == (0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    "data", ["data: {name: imagefolder, folder: /x} # own", "data:\n  name: imagefolder # own\n  folder: /x"]
)
def test_transparent_images_of_version_1_keep_the_colors_below(data: str) -> None:
    text = f"schema_version: 1\nname: own\nbudget: {{sample_passes: 9}}\n{data}\narms: {{a: {{}}}}\n"
    upgraded = upgraded_text(text, source="own")
    assert "background: dropped" in upgraded
    assert comments(upgraded) == comments(text)
    for each in (text, upgraded):
        assert resolve_document(yaml_value(each), source="own").data.background == "dropped"
    again = yaml_value(text) | {"schema_version": 2}
    assert resolve_document(again, source="own").data.background is None
    recorded = {"data": {"name": "imagefolder", "folder": "/x"}}
    assert Experiment.from_json(upgraded_experiment(recorded)).data.background == "dropped"
    kept = {"data": {**recorded["data"], "background": "gray"}}
    assert Experiment.from_json(upgraded_experiment(kept)).data.background == "gray"
    assert Experiment.from_json(upgraded_experiment({"data": {"name": "digits"}})).data.background is None


SKIPPING = """\
schema_version: 1
name: skipping
budget: {trainings: 9}
backbone: {name: resnet}
arms:
  learned: {method: {name: blockdrop, price: 2.0}}
  sized: {method: {name: blockdrop, policy_widths: [4], policy_share: 0.1}}
  random: {like: learned, method: {policy: random, kept_blocks: 2}}
"""


def test_blockdrop_of_version_1_keeps_its_policy_its_pace_and_its_paths() -> None:
    upgraded = upgraded_text(SKIPPING, source="skipping")
    assert "learned: {method: {name: blockdrop, preset: paper, cost_penalty: 2.0}}" in upgraded
    found = resolve_document(yaml_value(SKIPPING), source="skipping")
    assert found.hash == resolve_document(yaml_value(upgraded), source="skipping").hash
    methods = {name: arm.experiment.method for name, arm in found.arms.items()}
    assert {name: method.policy_widths for name, method in methods.items()} == {
        "learned": (16, 32, 64), "sized": (4,), "random": (16, 32, 64),
    }  # fmt: skip
    for method in methods.values():
        assert (method.policy_pool, method.blocks_per_epoch, method.finetune_paths, method.seed) == (1, 1, "sampled", 0)
    recorded = methods["learned"].__class__(cost_penalty=2.0)
    old = {
        key: value for key, value in method_to_json(recorded).items() if key not in ("finetune_paths", "target_macs")
    }
    old |= {"policy_widths": [16, 32, 64], "policy_pool": 1, "blocks_per_epoch": 1, "seed": 0}
    assert (
        Experiment.from_json(upgraded_experiment({"backbone": {"name": "resnet"}, "method": old})).method
        == methods["learned"]
    )


def test_a_recorded_experiment_of_version_1_keeps_its_defaults() -> None:
    recorded = {"method": {"name": "blockout", "charge": 1.0}, "distillation": {"surplus": "magnitude"}}
    again = Experiment.from_json(upgraded_experiment(recorded))
    assert (again.method.masked, again.method.cost_penalty) == ("head", 1.0)
    assert again.distillation == DistillationSettings(trim_by="magnitude")
    older = Experiment.from_json(upgraded_experiment({**recorded, "distillation": {}}))
    assert older.distillation == DistillationSettings(trim_by="probability")


def test_an_experiment_of_version_1_that_masked_the_head_of_inception_says_so() -> None:
    recorded = {"backbone": {"name": "inception"}, "method": {"name": "blockout", "masked": "all"}}
    assert Experiment.from_json(upgraded_experiment(recorded)).method.masked == "head"


def test_a_recorded_experiment_of_version_2_stays_as_it_is() -> None:
    experiment = Experiment(method=BlockoutSettings(), distillation=DistillationSettings()).to_json()
    assert upgraded_experiment(experiment) == experiment


def test_a_file_that_cannot_be_rewritten_key_by_key_is_refused_and_not_spoiled() -> None:
    document = study(VERSION_1 / "quickstart.yaml").to_json() | {"schema_version": 1}
    for arm in document["arms"].values():
        arm["experiment"]["method"].pop("masked", None)
    with pytest.raises(StudyError, match="cannot be rewritten key by key"):
        upgraded_text(yaml.safe_dump(document), source="study.yaml")
