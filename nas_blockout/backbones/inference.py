"""The form of a branched network that is only run: normalization folded into the weights, no copy where none is needed.

What is read and written stays in the order of the network that was trained, so each weight here is the rows of some
weights there, times a factor a row, between columns and rows of zeros where a layer is whole or is filled up (see
`division`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.inference_cost import (
    Folded,
    FoldedLayer,
    Form,
    Part,
    Piece,
    Place,
    Term,
    parts_of,
    places_after,
    widths_of,
)
from nas_blockout.randomness.draws import Randomness

NUMBERS_AT_ONCE = 2**22  # numbers of the largest layer that are worked on at a time: they stay near the processor


class FusedTerm(nn.Module):
    """One convolution or product in place of one operation of training or of several, or of a part of them.

    Args:
        weight: Shape ``(rows, inputs of a group)``, or ``(rows, inputs of a group, kernel, kernel)``.
        bias: Shape ``(rows,)``; None for zeros.
        term: What it reads.
        widths: Of the blocks that it reads from.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, term: Term, widths: Sequence[int]) -> None:
        super().__init__()
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.groups = term.groups
        self.reads = tuple((b, None if stop - start == widths[b] else (start, stop)) for b, start, stop in term.pieces)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return its block, or what it adds to it, without the activation."""
        parts = [blocks[b] if r is None else blocks[b].narrow(1, r[0], r[1] - r[0]) for b, r in self.reads]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if self.weight.dim() == 4:
            return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[2] // 2, groups=self.groups)
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        weights = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        nodes = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        if self.bias is None:
            return torch.bmm(nodes, weights).transpose(0, 1).flatten(1)
        biases = self.bias.unflatten(0, (self.groups, 1, -1))
        return torch.baddbmm(biases, nodes, weights).transpose(0, 1).flatten(1)

    def take(self, rows: Tensor) -> None:
        """Keep these rows, in their order, if all rows read the same."""
        assert self.bias is not None
        self.weight = nn.Parameter(self.weight[rows], requires_grad=False)
        self.bias = nn.Parameter(self.bias[rows], requires_grad=False)


class FusedSum(nn.Module):
    """The sum of several terms.

    Args:
        terms: Two or more, of as many rows.
    """

    def __init__(self, terms: Sequence[FusedTerm]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return the block, without the activation."""
        first, *others = self.terms
        x: Tensor = first(blocks)
        for term in others:
            x += term(blocks)
        return x


