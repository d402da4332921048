"""How the layers of a network that is only run are divided into operations, and what each division is expected to take.

A layer was trained as operations that read different nodes. It is run in one of three forms. ``split``: operations of
equal shape as one, a grouped convolution or a batched product, the others by themselves. ``whole``: all of them as one
dense operation whose weight has zeros, which takes less time where layers are small. ``summed``: nodes that everything
after reads are a block, the others a second one, and each is a sum of what it reads from either; from branch to branch
that is a grouped operation, all else is dense, and nothing is copied for nodes that are read often.
Nodes travel in blocks, one for each part of a layer; blocks are copied where one operation reads several, and where a
convolution reads a part of one. Blocks of channels are filled up with channels of zeros to a multiple of sixteen, which
is what processors take at a time: pooling of 28 channels takes four times as long as that of 32.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import Literal, get_args

from torch import Tensor

from nas_blockout.networks import Runtime

Piece = tuple[int, int, int]
Form = Literal["whole", "split", "summed"]
Operations = Literal["fastest", "whole", "split", "summed"]

# What operations take on one core was measured once (see `benchmarks.division`) and is kept, so that a network is
# always divided alike; only the proportions decide anything.
BATCHES = (1, 256)
LANES = 16  # outputs that a convolution works on at a time: fewer take as long
LEAST_SAVED = 0.025  # of the time for each number of images that counts
# A divided network is expected to take at least so much less than its parent, or it may take more: nine tenths of what
# was measured lay .06 to .17 above what was expected at most, and next to none above the parent's time then (see
# docs/results/branched-speed.md).
MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Rates:
    """Microseconds that an operation takes: each call, and by numbers read, written and multiply-accumulates."""

    call: float
    read: float = 0.0
    written: float = 0.0
    macs: float = 0.0
    call_in_groups: float = 0.0
    macs_in_groups: float = 0.0

    def time(self, *, read: float = 0.0, written: float = 0.0, macs: float = 0.0, in_groups: bool = False) -> float:
        """Return the microseconds of one call."""
        call = self.call + self.call_in_groups * in_groups
        return call + self.read * read + self.written * written + (self.macs + self.macs_in_groups * in_groups) * macs


@dataclass(frozen=True, slots=True)
class Costs:
    """What operations take in a runtime, for one image and for many; some by the dimensions of their weight.

    A copy reads its pieces one by one, at every position: what counts as read is pieces, not numbers. `weight` are the
    microseconds a number of a convolution's weight that each call waits for memory: it counts in graphs, whose weights
    are larger than what is near the processor, not in the chains of small layers that the other rates were measured on.
    `views` says whether a part of a block is read where it stands, or has to be copied out of it first.
    """

    term: Mapping[int, tuple[Rates, Rates]]
    followed: Mapping[int, tuple[Rates, Rates]]
    added: tuple[Rates, Rates]
    copied: tuple[Rates, Rates]
    piece: float
    weight: float = 0.4e-3
    views: bool = True


# A product for one image waits for its weight. Calls in groups for one image, what convolutions write for many, and
# copies in PyTorch were set by whole networks, as was all in onnxruntime. What onnxruntime adds is a part of the
# convolution; its copies leave the layout of convolutions and come back.
COSTS: Mapping[Runtime, Costs] = {
    "torch": Costs(
        term={
            4: (Rates(36, 0, 0.39e-3, 22e-6, 85, 0), Rates(36, 0.5e-3, 0.6e-3, 16.4e-6, 55, 1.5e-6)),
            2: (Rates(5, 0, 0.41e-3, 81e-6, 4, 0), Rates(5, 0.24e-3, 0.06e-3, 19e-6, 4, 0.3e-6)),
        },
        followed={4: (Rates(15, 0.43e-3), Rates(15, 0.5e-3)), 2: (Rates(5), Rates(5))},
        added=(Rates(6.5, 0.35e-3), Rates(6.5, 0.18e-3)),
        copied=(Rates(20, 30e-3, 0.29e-3), Rates(20, 20e-3, 0.3e-3)),
        piece=2.7,
    ),
    "onnxruntime": Costs(
        term={
            4: (Rates(3, 0, 0.64e-3, 15.8e-6, 15, 1.8e-6), Rates(1160, 0, 0.25e-3, 16.5e-6, 1240, 4.2e-6)),
            2: (Rates(3, 0, 0.41e-3, 81e-6, 8), Rates(3, 0.24e-3, 0.06e-3, 19e-6, 8)),
        },
        followed={4: (Rates(0), Rates(0)), 2: (Rates(0), Rates(0))},
        added=(Rates(0), Rates(0)),
        copied=(Rates(5, 0, 2.6e-3), Rates(230, 0, 2.6e-3)),
        piece=0,
        views=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where nodes of a layer are: ``start..stop`` in the order of training stand in `block` from `offset` on.

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
    """The operations of a layer in the order of training.

    Args:
        operations: One for nodes that read the same, or several (see `cut_for_readers`).
        positions: Positions of an image at which each weight is used.
        pool: Side of the max pooling that follows.
        shared: Numbers of the operations whose nodes all operations of the layer after read.
    """

    operations: tuple[Folded, ...]
    positions: int = 1
    pool: int = 1
    shared: tuple[int, ...] = ()

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the operations side by side that read the same."""
        by_reads = groupby(range(len(self.operations)), key=lambda index: self.operations[index].ranges)
        return tuple(tuple(members) for _, members in by_reads)


