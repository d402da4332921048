"""What is left of hard memberships: all that changes the logits, or less, so that nothing reads nothing.

Memberships stand in dictionaries from the first masked layer to the classes; every tensor has the shape ``(nodes,
clusters)``. A node that shares no cluster with the layer before reads nothing and is the same for every image; that is
no longer so where a later layer reads it in a convolution, which pads with zeros, so that it cannot become a bias.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def effective(hard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return memberships without those that cannot change the logits; the network computes what it did.

    Nodes from which no class can be reached lose all of theirs, and the others those that no neighboring layer has.
    Nodes that read nothing stay where they are read.
    """
    return _remove_unshared(_remove_unread(hard))


def cleaned(probabilities: Mapping[str, Tensor], hard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return memberships under which every node that has one reads something and reaches a class.

    Nodes that read nothing lose their memberships, which changes what the network computes. Where that would leave a
    class, or a whole layer, without anything to read, its most probable membership among those that can be reached is
    put back.
    """
    # In this order: what is removed later leaves nothing for the steps before it to remove.
    return effective(_remove_unfed(probabilities, hard))


def merged(hard: Tensor, smallest: int) -> Tensor:
    """Return the memberships of a layer with those of small groups replaced; nodes without any keep none.

    Args:
        hard: Memberships of the layer as booleans, shape ``(nodes, clusters)``.
        smallest: Nodes of a group that stays as it is; nodes of smaller ones join the most similar group that is not
            smaller.
    """
    rows, group, counts = hard.unique(dim=0, return_inverse=True, return_counts=True)
    counts = torch.where(rows.any(1), counts, 0)
    large = counts >= smallest if bool((counts >= smallest).any()) else counts == counts.max()
    if not large.any():
        return hard
    replaced: Tensor = rows.clone()
    for position in ((counts > 0) & ~large).nonzero().flatten().tolist():
        shared = (rows & rows[position]).sum(1)
        # most shared clusters, then fewest others, then most nodes; the lowest number decides what is still equal
        rank = [
            (int(shared[other]), -int(rows[other].sum()), int(counts[other]), -other)
            for other in large.nonzero().flatten().tolist()
        ]
        replaced[position] = rows[-max(rank)[-1]]
    return replaced[group]


def _remove_unfed(probabilities: Mapping[str, Tensor], hard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove nodes that share no cluster with the layer before, from the first layer to the classes."""
    names = list(hard)
    available = torch.ones(hard[names[0]].shape[1], dtype=torch.bool, device=hard[names[0]].device)
    kept = {}
    for name in names:
        fed = hard[name] & (hard[name] & available).any(1, keepdim=True)
        reachable = torch.where(available, probabilities[name].detach(), -1.0)
        if name == names[-1]:  # every class stays, by its most probable membership among the clusters that get here
            starved = ~fed.any(1)
            fed[starved, reachable[starved].argmax(1)] = True
        elif not fed.any():  # so does one node of a layer that would vanish
            fed.view(-1)[reachable.argmax()] = True
        kept[name] = fed
        available = fed.any(0)
    return kept


def _remove_unread(hard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove nodes that share no cluster with the layer after, from the classes to the first layer."""
    names = list(hard)
    wanted = torch.ones_like(hard[names[-1]].any(0))
    kept = {}
    for name in reversed(names):
        kept[name] = hard[name] & (hard[name] & wanted).any(1, keepdim=True)
        wanted = kept[name].any(0)
    return {name: kept[name] for name in names}


def _remove_unshared(hard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove memberships in clusters that neither neighboring layer has: they connect nothing but split groups."""
    names = list(hard)
    present = {name: hard[name].any(0) for name in names}
    nothing = torch.zeros_like(present[names[0]])
    kept = {}
    for position, name in enumerate(names):
        before = present[names[position - 1]] if position else nothing
        after = present[names[position + 1]] if position + 1 < len(names) else nothing
        shared = before | after
        kept[name] = hard[name] & shared if len(names) > 1 else hard[name]
    return kept
