"""Handwritten digits, 1,797 grey images of 8x8 pixels in 10 classes: they ship with scikit-learn.

A stratified split gives 50% to training, 20% to validation and 30% to the test.

References:
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from nas_blockout.data.division import stratified
from nas_blockout.data.parts import Labelled
from nas_blockout.data.settings import DataSettings
from nas_blockout.data.splits import Collection

TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.2
_INK_LEVELS = 16


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


def _read_at(index: Tensor) -> Labelled:
    return _everything().at(index)


def _everything() -> Labelled:
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div_(_INK_LEVELS)
    return Labelled(images.unsqueeze(1), torch.from_numpy(bunch.target).to(torch.int64))
