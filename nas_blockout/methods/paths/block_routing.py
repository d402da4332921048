"""Paths of images through a residual network that keep or skip its blocks: who decides them, and what they cost."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_blockout.methods.paths.block_routes import ResidualNetwork

FixedPolicy = Literal["all", "first", "random", "spread"]

FEWEST_PIXELS = 12  # a side that the policy network sees after pooling, unless told otherwise
DRAWS = 64  # paths that are drawn to come near to a cost


class PolicyNetwork(nn.Module):
    """A small residual network, one block a stage, that gives one logit for each block of the network that it steers.

    Args:
        channels: Channels of an image.
        blocks: Blocks that are steered.
        widths: Channels of its stages.
        pool: Side of the mean pooling of its input; 1 for none.
        initial_keep: Approximate probability, in (0, 1), with which it keeps a block before it has learned anything.
    """

    def __init__(
        self, channels: int, blocks: int, *, widths: Sequence[int], pool: int = 1, initial_keep: float = 0.5
    ) -> None:
        from nas_blockout.lazy_torchvision import torchvision  # which takes two seconds, and only this network needs it

        super().__init__()
        first = widths[0]
        layers: list[nn.Module] = [nn.AvgPool2d(pool)] if pool > 1 else []
        layers += [nn.Conv2d(channels, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)]
        layers.append(torchvision.models.resnet.BasicBlock(first, first))
        for inputs, outputs in pairwise(widths):
            projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
            layers.append(torchvision.models.resnet.BasicBlock(inputs, outputs, 2, projection))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], blocks)
        nn.init.constant_(self.linear.bias, float(torch.tensor(initial_keep, device="cpu").logit()))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, blocks)`` of images ``(batch, channels, height, width)``."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


class StaticPolicy(nn.Module):
    """One path for all images: learned logits, or those of a fixed path, whose probabilities are 0 and 1.

    Args:
        logits: Shape ``(blocks,)``.
        learned: Whether they are a parameter.
        costs: What each block costs, shape ``(blocks,)``; with `budget` alone.
        budget: Cost to come near to: all logits are shifted alike, so that those of the likeliest blocks whose cost is
            nearest to it are positive. None leaves the logits as they are.
    """

    def __init__(
        self, logits: Tensor, *, learned: bool, costs: Sequence[float] = (), budget: float | None = None
    ) -> None:
        super().__init__()
        self.logits: Tensor
        self.costs: Tensor
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)
        self._budget = budget
        self.register_buffer("costs", torch.tensor(costs, dtype=logits.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, blocks)``, the same for every image."""
        logits = self.logits if self._budget is None else self.logits - self._threshold(self._budget)
        # no view of a parameter: torch's FLOP counter trips over it; no len(x), which an export would take as fixed
        return logits.repeat(x.shape[0], 1)

    @torch.no_grad()
    def _threshold(self, budget: float) -> Tensor:
        """Return what lies halfway between the last logit that is kept and the next one."""
        ranked, order = self.logits.sort(descending=True)
        spent = self.costs.index_select(0, order).cumsum(0)
        last = (spent - budget).abs().argmin().unsqueeze(0)
        below = torch.cat([ranked, ranked[-1:] - 1]).index_select(0, last + 1)
        return (ranked.index_select(0, last) + below) / 2


def fixed_path(policy: FixedPolicy, blocks: int, kept: int | None, *, seed: int = 0) -> Tensor:
    """Return the path of a control for all images, bool, shape ``(blocks,)``.

    Args:
        policy: ``all``, ``first``, ``random`` (one draw) or ``spread``.
        blocks: Blocks of the network.
        kept: Blocks to keep, in 1..blocks; unused by ``all``.
        seed: Of the draw.

    Raises:
        ValueError: More blocks are to be kept than there are.
    """
    kept = blocks if kept is None else kept
    if not 1 <= kept <= blocks:
        raise ValueError(f"kept_blocks must lie in 1..{blocks}, the blocks of the network, got kept_blocks={kept}")
    chosen = torch.arange(kept)
    if policy == "random":
        chosen = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:kept]
    elif policy == "spread":
        chosen = ((chosen + 0.5) * blocks / kept).long()
    return torch.zeros(blocks, dtype=torch.bool).index_fill(0, chosen, True)


def path_of_cost(policy: FixedPolicy, costs: Sequence[int], budget: float, *, seed: int = 0) -> Tensor:
    """Return the path of a control whose blocks cost what is nearest to a budget, bool, shape ``(blocks,)``.

    Args:
        policy: ``first``, ``random`` or ``spread``.
        costs: What each block costs.
        budget: What the kept blocks may cost together; for ``first`` it is met within half a block.
        seed: Of the draws of ``random``, of which the nearest is taken: blocks differ in cost.
    """
    seeds = range(seed * DRAWS, (seed + 1) * DRAWS) if policy == "random" else [seed]
    paths = [fixed_path(policy, len(costs), kept, seed=n) for n in seeds for kept in range(1, len(costs) + 1)]
    spent = torch.stack(paths).double() @ torch.tensor(costs, dtype=torch.float64)
    return paths[int((spent - budget).abs().argmin())]


