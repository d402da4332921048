"""Figures of results: accuracies, their differences, accuracy against cost, and the discretization gap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_blockout.plots.style.canvas import (
    NARROW,
    amount_axis,
    canvas,
    log_amount_axis,
    padded,
    panel,
    percent_axis,
    shorten,
    small_multiples,
    text_width,
    title,
)
from nas_blockout.plots.style.labels import place_labels
from nas_blockout.plots.style.theme import FONT, INK, LOST, MUTED, PAPER, SHOWN, SMALL, style_of, styled

_ROW = 21.0  # points, like all lengths here
_NAMES = 118.0
_PIECES = 24

Corner = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The accuracy of an arm, in [0, 1]: one value per seed, their mean, and its interval, if there is one."""

    name: str
    role: str
    values: tuple[float, ...]
    mean: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of `a` minus that of `b`, its interval, if there is one, and whether the difference is significant."""

    a: str
    b: str
    difference: float
    interval: tuple[float, float] | None
    shown: bool


@dataclass(frozen=True, slots=True)
class Point:
    """The cost and the accuracy of an arm, with the interval of its accuracy and the spread of a measured cost."""

    name: str
    role: str
    cost: float
    accuracy: float
    interval: tuple[float, float] | None
    spread: tuple[float, float] | None = None


@styled
def figure_accuracy(estimates: Sequence[Estimate], *, label: str = "test accuracy (%)") -> Figure:
    """Draw one row per arm: the mean and its interval, with the single seeds as dots below."""
    figure = canvas(NARROW, 8 + _ROW * len(estimates) + 32)
    left = min(_NAMES, 10 + max(text_width(shorten(e.name, _NAMES)) for e in estimates))
    axes = panel(figure, (left, 6, NARROW - left - 40, _ROW * len(estimates)))
    for row, estimate in enumerate(estimates):
        _estimate(axes, row, estimate)
    axes.set_ylim(len(estimates) - 0.5, -0.5)  # upside down: the first arm is on top
    axes.set_xlim(*padded(v for e in estimates for v in (*e.values, *(e.interval or ()))))
    _named_rows(axes, [shorten(e.name, left - 8) for e in estimates])
    percent_axis(axes, "x")
    axes.set_xlabel(label, labelpad=2)
    return figure


def _estimate(axes: Axes, row: int, estimate: Estimate) -> None:
    style = style_of(estimate.role)
    # The transform of texts: x in shares of the panel, so that 1.015 is right of it, y in rows.
    if estimate.mean is None:
        axes.text(
            0.02, row, "no retrained model", transform=axes.get_yaxis_transform(), va="center", size=SMALL, color=MUTED
        )
        return
    axes.plot(estimate.values, [row + 0.26] * len(estimate.values), "o", ms=3, mec="none", mfc=style.color, alpha=0.55)
    if estimate.interval is not None:
        axes.plot(estimate.interval, [row - 0.1] * 2, color=style.color, lw=2.4, solid_capstyle="butt")
    axes.plot([estimate.mean], [row - 0.1], style.marker, ms=5.5, color=style.color)
    axes.text(1.015, row, f"{100 * estimate.mean:.2f}", transform=axes.get_yaxis_transform(), va="center", size=SMALL)


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=INK, fontsize=FONT)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


@styled
def figure_differences(differences: Sequence[Difference], *, of: str = "test accuracy") -> Figure:
    """Draw one row per pair, under a heading for each first arm: the difference in percentage points and its interval.

    Significant differences have a filled marker, all others a hollow one.
    """
    rows: list[Difference | str] = []  # a string is a heading
    for first, pairs in groupby(differences, key=lambda difference: difference.a):
        rows += [first, *pairs]
    figure = canvas(NARROW, 8 + 17 * len(rows) + 32)
    axes = panel(figure, (_NAMES, 6, NARROW - _NAMES - 44, 17 * len(rows)))
    axes.axvline(0, color=MUTED, lw=0.9)
    for row, entry in enumerate(rows):
        if isinstance(entry, Difference):
            _difference(axes, row, entry)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    # With 0, so that every interval shows on which side of it it lies.
    low, high = padded(100 * v for d in differences for v in (0.0, d.difference, *(d.interval or ())))
    axes.set_xlim(low, high)
    _named_rows(axes, [_row_name(entry) for entry in rows])
    for text, entry in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if isinstance(entry, str) else "normal")
    axes.set_xlabel(f"difference in {of} (percentage points)", labelpad=2)
    return figure


def _row_name(row: Difference | str) -> str:
    if isinstance(row, str):
        return f"{shorten(row, _NAMES - 44)} minus"
    return shorten(row.b, _NAMES - 12)


def _difference(axes: Axes, row: int, entry: Difference) -> None:
    color = MUTED if not entry.shown else SHOWN if entry.difference > 0 else LOST
    value = 100 * entry.difference
    if entry.interval is not None:
        axes.plot([100 * end for end in entry.interval], [row] * 2, color=color, lw=2, solid_capstyle="butt")
    axes.plot([value], [row], "o", ms=5.5, mec=color, mfc=color if entry.shown else PAPER, mew=1.3)
    axes.text(
        1.015,
        row,
        f"{value:+.2f}".replace("-", "\N{MINUS SIGN}"),
        transform=axes.get_yaxis_transform(),
        va="center",
        size=SMALL,
        color=INK,
    )


@styled
def figure_front(points: Sequence[Point], front: Sequence[int], *, label: str) -> Figure:
    """Draw accuracy against cost, on a logarithmic axis if the costs differ by more than a factor of ten.

    A hollow marker is an arm whose spread of costs overlaps that of another.

    Args:
        points: The arms.
        front: Indices of the points on the Pareto front by increasing cost; empty if costs are not told apart.
        label: Label of the cost axis.
    """
    figure = canvas(NARROW, 250)
    axes = panel(figure, (38, 8, NARROW - 46, 208))
    costs = [point.cost for point in points]
    ends = [end for point in points for end in (point.cost, *(point.spread or ()))]
    logarithmic = min(costs) > 0 and max(costs) > 10 * min(costs)
    if logarithmic:
        axes.set_xscale("log")
    axes.plot([costs[i] for i in front], [points[i].accuracy for i in front], color=MUTED, lw=1, ls=(0, (4, 2)))
    for point in points:
        style = style_of(point.role)
        if point.interval is not None:
            axes.plot([point.cost] * 2, point.interval, color=style.color, lw=1, alpha=0.6)
        if point.spread is not None:
            axes.plot(point.spread, [point.accuracy] * 2, color=style.color, lw=1, alpha=0.6)
        face = PAPER if _overlaps_another(point, points) else style.color
        axes.plot([point.cost], [point.accuracy], style.marker, ms=6.5, mec=style.color, mfc=face, mew=1.3)
    if logarithmic:
        axes.set_xlim(min(ends) / 1.35, max(ends) * 1.35)
        log_amount_axis(axes)
    else:
        axes.set_xlim(*padded(ends, share=0.12, least=max(costs) * 0.02 or 1.0))
        amount_axis(axes, ticks=5)
    axes.set_ylim(*padded((v for p in points for v in (p.accuracy, *(p.interval or ()))), share=0.12))
    percent_axis(axes)
    axes.set_xlabel(label, labelpad=2)
    axes.set_ylabel("test accuracy (%)", labelpad=2)
    # Last, since labels are placed in points on the page: scales and limits may not change any more.
    names = [shorten(point.name, 110, SMALL) for point in points]
    bars = [((p.cost, p.interval[0]), (p.cost, p.interval[1])) for p in points if p.interval is not None]
    bars += [((p.spread[0], p.accuracy), (p.spread[1], p.accuracy)) for p in points if p.spread is not None]
    pieces = _pieces([(costs[i], points[i].accuracy) for i in front], logarithmic=logarithmic)
    place_labels(axes, [(p.cost, p.accuracy) for p in points], names, lines=[*bars, *pieces], required=True)
    return figure


def _overlaps_another(point: Point, points: Sequence[Point]) -> bool:
    if point.spread is None:
        return False
    low, high = point.spread
    spreads = (other.spread for other in points if other is not point)
    return any(spread is not None and low <= spread[1] and spread[0] <= high for spread in spreads)


def _pieces(corners: Sequence[Corner], *, logarithmic: bool) -> list[tuple[Corner, Corner]]:
    """Split a polyline into many short segments, which labels can avoid one by one."""
    # Labels avoid the box around each segment; that of a long slanted line would cover half of the panel.
    pieces: list[tuple[Corner, Corner]] = []
    for (x, y), (right, up) in pairwise(corners):
        steps = np.linspace(0, 1, _PIECES + 1)
        # Geometric on a logarithmic axis, where the line that is drawn is straight.
        places = x * (right / x) ** steps if logarithmic else x + (right - x) * steps
        heights = y + (up - y) * steps
        pieces += pairwise(zip(places.tolist(), heights.tolist(), strict=True))
    return pieces


@styled
def figure_gap(arms: Mapping[str, tuple[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw one panel per arm: the accuracy after each step from learned probabilities to a branched network.

    Args:
        arms: For each arm its role and, for each step in order, the validation accuracy of every seed, in [0, 1].
    """
    figure, panels = small_multiples(len(arms), height=104, columns=2, bottom=48, between=66)
    values = [value for _, steps in arms.values() for seeds in steps.values() for value in seeds]
    limits = padded(values)
    for axes, (name, (role, steps)) in zip(panels, arms.items(), strict=True):
        style, places = style_of(role), range(len(steps))
        seeds = max(map(len, steps.values()))
        for seed in range(seeds):
            # A step that was not recorded for every seed has fewer values: a line may end early or have a hole.
            line = [by_seed[seed] if seed < len(by_seed) else math.nan for by_seed in steps.values()]
            axes.plot(places, line, color=style.color, lw=0.8, alpha=0.45)
        means = [float(np.mean(by_seed)) if by_seed else math.nan for by_seed in steps.values()]
        axes.plot(places, means, f"{style.marker}-", ms=5, lw=1.8, color=style.color)
        axes.set_ylim(*limits)
        axes.set_xlim(-0.35, len(steps) - 0.65)
        axes.set_xticks(places, list(steps), rotation=30, ha="right", rotation_mode="anchor")
        axes.tick_params(labelbottom=True)
        percent_axis(axes)
        title(axes, name, note=f"n = {seeds}")
    return figure
