"""Own images: a folder with one sub-folder a class, in the layout of ImageNet.

    folder/<class>/*.png                  divided here, 60% training, 20% validation, 20% test in every class
    folder/train/<class>/*.png            divided by hand; also val, valid or validation, and test
    folder/val/<class>/*.png

A split that is not there is carved from the training images: a fifth of them for each. Images become color squares of
`image_size` pixels (64 where it is not set). Hidden files, and files that are no images by their name, are passed over.

References:
    Deng et al., "ImageNet: a Large-Scale Hierarchical Image Database", CVPR 2009 (the layout).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataMissing, DataUnsuitable
from nas_blockout.data.splits import Collection, require_classes
from nas_blockout.data.streaming import MEMORY_BYTES, ImageFiles
from nas_blockout.data.subsets import stratified

SIDE = 64
CARVED_SHARE = 0.2
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
REMEDY = "set folder to a folder that has one sub-folder of images a class"
_FOLDERS: Mapping[str, tuple[str, ...]] = {"validation": ("val", "valid", "validation"), "test": ("test",)}


def read(settings: DataSettings, root: Path | None, *, memory_bytes: int = MEMORY_BYTES) -> Collection:
    """List and divide the images; they are decoded later, the test images only when they are read.

    Args:
        settings: `folder`, `image_size` and `split_seed` are used.
        root: Decoded images are cached in it; None for no cache.
        memory_bytes: A split that needs more is decoded while a network trains.

    Raises:
        DataMissing: There is no such folder.
        DataUnsuitable: A class is empty, too small to be divided, or missing in a split.
    """
    folder = Path(settings.folder or "")
    if not folder.is_dir():
        raise DataMissing(f"imagefolder needs an existing folder, got {str(folder)!r}; {REMEDY}")
    side = settings.image_size or SIDE
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    class_names = _classes(train_folder)
    listings = {"train": _listed(train_folder, class_names)}
    if train_folder != folder:
        for name, folder_names in _FOLDERS.items():
            paths = [folder / folder_name for folder_name in folder_names if (folder / folder_name).is_dir()]
            if paths:
                listings[name] = _listed(paths[0], class_names)
    splits = _carve(listings, class_names, seed=settings.split_seed)
    files = {
        name: ImageFiles(listing.paths, listing.labels, side, root, memory_bytes) for name, listing in splits.items()
    }
    return Collection(
        train=files["train"],
        validation=files["validation"],
        load_test=lambda: files["test"],
        class_names=class_names,
        origin=str(folder),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Listing:
    paths: tuple[Path, ...]
    labels: Tensor

    def at(self, index: Tensor) -> "_Listing":
        return _Listing(tuple(self.paths[number] for number in index.tolist()), self.labels[index])


def _carve(listings: dict[str, _Listing], class_names: tuple[str, ...], *, seed: int) -> dict[str, _Listing]:
    """Return all three splits; what is not given comes out of the training images."""
    require_classes(listings["train"].labels, class_names, split="training")
    missing = [name for name in _FOLDERS if name not in listings]
    # The last part gets the rest, so its share is not given.
    shares = (1 - CARVED_SHARE * len(missing), *[CARVED_SHARE] * len(missing[1:]))
    parts = stratified(listings["train"].labels, shares[: len(missing)], seed=seed)
    carved = {name: listings["train"].at(index) for name, index in zip(("train", *missing), parts, strict=True)}
    splits = listings | carved
    for name, listing in splits.items():
        require_classes(listing.labels, class_names, split=name)
    return splits


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(names) < 2:
        raise DataUnsuitable(f"{folder} must have two or more classes, got {len(names)} sub-folders; {REMEDY}")
    return names


def _listed(folder: Path, class_names: tuple[str, ...]) -> _Listing:
    unknown = sorted(set(_classes(folder)) - set(class_names))
    if unknown:
        raise DataUnsuitable(f"{folder} must have no class that is not in train, got {', '.join(unknown[:5])}")
    by_class = [_images(folder / name) for name in class_names]
    empty = [name for name, paths in zip(class_names, by_class, strict=True) if not paths]
    if empty:
        raise DataUnsuitable(
            f"every class needs an image, but {folder} has none for {', '.join(map(repr, empty[:5]))}; add images "
            f"({', '.join(SUFFIXES)}) or remove the class"
        )
    counts = torch.tensor([len(paths) for paths in by_class])
    labels = torch.arange(len(class_names)).repeat_interleave(counts)
    return _Listing(tuple(path for paths in by_class for path in paths), labels)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
