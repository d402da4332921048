"""The registry of sources, built-in ones and those of plug-ins, and the one way to load them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nas_blockout.data.arrays import array_files
from nas_blockout.data.augment import with_augmentation
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataUnsuitable
from nas_blockout.data.listings.cross_validation import in_folds
from nas_blockout.data.sources import cifar, digits, fashion_mnist, glyphs, imagefolder, table
from nas_blockout.data.sources.data_source import DataSource, Dimensions
from nas_blockout.data.splits import Collection, Splits, prepare, require_samples
from nas_blockout.plugins.choices import Choices, require_settings
from nas_blockout.plugins.installed import Origin
from nas_blockout.plugins.options import settings_from
from nas_blockout.serialization import to_json
from nas_blockout.settings_fields import PlainMapping


@dataclass(frozen=True, slots=True)
class Source:
    """Where images come from.

    Args:
        summary: What it holds, in one line.
        shape: Channels, height and width of an image; None where a setting decides.
        classes: Number of classes; None where the files decide, as for the images of training.
        train_images: Number of images that may be trained on.
        settings: Dataclass of its settings.
        read: Reads and divides the files: `read(settings, root)`.
        remedy: How to get its files.
        fetch: Downloads the files into a root and returns their folder; None if they cannot be downloaded.
    """

    summary: str
    read: Callable[[DataSettings, Path | None], Collection]
    remedy: str = "nothing to do: it ships with scikit-learn"
    fetch: Callable[[Path], Path] | None = None
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    train_images: int | None = None
    settings: type = DataSettings


# A stratified tenth of the training images of Fashion-MNIST and CIFAR is kept for validation.
SOURCES: Mapping[str, Source] = {
    "digits": Source(
        "1,797 handwritten digits, gray 8x8, 10 classes", digits.read, shape=(1, 8, 8), classes=10, train_images=898
    ),
    "fashion_mnist": Source(
        "70,000 pieces of clothing, gray 28x28, 10 classes",
        fashion_mnist.read,
        fashion_mnist.REMEDY,
        fashion_mnist.fetch,
        shape=(1, 28, 28),
        classes=10,
        train_images=54_000,
    ),
    "glyphs": Source(
        "printable ASCII of a folder of fonts, gray 32x32, 94 classes",
        glyphs.read,
        glyphs.REMEDY,
        shape=(1, glyphs.SIDE, glyphs.SIDE),
        classes=len(glyphs.CHARACTERS),
    ),
    "cifar10": Source(
        "60,000 photographs, color 32x32, 10 classes",
        partial(cifar.read, cifar.CIFAR10),
        cifar.CIFAR10.remedy,
        partial(cifar.fetch, cifar.CIFAR10),
        shape=(3, 32, 32),
        classes=10,
        train_images=45_000,
    ),
    "cifar100": Source(
        "60,000 photographs, color 32x32, 100 classes in 20 groups",
        partial(cifar.read, cifar.CIFAR100),
        cifar.CIFAR100.remedy,
        partial(cifar.fetch, cifar.CIFAR100),
        shape=(3, 32, 32),
        classes=100,
        train_images=45_000,
    ),
    "imagefolder": Source("own images: a folder with one sub-folder a class", imagefolder.read, imagefolder.REMEDY),
    "table": Source("own images: a CSV or Parquet file of their paths and classes", table.read, table.REMEDY),
    "arrays": Source("images that a program in Python gives, gray or color", array_files.read, array_files.REMEDY),
}


def _read(found: Any, origin: Origin) -> DataSource:
    """Return the source that a plug-in stands for.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(found, DataSource):
        raise ValueError(
            f"it must be a nas_blockout.data.DataSource, with its settings and how it reads, got {found!r}"
        )
    require_settings(found.settings)
    return found


CHOICES: Choices[Source | DataSource] = Choices("source", SOURCES, _read, key="data.name")


def own_settings(settings: DataSettings) -> Any:
    """Return the settings of a source of a plug-in; those of any other are the data's.

    Raises:
        ValueError: There is no such source, it cannot be used, or refuses its settings.
    """
    source = CHOICES.named(settings.name)
    if isinstance(source, Source):
        return settings
    return settings_from(source.settings, settings.options, where="data.options")


