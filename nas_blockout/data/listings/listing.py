"""Listed image files, and how they become the three splits of a source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataUnsuitable, named
from nas_blockout.data.listings.group_division import divided_by_groups, group_counts, require_whole_groups
from nas_blockout.data.listings.group_template import TEMPLATE, GroupTemplate
from nas_blockout.data.splits import Collection
from nas_blockout.data.streaming import ImageFiles
from nas_blockout.data.subsets import stratified

CARVED_SHARE = 0.2
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Image files of one split, their classes, and what they were taken of.

    Args:
        paths: Of n files.
        labels: Shape (n,), int64, numbers of classes.
        groups: Of the n files; None where none are known.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    groups: tuple[str, ...] | None = None

    def at(self, index: Tensor) -> "Listing":
        """Return the files at an index, shape (m,), int64."""
        numbers = index.tolist()
        groups = None if self.groups is None else tuple(self.groups[number] for number in numbers)
        return Listing(tuple(self.paths[number] for number in numbers), self.labels[index], groups)


def groups_of(paths: Sequence[Path], pattern: str) -> tuple[str, ...]:
    """Return the group of every file.

    Args:
        paths: Of the files.
        pattern: See `nas_blockout.data.listings.group_template`.

    Raises:
        DataUnsuitable: The pattern does not match the path of a file.
    """
    template = GroupTemplate(pattern)
    groups = [template.group_of(path) for path in paths]
    if without := [str(path) for path, group in zip(paths, groups, strict=True) if group is None]:
        raise DataUnsuitable(
            f"group_pattern must match every image, but {pattern!r} does not match {len(without)} of {len(paths)}: "
            f"{named(without)}; it is {TEMPLATE.shown}"
        )
    return tuple(group for group in groups if group is not None)


def carved(listings: Mapping[str, Listing], class_names: Sequence[str], *, seed: int) -> dict[str, Listing]:
    """Return all three splits; what is not given comes out of the training images, a fifth for each.

    Where groups are known, each stays whole.

    Args:
        listings: By split; with train.
        class_names: In the order of the labels.
        seed: Of the division.

    Raises:
        DataUnsuitable: A class has too few images, or groups, to be in every split, or two given splits share a group.
    """
    require_whole_groups({name: each.groups for name, each in listings.items() if each.groups is not None})
    missing = [name for name in SPLITS if name not in listings]
    if not missing:
        return dict(listings)
    shares = {"train": 1 - CARVED_SHARE * len(missing), **dict.fromkeys(missing, CARVED_SHARE)}
    train = listings["train"]
    if train.groups is not None:
        found = divided_by_groups(train.labels, train.groups, shares, class_names=class_names, seed=seed)
    else:
        # The last part gets the rest, so its share is not given.
        parts = stratified(train.labels, list(shares.values())[:-1], seed=seed)
        found = dict(zip(shares, parts, strict=True))
    divided = {name: train.at(index) for name, index in found.items()}
    _require_images(divided, train, class_names)
    return {**listings, **divided}


def collection_of(
    splits: Mapping[str, Listing],
    settings: DataSettings,
    root: Path | None,
    *,
    class_names: tuple[str, ...],
    origin: Path,
    notes: Sequence[str],
    memory_bytes: int,
) -> Collection:
    """Return what a source of listed files gives: images are decoded later, those of the test when they are read.

    Args:
        splits: All three.
        settings: Side, background and size of the images.
        root: Decoded images are cached in it; None for no cache.
        class_names: In the order of the labels.
        origin: Folder of the files.
        notes: What was recognized, in sentences.
        memory_bytes: A split that needs more is decoded while a network trains.
    """
    side, background, resize_size = settings.side_of_images, settings.background_of_images, settings.short_side
    files = {
        name: ImageFiles(listing.paths, listing.labels, side, root, memory_bytes, background, resize_size)
        for name, listing in splits.items()
    }
    groups = {
        name: group_counts(listing.labels, listing.groups, len(class_names))
        for name, listing in splits.items()
        if listing.groups is not None
    }
    return Collection(
        train=files["train"],
        validation=files["validation"],
        load_test=lambda: files["test"],
        class_names=class_names,
        origin=str(origin),
        notes=tuple(notes),
        groups=groups or None,
        group_ids={
            name: splits[name].groups or () for name in ("train", "validation") if splits[name].groups is not None
        }
        or None,
    )


def counted(splits: Mapping[str, Listing]) -> Iterator[str]:
    """Yield how many images, and groups, each split has, in sentences."""
    yield "images: " + ", ".join(f"{len(splits[name].labels)} {name}" for name in SPLITS)
    groups = {name: len(set(splits[name].groups or ())) for name in SPLITS}
    if any(groups.values()):
        yield "groups, none of which is in two splits: " + ", ".join(f"{groups[name]} {name}" for name in SPLITS)


def _require_images(divided: Mapping[str, Listing], train: Listing, class_names: Sequence[str]) -> None:
    had = train.labels.bincount(minlength=len(class_names))
    for name, listing in divided.items():
        empty = (listing.labels.bincount(minlength=len(class_names)) == 0).nonzero().flatten().tolist()
        if empty:
            most = int(had[empty].max())
            raise DataUnsuitable(
                f"every class needs an image in every split, but {len(empty)} of {len(class_names)} classes have none "
                f"in the {name} split ({len(listing.labels)} images), which is taken from too few: "
                f"{named([class_names[index] for index in empty])} (up to {most} images); add images, or leave such "
                f"classes out with min_images_per_class: {most + 1} or excluded_classes"
            )
