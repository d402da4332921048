"""One weighted operation of a branched network: its rows in bundles that read the same nodes.

`divide` decides which rows of a weight go together and what they read; the modules compute them. A form that runs
faster for a certain runtime takes the place of `BundledOperation` here, and needs to know nothing else of the graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.rewrite.layout import Axis

Operation = Callable[..., Tensor]

CONVOLUTIONS: dict[int, Operation] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the dims of the window
_MOST_RUNS = 3  # of consecutive places that are read as views; more are copied by index


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Rows of a weight that read the same nodes.

    Args:
        rows: Rows of the original weight, shape ``(rows,)``.
        columns: Columns of these rows that are read, in the order of `places`, shape ``(columns,)``; empty for nodes
            that read nothing.
        places: Where in memory they are, ascending, shape ``(columns,)``.
    """

    rows: Tensor
    columns: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """How the original operation is called.

    Args:
        window: Dims of the window of a convolution, 0 for a linear operation.
        options: Stride, padding and dilation of a convolution.
    """

    window: int
    options: tuple[Any, ...] = ()

    def dim(self, dims: int) -> int:
        """Return the dim of the nodes in a value of so many dims."""
        return 1 if self.window else dims - 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        """Return the nodes that the weight makes of `x`."""
        if not self.window:
            return F.linear(x, weight, bias)
        return CONVOLUTIONS[self.window](x, weight, bias, *self.options, groups)


