"""What proposals over graphs cost, and what factories make, is known from shapes: no weight takes memory for that."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas_blockout.architecture import Architecture
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, build, count_macs, known_costs, notes_of, outline
from nas_blockout.experiment.branchable import _analyzed, analysis_of
from nas_blockout.structure.distill import distill, harden, wiring_of

BACKBONES: Mapping[str, Any] = {
    "resnet": ResNetSettings(depth=8, width=0.5),
    "inception": InceptionSettings(width=0.25, hidden=(16,)),
    "invention": ModuleSettings("tests/fixtures/inventions.py:Invention"),
    **{
        name.lower(): ModuleSettings(f"tests/fixtures/graph_factories.py:{name}", {})
        for name in ("Residual", "Dense", "Mobile", "Grouped", "Transformer", "Shared")
    },
}
KEPT = """
from functools import cache

import torch
from torch import nn

SHIFT = torch.ones(1)

@cache
def positions(width):
    return torch.arange(width).float()

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.positions = positions(64)

    def forward(self, x):
        return self.fc(x.flatten(1) + self.positions * SHIFT.to(x.device))
"""


class _Recorded(TorchDispatchMode):
    """Records the largest tensor of fractions that has values."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.device.type != "meta" and each.is_floating_point():
                self.largest = max(self.largest, each.untyped_storage().nbytes() // each.element_size())
        return result


@contextmanager
def largest() -> Iterator[_Recorded]:
    with _Recorded() as recorded:
        yield recorded


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings("digits", train_samples=40, validation_samples=20))


def proposed(backbone: Any, shape: tuple[int, int, int], *, clusters: int = 2) -> Architecture:
    network = outline(backbone, shape, 10)
    generator = torch.Generator().manual_seed(2)
    p = {name: torch.rand(width, clusters, generator=generator) for name, width in network.layers.items()}
    return distill(p, harden(p, 0.4), wiring=wiring_of(network)).architecture


@pytest.mark.parametrize("name", BACKBONES)
def test_a_proposal_costs_what_the_network_has_that_is_built_of_it(name: str, splits: Splits) -> None:
    backbone = BACKBONES[name]
    for part in ({"architecture": proposed(backbone, splits.shape)}, {"target_macs": 3_000}):
        experiment = Experiment(backbone=backbone, **part)
        found = known_costs(experiment, shape=splits.shape, classes=10)
        network = build(experiment, splits).eval()
        macs = count_macs(network, torch.zeros(1, *splits.shape))
        assert found == {"parameters": sum(each.numel() for each in network.parameters()), "macs": macs}


@pytest.mark.parametrize(
    "backbone",
    [ResNetSettings(depth=18), ModuleSettings("torchvision.models:resnet18", {"num_classes": 10})],
    ids=["built in", "from a factory"],
)
def test_no_weights_are_allocated_for_what_a_proposal_costs(backbone: Any) -> None:
    shape = (3, 32, 32)
    with largest() as recorded:
        architecture = proposed(backbone, shape)
        found = known_costs(Experiment(backbone=backbone, architecture=architecture), shape=shape, classes=10)
    weights = outline(backbone, shape, 10).connections
    assert found["macs"] > 1_000_000
    # A number for each pair of two layers' nodes is what memberships are multiplied to; weights have nine.
    assert recorded.largest <= max(each.shape[0] * each.shape[1] for each in weights)
    assert recorded.largest < max(math.prod(each.shape) for each in weights) / 8


@pytest.mark.parametrize("name", [name for name in BACKBONES if isinstance(BACKBONES[name], ModuleSettings)])
def test_an_analysis_without_values_is_the_one_with_values(name: str, splits: Splits) -> None:
    without, values = (_analyzed(BACKBONES[name], splits.shape, 10, device=device) for device in ("meta", "cpu"))
    assert without is not None
    assert values is not None
    assert without.graph_hash == values.graph_hash
    assert (without.layers, without.connections, without.edges) == (values.layers, values.connections, values.edges)


def test_a_factory_that_needs_values_gets_them_and_that_is_said() -> None:
    setting = Experiment(backbone=ModuleSettings("tests/fixtures/networks.py:with_values"))
    (note,) = notes_of(setting, shape=(1, 8, 8), classes=10)
    assert note.startswith(
        "the checks of the study allocate the weights of tests/fixtures/networks.py:with_values, since"
    )
    assert "networks.py:94" in note
    small = Experiment(backbone=ModuleSettings("tests/fixtures/networks.py:Small"))
    assert notes_of(small, shape=(1, 8, 8), classes=10) == ()


def test_what_a_module_keeps_of_a_call_without_values_harms_no_network(tmp_path: Path, splits: Splits) -> None:
    file = tmp_path / "keeps.py"
    file.write_text(KEPT)
    backbone = ModuleSettings(f"{file}:Net")
    experiment = Experiment(backbone=backbone)
    known_costs(experiment, shape=splits.shape, classes=10)
    network = build(experiment, splits)
    assert network(splits.train.images[:2]).isfinite().all()
    analysis = analysis_of(backbone, splits.shape, 10)
    assert not any(value.is_meta for value in analysis.trace.constants.values())
