import gc
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from nas_blockout.data import DataCorrupt, Loader, Part, Placement, StreamedPart
from nas_blockout.data.preprocessing import measure
from nas_blockout.data.streaming import ImageFiles
from nas_blockout.data.streaming.decoders import Decoders

COUNT, SIDE = 23, 8


def draw(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 17, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def part(tmp_path):
    paths = tuple(tmp_path / f"{number}.png" for number in range(COUNT))
    for number, path in enumerate(paths):
        draw(path, number)
    files = ImageFiles(paths, torch.arange(COUNT), SIDE, resize_size=10)
    return files.normalized(measure(files.scaled()))


def passes(part: StreamedPart, *, epochs: int, batch_size: int = 5) -> list[list[torch.Tensor]]:
    loader = Loader(part, batch_size, augment="resized-crop-flip")
    found = []
    for epoch in range(epochs):
        found.append([images for images, _ in loader.batches(torch.Generator().manual_seed(epoch))])
    return found


def test_the_number_of_processes_changes_no_number(part):
    alone, one, two = (passes(StreamedPart(part.files, part.preprocessing, workers), epochs=2) for workers in range(3))
    stays = passes(part.placed(Placement(decoders=2)), epochs=2)
    for others in (one, two, stays):
        assert all(torch.equal(a, b) for x, y in zip(alone, others, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])


def test_an_epoch_is_the_same_after_any_other(part):
    placed = part.placed(Placement())
    straight = passes(placed, epochs=2)
    loader = Loader(placed, 5, augment="resized-crop-flip")
    next(iter(loader.batches(torch.Generator().manual_seed(9))))  # a pass that is given up
    gc.collect()
    resumed = [images for images, _ in loader.batches(torch.Generator().manual_seed(1))]
    assert all(torch.equal(a, b) for a, b in zip(straight[1], resumed, strict=True))


def test_a_pass_from_a_batch_on_reads_the_rest_of_the_whole_pass(part):
    loader = Loader(StreamedPart(part.files, part.preprocessing, 0), 5, augment="resized-crop-flip")
    whole = list(loader.batches(torch.Generator().manual_seed(1)))
    for path in {*part.files.paths}:
        path.unlink()
    for number in torch.cat([labels for _, labels in whole[3:]]).tolist():  # labels are the numbers of the files
        draw(part.files.paths[number], number)
    rest = list(loader.batches(torch.Generator().manual_seed(1), 3))
    for (images, labels), (others, same) in zip(whole[3:], rest, strict=True):
        assert torch.equal(labels, same)
        assert torch.equal(images, others)


def _process(number: int, choices: torch.Tensor | None) -> torch.Tensor:
    return torch.full((3, 1, 1), os.getpid() % 256, dtype=torch.uint8)


def test_processes_stay_between_passes_and_end_with_their_owner():
    before = set(multiprocessing.active_children())
    decoders = Decoders(_process, 2)
    numbers = torch.arange(20).split(2)
    first = {int(batch[0, 0, 0, 0]) for batch in decoders.batches(numbers)}
    second = {int(batch[0, 0, 0, 0]) for batch in decoders.batches(numbers)}
    assert len(set(multiprocessing.active_children()) - before) == 2
    assert first == second
    del decoders
    gc.collect()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("passing", [True, False])
def test_processes_of_an_owner_that_only_the_collector_finds_are_asked_to_end(passing, monkeypatch):
    """Their pipes are still open then; they would be waited for and killed otherwise."""
    killed: list[object] = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "terminate", killed.append)
    before = set(multiprocessing.active_children())
    owner: dict[str, object] = {"decoders": Decoders(_process, 2)}
    batches = owner["decoders"].batches(torch.arange(20).split(2))
    owner |= {"owner": owner, "batches": batches if passing else list(batches)}
    next(iter(owner["batches"]))
    started = set(multiprocessing.active_children()) - before
    del owner, batches
    gc.collect()
    monkeypatch.undo()
    for process in killed:
        process.terminate()
    assert len(started) == 2
    assert not killed


def test_two_passes_at_once_get_what_each_asked_for():
    decoders = Decoders(_number, 2)
    numbers = torch.arange(12).split(3)
    for one, other in zip(decoders.batches(numbers), decoders.batches(numbers[::-1]), strict=True):
        assert int(one[0, 0, 0, 0]) + int(other[-1, 0, 0, 0]) == 11


def _number(number: int, choices: torch.Tensor | None) -> torch.Tensor:
    return torch.full((3, 1, 1), number, dtype=torch.uint8)


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_file_that_is_lost_between_passes_is_named_and_the_others_can_be_read_on(part, damage):
    placed = part.placed(Placement())
    passes(placed, epochs=1)
    lost = part.files.paths[7]
    whole = lost.read_bytes()
    if damage == "gone":
        lost.unlink()
    else:
        lost.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataCorrupt, match=rf"^{lost} must be a whole image, got: .* repair or remove it$"):
        passes(placed, epochs=1)
    lost.write_bytes(whole)
    assert len(passes(placed, epochs=1)[0]) == 5


def test_decoders_travel_without_their_processes(part):
    placed = part.placed(Placement())
    passes(placed, epochs=1)
    sent = pickle.loads(pickle.dumps(placed))
    assert all(torch.equal(a, b) for a, b in zip(passes(placed, epochs=1)[0], passes(sent, epochs=1)[0], strict=True))


def test_crops_of_images_in_memory_are_refused():
    memory = Part(torch.zeros(4, 3, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match="'resized-crop-flip' cuts whole images of files, got Part in memory"):
        Loader(memory, 2, augment="resized-crop-flip")


def test_batches_of_files_are_normalized_on_the_device(part):
    placed = part.placed(Placement("meta"))
    batches = list(Loader(placed, 6, augment="resized-crop-flip").batches(torch.Generator().manual_seed(0)))
    assert [images.shape for images, _ in batches] == [(6, 3, SIDE, SIDE)] * 3 + [(5, 3, SIDE, SIDE)]
    assert all(x.device.type == y.device.type == "meta" for x, y in batches)


def test_without_crops_images_are_their_middles(part):
    images = torch.cat([images for images, _ in Loader(part.placed(Placement()), 5).batches()])
    expected = torch.stack([part.files.decode(path) for path in part.files.paths])
    assert torch.equal(images, part.preprocessing.on("cpu")(expected))
    assert torch.equal(images[3:6], part.images[3:6])
