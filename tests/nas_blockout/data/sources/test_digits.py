from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nas_blockout.data import DataSettings, load
from nas_blockout.data.sources import digits


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.mul(16).round().numpy().astype(np.uint8).tobytes() for image in images}


@pytest.fixture(scope="module")
def splits():
    return load(DataSettings())


def test_the_shares_are_50_20_and_30_percent(splits):
    sizes = [len(splits.train), len(splits.validation), len(splits.test())]
    assert sum(sizes) == 1797
    assert [round(size / 1797, 2) for size in sizes] == [0.5, 0.2, 0.3]


def test_shape_classes_and_range(splits):
    assert splits.shape == (1, 8, 8)
    assert splits.class_names == tuple("0123456789")
    plain = splits.preprocessing.undo(splits.train.images)
    assert (float(plain.min()), float(plain.max())) == (0.0, 1.0)


def test_no_image_is_in_two_splits():
    unseen = load(DataSettings(split_seed=5))
    parts = [rows(unseen.preprocessing.undo(part.images)) for part in (unseen.train, unseen.validation, unseen.test())]
    everything = rows(torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16)
    assert len(everything) == sum(len(part) for part in parts) == 1797


def test_the_file_read_past_scikit_learn_is_what_it_returns():
    straight = digits.table()
    asked = digits.table(Path("moved"))
    assert np.array_equal(straight, asked)
    assert np.array_equal(straight[:, :-1].reshape(-1, 8, 8), load_digits().images)
    assert np.array_equal(straight[:, -1], load_digits().target)


def test_a_smaller_training_set_is_part_of_a_larger_one():
    small, large = (load(DataSettings(train_samples=samples)) for samples in (50, 200))
    assert small.train.labels.bincount().tolist() == [5] * 10
    assert rows(small.preprocessing.undo(small.train.images)) < rows(large.preprocessing.undo(large.train.images))


def test_another_split_seed_is_another_split(splits):
    assert not torch.equal(load(DataSettings(split_seed=1)).train.labels, splits.train.labels)


def test_loading_consumes_no_global_randomness():
    before = torch.get_rng_state()
    load(DataSettings(train_samples=100)).test()
    assert torch.equal(before, torch.get_rng_state())
