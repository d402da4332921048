"""Settings that do not fit together: all conflicts in one error, and networks that are refused without being built."""

import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout.backbones import BACKBONES
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, backbone_from_json, build, unbuildable
from nas_blockout.methods import METHODS, method_from_json
from nas_blockout.methods.dropout import DropoutSettings
from nas_blockout.serialization import from_json
from nas_blockout.settings_fields import Conflict, conflicts_in, refuse
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"
SMALL = {"name": "convnet", "channels": [4], "hidden": [8]}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings("digits", train_samples=20))


def conflicts(error: ValueError) -> list[tuple[str, ...]]:
    return [each.keys for each in conflicts_in(error)]


def test_all_conflicts_of_settings_are_one_error_with_the_keys_that_they_compare() -> None:
    document = {"name": "blockdrop", "kept_blocks": 3, "policy_fraction": 0.9, "pretrain_fraction": 0.2}
    with pytest.raises(Conflict) as caught:
        method_from_json(document)
    assert conflicts(caught.value) == [
        ("method.kept_blocks", "method.policy"),
        ("method.policy_fraction", "method.pretrain_fraction"),
    ]
    assert str(caught.value).count("\n") == 1
    assert conflicts(pickle.loads(pickle.dumps(caught.value))) == conflicts(caught.value)  # our own


def test_all_conflicts_of_an_experiment_are_one_error() -> None:
    with pytest.raises(Conflict) as caught:
        Experiment(
            backbone=backbone_from_json({"name": "resnet"}),
            training=TrainingSettings(epochs=1),
            method=DropoutSettings(placement="classifier"),
            distillation=DistillationSettings(),
            pruning=PruningSettings(),
        )
    assert conflicts(caught.value) == [
        ("method.name", "distillation", "backbone.name"),
        ("pruning", "distillation"),
        ("distillation", "method.name"),
        ("training.epochs", "distillation"),
    ]


def test_an_error_that_names_no_keys_may_depend_on_all_of_its_section() -> None:
    with pytest.raises(ValueError, match="data: split_seed must be") as caught:
        from_json(DataSettings, {"split_seed": -1}, where="data")
    assert conflicts(caught.value) == [("data",)]


def test_without_conflicts_nothing_is_raised_and_a_single_one_is_raised_itself() -> None:
    refuse([])
    single = Conflict("a must be at most b", "a", "b")
    with pytest.raises(Conflict) as caught:
        refuse([single])
    assert caught.value is single
    assert conflicts(ValueError("anything")) == [()]


@pytest.mark.parametrize(("backbone", "method"), [*product(BACKBONES, METHODS)])
def test_what_can_be_built_is_said_to_be_buildable(backbone: str, method: str, splits: Splits) -> None:
    changes = {"blockout": {"masked": "head"}, "dropout": {"placement": "all"}, "dropconnect": {"placement": "all"}}
    if method == "blockdrop" and backbone != "resnet":
        return
    needed: dict[str, Any] = {}
    if backbone == "module":  # which takes a factory, and methods only at its classifier
        if method not in ("none", "blockout", "dropout", "dropconnect"):
            return
        needed = {"factory": f"{NETWORKS}:Small"}
        changes = {"dropout": {"placement": "classifier"}, "dropconnect": {"placement": "classifier"}}
    experiment = Experiment(
        backbone=backbone_from_json({"name": backbone, **needed}),
        method=method_from_json({"name": method, **changes.get(method, {})}),
    )
    build(experiment, splits)
    assert list(unbuildable(experiment, shape=splits.shape, classes=10)) == []


IMPOSSIBLE: list[tuple[dict[str, Any], dict[str, Any], ConfusionSettings | None, str]] = [
    (SMALL, {"name": "blockout", "clusters": 5}, None, "method.clusters"),
    ({"name": "resnet"}, {"name": "blockdrop", "policy": "first", "kept_blocks": 99}, None, "method.name"),
    (SMALL, {"name": "none"}, ConfusionSettings(split_layers=3), "confusion.split_layers"),
    (SMALL, {"name": "none"}, ConfusionSettings(branches=9), "confusion.branches"),
]


@pytest.mark.parametrize(("backbone", "method", "confusion", "key"), IMPOSSIBLE)
def test_what_cannot_be_built_is_refused_with_the_same_words(
    backbone: dict[str, Any], method: dict[str, Any], confusion: ConfusionSettings | None, key: str, splits: Splits
) -> None:
    experiment = Experiment(backbone=backbone_from_json(backbone), method=method_from_json(method), confusion=confusion)
    with pytest.raises(ValueError, match="must lie in") as caught:
        build(experiment, splits)
    (found,) = unbuildable(experiment, shape=splits.shape, classes=10)
    assert (str(found), found.keys[0]) == (str(caught.value), key)


@pytest.mark.parametrize("masked", ["last 9", ["convv"], ["conv"]])
def test_a_choice_of_layers_that_a_graph_lacks_is_an_error_of_its_own_key(masked: Any, splits: Splits) -> None:
    backbone = backbone_from_json({"name": "module", "factory": f"{NETWORKS}:Small"})
    method = method_from_json({"name": "blockout", "masked": masked})
    (found,) = unbuildable(Experiment(backbone=backbone, method=method), shape=splits.shape, classes=10)
    assert str(found).startswith("masked: ")
    assert found.keys[0] == "method.masked"


def test_a_network_larger_than_memory_is_judged_without_allocating_it() -> None:
    wide = {"name": "convnet", "hidden": [90_000, 90_000]}  # 32 GB of weights
    experiment = Experiment(
        backbone=backbone_from_json(wide), method=method_from_json({"name": "blockout", "clusters": 10**6})
    )
    before = torch.get_rng_state()
    (found,) = unbuildable(experiment, shape=(1, 8, 8), classes=10)
    assert "got clusters=1000000" in str(found)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(unbuildable(replace(experiment, method=METHODS["none"].settings()), shape=(1, 8, 8), classes=10)) == []
