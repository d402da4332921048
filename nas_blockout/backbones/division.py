"""How the layers of a network that is only run are divided into operations, and what each division is expected to take.

A layer was trained as operations that read different nodes. It is run in one of two forms. ``split``: operations of
equal shape as one, a grouped convolution or a batched product, the others by themselves. ``whole``: all of them as one
dense operation whose weight has zeros, which takes less time where layers are small and where nodes are read often.
Nodes travel in blocks, one for each operation; blocks are copied where one operation reads several, and where a
convolution reads a part of one.
"""

from collections.abc import Sequence
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
_MACS = {4: (48e3, 60e3), 2: (12e3, 48e3)}  # a product for one image waits for its weight
_CALL_TO_COPY, _COPIED = 10.0, (3e3, 1e3)
_LANES = 16  # outputs that a convolution works on at a time: fewer take as long


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
        pieces: What it reads, as ``(block, start, stop)``; of several groups, what each reads one after another.
        groups: Members that read their own each, or 1 if all rows read all pieces.
    """

    members: tuple[int, ...]
    pieces: tuple[Piece, ...]
    groups: int


def parts_of(layer: FoldedLayer, places: Sequence[Place], form: Form) -> tuple[Part, ...]:
    """Return the operations of a layer in one of its forms.

    Args:
        layer: What was trained.
        places: Where the nodes of the layer before are found.
        form: How it is divided.
    """
    every = range(len(layer.operations))
    if form == "whole" and len(every) > 1:
        return (Part(tuple(every), tuple((block, 0, width) for block, width in enumerate(widths_of(places))), 1),)
    found = []
    for members in _equal(layer.operations):
        spans = [span for index in members for span in layer.operations[index].ranges]
        found.append(Part(members, pieces_of(spans, places), len(members)))
    return tuple(found)


def places_after(layer: FoldedLayer, parts: Sequence[Part]) -> tuple[Place, ...]:
    """Return where the nodes of a layer are found once its parts have been run, a block a part."""
    starts, found = starts_of(layer.operations), []
    for block, part in enumerate(parts):
        offset = 0
        for member in part.members:
            width = len(layer.operations[member].bias)
            found.append(Place(starts[member], starts[member] + width, block, offset))
            offset += width
    return tuple(sorted(found, key=lambda place: place.start))


def fastest_forms(layers: Sequence[FoldedLayer], places: Sequence[Place]) -> tuple[Form, ...]:
    """Return the form of each layer with which the network is expected to take little time.

    From all layers whole on, the one is split that saves most, as long as any saves, and as long as the network is
    expected to take more time neither for one image nor for many than with all layers whole: so it is not slower than
    the dense network that it came from. What is saved is the sum of both times, each as a share of that.

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
        options: list[tuple[Form, ...]] = [chosen]
        for index, layer in enumerate(layers):
            if len(layer.operations) > 1:
                options.append((*chosen[:index], "split", *chosen[index + 1 :]))
        best = min((each for each in options if max(shares(each)) <= 1), key=lambda each: sum(shares(each)))
        if best == chosen:
            return chosen
        chosen = best


def widths_of(places: Sequence[Place]) -> list[int]:
    """Return the widths of the blocks."""
    widths = [0] * (1 + max(place.block for place in places))
    for place in places:
        widths[place.block] += place.stop - place.start
    return widths


def starts_of(operations: Sequence[Folded]) -> list[int]:
    """Return the first node of each operation, in the order of training."""
    return [sum(len(each.bias) for each in operations[:index]) for index in range(len(operations))]


def pieces_of(ranges: Sequence[tuple[int, int]], places: Sequence[Place]) -> tuple[Piece, ...]:
    """Return what has to be read, in its order, to have ranges of nodes in the order of training."""
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
    return tuple(found)


def expected_times(layers: Sequence[FoldedLayer], places: Sequence[Place], forms: Sequence[Form]) -> tuple[float, ...]:
    """Return the microseconds that a network is expected to take, for one image and for many.

    Args:
        layers: From the image on.
        places: Where the channels of the image are found.
        forms: Of the layers.
    """
    total = [0.0] * len(_BATCHES)
    for layer, form in zip(layers, forms, strict=True):
        parts = parts_of(layer, places, form)
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
    rows = sum(len(layer.operations[member].bias) for member in part.members) // part.groups
    read = sum(stop - start for _, start, stop in part.pieces)
    lanes = _LANES if kind == 4 else 1
    macs = used * -(-rows // lanes) * lanes * read * (first.shape[2] ** 2 if kind == 4 else 1)
    block, start, stop = part.pieces[0]
    copied = len(part.pieces) > 1 or (kind == 4 and (start, stop) != (0, widths[block]))
    copying = _CALL_TO_COPY + used * read / _COPIED[index] if copied else 0.0
    return _CALL[kind] + (_MORE_FOR_GROUPS[kind] if part.groups > 1 else 0.0) + macs / _MACS[kind][index] + copying


def _equal(operations: Sequence[Folded]) -> list[tuple[int, ...]]:
    """Return the operations put together: those of equal inputs and outputs."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(operations):
        by_shape.setdefault(tuple(each.weight.shape), []).append(index)
    return [tuple(members) for members in by_shape.values()]
