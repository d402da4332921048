"""How the layers of a network that is only run are divided into operations, and what each division is expected to take.

A layer was trained as operations that read different nodes. It is run in one of two forms. ``split``: operations of
equal shape as one, a grouped convolution or a batched product, the others by themselves. ``whole``: all of them as one
dense operation whose weight has zeros, which takes less time where layers are small and where nodes are read often.
Nodes travel in blocks, one for each operation; blocks are copied where one operation reads several, and where a
convolution reads a part of one. Blocks of channels are filled up with channels of zeros to a multiple of sixteen, which
is what processors take at a time: pooling of 28 channels takes four times as long as that of 32.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Piece = tuple[int, int, int]
Form = Literal["whole", "split"]
Operations = Literal["fastest", "whole", "split"]

# What an operation takes on one core, in microseconds and by microsecond, for one image and for many. Measured once and
# kept, so that a network is always divided alike; only the proportions decide anything.
_BATCHES = (1, 256)
_CALL = {4: 45.0, 2: 5.0}  # of a convolution with what follows it, and of a product
_MORE_FOR_GROUPS = {4: 0.0, 2: 5.0}
_MACS = {4: (42e3, 59e3), 2: (12e3, 48e3)}  # a product for one image waits for its weight
_RATE_OF_GROUPS = {4: (0.95, 0.8), 2: (1.0, 1.0)}
_CALL_TO_COPY, _PIECE, _COPIED = 10.0, 2.5, (1e3, 250.0)  # much memory comes page by page from the system
_LANES = 16  # outputs that a convolution works on at a time: fewer take as long
_LEAST_SAVED = 0.05  # of both times together: less than that is less than what is known of them


@dataclass(frozen=True, slots=True)
class Place:
    """Where nodes of a layer are found: ``start..stop`` in the order of training stand in `block` from `offset` on.

    They have `room` there: after them come zeros, if it is more than they are.
    """

    start: int
    stop: int
    block: int
    offset: int
    room: int


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


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """The operations of a layer in the order of training, and at how many positions of an image each weight is used."""

    operations: tuple[Folded, ...]
    positions: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One operation that is run.

    Args:
        members: Numbers of the operations of training that it stands for, in the order of its rows.
        reads: What each group reads, as ``(block, start, stop)``; of all the same width.
        groups: Members that read their own each, or 1 if all rows read the same.
        room: Rows of each group: those of its members, and zeros.
    """

    members: tuple[int, ...]
    reads: tuple[tuple[Piece, ...], ...]
    groups: int
    room: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What is read in all, neighbours in one piece."""
        return _joined(piece for read in self.reads for piece in read)


def parts_of(layer: FoldedLayer, places: Sequence[Place], form: Form, *, filled: bool = True) -> tuple[Part, ...]:
    """Return the operations of a layer in one of its forms.

    Args:
        layer: What was trained.
        places: Where the nodes of the layer before are found.
        form: How it is divided.
        filled: Whether a block of one group may end in zeros, which groups that read it would have to pass over.
    """
    every = tuple(range(len(layer.operations)))
    if form == "whole" and len(every) > 1:
        pieces = tuple((block, 0, width) for block, width in enumerate(widths_of(places)))
        return (Part(every, (pieces,), 1, _room(layer, every, 1, filled=filled)),)
    found = []
    for members in _equal(layer.operations):
        spans, groups = [layer.operations[index].ranges for index in members], len(members)
        reads = tuple(pieces_of(each, places, zeros=True) for each in spans)
        if len({sum(stop - start for _, start, stop in read) for read in reads}) > 1:
            reads = tuple(pieces_of(each, places) for each in spans)
        found.append(Part(members, reads, groups, _room(layer, members, groups, filled=filled)))
    return tuple(found)


def places_after(layer: FoldedLayer, parts: Sequence[Part]) -> tuple[Place, ...]:
    """Return where the nodes of a layer are found once its parts have been run, a block a part."""
    starts, found = starts_of(layer.operations), []
    for block, part in enumerate(parts):
        offset = 0
        for number, member in enumerate(part.members, 1):
            width = len(layer.operations[member].bias)
            fills = part.groups > 1 or number == len(part.members)
            room = part.room * (number if part.groups > 1 else 1) - offset if fills else width
            found.append(Place(starts[member], starts[member] + width, block, offset, room))
            offset += room
    return tuple(sorted(found, key=lambda place: place.start))


def fastest_forms(layers: Sequence[FoldedLayer], places: Sequence[Place]) -> tuple[Form, ...]:
    """Return the form of each layer with which the network is expected to take little time.

    From all layers whole on, the one is split that saves most, as long as any saves enough, and as long as the network
    is expected to take more time neither for one image nor for many than with all layers whole: so it is not slower
    than the dense network that it came from. What is saved is the sum of both times, each as a share of that.

    Args:
        layers: From the image on.
        places: Where the channels of the image are found.
    """
    first: Form = "whole"
    chosen = (first,) * len(layers)
    whole = expected_times(layers, places, chosen)

    def shares(forms: tuple[Form, ...]) -> list[float]:
        return [time / most for time, most in zip(expected_times(layers, places, forms), whole, strict=True)]

    while True:
        options = [chosen]
        for index, layer in enumerate(layers):
            if len(layer.operations) > 1:
                options.append((*chosen[:index], "split", *chosen[index + 1 :]))
        best = min((each for each in options if max(shares(each)) <= 1), key=lambda each: sum(shares(each)))
        if sum(shares(chosen)) - sum(shares(best)) < _LEAST_SAVED:
            return chosen
        chosen = best


def fillings(layers: Sequence[FoldedLayer], forms: Sequence[Form]) -> tuple[bool, ...]:
    """Return of each layer whether its blocks may end in zeros: where the next layer reads whole blocks."""
    following = zip(layers[1:], forms[1:], strict=True)
    return (*(form == "whole" or len(layer.operations) == 1 for layer, form in following), True)


def widths_of(places: Sequence[Place]) -> list[int]:
    """Return the widths of the blocks."""
    widths = [0] * (1 + max(place.block for place in places))
    for place in places:
        widths[place.block] += place.room
    return widths


def starts_of(operations: Sequence[Folded]) -> list[int]:
    """Return the first node of each operation, in the order of training."""
    return [sum(len(each.bias) for each in operations[:index]) for index in range(len(operations))]


def pieces_of(ranges: Sequence[tuple[int, int]], places: Sequence[Place], *, zeros: bool = False) -> tuple[Piece, ...]:
    """Return what has to be read, in its order, to have ranges of nodes in the order of training.

    With `zeros`, those after nodes that are read to their last are read as well, so that whole blocks are.
    """
    found: list[Piece] = []
    for start, stop in ranges:
        for place in places:
            first, last = max(start, place.start), min(stop, place.stop)
            if first < last:
                shift = place.offset - place.start
                end = place.offset + place.room if zeros and last == place.stop else last + shift
                found.append((place.block, first + shift, end))
    return _joined(found)


def expected_times(layers: Sequence[FoldedLayer], places: Sequence[Place], forms: Sequence[Form]) -> tuple[float, ...]:
    """Return the microseconds that a network is expected to take, for one image and for many.

    Args:
        layers: From the image on.
        places: Where the channels of the image are found.
        forms: Of the layers.
    """
    total = [0.0] * len(_BATCHES)
    for layer, form, filled in zip(layers, forms, fillings(layers, forms), strict=True):
        parts = parts_of(layer, places, form, filled=filled)
        total = [sum(pair) for pair in zip(total, _layer_times(layer, parts, places), strict=True)]
        places = places_after(layer, parts)
    return tuple(total)


def _layer_times(layer: FoldedLayer, parts: Sequence[Part], places: Sequence[Place]) -> tuple[float, ...]:
    widths = widths_of(places)
    return tuple(sum(_expected(layer, part, widths, index) for part in parts) for index in range(len(_BATCHES)))


def _expected(layer: FoldedLayer, part: Part, widths: Sequence[int], index: int) -> float:
    """Return the microseconds that an operation is expected to take."""
    first = layer.operations[part.members[0]].weight
    kind, used = first.dim(), _BATCHES[index] * layer.positions
    read = sum(stop - start for _, start, stop in part.pieces)
    lanes = _LANES if kind == 4 else 1
    macs = used * -(-part.room // lanes) * lanes * read * (first.shape[2] ** 2 if kind == 4 else 1)
    rate = _MACS[kind][index] * (_RATE_OF_GROUPS[kind][index] if part.groups > 1 else 1.0)
    block, start, stop = part.pieces[0]
    copied = len(part.pieces) > 1 or (kind == 4 and (start, stop) != (0, widths[block]))
    copying = _CALL_TO_COPY + _PIECE * len(part.pieces) + used * read / _COPIED[index] if copied else 0.0
    return _CALL[kind] + (_MORE_FOR_GROUPS[kind] if part.groups > 1 else 0.0) + macs / rate + copying


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    joined: list[Piece] = []
    for block, start, stop in pieces:
        if joined and joined[-1][0] == block and joined[-1][2] == start:
            start = joined.pop()[1]
        joined.append((block, start, stop))
    return tuple(joined)


def _room(layer: FoldedLayer, members: Sequence[int], groups: int, *, filled: bool) -> int:
    """Return the rows of each group, filled up so that all of them are a multiple of what is worked on at a time."""
    rows = sum(len(layer.operations[member].bias) for member in members) // groups
    is_filled = layer.operations[members[0]].weight.dim() == 4 and (filled or groups > 1)
    multiple = _LANES // math.gcd(_LANES, groups) if is_filled else 1
    return -(-rows // multiple) * multiple


def _equal(operations: Sequence[Folded]) -> list[tuple[int, ...]]:
    """Return the operations put together: those of equal inputs and outputs."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(operations):
        by_shape.setdefault(tuple(each.weight.shape), []).append(index)
    return [tuple(members) for members in by_shape.values()]