@dataclass(frozen=True, slots=True)
class Term:
    """One convolution or product that is run.

    Args:
        reads: What each of its groups reads, as ``(block, start, stop)``; of all the same width.
    """

    reads: tuple[tuple[Piece, ...], ...]

    @property
    def groups(self) -> int:
        """Rows in equal shares that read their own each, or 1 if all rows read the same."""
        return len(self.reads)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What is read in all, neighbors in one piece."""
        return _joined(piece for read in self.reads for piece in read)


@dataclass(frozen=True, slots=True)
class Part:
    """What makes one block of nodes: a sum of terms.

    Args:
        slots: Numbers of the operations of training that stand in the block, in equal shares of it.
        terms: What is added, of as many rows as the block has.
        room: Rows of each slot: those of its operations, and zeros.
    """

    slots: tuple[tuple[int, ...], ...]
    terms: tuple[Term, ...]
    room: int

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of the operations, in the order of their rows."""
        return tuple(member for slot in self.slots for member in slot)


def cut_for_readers(layers: Sequence[FoldedLayer]) -> tuple[FoldedLayer, ...]:
    """Return the layers with operations cut up, so that each one's nodes are read together by all that read them."""
    cut_layers = []
    for layer, after in zip(layers, (*layers[1:], None), strict=True):
        readers = [operation.ranges for operation in after.operations] if after else []
        edges = sorted({edge for ranges in readers for span in ranges for edge in span})
        cut = []
        for first, operation in zip(starts_of(layer.operations), layer.operations, strict=True):
            inside = [edge - first for edge in edges if 0 < edge - first < len(operation.bias)]
            spans = zip((0, *inside), (*inside, len(operation.bias)), strict=True)
            cut += [
                Folded(operation.weight[start:stop], operation.bias[start:stop], operation.ranges)
                for start, stop in spans
            ]
        starts = starts_of(cut)
        shared = [n for n, at in enumerate(starts) if readers and all(_holds(ranges, at) for ranges in readers)]
        cut_layers.append(replace(layer, operations=tuple(cut), shared=tuple(shared)))
    return tuple(cut_layers)


def parts_of(layer: FoldedLayer, places: Sequence[Place], form: Form, *, filled: bool = True) -> tuple[Part, ...]:
    """Return what makes the blocks of a layer in one of its forms.

    Args:
        layer: What was trained.
        places: Where the nodes of the layer before are.
        form: How it is divided.
        filled: Whether a block of one group may end in zeros, which groups that read it would have to pass over.
    """
    if form == "summed":
        return _summed(layer, places, filled=filled)
    units = layer.units
    if form == "whole" and len(units) > 1:
        slot = tuple(range(len(layer.operations)))
        pieces = tuple((block, 0, width) for block, width in enumerate(widths_of(places)))
        return (Part((slot,), (Term((pieces,)),), _room(layer, (slot,), filled=filled)),)
    parts = []
    for slots in _equal(layer):
        spans = [layer.operations[slot[0]].ranges for slot in slots]
        reads = tuple(pieces_of(ranges, places, zeros=True) for ranges in spans)
        if len({sum(stop - start for _, start, stop in read) for read in reads}) > 1:
            reads = tuple(pieces_of(ranges, places) for ranges in spans)
        parts.append(Part(slots, (Term(reads),), _room(layer, slots, filled=filled)))
    return tuple(parts)


def places_after(layer: FoldedLayer, parts: Sequence[Part]) -> tuple[Place, ...]:
    """Return where the nodes of a layer are once its parts have been run, one block per part."""
    starts, places = starts_of(layer.operations), []
    for block, part in enumerate(parts):
        for number, slot in enumerate(part.slots, 1):
            offset = (number - 1) * part.room
            for member in slot:
                width = len(layer.operations[member].bias)
                room = number * part.room - offset if member == slot[-1] else width
                places.append(Place(starts[member], starts[member] + width, block, offset, room))
                offset += room
    return tuple(sorted(places, key=lambda place: place.start))


