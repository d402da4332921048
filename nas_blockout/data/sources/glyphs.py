"""Glyphs: the printable ASCII characters 33..126, rendered from a folder of fonts, in 94 classes.

Gray images of 32x32 pixels, white ink on black. Every font is scaled to a cap height of 17 pixels, its capital H stands
on row 23, and every character is centered. What is left out: fonts with fewer than 62 of the characters, which
includes symbol fonts; fonts whose outlines are those of another; lower-case letters that look like their capital.

**The test is of unseen designs**: fonts are divided by family. A fifth of the families, by a hash of the family's
name, is the test, at every seed; a tenth of all, by a hash that depends on `split_seed`, is for validation. The family
is the first word of a font's name ("DB Layer 1" and "DB Layer 2" are one family).

The classes have two natural groupings: `kind` (digit, upper, lower, punctuation) and `letter`, in which the two cases
of a letter are together and every other character is alone.

The reference set is the Debian package `fonts-aenigma`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import ImageFont, features

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.downloads import Arrays, cached, digest
from nas_blockout.data.errors import DataCorrupt, DataMissing, DataUnsuitable
from nas_blockout.data.splits import Collection
from nas_blockout.data.tensor_dataset import Labeled

CHARACTERS = tuple(chr(code) for code in range(33, 127))
SIDE, CAP_HEIGHT, BASELINE = 32, 17, 23
FEWEST_CHARACTERS = 62
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
DEBIAN_FOLDER = Path("/usr/share/fonts/truetype/aenigma")
REMEDY = "run `apt-get install fonts-aenigma`, or set folder to a folder with .ttf or .otf files"
_RENDERING = "2"  # raise it when caches change: earlier ones are then no longer used
_MEASURING_SIZE = 100
_NO_CHARACTER = "\U0010fffe"  # never assigned: shows what a font draws for what it has not

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Font:
    """A file with outlines.

    Args:
        path: Of the file.
        family: First word of the family's name, in lower case.
    """

    path: Path
    family: str


def read(settings: DataSettings, root: Path | None) -> Collection:
    """Render, or take from the cache, the fonts that may be seen before the test.

    Args:
        settings: `folder` and `split_seed` are used.
        root: Parent of the cache; None to render each time.

    Raises:
        DataMissing: There is no folder of fonts.
        DataCorrupt: A font cannot be read.
        DataUnsuitable: A split gets no font.
    """
    folder = locate(settings)
    parts = divide(find_fonts(folder), seed=settings.split_seed)
    for name, fonts in parts.items():
        if not fonts:
            raise DataUnsuitable(f"every split needs a font family, but {name} has none in {folder}; add fonts")
    train, validation = (_rendered(parts[name], root) for name in ("train", "validation"))
    return Collection(
        train=train[0],
        validation=validation[0],
        load_test=partial(_labeled, parts["test"], root),
        class_names=CHARACTERS,
        hierarchy={"kind": tuple(map(_kind, CHARACTERS)), "letter": _letters()},
        origin=str(folder),
        group_ids={"train": train[1], "validation": validation[1]},
    )


def locate(settings: DataSettings) -> Path:
    """Return the folder of fonts."""
    folder = Path(settings.folder) if settings.folder else DEBIAN_FOLDER
    if not folder.is_dir():
        raise DataMissing(f"glyphs needs a folder of fonts, looked for {folder}; {REMEDY}")
    return folder


def find_fonts(folder: Path) -> tuple[Font, ...]:
    """Return the fonts of a folder and its sub-folders, by path, without those whose outlines came before.

    Raises:
        DataMissing: There is none.
        DataCorrupt: A file is not a font.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    if not paths:
        raise DataMissing(f"{folder} must hold .ttf or .otf files, got none; {REMEDY}")
    # Reversed, so that of files with the same outlines the first by path is the one that stays.
    first_of = {_outlines(path): path for path in reversed(paths)}
    return tuple(Font(path, family_of(path)) for path in sorted(first_of.values()))


def family_of(path: Path) -> str:
    """Return the key by which fonts of one design are kept together.

    Raises:
        DataCorrupt: The file is not a font.
    """
    try:
        name = _open(path, _MEASURING_SIZE).getname()[0] or ""
    except OSError as error:
        raise _not_whole(path, error) from error
    words = re.findall(r"[^\W_]+", name.lower())
    return words[0] if words else ""


def divide(fonts: Sequence[Font], *, seed: int) -> Mapping[str, tuple[Font, ...]]:
    """Divide fonts by family into train, validation and test; the test does not depend on the seed."""
    parts: dict[str, list[Font]] = {"train": [], "validation": [], "test": []}
    for font in fonts:
        if _fraction(f"test/{font.family}") < TEST_SHARE:
            parts["test"].append(font)
        # a share of what the test has left
        elif _fraction(f"validation/{seed}/{font.family}") < VALIDATION_SHARE / (1 - TEST_SHARE):
            parts["validation"].append(font)
        else:
            parts["train"].append(font)
    return {name: tuple(chosen) for name, chosen in parts.items()}


def render(path: Path) -> dict[str, Image]:
    """Render the characters that a font has; none if there are fewer than `FEWEST_CHARACTERS`.

    Returns:
        For each character its image, shape (32, 32).

    Raises:
        DataCorrupt: The file is not a font, or is truncated.
    """
    try:
        return _render(path)
    except OSError as error:
        raise _not_whole(path, error) from error