def fused_operation(layer: FoldedLayer, part: Part, places: Sequence[Place]) -> FusedTerm | FusedSum:
    """Return what makes one block of nodes: one term, or the sum of several.

    Args:
        layer: What was trained.
        part: Which of its operations stand in the block, and what is added.
        places: Where the nodes of the layer before are.
    """
    rooms = [place.room for place in sorted(places_after(layer, [part]), key=lambda place: place.offset)]
    members = [layer.operations[index] for index in part.members]
    biases = [
        F.pad(operation.bias, (0, room - len(operation.bias))) for operation, room in zip(members, rooms, strict=True)
    ]
    terms = []
    for number, term in enumerate(part.terms):
        read = [term.reads[n * term.groups // len(part.slots)] for n, slot in enumerate(part.slots) for _ in slot]
        weights = [_widened(*parts, places) for parts in zip(members, rooms, read, strict=True)]
        bias = None if number else torch.cat(biases)
        terms.append(FusedTerm(torch.cat(weights), bias, term, widths_of(places)))
    return terms[0] if len(terms) == 1 else FusedSum(terms)


class FusedStage(nn.Module):
    """One layer: its fused operations, named by the numbers of those they replace, then ReLU and pooling.

    Args:
        layer: What was trained.
        places: Where the nodes of the layer before are.
        form: How it is divided.
        filled: Whether its blocks may end in zeros.
        pool: Side of the max pooling, 1 for none, 0 for the mean over all positions.
        activation: Whether ReLU follows.
    """

    def __init__(
        self,
        layer: FoldedLayer,
        places: Sequence[Place],
        *,
        form: Form,
        filled: bool = True,
        pool: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.pool, self.activation = pool, activation
        parts = parts_of(layer, places, form, filled=filled)
        self.operations = nn.ModuleDict(
            {"_".join(map(str, part.members)): fused_operation(layer, part, places) for part in parts}
        )
        self.places = places_after(layer, parts)
        self.numbers = layer.positions * sum(widths_of(self.places))

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
        normalize_logits: What follows the classes, if anything does.

    On the CPU many images pass some at a time, so that no block is so large that its memory has to come from the system
    anew; an exported or compiled program takes all of them at once.
    """

    class_order: Tensor | None

    def __init__(
        self,
        stages: dict[str, FusedStage],
        *,
        class_order: Tensor | None = None,
        normalize_logits: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.normalize_logits = normalize_logits
        self.images_at_once = max(1, NUMBERS_AT_ONCE // max(stage.numbers for stage in stages.values()))
        places = list(stages.values())[-1].places
        widths = widths_of(places)
        position = torch.cat([_positions_of(place, widths) for place in places])
        order, made = position if class_order is None else position[class_order.cpu()], sum(widths)
        last = list(list(stages.values())[-1].operations.values())
        # One dense operation makes all classes: its rows are put in order once, instead of the logits every time.
        if len(last) == 1 and isinstance(last[0], FusedTerm) and last[0].groups == 1:
            last[0].take(order)
            order, made = torch.arange(len(order)), len(order)
        # A block may end in zeros, which have to go even where all classes before them are in order.
        ordered = made == len(order) and bool((order == torch.arange(len(order))).all())
        self.register_buffer("class_order", None if ordered else order, persistent=False)
        self.eval()

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits in the order of the classes, shape ``(batch, classes)``."""
        if torch.compiler.is_compiling() or x.device.type != "cpu" or len(x) <= self.images_at_once:
            return self._logits(x)
        return torch.cat([self._logits(images) for images in x.split(self.images_at_once)])

    def _logits(self, x: Tensor) -> Tensor:
        blocks = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x]
        for stage in self.stages.values():
            blocks = stage(blocks)
        x = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
        if self.class_order is not None:
            x = x.index_select(1, self.class_order)
        return x if self.normalize_logits is None else self.normalize_logits(x)


def image_places(channels: int) -> tuple[Place, ...]:
    """Return where the channels of the image are."""
    return (Place(0, channels, 0, 0, channels),)


@torch.no_grad()
def fold(
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | None,
    rows: slice | Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return a weight and a bias that do what an operation and its normalization in eval mode do.

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
        scale = (norm.running_var[rows].double() + norm.eps).rsqrt()
        if norm.weight is not None:  # else it only normalizes: affine=False
            scale = norm.weight[rows].double() * scale
        wide = wide * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        shift = (shift - norm.running_mean[rows].double()) * scale
        if norm.bias is not None:
            shift = shift + norm.bias[rows].double()
    return wide.to(weight.dtype), shift.to(weight.dtype)


def _widened(folded: Folded, rows: int, pieces: Sequence[Piece], places: Sequence[Place]) -> Tensor:
    """Return a weight of more rows that reads whole pieces, with zeros for what it did not make or read.

    What it read elsewhere than in the pieces is left out.
    """
    before = widths_of(places)
    stands = torch.cat([_positions_of(place, before) for place in places])  # in all blocks, one after another
    nodes = stands[torch.cat([torch.arange(start, stop) for start, stop in folded.ranges])]
    read = torch.cat([torch.arange(start, stop) + sum(before[:block]) for block, start, stop in pieces])
    column = torch.full((sum(before),), -1)
    column[read] = torch.arange(len(read))
    wide = folded.weight.new_zeros(rows, len(read), *folded.weight.shape[2:])
    is_read = column[nodes] >= 0
    wide[: len(folded.weight), column[nodes][is_read]] = folded.weight[:, is_read]
    return wide


def _positions_of(place: Place, widths: Sequence[int]) -> Tensor:
    first = sum(widths[: place.block]) + place.offset
    return torch.arange(first, first + place.stop - place.start)
