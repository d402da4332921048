"""Own images: a folder with one sub-folder a class, in the layout of ImageNet.

    folder/<class>/*.png                  divided here, 60% training, 20% validation, 20% test in every class
    folder/train/<class>/*.png            divided by hand; also val, valid, validation or dev, and test; `Training` and
    folder/val/<class>/*.png              `Testing` in any case of letters

A split that is not there is carved from the training images: a fifth of them for each. With `group_pattern`, images of
one group, such as a patient, stay in one split. Images become color squares of
`image_size` pixels (64 where it is not set). What was recognized, and what was passed over and why, is in the notes of
the collection.

References:
    Deng et al., "ImageNet: a Large-Scale Hierarchical Image Database", CVPR 2009 (the layout).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataMissing, DataUnsuitable, named
from nas_blockout.data.listings.listing import SPLITS, Listing, carved, collection_of, counted, groups_of
from nas_blockout.data.sources.folder_layout import (
    SUFFIXES,
    Layout,
    PassedOver,
    beside,
    images_in,
    recognize,
    visible_folders,
)
from nas_blockout.data.splits import Collection
from nas_blockout.data.streaming import MEMORY_BYTES

REMEDY = "set folder to a folder that has one sub-folder of images a class"
_MOST_CLASSES_NAMED = 12

Paths = dict[str, dict[str, list[Path]]]  # by split, by class


def read(settings: DataSettings, root: Path | None, *, memory_bytes: int = MEMORY_BYTES) -> Collection:
    """List and divide the images; they are decoded later, the test images only when they are read.

    Args:
        settings: What of it is for `imagefolder`, and `split_seed`.
        root: Decoded images are cached in it; None for no cache.
        memory_bytes: A split that needs more is decoded while a network trains.

    Raises:
        DataMissing: There is no such folder.
        DataUnsuitable: The layout is not recognized, or a class is empty, too small to be divided, or missing in a
            split, and is not left out.
    """
    folder = Path(settings.folder or "")
    if not folder.is_dir():
        raise DataMissing(f"imagefolder needs an existing folder, got {str(folder)!r}; {REMEDY}")
    layout = recognize(folder, settings.layout)
    class_names = _classes(layout, settings.excluded_classes)
    paths, passed = _listed(layout, class_names)
    if layout.splits["train"] != folder:
        passed.add(beside(folder))
    left_out = _too_small(paths, class_names, settings.min_images_per_class)
    class_names = tuple(name for name in class_names if name not in left_out)
    if len(class_names) < 2:
        raise DataUnsuitable(
            f"two or more classes must have {settings.min_images_per_class} images, got {len(class_names)} in "
            f"{folder}; lower min_images_per_class"
        )
    _require_images(layout, paths, class_names, passed)
    listings = {split: _listing(by_class, class_names, settings.group_pattern) for split, by_class in paths.items()}
    splits = carved(listings, class_names, seed=settings.split_seed)
    return collection_of(
        splits,
        settings,
        root,
        class_names=class_names,
        origin=folder,
        notes=tuple(_notes(layout, splits, class_names, left_out, settings, passed)),
        memory_bytes=memory_bytes,
    )


def _classes(layout: Layout, excluded: Sequence[str]) -> tuple[str, ...]:
    folder = layout.splits["train"]
    names = visible_folders(folder)
    if unknown := [name for name in excluded if name not in names]:
        raise DataUnsuitable(f"excluded_classes must name classes of {folder}, got {named(unknown)}")
    kept = tuple(name for name in names if name not in excluded)
    if len(kept) >= 2:
        return kept
    remedy, one = REMEDY, folder / names[0] if len(names) == 1 else None
    if one is not None and len(visible_folders(one)) >= 2:
        remedy = f"set folder to {one}, which has {len(visible_folders(one))} sub-folders"
    elif loose := beside(folder).counts["images outside the folder of a class"]:
        remedy = f"sort its {loose} images into one sub-folder a class, or list them in a table, for the source table"
    raise DataUnsuitable(f"{folder} must have two or more classes, got {len(kept)} sub-folders; {remedy}")


def _listed(layout: Layout, class_names: tuple[str, ...]) -> tuple[Paths, PassedOver]:
    """Return the images of every class by split, and what was passed over in the folders of the splits."""
    paths: Paths = {}
    passed = PassedOver()
    train = set(visible_folders(layout.splits["train"]))
    for split, folder in layout.splits.items():
        # Labels are positions among the classes of the training images; a split must not number its own.
        if unknown := sorted(set(visible_folders(folder)) - train):
            raise DataUnsuitable(f"{folder} must have no class that is not in train, got {', '.join(unknown[:5])}")
        paths[split] = {}
        passed.add(beside(folder))
        for name in class_names:
            paths[split][name], inside = images_in(folder / name) if (folder / name).is_dir() else ([], PassedOver())
            passed.add(inside)
    return paths, passed


def _too_small(paths: Paths, class_names: tuple[str, ...], least: int | None) -> dict[str, int]:
    """Return the classes to leave out, each with its number of training images."""
    if least is None:
        return {}
    return {
        name: len(paths["train"][name])
        for name in class_names
        if len(paths["train"][name]) < least or not all(by_class[name] for by_class in paths.values())
    }


def _require_images(layout: Layout, paths: Paths, class_names: tuple[str, ...], passed: PassedOver) -> None:
    for split, by_class in paths.items():
        if empty := [name for name in class_names if not by_class[name]]:
            had = f" (passed over: {passed})" if str(passed) else ""
            raise DataUnsuitable(
                f"every class needs an image, but {layout.splits[split]} has none for {named(empty)}; add images "
                f"({', '.join(SUFFIXES)}), or leave the class out with excluded_classes or min_images_per_class: 1{had}"
            )


def _listing(by_class: Mapping[str, list[Path]], class_names: tuple[str, ...], pattern: str | None) -> Listing:
    counts = torch.tensor([len(by_class[name]) for name in class_names])
    labels = torch.arange(len(class_names)).repeat_interleave(counts)
    paths = tuple(path for name in class_names for path in by_class[name])
    return Listing(paths, labels, None if pattern is None else groups_of(paths, pattern))


def _notes(
    layout: Layout,
    splits: Mapping[str, Listing],
    class_names: tuple[str, ...],
    left_out: Mapping[str, int],
    settings: DataSettings,
    passed: PassedOver,
) -> Iterator[str]:
    """Yield what was recognized in the folder and what was passed over, in sentences."""
    train = layout.splits["train"]
    classes = named(class_names, most=_MOST_CLASSES_NAMED)
    if set(layout.splits) == {"train"} and train == Path(settings.folder or ""):
        yield f"recognized {len(class_names)} classes, divided here by split_seed: {classes}"
    else:
        folders = ", ".join(f"{split} in {path.name}/" for split, path in layout.splits.items())
        carved = [name for name in SPLITS if name not in layout.splits]
        taken = f"; {' and '.join(carved)} taken from the training images" if carved else ""
        yield f"recognized splits: {folders}{taken}; {len(class_names)} classes: {classes}"
    yield from counted(splits)
    nested = sum(len(path.relative_to(train).parts) > 2 for path in splits["train"].paths if path.is_relative_to(train))
    if nested:
        yield f"{nested} training images lie in sub-folders of a class and count to it"
    if left_out:
        few = named([f"{name} ({count})" for name, count in left_out.items()], most=_MOST_CLASSES_NAMED)
        yield f"left out by min_images_per_class {settings.min_images_per_class} ({len(left_out)}): {few}"
    if settings.excluded_classes:
        yield f"left out by excluded_classes: {named(settings.excluded_classes, most=_MOST_CLASSES_NAMED)}"
    if layout.ignored:
        yield f"passed over folders that are no split or have no sub-folder a class: {named(layout.ignored)}"
    if str(passed):
        yield f"passed over {passed}"
