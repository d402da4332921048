"""Weighted operations of a branched graph as they are run in eval mode: with the batch norm that follows folded in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from nas_blockout.backbones.inference import fold
from nas_blockout.graph.forms.node_sets import members, set_of
from nas_blockout.graph.rewrite.bundles import BundledOperation, BundleWeight, Call, DepthwiseOperation


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a weight that read the same nodes.

    Args:
        rows: Their places in the layer, as a set.
        reads: What they read, as a set of places in memory.
        weight: Shape ``(rows, reads)`` and the window, both in ascending order of the places.
    """

    rows: int
    reads: int
    weight: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A weighted operation, normalized.

    Args:
        call: The operation.
        bundles: Its rows that read something.
        bias: Of all rows in the order of the layer, shape ``(rows,)``; None for zeros.
        width: Number of rows, with those that read nothing.
        original: Rows, inputs and groups of the operation of the dense network.
    """

    call: Call
    bundles: tuple[Rows, ...]
    bias: Tensor | None
    width: int
    original: tuple[int, int, int]

    @property
    def kernel(self) -> int:
        """Positions of the window."""
        return self.bundles[0].weight[0, 0].numel()

    @property
    def constants(self) -> int:
        """Rows that read nothing, as a set."""
        return ((1 << self.width) - 1) & ~sum(bundle.rows for bundle in self.bundles)

    def weight(self, rows: Sequence[int], reads: Sequence[int]) -> Tensor:
        """Return a weight of some rows that reads some places, with zeros for what they do not read.

        Args:
            rows: In the order of the result; -1 for a row of zeros.
            reads: In the order of the result; -1 for a column of zeros.
        """
        some = self.bundles[0].weight
        wide = some.new_zeros(len(rows), len(reads), *some.shape[2:])
        row_at = {row: place for place, row in enumerate(rows) if row >= 0}
        column_at = {place: column for column, place in enumerate(reads) if place >= 0}
        for bundle in self.bundles:
            mine = [(n, row_at[row]) for n, row in enumerate(members(bundle.rows)) if row in row_at]
            seen = [(n, column_at[place]) for n, place in enumerate(members(bundle.reads)) if place in column_at]
            if mine and seen:
                (have, to), (inputs, columns) = (torch.tensor(pairs).T for pairs in (mine, seen))
                wide[to[:, None], columns] = bundle.weight[have][:, inputs]
        return wide

    def bias_of(self, rows: Sequence[int]) -> Tensor | None:
        """Return the bias of some rows, 0 for -1; None where there is none."""
        if self.bias is None:
            return None
        index = torch.tensor(rows)
        return torch.where(index >= 0, self.bias[index.clamp(min=0)], 0)


@dataclass(frozen=True, slots=True, eq=False)
class Filters:
    """A convolution that filters each node alone, normalized.

    Args:
        call: The operation.
        weight: Shape ``(nodes, 1)`` and the window.
        bias: Shape ``(nodes,)``; None for zeros.
    """

    call: Call
    weight: Tensor
    bias: Tensor | None


Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def folded(
    body: fx.GraphModule, ranks: Mapping[fx.Node, int]
) -> tuple[dict[fx.Node, Folded | Filters], dict[fx.Node, fx.Node]]:
    """Return the operations of a graph, and the batch norms that went into them, each with its operation.

    A batch norm goes into an operation that it alone reads, and of whose nodes it normalizes each. At a border that is
    padded this is exact, since it is the result of the operation that is normalized.

    Args:
        body: Of a branched network.
        ranks: Number of dims of the value of each node.
    """
    modules = dict(body.named_modules())
    uses = Counter(node.target for node in body.graph.nodes if node.op == "call_module")
    operations: dict[fx.Node, Folded | Filters] = {}
    gone: dict[fx.Node, fx.Node] = {}
    for node in body.graph.nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(module, BundledOperation | DepthwiseOperation):
            continue
        after = next(iter(node.users))
        norm = modules.get(after.target) if after.op == "call_module" else None
        alone = len(node.users) == 1 and uses[node.target] == 1
        if alone and _tracks(norm) and module.call.dim(ranks[node]) == 1:
            gone[after] = node
        else:
            norm = None
        operations[node] = _filters(module, norm) if isinstance(module, DepthwiseOperation) else _bundles(module, norm)
    return operations, gone


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the factors and the shifts of a batch norm in eval mode, shape ``(nodes,)`` each."""
    assert norm.running_mean is not None
    shape = norm.running_mean.new_ones(len(norm.running_mean), 1)
    factors, shifts = fold(shape, None, norm, slice(None))
    return factors[:, 0], shifts


def _tracks(norm: nn.Module | None) -> TypeGuard[Norm]:
    return isinstance(norm, Norm) and norm.running_mean is not None and norm.affine


@torch.no_grad()
def _filters(module: DepthwiseOperation, norm: nn.Module | None) -> Filters:
    if not _tracks(norm):
        return Filters(module.call, module.weight, module.bias)
    weight, bias = fold(module.weight, module.bias, norm, slice(None))
    return Filters(module.call, weight, bias)


@torch.no_grad()
def _bundles(module: BundledOperation, norm: nn.Module | None) -> Folded:
    """Return an operation as rows of the layer, whatever the order in which its bundles stand."""
    operations = [bundle for bundle in module.bundles if isinstance(bundle, BundleWeight)]
    width = sum(len(bundle.weight) for bundle in operations) + module.constants
    stands = torch.arange(width)
    if module.order is not None:
        stands[module.order.cpu()] = torch.arange(width)
    biases = [*(bundle.bias for bundle in operations), *([module.constant] if module.constants else [])]
    given: list[Tensor] = [bias for bias in biases if bias is not None]
    bias = torch.cat(given)[stands.argsort()] if given else None
    bundles, start = [], 0
    for bundle in operations:
        rows = stands[start : start + len(bundle.weight)]
        start += len(rows)
        order = rows.argsort()
        places = [place for first, last in bundle.runs for place in range(first, last)]
        weight = bundle.weight[order]
        if _tracks(norm):
            weight, _ = fold(weight, None, norm, rows[order])
        bundles.append(Rows(set_of(rows.tolist()), set_of(places), weight))
    if _tracks(norm):  # a row of nothing stands for each, also for those that read nothing: its bias is all it is
        _, bias = fold(norm.weight.new_zeros(width, 0), bias, norm, slice(None))
    return Folded(module.call, tuple(bundles), bias, width, module.original)
