"""How many multiply-accumulates a draw of memberships is expected to leave, in a few operations for the whole network.

The probability that two nodes share a cluster is a product over clusters, which does not sum up over the entries of a
weight. Written out as a sum over sets of clusters it does: each term is a number of one node times a number of the
other, so that the sum over all entries is the product of two sums over nodes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.networks import Connection
from nas_blockout.nodes import NO_NODE, Nodes

NO_OTHERS: Mapping[str | None, Tensor] = MappingProxyType({})
MOST_CLUSTERS = 8  # of which all sets are summed over: the work doubles with each


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What is summed up, by the numbers of the nodes of all layers put one after the other.

    Args:
        constant: Multiply-accumulates that no draw removes.
        of_nodes: For each node those that are left where it has a cluster, shape ``(nodes + 1,)``.
        of_common: For each node those that are left where two draws of it had a cluster in common, likewise.
        members: Nodes of one set after the other, shape ``(members,)``.
        starts: Where in them each set begins, shape ``(sets,)``.
        targets: For each weight, or group of it, the set of its outputs, shape ``(weights,)``.
        sources: The set of its inputs, likewise.
        macs: Multiply-accumulates of each of its entries, likewise.
    """

    constant: Tensor
    of_nodes: Tensor
    of_common: Tensor
    members: Tensor
    starts: Tensor
    targets: Tensor
    sources: Tensor
    macs: Tensor

    def to(self, device: torch.device) -> "_Plan":
        """Return the plan on a device."""
        return _Plan(*(getattr(self, field.name).to(device) for field in fields(self)))


