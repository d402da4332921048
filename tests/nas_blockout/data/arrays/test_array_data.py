"""Arrays, tensors, datasets and loaders become the same data, and what is wrong with them is told with a remedy."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nas_blockout.data import ArrayData, DataUnsuitable

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2] * 4)


class Items(Dataset):
    """A map-style dataset of images of Pillow and texts."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, number):
        return Image.fromarray(IMAGES[number]), "abc"[LABELS[number]]


class Rows:
    """What a dataset of Hugging Face offers: columns by name, rows as dictionaries, features with names of classes."""

    column_names = ("image", "label")

    def __init__(self, images, labels, names=("a", "b", "c")):
        self.images, self.labels = images, labels
        self.features = {"image": type("Image", (), {})(), "label": type("ClassLabel", (), {"names": list(names)})()}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return {"image": self.images[number], "label": int(self.labels[number])}


def test_every_form_of_the_same_images_is_the_same_data():
    pictures = [Image.fromarray(each) for each in IMAGES]
    first = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    tensors = TensorDataset(first, torch.from_numpy(LABELS))
    forms = {
        "arrays, channels last": (IMAGES, LABELS),
        "tensors, channels first": (first, torch.from_numpy(LABELS)),
        "lists": ([*IMAGES], LABELS.tolist()),
        "images of Pillow": (pictures, LABELS),
        "a dataset": tensors,
        "a list of items": list(zip(pictures, LABELS.tolist(), strict=True)),
        "a loader": DataLoader(tensors, batch_size=5),
        "a loader that shuffles": DataLoader(tensors, batch_size=5, shuffle=True),
        "a loader with a collate function of its own": DataLoader(
            tensors, batch_size=5, collate_fn=lambda items: ([x for x, _ in items], [y for _, y in items])
        ),
        "whole numbers of another type": (IMAGES.astype(np.int64), LABELS.astype(np.int16)),
    }
    found = {name: ArrayData(form) for name, form in forms.items()}
    assert {name for name, data in found.items() if data.content != found["lists"].content} == set()
    assert torch.equal(found["lists"].parts["train"].images, first)
    assert found["lists"].class_names == ("0", "1", "2")
    assert found["lists"].shape == (3, 5, 4)


def test_texts_are_classes_in_alphabetic_order_or_in_the_one_that_is_given():
    assert ArrayData(Items()).class_names == ("a", "b", "c")
    assert ArrayData(Items()).parts["train"].labels.tolist() == LABELS.tolist()
    turned = ArrayData(Items(), class_names=["c", "b", "a"])
    assert turned.class_names == ("c", "b", "a")
    assert turned.parts["train"].labels.tolist() == (2 - LABELS).tolist()


def test_numbers_with_gaps_become_consecutive_and_keep_their_names():
    data = ArrayData((IMAGES, LABELS * 5 - 1))
    assert (data.class_names, data.parts["train"].labels.tolist()) == (("-1", "4", "9"), LABELS.tolist())
    assert ArrayData((IMAGES, LABELS), class_names=["x", "y", "z"]).class_names == ("x", "y", "z")


def test_columns_of_hugging_face_are_found_by_their_features_and_name_the_classes():
    rows = Rows([Image.fromarray(each) for each in IMAGES], LABELS, names=("ant", "bee", "cow", "dog"))
    data = ArrayData({"train": rows, "validation": rows, "test": rows})
    assert data.class_names == ("ant", "bee", "cow")  # of dogs there is no image
    assert [*data.parts] == ["train", "validation", "test"]
    assert torch.equal(data.parts["test"].images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))


def test_a_dataset_of_hugging_face_itself():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "pixels": datasets.Image(),
            "other": datasets.Value("int64"),
            "kind": datasets.ClassLabel(names=["a", "b", "c"]),
        }
    )
    rows = {"pixels": [Image.fromarray(each) for each in IMAGES], "other": [7] * 12, "kind": LABELS.tolist()}
    made = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features))
    data = ArrayData(made)
    assert data.class_names == ("a", "b", "c")
    assert torch.equal(data.parts["train"].images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))


def test_gray_images_have_one_channel_and_floats_stay_floats():
    gray = ArrayData((IMAGES[..., 0] / 255, LABELS))
    assert (gray.shape, gray.parts["train"].images.dtype) == ((1, 5, 4), torch.float32)
    assert ArrayData(([Image.fromarray(each[..., 0]) for each in IMAGES], LABELS)).shape == (1, 5, 4)
    assert ArrayData((IMAGES[..., 0] > 99, LABELS)).parts["train"].images.unique().tolist() == [0, 255]


