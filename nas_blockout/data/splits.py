"""Training, validation and test data, and how the test data stays untouched."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nas_blockout.data.errors import DataCorrupt, DataUnsuitable, all_corrupt
from nas_blockout.data.placement import Placement
from nas_blockout.data.preprocessing import Preprocessing, measure
from nas_blockout.data.streaming import ImageFiles, StreamedPart
from nas_blockout.data.subsets import balanced
from nas_blockout.data.tensor_dataset import BytePart, Labeled, Part

AnyImages = Labeled | ImageFiles
AnyPart = Part | BytePart | StreamedPart


class Splits:
    """The data of one experiment. Test images are loaded when `test()` is called, and every call is counted.

    Attributes:
        train: What is trained on.
        validation: What every selection is made on.
        preprocessing: Taken from the images trained on, and from no others.
        class_names: In the order of the labels.
        hierarchy: For each known grouping of the classes, the number of every class's group; None without one.
        origin: Folder of the files; empty if there are none.
        notes: What was recognized in the folder and what was passed over, in sentences.
        groups: For each split in how many groups each class is; None where images have no groups.
        test_reads: How often the test data was loaded.
        load_test: Reads the test images; called by `test` alone.
    """

    def __init__(  # noqa: PLR0913  # all that a source tells of its images
        self,
        train: AnyPart,
        validation: AnyPart,
        *,
        preprocessing: Preprocessing,
        class_names: tuple[str, ...],
        load_test: Callable[[], AnyImages],
        hierarchy: Mapping[str, tuple[int, ...]] | None = None,
        origin: str = "",
        notes: tuple[str, ...] = (),
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.hierarchy = hierarchy
        self.origin = origin
        self.notes = notes
        self.groups = groups
        self.test_reads = 0
        self.load_test = load_test

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width

    def test(self) -> AnyPart:
        """Load the test data; nothing else does."""
        self.test_reads += 1
        return self.load_test().loaded().normalized(self.preprocessing)

    def with_parts(
        self, train: AnyPart, validation: AnyPart, *, load_test: Callable[[], AnyImages] | None = None
    ) -> "Splits":
        """Return the same data with its images kept elsewhere; test images are read as before unless told otherwise."""
        return Splits(
            train,
            validation,
            preprocessing=self.preprocessing,
            class_names=self.class_names,
            load_test=load_test or self.load_test,
            hierarchy=self.hierarchy,
            origin=self.origin,
            notes=self.notes,
            groups=self.groups,
        )

    def trained_on(self, placement: Placement) -> tuple[AnyPart, AnyPart]:
        """Return training and validation data where a training reads them."""
        return self.train.placed(placement), self.validation.placed(placement)


@dataclass(frozen=True, slots=True, eq=False)  # holds tensors, which have no single truth value
class Collection:
    """The result of a source: divided into splits, not yet subsampled and normalized.

    Args:
        train: Images that may be trained on.
        validation: Images to select on.
        load_test: Reads the test images; called by `Splits.test` alone.
        class_names: In the order of the labels.
        hierarchy: For each known grouping of the classes, the number of every class's group.
        origin: Folder of the files.
        notes: What was recognized in the folder and what was passed over, in sentences.
        groups: For each split in how many groups each class is, such as of patients; None where images have none.
    """

    train: AnyImages
    validation: AnyImages
    load_test: Callable[[], AnyImages]
    class_names: tuple[str, ...]
    hierarchy: Mapping[str, tuple[int, ...]] | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[int, ...]] | None = None


def prepare(
    collection: Collection, *, train_samples: int | None, validation_samples: int | None, split_seed: int
) -> Splits:
    """Subsample a collection, measure the normalization on the training images, and apply it to both splits.

    Raises:
        DataUnsuitable: A class has no image in a split, more images are requested than exist, or all are equal.
        DataCorrupt: Files of either split cannot be read; the message names them together.
    """
    train = _subset(collection.train, train_samples, seed=split_seed, name="train")
    validation = _subset(collection.validation, validation_samples, seed=split_seed, name="validation")
    for name, images in (("training", train), ("validation", validation)):
        require_classes(images.labels, collection.class_names, split=name)
    loaded, selected_on = _loaded(train, validation)
    # On the training images alone, and after the subsampling: 300 images may not know the mean of 60,000.
    preprocessing = measure(loaded.scaled())
    return Splits(
        loaded.normalized(preprocessing),
        selected_on.normalized(preprocessing),
        preprocessing=preprocessing,
        class_names=collection.class_names,
        load_test=collection.load_test,
        hierarchy=collection.hierarchy,
        origin=collection.origin,
        notes=collection.notes,
        groups=collection.groups,
    )


def _loaded(*parts: AnyImages) -> list[AnyImages]:
    """Load parts into memory; what cannot be read is reported for all of them at once."""
    loaded: list[AnyImages] = []
    problems: list[str] = []
    for part in parts:
        try:
            loaded.append(part.loaded())
        except DataCorrupt as error:
            problems += error.problems
    if problems:
        raise all_corrupt(problems)
    return loaded


def require_classes(labels: Tensor, class_names: tuple[str, ...], *, split: str) -> None:
    """Refuse a split in which a class has no image.

    Raises:
        DataUnsuitable: The message names the classes.
    """
    counts = labels.bincount(minlength=len(class_names))
    empty = [class_names[index] for index in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        shown = ", ".join(repr(name) for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataUnsuitable(
            f"every class needs an image in every split, but {len(empty)} of {len(class_names)} classes have none in "
            f"the {split} split ({len(labels)} images): {shown}; add images, ask for more samples, or leave them out"
        )


def require_samples(samples: int, images: int, *, split: str) -> None:
    """Refuse more samples of a split than it has images.

    Raises:
        DataUnsuitable: There are fewer images.
    """
    if samples > images:
        raise DataUnsuitable(f"{split}_samples must be at most the {images} images of that split, got {samples}")


def _subset(images: AnyImages, samples: int | None, *, seed: int, name: str) -> AnyImages:
    if samples is None:
        return images
    require_samples(samples, len(images), split=name)
    return images.at(balanced(images.labels, samples, seed=seed))
