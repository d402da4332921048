"""A study is checked by the shapes of its networks: no weight is allocated, however wide they are."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import outlined_for_training
from services.search.constraints import exceeded_before
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.study_config.search_options import Constraints
from services.study_config.validation import cautions, check_against_data
from tests.services.tiny import TINY

CONVNET, RESNET = {"name": "convnet", "channels": [1000, 1000]}, {"name": "resnet", "width": 8.0}
METHODS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": (CONVNET, {}),
    "dropout": (CONVNET, {"method": {"name": "dropout"}}),
    "dropconnect": (CONVNET, {"method": {"name": "dropconnect"}}),
    "blockout": (CONVNET, {"method": {"name": "blockout"}}),
    "blockout of magnitudes": (CONVNET, {"method": {"name": "blockout", "magnitude_spread": 0.1}}),
    "searched by gradient": (CONVNET, {"method": {"name": "darts"}, "distillation": {"target_macs": 0.5}}),
    "distilled": (CONVNET, {"method": {"name": "blockout"}, "distillation": {}}),
    "pruned": (CONVNET, {"pruning": {}}),
    "residual": (RESNET, {"method": {"name": "blockout"}}),
    "blockdrop": (RESNET, {"method": {"name": "blockdrop"}}),
}


class Seen(TorchDispatchMode):
    """Notes how many bytes the largest tensor takes that is computed."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.device.type != "meta":
                self.most = max(self.most, each.untyped_storage().nbytes())
        return out


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings(name="digits", train_samples=50))


def study(backbone: Mapping[str, Any], arm: Mapping[str, Any], **keys: Any) -> Study:
    document = {**TINY, "budget": {"trainings": 4}, "backbone": backbone, "arms": {"arm": arm}, **keys}
    return resolve_document(document, source="x")


@pytest.mark.parametrize("name", METHODS)
def test_a_check_computes_no_weights(splits: Splits, name: str) -> None:
    checked = study(*METHODS[name])
    with Seen() as seen:
        check_against_data(checked, splits, source="x")
        list(cautions(checked, splits))
    model = outlined_for_training(checked.arms["arm"].experiment, shape=splits.shape, classes=len(splits.class_names))
    largest = max(parameter.numel() for parameter in model.parameters())
    assert seen.most < 400_000 < largest


def test_constraints_are_checked_before_a_training_without_its_weights(splits: Splits) -> None:
    experiment = study(CONVNET, {}).arms["arm"].experiment
    with Seen() as seen:
        exceeded = exceeded_before(
            experiment, Constraints(parameters=5, macs=5), shape=splits.shape, classes=len(splits.class_names)
        )
    assert exceeded["parameters"][0] > 9_000_000
    assert seen.most < 400_000


@pytest.mark.parametrize("width", [40_000, 1_000_000, 10**9])
def test_a_network_that_no_machine_holds_is_refused_with_its_key(splits: Splits, width: int) -> None:
    huge = study({"name": "convnet", "channels": [width, width]}, {})
    with pytest.raises(StudyError) as refused:
        check_against_data(huge, splits, source="x")
    (violation,) = refused.value.violations
    assert violation.key == "backbone"


def test_a_network_of_thousands_of_layers_is_refused_before_it_is_outlined() -> None:
    with pytest.raises(StudyError, match="at most 64 items"):
        study({"name": "convnet", "hidden": [8] * 5000}, {})


@pytest.mark.parametrize(
    ("arm", "key", "rule"),
    [
        ({"training": {"batch_size": 50}}, "training", "training.batch_size: an epoch needs 2 batches or more"),
        ({"method": {"name": "darts", "branches": 11}}, "method", "branches: must lie in 2..10, the nodes of layer"),
    ],
)
def test_a_supernet_that_could_not_be_trained_is_refused_with_its_key(
    splits: Splits, arm: dict[str, Any], key: str, rule: str
) -> None:
    with pytest.raises(StudyError, match=rule) as refused:
        check_against_data(study(CONVNET, {"method": {"name": "darts"}, **arm}), splits, source="x")
    (violation,) = refused.value.violations
    assert violation.path[:3] == ("arms", "arm", key)
