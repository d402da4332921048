from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_blockout.data import (
    BytePart,
    DataCorrupt,
    DataMissing,
    DataSettings,
    DataUnsuitable,
    Loader,
    StreamedPart,
    load,
)
from nas_blockout.data.sources import imagefolder as source
from nas_blockout.data.splits import prepare


def draw(path: Path, value: int, *, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, counts: dict[str, int]) -> None:
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            draw(folder / name / f"{index:03}.png", 1000 * number + index)


def settings(folder: Path, **changes) -> DataSettings:
    return DataSettings(name="imagefolder", folder=str(folder), **{"image_size": 8, **changes})


def sizes(folder: Path) -> list[int]:
    splits = load(settings(folder))
    return [len(splits.train), len(splits.validation), len(splits.test())]


def test_60_classes_of_unequal_sizes_are_divided_60_20_20(tmp_path):
    counts = {f"class{number:02}": 5 + number % 9 for number in range(60)}
    fill(tmp_path, counts)
    splits = load(settings(tmp_path))
    test = splits.test()
    assert splits.class_names == tuple(sorted(counts))
    for label, count in enumerate(counts.values()):
        found = [int((part.labels == label).sum()) for part in (splits.train, splits.validation, test)]
        assert sum(found) == count
        assert abs(found[0] - 0.6 * count) <= 1
        assert abs(found[2] - 0.2 * count) <= 1


def test_the_mean_color_of_each_class_has_its_label(tmp_path):
    for number, name in enumerate(("dark", "light")):
        for index in range(10):
            path = tmp_path / name / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (9, 9), (200 * number + index, 5, 5 * index)).save(path)
    splits = load(settings(tmp_path))
    red = splits.preprocessing.undo(splits.train.images[:])[:, 0].mean((1, 2))
    assert torch.equal(red > 0.5, splits.train.labels == splits.class_names.index("light"))


@pytest.mark.parametrize(
    ("validation_name", "expected"), [("val", [20, 6, 8]), ("valid", [20, 6, 8]), ("validation", [20, 6, 8])]
)
def test_splits_made_by_hand_are_kept(tmp_path, validation_name, expected):
    for split, count in (("train", 10), (validation_name, 3), ("test", 4)):
        fill(tmp_path / split, {"ant": count, "bee": count})
    assert sizes(tmp_path) == expected


def test_splits_that_are_not_there_are_carved_from_training(tmp_path):
    fill(tmp_path / "train", {"ant": 10, "bee": 20})
    assert sizes(tmp_path) == [18, 6, 6]
    fill(tmp_path / "val", {"ant": 3, "bee": 3})
    assert sizes(tmp_path) == [24, 6, 6]


def test_images_are_the_same_in_memory_and_streamed(tmp_path):
    fill(tmp_path, {"ant": 10, "bee": 10})
    memory, streamed = (
        prepare(
            source.read(settings(tmp_path), None, memory_bytes=limit),
            train_samples=None,
            validation_samples=None,
            split_seed=0,
        )
        for limit in (2**20, 0)
    )
    assert isinstance(memory.train, BytePart)
    assert isinstance(streamed.train, StreamedPart)
    assert streamed.preprocessing.mean == pytest.approx(memory.preprocessing.mean)
    assert torch.allclose(streamed.train.images[:12], memory.train.images[:], atol=1e-5)
    assert torch.equal(streamed.test().labels, memory.test().labels)


def test_only_the_images_of_the_subset_are_decoded(tmp_path):
    fill(tmp_path, {"ant": 10, "bee": 10})
    small = load(settings(tmp_path, train_samples=4, validation_samples=2))
    assert (len(small.train), len(small.validation)) == (4, 2)
    whole = load(settings(tmp_path), root=tmp_path.parent / "root")
    assert len(whole.train) == 12


def test_decoded_images_are_cached_until_a_file_changes(tmp_path):
    root = tmp_path / "root"
    fill(tmp_path / "own", {"ant": 5, "bee": 5})
    first = load(settings(tmp_path / "own"), root=root)
    assert torch.equal(load(settings(tmp_path / "own"), root=root).train.images[:], first.train.images[:])
    cached = len(list((root / "cache").iterdir()))
    for path in sorted((tmp_path / "own" / "ant").iterdir()):
        draw(path, 77, size=(30, 20))
    assert not torch.equal(load(settings(tmp_path / "own"), root=root).train.images[:], first.train.images[:])
    assert len(list((root / "cache").iterdir())) == 2 * cached


def test_test_images_are_not_opened_before_the_test(tmp_path):
    for split in ("train", "val", "test"):
        fill(tmp_path / split, {"ant": 4, "bee": 4})
    (tmp_path / "test" / "ant" / "000.png").write_bytes(b"broken")
    splits = load(settings(tmp_path))
    with pytest.raises(DataCorrupt, match=r"test/ant/000\.png must be a whole image"):
        splits.test()


