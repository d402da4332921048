import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.inception import PLANS, Inception, InceptionModule, InceptionSettings

SMALL = (3, 16, 16)


def network(shape: tuple[int, int, int] = SMALL, classes: int = 10, **settings) -> Inception:
    torch.manual_seed(0)
    return Inception(InceptionSettings(**settings), shape, classes)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def channels(module: nn.Module) -> int:
    return sum(layer.num_features for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))


class Noise(nn.Module):
    """Adds noise in training, from the generator that it is given; keeps the shapes that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x + torch.randn(x.shape, generator=generator) if self.training else x


class Halved(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.linear(x) / 2


def test_parameters_are_those_of_the_published_model_less_the_biases_of_its_convolutions():
    with torch.device("meta"):
        built = network((3, 224, 224), 1000, variant="full")
    assert parameters(built) + channels(built) == 11_295_240  # the Caffe model, and its ports, have one bias a channel


def test_macs_of_the_full_network_are_about_two_billion():
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network((3, 224, 224), 1000, variant="full").eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() // 2 == pytest.approx(
        2.03e9, rel=0.01
    )  # the paper's table 1 has its sizes: 28, 14, 7


def test_parameters_of_the_compact_network_are_those_counted_by_hand():
    convolutions = [
        (3, 96, 9),
        *[(96, 32, 1), (96, 32, 1), (32, 32, 9), (96, 32, 1), (32, 48, 9), (48, 48, 9), (96, 16, 1)],  # gives 128
        *[(128, 64, 1), (64, 80, 9), (128, 32, 1), (32, 48, 9), (48, 48, 9)],  # 80 + 48 + 128 = 256, halved
        *[(256, 112, 1), (256, 32, 1), (32, 48, 9), (256, 48, 1), (48, 64, 9), (64, 64, 9), (256, 64, 1)],  # 288
        *[(288, 48, 1), (288, 64, 1), (64, 96, 9), (288, 80, 1), (80, 96, 9), (96, 96, 9), (288, 64, 1)],  # 304
        *[(304, 64, 1), (64, 96, 9), (304, 96, 1), (96, 128, 9), (128, 128, 9)],  # 96 + 128 + 304 = 528, halved
        *[(528, 176, 1), (528, 96, 1), (96, 160, 9), (528, 96, 1), (96, 112, 9), (112, 112, 9), (528, 64, 1)],  # 512
    ]
    expected = sum(inputs * outputs * window + 2 * outputs for inputs, outputs, window in convolutions)
    assert parameters(network(classes=100)) == expected + 512 * 100 + 100


def test_two_hidden_layers_add_what_they_hold():
    added = parameters(network(classes=100, hidden=(512, 512))) - parameters(network(classes=100))
    assert added == 2 * (512 * 512 + 2 * 512)  # weights and batch normalization; 512 features come in


@pytest.mark.parametrize(
    ("variant", "shape", "sides"), [("compact", (1, 28, 28), (14, 7, 7)), ("full", (3, 65, 48), (5, 3, 3))]
)
def test_each_group_but_the_last_halves_the_sides(variant, shape, sides):
    built = Inception(InceptionSettings(variant=variant, width=0.125), shape, 5, sites=Sites(maps=Noise)).eval()
    built(torch.zeros(2, *shape))
    assert tuple(layer.shapes[0][2] for layer in built.maps.values()) == sides


@pytest.mark.parametrize("widths", PLANS["full"].groups["group4"])
def test_a_module_concatenates_its_paths(widths):
    module = InceptionModule(24, widths).eval()
    x = torch.randn(2, 24, 7, 7, generator=torch.Generator().manual_seed(0))
    y = module(x)
    assert y.shape[1] == module.outputs
    start = 0
    for path in module.paths:
        part = path(x)
        assert torch.equal(y[:, start : start + part.shape[1]], part)
        start += part.shape[1]
    assert start == module.outputs
    if not widths.direct:
        assert torch.equal(y[:, -24:], nn.functional.max_pool2d(x, 3, 2, 1))


def test_connections_are_the_weights_of_the_head():
    built = network(hidden=(12, 6))
    named = [(*c.layers, c.positions) for c in built.connections]
    assert named == [("features", "hidden1", 1), ("hidden1", "hidden2", 1), ("hidden2", "classes", 1)]
    assert built.widths == {"features": 512, "hidden1": 12, "hidden2": 6, "classes": 10}
    assert [tuple(built.get_parameter(c.weight).shape) for c in built.connections] == [(12, 512), (6, 12), (10, 6)]


def test_draws_of_a_regularizer_depend_on_the_generator_alone():
    built = Inception(InceptionSettings(width=0.25, hidden=(8,)), SMALL, 10, sites=Sites(nodes=Noise, weights=Halved))
    x = torch.randn(4, *SMALL, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, second, other = (built(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert all(isinstance(layer, Halved) for layer in built.head.linears)


def test_eval_is_deterministic_and_a_copy_and_a_round_trip_give_the_same():
    built, again = network(width=0.25).eval(), network(width=0.25)
    again.load_state_dict(built.state_dict())
    x = torch.randn(2, *SMALL, generator=torch.Generator().manual_seed(0))
    for other in (built, copy.deepcopy(built), again.eval()):
        assert torch.equal(other(x), built(x))


def test_double_precision_is_kept_and_gradient_reaches_every_parameter():
    built = network(width=0.25, hidden=(8,)).double()
    x = torch.randn(4, *SMALL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = built(x)
    assert logits.dtype == torch.float64
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in built.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "v3"}, r"variant must be one of compact, full, got 'v3'"),
        ({"width": -1.0}, r"width must be above 0, got width=-1\.0"),
        ({"hidden": (0,)}, r"each of hidden must be at least 1, got hidden=0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InceptionSettings(**settings)


def test_a_network_that_is_only_looked_at_draws_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights without values were drawn")

    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", refuse)
    with torch.device("meta"):
        Inception(InceptionSettings(), (3, 32, 32), 10)
