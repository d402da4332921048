"""Dropout and the draws that all methods share, against torch's own in distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nas_blockout.methods.dropout import Dropout, DropoutSettings, dropout
from nas_blockout.methods.random_masks import bernoulli_, checked_maps, keep_mask


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(probability=st.floats(0, 1), count=st.integers(0, 300), seed=st.integers(0, 2**31))
def test_a_one_is_a_32_bit_integer_below_its_threshold(probability: float, count: int, seed: int) -> None:
    found = bernoulli_(torch.empty(count), probability, seeded(seed))
    words = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=seeded(seed))
    drawn = [half for word in words.tolist() for half in ((word & 0xFFFFFFFF), (word >> 32) & 0xFFFFFFFF)]
    signed = [value - 2**32 if value >= 2**31 else value for value in drawn[:count]]
    threshold = round(probability * 2**32) - 2**31
    assert found.tolist() == [float(value < threshold) for value in signed]


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_draws_have_the_probability_and_are_independent(probability: float) -> None:
    draws = torch.stack([bernoulli_(torch.empty(40), probability, seed) for seed in [seeded()] for _ in range(20_000)])
    z = (draws.mean(0) - probability) / math.sqrt(probability * (1 - probability) / len(draws))
    assert float(z.abs().max()) < 4.5
    correlations = torch.corrcoef(draws.t()).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 5.5 / math.sqrt(len(draws))


def test_certain_draws_are_certain() -> None:
    assert bool((bernoulli_(torch.empty(1000), 1, seeded()) == 1).all())
    assert bool((bernoulli_(torch.empty(1000), 0, seeded()) == 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool])
def test_a_draw_is_the_same_in_every_dtype(dtype: torch.dtype) -> None:
    expected = bernoulli_(torch.empty(4, 5), 0.4, seeded())
    assert torch.equal(bernoulli_(torch.empty(4, 5, dtype=dtype), 0.4, seeded()).float(), expected)


def test_a_draw_follows_the_memory_of_its_target() -> None:
    target = torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    found = bernoulli_(target, 0.4, seeded())
    assert torch.equal(found.permute(0, 2, 3, 1).flatten(), bernoulli_(torch.empty(2 * 3 * 4 * 5), 0.4, seeded()))


def test_the_mask_has_the_mean_one() -> None:
    mask = keep_mask(torch.empty(50_000, dtype=torch.float64), 0.2, seeded())
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    assert abs(float(mask.mean()) - 1) < 5 * math.sqrt(0.25 / 50_000)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_outputs_are_distributed_as_those_of_torch(rate: float) -> None:
    x = torch.linspace(-2, 2, 40_000).requires_grad_()
    ours = dropout(x, rate=rate, generator=seeded())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = F.dropout(x, rate)
    kept = ours != 0
    torch.testing.assert_close(ours[kept], (x / (1 - rate))[kept])
    torch.testing.assert_close(theirs[theirs != 0], (x / (1 - rate))[theirs != 0])
    spread = math.sqrt(2 * rate * (1 - rate) / len(x))
    assert abs(float((ours == 0).float().mean() - (theirs == 0).float().mean())) < 5 * spread
    gradient = torch.autograd.grad(ours.sum(), x)[0]
    assert torch.equal(gradient != 0, kept)


def test_inputs_of_any_shape_are_dropped() -> None:
    layer = Dropout(DropoutSettings(0.5))
    for shape in [(7,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (0, 3)]:
        assert layer(torch.ones(shape), seeded()).shape == shape


def test_a_transposed_input_is_dropped_entry_by_entry() -> None:
    x = torch.ones(300, 200).t()
    share = float((dropout(x, rate=0.3, generator=seeded()) == 0).float().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.21 / x.numel())


def test_an_expanded_input_is_dropped_entry_by_entry() -> None:
    y = dropout(torch.ones(1, 50).expand(40, 50), rate=0.5, generator=seeded())
    assert not bool((y == y[:1]).all())


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    rule = "a finite number" if math.isnan(rate) else r"in \[0, 1\)"
    with pytest.raises(ValueError, match=f"rate must be {rule}, got rate={rate}"):
        DropoutSettings(rate)


def test_features_are_no_maps() -> None:
    with pytest.raises(ValueError, match=r"Dropout reads maps of shape .*, got \(2, 3\); for features .* use dropout"):
        checked_maps(Dropout(DropoutSettings()), torch.ones(2, 3))


def test_the_rate_is_printed() -> None:
    assert repr(Dropout(DropoutSettings(0.25))) == "Dropout(rate=0.25)"
