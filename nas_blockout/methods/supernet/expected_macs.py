"""The expected multiply-accumulates of an architecture that is drawn from the distributions of a supernet's choices."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nas_blockout.networks import Branchable, Connection


def compatible(branches: int, *, like: Tensor) -> Tensor:
    """Return which nodes read which, by branch: those of the same one, and those of all branches read and are read.

    Args:
        branches: Number of branches, which also is the number of the row of all branches.
        like: Gives dtype and device.

    Returns:
        Zeros and ones, shape ``(branches + 1, branches + 1)``.
    """
    same = torch.eye(branches + 1, dtype=like.dtype, device=like.device)
    same[branches, :] = same[:, branches] = 1
    return same


class ExpectedMacsOfChoices:
    r"""The expected multiply-accumulates an image, as a function of what is expected of every node.

    All choices are independent, so that a weight from node s to node t is used with the probability

    .. math:: \sum_{g,h} q_{t,g}\, G_{g,h}\, q_{s,h}, \qquad q_{t,g} = \Pr(t \text{ is there and of branch } g)

    where G says which branches read which (`compatible`). Two nodes of one group are no independent choice: both are
    there with the smaller of their probabilities, since widths are nested. A branch that no class chooses is counted,
    though the clean-up removes it.

    Args:
        network: Dense.
        whole: Layers whose nodes all stay.
    """

    def __init__(self, network: Branchable, whole: frozenset[str]) -> None:
        self._whole = whole
        self._connections = [(each, _macs_of_entry(each)) for each in network.connections]
        self._constant, self._others = 0.0, dict[str, Tensor]()
        for name, macs in network.other_macs.items():
            if name is None or name in whole:
                self._constant += float(macs.sum())
            else:
                self._others[name] = macs.double().cpu()

    def __call__(self, expected: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> Tensor:
        """Return the expected number, differentiable in what is expected of the nodes, float64.

        Args:
            expected: How probable it is of every node to be there and of each branch, shape
                ``(nodes, branches + 1)`` by layer.
            groups: Number of the group of every node, -1 for none, shape ``(nodes,)`` by layer.
        """
        known = {name: value.double() for name, value in expected.items()}
        there = {name: value.sum(1) for name, value in known.items()}
        example = next(iter(known.values()))
        reads = compatible(example.shape[1] - 1, like=example)
        parts = [example.new_tensor(self._constant)]
        parts += [there[name] @ macs.to(example.device) for name, macs in self._others.items()]
        for connection, macs in self._connections:
            present = connection.target_nodes.of(there)
            if connection.source_nodes is None or connection.filters_each_node_alone:
                parts.append(present.sum() * connection.shape[1] * macs)
            elif not set(connection.sources).isdisjoint(connection.targets):
                parts.append(self._of_one_layer(connection, known, groups, reads) * macs)
            else:
                target, source = (
                    nodes.of(known).unflatten(0, (connection.groups, -1)).sum(1)
                    for nodes in (connection.target_nodes, connection.source_nodes)
                )
                parts.append((target @ reads * source).sum() * macs)
            if connection.source_nodes is not None and not connection.source_nodes.are_all:
                without = _without_node(connection).to(present.device)
                parts.append((present.unflatten(0, (connection.groups, -1)) * without).sum() * macs)
        return torch.stack(parts).sum()

    def _of_one_layer(
        self, connection: Connection, known: Mapping[str, Tensor], groups: Mapping[str, Tensor], reads: Tensor
    ) -> Tensor:
        """Return the expected number of entries of a weight by which a layer reads itself."""
        assert connection.source_nodes is not None
        sides = [
            [
                each.to(reads.device).unflatten(0, (connection.groups, -1))
                for each in (nodes.of(known), nodes.of({name: groups[name] + _NONE for name in nodes.names}))
            ]
            for nodes in (connection.target_nodes, connection.source_nodes)
        ]
        (target, group_of_target), (source, group_of_source) = sides
        apart = target @ reads @ source.transpose(1, 2)
        smaller = torch.minimum(target.sum(2)[:, :, None], source.sum(2)[:, None, :])
        same = (group_of_target[:, :, None] == group_of_source[:, None, :]) & (group_of_target[:, :, None] > 0)
        return torch.where(same, smaller, apart).sum()


_NONE = 1  # is added to the numbers of groups: a position without a node has 0, like a node of no group


def _macs_of_entry(connection: Connection) -> int:
    return math.prod(connection.shape[2:]) * connection.positions


def _without_node(connection: Connection) -> Tensor:
    """Return how many positions that are no node's each group of a weight reads, shape ``(groups, 1)``."""
    assert connection.source_nodes is not None
    none = torch.tensor([each is None for each in connection.source_nodes.identities]).double()
    by_group: Tensor = none.unflatten(0, (connection.groups, -1))
    return by_group.sum(1, keepdim=True)
