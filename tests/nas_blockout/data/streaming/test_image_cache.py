import errno
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_blockout.data import DataCorrupt, DataUnsuitable, Loader, Placement, StreamedPart
from nas_blockout.data.preprocessing import measure
from nas_blockout.data.streaming import ImageFiles
from nas_blockout.data.streaming.image_cache import CachedImages, cached_images

COUNT, SIDE, SHORT = 13, 8, 11


def draw(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(9, 30, 2)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def files(tmp_path):
    paths = tuple(tmp_path / f"{number}.png" for number in range(COUNT))
    for number, path in enumerate(paths):
        draw(path, number)
    return ImageFiles(paths, torch.arange(COUNT) % 3, SIDE, root=tmp_path / "root", resize_size=SHORT)


def part_of(files: ImageFiles) -> StreamedPart:
    return files.normalized(measure(files.scaled()))


def folders(files: ImageFiles) -> list[str]:
    assert files.root is not None
    cache = files.root / "cache"
    return [path.name for path in cache.iterdir() if path.is_dir()] if cache.is_dir() else []


@pytest.mark.parametrize("resize_size", [SHORT, None])
@pytest.mark.parametrize("augment", ["none", "shift-flip", "resized-crop-flip"])
def test_batches_are_the_same_with_and_without_a_cache(files, resize_size, augment):
    if augment == "resized-crop-flip" and resize_size is None:
        pytest.skip("crops need whole images")
    files = ImageFiles(files.paths, files.labels, SIDE, files.root, memory_bytes=0, resize_size=resize_size)
    part = part_of(files)
    decoded, cached = (part.placed(Placement(image_cache=each)) for each in ("none", "disk"))
    assert (decoded.files.cache, type(cached.files.cache)) == (None, CachedImages)
    for seed in (None, 3):
        generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
        loaders = [Loader(each, 5, augment=augment) for each in (decoded, cached)]
        passes = [loader.batches(generator) for loader, generator in zip(loaders, generators, strict=True)]
        for (images, labels), (others, other_labels) in zip(*passes, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)


def test_files_are_decoded_once(files):
    part_of(files).placed(Placement(image_cache="disk"))
    for path in files.paths:  # of the same size and time, so that they count as what they were
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = files.cached().cache
    assert again is not None
    assert len(again) == COUNT
    with pytest.raises(DataCorrupt):
        files.decode(files.paths[0])


def test_a_changed_file_and_another_size_get_a_cache_of_their_own(files):
    part = part_of(files)
    part.placed(Placement(image_cache="disk"))
    draw(files.paths[0], 77)
    part.placed(Placement(image_cache="disk"))
    assert len(folders(files)) == 2
    replace(part, files=replace(files, resize_size=12)).placed(Placement(image_cache="disk"))
    assert len(folders(files)) == 3


def test_what_would_fit_into_memory_is_cached_unasked_if_it_is_cut(files):
    loaded = files.loaded()
    assert isinstance(loaded, ImageFiles)
    assert loaded.cache is not None
    assert loaded.cached() is loaded
    for other in (replace(files, memory_bytes=0), replace(files, root=None)):
        assert other.loaded() is other


def test_a_subset_of_cached_images_is_that_of_the_files(files):
    index = torch.tensor([7, 2, 11])
    cached, decoded = files.cached().at(index), files.at(index)
    assert len(cached.cache) == 3
    for number in range(3):
        assert torch.equal(cached.read(number), decoded.read(number))
    assert torch.equal(cached.at(torch.tensor([2])).read(0), files.read(11))
    assert torch.equal(pickle.loads(pickle.dumps(cached)).read(1), files.read(2))


def test_without_a_data_root_a_cache_is_refused(files):
    part = part_of(replace(files, root=None))
    with pytest.raises(DataUnsuitable, match="an image cache needs a data root, got none; set NAS_BLOCKOUT_DATA"):
        part.placed(Placement(image_cache="disk"))


def test_bad_files_are_named_together_and_nothing_is_left(files):
    for number in (2, 9):
        files.paths[number].write_bytes(b"no image")
    with pytest.raises(DataCorrupt, match=r"2 images cannot be read:(?s:.*)2\.png(?s:.*)9\.png"):
        files.cached()
    assert folders(files) == []


def test_a_file_that_is_gone_is_named(files):
    files.paths[4].unlink()
    with pytest.raises(DataCorrupt, match=r"4\.png must be a whole image, got: .*No such file"):
        files.cached()


def _open(files: ImageFiles, results) -> None:
    cache = files.cached().cache
    assert cache is not None
    results.put((str(cache.folder), int(sum(cache[number].sum(dtype=np.int64) for number in range(COUNT)))))


def test_processes_that_write_at_once_get_one_cache(files):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(files, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(found) == 1
    assert len(folders(files)) == 1
    expected = sum(int(files.pixels(path).sum(dtype=np.int64)) for path in files.paths)
    assert {total for _, total in found} == {expected}


def test_too_little_space_is_said_before_anything_is_written(files, monkeypatch):
    usage = shutil.disk_usage(files.paths[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(
        DataUnsuitable,
        match=r"must have space for 13 decoded images, got 0\.0 GB free for .*image_cache: none",
    ):
        files.cached()
    assert folders(files) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(files, tmp_path):
    asked: list[Path] = []

    def full(path: Path) -> np.ndarray:
        asked.append(path)
        if len(asked) > COUNT + 5:  # all have been asked for their size by then, and some have been written
            raise OSError(errno.ENOSPC, "No space left on device")
        return files.pixels(path)

    with pytest.raises(DataUnsuitable, match=r"the disk that holds .* must have space"):
        cached_images(tmp_path / "cache" / "one", files.paths, full)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".one.lock"]


def test_a_damaged_cache_is_named(files):
    cache = files.cached().cache
    assert cache is not None
    with (cache.folder / "pixels.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataCorrupt, match=r"pixels\.bin must have \d+ bytes, got 100; delete that folder"):
        files.cached()


def test_a_cache_travels_as_the_name_of_its_folder(files):
    cache = files.cached().cache
    assert cache is not None
    sent = pickle.dumps(cache)
    assert len(sent) < 500 + len(str(cache.folder))
    assert np.array_equal(pickle.loads(sent)[3], cache[3])
