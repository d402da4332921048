"""DropBlock against torchvision's, its calibrations and its schedule."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.methods.dropblock import (
    DropBlock,
    DropBlockSettings,
    covered,
    dropblock,
    expected_dropped_share,
    fitted_block,
    scaled_up,
    seed_rate,
)


def seeded(seed: int = 8) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share_of_zeros(y: Tensor) -> float:
    return float((y == 0).double().mean())


@pytest.mark.parametrize(("height", "width"), [(9, 9), (7, 12), (5, 5)])
@pytest.mark.parametrize("block", [1, 3, 5])
def test_with_the_same_corners_the_output_is_that_of_torchvision(height: int, width: int, block: int) -> None:
    x = torch.randn(4, 3, height, width, generator=seeded(), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        expected = torchvision.ops.drop_block2d(x, 0.2, block)
        torch.manual_seed(2)
        drawn = torch.empty(4, 3, height - block + 1, width - block + 1, dtype=torch.float64)
        drawn.bernoulli_(seed_rate(0.2, block, height, width))
    corners = torch.zeros(x.shape, dtype=torch.uint8)
    corners[:, :, : height - block + 1, : width - block + 1] = drawn
    found = x * scaled_up((covered(corners, block) == 0).double())
    assert torch.equal(found == 0, expected == 0)
    assert 0 < share_of_zeros(found) < 1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # torchvision adds 1e-6 to the number kept


def test_outputs_are_distributed_as_those_of_torchvision() -> None:
    x = torch.ones(400, 4, 8, 10)
    ours = dropblock(x, gamma=seed_rate(0.2, 3, 8, 10), block=3, generator=seeded()) == 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = torchvision.ops.drop_block2d(x, 0.2, 3) == 0
    by_position = [mask.double().mean((0, 1)) for mask in (ours, theirs)]
    z = (by_position[0] - by_position[1]) / math.sqrt(2 * 0.16 / 1600)
    assert float(z.abs().max()) < 5
    neighbors = [(mask[..., 1:] & mask[..., :-1]).double().mean() for mask in (ours, theirs)]
    assert abs(float(neighbors[0] - neighbors[1])) < 0.01


@given(st.integers(1, 7), st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**20))
def test_blocks_cover_their_squares_and_nothing_else(block: int, more: int, wider: int, seed: int) -> None:
    height, width = block + more, block + wider
    corners = torch.zeros(2, 2, height, width, dtype=torch.uint8)
    corners[:, :, : more + 1, : wider + 1] = torch.rand(2, 2, more + 1, wider + 1, generator=seeded(seed)) < 0.2
    expected = torch.zeros_like(corners)
    for n, c, row, column in corners.nonzero().tolist():
        expected[n, c, row : row + block, column : column + block] = 1
    assert torch.equal(covered(corners, block), expected)


@pytest.mark.parametrize(("block", "height", "width"), [(1, 4, 4), (3, 6, 9), (5, 7, 7), (3, 3, 3)])
@pytest.mark.parametrize("calibration", ["paper", "exact"])
def test_the_expected_dropped_share_is_what_it_is_said_to_be(
    block: int, height: int, width: int, calibration: str
) -> None:
    gamma = seed_rate(0.2, block, height, width, calibration=calibration)
    x = torch.ones(4000, 1, height, width)
    shares = (dropblock(x, gamma=gamma, block=block, generator=seeded()) == 0).double().mean((1, 2, 3))
    expected = expected_dropped_share(gamma, block, height, width)
    assert abs(float(shares.mean()) - expected) < 5 * float(shares.std()) / math.sqrt(len(shares))
    if calibration == "exact":
        assert expected == pytest.approx(0.2, abs=1e-12)
    else:
        assert expected <= 0.2 + 1e-12


def test_expected_dropped_share_equals_the_sum_over_all_draws() -> None:
    total, gamma = 0.0, 0.3
    for corners in itertools.product((0, 1), repeat=6):  # a block of 2 x 2 on a map of 3 x 4 stands in 2 x 3 places
        grid = torch.zeros(1, 1, 3, 4, dtype=torch.uint8)
        grid[0, 0, :2, :3] = torch.tensor(corners).view(2, 3)
        probability = gamma ** sum(corners) * (1 - gamma) ** (6 - sum(corners))
        total += probability * float(covered(grid, 2).double().mean())
    assert expected_dropped_share(gamma, 2, 3, 4) == pytest.approx(total, abs=1e-14)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10))
def test_blocks_shrink_to_the_largest_odd_side_that_fits(height: int, width: int, half: int) -> None:
    side = fitted_block(2 * half + 1, height, width)
    assert side % 2 == 1
    assert 1 <= side <= min(2 * half + 1, height, width)
    assert side + 2 > min(2 * half + 1, height, width)
    assert 0 <= seed_rate(0.9, side, height, width) <= 0.9 + 1e-12


def test_a_block_as_large_as_the_map_drops_whole_channels() -> None:
    layer = DropBlock(DropBlockSettings(rate=0.3, block_size=5, schedule="constant"))
    y = layer(torch.ones(500, 4, 5, 5), seeded()).flatten(2)
    assert bool((y == y[:, :, :1]).all())
    assert abs(share_of_zeros(y) - 0.3) < 5 * math.sqrt(0.21 / 2000)


def test_a_batch_that_is_dropped_whole_gives_zeros() -> None:
    y = dropblock(torch.ones(2, 2, 4, 4), gamma=1.0, block=3, generator=seeded())
    assert torch.equal(y, torch.zeros(2, 2, 4, 4))


def test_the_output_is_scaled_to_the_mean_of_the_input() -> None:
    y = dropblock(torch.ones(8, 3, 9, 9), gamma=0.05, block=3, generator=seeded())
    assert float(y.mean()) == pytest.approx(1, abs=1e-6)


def test_a_large_batch_in_half_precision_is_scaled_right() -> None:
    y = dropblock(torch.ones(64, 32, 8, 8, dtype=torch.float16), gamma=0.01, block=3, generator=seeded())
    assert float(y.double().mean()) == pytest.approx(1, abs=2e-3)


def test_the_rate_rises_linearly_to_all_of_it_in_the_last_epoch() -> None:
    layer = DropBlock(DropBlockSettings(rate=0.4, calibration="exact"))
    x, shares = torch.ones(2000, 1, 6, 6), []
    for epoch in range(4):
        layer.prepare_epoch(epoch, 4)
        shares.append(share_of_zeros(layer(x, seeded())))
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)


def test_a_constant_rate_applies_from_the_start() -> None:
    layer = DropBlock(DropBlockSettings(rate=0.4, schedule="constant", calibration="exact"))
    layer.prepare_epoch(0, 100)
    assert share_of_zeros(layer(torch.ones(2000, 1, 6, 6), seeded())) == pytest.approx(0.4, abs=0.02)


def test_features_are_refused_and_settings_are_printed() -> None:
    layer = DropBlock(DropBlockSettings())
    with pytest.raises(ValueError, match=r"DropBlock reads maps .*, got \(2, 3\)"):
        layer(torch.ones(2, 3), seeded())
    assert repr(layer) == "DropBlock(rate=0.1, block_size=3)"


@pytest.mark.parametrize(
    "setting", [{"block_size": 0}, {"block_size": 4}, {"schedule": "cosine"}, {"calibration": "no"}]
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, object]) -> None:
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{name} must .*got .*{value}"):
        DropBlockSettings(**setting)
