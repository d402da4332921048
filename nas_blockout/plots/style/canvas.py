"""Empty figures, panels, legends and text, all measured in points (1/72 inch).

A figure of the width `NARROW` is readable on a phone; one of the width `WIDE` fills a page. Nothing here touches
pyplot, so figures need no clean-up and may be drawn in any process.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from nas_blockout.plots.style.theme import FONT, GRID, HEAT, MUTED, PAPER, SMALL

NARROW, WIDE = 350.0, 720.0  # points
Array = NDArray[np.float64]


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of a size in points."""
    return Figure(figsize=(width / 72, height / 72))


def panel(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Add axes to a figure at ``(left, top, width, height)``, in points from the upper left corner."""
    left, top, width, height = box
    whole_width, whole_height = figure.get_size_inches() * 72
    bottom = whole_height - top - height  # matplotlib counts from the lower edge
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def bare(axes: Axes, *, frame: bool = False) -> None:
    """Remove ticks, grid and, unless `frame`, the frame from axes."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame)
        spine.set_color(GRID)


_JOINERS = "\u200c\u200d"  # part of Persian and Indic names and of emoji


@contextmanager
def missing_glyphs_are_no_warning() -> Iterator[None]:
    """Ignore missing glyphs: names may be in any script, and the browser that shows the SVG has the fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


@lru_cache(maxsize=4096)  # names are measured again for every panel, and `shorten` measures a text many times
def text_width(text: str, size: float = FONT, *, bold: bool = False) -> float:
    """Measure a line of text in points."""
    # The font of the page is not known here. DejaVu Sans is wider than most, so that texts fit in others, too.
    font = FontProperties(family=["DejaVu Sans"], size=size, weight="bold" if bold else "normal")
    with missing_glyphs_are_no_warning():
        width, _, _ = TextToPath().get_text_width_height_descent(text, font, False)
    return float(width)


def clean(text: str) -> str:
    """Return a text that is valid on one line of an SVG: without control characters, surrogates or line breaks."""
    printable = (each.isprintable() or each in _JOINERS for each in str(text))
    kept = "".join(
        each if shown and not each.isspace() else " " for each, shown in zip(str(text), printable, strict=True)
    )
    return " ".join(kept.split())


def shorten(text: str, width: float, size: float = FONT) -> str:
    """Shorten a text to a width in points, with an ellipsis in the middle."""
    text = clean(text)[:200]  # bounds the loop below, which measures once per character
    if text_width(text, size) <= width:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        candidate = f"{text[: (kept + 1) // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - kept // 2 :]}"
        if text_width(candidate, size) <= width:
            return candidate
    return text[:1]


def write(figure: Figure, place: tuple[float, float], text: str, **style: Any) -> None:
    """Write a line of text at a position in points from the upper left corner of a figure."""
    width, height = figure.get_size_inches() * 72
    figure.text(place[0] / width, 1 - place[1] / height, text, **{"va": "baseline", **style})


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend: a color patch, hatched or not, and its text."""

    text: str
    color: str
    hatch: str = ""


def legend(figure: Figure, entries: Sequence[Key], *, top: float, left: float = 4.0) -> float:
    """Draw a legend whose entries wrap at the width of the figure; return its height in points."""
    width, height = figure.get_size_inches() * 72
    x, y = left, top
    for entry in entries:
        needed = 13 + text_width(entry.text, SMALL) + 12
        if x > left and x + needed > width:
            x, y = left, y + 13
        patch = Rectangle(
            (x / width, 1 - (y + 9) / height),
            9 / width,
            9 / height,
            facecolor=entry.color,
            hatch=entry.hatch,
            edgecolor=PAPER if entry.hatch else "none",
            linewidth=0,
        )
        figure.add_artist(patch)
        write(figure, (x + 13, y + 8), entry.text, size=SMALL, color=MUTED)
        x += needed
    return y + 13 - top if entries else 0.0


def legend_height(entries: Iterable[Key], width: float, left: float = 4.0) -> float:
    """Return the height of `legend` in a figure of this width, both in points."""
    # The same line breaks as in `legend`: the height is needed before there is a figure to draw into.
    x, rows = left, 1
    for entry in entries:
        needed = 13 + text_width(entry.text, SMALL) + 12
        if x > left and x + needed > width:
            x, rows = left, rows + 1
        x += needed
    return 13.0 * rows


def percent_axis(axes: Axes, which: str = "y", *, ticks: int = 5) -> None:
    """Label an axis of shares in percent."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def amount_axis(axes: Axes, which: str = "x", *, ticks: int = 4) -> None:
    """Label an axis of amounts with suffixes, such as 12k or 1.5M."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_amount(value)))


def log_amount_axis(axes: Axes) -> None:
    """Label a horizontal logarithmic axis whose limits are set; the SVG would spell out powers of ten."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_amount(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def short_amount(value: float) -> str:
    """Return an amount with three significant digits and a suffix: 950, 12k, 1.5M, 2G."""
    size = abs(value)
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.9995:  # 999,950 is 1M; with three digits of k it would be 1e+03k
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def padded(values: Iterable[float], *, share: float = 0.06, least: float = 0.005) -> tuple[float, float]:
    """Return axis limits with a margin around the finite values; 0 and 1 if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    margin = max(share * (high - low), least)
    return low - margin, high + margin


def heat_image(values: Array, *, top: float | None = None, levels: int = 16) -> Array:
    """Return an image (rows, columns, 4) of one color whose opacity is the value, visible on white and on black.

    Args:
        values: Non-negative values, (rows, columns).
        top: Value that is fully opaque; by default, the largest.
        levels: Number of opacity levels; fewer levels make smaller files.
    """
    largest = float(values.max(initial=0.0)) if top is None else top
    share = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
    image = np.empty((*values.shape, 4))
    image[..., :3] = [int(HEAT[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    image[..., 3] = np.round(share * levels) / levels
    return image


def small_multiples(
    count: int,
    *,
    height: float,
    columns: int = 3,
    left: float = 32.0,
    bottom: float = 30.0,
    between: float = 32.0,
    width: float = NARROW,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of equal size, each with room for a title above it.

    Args:
        count: Number of panels.
        height: Height of a panel, in points.
        columns: Maximum number of panels side by side.
        left: Margin for the tick labels of the y axis, in points.
        bottom: Margin for the tick labels and the label of the x axis, in points.
        between: Space between rows of panels, for tick labels and titles, in points.
        width: Of the figure, in points.
    """
    columns = min(columns, max(count, 2))  # a single panel is half as wide as the figure, not all of it
    rows = -(-count // columns)
    gap_x, top = 11.0, 18.0
    inner = (width - left - 4 - gap_x * (columns - 1)) / columns
    figure = canvas(width, top + rows * height + (rows - 1) * between + bottom)
    panels = []
    for index in range(count):
        row, column = divmod(index, columns)
        place = (left + column * (inner + gap_x), top + row * (height + between), inner, height)
        axes = panel(figure, place)
        # Panels share their axes: numbers stand at the left of each row and below the last panel of each column.
        axes.tick_params(labelleft=column == 0, labelbottom=index + columns >= count, pad=2)
        panels.append(axes)
    return figure, panels


def title(axes: Axes, text: str, *, note: str = "") -> None:
    """Write a title above a panel: a name, shortened to fit, and a gray note on the right.

    If the two do not fit on one line, the note goes to the lower right corner of the panel.
    """
    width, height = size_of(axes)
    above = 1 + 4 / height
    room = width - text_width(note, SMALL) - 6 if note else width
    beside = text_width(clean(text)) <= room
    axes.text(0, above, shorten(text, width), transform=axes.transAxes, va="baseline", size=FONT)
    if note:
        x, y = (1.0, above) if beside else (1 - 3 / width, 4 / height)
        axes.text(x, y, note, transform=axes.transAxes, va="baseline", ha="right", size=SMALL, color=MUTED)


def size_of(axes: Axes) -> tuple[float, float]:
    """Return width and height of axes in points."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure), "a panel belongs to a figure"
    width, height = figure.get_size_inches() * 72
    box = axes.get_position()
    return float(box.width * width), float(box.height * height)