def policy_size(
    settings: tuple[Sequence[int] | None, int | None], shape: tuple[int, int, int], blocks: int, *, most: float
) -> tuple[tuple[int, ...], int]:
    """Return widths and pooling of the policy network that suits a cost, as far as they are not given.

    Of the poolings 1, 2, 4, ... that leave 12 pixels a side or more, it is the finest at which three stages of 8, 16
    and 32 channels or more (16, 32 and 64 at most) cost no more than `most`; if there is none, the coarsest, with the
    widest stages that do; and if there is none either, those of 1, 2 and 4 channels.

    Args:
        settings: Widths and pooling that are given, or None.
        shape: Channels, height and width of an image.
        blocks: Blocks that are steered.
        most: Operations an image, as `BlockFlops` counts them.
    """
    widths, pool = settings
    finest_first = [2**n for n in range(10) if n == 0 or min(shape[1:]) // 2**n >= FEWEST_PIXELS]
    pools = [pool] if pool is not None else finest_first
    widest_first = [tuple(widths)] if widths is not None else [(n, 2 * n, 4 * n) for n in (16, 12, 8, 6, 4, 3, 2, 1)]
    wide = [size for size in widest_first if widths is not None or size[0] >= 8]
    candidates = [(size, side) for side in pools for size in wide] + [(size, pools[-1]) for size in widest_first]
    for size, side in candidates:
        if _policy_operations(shape, blocks, size, side) <= most:
            return size, side
    return candidates[-1]


@cache  # counting takes 10 ms and more, and every network of a study asks for the same ones
def _policy_operations(shape: tuple[int, int, int], blocks: int, widths: tuple[int, ...], pool: int) -> int:
    with torch.device("meta"):  # which draws no weights
        network = PolicyNetwork(shape[0], blocks, widths=widths, pool=pool)
    return operations(network, shape)


@dataclass(frozen=True, slots=True)
class BlockFlops:
    """Floating point operations an image, two for each multiply-accumulate, of convolutions and matrix products.

    Args:
        policy: Of the policy.
        fixed: Of stem, shortcuts and head.
        blocks: Of what is skipped with each block.
    """

    policy: int
    fixed: int
    blocks: tuple[int, ...]

    @property
    def full(self) -> int:
        """Operations of the network with all blocks and without a policy."""
        return self.fixed + sum(self.blocks)

    @property
    def policy_share(self) -> float:
        """Operations of the policy as a share of those of the network with all blocks."""
        return self.policy / self.full

    def of(self, keep: Tensor) -> Tensor:
        """Return the operations of every image, the policy counted in: shape ``(batch,)``, float64."""
        return (
            self.policy
            + self.fixed
            + keep.double() @ torch.tensor(self.blocks, dtype=torch.float64, device=keep.device)
        )


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """Blocks that images keep: mean, standard deviation over the images, number of distinct paths."""

    mean: float
    sd: float
    distinct: int


def path_statistics(keep: Tensor) -> PathStatistics:
    """Return the statistics of paths, bool, shape ``(images, blocks)``."""
    used = keep.double().sum(1)
    return PathStatistics(float(used.mean()), float(used.std(correction=0)), len(keep.unique(dim=0)))


def block_flops(network: ResidualNetwork, policy: Callable[[Tensor], Tensor], image: Tensor) -> BlockFlops:
    """Count what each part of a network costs.

    Args:
        network: In eval mode.
        policy: Maps the image to logits, in eval mode.
        image: One image, shape ``(1, channels, height, width)``.
    """
    _, of_policy = _counted(policy, image)
    h, fixed = _counted(network.stem, image)
    blocks = []
    for block in network.blocks:
        shortcut, flops = _counted(block.shortcut, h)
        fixed += flops
        h, flops = _counted(block.complete, h, shortcut)
        blocks.append(flops)
    _, flops = _counted(network.head, h, None)
    return BlockFlops(of_policy, fixed + flops, tuple(blocks))


def network_flops(network: ResidualNetwork, shape: tuple[int, int, int]) -> BlockFlops:
    """Count what each part of a network costs without a policy; nothing is computed, and the network stays as it is.

    Args:
        network: In any mode, on any device.
        shape: Channels, height and width of an image.
    """
    twin = copy.deepcopy(network)
    assert isinstance(twin, nn.Module)
    twin.to("meta").eval()
    return block_flops(cast(ResidualNetwork, twin), nn.Identity(), torch.zeros(1, *shape, device="meta"))


def operations(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count the operations of a module for one image, as `BlockFlops` does; nothing is computed."""
    twin = copy.deepcopy(module).to("meta").eval()
    return _counted(twin, torch.zeros(1, *shape, device="meta"))[1]


def _counted(function: Callable[..., Tensor], *inputs: Tensor | None) -> tuple[Tensor, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = function(*inputs)
    return output, counter.get_total_flops()
