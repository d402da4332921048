import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.data import Loader, Part
from nas_blockout.data.augment import AUGMENT, CUTOUT, FLIP, RESIZED_CROP, SHIFT, Variation

# Those of pixels need more than a part, and are tested beside their code.
IN_MEMORY = [
    name
    for name, variations in AUGMENT.items()
    if variations and RESIZED_CROP not in variations and not any(each.of_pixels for each in variations)
]


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


def vary(variation: Variation, images: Tensor, generator: torch.Generator, background: Tensor | None = None) -> Tensor:
    side = (images.shape[2], images.shape[3])
    assert variation.apply is not None
    return variation.apply(images, variation.draw(len(images), side, generator), background)


def one_by_one(images: Tensor, generator: torch.Generator, background: Tensor, name: str) -> Tensor:
    """Vary one batch with draws of its own, image by image: how it was before passes were drawn."""
    count, _, height, width = images.shape
    down, right = height // 8, width // 8
    padded = F.pad(images - background, (right, right, down, down))
    tops = torch.randint(2 * down + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(2 * right + 1, (count,), generator=generator).tolist()
    places = zip(padded, tops, lefts, strict=True)
    images = (
        torch.stack([image[:, top : top + height, left : left + width] for image, top, left in places]) + background
    )
    if "flip" in name:
        mirrored = torch.rand(count, generator=generator).lt(0.5).tolist()
        images = torch.stack([image.flip(-1) if each else image for image, each in zip(images, mirrored, strict=True)])
    if "cutout" in name:
        size = max(1, min(height, width) // 4)
        tops = (torch.randint(height, (count, 1), generator=generator)[:, 0] - size // 2).tolist()
        lefts = (torch.randint(width, (count, 1), generator=generator)[:, 0] - size // 2).tolist()
        for image, top, left in zip(images, tops, lefts, strict=True):
            image[:, max(0, top) : top + size, max(0, left) : left + size] = 0
    return images


@pytest.mark.parametrize("name", ["shift", "shift-cutout", "shift-flip", "shift-flip-cutout"])
@pytest.mark.parametrize("shape", [(23, 1, 8, 8), (23, 3, 28, 16)])
def test_a_pass_drawn_at_once_is_that_of_batches_drawn_one_by_one(name, shape):
    part = Part(
        torch.rand(shape, generator=seeded(1)), torch.arange(23), tuple(-0.5 * (c + 1) for c in range(shape[1]))
    )
    background = torch.tensor(part.background).view(-1, 1, 1)
    generator, theirs = seeded(4), seeded(4)
    for _ in range(2):  # the generator stands where it stood: the second pass is the same, too
        torch.randperm(23, generator=theirs)
        for images, labels in Loader(part, 5, augment=name).batches(generator):
            assert torch.equal(images, one_by_one(part.images[labels], theirs, background, name))
    assert torch.equal(generator.get_state(), theirs.get_state())


def test_a_shift_moves_each_image_by_one_of_the_offsets():
    images = pictures(count=12)
    background = torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1)
    for image, moved in zip(images, vary(SHIFT, images, seeded(), background), strict=True):
        candidates = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        matches = [at for at in candidates if torch.allclose(shifted_slowly(image, *at, background), moved, atol=1e-6)]
        assert len(matches) == 1


def test_all_shifts_occur():
    images = torch.zeros(2000, 1, 8, 8)
    images[:, :, 4, 4] = 1
    moved = vary(SHIFT, images, seeded())
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = pictures(count=400)
    flipped = vary(FLIP, images, seeded())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert torch.all(mirrored ^ kept)
    assert 150 < int(mirrored.sum()) < 250


def test_a_cutout_is_one_square_of_a_quarter_of_the_side():
    images = pictures(count=300)
    holes = vary(CUTOUT, images, seeded()).eq(0)
    assert torch.equal(holes[:, 0], holes[:, 1])
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), heights * widths)
    assert int(heights.max()) == int(widths.max()) == 4
    assert int(heights.min()) >= 2


@pytest.mark.parametrize("name", IN_MEMORY)
def test_images_of_a_batch_vary_independently(name):
    part = Part(pictures(count=1).expand(64, -1, -1, -1).contiguous(), torch.zeros(64, dtype=torch.int64), (0.0,) * 3)
    images, _ = next(Loader(part, 64, augment=name).batches(seeded()))
    assert len(images.flatten(1).unique(dim=0)) > 10


@pytest.mark.parametrize("name", IN_MEMORY)
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (3, 3, 28, 32), (1, 2, 4, 4)])
def test_shape_and_dtype_are_kept(name, shape):
    part = Part(torch.rand(shape, generator=seeded()), torch.zeros(shape[0], dtype=torch.int64))
    images, _ = next(Loader(part, 8, augment=name).batches(seeded()))
    assert (images.shape, images.dtype) == (torch.Size(shape), torch.float32)