@pytest.mark.parametrize("keep", [1, 30, 200])
def test_a_truncated_image_is_named(tmp_path, keep):
    fill(tmp_path, {"ant": 5, "bee": 5})
    for path in sorted((tmp_path / "bee").iterdir()):
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataCorrupt, match=r"bee/00\d\.png must be a whole image, got: .*repair or remove it"):
        load(settings(tmp_path))


def test_a_class_of_empty_files_is_named_with_the_reason(tmp_path):
    fill(tmp_path, {"ant": 5, "bee": 5})
    for path in (tmp_path / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataUnsuitable, match=r"has none for 'bee'.*passed over: empty files: 5"):
        load(settings(tmp_path))


def test_other_files_are_passed_over(tmp_path):
    fill(tmp_path, {"ant": 5, "bee": 5, ".hidden": 3})
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "ant" / ".000.png").write_text("not an image either")
    (tmp_path / "README").write_text("about these images")
    splits = load(settings(tmp_path))
    assert splits.class_names == ("ant", "bee")
    assert len(splits.train) + len(splits.validation) + len(splits.test()) == 10


def test_the_image_size_is_64_unless_set(tmp_path):
    fill(tmp_path, {"ant": 5, "bee": 5})
    assert load(settings(tmp_path, image_size=None)).shape == (3, 64, 64)
    assert load(settings(tmp_path, image_size=16)).shape == (3, 16, 16)


def test_an_empty_class_is_named(tmp_path):
    fill(tmp_path, {"ant": 5, "bee": 5})
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataUnsuitable, match=r"every class needs an image, but .* has none for 'cow'; add images"):
        load(settings(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_missing_in_a_split_is_named(tmp_path, split):
    for name in ("train", "val", "test"):
        fill(tmp_path / name, {"ant": 3, "bee": 3, "cow": 3 if name != split else 0})
    with pytest.raises(DataUnsuitable, match=f"{split} has none for 'cow'"):
        load(settings(tmp_path))


def test_a_class_that_is_not_in_training_is_named(tmp_path):
    fill(tmp_path / "train", {"ant": 5, "bee": 5})
    fill(tmp_path / "val", {"ant": 5, "bee": 5, "cow": 5})
    with pytest.raises(DataUnsuitable, match="no class that is not in train, got cow"):
        load(settings(tmp_path))


def test_a_class_too_small_to_be_divided_is_named(tmp_path):
    fill(tmp_path, {"ant": 9, "bee": 2})
    with pytest.raises(DataUnsuitable, match=r"1 of 2 classes have none in the train split .*'bee'"):
        load(settings(tmp_path))


def test_a_single_class_is_refused(tmp_path):
    fill(tmp_path, {"ant": 9})
    with pytest.raises(DataUnsuitable, match="must have two or more classes, got 1"):
        load(settings(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataMissing, match=r"needs an existing folder, got .*nowhere"):
        load(settings(tmp_path / "nowhere"))


def test_images_that_are_cut_at_random_are_cut_in_training_alone(tmp_path):
    fill(tmp_path / "own", {"ant": 10, "bee": 10})
    splits = load(settings(tmp_path / "own", augment="resized-crop-flip"), root=tmp_path / "root")
    assert isinstance(splits.train, StreamedPart)
    assert splits.train.files.resize_size == 9  # eight sevenths of 8
    assert splits.train.files.cache is not None
    assert splits.shape == (3, 8, 8)
    loader = Loader(splits.train, 4, augment="resized-crop-flip")
    plain = [images for images, _ in loader.batches()]
    assert torch.equal(torch.cat(plain), splits.train.images[:])
    varied = [images for images, _ in loader.batches(torch.Generator().manual_seed(0))]
    assert not torch.equal(torch.cat(varied).sort(0).values, torch.cat(plain).sort(0).values)
    assert isinstance(splits.test(), StreamedPart)


def test_a_shorter_side_can_be_asked_for_without_random_crops(tmp_path):
    fill(tmp_path, {"ant": 10, "bee": 10})
    larger, whole = (load(settings(tmp_path, resize_size=size)) for size in (16, None))
    assert larger.train.images[:].shape == whole.train.images[:].shape
    assert not torch.equal(larger.train.images[:], whole.train.images[:])


def test_a_pattern_keeps_groups_whole(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(20):
            pixels = np.full((9, 9, 3), 10 * (number // 2), dtype=np.uint8)  # the shade tells the nest
            Image.fromarray(pixels).save(tmp_path / label / f"nest{number // 2}-{number}.png")
    given = DataSettings(name="imagefolder", folder=str(tmp_path), image_size=8, group_pattern="<nest#>-*")
    splits = load(given)
    nests = [set(part.pixels[:, 0, 0, 0].tolist()) for part in (splits.train, splits.validation, splits.test())]
    assert sum(map(len, nests)) == len(set.union(*nests)) == 10
    assert splits.groups == {"train": (6, 6), "validation": (2, 2), "test": (2, 2)}
    with pytest.raises(DataUnsuitable, match=r"must match every image, but '<nest#>_\*' does not match 40 of 40"):
        load(replace(given, group_pattern="<nest#>_*"))
