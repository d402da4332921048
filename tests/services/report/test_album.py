"""Images of the data for a report: as they are, small, and the test images only when they are asked for."""

import torch

from nas_blockout.data import Preprocessing, Splits
from nas_blockout.data.tensor_dataset import Labeled
from services.report.album import MOST_PIXELS, Album


def splits(pixels: torch.Tensor, labels: list[int]) -> Splits:
    images = Labeled(pixels, torch.tensor(labels))
    channels = pixels.shape[1]
    preprocessing = Preprocessing(channels, *pixels.shape[2:], mean=(0.4,) * channels, std=(0.2,) * channels)
    part = images.normalized(preprocessing)
    return Splits(part, part, preprocessing=preprocessing, class_names=("a", "b"), load_test=lambda: images)


def noise(count: int, channels: int, side: int) -> torch.Tensor:
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_gray_images_of_a_class_are_the_first_ones_and_unchanged() -> None:
    pixels = noise(4, 1, 8)
    found = Album(splits(pixels, [0, 1, 1, 1])).of_class(1, 2)
    assert [image.tolist() for image in found] == pixels[1:3, 0].tolist()
    assert found[0].dtype.name == "uint8"


def test_colors_come_last_and_large_images_are_made_small() -> None:
    found = Album(splits(noise(2, 3, 3 * MOST_PIXELS), [0, 1])).of_class(0, 5)
    assert [image.shape for image in found] == [(MOST_PIXELS, MOST_PIXELS, 3)]


def test_the_test_images_are_read_once_and_only_when_they_are_asked_for() -> None:
    pixels = noise(4, 1, 8)
    data = splits(pixels, [0, 1, 0, 1])
    album = Album(data)
    assert album.of_class(0, 1)
    assert data.test_reads == 0
    assert [image.tolist() for image in album.of_test([3, 0])] == pixels[[3, 0], 0].tolist()
    assert album.test_labels.tolist() == [0, 1, 0, 1]
    assert album.of_test([]) == []
    assert data.test_reads == 1
