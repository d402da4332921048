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
        folds: For each fold its number of images of every class; None without folds.
        fold: The fold that is held out for validation; None without folds.
        test_reads: How often the test data was loaded.
        load_test: Reads the test images; called by `test` alone.
        load_fold: Loads the data with another fold held out; called by `of_fold` alone.
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
        folds: tuple[tuple[int, ...], ...] | None = None,
        fold: int | None = None,
        load_fold: "Callable[[int], Splits] | None" = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.hierarchy = hierarchy
        self.origin = origin
        self.notes = notes
        self.groups = groups
        self.folds = folds
        self.fold = fold
        self.load_fold = load_fold
        self._other_fold: Splits | None = None  # the last one that was asked for
        self.test_reads = 0
        self.load_test = load_test

    def images_of_folds(self, train_samples: int | None) -> tuple[int, ...]:
        """Return how many images are trained on, by the fold that is held out; nothing without folds.

        Args:
            train_samples: Size of the subset that is trained on; None for all.
        """
        sizes = [sum(counts) for counts in self.folds or ()]
        return tuple(sum(sizes) - size if train_samples is None else train_samples for size in sizes)

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
            folds=self.folds,
            fold=self.fold,
            load_fold=self.load_fold,
        )

    def of_fold(self, fold: int | None) -> "Splits":
        """Return the data as they are where a fold is held out for validation; without folds, itself.

        Args:
            fold: Of the retraining whose data it is, as in its settings of data.
        """
        if self.folds is None or fold is None or fold == self.fold:
            return self
        if self._other_fold is None or self._other_fold.fold != fold:
            assert self.load_fold is not None, "data that are loaded with folds can be loaded with another one"
            self._other_fold = self.load_fold(fold)
        return self._other_fold

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
        group_ids: For train and for validation the name of the group of every image, so that folds leave groups whole;
            None where images have none.
        folds: For each fold its number of images of every class, where train and validation are made of folds.
        fold: The one that validation is.
    """

    train: AnyImages
    validation: AnyImages
    load_test: Callable[[], AnyImages]
    class_names: tuple[str, ...]
    hierarchy: Mapping[str, tuple[int, ...]] | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[int, ...]] | None = None
    group_ids: Mapping[str, tuple[str, ...]] | None = None
    folds: tuple[tuple[int, ...], ...] | None = None
    fold: int | None = None


def prepare(
    collection: Collection, *, train_samples: int | None, validation_samples: int | None, split_seed: int
) -> Splits:
    """Subsample a collection, measure the normalization on the training images, and apply it to both splits.

    Raises:
        DataUnsuitable: A class has no image in a split, more images are requested than exist, or all are equal.
        DataCorrupt: Files of either split cannot be read; the message names them together.
    """
    if collection.folds is not None:
        _require_samples_of_folds(collection.folds, train_samples, validation_samples)
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
        folds=collection.folds,
        fold=collection.fold,
    )


def _require_samples_of_folds(
    folds: tuple[tuple[int, ...], ...], train_samples: int | None, validation_samples: int | None
) -> None:
    """Refuse more samples than there are whichever fold is held out: another one is in every retraining."""
    sizes = [sum(counts) for counts in folds]
    if train_samples is not None:
        require_samples(train_samples, sum(sizes) - max(sizes), split="train")
    if validation_samples is not None:
        require_samples(validation_samples, min(sizes), split="validation")


def _loaded(*parts: AnyImages) -> list[AnyImages]:
    """Load parts into memory; what cannot be read is reported for all of them at once."""
    loaded: list[AnyImages] = []
    problems: list[str] = []
    for part in parts:
        try:
            loaded.append(part.loaded())
        except DataCorrupt as error:
            problems += [problem for problem in error.problems if problem not in problems]  # of folds cached together
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
