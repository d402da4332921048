"""Folds: images of training and validation together, divided anew so that every one is held out once."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nas_blockout.data.errors import DataUnsuitable, named
from nas_blockout.data.listings.group_division import divided_by_groups, group_counts
from nas_blockout.data.splits import AnyImages, Collection
from nas_blockout.data.streaming import ImageFiles
from nas_blockout.data.subsets import stratified_folds
from nas_blockout.data.tensor_dataset import Labeled
from nas_blockout.serialization import count_of


def in_folds(collection: Collection, *, folds: int, fold: int, seed: int) -> Collection:
    """Return a collection whose training and validation images are divided anew: one fold is held out for validation.

    Test images are what they were, and in no fold. The folds are stratified by class and leave groups whole; they do
    not depend on which of them is held out, nor on how the images were divided before where these are files.

    Args:
        collection: What a source gives.
        folds: Number of folds, 2 or more.
        fold: The one for validation, in 0..folds-1.
        seed: Of the division.

    Raises:
        DataUnsuitable: A class has fewer images, or groups, than there are folds, or the source says that images have
            groups, but not which.
    """
    if collection.groups is not None and collection.group_ids is None:
        raise DataUnsuitable(
            "folds leave groups whole, but the source gives no group_ids: leave folds out, or let the source return a "
            "Collection with group_ids, the group of every image of train and validation"
        )
    images, groups = _together(collection)
    classes = len(collection.class_names)
    _require_images(images.labels, folds, collection.class_names)
    parts = _divided(images.labels, groups, folds, class_names=collection.class_names, seed=seed)
    held_out = parts[fold]
    trained_on = torch.cat([part for number, part in enumerate(parts) if number != fold]).sort().values
    split = {"train": trained_on, "validation": held_out}
    ids = None if groups is None else {name: _at(groups, index) for name, index in split.items()}
    counts = {
        name: group_counts(images.labels[split[name]], ids[name], classes) if ids and name in split else known
        for name, known in (collection.groups or {}).items()
    }
    sizes = [len(part) for part in parts]
    return replace(
        collection,
        train=_chosen(images, trained_on),
        validation=_chosen(images, held_out),
        notes=(*collection.notes, _note(sizes, fold, groups)),
        groups=counts or None,
        group_ids=ids,
        folds=tuple(tuple(images.labels[part].bincount(minlength=classes).tolist()) for part in parts),
        fold=fold,
    )


def _together(collection: Collection) -> tuple[AnyImages, tuple[str, ...] | None]:
    """Return the images of training and validation, files in the order of their paths, and their groups."""
    train, validation = collection.train, collection.validation
    groups = None
    if (ids := collection.group_ids) is not None:
        _require_ids(collection)
        groups = (*ids["train"], *ids["validation"])
    if isinstance(train, ImageFiles) and isinstance(validation, ImageFiles):
        paths = (*train.paths, *validation.paths)
        order = sorted(range(len(paths)), key=lambda number: paths[number])
        labels = torch.cat([train.labels, validation.labels])[order]
        files = replace(train, paths=tuple(paths[number] for number in order), labels=labels, cache=None)
        return files, None if groups is None else tuple(groups[number] for number in order)
    if not isinstance(train, Labeled) or not isinstance(validation, Labeled):
        kinds = f"{type(train).__name__} and {type(validation).__name__}"
        raise DataUnsuitable(f"folds need training and validation images of one kind, got {kinds}; leave folds out")
    images = torch.cat([train.images, validation.images])
    return Labeled(images, torch.cat([train.labels, validation.labels])), groups


def _require_ids(collection: Collection) -> None:
    for name, images in (("train", collection.train), ("validation", collection.validation)):
        if (found := len((collection.group_ids or {}).get(name, ()))) != len(images):
            raise DataUnsuitable(
                f"group_ids of a source must have the group of each of the {len(images)} images of {name}, got {found}"
            )


def _require_images(labels: Tensor, folds: int, class_names: Sequence[str]) -> None:
    counts = labels.bincount(minlength=len(class_names)).tolist()
    if few := [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if count < folds]:
        raise DataUnsuitable(
            f"folds: every class needs {folds} images or more for training and validation, one for each fold, but "
            f"{len(few)} of {len(class_names)} classes have fewer: {named(few)}; ask for fewer folds, add images, or "
            "leave such classes out"
        )


def _divided(
    labels: Tensor, groups: tuple[str, ...] | None, folds: int, *, class_names: Sequence[str], seed: int
) -> tuple[Tensor, ...]:
    if groups is None:
        return stratified_folds(labels, folds, seed=seed)
    shares = {f"fold {fold}": 1 / folds for fold in range(folds)}
    return tuple(divided_by_groups(labels, groups, shares, class_names=class_names, seed=seed).values())


def _chosen(images: AnyImages, index: Tensor) -> AnyImages:
    return images.part(index) if isinstance(images, ImageFiles) else images.at(index)


def _at(groups: tuple[str, ...], index: Tensor) -> tuple[str, ...]:
    return tuple(groups[number] for number in index.tolist())


def _note(sizes: Sequence[int], fold: int, groups: tuple[str, ...] | None) -> str:
    spread = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
    whole = (
        "" if groups is None else f", none of which shares one of {count_of(len(set(groups)), 'group')} with another"
    )
    return (
        f"the {sum(sizes)} images of train and validation are divided anew into {len(sizes)} folds of {spread} images"
        f"{whole}; fold {fold} is for validation, the others are trained on"
    )
