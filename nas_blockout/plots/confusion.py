"""The figure of confusions: those of one arm, and how every other arm differs from it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nas_blockout.plots.style.canvas import NARROW, WIDE, Array, bare, clean, heat_image, small_multiples, title
from nas_blockout.plots.style.theme import INK, LOST, MUTED, SHOWN, SMALL, styled

_MOST_NAMED = 12  # classes that still have room for a tick label, and for a number in each cell
_MOST_OPAQUE = 0.75  # so that a number on the color is read in light and in dark


def confusion_shares(counts: ArrayLike) -> Array:
    """Return the share of each true class (row) that was predicted as each other class (column); the diagonal is 0."""
    cells = np.asarray(counts, dtype=np.float64)
    shares: Array = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0.0)  # correct predictions would take up the whole color scale
    return shares


def confusion_differences(counts: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    """Return by how much confusions are more frequent than in a reference: as shares of the class, and as images.

    Args:
        counts: True class by predicted class, (classes, classes).
        reference: Likewise of the reference. Images are of as many as it has, so that arms with fewer seeds compare.
    """
    shares = confusion_shares(counts) - confusion_shares(reference)
    return shares, np.rint(shares * np.asarray(reference, dtype=np.float64).sum(axis=1, keepdims=True))


@styled
def figure_confusion(matrices: Mapping[str, ArrayLike], class_names: Sequence[str], *, reference: str) -> Figure:
    """Draw the confusions of a reference, and one panel per other arm with the differences from it.

    Rows are true classes, columns predicted ones. With few classes, each cell has its number of images.

    Args:
        matrices: For each arm the counts, true class by predicted class, (classes, classes).
        class_names: One per class; they label the axes if there are few of them and all are short.
        reference: The arm that the others are compared with.
    """
    base = np.asarray(matrices[reference], dtype=np.float64)
    own = confusion_shares(base)
    others = {name: confusion_differences(counts, base) for name, counts in matrices.items() if name != reference}
    few = len(base) <= _MOST_NAMED
    names = [clean(name) for name in class_names]
    named = few and max(map(len, names)) <= 3
    width = WIDE if few else NARROW
    figure, panels = small_multiples(
        1 + len(others),
        height=152 if few else 96,
        left=22.0 if named else 16.0,
        bottom=28.0 if named else 20.0,
        width=width,
    )
    # One scale for all differences: only so can arms be compared. That of the reference is its own.
    top = max((float(np.abs(shares).max(initial=0.0)) for shares, _ in others.values()), default=0.0)
    images = [(reference, heat_image(own) * (1, 1, 1, _MOST_OPAQUE), base - np.diag(np.diag(base)), "")]
    images += [(name, _difference_image(shares, top), moved, "+") for name, (shares, moved) in others.items()]
    for axes, (arm, image, numbers, sign) in zip(panels, images, strict=True):
        axes.imshow(image, interpolation="none", aspect="auto")
        axes.plot([-0.5, len(base) - 0.5], [-0.5, len(base) - 0.5], color=MUTED, lw=0.6, ls=(0, (1, 2)))
        bare(axes, frame=True)
        if named:
            axes.set_xticks(range(len(names)), names, fontsize=7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.tick_params(length=0, pad=2)
        if few:
            _write_numbers(axes, numbers, sign)
        title(axes, arm, note="" if sign else "its confusions")
    scale = f"; strongest color: {top:.1%} of a true class more or fewer" if others else ""
    height = float(figure.get_size_inches()[1]) * 72
    figure.supxlabel(f"predicted class{scale}", size=SMALL, color=MUTED, y=4 / height, va="bottom")
    figure.supylabel("true class", size=SMALL, color=MUTED, x=1 / width, ha="left")
    return figure


def _difference_image(shares: Array, top: float, levels: int = 16) -> Array:
    """Return an image (rows, columns, 4): more in one color, fewer in another, the more opaque the larger."""
    image = np.empty((*shares.shape, 4))
    more, fewer = ([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)] for color in (LOST, SHOWN))
    image[..., :3] = np.where(shares[..., None] > 0, more, fewer)
    image[..., 3] = np.round(np.abs(shares) / (top or 1.0) * levels) / levels * _MOST_OPAQUE
    return image


def _write_numbers(axes: Axes, numbers: Array, sign: str) -> None:
    for row, column in zip(*np.nonzero(numbers), strict=True):
        text = f"{int(numbers[row, column]):{sign}d}".replace("-", "\N{MINUS SIGN}")
        axes.text(column, row, text, size=6.5, color=INK, ha="center", va="center_baseline")
