"""What a supernet over fixed hierarchies chooses between: the branch of every class, the width of every branch.

The nodes of a layer are divided into groups: one for each branch and one of all branches. A group's widths are nested:
each choice keeps the first so many of its nodes, so that all choices share their weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.networks import Branchable
from nas_blockout.settings_fields import Conflict


@dataclass(frozen=True, slots=True, eq=False)
class HierarchyChoices:
    """The groups of the nodes of a network and their widths; the rows of all layers stand one after the other.

    Args:
        layers: Names and widths of the layers with choices in the order in which they are made, then the classes.
        groups: Layer and branch of every group, the number of branches standing for all of them.
        group_of: Group of every node, without the classes; -1 for a node that always stays, shape ``(nodes,)``.
        branch_of: Branch of every node, likewise.
        kept: Whether a node is there under each of the widths of its group, shape ``(nodes, widths)``.
        branches: Number of branches.
    """

    layers: Mapping[str, int]
    groups: tuple[tuple[str, int], ...]
    group_of: Tensor
    branch_of: Tensor
    kept: Tensor
    branches: int

    @classmethod
    def of(cls, network: Branchable, settings: DartsSettings) -> "HierarchyChoices":
        """Return the choices in a network; its weights may be on the device ``meta``.

        Args:
            network: Dense.
            settings: Branches and widths.

        Raises:
            Conflict: There are more branches than classes or than nodes of a layer that branches, or fewer layers than
                are to branch.
        """
        branching = _branching(network, settings)
        *names, classes = network.layers
        groups: list[tuple[str, int]] = []
        group_of, branch_of, kept = [], [], []
        for name in names:
            sizes = _sizes(network.layers[name], settings, branching=name in branching)
            for branch, size in sizes.items():
                is_whole = name in network.rigid
                group_of += [-1 if is_whole else len(groups)] * size
                branch_of += [branch] * size
                widths = [max(1, round(share * size)) for share in settings.widths]
                kept += [[is_whole or node < width for width in widths] for node in range(size)]
                if not is_whole:
                    groups.append((name, branch))
        with torch.device("cpu"):  # they have values, also where weights have none
            return cls(
                {name: network.layers[name] for name in (*names, classes)},
                tuple(groups),
                torch.tensor(group_of),
                torch.tensor(branch_of),
                torch.tensor(kept),
                settings.branches,
            )

    def smallest(self) -> dict[str, Tensor]:
        """Return the memberships of the smallest widths, with every class in the branch that then is widest.

        Returns:
            Booleans by layer, shape ``(nodes, branches)``.
        """
        *names, classes = self.layers
        branches = torch.nn.functional.one_hot(self.branch_of, self.branches + 1).bool() & self.kept[:, :1]
        rows = branches[:, :-1] | branches[:, -1:]
        parts = rows.split([self.layers[name] for name in names])
        chosen = torch.zeros(self.layers[classes], self.branches, dtype=torch.bool)
        chosen[:, int(rows.sum(0).argmax())] = True
        return {**dict(zip(names, parts, strict=True)), classes: chosen}


def _sizes(nodes: int, settings: DartsSettings, *, branching: bool) -> dict[int, int]:
    """Return how many nodes of a layer are of each branch, those of all branches last; the first take the rest."""
    if not branching:
        return {settings.branches: nodes}
    shared = min(round(settings.shared * nodes), nodes - settings.branches)
    least, more = divmod(nodes - shared, settings.branches)
    sizes = {branch: least + (branch < more) for branch in range(settings.branches)}
    return sizes | ({settings.branches: shared} if shared else {})


def _branching(network: Branchable, settings: DartsSettings) -> frozenset[str]:
    """Return the layers that branch; rigid ones stay whole, and belong to all branches."""
    widths, distances = network.layers, _distances(network)
    *_, classes = widths
    deepest = max(distances.values())
    if settings.split_layers > deepest:
        message = f"split_layers must lie in 1..{deepest}, got split_layers={settings.split_layers}"
        raise Conflict(message, "split_layers")
    found = [name for name, far in distances.items() if 0 < far <= settings.split_layers and name not in network.rigid]
    if not found:
        message = (
            f"split_layers must reach a layer that can be divided, got split_layers={settings.split_layers}: all "
            "layers that near to the classes stay whole"
        )
        raise Conflict(message, "split_layers")
    narrowest = min((classes, *found), key=lambda name: widths[name])
    if settings.branches > widths[narrowest]:
        message = (
            f"branches must lie in 2..{widths[narrowest]}, the nodes of layer {narrowest!r}, "
            f"got branches={settings.branches}"
        )
        raise Conflict(message, "branches", "split_layers")
    return frozenset(found)


def _distances(network: Branchable) -> dict[str, int]:
    """Return the fewest edges from every layer to the classes, for those that lead there."""
    *_, classes = network.layers
    front, found = [classes], {classes: 0}
    for name in front:  # which grows
        for source, reader in network.edges:
            if reader == name and source is not None and source not in found:
                found[source] = found[name] + 1
                front.append(source)
    return found
