"""Labels of a program, whole numbers or texts, as numbers of classes with a name each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_blockout.data.errors import DataUnsuitable

_MOST_NAMED = 5
_Array = NDArray[Any]


def labels_of(found: Any, *, split: str, images: int) -> _Array:
    """Return labels as an array of shape ``(n,)``, of int64 or of texts.

    Args:
        found: An array, a tensor or a sequence.
        split: Name of the split, for errors.
        images: Number of images that they belong to.

    Raises:
        DataUnsuitable: There are more or fewer, or one is neither a whole number nor a text.
    """
    array = np.asarray(found.detach().cpu().numpy() if isinstance(found, Tensor) else found)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; of one-hot rows take labels.argmax(1)" if array.ndim == 2 else ""
        raise DataUnsuitable(f"labels of {split} must be of shape (n,), got {array.shape}{hint}")
    if len(array) != images:
        raise DataUnsuitable(f"{split} must have one label an image, got {len(array)} labels of {images} images")
    if array.dtype.kind == "O":
        array = _of_objects(array, split)
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.dtype.kind in "UT":
        return np.array([str(each) for each in array], dtype=object)
    raise DataUnsuitable(
        f"labels of {split} must be whole numbers or texts, got the type {array.dtype}; convert them, such as by "
        "labels.astype(int)"
    )


def _of_objects(array: _Array, split: str) -> _Array:
    for number, each in enumerate(array):
        if not isinstance(each, str | int | np.integer):
            raise DataUnsuitable(f"label {number} of {split} must be a whole number or a text, got {each!r}")
    return np.array([*array])


def encoded(by_split: Mapping[str, _Array], names: Sequence[str] | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return labels as numbers of classes, shape ``(n,)`` and int64, and the names of the classes in their order.

    Args:
        by_split: Labels as of `labels_of`, those of ``train`` among them, which decide what classes there are: whole
            numbers in their order, texts in that of the alphabet.
        names: Names of the classes: of whole numbers from 0 on, or all texts in the order that is wanted; None for
            the labels themselves.

    Raises:
        DataUnsuitable: Splits have labels of different types, a label is no class of the training images, there are
            fewer than two classes, or the names do not fit.
    """
    kinds = {split: "texts" if labels.dtype == object else "whole numbers" for split, labels in by_split.items()}
    if len(set(kinds.values())) > 1:
        told = " and ".join(f"{kind} in {split}" for split, kind in kinds.items())
        raise DataUnsuitable(f"labels must be of one type in every split, got {told}")
    found = sorted(set(by_split["train"].tolist()))
    classes = found if names is None else _named(found, names, texts=kinds["train"] == "texts")
    if len(classes) < 2:
        raise DataUnsuitable(f"two or more classes must occur in train, got {len(classes)}: {found}")
    numbers = {label: number for number, label in enumerate(classes)}
    for split, labels in by_split.items():
        unknown = sorted(set(labels.tolist()) - numbers.keys())
        if unknown:
            shown = ", ".join(map(repr, unknown[:_MOST_NAMED])) + ", ..." * (len(unknown) > _MOST_NAMED)
            raise DataUnsuitable(f"{split} must have no class that is not in train, got {shown}")
    coded = {
        split: torch.tensor([numbers[label] for label in labels.tolist()], dtype=torch.int64)
        for split, labels in by_split.items()
    }
    if names is not None and kinds["train"] != "texts":
        return coded, tuple(str(names[label]) for label in classes)
    return coded, tuple(map(str, classes))


def _named(found: list[Any], names: Sequence[str], *, texts: bool) -> list[Any]:
    """Return the labels of the classes in the order of their names; numbers without a training image are left out."""
    if len(set(names)) < len(names):
        raise DataUnsuitable(f"class_names must be distinct, got {list(names)}")
    if texts:
        missing = [label for label in found if label not in names]
        if missing:
            raise DataUnsuitable(f"class_names must name every label of train, got none for {missing[:_MOST_NAMED]}")
        return list(names)
    outside = [label for label in found if not 0 <= label < len(names)]
    if outside:
        raise DataUnsuitable(
            f"class_names has {len(names)} names, for the labels 0..{len(names) - 1}, got the label {outside[0]} in "
            "train"
        )
    return found
