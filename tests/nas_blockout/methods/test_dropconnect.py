"""DropConnect: what it drops, and that its state is that of the plain linear layer."""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings, dropconnect


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wrapped(
    rate: float = 0.5, *, bias: bool = True, masks: Literal["sample", "batch"] = "sample"
) -> tuple[DropConnect, nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        linear = nn.Linear(40, 30, bias=bias)
    return DropConnect(DropConnectSettings(rate, masks=masks), linear), linear


def test_weights_are_dropped_one_by_one_and_the_rest_scaled_up() -> None:
    weight = torch.ones(200, 300)
    found = dropconnect(weight, rate=0.2, generator=seeded())
    assert set(found.unique().tolist()) == {0.0, 1.25}
    assert abs(float((found == 0).float().mean()) - 0.2) < 5 * math.sqrt(0.16 / weight.numel())


def test_each_sample_has_a_mask_of_its_own() -> None:
    """The form of the paper, section 3: each element of the mask is drawn independently for each example."""
    layer, linear = wrapped()
    x = torch.eye(40)[:1].expand(500, 40)
    y = layer(x, seeded()) - linear.bias
    dropped = y == 0
    share = dropped.float().mean(0)  # of the samples, for every weight of the first column
    assert float((share - 0.5).abs().max()) < 5 * math.sqrt(0.25 / 500)
    assert not bool((dropped == dropped[:1]).all())
    torch.testing.assert_close(y, torch.where(dropped, 0.0, 2 * linear.weight[:, 0]))


def test_one_draw_serves_the_whole_batch_where_the_setting_says_so() -> None:
    layer, _ = wrapped(masks="batch")
    row = torch.linspace(-1, 1, 40).expand(6, 40)
    y = layer(row, seeded())
    torch.testing.assert_close(y, y[:1].expand_as(y))


def test_the_bias_is_never_dropped() -> None:
    layer, linear = wrapped(0.9)
    torch.testing.assert_close(layer(torch.zeros(2, 40), seeded()), linear.bias.expand(2, 30))


def test_a_layer_without_bias_is_wrapped() -> None:
    layer, linear = wrapped(bias=False)
    x = torch.ones(3, 40)
    assert torch.equal(layer.eval()(x), F.linear(x, linear.weight))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_state_is_that_of_the_plain_layer() -> None:
    layer, linear = wrapped()
    assert layer.state_dict().keys() == linear.state_dict().keys()
    other = nn.Linear(40, 30)
    other.load_state_dict(layer.state_dict())
    x = torch.ones(2, 40)
    assert torch.equal(other(x), layer.eval()(x))


def test_dropped_weights_get_no_gradient() -> None:
    layer, linear = wrapped(masks="batch")
    layer(torch.ones(2, 40), seeded()).sum().backward()
    mask = dropconnect(torch.ones_like(linear.weight), rate=0.5, generator=seeded())
    assert torch.equal(linear.weight.grad, 2 * mask)


def test_sizes_and_rate_are_printed() -> None:
    assert repr(wrapped()[0]) == "DropConnect(in_features=40, out_features=30, rate=0.5, masks=sample)"