def test_a_shape_that_may_be_read_in_two_ways_needs_a_word():
    square = np.zeros((12, 3, 5, 3), dtype=np.uint8)
    square[:, 0] = 1
    with pytest.raises(DataUnsuitable, match=r"channels may come first or last; say channels='first'"):
        ArrayData((square, LABELS))
    assert ArrayData((square, LABELS), channels="first").shape == (3, 5, 3)
    assert ArrayData((square, LABELS), channels="last").shape == (3, 3, 5)


FLOATS = IMAGES / 255
NAN = FLOATS.copy()
NAN[7, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (NAN, LABELS, r"NaN or infinity in 1 of 12 images, the first of them image 7"),
        (FLOATS * 255, LABELS, r"must lie in \[0, 1\], got 0 to 255; divide them by 255, or give bytes"),
        (FLOATS * 16, LABELS, r"got 0 to 16; divide them by 16"),
        (FLOATS * 4 - 2, LABELS, r"got -2 to 2; give them as they were before they were normalized"),
        (IMAGES.astype(np.int32) * 200, LABELS, r"must lie in 0\.\.255, got 0\.\.51000 of type int32"),
        (FLOATS.astype(complex), LABELS, "must be numbers, got the type complex128"),
        (IMAGES.reshape(12, -1), LABELS, r"got \(12, 60\); reshape rows of pixels to images first"),
        (np.zeros((12, 4, 5, 4)), LABELS, r"1 channel .* got the shape \(12, 4, 5, 4\); drop the transparency"),
        (IMAGES[:0], LABELS[:0], r"n of 1 or more, got \(0, 5, 4, 3\)"),
        ([*IMAGES[:11], IMAGES[0, :4]], LABELS, r"got 2: \(5, 4, 3\) \(image 0\) and \(4, 4, 3\) \(image 11\)"),
        ([Image.new("RGBA", (4, 5))] * 12, LABELS, "image 0 of train is transparent"),
        (IMAGES, LABELS[:9], "one label an image, got 9 labels of 12 images"),
        (IMAGES, LABELS.astype(float), r"whole numbers or texts, got the type float64; .*astype\(int\)"),
        (IMAGES, np.eye(3)[LABELS], r"of one-hot rows take labels.argmax\(1\)"),
        (IMAGES, ["a", None] * 6, "label 1 of train must be a whole number or a text, got None"),
        (IMAGES, LABELS * 0, r"two or more classes must occur in train, got 1: \[0\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_refused_with_what_to_do(images, labels, message):
    with pytest.raises(DataUnsuitable, match=message):
        ArrayData((images, labels))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((IMAGES[:6], [0, 1, 0, 1, 0, 1]), "1 of 3 classes have none in the validation split .*: '2'"),
        ((IMAGES[:3], [0, 1, 7]), "validation must have no class that is not in train, got 7"),
        ((IMAGES[:3], ["a", "b", "c"]), "one type in every split, got whole numbers in train and texts in validation"),
        ((IMAGES[:, :4], LABELS), r"one shape and .* got train \(3, 5, 4\) of uint8, validation \(3, 4, 4\)"),
        ((FLOATS, LABELS), r"got train .* of uint8, validation .* of float32"),
        (IMAGES, "validation must be a pair .* got ndarray alone"),
        (iter([]), "validation must be a pair .* got list_iterator"),
        ([IMAGES[0], IMAGES[1]], r"item 0 of validation must be \(image, label\), got ndarray"),
    ],
)  # fmt: skip
def test_a_split_that_does_not_fit_the_training_images_is_refused(validation, message):
    with pytest.raises(DataUnsuitable, match=message):
        ArrayData((IMAGES, LABELS), validation)


def test_splits_that_are_not_given_are_a_fifth_of_the_training_images_each():
    images, labels = np.tile(IMAGES, (5, 1, 1, 1)), np.tile(LABELS, 5)
    splits = ArrayData((images, labels)).splits(split_seed=1)
    assert [len(splits.train), len(splits.validation), len(splits.test())] == [36, 12, 12]
    assert splits.validation.labels.bincount().tolist() == [4, 4, 4]
    given = ArrayData((images, labels), (IMAGES, LABELS)).splits()
    assert [len(given.train), len(given.validation), len(given.test())] == [48, 12, 12]
    assert "test taken from the images to train on" in given.notes[0]
    with pytest.raises(DataUnsuitable, match="of which a class has too few"):
        ArrayData((IMAGES[:6], LABELS[:6])).splits()
