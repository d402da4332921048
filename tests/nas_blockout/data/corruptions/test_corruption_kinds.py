"""Each kind against an independent oracle, or against what its description promises."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from nas_blockout.data.corruptions import blur, digital, noise, weather
from nas_blockout.data.corruptions.randomness import plasma


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=seeded(3))


def levels(images: Tensor) -> np.ndarray:
    return images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])


def test_gaussian_noise_has_its_deviation():
    gray = torch.full((50, 1, 20, 20), 0.5)
    added = noise.gaussian_noise(gray, seeded(), 0.1) - gray
    assert float(added.std()) == pytest.approx(0.1, rel=0.02)
    assert float(added.mean()) == pytest.approx(0, abs=0.002)


def test_shot_noise_has_the_variance_of_counted_photons():
    for value in (0.2, 0.8):
        noisy = noise.shot_noise(torch.full((50, 1, 20, 20), value), seeded(), 100)
        assert float(noisy.mean()) == pytest.approx(value, rel=0.02)
        assert float(noisy.var()) == pytest.approx(value / 100, rel=0.05)


def test_impulse_noise_sets_its_share_to_black_and_white_alike():
    noisy = noise.impulse_noise(torch.full((50, 1, 20, 20), 0.5), seeded(), 0.2)
    for extreme in (0, 1):
        assert float((noisy == extreme).float().mean()) == pytest.approx(0.1, rel=0.1)
    assert float((noisy == 0.5).float().mean()) == pytest.approx(0.8, rel=0.02)


def test_speckle_noise_grows_with_the_value_and_leaves_black():
    values = torch.tensor([0.0, 0.25, 0.75]).view(3, 1, 1, 1).expand(3, 1, 60, 60)
    deviations = noise.speckle_noise(values, seeded(), 0.2).std((1, 2, 3)).tolist()
    assert deviations == pytest.approx([0, 0.05, 0.15], rel=0.05)


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1, 2])
def test_smoothing_is_that_of_scipy(sigma):
    image = pictures(1, 2, 17, 23)
    expected = ndimage.gaussian_filter(image.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=6)
    assert np.allclose(blur.smooth(image, sigma).numpy(), expected, atol=2e-3)


def test_a_defocused_point_becomes_a_disk_of_the_same_light():
    point = torch.zeros(1, 1, 11, 11)
    point[0, 0, 5, 5] = 1
    disk = blur.defocus_blur(point, seeded(), 2.5)[0, 0]
    assert float(disk.sum()) == pytest.approx(1, abs=1e-5)
    area = torch.pi * 2.5**2
    assert float(disk[5, 5]) == pytest.approx(1 / area, rel=0.02)
    assert float(disk[5, 7]) == pytest.approx(1 / area, rel=0.02)
    assert float(disk[5, 8]) < 0.2 / area
    assert torch.allclose(disk, disk.T)


def test_glass_moves_pixels_and_invents_none():
    images = pictures(4, 3, 12, 10)
    moved = blur.glass_blur(images, seeded(), 0.01, 1, 1, 2)
    colors = [batch.flatten(2).transpose(1, 2) for batch in (images, moved)]
    for before, after in zip(*colors, strict=True):
        assert torch.equal(before.unique(dim=0), after.unique(dim=0))
    assert not torch.equal(images, moved)


def test_glass_that_swaps_nothing_changes_nothing():
    images = pictures(2, 1, 9, 9)
    assert torch.allclose(blur.glass_blur(images, seeded(), 0.01, 1, 0, 1), images)


def test_glass_is_the_swaps_one_after_the_other():
    images = pictures(1, 1, 6, 5)
    generator = seeded(7)
    moves = torch.randint(-1, 1, (5, 4, 2, 1, 1), generator=generator)
    expected = images[0, 0].clone().numpy()
    for row in range(5, 0, -1):
        for column in range(4, 0, -1):
            down, right = moves[5 - row, 4 - column].flatten().tolist()
            other = expected[row + down, column + right]
            expected[row + down, column + right] = expected[row, column]
            expected[row, column] = other
    assert np.allclose(blur.glass_blur(images, seeded(7), 0.01, 1, 1, 1)[0, 0].numpy(), expected)


def test_motion_smears_along_the_given_line():
    point = torch.zeros(2, 1, 15, 15)
    point[:, 0, 7, 7] = 1
    across, down = blur.smear(point, torch.tensor([0.0, torch.pi / 2]), reach=3, sigma=2)[:, 0]
    assert float(across.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(across.nonzero()[:, 0].unique(), torch.tensor([7]))
    assert torch.allclose(across, down.T, atol=1e-5)
    line = across[7][across[7] > 0].tolist()
    assert len(line) == 7
    assert line == sorted(line)


def test_zooming_is_that_of_scipy():
    image = pictures(1, 1, 21, 21)
    matrix, center = np.eye(2) / 1.2, np.array([10.0, 10.0])
    expected = ndimage.affine_transform(image[0, 0].double().numpy(), matrix, center - matrix @ center, order=1)
    assert np.allclose(blur.zoom(image, 1.2)[0, 0].numpy(), expected, atol=1e-4)


def test_zoom_blur_keeps_the_center_and_blurs_the_rim():
    images = pictures(20, 1, 33, 33)
    change = (blur.zoom_blur(images, seeded(), 1.2) - images).abs().mean((0, 1))
    assert float(change[16, 16]) < 1e-5
    assert float(change[0].mean()) > 3 * float(change[15:18, 15:18].mean())


@pytest.mark.parametrize("outside", ["border", "reflection"])
def test_a_shift_by_whole_pixels_reads_the_pixel_there(outside):
    image = pictures(1, 3, 6, 7)
    shifted = blur.sample(image, torch.tensor([2.0, 1.0]).view(1, 1, 1, 2), outside=outside)
    assert torch.allclose(shifted[:, :, :-1, :-2], image[:, :, 1:, 2:], atol=1e-5)
    edge = image[:, :, 1:, -1] if outside == "border" else image[:, :, 1:, -3]
    assert torch.allclose(shifted[:, :, :-1, -1], edge, atol=1e-5)


def test_brightness_and_saturation_are_those_of_colorsys():
    image = pictures(1, 3, 5, 6)
    brighter = weather.brightness(image, seeded(), 0.2)
    stronger = digital.saturate(image, seeded(), 1.5, 0.1)
    for row in range(5):
        for column in range(6):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[0, :, row, column].tolist())
            expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
            assert brighter[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)
            expected = colorsys.hsv_to_rgb(hue, min(1.5 * saturation + 0.1, 1), value)
            assert stronger[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_brightness_of_gray_is_added():
    image = torch.tensor([0.0, 0.3, 0.95]).view(1, 1, 1, 3)
    assert weather.brightness(image, seeded(), 0.1).flatten().tolist() == pytest.approx([0.1, 0.4, 1.0])


def test_saturating_leaves_gray_pixels():
    gray = torch.full((1, 3, 2, 2), 0.4)
    assert torch.equal(digital.saturate(gray, seeded(), 2.5, 0.2), gray)


def test_contrast_keeps_the_mean_and_scales_the_rest():
    image = pictures(2, 3, 8, 8)
    flat = digital.contrast(image, seeded(), 0.3)
    assert torch.allclose(flat.mean((2, 3)), image.mean((2, 3)), atol=1e-6)
    assert torch.allclose(flat.std((2, 3)), 0.3 * image.std((2, 3)), atol=1e-6)


def test_fog_is_no_brighter_than_the_image_and_lifts_the_dark():
    images = pictures(10, 1, 16, 16) * 0.8
    images[:, :, :4] = 0
    foggy = weather.fog(images, seeded(), 1.0, 2.0)
    assert torch.all(foggy.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-6)
    assert float(foggy[:, :, :4].mean()) > 0.1


def test_snow_only_brightens_and_falls_downwards():
    dark = torch.full((200, 1, 32, 32), 0.1)
    fallen = weather.snow(dark, seeded(), 0.1, 0.2, 1, 0.5, 10, 4, 1.0) - dark
    assert float(fallen.min()) >= 0
    steps_down, steps_across = (fallen.diff(dim=axis).abs().mean() for axis in (2, 3))
    assert float(steps_across) > 1.2 * float(steps_down)


def test_frost_whitens_dark_images_in_patches():
    black = torch.zeros(10, 3, 32, 32)
    iced = weather.procedural_frost(black, seeded(), 0.6)
    assert float(iced.min()) >= 0.6 * 0.35 * 0.85 - 1e-6
    assert torch.all(iced[:, 2] >= iced[:, 0])
    assert float(iced.std((2, 3)).min()) > 0.02
    assert torch.allclose(
        weather.procedural_frost(torch.ones(1, 1, 8, 8), seeded(), 0.6), torch.ones(1, 1, 8, 8), atol=0.05
    )


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_spatter_covers_its_share(share):
    gray = torch.full((10, 1, 32, 32), 0.5)
    for mud in (0, 1):
        change = (weather.spatter(gray, seeded(), share, 0.7, 1, mud) - gray).mean((1, 2, 3))
        color = float(weather.tint(weather._MUD if mud else weather._WATER, gray))
        expected = share * (color - 0.5 if mud else color)
        assert change.tolist() == pytest.approx([expected] * 10, rel=0.15)


def test_luma_weighs_green_most_and_leaves_gray():
    colors = torch.eye(3).view(3, 3, 1, 1)
    assert weather.luma(colors).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    gray = pictures(2, 1, 4, 4)
    assert torch.equal(weather.luma(gray), gray)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 8, 8), (1, 31, 20)])
@pytest.mark.parametrize("share", [0.95, 0.75, 0.5])
def test_pixelating_is_that_of_pillow(shape, share):
    images = pictures(3, *shape)
    found = levels(digital.pixelate(images, seeded(), share).clamp(0, 1)).astype(int)
    height, width = shape[1:]
    for image, pixelated in zip(levels(images), found, strict=True):
        small = to_pil(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        expected = np.asarray(small.resize((width, height), Image.Resampling.BOX)).reshape(image.shape)
        assert np.abs(pixelated - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 30, 27), (1, 8, 8), (3, 8, 8)])
@pytest.mark.parametrize("quality", [80, 50, 20])
def test_compressing_is_that_of_libjpeg(shape, quality):
    fields = plasma(torch.zeros(20 * shape[0], 1, *shape[1:]), 1.8, seeded())
    images = fields.view(20, *shape).mul(255).round() / 255
    found = levels(digital.jpeg_compression(images, seeded(), quality).clamp(0, 1)).astype(int)
    differences, losses = [], []
    for image, compressed in zip(levels(images), found, strict=True):
        file = io.BytesIO()
        to_pil(image).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(image.shape).astype(int)
        differences.append(np.abs(compressed - expected).mean())
        losses.append(np.abs(expected - image).mean())
    assert np.mean(differences) < 2
    assert np.mean(differences) < 0.3 * np.mean(losses)


def test_an_elastic_transform_that_moves_nothing_changes_nothing():
    images = pictures(3, 3, 16, 20)
    assert torch.allclose(digital.elastic_transform(images, seeded(), 0, 0.1, 0), images, atol=1e-5)


def test_skewing_moves_three_points_as_drawn():
    side, most = 33, 3.0
    shifts = digital._skewed(torch.zeros(4, 1, side, side), most, seeded())
    moves = most * (2 * torch.rand(4, 3, 2, generator=seeded(), dtype=torch.float64) - 1)
    linear = shifts.double()
    assert torch.allclose(linear[:, 1:-1] * 2, linear[:, 2:] + linear[:, :-2], atol=1e-4)  # a linear map
    for point, (across, down) in enumerate(((27, 27), (27, 5), (5, 5))):
        for image in range(4):
            place = moves[image, point] + torch.tensor([across, down])
            column, row = (int(value) for value in place.round())
            slope_down = linear[image, row + 1, column] - linear[image, row, column]
            slope_across = linear[image, row, column + 1] - linear[image, row, column]
            rest = place - torch.tensor([column, row])
            read = linear[image, row, column] + rest[0] * slope_across + rest[1] * slope_down
            assert torch.allclose(read, -moves[image, point], atol=1e-3)


def test_plasma_fills_its_range_and_is_the_smoother_the_larger_the_decay():
    blank = torch.zeros(30, 3, 28, 20)
    rough, smooth = (plasma(blank, decay, seeded()) for decay in (1.2, 3))
    for field in (rough, smooth):
        assert field.shape == (30, 1, 28, 20)
        assert float(field.min()) >= 0
        assert float(field.max()) <= 1
        assert float(field.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(rough.diff(dim=2).abs().mean()) > 2 * float(smooth.diff(dim=2).abs().mean())


def test_averaging_reads_every_pixel_once():
    for count, fewer in ((28, 21), (8, 7), (32, 32), (5, 1)):
        matrix = digital.averaging(count, fewer)
        assert torch.allclose(matrix.sum(1), torch.ones(fewer, dtype=torch.float64))
        assert matrix.gt(0).sum(0).tolist() == [1] * count