def fastest_forms(
    layers: Sequence[FoldedLayer],
    places: Sequence[Place],
    runtime: Runtime = "torch",
    *,
    parent: Sequence[FoldedLayer] | None = None,
    batch: int | None = None,
) -> tuple[Form, ...]:
    """Return the form of each layer with which the network is expected to take little time.

    From all layers whole on, those side by side take another form that save most, as long as any save enough, and as
    long as the network is expected to take less time than the dense network that it came from, or than with all layers
    whole if that takes more: less by as much as such expectations are wrong (`MARGIN`). What is saved is a share of
    that time; of both times, where one image and many have to do.

    Args:
        layers: From the image on.
        places: Where the channels of the image are.
        runtime: What runs the network.
        parent: Layers of the dense network that it came from, if that is known.
        batch: Images that are expected at a time; None for one as well as many.
    """
    costs, counted = COSTS[runtime], BATCHES if batch is None else (batch,)
    whole: Form = "whole"
    chosen = (whole,) * len(layers)
    dense = expected_times(parent or layers, places, (whole,) * len(parent or layers), costs)
    bounds = [max(pair) for pair in zip(expected_times(layers, places, chosen, costs), dense, strict=True)]

    def shares(forms: tuple[Form, ...]) -> list[float]:
        times = expected_times(layers, places, forms, costs)
        return [time_at(batch, times) / time_at(batch, bounds) for batch in counted]

    while True:
        options = {chosen: shares(chosen)}
        for first, last in combinations(range(len(layers) + 1), 2):
            for form in get_args(Form):
                option = (*chosen[:first], *[form] * (last - first), *chosen[last:])
                options[option] = options.get(option) or shares(option)  # many changes lead to the same forms
        allowed = [forms for forms in options if max(options[forms]) <= 1 - MARGIN]
        best = min([chosen, *allowed], key=lambda forms: sum(options[forms]))
        if sum(options[chosen]) - sum(options[best]) < LEAST_SAVED * len(counted):
            return chosen
        chosen = best


def fillings(layers: Sequence[FoldedLayer], forms: Sequence[Form]) -> tuple[bool, ...]:
    """Return of each layer whether its blocks may end in zeros: where the next layer reads whole blocks."""
    following = zip(layers[1:], forms[1:], strict=True)
    return (*(form != "split" or len(layer.units) == 1 for layer, form in following), True)


def widths_of(places: Sequence[Place]) -> list[int]:
    """Return the widths of the blocks."""
    widths = [0] * (1 + max(place.block for place in places))
    for place in places:
        widths[place.block] += place.room
    return widths


def starts_of(operations: Sequence[Folded]) -> list[int]:
    """Return the first node of each operation, in the order of training."""
    return [sum(len(operation.bias) for operation in operations[:index]) for index in range(len(operations))]


def pieces_of(ranges: Sequence[tuple[int, int]], places: Sequence[Place], *, zeros: bool = False) -> tuple[Piece, ...]:
    """Return what has to be read, in its order, to have ranges of nodes in the order of training.

    With `zeros`, those after nodes that are read to their last are read as well, so that whole blocks are.
    """
    pieces: list[Piece] = []
    for start, stop in ranges:
        for place in places:
            first, last = max(start, place.start), min(stop, place.stop)
            if first < last:
                shift = place.offset - place.start
                end = place.offset + place.room if zeros and last == place.stop else last + shift
                pieces.append((place.block, first + shift, end))
    return _joined(pieces)


def expected_times(
    layers: Sequence[FoldedLayer], places: Sequence[Place], forms: Sequence[Form], costs: Costs = COSTS["torch"]
) -> tuple[float, ...]:
    """Return the microseconds that a network is expected to take, for one image and for many.

    Args:
        layers: From the image on.
        places: Where the channels of the image are.
        forms: Of the layers.
        costs: Of the runtime; the result is a sum of what these hold, each times a number.
    """
    total = [0.0] * len(BATCHES)
    for layer, form, filled in zip(layers, forms, fillings(layers, forms), strict=True):
        parts, widths = parts_of(layer, places, form, filled=filled), widths_of(places)
        for index in range(len(BATCHES)):
            total[index] += sum(_expected(layer, part, widths, costs, index) for part in parts)
        places = places_after(layer, parts)
    return tuple(total)


def time_at(batch: int, times: Sequence[float]) -> float:
    """Return the time for a number of images, on the line through those for one and for 256."""
    (one, many), (fewest, most) = times, BATCHES
    return one + (many - one) * (batch - fewest) / (most - fewest)


