"""The laws that every method keeps, one row a method.

To add a method, add a row to `ROWS`. A law that does not apply to a row is left out by what the row says of itself.
"""

import copy
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_blockout.methods import METHODS, method_from_json, method_to_json
from nas_blockout.methods.dropblock import DropBlock, DropBlockSettings
from nas_blockout.methods.dropcluster import DropCluster, DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings
from tests.nas_blockout.methods import oracles
from tests.nas_blockout.methods.oracles import Oracle

SEED = 11
FEATURES = (6, 10)
MAPS = (3, 4, 6, 6)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def identity(layer: nn.Module, x: Tensor) -> Tensor:
    return x


def nothing(layer: nn.Module) -> None:
    """Leave a layer as it was built."""


@dataclass(frozen=True)
class Row:
    """One method under the contract.

    Args:
        method: Its registered name.
        construct: Builds a layer whose initial weights, if any, come from torch's global generator.
        oracle: Computes the same in loops, from the equations: ``oracle(layer, x, generator)``; eval without generator.
        shape: Of an input.
        plain: What the layer is when nothing is dropped.
        keep_all: Builds a layer that drops nothing; None if no settings do that.
        ready: Brings a new layer to where it draws.
        unbiased: Whether the mean of many draws approaches eval.
    """

    method: str
    construct: Callable[[], nn.Module]
    oracle: Oracle
    shape: tuple[int, ...]
    plain: Callable[[nn.Module, Tensor], Tensor] = identity
    keep_all: Callable[[], nn.Module] | None = None
    ready: Callable[[nn.Module], None] = nothing
    unbiased: bool = True

    def input(self, dtype: torch.dtype = torch.float64, seed: int = SEED) -> Tensor:
        return torch.randn(self.shape, generator=seeded(seed), dtype=torch.float64).to(dtype)

    def layer(self, dtype: torch.dtype = torch.float64, seed: int = SEED) -> nn.Module:
        """A layer in training that draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = self.construct()
        self.ready(layer)
        return layer.to(dtype).train()


def seeded(seed: int = SEED, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def linear() -> nn.Linear:
    return nn.Linear(FEATURES[1], 5)


def observe(layer: nn.Module) -> None:
    """Show a DropCluster images, as the training loop does."""
    layer.prepare_epoch(0, 1)
    layer.eval()(torch.randn(12, *MAPS[1:], generator=seeded(1)))


def clusters(**settings: Any) -> Row:
    """A row of DropCluster under given settings."""
    return Row(
        "dropcluster",
        lambda: DropCluster(DropClusterSettings(rate=0.3, cluster_size=4, ramp_epochs=0, **settings)),
        oracles.dropcluster,
        MAPS,
        keep_all=lambda: DropCluster(DropClusterSettings(rate=0, cluster_size=4, **settings)),
        ready=observe,
    )


ROWS = {
    "dropout": Row(
        "dropout",
        lambda: Dropout(DropoutSettings(0.3)),
        oracles.dropout,
        FEATURES,
        keep_all=lambda: Dropout(DropoutSettings(0)),
    ),
    "spatial_dropout": Row(
        "spatial_dropout",
        lambda: SpatialDropout(SpatialDropoutSettings(0.3)),
        oracles.spatial_dropout,
        MAPS,
        keep_all=lambda: SpatialDropout(SpatialDropoutSettings(0)),
    ),
    "dropconnect": Row(
        "dropconnect",
        lambda: DropConnect(DropConnectSettings(0.3), linear()),
        oracles.dropconnect,
        FEATURES,
        plain=lambda layer, x: nn.functional.linear(x, layer.weight, layer.bias),
        keep_all=lambda: DropConnect(DropConnectSettings(0), linear()),
    ),
    "dropconnect, a mask a batch": Row(
        "dropconnect",
        lambda: DropConnect(DropConnectSettings(0.3, masks="batch"), linear()),
        oracles.dropconnect,
        FEATURES,
        plain=lambda layer, x: nn.functional.linear(x, layer.weight, layer.bias),
        keep_all=lambda: DropConnect(DropConnectSettings(0, masks="batch"), linear()),
    ),
    "dropblock": Row(
        "dropblock",
        lambda: DropBlock(DropBlockSettings(rate=0.3, block_size=3, schedule="constant")),
        oracles.dropblock,
        MAPS,
        keep_all=lambda: DropBlock(DropBlockSettings(rate=0)),
        unbiased=False,  # positions at the rim lie in fewer blocks than those in the middle
    ),
    "dropcluster": clusters(),
    "dropcluster, rena": clusters(clustering="rena"),
    "dropcluster, a mask a batch": clusters(masks="batch"),
    "dropcluster, random labels": clusters(labels="random"),
    "dropcluster, contiguous labels": clusters(labels="contiguous"),
}


@pytest.fixture(params=ROWS.values(), ids=ROWS.keys())
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


def those(claim: Callable[[Row], bool]) -> pytest.MarkDecorator:
    """Run a law for the rows that it applies to."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items() if claim(row)])


def gradients(output: Tensor, layer: nn.Module, x: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()]))


def test_every_method_with_a_layer_has_a_row() -> None:
    with_layer = {name for name, method in METHODS.items() if method.layer is not None}
    assert with_layer <= {row.method for row in ROWS.values()} <= set(METHODS)


