"""What lies in a folder of images: splits or classes, the images of each class, and what is passed over and why.

Folders are recognized by their names only where these leave no doubt. `Training` and `Testing` are splits and not two
classes; where every sub-folder has further sub-folders of the same names, both readings are possible, and the folder is
refused with the setting that decides.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nas_blockout.data.errors import DataUnsuitable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Images that are not read: whoever has them should hear of it in another way than of a text file.
OTHER_FORMATS = (".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".eps")
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Folders of data sets for detection and segmentation, which have no classes.
_ANNOTATIONS = ("annotations", "labels", "masks", "bboxes")
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
_MOST_NAMED = 8
BY_HAND = "rename the folders to train, val and test, or set data.layout to classes if they are classes"


@dataclass(slots=True)
class PassedOver:
    """Files and folders that were not used, counted by the reason."""

    counts: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """The counts in words, such as ``broken links: 2, images in formats that are not read: .heic 3 (...)``."""
        texts = [f"{reason}: {count}" for reason, count in sorted(self.counts.items())]
        if self.formats:
            named = " ".join(f"{suffix} {count}" for suffix, count in sorted(self.formats.items()))
            texts.append(f"images in formats that are not read: {named} (convert them to PNG or JPEG)")
        return ", ".join(texts)

    def add(self, other: "PassedOver") -> None:
        """Add the counts of another."""
        self.counts.update(other.counts)
        self.formats.update(other.formats)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the sub-folders of a folder are.

    Args:
        splits: Folder of each split that has one; ``train`` alone where the folder itself has the classes.
        ignored: Sub-folders that are neither a split nor a class.
    """

    splits: Mapping[str, Path]
    ignored: tuple[str, ...] = ()


def recognize(folder: Path, layout: str | None) -> Layout:
    """Return the layout of a folder.

    Args:
        folder: An existing folder.
        layout: ``classes`` or ``splits``; None to go by the names.

    Raises:
        DataUnsuitable: The names do not say what the sub-folders are, or contradict `layout`; the message asks.
    """
    names = visible_folders(folder)
    if layout == "classes":
        return Layout({"train": folder})
    found: dict[str, list[str]] = {}
    for name in names:
        # A vehicle may be a train: a split is a folder that has folders of classes.
        if (split := _split_of(name)) is not None and visible_folders(folder / name):
            found.setdefault(split, []).append(name)
    if twice := [each for each in found.values() if len(each) > 1]:
        raise DataUnsuitable(f"{folder} must have one folder a split, got {_named(twice[0])}; {BY_HAND}")
    if "train" in found:
        splits = {split: folder / found[split][0] for split in SPLIT_WORDS if split in found}
        used = {path.name for path in splits.values()}
        return Layout(splits, tuple(name for name in names if name not in used))
    if layout == "splits":
        raise DataUnsuitable(
            f"{folder} must have a folder train with one sub-folder a class, as data.layout is splits, got "
            f"{_named(names)}; {BY_HAND}"
        )
    _require_classes(folder, names, found)
    return Layout({"train": folder})


def _require_classes(folder: Path, names: Sequence[str], found: Mapping[str, Sequence[str]]) -> None:
    """Refuse sub-folders that may be something else than classes."""
    question = f"it is not clear what the folders {_named(names)} in {folder} are"
    if found:
        raise DataUnsuitable(
            f"{question}: there are {_named([n for each in found.values() for n in each])}, but no train; {BY_HAND}"
        )
    meant = {name: split for name in names if (split := _split_in(name)) is not None}
    if len(set(meant.values())) > 1:
        raise DataUnsuitable(
            f"{question}: {_named(list(meant))} look like splits, each of which needs one sub-folder of images a "
            f"class; {BY_HAND}"
        )
    if annotated := [name for name in names if name.lower() in _ANNOTATIONS]:
        raise DataUnsuitable(
            f"{question}: {_named(annotated)} looks like the annotations of a data set for detection or segmentation; "
            "make one sub-folder of images a class, or set data.layout to classes"
        )
    inside = {name: visible_folders(folder / name) for name in names}
    nested = {name: set(inside[name]) for name in names if inside[name]}
    shared = set.intersection(*nested.values()) if nested else set()
    if len(names) > 1 and len(nested) == len(names) and shared and not any(_has_images(folder / n) for n in names):
        raise DataUnsuitable(
            f"{question}: each has no images of its own but the sub-folders {_named(sorted(shared))}, which may be the "
            f"classes; {BY_HAND}, whose sub-folders then count to it"
        )


def visible_folders(folder: Path) -> list[str]:
    """Return the names of the sub-folders that may hold images, sorted."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    return sorted(path.name for path in paths if not _is_hidden(path.name) and path.is_dir())


def images_in(folder: Path) -> tuple[list[Path], PassedOver]:
    """Return the image files of a folder and its sub-folders, sorted, and what was passed over."""
    paths: list[Path] = []
    passed = PassedOver()

    def unopened(error: OSError) -> None:
        passed.counts["folders that cannot be opened"] += 1

    for place, folders, files in os.walk(folder, onerror=unopened):
        kept = [name for name in folders if not _is_hidden(name)]
        passed.counts["hidden folders"] += len(folders) - len(kept)
        passed.counts["links to folders"] += sum(Path(place, name).is_symlink() for name in kept)
        folders[:] = kept
        for name in files:
            path = Path(place, name)
            if (problem := _problem(path)) is None:
                paths.append(path)
            elif problem:
                passed.counts[problem] += 1
            else:
                passed.formats[path.suffix.lower()] += 1
    passed.counts = +passed.counts  # without the zeros
    return sorted(paths), passed


def beside(folder: Path) -> PassedOver:
    """Return what lies beside the sub-folders of a folder, none of which belongs to a class."""
    passed = PassedOver()
    for path in folder.iterdir():
        if _is_hidden(path.name):
            passed.counts["hidden folders" if path.is_dir() else "hidden files"] += 1
        elif not path.is_dir():
            problem = _problem(path)
            if problem == "":
                passed.formats[path.suffix.lower()] += 1
            else:
                passed.counts[problem or "images outside the folder of a class"] += 1
    return passed


def _problem(path: Path) -> str | None:
    """Return why a file is passed over, None if it is used; the reason is empty for a format that is not read."""
    suffix = path.suffix.lower()
    if _is_hidden(path.name):
        return "hidden files"
    if path.is_symlink() and not path.exists():
        return "broken links"
    if suffix in OTHER_FORMATS:
        return ""
    if suffix not in SUFFIXES or not path.is_file():
        return "other files"
    return "empty files" if path.stat().st_size == 0 else None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _split_of(name: str) -> str | None:
    return next((split for split, words in SPLIT_WORDS.items() if name.lower() in words), None)


def _split_in(name: str) -> str | None:
    """Return the split that a part of a name stands for, as in `seg_train` or `TestImages`."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
    return next((split for split, each in SPLIT_WORDS.items() if words & set(each)), None)


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES and path.is_file() for path in folder.iterdir())


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])  # repr would escape joiners of some scripts
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
