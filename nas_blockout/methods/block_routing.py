"""Routes of images through a residual network that keep or skip its blocks: what each computes, and what it costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Inference = Literal["compacted", "grouped", "masked"]

FEWEST_IMAGES = 8  # a block that fewer images of a training batch keep normalizes them by its running statistics
_Norm = nn.modules.batchnorm._BatchNorm


class SkippableBlock(Protocol):
    """A residual block in two halves: a shortcut, which always runs, and the rest, which may be skipped."""

    @property
    def shortcut(self) -> Callable[[Tensor], Tensor]:
        """Maps the block's input to its output where the block is dropped."""

    def complete(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Return the output of the block where it is kept, from its input and its shortcut."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the block's modules."""


class ResidualNetwork(Protocol):
    """What can be driven block by block: ``head(blocks(stem(x)))``; it must also be a `torch.nn.Module`."""

    @property
    def training(self) -> bool:
        """Whether batch normalization takes its statistics from the batch."""

    @property
    def stem(self) -> Callable[[Tensor], Tensor]:
        """Maps images to the input of the first block."""

    @property
    def blocks(self) -> Sequence[SkippableBlock]:
        """The blocks in order."""

    @property
    def head(self) -> Callable[[Tensor, torch.Generator | None], Tensor]:
        """Maps the output of the last block to logits."""


def masked_route(
    network: ResidualNetwork, x: Tensor, gates: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return logits ``(batch, classes)``, running every block on every image and gating what it adds.

    Args:
        network: Driven block by block.
        x: Images ``(batch, channels, height, width)``.
        gates: 1 (True) to keep a block, 0 to pass its shortcut, shape ``(batch, blocks)``; may carry gradient.
        generator: Passed on to the head.
    """
    h = network.stem(x)
    if gates.dtype == torch.bool:  # not by a cast, which an exported program would check with an assertion
        gates = torch.where(gates, h.new_ones(()), h.new_zeros(()))
    elif gates.dtype != h.dtype:
        gates = gates.to(h.dtype)
    for block, gate in zip(network.blocks, gates.unbind(1), strict=True):
        shortcut, share = block.shortcut(h), gate.view(-1, 1, 1, 1)
        h = share * block.complete(h, shortcut) + (1 - share) * shortcut
    return network.head(h, generator)


def compacted_route(
    network: ResidualNetwork, x: Tensor, keep: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return logits ``(batch, classes)``, running each block on the images that keep it and on no other.

    In training the statistics of batch normalization are those of these images alone; where they are fewer than
    `FEWEST_IMAGES`, the running ones.

    Args:
        network: Driven block by block.
        x: Images ``(batch, channels, height, width)``.
        keep: Blocks that each image keeps, bool, shape ``(batch, blocks)``.
        generator: Passed on to the head.
    """
    h = network.stem(x)
    columns = keep.cpu()  # waits for the device once, not once a block
    for number, (block, images) in enumerate(zip(network.blocks, columns.sum(0).tolist(), strict=True)):
        shortcut = block.shortcut(h)
        few = network.training and images < FEWEST_IMAGES
        with _running_statistics(block) if few else nullcontext():
            if images == 0:
                h = shortcut
            elif images == len(x):
                h = block.complete(h, shortcut)
            else:
                rows = columns[:, number].nonzero().squeeze(1).to(x.device)
                part = h.index_select(0, rows)
                done = block.complete(part, part if shortcut is h else shortcut.index_select(0, rows))
                # Overwriting the shortcut saves a copy where no gradient needs it and it is not the caller's tensor.
                in_place = not torch.is_grad_enabled() and shortcut is not x
                h = shortcut.index_copy_(0, rows, done) if in_place else shortcut.index_copy(0, rows, done)
    return network.head(h, generator)


def grouped_route(
    network: ResidualNetwork, x: Tensor, keep: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return logits ``(batch, classes)``, running the images of each distinct path together; for eval only.

    Args:
        network: Driven block by block.
        x: Images ``(batch, channels, height, width)``.
        keep: Blocks that each image keeps, bool, shape ``(batch, blocks)``.
        generator: Passed on to the head.
    """
    paths, group = keep.unique(dim=0, return_inverse=True)
    order = group.argsort()  # images of equal paths side by side; its own argsort puts the results back
    parts = list(network.stem(x).index_select(0, order).split(group.bincount(minlength=len(paths)).tolist()))
    for position, path in enumerate(paths.tolist()):
        for block, kept in zip(network.blocks, path, strict=True):
            shortcut = block.shortcut(parts[position])
            parts[position] = block.complete(parts[position], shortcut) if kept else shortcut
    return network.head(torch.cat(parts).index_select(0, order.argsort()), generator)


ROUTES: Mapping[str, Callable[[ResidualNetwork, Tensor, Tensor, torch.Generator | None], Tensor]] = MappingProxyType(
    {"compacted": compacted_route, "grouped": grouped_route, "masked": masked_route}
)


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


def _counted(function: Callable[..., Tensor], *inputs: Tensor | None) -> tuple[Tensor, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = function(*inputs)
    return output, counter.get_total_flops()


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch normalization as they are, while training normalizes by the batch."""
    norms = [norm for norm in module.modules() if isinstance(norm, _Norm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # new statistics get no weight
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _running_statistics(block: SkippableBlock) -> Iterator[None]:
    norms = [norm for norm in block.modules() if isinstance(norm, _Norm) and norm.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
