"""The figure of confusion matrices."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nas_blockout.plots.style.canvas import NARROW, Array, bare, clean, heat_image, small_multiples, title
from nas_blockout.plots.style.theme import MUTED, SMALL, styled

_MOST_NAMED = 12  # classes that still have room for a tick label each


def confusion_shares(counts: ArrayLike) -> Array:
    """Return the share of each true class (row) that was predicted as each other class (column); the diagonal is 0."""
    cells = np.asarray(counts, dtype=np.float64)
    shares: Array = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0.0)  # correct predictions would take up the whole color scale
    return shares


@styled
def figure_confusion(matrices: Mapping[str, ArrayLike], class_names: Sequence[str]) -> Figure:
    """Draw one panel per arm: the share of each true class (row) that was predicted as another class (column).

    Args:
        matrices: For each arm the counts, true class by predicted class, (classes, classes).
        class_names: One per class; they label the axes if there are few of them and all are short.
    """
    shares = {name: confusion_shares(counts) for name, counts in matrices.items()}
    # One color scale for all panels: only so can arms be compared.
    largest = max((float(values.max(initial=0.0)) for values in shares.values()), default=0.0)
    names = [clean(name) for name in class_names]
    named = len(names) <= _MOST_NAMED and max(map(len, names)) <= 3
    figure, panels = small_multiples(
        len(shares), height=96, left=22.0 if named else 16.0, bottom=28.0 if named else 20.0
    )
    for axes, (arm, values) in zip(panels, shares.items(), strict=True):
        count = len(values)
        axes.imshow(heat_image(values, top=largest or 1.0), interpolation="none", aspect="auto")
        axes.plot([-0.5, count - 0.5], [-0.5, count - 0.5], color=MUTED, lw=0.6, ls=(0, (1, 2)))
        bare(axes, frame=True)
        if named:
            axes.set_xticks(range(count), names, fontsize=7)
            axes.set_yticks(range(count), names, fontsize=7)
            axes.tick_params(length=0, pad=2)
        title(axes, arm)
    if panels:
        height = float(figure.get_size_inches()[1]) * 72
        figure.supxlabel(
            f"predicted class (darkest cell: {largest:.1%} of a true class)",
            size=SMALL,
            color=MUTED,
            y=4 / height,
            va="bottom",
        )
        figure.supylabel("true class", size=SMALL, color=MUTED, x=1 / NARROW, ha="left")
    return figure
