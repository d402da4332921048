"""The laws that every method keeps, one case a method: those of `nas_blockout.testing`, which plug-ins run as well.

To add a method, add a case to `CASES`. A law that does not apply to a case is left out by what the case says of itself.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nas_blockout.methods import METHODS, method_from_json, method_to_json
from nas_blockout.methods.dropblock import DropBlock, DropBlockSettings
from nas_blockout.methods.dropcluster import DropCluster, DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings
from nas_blockout.testing import MethodCase, method_laws
from nas_blockout.testing.method_laws import (
    FEATURES,
    MAPS,
    settings_are_frozen_and_all_have_defaults,
    settings_survive_json,
)
from nas_blockout.testing.seeds import seeded
from tests.nas_blockout.methods import oracles


def linear() -> nn.Linear:
    return nn.Linear(FEATURES[1], 5)


def observe(layer: nn.Module) -> None:
    """Show a DropCluster images, as the training loop does."""
    layer.prepare_epoch(0, 1)
    layer.eval()(torch.randn(12, *MAPS[1:], generator=seeded(1)))


def clusters(**settings: Any) -> MethodCase:
    """A case of DropCluster under given settings."""
    return MethodCase(
        lambda: DropCluster(DropClusterSettings(rate=0.3, cluster_size=4, ramp_epochs=0, **settings)),
        MAPS,
        oracles.dropcluster,
        method="dropcluster",
        keep_all=lambda: DropCluster(DropClusterSettings(rate=0, cluster_size=4, **settings)),
        ready=observe,
    )


CASES = {
    "dropout": MethodCase(
        lambda: Dropout(DropoutSettings(0.3)),
        FEATURES,
        oracles.dropout,
        method="dropout",
        keep_all=lambda: Dropout(DropoutSettings(0)),
    ),
    "spatial_dropout": MethodCase(
        lambda: SpatialDropout(SpatialDropoutSettings(0.3)),
        MAPS,
        oracles.spatial_dropout,
        method="spatial_dropout",
        keep_all=lambda: SpatialDropout(SpatialDropoutSettings(0)),
    ),
    "dropconnect": MethodCase(
        lambda: DropConnect(DropConnectSettings(0.3), linear()),
        FEATURES,
        oracles.dropconnect,
        method="dropconnect",
        plain=lambda layer, x: nn.functional.linear(x, layer.weight, layer.bias),
        keep_all=lambda: DropConnect(DropConnectSettings(0), linear()),
    ),
    "dropconnect, a mask a batch": MethodCase(
        lambda: DropConnect(DropConnectSettings(0.3, masks="batch"), linear()),
        FEATURES,
        oracles.dropconnect,
        method="dropconnect",
        plain=lambda layer, x: nn.functional.linear(x, layer.weight, layer.bias),
        keep_all=lambda: DropConnect(DropConnectSettings(0, masks="batch"), linear()),
    ),
    "dropblock": MethodCase(
        lambda: DropBlock(DropBlockSettings(rate=0.3, block_size=3, schedule="constant")),
        MAPS,
        oracles.dropblock,
        method="dropblock",
        keep_all=lambda: DropBlock(DropBlockSettings(rate=0)),
        unbiased=False,  # positions at the rim lie in fewer blocks than those in the middle
    ),
    "dropcluster": clusters(),
    "dropcluster, rena": clusters(clustering="rena"),
    "dropcluster, a mask a batch": clusters(masks="batch"),
    "dropcluster, random labels": clusters(labels="random"),
    "dropcluster, contiguous labels": clusters(labels="contiguous"),
}


def test_every_method_with_a_layer_has_a_case() -> None:
    with_layer = {name for name, method in METHODS.items() if method.layer is not None}
    assert with_layer <= {case.method for case in CASES.values()} <= set(METHODS)


@pytest.mark.parametrize(
    "law",
    [pytest.param(law, id=f"{name}-{rule}") for name, case in CASES.items() for rule, law in method_laws(case).items()],
)
def test_law(law: Callable[[], None]) -> None:
    law()


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_json_and_are_frozen(name: str) -> None:
    case = MethodCase(nn.Identity, method=name)
    settings_survive_json(case)
    settings_are_frozen_and_all_have_defaults(case)
    assert method_from_json({"name": name}) == METHODS[name].settings()


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ({"name": "dropot"}, "method.name: no such method 'dropot'; did you mean 'dropout'"),
        ({"name": ["dropout"]}, "no such method"),
        ({"rate": 0.5}, "method.name is required; known are "),
        ("dropout", "method must be a mapping with a name"),
        ({"name": "dropblock", "block": 3}, "method.block: no such setting; did you mean 'block_size'"),
        ({"name": "none", "rate": 0.1}, "method.rate: no such setting"),
        ({"name": "dropout", "rate": "high"}, "method.rate must be a number, got 'high'"),
        ({"name": "dropout", "rate": float("nan")}, "method.rate must be a number"),
        ({"name": "dropblock", "block_size": 3.0}, "method.block_size must be a whole number, got 3.0"),
        ({"name": "dropblock", "block_size": 4}, "method: block_size must be odd, got block_size=4"),
        ({"name": "dropblock", "schedule": "cosine"}, "method.schedule must be one of linear, constant, got 'cosine'"),
        ({"name": "dropconnect", "rate": 1}, "method: rate must be in [0, 1), got rate=1"),
        ({"name": "spatial_dropout", "rate": -0.1}, "method: rate must be in [0, 1), got rate=-0.1"),
        ({"name": "dropcluster", "cluster_size": 0.5}, "method: cluster_size must be at least 1, got cluster_size=0.5"),
        ({"name": "dropcluster", "update_every": -1}, "method: update_every must be at least 0, got update_every=-1"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_rule(document: Any, rule: str) -> None:
    with pytest.raises(ValueError) as caught:
        method_from_json(document)
    assert rule in str(caught.value)


def test_settings_of_no_method_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"method must be the settings of a registered method, one of NoneSettings, .*got 3"
    ):
        method_to_json(3)
