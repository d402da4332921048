import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from nas_blockout.data.streaming import ImageFiles
from nas_blockout.data.streaming.image_io import read_image
from nas_blockout.data.streaming.random_crops import CHOICES, RATIO, SCALE, crop_of, draw_crops, middle
from nas_blockout.lazy_torchvision import torchvision


def choices(count: int, seed: int = 0) -> torch.Tensor:
    return draw_crops(count, (1, 1), torch.Generator().manual_seed(seed)).T


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_inside_the_image(height, width, seed):
    for each in choices(4, seed):
        top, left, high, wide = crop_of(each, height, width)
        assert 0 <= top <= top + high <= height
        assert 0 <= left <= left + wide <= width
        assert min(high, wide) >= 1


@pytest.mark.parametrize(("height", "width"), [(256, 341), (300, 256)])
def test_crops_have_the_law_of_torchvision(height, width):
    count = 4000
    with torch.random.fork_rng():
        torch.manual_seed(7)
        draw = torchvision.transforms.RandomResizedCrop.get_params
        image = torch.empty(3, height, width)
        theirs = np.array([draw(image, list(SCALE), list(RATIO)) for _ in range(count)], dtype=float)
    ours = np.array([crop_of(each, height, width) for each in choices(count)], dtype=float)
    found = {}
    for name, rows in (("ours", ours), ("theirs", theirs)):
        top, left, high, wide = rows.T
        found[name] = (high * wide, wide / high, top / (height - high + 1), left / (width - wide + 1), top, left)
    for mine, other in zip(*found.values(), strict=True):
        assert ks_2samp(mine, other).pvalue > 1e-3


def test_the_law_is_told_from_another():
    ours = np.array([crop_of(each, 256, 341) for each in choices(4000)], dtype=float)
    assert ks_2samp(ours[:, 2] * ours[:, 3], np.linspace(0.2, 1, 4000) * 256 * 341).pvalue < 1e-6


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))])
def test_where_no_attempt_fits_the_middle_is_taken_at_the_nearest_ratio(height, width, expected):
    largest = torch.full((CHOICES,), 0.999)
    largest[1:-2:2] = 0.5  # a square with the area of the image
    assert crop_of(largest, height, width) == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_is_resized_as_torchvision_does(seed):
    files = ImageFiles((), torch.zeros(0, dtype=torch.int64), 32, resize_size=37)
    pixels, each = picture(37, 60), choices(1, seed)[0]
    top, left, high, wide = crop_of(each, 37, 60)
    functional = torchvision.transforms.v2.functional
    expected = functional.resized_crop(Image.fromarray(pixels), top, left, high, wide, [32, 32])
    assert torch.equal(files.cut(pixels, each), functional.pil_to_tensor(expected))


@pytest.mark.parametrize("size", [(50, 91), (91, 50), (64, 64)])
def test_an_image_is_evaluated_on_what_torchvision_cuts_out(tmp_path, size):
    path = tmp_path / "image.png"
    Image.fromarray(picture(*size)).save(path)
    v2 = torchvision.transforms.v2
    transform = v2.Compose([v2.Resize(37), v2.CenterCrop(32), v2.PILToTensor()])
    files = ImageFiles((path,), torch.zeros(1, dtype=torch.int64), 32, resize_size=37)
    with Image.open(path) as image:
        assert torch.equal(files.decode(path), transform(image))
    # What `predict` reads is what the network was tested on.
    assert torch.equal(files.decode(path).float() / 255, read_image(path, 3, (32, 32), resize_size=37))


def test_the_middle_is_in_the_middle():
    assert middle(37, 60, (32, 32)) == (2, 14, 32, 32)
