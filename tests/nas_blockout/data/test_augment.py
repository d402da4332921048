import pytest
import torch
from torch import Tensor

from nas_blockout.data import Loader, Part
from nas_blockout.data.augment import AUGMENT, cutout, flip, shift


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 64, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(9)) + 1


def shifted_slowly(image: Tensor, down: int, right: int, background: Tensor) -> Tensor:
    """Return the image moved pixel by pixel."""
    moved = background.expand_as(image).clone()
    height, width = image.shape[1:]
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                moved[:, row + down, column + right] = image[:, row, column]
    return moved


def test_a_shift_moves_each_image_by_one_of_the_offsets():
    images = pictures(count=12)
    background = torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1)
    for image, moved in zip(images, shift(images, seeded(), background), strict=True):
        candidates = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        matches = [at for at in candidates if torch.allclose(shifted_slowly(image, *at, background), moved, atol=1e-6)]
        assert len(matches) == 1


def test_all_shifts_occur():
    images = torch.zeros(2000, 1, 8, 8)
    images[:, :, 4, 4] = 1
    moved = shift(images, seeded(), torch.zeros(1, 1, 1))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = pictures(count=400)
    flipped = flip(images, seeded())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert torch.all(mirrored ^ kept)
    assert 150 < int(mirrored.sum()) < 250


def test_a_cutout_is_one_square_of_a_quarter_of_the_side():
    images = pictures(count=300)
    holes = cutout(images, seeded()).eq(0)
    assert torch.equal(holes[:, 0], holes[:, 1])
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), heights * widths)
    assert int(heights.max()) == int(widths.max()) == 4
    assert int(heights.min()) >= 2


@pytest.mark.parametrize("name", [name for name in AUGMENT if name != "none"])
def test_images_of_a_batch_vary_independently(name):
    part = Part(pictures(count=1).expand(64, -1, -1, -1).contiguous(), torch.zeros(64, dtype=torch.int64), (0.0,) * 3)
    images, _ = next(Loader(part, 64, augment=name).batches(seeded()))
    assert len(images.flatten(1).unique(dim=0)) > 10


@pytest.mark.parametrize("name", [name for name in AUGMENT if name != "none"])
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (3, 3, 28, 32), (1, 2, 4, 4)])
def test_shape_and_dtype_are_kept(name, shape):
    part = Part(torch.rand(shape, generator=seeded()), torch.zeros(shape[0], dtype=torch.int64))
    images, _ = next(Loader(part, 8, augment=name).batches(seeded()))
    assert (images.shape, images.dtype) == (torch.Size(shape), torch.float32)