@dataclass(frozen=True, slots=True, eq=False)
class Memberships:
    """Which clusters the nodes of a graph belong to, and which nodes stay.

    Args:
        clusters: Shape ``(nodes + 1, k)``, bool; row 0 stands for no node.
        kept: Nodes that stay: those with a cluster and those of rigid layers, shape ``(nodes + 1,)``; with row 0.
        rigid: Nodes that keep their order, shape ``(nodes + 1,)``.
    """

    clusters: Tensor
    kept: Tensor
    rigid: Tensor

    def pattern(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the different memberships among some nodes, and for each node which one it has.

        They are in the order of a Gray code, in which neighbors differ in few clusters: what reads one cluster then
        reads few runs of consecutive nodes, two clusters always one run each.
        """
        patterns, index = self.clusters[nodes].unique(dim=0, return_inverse=True)
        rank = sorted(range(len(patterns)), key=lambda row: _gray_rank(patterns[row].tolist()))
        place = torch.empty(len(rank), dtype=torch.long)
        place[torch.tensor(rank, dtype=torch.long)] = torch.arange(len(rank))
        return patterns[torch.tensor(rank, dtype=torch.long)], place[index]


def _gray_rank(bits: Sequence[bool]) -> list[bool]:
    """Return the number, as binary digits, at which a Gray code has these digits."""
    rank, parity = list[bool](), False
    for bit in bits:
        parity = parity != bool(bit)
        rank.append(parity)
    return rank


def divide(
    memberships: Memberships, targets: Tensor, sources: Tensor, axis: Axis, *, groups: int
) -> tuple[Tensor, Tensor]:
    """Return which of the rows' sets of reads each row has, and what each set reads.

    Rows are compared by their memberships (and convolution group), so that the search costs no more than the number of
    different memberships times the inputs, not rows times inputs.

    Args:
        memberships: Of all nodes.
        targets: Node of each row, shape ``(rows,)``.
        sources: Node of each input, 0 where it is none and always read, shape ``(inputs,)``.
        axis: Where the inputs stand in memory.
        groups: Groups of the convolution.

    Returns:
        For each row the number of its set, shape ``(rows,)``; for each set whether it reads an input, shape
        ``(sets, inputs)``.
    """
    patterns, pattern_of = memberships.pattern(targets)
    group_of = torch.arange(len(targets)) // (len(targets) // groups)
    kinds, kind_of = torch.stack([group_of, pattern_of], 1).unique(dim=0, return_inverse=True)
    source_patterns, source_pattern_of = memberships.pattern(sources)
    overlap = (patterns.float() @ source_patterns.float().T) > 0
    reads = overlap[kinds[:, 1]][:, source_pattern_of] | (sources == 0)
    reads &= kinds[:, :1] == torch.arange(len(sources)) // (len(sources) // groups)
    reads &= axis.kept
    return _distinct(reads, kind_of)


def _distinct(reads: Tensor, kind_of: Tensor) -> tuple[Tensor, Tensor]:
    """Return the set of each row, and the sets of reads without repeats, in the order of their first kind."""
    first: dict[bytes, tuple[int, int]] = {}
    # Compared as bytes: sorting rows of thousands of inputs, as `unique` does, takes seconds.
    sets = [first.setdefault(row.tobytes(), (len(first), kind))[0] for kind, row in enumerate(reads.numpy())]
    different = reads[[kind for _, kind in first.values()]]
    order = (~different.any(1)).long().argsort(stable=True)  # what reads nothing comes last, as in memory
    return order.argsort()[torch.tensor(sets, dtype=torch.long)][kind_of], different[order]


def bundles_of(set_of: Tensor, reads: Tensor, order: Tensor, axis: Axis, *, groups: int) -> list[Bundle]:
    """Return the bundles of a weight: kept rows with one set of reads each, those that read nothing last.

    Args:
        set_of: Set of reads of each row.
        reads: Inputs of each set.
        order: The kept rows in the order that the layer is to have.
        axis: Where the inputs stand in memory.
        groups: Groups of the convolution: a row has only the columns of its own.
    """
    bundles = []
    for number in dict.fromkeys(set_of[order].tolist()):
        rows = order[set_of[order] == number]
        inputs = reads[number].nonzero().flatten()
        places, by_place = axis.places[inputs].sort()
        share = reads.shape[1] // groups
        bundles.append(Bundle(rows, inputs[by_place] % share, places))
    return sorted(bundles, key=lambda bundle: not len(bundle.places))


class BundleWeight(nn.Module):
    """One operation over the nodes that a bundle reads.

    Args:
        call: The operation.
        weight: Shape ``(rows, columns)`` and the window.
        bias: Shape ``(rows,)``, or None.
        places: Where in memory the columns stand, ascending.
        size: Places in memory.
    """

    def __init__(self, call: Call, weight: Tensor, bias: Tensor | None, places: Tensor, size: int) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.runs = runs_of(places)
        self.reads_all = self.runs == ((0, size),)
        index = places if len(self.runs) > _MOST_RUNS else None
        self.places: Tensor | None
        self.register_buffer("places", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the nodes of the bundle."""
        return self.call(self.read(x), self.weight, self.bias)

    def read(self, x: Tensor) -> Tensor:
        """Return what the bundle reads of the nodes in memory."""
        dim = self.call.dim(x.dim())
        if self.reads_all:
            return x
        if self.places is not None:
            return x.index_select(dim, self.places)
        parts = [x.narrow(dim, start, stop - start) for start, stop in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class BundledOperation(nn.Module):
    """A weighted operation, one bundle after the other, at least one of which reads something.

    Nodes that read nothing are their bias. It is not folded into the biases of what reads them: batch normalization
    may follow, and at a border that is padded with zeros less of a constant is read than inside.

    Args:
        call: The operation.
        bundles: Rows and reads of each.
        weight: The original weight.
        bias: The original bias, or None.
        axis: Where the inputs stand in memory.
        order: Kept rows in the order that the layer is to have.
        groups: Of the original operation.
    """

    def __init__(
        self,
        call: Call,
        bundles: Sequence[Bundle],
        weight: Tensor,
        bias: Tensor | None,
        *,
        axis: Axis,
        order: Tensor,
        groups: int,
    ) -> None:
        super().__init__()
        self.call = call
        self.original = (len(weight), weight.shape[1] * groups, groups)
        self.bundles = nn.ModuleList(
            BundleWeight(
                call,
                weight[bundle.rows][:, bundle.columns],
                None if bias is None else bias[bundle.rows],
                bundle.places,
                axis.size,
            )
            for bundle in bundles
            if len(bundle.places)
        )
        constant = [bundle.rows for bundle in bundles if not len(bundle.places)]
        self.constants = len(constant[0]) if constant else 0
        self.constant = nn.Parameter(bias[constant[0]]) if constant and bias is not None else None
        memory = torch.cat([bundle.rows for bundle in bundles])
        place = torch.empty(len(weight), dtype=torch.long)
        place[memory] = torch.arange(len(memory))
        self.order: Tensor | None
        self.register_buffer("order", None if torch.equal(memory, order) else place[order], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the kept nodes of the layer."""
        outputs = [bundle(x) for bundle in self.bundles]
        dim = self.call.dim(x.dim())
        if self.constants:
            outputs.append(self._constant_nodes(outputs[0], dim))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim)
        return y if self.order is None else y.index_select(dim, self.order)

    def _constant_nodes(self, like: Tensor, dim: int) -> Tensor:
        sizes = [*like.shape[:dim], self.constants, *like.shape[dim + 1 :]]
        if self.constant is None:
            return like.new_zeros(sizes)
        return self.constant.view(-1, *(1,) * (like.dim() - 1 - dim)).expand(sizes)


class ConstantNodes(nn.Module):
    """A weighted operation of which no row reads anything: the bias of each node, or 0.

    Args:
        bias: Shape ``(nodes,)``, or None.
        shape: What it gives for one image, with `nodes` at `dim`.
        dim: Dim of the nodes.
        batch_dim: Dim that grows with the number of images.
    """

    def __init__(self, bias: Tensor | None, shape: tuple[int, ...], *, dim: int, batch_dim: int) -> None:
        super().__init__()
        self.constant = None if bias is None else nn.Parameter(bias)
        self.shape, self.dim, self.batch_dim = shape, dim, batch_dim

    def forward(self, images: Tensor) -> Tensor:
        """Return the nodes for as many images as there are."""
        sizes = [*self.shape]
        sizes[self.batch_dim] = self.shape[self.batch_dim] * images.shape[0]
        if self.constant is None:
            return images.new_zeros(sizes)
        return self.constant.view(-1, *(1,) * (len(sizes) - 1 - self.dim)).expand(sizes)


class DepthwiseOperation(nn.Module):
    """A convolution that filters each node alone.

    Args:
        call: The operation.
        weight: Filters of the kept nodes, shape ``(nodes, 1)`` and the window.
        bias: Shape ``(nodes,)``, or None.
    """

    def __init__(self, call: Call, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered nodes."""
        return self.call(x, self.weight, self.bias, groups=len(self.weight))


def runs_of(places: Tensor) -> tuple[tuple[int, int], ...]:
    """Return ascending places as runs of consecutive ones, each ``(first, after the last)``."""
    if not len(places):
        return ()
    breaks = (places.diff() != 1).nonzero().flatten() + 1
    starts = [0, *breaks.tolist()]
    stops = [*breaks.tolist(), len(places)]
    return tuple((int(places[start]), int(places[stop - 1]) + 1) for start, stop in zip(starts, stops, strict=True))


def row_order(memberships: Memberships, targets: Tensor, set_of: Tensor | None) -> Tensor:
    """Return the kept rows of a weight in the order in which the layer is to stand in memory.

    Rigid nodes keep theirs. Others stand by their memberships, so that a bundle is a run of nodes and reads runs;
    within blocks, as those of queries, keys and values in one weight, which are cut apart later. All writers of a
    stream get the same order. Where nothing else writes the layer, rows of one bundle come together.

    Args:
        memberships: Of all nodes.
        targets: Node of each row.
        set_of: Set of reads of each row; None where another weight writes the same nodes.
    """
    kept = memberships.kept[targets].nonzero().flatten()
    nodes = targets[kept]
    _, pattern = memberships.pattern(nodes)
    flexible = (~memberships.rigid[nodes]).long()
    first = torch.zeros_like(pattern) if set_of is None else set_of[kept]
    keys = [_blocks(targets)[kept], flexible, first * flexible, pattern * flexible, nodes * flexible, kept]
    order = torch.arange(len(kept))
    for key in reversed(keys):  # the least important first: sorting is stable
        order = order[key[order].argsort(stable=True)]
    return kept[order]


def _blocks(targets: Tensor) -> Tensor:
    """Return the block of each row: a node that comes again, after others, begins a new one."""
    blocks, seen, last, block = list[int](), set[int](), 0, 0
    for node in targets.tolist():
        if node != last and node in seen:
            block, seen = block + 1, set()
        seen.add(node)
        last = node
        blocks.append(block)
    return torch.tensor(blocks, dtype=torch.long)
