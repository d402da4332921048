"""Own images: a table with a row an image, its path and its class, and on request its group and its split.

    file,diagnosis,patient
    scans/0001.png,healthy,p17

Paths are relative to `folder`, or to the folder of the table. What is not divided by a column is divided here, 60%
training, 20% validation, 20% test, in every class; a split that no row names is carved from the training images, as of
folders of images. Everything after the list of files is that of `imagefolder`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import MOST_NAMED, DataMissing, DataUnsuitable, named
from nas_blockout.data.listings.labeled_rows import PARQUET, Row, rows_of
from nas_blockout.data.listings.listing import SPLITS, Listing, carved, collection_of, counted, groups_of
from nas_blockout.data.sources.folder_layout import OTHER_FORMATS, SPLIT_WORDS, SUFFIXES
from nas_blockout.data.splits import Collection
from nas_blockout.data.streaming import MEMORY_BYTES
from nas_blockout.serialization import count_of

REMEDY = "set table to a CSV or Parquet file that has a row an image, with its path and its class"
_MOST_CLASSES_NAMED = 12
_SPLIT_OF: Mapping[str, str] = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A sound row: an image, its class, and where known its group and its split."""

    path: Path
    label: str
    group: str | None
    split: str


def read(settings: DataSettings, root: Path | None, *, memory_bytes: int = MEMORY_BYTES) -> Collection:
    """Read the table and divide the images; they are decoded later, the test images only when they are read.

    Args:
        settings: What of it is for `table`, and `split_seed`.
        root: Decoded images are cached in it; None for no cache.
        memory_bytes: A split that needs more is decoded while a network trains.

    Raises:
        DataMissing: There is no such table or folder.
        DataCorrupt: The table is damaged, or of another encoding or format.
        DataUnsuitable: It lacks a column, rows are broken, or a class is too small to be divided and is not left out.
    """
    table = Path(settings.table or "")
    rows = rows_of(table, _columns(settings))
    folder = Path(settings.folder) if settings.folder is not None else table.parent
    if not folder.is_dir():
        raise DataMissing(f"the paths of {table} need an existing folder, got {str(folder)!r}; set folder")
    entries, repeated = _entries(rows, settings, Path(os.path.normpath(folder.absolute())))
    class_names, left_out = _classes(entries, settings)
    listings = _listings(entries, class_names, settings)
    splits = carved(listings, class_names, seed=settings.split_seed)
    notes = _notes(table, settings, class_names, left_out, repeated, given=[*listings])
    return collection_of(
        splits,
        settings,
        root,
        class_names=class_names,
        origin=folder,
        notes=[*notes, *counted(splits)],
        memory_bytes=memory_bytes,
    )


def _columns(settings: DataSettings) -> dict[str, str]:
    """Return the columns to read by the settings that name them."""
    wanted = {
        "path_column": settings.path_column or "path",
        "label_column": settings.label_column or "label",
        "group_column": settings.group_column,
        "split_column": settings.split_column,
    }
    return {setting: name for setting, name in wanted.items() if name is not None}


def _entries(rows: Sequence[Row], settings: DataSettings, folder: Path) -> tuple[list[_Entry], int]:
    """Return the images of a table, each once, and how many rows repeat another.

    Raises:
        DataUnsuitable: Rows are broken; the message names the first of them by their lines, and counts all.
    """
    columns = _columns(settings)
    found: dict[Path, tuple[_Entry, int]] = {}
    problems: list[str] = []
    repeated = 0
    for row in rows:
        result = row.problem or _entry(row.cells, columns, folder)
        if isinstance(result, _Entry) and result.path in found:
            first, line = found[result.path]
            repeated += 1
            if result == first:
                continue
            result = f"{_shown(result.path, folder)} is in line {line} too, with {_difference(result, first)}"
        if isinstance(result, str):
            problems.append(f"line {row.line}: {result}")
        else:
            found[result.path] = result, row.line
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:MOST_NAMED])
        rest = f"\n  and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise DataUnsuitable(
            f"{count_of(len(problems), 'row')} of {settings.table} cannot be used; correct or remove them:{shown}{rest}"
        )
    if not found:
        raise DataUnsuitable(f"{settings.table} must have a row an image below the names of its columns, got none")
    return [entry for entry, _ in found.values()], repeated


def _entry(cells: Mapping[str, str], columns: Mapping[str, str], folder: Path) -> _Entry | str:
    """Return the image of a row, or what is wrong with the row."""
    for setting in ("path_column", "label_column", "group_column"):
        if setting in columns and not cells[columns[setting]]:
            return f"{columns[setting]} is empty"
    split = "train"
    if "split_column" in columns:
        said = cells[columns["split_column"]]
        if said.lower() not in _SPLIT_OF:
            return f"{columns['split_column']} must be one of {', '.join(SPLITS)}, got {said!r}"
        split = _SPLIT_OF[said.lower()]
    text = cells[columns["path_column"]]
    if "\0" in text:
        return f"{columns['path_column']} must be a path, got {text!r}"
    path = Path(os.path.normpath(folder / text))  # not resolved: a link in the folder may lead out of it
    if problem := _problem(path, text, folder):
        return problem
    group = cells[columns["group_column"]] if "group_column" in columns else None
    return _Entry(path, cells[columns["label_column"]], group, split)


