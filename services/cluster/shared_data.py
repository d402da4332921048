"""The images of a study in Ray's object store: one copy a machine, which all workers of the machine read in place.

Ray maps arrays of NumPy into the processes that get them, without a copy, and copies them to another machine once.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_blockout.data import AnyImages, BytePart, DataMissing, DataSettings, Part, Splits, load

SplitsByKey = dict[tuple[DataSettings, str | None], Splits]
_Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class SharedData:
    """Loaded data whose images and labels are arrays of NumPy.

    Args:
        settings: What was loaded.
        data_root: Folder of downloaded data sets, see `Task`.
        outline: The data without an image.
        arrays: Images and labels of both splits, by name.
    """

    settings: DataSettings
    data_root: str | None
    outline: Splits
    arrays: Mapping[str, tuple[_Array, _Array]]

    @classmethod
    def of(cls, splits: Splits, settings: DataSettings, data_root: str | None) -> "SharedData | None":
        """Return data to share; None if not all of it is in memory: its files then are what machines share."""
        outlines: dict[str, Part | BytePart] = {}
        arrays: dict[str, tuple[_Array, _Array]] = {}
        for name, part in (("train", splits.train), ("validation", splits.validation)):
            if not isinstance(part, Part | BytePart):
                return None
            images = part.pixels if isinstance(part, BytePart) else part.images
            arrays[name] = images.numpy(), part.labels.numpy()
            outlines[name] = _with(part, images[:0].clone(), part.labels[:0].clone())
        outline = splits.with_parts(outlines["train"], outlines["validation"])
        return cls(settings, data_root, outline, arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of the images and labels."""
        return sum(array.nbytes for pair in self.arrays.values() for array in pair)

    def splits(self) -> Splits:
        """Return the data; its images are those of the arrays and, in a worker, must not be written to."""
        parts: dict[str, Part | BytePart] = {}
        for name, outline in (("train", self.outline.train), ("validation", self.outline.validation)):
            assert isinstance(outline, Part | BytePart)
            parts[name] = _with(outline, *map(_in_place, self.arrays[name]))
        return self.outline.with_parts(parts["train"], parts["validation"], load_test=self._load_test)

    def _load_test(self) -> AnyImages:
        try:
            return self.outline.load_test()
        except DataMissing:  # where the driver read them; this machine may have its files elsewhere
            return load(self.settings, root=Path(self.data_root) if self.data_root else None).load_test()


def splits_of(settings: DataSettings, data_root: str | None, known: SplitsByKey) -> Splits:
    """Return data from `known`, loaded into it first if it is not there; of several folds the last one is kept."""
    key = settings, data_root
    if key not in known:
        for other in [*known][1:]:  # the first is that of the study, which all workers share
            if settings.folds is not None and other[0].holding_out(0) == settings.holding_out(0):
                del known[other]
        known[key] = load(settings, root=Path(data_root) if data_root else None)
    return known[key]


def _with(part: Part | BytePart, images: Tensor, labels: Tensor) -> Part | BytePart:
    if isinstance(part, BytePart):
        return replace(part, pixels=images, labels=labels)
    return replace(part, images=images, labels=labels)


def _in_place(array: _Array) -> Tensor:
    with warnings.catch_warnings():  # the memory is mapped read-only, and a training only ever reads it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
