"""DropBlock: square blocks of feature maps are dropped, so that what is missing cannot be filled in from next to it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from nas_blockout.methods.random_masks import bernoulli_, checked_maps, generator_for, threshold_of
from nas_blockout.randomness.batch_shards import own_rows, whole_shape
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import Conflict, Range, check
from nas_blockout.training_protocol import TrainableLayer

Schedule = Literal["linear", "constant"]
Calibration = Literal["paper", "exact"]

_BISECTIONS = 60  # halves [0, 1] down to the precision of a float


@dataclass(frozen=True, slots=True)
class DropBlockSettings:
    """Settings of DropBlock.

    Args:
        rate: Share of positions to drop; see `calibration`.
        block_size: Side of a block in positions, odd; on smaller maps the largest odd side that fits.
        schedule: ``linear`` raises the rate over the epochs up to `rate` in the last one; ``constant`` uses `rate`
            throughout.
        calibration: ``paper`` uses the paper's seed rate, which ignores overlaps of blocks and therefore drops fewer
            positions than `rate`; ``exact`` uses the seed rate whose expected dropped share is `rate`.
        last_stages: How many of the last convolution stages it follows, at most, two in the paper; None for all.
    """

    rate: Annotated[float, Range(ge=0, lt=1)] = 0.1
    block_size: Annotated[int, Range(ge=1)] = 3
    schedule: Schedule = "linear"
    calibration: Calibration = "paper"
    last_stages: Annotated[int, Range(ge=1)] | None = 2

    def __post_init__(self) -> None:
        check(self)
        if self.block_size % 2 == 0:
            raise Conflict(f"block_size must be odd, got block_size={self.block_size}", "block_size")


def fitted_block(block_size: int, height: int, width: int) -> int:
    """Return the side of the blocks on a map: `block_size`, or the largest odd side that fits."""
    side = min(block_size, height, width)
    return side - (side % 2 == 0)


def expected_dropped_share(gamma: float, block: int, height: int, width: int) -> float:
    r"""Return the expected share of positions of a map that blocks drop.

    .. math:: 1 - \frac{1}{HW} \sum_i (1 - \gamma)^{n_i}

    where `n_i` is the number of places for the center of a block that covers position i.

    Args:
        gamma: Probability that a place is the center of a block, in [0, 1].
        block: Side of a block, odd, at most the height and the width.
        height: H.
        width: W.
    """
    by_row, by_column = _places(height, block), _places(width, block)
    kept = sum((1 - gamma) ** (rows * columns) for rows in by_row for columns in by_column)
    return 1 - kept / (height * width)


@lru_cache(maxsize=4096)
def seed_rate(rate: float, block: int, height: int, width: int, *, calibration: Calibration = "paper") -> float:
    r"""Return the probability that a place is the center of a block.

    .. math:: \gamma = \frac{p}{b^2} \frac{H W}{(H - b + 1)(W - b + 1)}

    Args:
        rate: p, share of positions to drop, in [0, 1).
        block: b, side of a block, odd, at most the height and the width.
        height: H.
        width: W.
        calibration: ``paper`` is the equation, ``exact`` solves ``expected_dropped_share == rate``.

    References:
        Ghiasi, Lin, Le. DropBlock: A regularization method for convolutional networks. NeurIPS 2018, eq. 1.
    """
    if calibration == "paper":
        return rate * height * width / (block**2 * (height - block + 1) * (width - block + 1))
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if expected_dropped_share(middle, block, height, width) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def covered(corners: Tensor, block: int) -> Tensor:
    """Mark every position that a block covers.

    A block grows from its top left corner by doubling shifts along the flat memory: since no corner lies less than a
    block from the right or lower edge, no shift crosses into the next row, channel or sample.

    Args:
        corners: Ones at the top left corners of blocks, uint8, shape ``(batch, channels, height, width)``; zero in the
            last ``block - 1`` rows and columns.
        block: Side of a block, 1 or more, at most the height and the width.

    Returns:
        Ones and zeros, uint8, shaped as `corners`.
    """
    flat = corners.reshape(-1)
    for stride in (1, corners.shape[3]):
        side = 1
        while side < block:
            step = min(side, block - side)
            grown = flat.clone()
            grown[step * stride :] |= flat[: -step * stride]
            flat, side = grown, side + step
    return flat.view(corners.shape)


def dropblock(x: Tensor, *, gamma: float | Tensor, block: int, generator: Randomness) -> Tensor:
    """Drop drawn blocks, each channel of each sample on its own, and scale the rest up.

    The output is scaled by the number of entries over the number that is kept, over the whole batch.

    Args:
        x: Feature maps, shape ``(batch, channels, height, width)``.
        gamma: Probability that a block stands at a place, in [0, 1], or its threshold as of `bernoulli_`; blocks lie
            inside the map.
        block: Side of a block, odd, at most the height and the width.
        generator: Source of randomness, on the device of `x`.

    Returns:
        Shaped as `x`, in its memory format; zeros if everything is dropped.

    References:
        Ghiasi, Lin, Le. DropBlock: A regularization method for convolutional networks. NeurIPS 2018, algorithm 1.
    """
    shape = whole_shape(x.shape, generator)
    batch, channels, height, width = shape
    corners = torch.zeros(shape, dtype=torch.uint8, device=x.device)
    drawn = corners.new_empty(batch, channels, height - block + 1, width - block + 1)
    corners[:, :, : height - block + 1, : width - block + 1] = bernoulli_(drawn, gamma, generator)
    kept = scaled_up(torch.eq(covered(corners, block), 0, out=x.new_empty(shape)))
    return x * own_rows(kept, generator)


def scaled_up(kept: Tensor) -> Tensor:
    """Scale a mask of ones and zeros, in place, to the mean 1; a mask of zeros stays."""
    total = kept.sum(dtype=torch.float64).clamp_(min=1)
    return kept.mul_((kept.numel() / total).to(kept.dtype))


class DropBlock(TrainableLayer):
    """Drop square blocks of every channel in training; the identity in eval.

    Args:
        settings: Rate, size of the blocks and how the rate rises.

    Raises:
        ValueError: It is called in training without a generator, or with an input that is no feature map.

    References:
        Ghiasi, Lin, Le. DropBlock: A regularization method for convolutional networks. NeurIPS 2018.

    Differs from the paper in: the rate rises from epoch to epoch instead of from step to step; the calibration
    ``exact``, which is off by default; and blocks shrink to fit small maps.
    """

    threshold: Tensor

    def __init__(self, settings: DropBlockSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ramp = 1.0
        self._map: tuple[int, int] | None = None
        self.register_buffer("threshold", torch.zeros((), dtype=torch.int32), persistent=False)

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Set the share of the rate that applies in an epoch, counted from 0."""
        self.ramp = (epoch + 1) / epochs if self.settings.schedule == "linear" else 1.0
        if self._map is not None:
            self._fit(*self._map)

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return `x`, shape ``(batch, channels, height, width)``, with blocks dropped in training."""
        if not self.training:
            return x
        generator = generator_for(self, generator)
        height, width = checked_maps(self, x).shape[2:]
        if self._map != (height, width):
            self._fit(height, width)
        block = fitted_block(self.settings.block_size, height, width)
        return dropblock(x, gamma=self.threshold, block=block, generator=generator) if self.settings.rate else x

    def know(self, seen: nn.Module) -> None:
        """Take over the sides of the maps that a copy has seen."""
        assert isinstance(seen, DropBlock)
        if seen._map is not None:
            self._fit(*seen._map)

    def _fit(self, height: int, width: int) -> None:
        """Set the threshold of a seed, which depends on the sides of a map and changes from epoch to epoch.

        It is a tensor that is filled, as a compiled step would be compiled again for every other number.
        """
        settings = self.settings
        block = fitted_block(settings.block_size, height, width)
        gamma = seed_rate(settings.rate * self.ramp, block, height, width, calibration=settings.calibration)
        self._map = height, width
        self.threshold.fill_(threshold_of(gamma))

    def extra_repr(self) -> str:
        return f"rate={self.settings.rate}, block_size={self.settings.block_size}"


def _places(length: int, block: int) -> list[int]:
    """Return for every position of a line the number of places for the center of a block that covers it."""
    return [min(place, length - block) - max(0, place - block + 1) + 1 for place in range(length)]
