"""A source of images that a plug-in brings: its settings, and how it reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_blockout.data.splits import Collection


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What is known of data without reading them; None where only the files can tell.

    Args:
        shape: Channels, height and width of an image.
        classes: Number of classes.
        train_images: Number of images trained on.
    """

    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    train_images: int | None = None


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where images come from, as a plug-in says it.

    Args:
        settings: A frozen dataclass of its settings, which all have a default; in a study they are ``data.options``.
        read: Reads the images and divides them: ``read(settings, split_seed, root)`` with its settings, the seed of
            all random choices of the division, and a folder for downloads and caches, or None. It returns a
            `Collection`; test images are read by its ``load_test``, and not before. `stratified` and
            `divided_by_groups` of `nas_blockout.data` divide. It raises an error of `nas_blockout.data.errors` where
            files are missing, damaged or unsuitable.
        summary: What it holds, in one line.
        remedy: How to get its files.
        dimensions: What its settings alone tell; None if that is nothing. What is known is checked before any file is
            read.
    """

    settings: type
    read: Callable[[Any, int, Path | None], Collection]
    summary: str = "a plug-in"
    remedy: str = "see the documentation of the plug-in"
    dimensions: Callable[[Any], Dimensions] | None = None
