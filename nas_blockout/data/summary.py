"""Checks, downloads and previews of data sets, for the command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataError, DataMissing
from nas_blockout.data.sources.registry import SOURCES, load

_SMALLEST_SHOWN = 32
_LABEL_WIDTH = 110
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
        problem: Problem and remedy; empty if there is none.
        missing: Whether the problem is missing files.
    """

    name: str
    ready: bool
    origin: str = ""
    shape: tuple[int, ...] = ()
    classes: int = 0
    images: Mapping[str, int] | None = None
    fewest_in_class: Mapping[str, int] | None = None
    problem: str = ""
    missing: bool = False


def check(name: str, root: Path | None = None, *, folder: str | None = None) -> Report:
    """Read all of a source, including the test split, and report whether it can be trained on.

    Args:
        name: A registered source.
        root: Folder of downloads and caches.
        folder: As in `DataSettings`; `imagefolder` needs it.
    """
    try:
        settings = DataSettings(name=name, folder=folder)
        splits = load(settings, root=root)
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test()}
        classes = len(splits.class_names)
        # Reads every image, so that a damaged one is found here and not in the middle of a training.
        counts = {}
        for key, part in parts.items():
            batches = part.gather(torch.split(torch.arange(len(part)), _IMAGES_AT_ONCE))
            counts[key] = torch.cat([labels for _, labels in batches]).bincount(minlength=classes)
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
    )


def fetch(name: str, root: Path) -> Path:
    """Download the files of a source, check them, and return their folder; what is there already is kept.

    Raises:
        DataMissing: They cannot be downloaded; the message says how to get them.
        DataCorrupt: What was downloaded is not what was expected.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    source = SOURCES[name]
    if source.fetch is None:
        raise DataMissing(f"{name} is not had by downloading: {source.remedy}")
    return source.fetch(root)


def show(name: str, root: Path | None = None, *, folder: str | None = None, columns: int = 12) -> Image.Image:
    """Draw some training images of every class, a class a row, with its name.

    Args:
        name: A registered source.
        root: Folder of downloads and caches.
        folder: As in `DataSettings`; `imagefolder` needs it.
        columns: Images a class.
    """
    splits = load(DataSettings(name=name, folder=folder), root=root)
    _, height, width = splits.shape
    zoom = max(1, _SMALLEST_SHOWN // min(height, width))
    cell = (width * zoom + 2, height * zoom + 2)
    sheet = Image.new("RGB", (_LABEL_WIDTH + columns * cell[0], len(splits.class_names) * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for row, class_name in enumerate(splits.class_names):
        pen.text((4, row * cell[1] + cell[1] // 2), class_name[:18], fill="black", anchor="lm")
        chosen = (splits.train.labels == row).nonzero().flatten()[:columns]
        images = splits.preprocessing.undo(next(splits.train.gather([chosen]))[0])
        for column, image in enumerate(images):
            picture = _picture(image).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (_LABEL_WIDTH + column * cell[0], row * cell[1] + 1))
    return sheet


def _picture(image: Tensor) -> Image.Image:
    values = image.mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(values.numpy()))
