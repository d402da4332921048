"""Stratified splits and nested class-balanced subsets: which images, by number, go where."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stratified(labels: Tensor, shares: Sequence[float], *, seed: int) -> tuple[Tensor, ...]:
    """Divide images into parts of which each has every class in the same share.

    Args:
        labels: Shape (n,), int64.
        shares: Of each part but the last, in [0, 1], with a sum below 1; the last part gets the rest. In every class a
            part gets its share rounded to the nearest image, and at least one where the class has that many.
        seed: Of the draw; the result depends on the labels, the shares and the seed alone.

    Returns:
        For each part the sorted numbers of its images; one part more than there are shares.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in labels.bincount().nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]  # one draw a class, in order of labels
        for part, piece in zip(parts, torch.split(members, _sizes(len(members), shares)), strict=True):
            part.append(piece)
    return tuple(torch.cat(part).sort().values for part in parts)


def stratified_folds(labels: Tensor, folds: int, *, seed: int) -> tuple[Tensor, ...]:
    """Divide images into folds whose sizes, and numbers of images of every class, differ by at most one.

    Images are dealt out one by one, class by class, to one fold after another. Those of a class are in an order that is
    drawn.

    Args:
        labels: Shape (n,), int64.
        folds: Number of folds, 1 or more.
        seed: Of the draw; the result depends on the arguments alone.

    Returns:
        For each fold the sorted numbers of its images.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    dealt = shuffled[labels[shuffled].argsort(stable=True)]
    return tuple(dealt[fold::folds].sort().values for fold in range(folds))


def balanced(labels: Tensor, samples: int, *, seed: int) -> Tensor:
    """Choose a class-balanced subset; at one seed a smaller subset is part of every larger one.

    Images are taken in rounds, one of each class a round, so that classes differ by at most one image for as long as
    none runs out.

    Args:
        labels: Shape (n,), int64.
        samples: In 1..n.
        seed: Of the order within a class and within a round.

    Returns:
        Sorted numbers of the chosen images, shape (samples,).
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rounds = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    # A random order before the stable sort decides which classes the last, incomplete round leaves out.
    tie = torch.randperm(len(labels), generator=generator)
    return by_class[tie][rounds[tie].argsort(stable=True)][:samples].sort().values


def _sizes(members: int, shares: Sequence[float]) -> list[int]:
    spare = members
    sizes = []
    for parts_after, share in zip(range(len(shares), 0, -1), shares, strict=True):
        wanted = max(1, round(members * share)) if share > 0 else 0
        sizes.append(max(0, min(wanted, spare - parts_after)))  # leaves an image for each part after it
        spare -= sizes[-1]
    return [*sizes, spare]


def drawn_alike(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the order of a pass that draws with replacement, every class that there is as often as any other.

    Args:
        labels: Shape (n,), int64, on the processor.
        generator: On the processor; the order depends on its state alone.

    Returns:
        Shape (n,), int64: as `torch.utils.data.WeightedRandomSampler` gives for the inverse counts of the classes.
    """
    weights = labels.bincount().double().reciprocal()[labels]
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
