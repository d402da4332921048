"""Divisions of images that leave groups whole: no patient, scene or typeface is in two splits."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nas_blockout.data.errors import DataUnsuitable, named
from nas_blockout.serialization import count_of

_ATTEMPTS = 20

_Contents = list[dict[int, int]]  # for each group the number of its images by class


def divided_by_groups(
    labels: Tensor, groups: Sequence[str], shares: Mapping[str, float], *, class_names: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Divide images into parts so that every group is in one part, and every class in every part.

    Classes come in the order of their number of groups, the rarest first; of a class the groups come roughly from the
    largest to the smallest, those of similar size in an order that is drawn. Each goes to the part that still lacks
    most images of the class, or, where no more groups of the class are left than parts without it, to one of these.

    Args:
        labels: Shape (n,), int64.
        groups: Of the n images.
        shares: Of each part, in (0, 1), with the sum 1. How near a part comes to its share depends on the groups.
        class_names: In the order of the labels.
        seed: Of the draws; the result depends on the arguments alone.

    Returns:
        For each part the sorted numbers of its images.

    Raises:
        DataUnsuitable: A class has fewer groups than there are parts, or no division was found that has every class in
            every part.

    References:
        Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011, whose labels are the
        classes here, and whose examples are the groups.

        Differs from the paper in: groups count by their images, large ones come first, and rare classes are kept in
        every part.
    """
    known = {name: number for number, name in enumerate(sorted(set(groups)))}
    of_images = torch.tensor([known[name] for name in groups], dtype=torch.int64)
    contents = _contents(of_images, labels, len(known), len(class_names))
    _require_groups(contents, list(shares), class_names)
    generator = torch.Generator().manual_seed(seed)
    lacking: set[int] = set()
    for _ in range(_ATTEMPTS):  # almost always one
        part_of = torch.tensor(_assigned(contents, list(shares.values()), labels.bincount().tolist(), generator))
        parts = part_of[of_images]
        found = [(parts == number).nonzero().flatten() for number in range(len(shares))]
        lacking = {
            label
            for index in found
            for label in (labels[index].bincount(minlength=len(class_names)) == 0).nonzero().flatten().tolist()
        }
        if not lacking:
            return dict(zip(shares, found, strict=True))
    raise DataUnsuitable(
        f"every class needs a group in every split ({', '.join(shares)}), but no such division of "
        f"{count_of(len(known), 'group')} was found for {named([class_names[label] for label in sorted(lacking)])}, "
        "whose groups have other rare classes too; add groups, divide the data yourself, or try another split_seed"
    )


def group_counts(labels: Tensor, groups: Sequence[str], classes: int) -> tuple[int, ...]:
    """Return for each class in how many groups it is.

    Args:
        labels: Shape (n,), int64.
        groups: Of the n images.
        classes: Number of classes.
    """
    pairs = set(zip(labels.tolist(), groups, strict=True))
    return tuple(torch.tensor([label for label, _ in pairs], dtype=torch.int64).bincount(minlength=classes).tolist())


def require_whole_groups(groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse splits that share a group.

    Args:
        groups: Of the images of each split.

    Raises:
        DataUnsuitable: The message names the groups.
    """
    splits = list(groups)
    for number, first in enumerate(splits):
        for second in splits[number + 1 :]:
            if shared := sorted(set(groups[first]) & set(groups[second])):
                raise DataUnsuitable(
                    f"no group may be in two splits, but {first} and {second} share {count_of(len(shared), 'group')}: "
                    f"{named(shared)}; move their images into one split, or leave the division to split_seed"
                )


def _contents(of_images: Tensor, labels: Tensor, groups: int, classes: int) -> _Contents:
    contents: _Contents = [{} for _ in range(groups)]
    cells, sizes = torch.unique(of_images * classes + labels, return_counts=True)
    for cell, size in zip(cells.tolist(), sizes.tolist(), strict=True):
        contents[cell // classes][cell % classes] = size
    return contents


def _require_groups(contents: _Contents, parts: Sequence[str], class_names: Sequence[str]) -> None:
    counts = [0] * len(class_names)
    for content in contents:
        for label in content:
            counts[label] += 1
    if few := [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if count < len(parts)]:
        raise DataUnsuitable(
            f"every class needs {len(parts)} groups or more, one for each split ({', '.join(parts)}), but "
            f"{len(few)} of {len(class_names)} classes have fewer: {named(few)}; add images of other groups, or leave "
            "such classes out with excluded_classes"
        )


def _assigned(
    contents: _Contents, shares: Sequence[float], totals: Sequence[int], generator: torch.Generator
) -> list[int]:
    """Return the part of every group."""
    wanted = [[share * total for total in totals] for share in shares]
    wanted_of_all = [sum(each) for each in wanted]
    present: list[set[int]] = [set() for _ in shares]
    order = torch.randperm(len(contents), generator=generator).tolist()
    part_of = [-1] * len(contents)
    open_classes = {
        label: [group for group, content in enumerate(contents) if label in content] for label in range(len(totals))
    }
    while open_classes:
        rarest = min(open_classes, key=lambda label: (len(open_classes[label]), label))
        # Sizes of one order of magnitude count as equal, so that the seed decides where it may.
        members = sorted(
            open_classes.pop(rarest), key=lambda group: (-contents[group][rarest].bit_length(), order[group])
        )
        for position, group in enumerate(members):
            without = [part for part in range(len(shares)) if rarest not in present[part]]
            parts = without if len(members) - position <= len(without) else list(range(len(shares)))
            part = max(parts, key=lambda part: (wanted[part][rarest], wanted_of_all[part], -part))
            part_of[group] = part
            present[part] |= contents[group].keys()
            for label, size in contents[group].items():
                wanted[part][label] -= size
                wanted_of_all[part] -= size
        taken = set(members)
        open_classes = {
            label: left
            for label, each in open_classes.items()
            if (left := [group for group in each if group not in taken])
        }
    return part_of
