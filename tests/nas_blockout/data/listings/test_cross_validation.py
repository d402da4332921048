"""Folds: every image that is no test image is held out once, classes are alike everywhere, groups are whole."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nas_blockout.data import Collection, DataCorrupt, DataSettings, DataUnsuitable, ImageFiles, Labeled, load
from nas_blockout.data.listings.cross_validation import in_folds
from nas_blockout.data.sources import imagefolder
from nas_blockout.data.sources.registry import dimensions, recognized, resolved
from nas_blockout.data.splits import prepare
from nas_blockout.data.subsets import stratified_folds


def collection(train: list[int], validation: list[int]) -> Collection:
    """Images whose pixels are their number, of classes in the order of the lists."""
    start, parts = 0, []
    for counts in (train, validation):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        pixels = torch.arange(start, start + len(labels)).view(-1, 1, 1, 1) / 1000
        parts.append(Labeled(pixels.expand(-1, 1, 2, 2).contiguous(), labels))
        start += len(labels)
    names = tuple(f"class {label}" for label in range(len(train)))
    return Collection(parts[0], parts[1], partial(_never), names)


def _never() -> Labeled:
    raise AssertionError("test images are read by `Splits.test` alone")


def numbers(part: Labeled | ImageFiles) -> list[int]:
    assert isinstance(part, Labeled)
    return (part.images[:, 0, 0, 0] * 1000).round().int().tolist()


@given(st.lists(st.integers(5, 17), min_size=2, max_size=5), st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_folds_are_alike_in_size_and_classes(counts: list[int], folds: int, seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    parts = stratified_folds(labels, folds, seed=seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for label in range(len(counts)):
        found = [int((labels[part] == label).sum()) for part in parts]
        assert max(found) - min(found) <= 1
    assert all(torch.equal(*pair) for pair in zip(parts, stratified_folds(labels, folds, seed=seed), strict=True))


def test_the_seed_decides_who_is_in_a_fold() -> None:
    labels = torch.arange(3).repeat(20)
    assert not torch.equal(stratified_folds(labels, 4, seed=0)[0], stratified_folds(labels, 4, seed=1)[0])


def test_every_image_is_held_out_once_and_else_trained_on() -> None:
    source = collection([9, 12], [4, 5])
    held_out = []
    for fold in range(3):
        found = in_folds(source, folds=3, fold=fold, seed=7)
        assert sorted(numbers(found.train) + numbers(found.validation)) == list(range(30))
        held_out += numbers(found.validation)
        for part in (found.train, found.validation):  # each image with its own label
            assert all(source.train.labels.tolist()[n] == label if n < 21 else label == int(n >= 25)
                       for n, label in zip(numbers(part), part.labels.tolist(), strict=True))  # fmt: skip
        assert found.folds is not None
        assert found.folds[fold] == tuple(found.validation.labels.bincount().tolist())
    assert sorted(held_out) == list(range(30))


def grouped(train: list[str], validation: list[str]) -> Collection:
    """Six images a group, half of each of two classes."""
    parts = [Labeled(torch.rand(6 * len(names), 1, 2, 2), torch.arange(6 * len(names)) % 2)
             for names in (train, validation)]  # fmt: skip
    ids = {
        "train": tuple(name for name in train for _ in range(6)),
        "validation": tuple(name for name in validation for _ in range(6)),
    }
    counts = {"train": (len(train),) * 2, "validation": (len(validation),) * 2, "test": (3, 3)}
    return Collection(parts[0], parts[1], _never, ("a", "b"), groups=counts, group_ids=ids)


def test_no_group_is_in_two_folds() -> None:
    source = grouped([f"patient {n}" for n in range(7)], ["x", "y", "z"])
    held_out: list[set[str]] = []
    for fold in range(4):
        found = in_folds(source, folds=4, fold=fold, seed=1)
        assert found.group_ids is not None
        held_out.append(set(found.group_ids["validation"]))
        assert not held_out[-1] & set(found.group_ids["train"])
        assert found.groups == {
            "train": (10 - len(held_out[-1]),) * 2,
            "validation": (len(held_out[-1]),) * 2,
            "test": (3, 3),
        }
    assert sum(map(len, held_out)) == 10
    assert "none of which shares one of 10 groups with another; fold 3 is for validation" in found.notes[-1]


def test_a_class_in_fewer_groups_than_folds_is_named() -> None:
    with pytest.raises(DataUnsuitable, match=r"5 groups or more, one for each split \(fold 0, .*'a \(4\)', 'b \(4\)'"):
        in_folds(grouped(["p", "q", "r"], ["s"]), folds=5, fold=0, seed=0)


def test_groups_without_the_group_of_every_image_are_refused() -> None:
    source = grouped(["p", "q"], ["r"])
    with pytest.raises(DataUnsuitable, match="folds leave groups whole, but the source gives no group_ids"):
        in_folds(replace(source, group_ids=None), folds=2, fold=0, seed=0)
    with pytest.raises(DataUnsuitable, match="each of the 6 images of validation, got 0"):
        in_folds(replace(source, group_ids={"train": source.group_ids["train"]}), folds=2, fold=0, seed=0)  # type: ignore[index]


def test_a_class_with_fewer_images_than_folds_is_named_whichever_fold_is_held_out() -> None:
    for fold in (0, 4):
        with pytest.raises(
            DataUnsuitable, match=r"needs 5 images or more .* 1 of 2 classes have fewer: 'class 1 \(4\)'"
        ):
            in_folds(collection([20, 3], [5, 1]), folds=5, fold=fold, seed=0)


def test_samples_are_refused_that_another_fold_could_not_give() -> None:
    folded = in_folds(collection([8, 8], [3, 3]), folds=3, fold=2, seed=0)  # folds of 8, 7 and 7 images
    prepare(folded, train_samples=14, validation_samples=7, split_seed=0)
    with pytest.raises(DataUnsuitable, match="train_samples must be at most the 14 images"):
        prepare(folded, train_samples=15, validation_samples=None, split_seed=0)
    with pytest.raises(DataUnsuitable, match="validation_samples must be at most the 7 images"):
        prepare(folded, train_samples=None, validation_samples=8, split_seed=0)


def test_digits_in_folds_keep_their_test_images() -> None:
    whole, folded = load(DataSettings()), load(DataSettings(folds=5, fold=3))
    assert torch.equal(
        whole.preprocessing.undo(whole.test().images[:]), folded.preprocessing.undo(folded.test().images[:])
    )
    assert len(folded.train) + len(folded.validation) == len(whole.train) + len(whole.validation)
    assert folded.preprocessing != load(DataSettings(folds=5, fold=4)).preprocessing  # of what is trained on
    assert folded.images_of_folds(None)[3] == len(folded.train)
    assert folded.images_of_folds(100) == (100,) * 5
    assert whole.images_of_folds(None) == ()


def test_loaded_data_give_those_of_another_fold() -> None:
    first = load(DataSettings(folds=3))
    other, expected = first.of_fold(2), load(DataSettings(folds=3, fold=2))
    assert torch.equal(other.validation.images[:], expected.validation.images[:])
    assert other.preprocessing == expected.preprocessing
    assert (other.fold, first.fold) == (2, 0)
    assert first.of_fold(2) is other
    assert first.of_fold(0) is first is first.of_fold(None)
    assert first.with_parts(first.train, first.validation).of_fold(1).fold == 1
    plain = load(DataSettings())
    assert plain.of_fold(1) is plain


def test_a_fold_is_none_or_one_of_the_folds() -> None:
    with pytest.raises(ValueError, match=r"got 2; set folds as well"):
        DataSettings(fold=2)
    with pytest.raises(ValueError, match=r"fold must lie in 0\.\.4 for 5 folds, got 5"):
        DataSettings(folds=5, fold=5)
    assert resolved(DataSettings(folds=5)).fold == 0
    assert resolved(DataSettings()) == DataSettings()
    assert DataSettings(folds=3, fold=1).holding_out(5) == DataSettings(folds=3, fold=2)
    assert DataSettings().holding_out(5) == DataSettings()


def test_how_many_images_folds_train_on_is_not_known_before_they_are_read() -> None:
    assert dimensions(DataSettings(folds=5)).train_images is None
    assert dimensions(DataSettings(folds=5, train_samples=950)).train_images == 950  # 898 without folds


def draw(folder: Path, counts: dict[str, int], *, names: str = "{:03}") -> None:
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            path = folder / name / f"{names.format(number)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(1000 * label + number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def of_folder(folder: Path, **changes: object) -> DataSettings:
    return DataSettings(name="imagefolder", folder=str(folder), image_size=8, **changes)  # type: ignore[arg-type]


def test_given_splits_are_divided_anew_and_a_note_says_so(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 2), ("test", 3)):
        draw(tmp_path / split, {"ant": count, "bee": count}, names=split + "{:03}")
    asked = of_folder(tmp_path, folds=4)
    splits = load(asked)
    assert (len(splits.train), len(splits.validation), len(splits.test())) == (18, 6, 6)
    told = "the 24 images of train and validation are divided anew into 4 folds of 6 images; fold 0 is for validation"
    assert told in splits.notes[-1] == recognized(asked)[-1]


def test_folds_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    draw(tmp_path, {"ant": 15, "bee": 15})
    read = imagefolder.read(of_folder(tmp_path), None)
    assert isinstance(read.train, ImageFiles)
    order = list(range(len(read.train)))
    random.Random(3).shuffle(order)
    shuffled = replace(read, train=read.train.at(torch.tensor(order)))
    one, other = (in_folds(each, folds=3, fold=1, seed=0).validation for each in (read, shuffled))
    assert isinstance(one, ImageFiles)
    assert isinstance(other, ImageFiles)
    assert one.paths == other.paths


def test_groups_of_files_come_from_their_pattern(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        draw(tmp_path / name, {f"p{n}": 4 for n in range(9)})
    splits = load(of_folder(tmp_path, folds=3, group_pattern="<p#>/*", layout="classes"))
    assert splits.groups is not None
    assert splits.groups["train"][0] + splits.groups["validation"][0] + splits.groups["test"][0] == 9
    assert min(splits.groups["validation"]) >= 2


def test_streamed_files_are_merged_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, {"ant": 10, "bee": 10})
    read = imagefolder.read(of_folder(tmp_path), None, memory_bytes=1)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    found = in_folds(read, folds=4, fold=0, seed=0)
    assert (len(found.train), len(found.validation)) == (12, 4)


@pytest.mark.parametrize("resize_size", [None, 9])
def test_folds_share_one_cache_of_decoded_images(tmp_path: Path, resize_size: int | None) -> None:
    draw(tmp_path / "images", {"ant": 10, "bee": 10})
    root, plain = tmp_path / "root", {}
    for fold in range(3):
        asked = of_folder(tmp_path / "images", folds=3, fold=fold, resize_size=resize_size)
        plain[fold] = load(asked)
        cached = load(asked, root=root)
        for name in ("train", "validation"):
            one, other = getattr(plain[fold], name), getattr(cached, name)
            assert torch.equal(one.images[:], other.images[:])
            assert torch.equal(one.labels, other.labels)
    assert len([path for path in (root / "cache").iterdir() if not path.name.startswith(".")]) == 1


def test_a_damaged_file_of_shared_images_is_named_once(tmp_path: Path) -> None:
    draw(tmp_path / "images", {"ant": 10, "bee": 10})
    read = imagefolder.read(of_folder(tmp_path / "images"), None)
    assert isinstance(read.train, ImageFiles)
    for path in read.train.paths[:2]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataCorrupt, match="2 images cannot be read") as raised:
        load(of_folder(tmp_path / "images", folds=3), root=tmp_path / "root")
    assert len(raised.value.problems) == 2
