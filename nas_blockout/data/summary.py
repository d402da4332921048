"""Checks, downloads and previews of data sets, for the command line."""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataCorrupt, DataError, DataMissing, all_corrupt
from nas_blockout.data.sources.registry import CHOICES, SOURCES, collection_of, load
from nas_blockout.data.streaming import ImageFiles

_SMALLEST_SHOWN = 32
_LABEL_WIDTH = 110
_LABEL_PIXELS = 12
_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
# Families with many scripts: among the others are fonts that draw ornaments in the place of letters.
_FONT_NAMES = re.compile(
    r"(noto|dejavu|droid|unifont|wqy|cjk|ipa|takao|nanum|pingfang|hiragino|arialuni|arial ?unicode|msyh|msgothic|"
    r"meiryo|malgun|segoeui|nirmala|lohit|freesans|symbola|amiri)",
    re.IGNORECASE,
)
_NO_CHARACTER = "\U0010ffff"
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `check`.

    Args:
        name: Of the source.
        ready: Whether it can be trained on.
        origin: Folder of its files, empty if there is none.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: For each split its number of images.
        fewest_in_class: For each split the size of its smallest class.
        class_names: In the order of the labels.
        images_of_classes: For each split the number of images of each class.
        groups_of_classes: For each split in how many groups each class is; None where images have no groups.
        images_of_folds: For each fold the number of images of each class; None without folds.
        problem: Problem and remedy; empty if there is none.
        missing: Whether the problem is missing files.
        notes: What was recognized in its folder and what was passed over, in sentences.
    """

    name: str
    ready: bool
    origin: str = ""
    shape: tuple[int, ...] = ()
    classes: int = 0
    images: Mapping[str, int] | None = None
    fewest_in_class: Mapping[str, int] | None = None
    class_names: tuple[str, ...] = ()
    images_of_classes: Mapping[str, tuple[int, ...]] | None = None
    groups_of_classes: Mapping[str, tuple[int, ...]] | None = None
    images_of_folds: tuple[tuple[int, ...], ...] | None = None
    problem: str = ""
    missing: bool = False
    notes: tuple[str, ...] = ()


def check(settings: DataSettings, root: Path | None = None) -> Report:
    """Read all of a source, including the test split, and report whether it can be trained on.

    Args:
        settings: The source, and how it is divided.
        root: Folder of downloads and caches.
    """
    name = settings.name
    try:
        splits = load(settings, root=root)
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test()}
        classes = len(splits.class_names)
        # Reads every image, so that a damaged one is found here and not in the middle of a training.
        counts = {}
        for key, part in parts.items():
            batches = part.gather(torch.split(torch.arange(len(part)), _IMAGES_AT_ONCE))
            counts[key] = torch.cat([labels for _, labels in batches]).bincount(minlength=classes)
    except DataCorrupt as error:
        return Report(name, ready=False, problem=str(_complete(error, settings, root)))
    except DataError as error:
        return Report(name, ready=False, problem=str(error), missing=isinstance(error, DataMissing))
    return Report(
        name,
        ready=True,
        origin=splits.origin,
        shape=splits.shape,
        classes=classes,
        images={key: int(count.sum()) for key, count in counts.items()},
        fewest_in_class={key: int(count.min()) for key, count in counts.items()},
        class_names=splits.class_names,
        images_of_classes={key: tuple(count.tolist()) for key, count in counts.items()},
        groups_of_classes=splits.groups,
        images_of_folds=splits.folds,
        notes=splits.notes,
    )


def _complete(error: DataCorrupt, settings: DataSettings, root: Path | None) -> DataCorrupt:
    """Return an error about image files for the files of all splits, any other as it is."""
    collection = collection_of(settings, root)
    parts = (collection.train, collection.validation, collection.load_test())
    problems = [problem for part in parts if isinstance(part, ImageFiles) for problem in part.unreadable()]
    return all_corrupt(problems) if problems else error


def fetch(name: str, root: Path) -> Path:
    """Download the files of a source, check them, and return their folder; what is there already is kept.

    Raises:
        DataMissing: They cannot be downloaded; the message says how to get them.
        DataCorrupt: What was downloaded is not what was expected.
    """
    if CHOICES.is_known(name) and name not in SOURCES:
        raise DataMissing(f"{name} is a plug-in, which gets its files itself: run `nas-blockout data check {name}`")
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    source = SOURCES[name]
    if source.fetch is None:
        raise DataMissing(f"{name} cannot be downloaded: {source.remedy}")
    return source.fetch(root)


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """What `show` draws.

    Args:
        image: A row a class.
        class_names: In the order of the rows.
        numbered: Rows that have a number for a name, since no font here has its characters.
        notes: As in `Report`.
    """

    image: Image.Image
    class_names: tuple[str, ...]
    numbered: tuple[int, ...]
    notes: tuple[str, ...]


def show(settings: DataSettings, root: Path | None = None, *, columns: int = 12) -> Sheet:
    """Draw some training images of every class, a class a row, with its name.

    Args:
        settings: The source, and how it is divided.
        root: Folder of downloads and caches.
        columns: Images a class.
    """
    splits = load(settings, root=root)
    _, height, width = splits.shape
    # By a whole number, and by repeating pixels: what is shown are the pixels that a network reads.
    zoom = max(1, _SMALLEST_SHOWN // min(height, width))
    cell = (width * zoom + 2, height * zoom + 2)
    labels = [_label(row, name) for row, name in enumerate(splits.class_names)]
    left = max(_LABEL_WIDTH, *(label.width + 10 for label in labels))
    sheet = Image.new("RGB", (left + columns * cell[0], len(labels) * cell[1]), "white")
    for row, label in enumerate(labels):
        label.draw(sheet, (4, row * cell[1] + cell[1] // 2))
        chosen = (splits.train.labels == row).nonzero().flatten()[:columns]
        images = splits.preprocessing.undo(next(splits.train.gather([chosen]))[0])
        for column, image in enumerate(images):
            picture = _picture(image).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * cell[0], row * cell[1] + 1))
    undrawn = tuple(row for row, label in enumerate(labels) if not label.complete)
    return Sheet(sheet, splits.class_names, undrawn, splits.notes)


def _picture(image: Tensor) -> Image.Image:
    values = image.mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(values.numpy()))


@dataclass(frozen=True, slots=True)
class _Label:
    """The name of a class in the fonts that have its characters, or the number of its row.

    Args:
        runs: Pieces of the text, each with its font.
        complete: Whether it is the whole name.
    """

    runs: tuple[tuple[str, ImageFont.FreeTypeFont], ...]
    complete: bool

    @property
    def width(self) -> int:
        """In pixels."""
        return math.ceil(sum(font.getlength(text) for text, font in self.runs))

    def draw(self, sheet: Image.Image, at: tuple[float, float]) -> None:
        """Write it, its left end and the middle of its height at a place."""
        pen, left = ImageDraw.Draw(sheet), at[0]
        for text, font in self.runs:
            pen.text((left, at[1]), text, fill="black", font=font, anchor="lm")
            left += font.getlength(text)


def _label(row: int, name: str) -> _Label:
    text = "".join(char if char.isprintable() or char in "\u200c\u200d" else "\ufffd" for char in name)
    fonts = _fonts()
    whole = next((font for font in fonts if all(_has(font, char) for char in text)), None)
    if whole is not None:
        return _Label(((text, whole),), complete=True)
    found = [next((font for font in fonts if _has(font, char)), None) for char in text]
    pieces = [(char, font) for char, font in zip(text, found, strict=True) if font is not None]
    if len(pieces) < len(text):
        return _Label(((f"row {row + 1}", fonts[0]),), complete=False)
    groups = groupby(pieces, key=lambda piece: id(piece[1]))
    runs = [list(group) for _, group in groups]
    return _Label(tuple(("".join(char for char, _ in run), run[0][1]) for run in runs), complete=True)


@cache
def _has(font: ImageFont.FreeTypeFont, char: str) -> bool:
    """Whether a font draws a character, and in the right direction."""
    if unicodedata.category(char) in ("Cf", "Mn", "Me", "Zs") or "\ufe00" <= char <= "\ufe0f":
        return True  # what has no ink of its own
    if unicodedata.bidirectional(char) in ("R", "AL") and not features.check("raqm"):
        return False  # Pillow would write it from left to right
    return bytes(font.getmask(char)) != bytes(font.getmask(_NO_CHARACTER))


@cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """Return the fonts to try, those of matplotlib, which is always there, first."""
    matplotlib = find_spec("matplotlib")  # its files, without the second that its import takes
    folders = [
        Path(folder) / "mpl-data/fonts/ttf" for folder in (matplotlib and matplotlib.submodule_search_locations) or ()
    ]
    paths = [folder / "DejaVuSans.ttf" for folder in folders]
    for folder in map(Path, _FONT_FOLDERS):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc"))
        paths += [path for path in files if _FONT_NAMES.match(path.name)]
    fonts = []
    for path in paths:
        try:
            fonts.append(ImageFont.truetype(str(path), _LABEL_PIXELS))
        except OSError:  # no font, or one of color pictures in a single size
            continue
    return tuple(fonts)
