"""The form of a branched network that is only run: normalisation folded into the weights, no copy where none is needed.

Nodes travel in blocks, a tensor an operation. An operation reads whole blocks or views of them; blocks are copied only
where one operation reads several. Operations of one layer with equal inputs and outputs become a single one: a grouped
convolution, or a batched product. What is read and written stays in the order of the network that was trained, so each
weight here is the rows of some weights there, times a factor a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Piece = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where nodes of a layer are found: ``start..stop`` in the order of training stand in `block` from `offset` on."""

    start: int
    stop: int
    block: int
    offset: int


@dataclass(frozen=True, slots=True)
class Folded:
    """One operation of the trained network with what follows folded in.

    Args:
        weight: Shape ``(width, inputs)``, or ``(width, inputs, kernel, kernel)``.
        bias: Shape ``(width,)``.
        ranges: Half-open ranges of nodes that are read, in the order of training.
    """

    weight: Tensor
    bias: Tensor
    ranges: tuple[tuple[int, int], ...]


class FusedOperation(nn.Module):
    """One convolution or product over operations of equal inputs and outputs.

    Args:
        folded: The operations; one after another they give the rows of the weight.
        pieces: What is read, as ``(block, start, stop)``; all operations one after another.
        before: Widths of the blocks.
    """

    def __init__(self, folded: Sequence[Folded], pieces: Sequence[Piece], before: Sequence[int]) -> None:
        super().__init__()
        weight = torch.cat([each.weight for each in folded])
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.cat([each.bias for each in folded]), requires_grad=False)
        self.groups = len(folded)
        self.reads = tuple((b, None if stop - start == before[b] else (start, stop)) for b, start, stop in pieces)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return the block of this operation, without the activation."""
        parts = [blocks[b] if r is None else blocks[b].narrow(1, r[0], r[1] - r[0]) for b, r in self.reads]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if self.weight.dim() == 4:
            return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[2] // 2, groups=self.groups)
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        weights = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        nodes = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        biases = self.bias.unflatten(0, (self.groups, 1, -1))
        return torch.baddbmm(biases, nodes, weights).transpose(0, 1).flatten(1)


class FusedStage(nn.Module):
    """One layer: its operations by the numbers of those that they stand for, then ReLU and pooling.

    Args:
        folded: The operations of the layer in the order of training.
        places: Where the nodes of the layer before are found.
        pool: Side of the max pooling, 1 for none, 0 for the mean over all positions.
        activation: Whether ReLU follows.
    """

    def __init__(
        self, folded: Sequence[Folded], places: Sequence[Place], *, pool: int = 1, activation: bool = True
    ) -> None:
        super().__init__()
        self.pool, self.activation = pool, activation
        before = _widths(places)
        self.operations = nn.ModuleDict()
        starts = [sum(len(each.bias) for each in folded[:index]) for index in range(len(folded))]
        found: list[Place] = []
        for block, members in enumerate(_equal(folded)):
            chosen = [folded[index] for index in members]
            pieces = _pieces([span for each in chosen for span in each.ranges], places)
            self.operations["_".join(map(str, members))] = FusedOperation(chosen, pieces, before)
            width = len(chosen[0].bias)
            found += [Place(starts[i], starts[i] + width, block, n * width) for n, i in enumerate(members)]
        self.places = tuple(sorted(found, key=lambda place: place.start))

    def forward(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks of the layer."""
        return [self._follow(operation(blocks)) for operation in self.operations.values()]

    def _follow(self, x: Tensor) -> Tensor:
        if self.pool > 1:
            x = F.max_pool2d(x, self.pool)  # before ReLU, with which it commutes: a quarter of the values
        x = F.relu(x, inplace=True) if self.activation else x
        return x.mean((2, 3)) if self.pool == 0 else x


class FusedNetwork(nn.Module):
    """A branched network to be run, not trained; eval mode only.

    Args:
        stages: Its layers by name, the classes last.
        class_order: For each class its node in the order of training; None where that is the order of the classes.
        normalise_logits: What follows the classes, if anything does.
    """

    class_order: Tensor | None

    def __init__(
        self,
        stages: dict[str, FusedStage],
        *,
        class_order: Tensor | None = None,
        normalise_logits: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.normalise_logits = normalise_logits
        places = list(stages.values())[-1].places
        widths = _widths(places)
        position = torch.cat([_found_at(place, widths) for place in places])
        order = position if class_order is None else position[class_order.cpu()]
        ordered = bool((order == torch.arange(len(order))).all())
        self.register_buffer("class_order", None if ordered else order, persistent=False)
        self.eval()

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits in the order of the classes, shape ``(batch, classes)``."""
        blocks = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x]
        for stage in self.stages.values():
            blocks = stage(blocks)
        x = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
        if self.class_order is not None:
            x = x.index_select(1, self.class_order)
        return x if self.normalise_logits is None else self.normalise_logits(x)


def image_places(channels: int) -> tuple[Place, ...]:
    """Return where the channels of the image are found."""
    return (Place(0, channels, 0, 0),)


@torch.no_grad()
def fold(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm1d | nn.BatchNorm2d | None, rows: slice
) -> tuple[Tensor, Tensor]:
    r"""Return a weight and a bias that do what an operation and its normalisation in eval mode do.

    .. math:: w' = s w, \qquad b' = s (b - \mu) + \beta, \qquad s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}

    Computed in float64, returned in the precision of the weight.

    Args:
        weight: Shape ``(width, ...)``.
        bias: Shape ``(width,)``, or None for zeros.
        norm: What follows, over the whole layer; None for nothing.
        rows: Rows of the layer that the weight makes.
    """
    wide = weight.double()
    shift = bias.double() if bias is not None else wide.new_zeros(len(weight))
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight[rows].double() / (norm.running_var[rows].double() + norm.eps).sqrt()
        wide = wide * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        shift = (shift - norm.running_mean[rows].double()) * scale + norm.bias[rows].double()
    return wide.to(weight.dtype), shift.to(weight.dtype)


def _equal(folded: Sequence[Folded]) -> list[list[int]]:
    """Return the operations put together: those of equal inputs and outputs."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(folded):
        by_shape.setdefault(tuple(each.weight.shape), []).append(index)
    return list(by_shape.values())


def _pieces(ranges: Sequence[tuple[int, int]], places: Sequence[Place]) -> list[Piece]:
    found: list[Piece] = []
    for start, stop in ranges:
        for place in places:
            first, last = max(start, place.start), min(stop, place.stop)
            if first < last:
                shift = place.offset - place.start
                piece = (place.block, first + shift, last + shift)
                if found and found[-1][0] == piece[0] and found[-1][2] == piece[1]:
                    piece = (piece[0], found.pop()[1], piece[2])
                found.append(piece)
    return found


def _widths(places: Sequence[Place]) -> list[int]:
    widths = [0] * (1 + max(place.block for place in places))
    for place in places:
        widths[place.block] += place.stop - place.start
    return widths


def _found_at(place: Place, widths: Sequence[int]) -> Tensor:
    first = sum(widths[: place.block]) + place.offset
    return torch.arange(first, first + place.stop - place.start)
