"""The data of a study as MLflow's data sets: what was trained and selected on, with a digest of its content."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_blockout.data import AnyPart, BytePart, Splits, StreamedPart

_DIGEST_CHARACTERS = 16  # MLflow takes 36


@dataclass(frozen=True, slots=True)
class DataSet:
    """One split of a study's data.

    Args:
        name: Name of the source.
        context: What it is for: ``training`` or ``validation``.
        digest: Hash of its images and labels; of image files that do not fit into memory, of their names and sizes.
        samples: Number of images.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        origin: Folder of the files; empty if there are none.
        fold: The fold that is held out; None without folds.
    """

    name: str
    context: str
    digest: str
    samples: int
    shape: tuple[int, int, int]
    classes: int
    origin: str
    fold: int | None = None

    def to_mlflow(self) -> Any:
        """Return it as the input of a run."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.schema import TensorDatasetSchema
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.types.schema import Schema, TensorSpec
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_SOURCE_NAME

        images = Schema([TensorSpec(np.dtype("float32"), (-1, *self.shape), "images")])
        labels = Schema([TensorSpec(np.dtype("int64"), (-1,), "labels")])
        source = CodeDatasetSource({MLFLOW_SOURCE_NAME: f"nas_blockout.data: {self.name}", "folder": self.origin})
        entity = Dataset(
            self.name,
            self.digest,
            "code",
            source.to_json(),
            schema=json.dumps(TensorDatasetSchema(images, labels).to_dict()),
            profile=json.dumps({"samples": self.samples, "classes": self.classes}),
        )
        return DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, self.context)])


def data_sets(splits: Splits, *, name: str) -> tuple[DataSet, ...]:
    """Return the data that a study trains and selects on; test images are for its retrained models, and not read here.

    With folds these are the data of every fold, each with its number.

    Args:
        splits: The data.
        name: Name of its source.
    """
    found = []
    for fold in range(len(splits.folds)) if splits.folds is not None else (None,):
        own = splits.of_fold(fold)
        for context, part in {"training": own.train, "validation": own.validation}.items():
            classes, digest = len(own.class_names), _digest(part)
            found.append(DataSet(name, context, digest, len(part), own.shape, classes, own.origin, fold))
    return tuple(found)


def _digest(part: AnyPart) -> str:
    digest = hashlib.sha256()
    for content in _contents(part):
        digest.update(content)
    return digest.hexdigest()[:_DIGEST_CHARACTERS]


def _contents(part: AnyPart) -> Iterator[Any]:
    yield part.labels.cpu().numpy().tobytes()
    if isinstance(part, StreamedPart):  # reading every file would take as long as an epoch
        yield from (f"{path.parent.name}/{path.name}:{path.stat().st_size};".encode() for path in part.files.paths)
        return
    images = part.pixels if isinstance(part, BytePart) else part.images
    yield str(tuple(images.shape)).encode()
    yield images.cpu().contiguous().numpy().data  # no copy: it may be most of the memory