def _render(path: Path) -> dict[str, Image]:
    _, top, _, bottom = _open(path, _MEASURING_SIZE).getbbox("H", anchor="ls")
    if bottom <= top:
        return {}
    scale = CAP_HEIGHT / (bottom - top)
    font = _open(path, _MEASURING_SIZE * scale)
    missing = _ink(font, _NO_CHARACTER)
    drawn = {character: _ink(font, character) for character in CHARACTERS}
    renderable = {key: value for key, value in drawn.items() if value[0].any() and not _equal(value, missing)}
    if len(renderable) < FEWEST_CHARACTERS:
        return {}
    images = {
        key: _placed(ink, BASELINE + above - round(float(bottom * scale))) for key, (ink, above) in renderable.items()
    }
    # Some fonts draw small letters as capitals: the same image under two labels cannot be learned.
    capitals = {key.lower(): image for key, image in images.items() if key.isupper()}
    return {
        key: image
        for key, image in images.items()
        if not (key.islower() and key in capitals and np.array_equal(image, capitals[key]))
    }


def _labeled(fonts: Sequence[Font], root: Path | None) -> Labeled:
    return _rendered(fonts, root)[0]


def _rendered(fonts: Sequence[Font], root: Path | None) -> tuple[Labeled, tuple[str, ...]]:
    """Return the images of fonts, and the family of each."""
    # Another version of FreeType may draw other pixels; the cache must not hide that.
    versions = f"{_RENDERING}/{PIL.__version__}/{features.version('freetype2')}"
    key = digest({"versions": versions.encode(), **{str(font.path): font.path.read_bytes() for font in fonts}})
    arrays = cached(root, f"glyphs-{key}", partial(_render_all, fonts))
    images = Labeled(torch.from_numpy(arrays["images"]).unsqueeze(1), torch.from_numpy(arrays["labels"]))
    return images, tuple(fonts[number].family for number in arrays["fonts"].tolist())


def _render_all(fonts: Sequence[Font]) -> Arrays:
    rendered = [(number, *item) for number, font in enumerate(fonts) for item in render(font.path).items()]
    images = np.stack([image for *_, image in rendered]) if rendered else np.zeros((0, SIDE, SIDE), np.uint8)
    labels = np.array([CHARACTERS.index(key) for _, key, _ in rendered], dtype=np.int64)
    return {"images": images, "labels": labels, "fonts": np.array([number for number, *_ in rendered], dtype=np.int64)}


def _ink(font: ImageFont.FreeTypeFont, character: str) -> tuple[Image, int]:
    """Return what a character draws, and the row of its top relative to the baseline."""
    mask, offset = font.getmask2(character, mode="L", anchor="ls")
    ink = np.frombuffer(bytes(mask), dtype=np.uint8).reshape(mask.size[1], mask.size[0])
    columns = np.flatnonzero(ink.any(axis=0))
    return (ink[:, columns[0] : columns[-1] + 1] if len(columns) else ink[:, :0]), int(offset[1])


def _equal(one: tuple[Image, int], other: tuple[Image, int]) -> bool:
    return one[1] == other[1] and np.array_equal(one[0], other[0])


def _placed(ink: Image, top: int) -> Image:
    """Put ink into an image, centered from left to right; what reaches beyond the image is cut off."""
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    left = (SIDE - ink.shape[1]) // 2
    rows = slice(max(top, 0), max(min(top + ink.shape[0], SIDE), 0))
    columns = slice(max(left, 0), min(left + ink.shape[1], SIDE))
    image[rows, columns] = ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return image


def _open(path: Path, size: float) -> ImageFont.FreeTypeFont:
    # The simple layout, which is in every build of Pillow; the other one depends on a library of the system.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _not_whole(path: Path, error: OSError) -> DataCorrupt:
    return DataCorrupt(f"{path} must be a whole font, got: {error}; remove it from the folder")


def _outlines(path: Path) -> bytes:
    """Return a hash of the tables that hold the outlines; of the whole file where there are none."""
    data = path.read_bytes()
    # The file begins with 12 bytes, the fifth and sixth of which are the number of tables; then come 16 bytes for each
    # table: name, checksum, offset, length.
    tables = {data[at : at + 4]: data[at + 8 : at + 16] for at in range(12, 12 + 16 * int.from_bytes(data[4:6]), 16)}
    places = [tables[name] for name in (b"glyf", b"CFF ", b"CFF2") if name in tables]
    spans = [(int.from_bytes(place[:4]), int.from_bytes(place[4:])) for place in places]
    outlines = b"".join(data[start : start + length] for start, length in spans)
    return hashlib.sha256(outlines or data).digest()


def _fraction(text: str) -> float:
    # A hash and not a draw: a font that is added moves no other one to another split.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _kind(character: str) -> int:
    tests = (str.isdigit, str.isupper, str.islower)
    return next((number for number, holds in enumerate(tests) if holds(character)), len(tests))


def _letters() -> tuple[int, ...]:
    groups: dict[str, int] = {}
    return tuple(groups.setdefault(character.lower(), len(groups)) for character in CHARACTERS)
