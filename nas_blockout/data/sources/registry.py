"""The registry of sources, and the one way to load them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nas_blockout.data.arrays import array_files
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.sources import cifar, digits, fashion_mnist, glyphs, imagefolder, table
from nas_blockout.data.splits import Collection, Splits, prepare, require_samples


@dataclass(frozen=True, slots=True)
class Source:
    """Where images come from.

    Args:
        summary: What it holds, in one line.
        shape: Channels, height and width of an image; None where a setting decides.
        classes: Number of classes; None where the files decide, as for the images of training.
        train_images: Number of images that may be trained on.
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


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What is known of data without reading them; None where only the files can tell.

    Args:
        shape: Channels, height and width of an image.
        classes: Number of classes.
        train_images: Number of images trained on.
    """

    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    train_images: int | None = None


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
    "arrays": Source("images that a program in Python gives, gray or color", array_files.read, array_files.REMEDY),
    "table": Source("own images: a CSV or Parquet file of their paths and classes", table.read, table.REMEDY),
}


def recognized(settings: DataSettings) -> tuple[str, ...]:
    """Return what is found in a folder or a table of images without decoding one; nothing for other sources.

    Raises:
        DataMissing: There is no such folder, or table.
        DataUnsuitable: Its layout is not recognized, rows are broken, or a class has too few images.
    """
    return SOURCES[settings.name].read(settings, None).notes if settings.has_files else ()


def dimensions(settings: DataSettings) -> Dimensions:
    """Return what the settings tell of the data before any file is read; `load` may still refuse them.

    Raises:
        DataUnsuitable: More training images are requested than there are.
    """
    source = SOURCES[settings.name]
    if settings.name == "arrays":
        found = array_files.dimensions_of(settings)
        return Dimensions() if found is None else Dimensions(found[0], found[1], settings.train_samples or found[2])
    side = settings.side_of_images
    if settings.train_samples is not None and source.train_images is not None:
        require_samples(settings.train_samples, source.train_images, split="train")
    return Dimensions(source.shape or (3, side, side), source.classes, settings.train_samples or source.train_images)


def load(settings: DataSettings, *, root: Path | None = None) -> Splits:
    """Load the training and validation images of a source; test images are read when `Splits.test` is called.

    Args:
        settings: What is loaded.
        root: Folder of downloaded data sets and of caches; None to use only what is elsewhere, and no cache.

    Raises:
        DataMissing: Files are not there; the message has the command that gets them.
        DataCorrupt: A file is truncated or altered.
        DataUnsuitable: A class has no image in a split, or more samples are requested than exist.
    """
    return prepare(
        SOURCES[settings.name].read(settings, root),
        train_samples=settings.train_samples,
        validation_samples=settings.validation_samples,
        split_seed=settings.split_seed,
    )
