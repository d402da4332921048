import pickle
from functools import partial

import pytest
import torch

from nas_blockout.data import DataSettings, DataUnsuitable, Part, load
from nas_blockout.data.splits import Collection, prepare
from nas_blockout.data.tensor_dataset import Labeled, scaled


def labeled(counts: list[int], *, seed: int = 0) -> Labeled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Labeled(torch.randint(256, (len(labels), 3, 4, 4), generator=generator, dtype=torch.uint8), labels)


def collection(train: list[int], validation: list[int]) -> Collection:
    names = tuple(f"class {index}" for index in range(len(train)))
    return Collection(labeled(train), labeled(validation, seed=1), partial(labeled, [2] * len(train)), names)


def prepared(train: list[int], validation: list[int], train_samples: int | None = None):
    return prepare(collection(train, validation), train_samples=train_samples, validation_samples=None, split_seed=0)


def test_normalization_is_measured_on_what_is_trained_on():
    splits = prepared([6, 6], [3, 3], train_samples=4)
    plain = splits.preprocessing.undo(splits.train.images[:]).double()
    assert len(splits.train) == 4
    assert splits.preprocessing.mean == pytest.approx(plain.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert splits.preprocessing.std == pytest.approx(plain.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert splits.train.images[:].mean((0, 2, 3)).abs().max() < 1e-5


def test_test_data_is_read_when_asked_for_and_counted():
    reads = []
    source = collection([6, 6], [3, 3])

    def load_test() -> Labeled:
        reads.append("read")
        return labeled([2, 2])

    counted = Collection(source.train, source.validation, load_test, source.class_names)
    splits = prepare(counted, train_samples=None, validation_samples=None, split_seed=0)
    assert (reads, splits.test_reads) == ([], 0)
    assert len(splits.test()) == 4
    splits.test()
    assert (len(reads), splits.test_reads) == (2, 2)


def test_splits_survive_being_sent_to_another_process():
    splits = load(DataSettings(train_samples=50))
    splits.test()
    sent = pickle.loads(pickle.dumps(splits))  # what a worker gets from the process that started it
    assert torch.equal(sent.train.images, splits.train.images)
    assert torch.equal(sent.test().images, splits.test().images)
    assert sent.test_reads == 2


def test_test_data_is_normalized_like_training_data():
    splits = prepared([6, 6], [3, 3])
    assert torch.allclose(splits.preprocessing.undo(splits.test().images[:]), scaled(labeled([2, 2]).images), atol=1e-6)


def test_a_class_missing_in_a_split_is_named():
    with pytest.raises(DataUnsuitable, match=r"1 of 2 classes have none in the validation split .*'class 1'"):
        prepared([6, 6], [3, 0])


def test_fewer_samples_than_classes_are_refused():
    with pytest.raises(DataUnsuitable, match="in the training split"):
        prepared([6, 6, 6], [3, 3, 3], train_samples=2)


def test_more_samples_than_there_are_are_refused():
    with pytest.raises(DataUnsuitable, match="train_samples must be at most the 12 images of that split, got 13"):
        prepared([6, 6], [3, 3], train_samples=13)


def test_a_part_with_wrong_shapes_is_refused():
    with pytest.raises(ValueError, match=r"got \(5, 4, 4\) and \(5,\)"):
        Part(torch.zeros(5, 4, 4), torch.zeros(5, dtype=torch.int64))


def test_a_part_moves_as_a_whole():
    part = Part(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), (0.5,)).to("cpu")
    assert (len(part), part.background) == (2, (0.5,))
