"""Figures of cost: best accuracy so far against the budget, convergence, and cost by phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nas_blockout.plots.style.canvas import (
    NARROW,
    Array,
    Key,
    amount_axis,
    canvas,
    legend,
    legend_height,
    padded,
    panel,
    percent_axis,
    short_amount,
    shorten,
    small_multiples,
    text_width,
    title,
)
from nas_blockout.plots.style.theme import GRID, INK, LOST, MUTED, SHOWN, SMALL, style_of, styled

_ROW = 19.0  # points
_NAMES = 110.0
_MOST_POINTS = 120  # of a curve; more cannot be told apart at this size, and make the file large
MOST_DOTS = 300  # of an arm in the best accuracy so far: of more trials as many at equal distances


@dataclass(frozen=True, slots=True)
class Curve:
    """The curve of an arm, with a band around it if it summarizes several.

    Args:
        name: Name of the arm.
        role: Role of the arm.
        x: Positions, increasing.
        y: Values, NaN if missing.
        lower: Lower end of the band, or None.
        upper: Upper end of the band, or None.
        note: What `y` was computed from, such as ``n = 5``.
        marks: Positions at which the arm switched from one stage of training to the next.
    """

    name: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    note: str = ""
    marks: tuple[float, ...] = ()


@styled
def figure_best_so_far(curves: Sequence[Curve], *, budget: float | None = None) -> Figure:
    """Draw one panel per arm: the best validation accuracy so far against the cost of the search, as a step function.

    Args:
        curves: One per arm that searched; in each panel the curves of the other arms are in gray behind it.
        budget: Budget per arm, in the unit of x, drawn as a vertical line; by default, none.
    """
    largest = max([x for curve in curves for x in curve.x] + ([budget] if budget else []), default=1.0)
    figure, panels = _compared([_turning(curve) for curve in curves], steps=True, limits=(0.0, largest * 1.04))
    for axes, curve in zip(panels, curves, strict=True):
        if budget:
            axes.axvline(budget, color=MUTED, lw=0.8, ls=(0, (1, 2)))
        # A dot for every trial that ended, also where it did not improve on the best.
        dots = _thinned(curve, MOST_DOTS)
        axes.plot(dots.x, dots.y, "o", ms=3, mec="none", mfc=style_of(curve.role).color)
        amount_axis(axes, ticks=3)
    _label(figure, panels, "sample passes spent on search")
    return figure


@styled
def figure_convergence(curves: Sequence[Curve]) -> Figure:
    """Draw one panel per arm: mean and range of validation accuracy by epoch, with the other arms in gray behind it."""
    largest = max((x for curve in curves for x in curve.x), default=1.0)
    figure, panels = _compared(
        [_thinned(curve, _MOST_POINTS) for curve in curves], steps=False, limits=(0.0, largest * 1.02)
    )
    for axes, curve in zip(panels, curves, strict=True):
        for mark in curve.marks:
            axes.axvline(mark, color=MUTED, lw=0.9, ls=(0, (1, 2)))
        amount_axis(axes, ticks=3)
    _label(figure, panels, "epoch")
    return figure


def _compared(curves: Sequence[Curve], *, steps: bool, limits: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure, panels = small_multiples(len(curves), height=86)
    where = "steps-post" if steps else "default"
    for axes, curve in zip(panels, curves, strict=True):
        others = [_outline(other, steps=steps) for other in curves if other is not curve]
        axes.add_collection(LineCollection(others, colors=GRID, linewidths=1), autolim=False)
        color = style_of(curve.role).color
        if curve.lower is not None and curve.upper is not None:
            axes.fill_between(
                curve.x, curve.lower, curve.upper, color=color, alpha=0.25, lw=0, step="post" if steps else None
            )
        axes.plot(curve.x, curve.y, color=color, lw=1.7, drawstyle=where)
        axes.set_xlim(*limits)
        axes.set_ylim(*_limits(curves, late=not steps))
        percent_axis(axes, ticks=4)
        title(axes, curve.name, note=curve.note)
    return figure, panels


def _outline(curve: Curve, *, steps: bool) -> Array:
    """Return the finite points of a curve for the gray background, thinned out to about 30."""
    points = np.column_stack([curve.x, curve.y])[np.isfinite(curve.y)]
    if steps:  # a collection of lines cannot draw steps itself, and thinned steps would be wrong
        return _stairs(points)
    return points[_kept(len(points), 30)]


def _stairs(points: Array) -> Array:
    # between two points, one at the x of the second and the y of the first
    corners = np.column_stack([points[1:, 0], points[:-1, 1]])
    return np.insert(points, np.arange(1, len(points)), corners, axis=0)


def _kept(count: int, most: int) -> list[int]:
    """Return about `most` indices out of `count`, evenly spaced and including the last."""
    return sorted({*range(0, count, max(1, -(-count // most))), *range(max(0, count - 1), count)})


def _limits(curves: Sequence[Curve], *, late: bool) -> tuple[float, float]:
    """Return the limits of all values; if `late`, without the lowest tenth: the steep start would flatten the rest."""
    values = np.array([v for c in curves for v in (*c.y, *(c.upper or ()), *(c.lower or ())) if np.isfinite(v)])
    if not late or not values.size:
        return padded(values)
    # An arm that ends within the lowest tenth stays visible.
    ends = [v for c in curves for v in (*c.y[-1:], *(c.lower or ())[-1:]) if np.isfinite(v)]
    return padded([min([float(np.quantile(values, 0.1)), *ends]), float(values.max())])


def _thinned(curve: Curve, most: int) -> Curve:
    """Keep about so many points, including the last."""
    return _picked(curve, _kept(len(curve.x), most)) if len(curve.x) > most else curve


def _turning(curve: Curve) -> Curve:
    """Keep the points of a long step function at which it changes, and its ends: what is drawn stays the same."""
    if len(curve.x) <= MOST_DOTS:
        return curve
    y = np.asarray(curve.y)
    turns = 1 + np.flatnonzero((y[1:] != y[:-1]) & np.isfinite(y[1:]))
    return _picked(curve, sorted({0, *turns.tolist(), len(y) - 1}))


def _picked(curve: Curve, kept: Sequence[int]) -> Curve:
    def pick(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[i] for i in kept)

    return replace(
        curve,
        x=pick(curve.x),
        y=pick(curve.y),
        lower=pick(curve.lower) if curve.lower is not None else None,
        upper=pick(curve.upper) if curve.upper is not None else None,
    )


def _label(figure: Figure, panels: Sequence[Axes], x: str) -> None:
    figure.supxlabel(x, size=SMALL, color=MUTED, y=4 / (figure.get_size_inches()[1] * 72), va="bottom")
    if panels:
        figure.supylabel("validation accuracy (%)", size=SMALL, color=MUTED, x=2 / NARROW, ha="left")


# In the order in which they are stacked. Lost work has the color of losses and is hatched, for those who print in gray.
PARTS = (
    Key("search", SHOWN),
    Key("search, failed or pruned", LOST, "////"),
    Key("retraining", "#59a14f"),
    Key("retraining, failed", LOST, "xxxx"),
    Key("overhead", MUTED),
    Key("planned but unspent", GRID),
)


@styled
def figure_cost(
    arms: Mapping[str, Mapping[str, float]], *, label: str, budget: float | None = None, tolerance: float = 0.0
) -> Figure:
    """Draw one stacked bar per arm, with the parts of `PARTS`.

    Args:
        arms: For each arm, the cost of each part; parts are named as in `PARTS`, and those that are 0 may be left out.
        label: Label of the cost axis, with its unit.
        budget: Budget per arm, drawn as a vertical line; by default, none.
        tolerance: Share by which spending may differ from the budget, drawn as a band around the line.
    """
    keys = [key for key in PARTS if any(parts.get(key.text, 0) > 0 for parts in arms.values())]
    above = legend_height(keys, NARROW) + 6
    figure = canvas(NARROW, above + _ROW * len(arms) + 32)
    legend(figure, keys, top=2)
    left = min(_NAMES, 10 + max(text_width(shorten(name, _NAMES)) for name in arms))
    axes = panel(figure, (left, above, NARROW - left - 38, _ROW * len(arms)))
    if budget:
        axes.axvspan(budget * (1 - tolerance), budget * (1 + tolerance), color=MUTED, alpha=0.25, lw=0)
        axes.axvline(budget, color=INK, lw=0.9)
    for row, parts in enumerate(arms.values()):
        _bar(axes, row, [(key, parts.get(key.text, 0.0)) for key in keys])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    # A study that has spent nothing yet still needs an axis: hence 1.
    axes.set_xlim(0, 1.02 * max([sum(parts.values()) for parts in arms.values()] + [budget or 0.0]) or 1.0)
    axes.set_yticks(range(len(arms)), [shorten(name, left - 8) for name in arms], color=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    amount_axis(axes, ticks=5)
    axes.set_xlabel(label, labelpad=2)
    return figure


def _bar(axes: Axes, row: int, parts: Sequence[tuple[Key, float]]) -> None:
    start = 0.0
    for key, value in parts:
        if value > 0:
            axes.barh(row, value, left=start, height=0.62, color=key.color, hatch=key.hatch, edgecolor="#fffffe", lw=0)
        start += value
    axes.text(1.015, row, short_amount(start), transform=axes.get_yaxis_transform(), va="center", size=SMALL)
