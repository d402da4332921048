"""What is left of hard memberships: all that changes the logits, or less, so that nothing reads nothing.

Memberships stand in dictionaries from the first masked layer to the classes; every tensor has the shape ``(nodes,
clusters)``. Which layer reads which, a `Wiring` says; without one the layers form a chain. Its graph may have cycles,
so that what is read, and what is fed, are least fixed points: layers that only read each other have neither.

A node that shares no cluster with what its layer reads is the same for every image; that is no longer so where a later
layer reads it in a convolution, which pads with zeros, so that it cannot become a bias.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nas_blockout.structure.wiring import Wiring, extra_clusters


def effective(hard: Mapping[str, Tensor], wiring: Wiring | None = None) -> dict[str, Tensor]:
    """Return memberships without those that cannot change the logits; the network computes what it did.

    Nodes from which neither a class nor a rigid layer can be reached lose all of theirs, and the others those that no
    layer has which they read or are read by. Nodes that read nothing stay where they are read.

    Args:
        hard: Memberships as booleans.
        wiring: Of exactly these layers; None for a chain.
    """
    wiring = wiring or _chain_of(hard)
    return _remove_unshared(_remove_unread(hard, wiring), wiring)


def cleaned(
    probabilities: Mapping[str, Tensor], hard: Mapping[str, Tensor], wiring: Wiring | None = None
) -> dict[str, Tensor]:
    """Return memberships under which every node that has one reads something and reaches a class or a rigid layer.

    Nodes that no image reaches lose their memberships, which changes what the network computes. Where that would leave
    a class, or a whole layer, without anything to read, its most probable membership among those that can be reached is
    put back.

    Args:
        probabilities: P of every layer.
        hard: Memberships as booleans.
        wiring: Of exactly these layers; None for a chain.
    """
    wiring = wiring or _chain_of(hard)
    # In this order: what is removed later leaves nothing for the steps before it to remove.
    return effective(_remove_unfed(probabilities, hard, wiring), wiring)


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


def _chain_of(hard: Mapping[str, Tensor]) -> Wiring:
    return Wiring.chain({name: len(value) for name, value in hard.items()})


def _settle(start: Iterable[str], update: Callable[[str], bool], then: Mapping[str, Sequence[str]]) -> None:
    """Update layers, and again those that follow from a layer that has changed, until none changes."""
    todo = dict.fromkeys(start)
    while todo:
        name = next(iter(todo))
        del todo[name]
        if update(name):
            todo.update(dict.fromkeys(then[name]))


def _sharing(hard: Tensor, clusters: Tensor) -> Tensor:
    """Return the memberships of those nodes that belong to one of these clusters."""
    return hard & (hard & clusters).any(1, keepdim=True)


def _remove_unfed(probabilities: Mapping[str, Tensor], hard: Mapping[str, Tensor], wiring: Wiring) -> dict[str, Tensor]:
    """Remove nodes that no image reaches, from the first layer to the classes; put back what must not be missing."""
    names, sources, images = wiring.names, wiring.sources(), wiring.read_images
    put_back = {name: torch.zeros_like(hard[name]) for name in names}
    fed = {name: torch.zeros_like(hard[name]) for name in names}
    everything = torch.ones_like(hard[names[0]][0])
    # The clusters after these stand for what is not masked: no node joins one of them, or it would read a whole layer.
    learned = len(everything) - len(extra_clusters(wiring))
    masked = {source for source, reader in wiring.edges if source and (source, reader) not in wiring.unmasked}

    def available(name: str) -> Tensor:
        """Return the clusters in which a layer reads something that an image reaches."""
        if name in images:
            return everything
        return torch.stack([fed[source].any(0) for source in sources[name]]).any(0)

    def feed(name: str) -> bool:
        before = fed[name].any(0)
        fed[name] = _sharing(hard[name], available(name)) | put_back[name]
        return not torch.equal(before, fed[name].any(0))

    def candidates(name: str) -> Tensor:
        """Return the learned memberships in which a node of a layer reads something that an image reaches."""
        reached, free = available(name), torch.zeros_like(hard[name])
        # What a node reads without masks, it reads in whichever clusters it is.
        without = (hard[name] & reached)[:, learned:].any(1, keepdim=True)
        free[:, :learned] = reached[:learned] | without
        return free

    def lacks(name: str) -> bool:
        """Whether a class or a layer with masked readers is in no cluster, or another layer has lost its nodes."""
        if name == names[-1]:
            return not bool(fed[name].any(1).all())
        return not bool((fed[name][:, :learned] if name in masked else fed[name]).any())

    _settle(names, feed, wiring.readers())
    while missing := [name for name in names if lacks(name)]:
        # One layer after the other, the first that can be reached: what is put back may reach the others.
        name = next(name for name in missing if candidates(name).any())
        back = _likeliest(probabilities[name], candidates(name), fed[name], classes=name == names[-1])
        back[:, learned:] |= hard[name][:, learned:] & back.any(1, keepdim=True)
        put_back[name] = back
        _settle([name], feed, wiring.readers())
    return fed


def _likeliest(p: Tensor, candidates: Tensor, fed: Tensor, *, classes: bool) -> Tensor:
    """Return the most probable of the candidates: of every class that has none, or of a whole layer."""
    reachable, back = torch.where(candidates, p.detach(), -1.0), torch.zeros_like(fed)
    if classes:
        starved = ~fed.any(1)
        back[starved, reachable[starved].argmax(1)] = True
    else:
        back.view(-1)[reachable.argmax()] = True
    return back


def _remove_unread(hard: Mapping[str, Tensor], wiring: Wiring) -> dict[str, Tensor]:
    """Remove nodes that nothing reads on a way to a class or to a rigid layer, from the classes to the first layer."""
    readers, sources = wiring.readers(), wiring.sources()
    kept = {name: hard[name] if name in wiring.whole else torch.zeros_like(hard[name]) for name in wiring.names}

    def want(name: str) -> bool:
        before = kept[name].any(0)
        if readers[name]:
            kept[name] = _sharing(hard[name], torch.stack([kept[reader].any(0) for reader in readers[name]]).any(0))
        return not torch.equal(before, kept[name].any(0))

    inner = [name for name in reversed(wiring.names) if name not in wiring.whole]
    _settle(inner, want, {name: [each for each in sources[name] if each in inner] for name in inner})
    return kept


def _remove_unshared(hard: Mapping[str, Tensor], wiring: Wiring) -> dict[str, Tensor]:
    """Remove memberships in clusters of no layer that is read or reads: they connect nothing but split groups."""
    readers, sources = wiring.readers(), wiring.sources()
    present = {name: value.any(0) for name, value in hard.items()}
    kept = {}
    for name, value in hard.items():
        neighbors = [present[each] for each in (*sources[name], *readers[name])]
        kept[name] = value & torch.stack(neighbors).any(0) if neighbors else value
    return kept