class ExpectedMacs:
    r"""The expected multiply-accumulates an image of a network after a draw, as a function of the probabilities.

    .. math::
        1 - \prod_l (1 - P_{t,l} P_{s,l}) = - \sum_{S \ne \emptyset} (-1)^{|S|}
        \Big( \prod_{l \in S} P_{t,l} \Big) \Big( \prod_{l \in S} P_{s,l} \Big)

    over the sets S of clusters. Computed in float64: the terms alternate in sign.

    Args:
        connections: All weights of the network.
        masked: Names of those that are used where their two nodes share a cluster. Any other weight is used unless the
            node that it ends in is dropped.
        widths: Nodes of each layer that carries memberships.
        always: Layers whose nodes are never dropped.
        others: What else costs something, as of `Branchable.other_macs`.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        *,
        masked: frozenset[str],
        widths: Mapping[str, int],
        always: frozenset[str],
        others: Mapping[str | None, Tensor] = NO_OTHERS,
    ) -> None:
        self.layers, total = tuple(widths), sum(widths.values())
        starts = dict(zip(widths, torch.tensor([0, *widths.values()]).cumsum(0).tolist(), strict=False))
        self._constant = 0.0
        self._of_nodes, self._of_common = (torch.zeros(total + 1, dtype=torch.float64) for _ in range(2))
        self._sets: dict[tuple[int, ...], int] = {}
        pairs: list[tuple[int, int, float]] = []
        for connection in connections:
            if connection.weight in masked:
                pairs += self._masked(connection, starts, total)
            else:
                droppable = {name: start for name, start in starts.items() if name not in always}
                self._unmasked(connection, droppable, total)
        for layer, macs in others.items():
            if layer is None or layer not in starts or layer in always:
                self._constant += float(macs.sum())
            else:
                self._of_nodes[starts[layer] : starts[layer] + len(macs)] += macs
        members = [torch.tensor(nodes) for nodes in self._sets]
        sizes = torch.tensor([0, *map(len, members)])
        targets, sources = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
        macs = torch.tensor([pair[2] for pair in pairs], dtype=torch.float64)
        constant = torch.tensor(self._constant, dtype=torch.float64)
        begins = sizes[:-1].cumsum(0)
        plan = _Plan(constant, self._of_nodes, self._of_common, torch.cat(members), begins, targets, sources, macs)
        self._plans = {torch.device("cpu"): plan}

    def _masked(self, connection: Connection, starts: Mapping[str, int], none: int) -> list[tuple[int, int, float]]:
        """Return for each group of a weight the sets of its nodes, and add what is known of single nodes."""
        assert connection.source_nodes is not None
        target, source = (
            _rows(nodes, starts, none).unflatten(0, (connection.groups, -1))
            for nodes in (connection.target_nodes, connection.source_nodes)
        )
        macs = _macs(connection) / (target.numel() * source.shape[1])
        # An entry that reads no node is used where its target has a cluster.
        unread = ((source == none).sum(1, keepdim=True).double() * macs).expand_as(target)
        self._of_nodes.index_add_(0, target.flatten(), unread.flatten())
        if not set(connection.sources).isdisjoint(connection.targets):
            # An entry between a node and itself: both of its ends are one draw.
            alone = (target[:, :, None] == source[:, None, :]).sum(2).flatten().double() * macs
            alone = torch.where(target.flatten() == none, 0.0, alone)
            self._of_nodes.index_add_(0, target.flatten(), alone)
            self._of_common.index_add_(0, target.flatten(), -alone)
        sets = ([self._set(nodes) for nodes in side.tolist()] for side in (target, source))
        return [(out, in_, macs) for out, in_ in zip(*sets, strict=True)]

    def _unmasked(self, connection: Connection, droppable: Mapping[str, int], none: int) -> None:
        nodes = connection.target_nodes
        if droppable.keys().isdisjoint(nodes.names):
            self._constant += _macs(connection)
            return
        kept = none + 1  # stands for what is always there
        rows = _rows(nodes, {name: droppable.get(name, kept) for name in nodes.names}, none, kept=kept)
        each = _macs(connection) / len(rows)
        self._constant += each * int((rows == kept).sum())
        dropped = rows[rows < none]
        self._of_nodes.index_add_(0, dropped, torch.full((len(dropped),), each, dtype=torch.float64))

    def _set(self, nodes: Sequence[int]) -> int:
        return self._sets.setdefault(tuple(nodes), len(self._sets))

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected number, differentiable in the probabilities.

        Args:
            probabilities: P of each layer, shape ``(width, k)``, `MOST_CLUSTERS` at most.
        """
        p = torch.cat([probabilities[name] for name in self.layers])
        if p.device not in self._plans:
            self._plans[p.device] = self._plans[torch.device("cpu")].to(p.device)
        plan = self._plans[p.device]
        wide = F.pad(p.double(), (0, 0, 0, 1))  # the last row stands for no node
        products, signs = wide.new_ones(len(wide), 1), wide.new_full((1,), -1.0)
        for cluster in range(p.shape[1]):
            products = torch.cat([products, products * wide[:, cluster : cluster + 1]], 1)
            signs = torch.cat([signs, -signs])
        # Without the empty set: its term is the 1 that is subtracted from.
        products, signs = products[:, 1:], signs[1:]
        total = plan.constant + plan.of_nodes @ (products @ signs) + plan.of_common @ (products.square() @ signs)
        sums = F.embedding_bag(plan.members, products, plan.starts, mode="sum")
        total = total + plan.macs @ ((sums[plan.targets] * sums[plan.sources]) @ signs)
        return total.to(p.dtype)


def _macs(connection: Connection) -> int:
    return math.prod(connection.shape) * connection.positions


def _rows(nodes: Nodes, starts: Mapping[str, int], none: int, *, kept: int | None = None) -> Tensor:
    """Return the number of the node at each position, `none` where there is none.

    Args:
        nodes: Of one side of a weight.
        starts: Number of the first node of each layer; `kept` for a layer all of whose nodes get that number.
        none: The number of no node.
        kept: As of `starts`.
    """
    rows = torch.cat(
        [
            torch.full((width,), starts[name]) if starts[name] == kept else torch.arange(width) + starts[name]
            for name, width in nodes.layers
        ]
    )
    if nodes.positions is None:
        return rows
    positions = torch.tensor(nodes.positions)
    return torch.where(positions == NO_NODE, none, rows[positions.clamp(min=0)])
