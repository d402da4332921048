"""The masked linear layer that never holds its weight, against the plain formula; and what stands in for a weight."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nas_blockout.methods.masking import (
    LazilyMasked,
    binary_masked_weight,
    lazily_masked,
    masked_linear,
    masked_weight,
)

OUT, IN, CLUSTERS = 515, 37, 3  # two whole slices of nodes and a part of one


def parts(out: int = OUT) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out, IN, generator=generator, dtype=torch.float64)
    c_out, c_in = (torch.rand(nodes, CLUSTERS, generator=generator, dtype=torch.float64) for nodes in (out, IN))
    return weight.requires_grad_(), c_out.requires_grad_(), c_in.requires_grad_()


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: Tensor, c_in: Tensor) -> Tensor:
    """Eq. 4 as it is written: mask, product, layer."""
    return F.linear(x, weight * (c_out @ c_in.T) / CLUSTERS, bias)


@pytest.mark.parametrize("leading", [(7,), (2, 5), ()])
@pytest.mark.parametrize("with_bias", [True, False])
def test_masked_linear_is_the_plain_formula_in_value_and_gradient(leading: tuple[int, ...], with_bias: bool) -> None:
    weight, c_out, c_in = parts()
    x = torch.randn(*leading, IN, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(OUT, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = [x, weight, c_out, c_in, *([bias] if bias is not None else [])]
    found, expected = masked_linear(x, weight, bias, c_out, c_in), plain(x, weight, bias, c_out, c_in)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(value, inputs, upstream) for value in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_only_what_needs_a_gradient_gets_one() -> None:
    weight, c_out, c_in = (value.detach() for value in parts())
    x = torch.randn(4, IN, dtype=torch.float64)
    assert not masked_linear(x, weight, None, c_out, c_in).requires_grad
    weight.requires_grad_()
    masked_linear(x, weight, None, c_out, c_in).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0) * (c_out @ c_in.T) / CLUSTERS)
    assert x.grad is None


def test_a_linear_layer_takes_what_stands_in_for_its_weight_without_making_it() -> None:
    layer, x = nn.Linear(IN, OUT).double(), torch.randn(4, IN, dtype=torch.float64)
    _, c_out, c_in = parts()
    lazy = lazily_masked(layer.weight, c_out, c_in)
    assert isinstance(lazy, LazilyMasked)
    found = functional_call(layer, {"weight": lazy}, (x,))
    torch.testing.assert_close(found, plain(x, layer.weight, layer.bias, c_out, c_in))
    found.sum().backward()
    assert layer.weight.grad is not None
    assert lazy.made is None


def test_whatever_else_uses_it_gets_the_masked_weight_and_its_gradient() -> None:
    weight, c_out, c_in = parts()
    lazy, masked = lazily_masked(weight, c_out, c_in), masked_weight(weight, c_out, c_in)
    x = torch.randn(4, IN, dtype=torch.float64)
    for use in (
        lambda w: x @ w.T,
        lambda w: w[3:9].exp(),
        lambda w: F.linear(x, weight=w),
        lambda w: torch.cat([w, w]),
    ):
        torch.testing.assert_close(use(lazy), use(masked))
    ours, theirs = (torch.autograd.grad((x @ w.T).square().sum(), c_out)[0] for w in (lazy, masked))
    torch.testing.assert_close(ours, theirs)
    assert lazy.shape == masked.shape


def test_small_weights_and_convolutions_are_made_at_once() -> None:
    weight, c_out, c_in = parts(out=16)
    assert type(lazily_masked(weight, c_out, c_in)) is Tensor
    kernel = torch.randn(OUT, IN, 3, 3, dtype=torch.float64)
    assert type(lazily_masked(kernel, parts()[1], c_in)) is Tensor


@pytest.mark.parametrize("window", [(), (3, 3), (2,)])
@pytest.mark.parametrize("drawn", [True, False])
def test_binary_masks_are_the_chance_to_meet_in_value_and_gradient(window: tuple[int, ...], drawn: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(OUT, IN, *window, generator=generator, dtype=torch.float64, requires_grad=True)
    sides = [torch.rand(nodes, CLUSTERS, generator=generator, dtype=torch.float64) for nodes in (OUT, IN)]
    c_out, c_in = ((side.round() if drawn else side).requires_grad_() for side in sides)
    apart = torch.ones(OUT, IN, dtype=torch.float64)
    for cluster in range(CLUSTERS):
        apart = apart * (1 - c_out[:, None, cluster] * c_in[None, :, cluster])
    expected = weight * (1 - apart)[(...,) + (None,) * len(window)]
    found = binary_masked_weight(weight, c_out, c_in)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    for wanted in ([weight, c_out, c_in], [weight], [c_out, c_in]):
        ours, theirs = (torch.autograd.grad(each, wanted, upstream, retain_graph=True) for each in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_masked_weights_of_several_slices_are_the_plain_formula_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(90, 600, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    c_out, c_in = (
        torch.rand(nodes, 3, generator=generator, dtype=torch.float64).requires_grad_() for nodes in (90, 600)
    )
    expected = weight * (c_out @ c_in.T / 3)[:, :, None, None]
    found, upstream = masked_weight(weight, c_out, c_in), torch.randn_like(weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for wanted in ([weight, c_out, c_in], [weight], [c_out, c_in]):
        ours, theirs = (torch.autograd.grad(each, wanted, upstream, retain_graph=True) for each in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("scaled", [masked_weight, binary_masked_weight])
@pytest.mark.parametrize("order", ["channels last", "channels first", "window first"])
def test_a_masked_weight_keeps_the_order_of_its_memory_and_so_does_its_gradient(
    scaled: Callable[..., Tensor], order: str
) -> None:
    generator = torch.Generator().manual_seed(7)
    numbers = torch.randn(40, 24, 3, 2, generator=generator, dtype=torch.float64)
    c_out, c_in = (torch.rand(nodes, 3, generator=generator, dtype=torch.float64).round() for nodes in (40, 24))
    permuted = {"channels last": (0, 2, 3, 1), "channels first": (0, 1, 2, 3), "window first": (2, 3, 1, 0)}[order]
    back = tuple(permuted.index(dim) for dim in range(4))
    weight = numbers.permute(permuted).contiguous().permute(back).requires_grad_()
    sides = [side.clone().requires_grad_() for side in (c_out, c_in)]
    common = sides[0] @ sides[1].T
    mask = (
        common / 3
        if scaled is masked_weight
        else 1
        - torch.stack([1 - sides[0][:, None, cluster] * sides[1][None, :, cluster] for cluster in range(3)]).prod(0)
    )
    expected, found = weight * mask[:, :, None, None], scaled(weight, *sides)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        upstream = torch.randn(numbers.shape, dtype=torch.float64).contiguous(memory_format=memory_format)
        ours, theirs = (
            torch.autograd.grad(each, [weight, *sides], upstream, retain_graph=True) for each in (found, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)
        if order != "window first":  # whose window is no dim of its own
            assert found.stride() == weight.stride() == ours[0].stride()
