"""Images with transparency and with more than eight bits, as a study and as `predict` read them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nas_blockout.data.streaming import decode
from nas_blockout.data.streaming.image_io import read_image

SHADES = {"white": 1.0, "black": 0.0, "gray": 128 / 255}


def both(path: Path, background: str = "white", *, side: int = 8) -> torch.Tensor:
    """The image, which both readers see alike: shape (3, side, side), values in [0, 1]."""
    read = read_image(path, 3, (side, side), background=background)
    assert torch.equal(read, decode(path, side, background).float() / 255)
    return read


def half_transparent(mode: str) -> Image.Image:
    """Red on the left; on the right fully transparent, with green hidden below."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (4, 0, 8, 8))
    return image.convert(mode)


@pytest.mark.parametrize("background", SHADES)
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_a_background_shows_where_an_image_is_transparent(tmp_path: Path, name: str, background: str) -> None:
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    half_transparent("RGBA").save(tmp_path / name, **options)
    found = both(tmp_path / name, background)
    assert found[:, 0, 0].tolist() == [1, 0, 0]
    assert found[:, 0, 7].tolist() == pytest.approx([SHADES[background]] * 3)


def test_half_transparent_pixels_are_mixed_and_not_rounded(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert both(tmp_path / "a.png").unique().tolist() == pytest.approx([0.8])


def test_the_hidden_color_shows_only_where_it_is_asked_for(tmp_path: Path) -> None:
    half_transparent("RGBA").save(tmp_path / "a.png")
    assert both(tmp_path / "a.png", "dropped")[:, 0, 7].tolist() == [0, 1, 0]


@pytest.mark.parametrize("mode", ["P", "LA", "L", "RGB"])
def test_every_kind_of_transparency_is_seen(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.paste(1, (4, 0, 8, 8))
        image.save(tmp_path / "a.png", transparency=1)
    elif mode == "LA":
        half_transparent("LA").save(tmp_path / "a.png")
    else:  # one color of the image is declared transparent
        image = Image.new(mode, (8, 8), 0)
        image.paste(90 if mode == "L" else (90, 80, 70), (4, 0, 8, 8))
        image.save(tmp_path / "a.png", transparency=90 if mode == "L" else (90, 80, 70))
    assert both(tmp_path / "a.png")[:, 0, 7].tolist() == [1, 1, 1]
    assert both(tmp_path / "a.png", "black")[:, 0, 7].tolist() == [0, 0, 0]
    assert read_image(tmp_path / "a.png", 1, (8, 8), background="white")[0, 0, 7] == 1


def ramp(low: float, high: float, kind: str) -> NDArray[np.generic]:
    return np.linspace(low, high, 64).reshape(8, 8).astype(kind)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, (0, 1)), (0.2, 0.4, (0.2, 0.4)), (-3, 5, (0, 1)), (0, 255, (0, 1)), (1e4, 1e6, (0, 1))],
)
def test_floating_point_images_are_shares_or_go_by_their_range(
    tmp_path: Path, low: float, high: float, expected: tuple[float, float]
) -> None:
    Image.fromarray(ramp(low, high, "float32")).save(tmp_path / "a.tif")
    found = both(tmp_path / "a.tif")
    assert (float(found.min()), float(found.max())) == pytest.approx(expected, abs=0.003)
    assert torch.all(found.flatten(1).diff() >= 0), "from dark to light, as in the file"


def test_values_that_are_not_finite_are_the_smallest(tmp_path: Path) -> None:
    values = np.array([[np.nan, 2.0], [np.inf, 4.0]], dtype="float32").repeat(4, 0).repeat(4, 1)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert both(tmp_path / "a.tif")[0, ::4, ::4].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_images_of_16_bits_keep_their_brightness(tmp_path: Path, name: str) -> None:
    Image.fromarray(ramp(0, 65535, "uint16")).save(tmp_path / name)
    found = both(tmp_path / name)
    assert (found.min(), found.max()) == (0, 1)
    Image.fromarray(ramp(0, 6553.5, "uint16")).save(tmp_path / name)
    assert float(both(tmp_path / name).max()) == pytest.approx(0.1, abs=0.004)


def test_whole_numbers_beyond_16_bits_go_by_their_range(tmp_path: Path) -> None:
    Image.fromarray(ramp(-70_000, 900_000, "int32")).save(tmp_path / "a.tif")
    found = both(tmp_path / "a.tif")
    assert (found.min(), found.max()) == (0, 1)
    assert torch.all(found.flatten(1).diff() >= 0)
