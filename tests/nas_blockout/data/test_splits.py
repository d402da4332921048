import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.data import DataUnsuitable, Part, Preprocessing
from nas_blockout.data.splits import Collection, Labelled, balanced, measure, prepare, stratified

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=80)


def labelled(counts: list[int], *, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Labelled(torch.randint(256, (len(labels), 3, 4, 4), generator=generator, dtype=torch.uint8), labels)


def collection(train: list[int], validation: list[int]) -> Collection:
    names = tuple(f"class {index}" for index in range(len(train)))
    return Collection(labelled(train), labelled(validation, seed=1), partial(labelled, [2] * len(train)), names)


def prepared(train: list[int], validation: list[int], train_samples: int | None = None):
    return prepare(collection(train, validation), train_samples=train_samples, validation_samples=None, split_seed=0)


@given(label_lists, st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_a_stratified_split_has_every_image_once(labels, seed):
    parts = stratified(torch.tensor(labels), (0.5, 0.2), seed=seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))


@given(st.lists(st.integers(3, 40), min_size=1, max_size=6), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_every_class_has_its_share_in_every_part(counts, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    train, validation, test = stratified(labels, (0.5, 0.2), seed=seed)
    for label, count in enumerate(counts):
        found = [int((labels[part] == label).sum()) for part in (train, validation, test)]
        assert all(number >= 1 for number in found)
        assert abs(found[0] - 0.5 * count) <= 1
        assert abs(found[1] - 0.2 * count) <= 1


def test_a_split_depends_on_its_seed_alone():
    labels = torch.arange(5).repeat(20)
    torch.manual_seed(1)
    first = stratified(labels, (0.5,), seed=3)
    torch.manual_seed(2)
    assert torch.equal(first[0], stratified(labels, (0.5,), seed=3)[0])
    assert not torch.equal(first[0], stratified(labels, (0.5,), seed=4)[0])


@given(label_lists, st.data(), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_subsets_are_nested(labels, data, seed):
    small = data.draw(st.integers(1, len(labels)))
    large = data.draw(st.integers(small, len(labels)))
    chosen = [balanced(torch.tensor(labels), size, seed=seed).tolist() for size in (small, large)]
    assert [len(set(chosen[0])), len(set(chosen[1]))] == [small, large]
    assert set(chosen[0]) <= set(chosen[1])


@given(label_lists, st.data(), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_subsets_are_balanced_while_classes_last(labels, data, seed):
    tensor = torch.tensor(labels)
    size = data.draw(st.integers(1, len(labels)))
    present = tensor.unique()
    taken = tensor[balanced(tensor, size, seed=seed)]
    counts = [int((taken == label).sum()) for label in present]
    for label, count in zip(present, counts, strict=True):
        assert count >= max(counts) - 1 or count == int((tensor == label).sum())


def test_normalisation_is_measured_on_what_is_trained_on():
    splits = prepared([6, 6], [3, 3], train_samples=4)
    plain = splits.preprocessing.undo(splits.train.images).double()
    assert len(splits.train) == 4
    assert splits.preprocessing.mean == pytest.approx(plain.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert splits.preprocessing.std == pytest.approx(plain.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert splits.train.images.mean((0, 2, 3)).abs().max() < 1e-5


def test_test_data_is_read_when_asked_for_and_counted():
    reads = []
    source = collection([6, 6], [3, 3])

    def load_test() -> Labelled:
        reads.append("read")
        return labelled([2, 2])

    counted = Collection(source.train, source.validation, load_test, source.class_names)
    splits = prepare(counted, train_samples=None, validation_samples=None, split_seed=0)
    assert (reads, splits.test_reads) == ([], 0)
    assert len(splits.test()) == 4
    splits.test()
    assert (len(reads), splits.test_reads) == (2, 2)


def test_test_data_is_normalised_like_training_data():
    splits = prepared([6, 6], [3, 3])
    assert torch.allclose(splits.preprocessing.undo(splits.test().images), labelled([2, 2]).scaled(), atol=1e-6)


def test_a_class_missing_in_a_split_is_named():
    with pytest.raises(DataUnsuitable, match=r"1 of 2 classes have none in the validation split .*'class 1'"):
        prepared([6, 6], [3, 0])


def test_fewer_samples_than_classes_are_refused():
    with pytest.raises(DataUnsuitable, match="in the training split"):
        prepared([6, 6, 6], [3, 3, 3], train_samples=2)


def test_more_samples_than_there_are_are_refused():
    with pytest.raises(DataUnsuitable, match="train_samples must be at most the 12 images of that split, got 13"):
        prepared([6, 6], [3, 3], train_samples=13)


def test_images_that_never_vary_are_refused():
    with pytest.raises(DataUnsuitable, match="must vary in every channel"):
        measure(Labelled(torch.full((4, 1, 5, 5), 0.5), torch.zeros(4, dtype=torch.int64)))


def test_preprocessing_survives_json():
    preprocessing = Preprocessing(3, 28, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_background_is_what_black_becomes():
    preprocessing = Preprocessing(2, 1, 1, (0.25, 0.5), (0.5, 0.25))
    black = preprocessing.apply(torch.zeros(1, 2, 1, 1)).flatten()
    assert preprocessing.background == pytest.approx(black.tolist())


@pytest.mark.parametrize(("mean", "std"), [((0.1,), (0.2, 0.3)), ((0.1, 0.1), (0.2, 0.0))])
def test_preprocessing_that_cannot_be_applied_is_refused(mean, std):
    with pytest.raises(ValueError, match="std"):
        Preprocessing(2, 4, 4, mean, std)


def test_a_part_with_wrong_shapes_is_refused():
    with pytest.raises(ValueError, match=r"got \(5, 4, 4\) and \(5,\)"):
        Part(torch.zeros(5, 4, 4), torch.zeros(5, dtype=torch.int64))


def test_a_part_moves_as_a_whole():
    part = Part(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), (0.5,)).to("cpu")
    assert (len(part), part.background) == (2, (0.5,))
