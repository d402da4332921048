"""Images and labels of a program as the data of a study or of one training, known by the hash of their content."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nas_blockout.data.arrays.array_files import carved, content_of, described, write
from nas_blockout.data.arrays.class_labels import encoded, labels_of
from nas_blockout.data.arrays.image_arrays import Channels, images_of
from nas_blockout.data.arrays.labeled_sources import Found, found_in
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataUnsuitable
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.splits import Splits, prepare, require_classes
from nas_blockout.data.tensor_dataset import Labeled

_SPLITS = ("train", "validation", "test")


class ArrayData:
    """Labeled images from a program: arrays, tensors, datasets, loaders.

    Everything is read once, when this is made. A study writes it into its data folder under the hash of its content,
    so that workers and a resumed study read the same.

    Args:
        train: Images to train on, with their labels, in one of these forms: a pair ``(images, labels)`` of arrays,
            tensors or lists; an object with a length and items ``(image, label)``, such as a `Dataset` of PyTorch; a
            `DataLoader`; a split of a dataset of Hugging Face; or a mapping with the keys train, validation and test.
            Images are arrays, tensors or images of Pillow, all of one size, gray or in color, channels first or last:
            whole numbers in 0..255, or floats in [0, 1]. Labels are whole numbers or texts, one an image.
        validation: Images that every choice is made on; None to take a fifth of the images to train on.
        test: Images that are read once, at the end; None to take a fifth of the images to train on.
        class_names: Names of the labels 0, 1, ..., or all texts in the order that is wanted; None for the labels.
        channels: ``first`` or ``last`` where the shape does not tell.
        image_column: Column of the images in a dataset of Hugging Face; None to find it.
        label_column: Likewise of the labels.
        in_unit_range: Whether floats out of [0, 1] are refused. A study needs that; without it the images are for
            `nas_blockout.learn_structure` alone.

    Attributes:
        parts: The images of each split that was given.
        class_names: In the order of the numbers of the classes.
        content: Hash of images, labels and names, 32 hexadecimal digits.

    Raises:
        DataUnsuitable: Something is refused; the message says what, where and what to do.
    """

    def __init__(
        self,
        train: Any,
        validation: Any = None,
        test: Any = None,
        *,
        class_names: Sequence[str] | None = None,
        channels: Channels | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        in_unit_range: bool = True,
    ) -> None:
        if channels not in (None, "first", "last"):
            raise DataUnsuitable(f"channels must be 'first' or 'last', got {channels!r}")
        given = _splits(train, validation, test)
        found = {
            split: found_in(source, split=split, image_column=image_column, label_column=label_column)
            for split, source in given.items()
        }
        images = {
            split: images_of(each.images, split=split, channels=channels, in_unit_range=in_unit_range)
            for split, each in found.items()
        }
        _require_alike({split: (tuple(each.shape[1:]), str(each.dtype)) for split, each in images.items()})
        raw = {split: labels_of(found[split].labels, split=split, images=len(each)) for split, each in images.items()}
        labels, self.class_names = encoded(raw, class_names or _names(found))
        for split, each in labels.items():
            require_classes(each, self.class_names, split="training" if split == "train" else split)
        self.parts: Mapping[str, Labeled] = MappingProxyType(
            {split: Labeled(images[split], labels[split]) for split in images}
        )
        self.in_unit_range = in_unit_range
        self._described = described(self.parts, self.class_names)
        self.content = content_of(self._described)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.parts["train"].images.shape[1:]
        return channels, height, width

    def settings(self, *, folder: Path | None = None, **options: Any) -> DataSettings:
        """Return the settings of a study that name this data.

        Args:
            folder: Where it is written; None for ``arrays/`` of the data root.
            options: Other settings of data, such as ``augment`` or ``train_samples``.

        Raises:
            DataUnsuitable: Floats lie out of [0, 1].
            ValueError: A setting is refused.
        """
        return DataSettings("arrays", content=self.content, folder=str(folder) if folder else None, **options)

    def write(self, folder: Path) -> Path:
        """Write the images and labels unless they are there, whole or not at all, and return the file.

        Raises:
            DataUnsuitable: Floats lie out of [0, 1], which no study may have.
        """
        if not self.in_unit_range:
            raise DataUnsuitable("a study needs images in [0, 1]: make the ArrayData without in_unit_range=False")
        return write(self.parts, self._described, folder)

    def splits(
        self, *, split_seed: int = 0, preprocessing: Preprocessing | None = None, needs_test: bool = True
    ) -> Splits:
        """Return the data as a training reads it.

        Args:
            split_seed: Seed by which splits that were not given are taken from the training images.
            preprocessing: How images are normalized; None to measure it on the training images.
            needs_test: Whether test images are taken from those to train on where none were given.

        Raises:
            DataUnsuitable: A class has too few images to be divided, or all images are alike.
        """
        collection = carved(self.parts, self.class_names, load_test=None, split_seed=split_seed, needs_test=needs_test)
        if preprocessing is None:
            return prepare(collection, train_samples=None, validation_samples=None, split_seed=split_seed)
        return Splits(
            collection.train.loaded().normalized(preprocessing),
            collection.validation.loaded().normalized(preprocessing),
            preprocessing=preprocessing,
            class_names=collection.class_names,
            load_test=collection.load_test,
            notes=collection.notes,
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(part):,} {split}" for split, part in self.parts.items())
        size = "x".join(map(str, self.shape))
        return f"ArrayData({counts}; {size} images, {len(self.class_names)} classes, content {self.content[:8]})"


def _splits(train: Any, validation: Any, test: Any) -> dict[str, Any]:
    if isinstance(train, Mapping):
        if validation is not None or test is not None:
            raise DataUnsuitable("give all splits in one mapping, or each by itself")
        if "train" not in train or not set(train) <= set(_SPLITS):
            got = ", ".join(map(str, train))
            raise DataUnsuitable(
                f"a mapping of splits needs the key train, and may have validation and test, got {got}"
            )
        return {split: train[split] for split in _SPLITS if train.get(split) is not None}
    given = {"train": train, "validation": validation, "test": test}
    return {split: source for split, source in given.items() if source is not None}


def _names(found: Mapping[str, Found]) -> tuple[str, ...] | None:
    names = {each.class_names for each in found.values()}
    if len(names) > 1:
        raise DataUnsuitable("the splits must have the same classes, in the same order, got different ones")
    return names.pop()


def _require_alike(kinds: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{split} {shape} of {kind.removeprefix('torch.')}" for split, (shape, kind) in kinds.items())
        raise DataUnsuitable(f"images of all splits must have one shape and one type of number, got {told}")
