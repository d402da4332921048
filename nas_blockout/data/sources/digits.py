"""Handwritten digits, 1,797 gray images of 8x8 pixels in 10 classes: they ship with scikit-learn.

A stratified split gives 50% to training, 20% to validation and 30% to the test.

References:
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.splits import Collection
from nas_blockout.data.subsets import stratified
from nas_blockout.data.tensor_dataset import Labeled

TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.2
_INK_LEVELS = 16  # the darkest level, so that images lie in [0, 1]
_INSIDE = Path("datasets") / "data" / "digits.csv.gz"


def read(settings: DataSettings, root: Path | None = None) -> Collection:
    """Read the digits that may be seen before the test; `root` is not used."""
    everything = _everything()
    train, validation, test = stratified(everything.labels, (TRAIN_SHARE, VALIDATION_SHARE), seed=settings.split_seed)
    return Collection(
        train=everything.at(train),
        validation=everything.at(validation),
        load_test=partial(_read_at, test),
        class_names=tuple("0123456789"),
    )


def _read_at(index: Tensor) -> Labeled:
    return _everything().at(index)


def _everything() -> Labeled:
    values = torch.from_numpy(table())
    images = values[:, :-1].to(torch.float32).div_(_INK_LEVELS)
    return Labeled(images.reshape(-1, 1, 8, 8), values[:, -1].to(torch.int64))


def table(inside: Path = _INSIDE) -> NDArray[np.float64]:
    """Return one row per image: 64 levels of ink, and the label.

    The file is read past scikit-learn, whose import takes two seconds, in every process that trains; a release that
    keeps it elsewhere is asked for it.

    Args:
        inside: Path of the file in the package scikit-learn.
    """
    package = find_spec("sklearn")
    path = Path(package.origin).parent / inside if package is not None and package.origin else inside
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])
