"""What labeled images come in: a pair, a map-style dataset, a loader of PyTorch, a dataset of Hugging Face."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, default_collate

from nas_blockout.data.errors import DataUnsuitable
from nas_blockout.serialization import near

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "images", "pixel_values"), ("label", "labels", "fine_label", "target")
_FORMS = "a pair (images, labels), a dataset whose items are (image, label), a DataLoader, or a dataset of Hugging Face"


class Found(NamedTuple):
    """Images and labels as they were given, and names of the classes where the source knows them."""

    images: Any
    labels: Any
    class_names: tuple[str, ...] | None = None


def found_in(source: Any, *, split: str, image_column: str | None = None, label_column: str | None = None) -> Found:
    """Return the images and labels of a source, in its order.

    Args:
        source: One of: a pair; an object with a length and items ``(image, label)``; a `DataLoader`, which is read
            through its dataset where it only shuffles and collates, so that the order is always the same; a dataset of
            Hugging Face, known by its ``column_names``.
        split: Name of the split, for errors.
        image_column: Column of the images, in a dataset of Hugging Face; None to find it.
        label_column: Likewise of the labels.

    Raises:
        DataUnsuitable: It is none of these, or has no such columns.
    """
    if hasattr(source, "column_names") and hasattr(source, "__getitem__"):
        return _of_hugging_face(source, split, image_column, label_column)
    if isinstance(source, DataLoader):
        return _of_loader(source, split)
    if isinstance(source, tuple) and len(source) == 2:
        return Found(*source)
    if isinstance(source, IterableDataset) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise DataUnsuitable(f"{split} must be {_FORMS}, got {type(source).__name__}")
    if isinstance(source, Tensor | np.ndarray | str | bytes | Mapping):
        raise DataUnsuitable(f"{split} must be {_FORMS}, got {type(source).__name__} alone")
    return _of_items((source[number] for number in range(len(source))), split)


def _of_items(items: Iterator[Any], split: str) -> Found:
    images, labels = list[Any](), list[Any]()
    for number, item in enumerate(items):
        if not (isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2):
            raise DataUnsuitable(f"item {number} of {split} must be (image, label), got {type(item).__name__}")
        images.append(item[0])
        labels.append(_plain(item[1]))
    return Found(images, labels)


def _plain(label: Any) -> Any:
    """Return a label of a tensor or array without dimensions as a number."""
    return label.item() if isinstance(label, Tensor | np.generic | np.ndarray) and label.ndim == 0 else label


def _of_loader(loader: "DataLoader[Any]", split: str) -> Found:
    sampler = loader.sampler
    shuffles = (
        isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(sampler.data_source)
    )
    whole = isinstance(sampler, SequentialSampler) or shuffles
    if whole and loader.collate_fn is default_collate and not isinstance(loader.dataset, IterableDataset):
        return found_in(loader.dataset, split=split)
    images, labels = list[Any](), list[Any]()
    for number, batch in enumerate(loader):
        if not (isinstance(batch, Sequence) and len(batch) == 2):
            raise DataUnsuitable(f"batch {number} of {split} must be (images, labels), got {type(batch).__name__}")
        images += list(batch[0])
        labels += [_plain(each) for each in batch[1]]
    return Found(images, labels)


def _of_hugging_face(source: Any, split: str, image_column: str | None, label_column: str | None) -> Found:
    columns = source.column_names
    if isinstance(columns, Mapping):
        raise DataUnsuitable(f"{split} must be one split of a dataset of Hugging Face, got all: {', '.join(columns)}")
    features = getattr(source, "features", None) or {}
    images = _column(columns, features, image_column, "Image", _IMAGE_COLUMNS, key="image_column", split=split)
    labels = _column(columns, features, label_column, "ClassLabel", _LABEL_COLUMNS, key="label_column", split=split)
    rows = [source[number] for number in range(len(source))]
    names = getattr(features.get(labels), "names", None)
    return Found([row[images] for row in rows], [row[labels] for row in rows], tuple(names) if names else None)


def _column(
    columns: Sequence[str],
    features: Mapping[str, Any],
    given: str | None,
    kind: str,
    usual: Sequence[str],
    *,
    key: str,
    split: str,
) -> str:
    if given is not None:
        if given not in columns:
            raise DataUnsuitable(f"{key} must be a column of {split}, got {given!r}; {near(given, columns)}")
        return given
    typed = [name for name in columns if type(features.get(name)).__name__ == kind]
    candidates = typed or [name for name in usual if name in columns]
    if len(candidates) == 1 or (candidates and not typed):
        return candidates[0]
    raise DataUnsuitable(
        f"{split} has {len(candidates)} columns that may be it; set {key} to one of {', '.join(columns)}"
    )
