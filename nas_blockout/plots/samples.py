"""Thumbnails of images: rows under a heading, each image with up to two lines of text below it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nas_blockout.plots.style.canvas import NARROW, bare, canvas, clean, panel, shorten, write
from nas_blockout.plots.style.theme import FONT, INK, MUTED, SMALL, styled

Image = NDArray[np.uint8]
A_ROW = 6  # images side by side in a narrow figure
_SIDE, _PITCH, _LEFT = 44.0, 57.5, 4.0  # in points; images are scaled to `_SIDE`
_LINE, _HEADING = 10.0, 18.0


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single truth value: comparing them would raise
class Sample:
    """An image and the text below it.

    Args:
        image: Gray (height, width) or color (height, width, 3), in 0 to 255.
        text: First line.
        note: Second line, in gray.
    """

    image: Image
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class SampleRow:
    """Images under one heading; they wrap to as many rows as they need."""

    heading: str
    note: str
    samples: tuple[Sample, ...]


@styled
def figure_samples(rows: Sequence[SampleRow]) -> Figure:
    """Draw rows of images, each under its heading."""
    figure = canvas(NARROW, samples_height(rows))
    draw_samples(figure, rows, top=0.0)
    return figure


def samples_height(rows: Sequence[SampleRow]) -> float:
    """Return the height that `draw_samples` will take."""
    return sum(_HEADING + -(-len(row.samples) // A_ROW) * _row_height(row) for row in rows) + 4


def draw_samples(figure: Figure, rows: Sequence[SampleRow], *, top: float) -> None:
    """Draw rows of images into a narrow figure, from `top` points down."""
    for row in rows:
        heading = shorten(row.heading, NARROW - 110)
        write(figure, (_LEFT, top + 12), heading, size=FONT, color=INK)
        write(figure, (NARROW - 4, top + 12), clean(row.note), size=SMALL, color=MUTED, ha="right")
        top += _HEADING
        for start in range(0, len(row.samples), A_ROW):
            _draw(figure, row.samples[start : start + A_ROW], top=top)
            top += _row_height(row)


def _row_height(row: SampleRow) -> float:
    return _SIDE + _LINE * (2 if any(sample.note for sample in row.samples) else 1) + 8


def _draw(figure: Figure, samples: Sequence[Sample], *, top: float) -> None:
    """Draw images side by side, in one axes: axes take ten times as long to make as what stands in them."""
    width = _PITCH * (len(samples) - 1) + _SIDE
    axes = panel(figure, (_LEFT, top, width, _SIDE))
    bare(axes)
    for column, sample in enumerate(samples):
        left = column * _PITCH
        gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if sample.image.ndim == 2 else {}
        axes.imshow(sample.image, extent=_extent(sample.image, left), interpolation="none", aspect="auto", **gray)  # type: ignore[arg-type]  # as matplotlib's stubs have it
        for line, (text, color) in enumerate(((sample.text, INK), (sample.note, MUTED))):
            y = top + _SIDE + _LINE * (line + 1) - 1
            write(figure, (_LEFT + left, y), shorten(text, _PITCH - 4, SMALL), size=SMALL, color=color)
    axes.set(xlim=(0, width), ylim=(_SIDE, 0))  # points, as everything else; `imshow` has set others


def _extent(image: Image, left: float) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of an image in the middle of its square, in points."""
    height, width = (_SIDE * side / max(image.shape[:2]) for side in image.shape[:2])
    x, y = left + (_SIDE - width) / 2, (_SIDE - height) / 2
    return x, x + width, y + height, y