def test_training_equals_the_oracle_in_value_and_gradient(row: Row) -> None:
    layer, x = row.layer(), row.input().requires_grad_()
    found, expected = layer(x, seeded()), row.oracle(layer, x, seeded())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, layer, x), gradients(expected, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_eval_equals_the_oracle_and_the_plain_layer(row: Row) -> None:
    layer, x = row.layer().eval(), row.input()
    torch.testing.assert_close(layer(x), row.oracle(layer, x, None), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x), row.plain(layer, x), rtol=0, atol=0)


def test_eval_is_deterministic_and_draws_nothing(row: Row) -> None:
    layer, x, generator = row.layer().eval(), row.input(), seeded()
    before = generator.get_state()
    assert torch.equal(layer(x), layer(x, generator))
    assert torch.equal(generator.get_state(), before)


def test_training_without_a_generator_says_what_to_write(row: Row) -> None:
    layer = row.layer()
    rule = f"{type(layer).__name__} needs a generator in training: call .*generator=torch.Generator"
    with pytest.raises(ValueError, match=rule):
        layer(row.input())


def test_same_seed_gives_the_same_output_and_another_seed_another(row: Row) -> None:
    layer, x = row.layer(), row.input()
    assert torch.equal(layer(x, seeded()), layer(x, seeded()))
    assert not torch.equal(layer(x, seeded()), layer(x, seeded(SEED + 1)))


def test_one_generator_gives_a_new_draw_at_every_call(row: Row) -> None:
    layer, x, generator = row.layer(), row.input(), seeded()
    assert not torch.equal(layer(x, generator), layer(x, generator))


@those(lambda row: row.keep_all is not None)
def test_keep_all_is_the_plain_layer(row: Row) -> None:
    assert row.keep_all is not None
    layer = replace(row, construct=row.keep_all).layer()
    x = row.input()
    torch.testing.assert_close(layer(x, seeded()), row.plain(layer, x), rtol=1e-14, atol=1e-14)


@those(lambda row: row.unbiased)
@torch.no_grad()
def test_mean_of_many_draws_approaches_eval(row: Row) -> None:
    layer, x, generator = row.layer(), row.input(), seeded()
    draws = torch.stack([layer(x, generator) for _ in range(2000)])
    error = (draws.mean(0) - layer.eval()(x)).abs()
    assert float((error / (draws.std(0) / 2000**0.5 + 1e-12)).max()) < 5.5


def test_gradient_reaches_the_input_and_every_parameter(row: Row) -> None:
    layer, x, generator = row.layer(), row.input().requires_grad_(), seeded()
    for _ in range(30):
        layer(x, generator).square().sum().backward()
    for value in (x, *layer.parameters()):
        assert value.grad is not None
        assert bool((value.grad != 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dtype_is_kept(row: Row, dtype: torch.dtype, mode: str) -> None:
    layer = row.layer(dtype).train(mode == "train")
    y = layer(row.input(dtype), seeded())
    assert y.dtype == dtype
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("device", DEVICES)
def test_device_is_kept(row: Row, device: str) -> None:
    layer = row.layer().to(device)
    y = layer(row.input().to(device), seeded(device=device))
    assert y.device.type == device
    assert layer.eval()(row.input().to(device)).device.type == device


@those(lambda row: len(row.shape) == 4)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_memory_format_is_kept_and_changes_no_value(row: Row, mode: str) -> None:
    layer, x = row.layer().train(mode == "train"), row.input().contiguous(memory_format=torch.channels_last)
    y = layer(x, seeded())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer(x.contiguous(), seeded()).is_contiguous()


def test_state_makes_another_layer_the_same(row: Row) -> None:
    layer, x = row.layer(), row.input()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        other = row.construct().double()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.train()(x, seeded()), layer(x, seeded()))
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_a_deep_copy_is_the_same_and_apart(row: Row) -> None:
    layer, x = row.layer(), row.input()
    other = copy.deepcopy(layer)
    assert torch.equal(other(x, seeded()), layer(x, seeded()))
    for ours, theirs in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
        assert ours.numel() == 0 or ours.data_ptr() != theirs.data_ptr()


def test_eval_exports(row: Row) -> None:
    layer, x = row.layer(torch.float32).eval(), row.input(torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(x), layer(x))
    assert torch.equal(program.module()(x[:1]), layer(x[:1]))


@contextmanager
def no_global_randomness() -> Iterator[None]:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    yield
    assert states() == before


def test_no_global_randomness_is_consumed(row: Row) -> None:
    layer, x = row.layer(), row.input().requires_grad_()
    with no_global_randomness():
        row.ready(layer.float())
        layer.double().train()(x, seeded()).sum().backward()
        layer.eval()(x)


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_json(name: str) -> None:
    settings = METHODS[name].settings()
    document = method_to_json(settings)
    assert document["name"] == name
    assert method_from_json(document) == settings
    assert method_from_json({"name": name}) == settings


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_frozen_and_all_have_defaults(name: str) -> None:
    settings = METHODS[name].settings
    assert all(item.default is not MISSING for item in fields(settings))
    assert settings.__dataclass_params__.frozen
    assert not hasattr(settings(), "__dict__")


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