def resolved(settings: DataSettings) -> DataSettings:
    """Return settings with the one name of source and augmentation, every setting of plug-ins, and the fold.

    Raises:
        ValueError: As of `own_settings`, or of an augmentation likewise.
    """
    settings = with_augmentation(settings)
    if settings.folds is not None and settings.fold is None:
        settings = settings.holding_out(0)
    if settings.name in SOURCES:
        return settings
    own = own_settings(settings)
    return replace(settings, name=CHOICES.canonical(settings.name), options=PlainMapping(to_json(own)))


def collection_of(settings: DataSettings, root: Path | None) -> Collection:
    """Return what a source gives, not yet subsampled.

    Args:
        settings: The source, and how it is divided.
        root: Folder of downloads and caches; None for none.

    Raises:
        DataError: Files are missing, damaged or unsuitable.
        ValueError: As of `own_settings`.
    """
    if settings.name in SOURCES:
        return SOURCES[settings.name].read(settings, root)
    source = CHOICES.named(settings.name)
    assert isinstance(source, DataSource), "it is not built-in"
    collection = source.read(own_settings(settings), settings.split_seed, root)
    if not isinstance(collection, Collection):
        raise DataUnsuitable(
            f"the source {settings.name} must return a nas_blockout.data.Collection, got {collection!r}"
        )
    return collection


def recognized(settings: DataSettings) -> tuple[str, ...]:
    """Return what is found in a folder or a table of images without decoding one; nothing for other sources.

    Raises:
        DataMissing: There is no such folder, or table.
        DataUnsuitable: Its layout is not recognized, rows are broken, or a class has too few images.
    """
    return _folded(SOURCES[settings.name].read(settings, None), settings).notes if settings.has_files else ()


def dimensions(settings: DataSettings) -> Dimensions:
    """Return what the settings tell of the data before any file is read; `load` may still refuse them.

    Raises:
        DataUnsuitable: More training images are requested than there are.
    """
    if settings.name not in SOURCES:
        return _dimensions_of_plugin(settings)
    source = SOURCES[settings.name]
    if settings.name == "arrays":
        found = array_files.dimensions_of(settings)
        images = None if found is None or settings.folds is not None else found[2]
        return Dimensions() if found is None else Dimensions(found[0], found[1], settings.train_samples or images)
    side = settings.side_of_images
    images = None if settings.folds is not None else source.train_images  # of folds only what is read tells
    if settings.train_samples is not None and images is not None:
        require_samples(settings.train_samples, images, split="train")
    return Dimensions(source.shape or (3, side, side), source.classes, settings.train_samples or images)


def _dimensions_of_plugin(settings: DataSettings) -> Dimensions:
    source = CHOICES.named(settings.name)
    assert isinstance(source, DataSource), "it is not built-in"
    known = source.dimensions(own_settings(settings)) if source.dimensions is not None else Dimensions()
    if settings.folds is not None:
        known = replace(known, train_images=None)
    if settings.train_samples is not None and known.train_images is not None:
        require_samples(settings.train_samples, known.train_images, split="train")
    return replace(known, train_images=settings.train_samples or known.train_images)


def load(settings: DataSettings, *, root: Path | None = None) -> Splits:
    """Load the training and validation images of a source; test images are read when `Splits.test` is called.

    Args:
        settings: What is loaded.
        root: Folder of downloaded data sets and of caches; None to use only what is elsewhere, and no cache.

    Raises:
        DataMissing: Files are not there; the message has the command that gets them.
        DataCorrupt: A file is truncated or altered.
        DataUnsuitable: A class has no image in a split or in a fold, or more samples are requested than exist.
    """
    splits = prepare(
        _folded(collection_of(settings, root), settings),
        train_samples=settings.train_samples,
        validation_samples=settings.validation_samples,
        split_seed=settings.split_seed,
    )
    splits.load_fold = partial(_load_fold, settings, root)
    return splits


def _load_fold(settings: DataSettings, root: Path | None, fold: int) -> Splits:
    return load(settings.holding_out(fold), root=root)


def _folded(collection: Collection, settings: DataSettings) -> Collection:
    """Return a collection divided anew into the folds that settings ask for, if they do."""
    if settings.folds is None:
        return collection
    return in_folds(collection, folds=settings.folds, fold=settings.fold or 0, seed=settings.split_seed)