def _problem(path: Path, text: str, folder: Path) -> str | None:
    """Return why a file cannot be used, or None."""
    if not path.is_relative_to(folder):
        return f"{text!r} leads out of the folder {folder}; set folder to one that has all images"
    suffix = path.suffix.lower()
    if suffix in OTHER_FORMATS:
        return f"{text!r} is in a format that is not read; convert it to PNG or JPEG"
    try:
        if not path.is_file():
            return f"there is no file {text!r} in {folder}"
        if suffix not in SUFFIXES:
            return f"{text!r} must be an image ({', '.join(SUFFIXES)})"
        return f"{text!r} is an empty file" if path.stat().st_size == 0 else None
    except OSError as error:  # a name that is too long, a folder that cannot be entered
        return f"{text!r} cannot be opened: {error.strerror}"


def _difference(entry: _Entry, first: _Entry) -> str:
    for name, one, other in (
        ("class", first.label, entry.label),
        ("group", first.group, entry.group),
        ("split", first.split, entry.split),
    ):
        if one != other:
            return f"the {name} {one!r} instead of {other!r}"
    raise AssertionError("they differ")


def _shown(path: Path, folder: Path) -> str:
    return repr(str(path.relative_to(folder)))


def _classes(entries: Sequence[_Entry], settings: DataSettings) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the classes in order, numbers as numbers, and those left out with their training images."""
    counts = Counter(entry.label for entry in entries if entry.split == "train")
    names = {entry.label for entry in entries}
    if unknown := [name for name in settings.excluded_classes if name not in names]:
        raise DataUnsuitable(f"excluded_classes must name classes of {settings.table}, got {named(unknown)}")
    kept = sorted(names - set(settings.excluded_classes))
    if all(name.isascii() and name.isdigit() for name in kept):
        kept.sort(key=lambda name: (int(name), name))
    least = settings.min_images_per_class or 0
    present = {(entry.split, entry.label) for entry in entries}
    splits = {entry.split for entry in entries}
    small = {
        name: counts[name]
        for name in kept
        if least and (counts[name] < least or any((split, name) not in present for split in splits))
    }
    classes = tuple(name for name in kept if name not in small)
    if len(classes) < 2:
        raise DataUnsuitable(f"{settings.table} must have two or more classes, got {len(classes)}: {named(classes)}")
    return classes, small


def _listings(entries: Sequence[_Entry], class_names: tuple[str, ...], settings: DataSettings) -> dict[str, Listing]:
    numbers = {name: number for number, name in enumerate(class_names)}
    listings: dict[str, Listing] = {}
    for split in SPLITS:
        # In the order of their paths, so that a table that was sorted anew is the same data.
        own = sorted((each for each in entries if each.split == split and each.label in numbers), key=lambda e: e.path)
        if not own:
            continue
        labels = torch.tensor([numbers[each.label] for each in own])
        if empty := [class_names[n] for n in (labels.bincount(minlength=len(class_names)) == 0).nonzero().flatten()]:
            raise DataUnsuitable(
                f"every class needs an image in every split, but {settings.table} has none of {named(empty)} in the "
                f"{split} split; add rows, or leave the class out with excluded_classes or min_images_per_class: 1"
            )
        paths = tuple(each.path for each in own)
        groups = tuple(each.group for each in own if each.group is not None) or None
        if settings.group_pattern is not None:
            groups = groups_of(paths, settings.group_pattern)
        listings[split] = Listing(paths, labels, groups)
    if "train" not in listings:
        raise DataUnsuitable(f"split_column must say train in some rows of {settings.table}, got none")
    return listings


def _notes(
    table: Path,
    settings: DataSettings,
    class_names: tuple[str, ...],
    left_out: Mapping[str, int],
    repeated: int,
    *,
    given: Sequence[str],
) -> Iterator[str]:
    """Yield what was read of the table, in sentences."""
    kind = "Parquet" if table.suffix.lower() in PARQUET else "text"
    digest = hashlib.sha256(table.read_bytes()).hexdigest()[:16]
    yield f"table {table.name} ({kind}, sha256 {digest}...): {len(class_names)} classes: " + named(
        class_names, most=_MOST_CLASSES_NAMED
    )
    taken = [name for name in SPLITS if name not in given]
    if settings.split_column is None:
        yield "divided here by split_seed"
    elif taken:
        yield f"{' and '.join(taken)} taken from the training images"
    if repeated:
        yield f"{count_of(repeated, 'row repeats', 'rows repeat')} another and counted once"
    if left_out:
        few = named([f"{name} ({count})" for name, count in left_out.items()], most=_MOST_CLASSES_NAMED)
        yield f"left out by min_images_per_class {settings.min_images_per_class} ({len(left_out)}): {few}"
    if settings.excluded_classes:
        yield f"left out by excluded_classes: {named(settings.excluded_classes, most=_MOST_CLASSES_NAMED)}"
