"""Routes of images through a residual network that keep or skip its blocks, one for each way to compute the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from nas_blockout.methods.paths.kept_statistics import KeptStatistics
from nas_blockout.randomness.batch_shards import rows_count, shard_drawn_by, total_of, whole_rows
from nas_blockout.randomness.draws import Randomness, in_one_piece

Inference = Literal["compacted", "grouped", "masked"]

FEWEST_IMAGES = 8  # a block that fewer images of a training batch keep normalizes them by its running statistics
FEWEST_TO_ESTIMATE = 2  # likewise while statistics are estimated anew: one image has no variance over the batch
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
    def head(self) -> Callable[[Tensor, Randomness | None], Tensor]:
        """Maps the output of the last block to logits."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the network's modules."""


def masked_route(network: ResidualNetwork, x: Tensor, gates: Tensor, generator: Randomness | None = None) -> Tensor:
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
    network: ResidualNetwork,
    x: Tensor,
    keep: Tensor,
    generator: Randomness | None = None,
    *,
    estimating: bool = False,
) -> Tensor:
    """Return logits ``(batch, classes)``, running each block on the images that keep it and on no other.

    In training the statistics of batch normalization are those of these images alone; where they are fewer than
    `FEWEST_IMAGES`, the running ones, which then stay as they are.

    Args:
        network: Driven block by block.
        x: Images ``(batch, channels, height, width)``.
        keep: Blocks that each image keeps, bool, shape ``(batch, blocks)``.
        generator: Passed on to the head.
        estimating: Whether the network is in eval mode and its batch normalization alone in train mode, to estimate its
            running statistics anew: then `FEWEST_TO_ESTIMATE` images are enough.
    """
    fewest = FEWEST_IMAGES if network.training else FEWEST_TO_ESTIMATE if estimating else 0
    h = network.stem(x)
    columns = keep.cpu()  # waits for the device once, not once a block
    kept = columns.sum(0)
    # Of a batch that processes share, all run a block or none, so that they meet in its normalization.
    everywhere = total_of(kept * rows_count(generator), generator).tolist()
    for number, (block, images, here) in enumerate(zip(network.blocks, everywhere, kept.tolist(), strict=True)):
        shortcut = block.shortcut(h)
        with _running_statistics(block) if images < fewest else nullcontext():
            if images == 0:
                h = shortcut
            elif here == len(x):
                h = block.complete(h, shortcut)
            else:
                rows = columns[:, number].nonzero().squeeze(1).to(x.device)
                part = h.index_select(0, rows)
                done = block.complete(part, part if shortcut is h else shortcut.index_select(0, rows))
                # Overwriting the shortcut saves a copy where no gradient needs it and it is not the caller's tensor.
                in_place = not torch.is_grad_enabled() and shortcut is not x
                h = shortcut.index_copy_(0, rows, done) if in_place else shortcut.index_copy(0, rows, done)
    return network.head(h, generator)


def grouped_route(network: ResidualNetwork, x: Tensor, keep: Tensor, generator: Randomness | None = None) -> Tensor:
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


def static_route(
    network: ResidualNetwork, x: Tensor, path: Sequence[bool], generator: Randomness | None = None
) -> Tensor:
    """Return logits ``(batch, classes)`` of a training batch whose images all take one path, known beforehand.

    Args:
        network: Driven block by block.
        x: Images ``(batch, channels, height, width)``.
        path: Whether each block is kept, one value a block.
        generator: Passed on to the head.
    """
    h = network.stem(x)
    few = network.training and whole_rows(x.shape[0], generator) < FEWEST_IMAGES
    for block, kept in zip(network.blocks, path, strict=True):
        shortcut = block.shortcut(h)
        with _running_statistics(block) if few else nullcontext():
            h = block.complete(h, shortcut) if kept else shortcut
    return network.head(h, generator)


def training_route(
    network: ResidualNetwork,
    x: Tensor,
    keep: Tensor,
    generator: Randomness | None = None,
    *,
    estimating: bool = False,
) -> Tensor:
    """Return logits ``(batch, classes)`` of a training batch: what `compacted_route` gives, as suits the device.

    A processor saves what is skipped. Elsewhere, and where the step is compiled, see `uncompacted_route`, which knows
    nothing of images of the batch that other processes compute.
    """
    shared = shard_drawn_by(generator) is not None
    compacts = shared or (x.device.type == "cpu" and not in_one_piece(generator))
    route = compacted_route if compacts else uncompacted_route
    return route(network, x, keep, generator, estimating=estimating)


def uncompacted_route(
    network: ResidualNetwork,
    x: Tensor,
    keep: Tensor,
    generator: Randomness | None = None,
    *,
    estimating: bool = False,
) -> Tensor:
    """Return logits ``(batch, classes)`` of a training batch, running every block on every image.

    It computes what `compacted_route` does, statistics of batch normalization included, but the host need not wait to
    know which images keep a block, and shapes do not depend on it.

    Args:
        network: Driven block by block.
        x: Images ``(batch, channels, height, width)``.
        keep: Blocks that each image keeps, bool, shape ``(batch, blocks)``.
        generator: Passed on to the head.
        estimating: As of `compacted_route`.
    """
    fewest = FEWEST_TO_ESTIMATE if estimating else FEWEST_IMAGES
    h = network.stem(x)
    for block, kept in zip(network.blocks, keep.unbind(1), strict=True):
        shortcut = block.shortcut(h)
        with KeptStatistics(kept, fewest):
            done = block.complete(h, shortcut)
        h = torch.where(kept.view(-1, 1, 1, 1), done, shortcut)
    return network.head(h, generator)


ROUTES: Mapping[str, Callable[[ResidualNetwork, Tensor, Tensor, Randomness | None], Tensor]] = MappingProxyType(
    {"compacted": compacted_route, "grouped": grouped_route, "masked": masked_route}
)


def norms_of(network: ResidualNetwork) -> tuple[nn.Module, ...]:
    """Return the layers of batch normalization of a network."""
    return tuple(module for module in network.modules() if isinstance(module, _Norm))


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