def _expected(layer: FoldedLayer, part: Part, widths: Sequence[int], costs: Costs, index: int) -> float:
    """Return the microseconds that a part is expected to take."""
    kind = layer.operations[0].weight.dim()
    numbers = BATCHES[index] * layer.positions * part.room * len(part.slots)
    added = (len(part.terms) - 1) * costs.added[index].time(read=numbers)
    terms = sum(_expected_term(layer, part, term, widths, costs, index) for term in part.terms)
    return terms + added + costs.followed[kind][index].time(read=numbers)


def _expected_term(
    layer: FoldedLayer, part: Part, term: Term, widths: Sequence[int], costs: Costs, index: int
) -> float:
    weight, used, pieces = layer.operations[0].weight, BATCHES[index] * layer.positions, term.pieces
    read, rows = sum(stop - start for _, start, stop in pieces), part.room * len(part.slots) // term.groups
    kind, lanes = weight.dim(), LANES if weight.dim() == 4 else 1
    macs, written = used * -(-rows // lanes) * lanes * read * weight[0, 0].numel(), used * rows * term.groups
    block, start, stop = pieces[0]
    # Several pieces are put together; a convolution also copies a part of a block, where a product reads a view.
    copied = len(pieces) > 1 or (kind == 4 and (start, stop) != (0, widths[block]))
    copy = costs.copied[index].time(read=used * len(pieces), written=used * read) + costs.piece * len(pieces)
    return copied * copy + costs.term[kind][index].time(
        read=used * read, written=written, macs=macs, in_groups=term.groups > 1
    )


def _summed(layer: FoldedLayer, places: Sequence[Place], *, filled: bool) -> tuple[Part, ...]:
    """Return the nodes that everything after reads as one part, and the others as one, in slots of equal room."""
    reads = [pieces_of(operation.ranges, places, zeros=True) for operation in layer.operations]
    unshared = sorted(set(range(len(reads))) - set(layer.shared), key=lambda number: sorted(reads[number]))
    parts = []
    for slots in filter(None, (tuple((number,) for number in unshared), (layer.shared,) if layer.shared else ())):
        of_slots = [[reads[number] for number in slot] for slot in slots]
        terms = [_term(of_slots, block, width) for block, width in enumerate(widths_of(places))]
        parts.append(Part(slots, tuple(filter(None, terms)), _room(layer, slots, filled=filled)))
    return tuple(parts)


def _term(reads: Sequence[Sequence[tuple[Piece, ...]]], block: int, width: int) -> Term | None:
    """Return how slots read a block, whole: in groups if they read equal shares of it in its order, else with zeros."""
    of_block = [{tuple(sorted(piece for piece in read if piece[0] == block)) for read in slot} for slot in reads]
    if not any(any(slot) for slot in of_block):
        return None
    whole, runs = ((block, 0, width),), [(min(slot), len(list(same))) for slot, same in groupby(of_block)]
    shares = {(sum(stop - start for _, start, stop in read), slots) for read, slots in runs}
    in_order = _joined(piece for read, _ in runs for piece in read) == whole
    return Term(tuple(read for read, _ in runs) if in_order and len(shares) == 1 else (whole,))


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    joined: list[Piece] = []
    for block, start, stop in pieces:
        if joined and joined[-1][0] == block and joined[-1][2] == start:
            start = joined.pop()[1]
        joined.append((block, start, stop))
    return tuple(joined)


def _room(layer: FoldedLayer, slots: Sequence[Sequence[int]], *, filled: bool) -> int:
    """Return the rows of each slot, filled up so that all of them are a multiple of what is worked on at a time."""
    rows = max(sum(len(layer.operations[member].bias) for member in slot) for slot in slots)
    is_filled = layer.operations[0].weight.dim() == 4 and (filled or len(slots) > 1)
    # the fewest rows of a slot for which all slots together are a multiple of LANES
    multiple = LANES // math.gcd(LANES, len(slots)) if is_filled else 1
    return -(-rows // multiple) * multiple


def _holds(ranges: Iterable[tuple[int, int]], node: int) -> bool:
    return any(start <= node < stop for start, stop in ranges)


def _equal(layer: FoldedLayer) -> list[tuple[tuple[int, ...], ...]]:
    """Return the units of a layer put together: those of equal inputs and outputs."""
    by_shape: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for unit in layer.units:
        rows = sum(len(layer.operations[member].bias) for member in unit)
        by_shape.setdefault((rows, layer.operations[unit[0]].weight.shape[1]), []).append(unit)
    return [tuple(units) for units in by_shape.values()]
