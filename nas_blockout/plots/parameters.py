"""Figures of searched parameters: their importance, and parallel coordinates of the trials.

References:
    Inselberg. The Plane with Parallel Coordinates. The Visual Computer 1, 1985.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_blockout.plots.style.canvas import (
    NARROW,
    Array,
    bare,
    canvas,
    clean,
    panel,
    shorten,
    size_of,
    text_width,
)
from nas_blockout.plots.style.theme import FONT, GRID, INK, LOST, MUTED, SMALL, style_of, styled
from nas_blockout.serialization import count_of

_ROW, _NAMES, _NAME = 14.0, 138.0, 78.0
_TINY = 7.0
_LOG = 20.0  # positive values that differ by more than this factor are drawn on a logarithmic axis
_BEST = 0.25  # share of the trials in bold, the same as for the importance of parameters
MOST_LINES = 300  # of an arm in parallel coordinates: the best trials

Value = float | int | bool | str | None


@dataclass(frozen=True, slots=True)
class Importances:
    """Importance of the parameters of an arm: for each its share, and the largest share that chance alone gave."""

    arm: str
    role: str
    trials: int
    shares: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Searched:
    """The trials of an arm's search.

    Args:
        arm: Name of the arm.
        role: Role of the arm.
        parameters: For each parameter its value in each trial, None for trials without this parameter.
        scores: Validation accuracy of each trial, NaN for failed trials.
    """

    arm: str
    role: str
    parameters: Mapping[str, Sequence[Value]]
    scores: Sequence[float]


@styled
def figure_importance(arms: Sequence[Importances]) -> Figure:
    """Draw one bar per parameter under each arm, filled if it exceeds the level of chance (the vertical line)."""
    rows: list[tuple[Importances, str | None]] = []
    for arm in arms:
        rows += [(arm, None), *((arm, name) for name in arm.shares)]
    figure = canvas(NARROW, 4 + _ROW * len(rows) + 32)
    axes = panel(figure, (_NAMES, 4, NARROW - _NAMES - 34, _ROW * len(rows)))
    for row, (arm, name) in enumerate(rows):
        if name is not None:
            _bar(axes, row, style_of(arm.role).color, *arm.shares[name])
        else:
            _headed(axes, row, arm)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(rows)), [shorten(name or "", _NAMES - 8, SMALL) for _, name in rows], size=SMALL)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the importance (%)", labelpad=2)
    return figure


def _headed(axes: Axes, row: int, arm: Importances) -> None:
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    # Names of arms begin at the left edge of the figure, which is at a negative share of the panel.
    left = -(_NAMES - 4) / (NARROW - _NAMES - 34)
    axes.text(left, row, shorten(arm.arm, NARROW - 80), size=FONT, weight="bold", **at)
    axes.text(1.16, row, count_of(arm.trials, "trial"), size=SMALL, color=MUTED, ha="right", **at)


def _bar(axes: Axes, row: int, color: str, share: float, by_chance: float) -> None:
    shown = share > by_chance
    axes.barh(row, share, height=0.55, color=color if shown else "none", edgecolor=color if shown else MUTED, lw=0.8)
    axes.plot([by_chance] * 2, [row - 0.42, row + 0.42], color=INK, lw=1.3)
    axes.text(1.02, row, f"{100 * share:.0f}", transform=axes.get_yaxis_transform(), va="center", size=SMALL)


def limits_of(searches: Sequence[Searched]) -> tuple[float, float]:
    """Return the smallest and the largest accuracy of all trials, kept at least 0.001 apart."""
    known = [score for search in searches for score in search.scores if not math.isnan(score)] or [0.0]
    return min(known), max(max(known), min(known) + 1e-3)


@styled
def figure_parallel(searches: Sequence[Searched], *, limits: tuple[float, float] | None = None) -> Figure:
    """Draw one panel per arm: each trial as a line through its parameters to its accuracy, the best quarter in bold.

    Numeric axes run from the smallest to the largest value tried, on a logarithmic scale if these are far apart;
    categorical and Boolean values are in alphabetical order. A failed trial is a dashed line that ends before the
    accuracy axis.

    Args:
        searches: One per arm.
        limits: Limits of the accuracy axis, to give several figures the same scale; by default, those of the trials.
    """
    height = 146.0
    figure = canvas(NARROW, height * len(searches))
    firsts = [_last_parts(list(search.parameters))[0] for search in searches]
    # The first label leans to the left, by 22 degrees: it is almost as wide as it is long.
    left = max(26.0, *(0.95 * text_width(shorten(name, _NAME, SMALL), SMALL) for name in firsts)) + 4
    for number, search in enumerate(searches):
        axes = panel(figure, (left, number * height + 26, NARROW - left - 32, 70))
        _lines(axes, search, limits or limits_of(searches))
    return figure


def _lines(axes: Axes, search: Searched, limits: tuple[float, float]) -> None:
    names, scores = list(search.parameters), np.asarray(search.scores, dtype=np.float64)
    columns = [_spread(values) for values in search.parameters.values()]
    low, high = limits
    places = np.column_stack([*(place for place, _, _ in columns), (scores - low) / (high - low)])
    bare(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.vlines(range(len(names) + 1), 0, 1, color=GRID, lw=1)
    # The best last, so that they are in front; of more trials than are drawn the worst are left out, failed ones first.
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    bold = np.nanquantile(scores, 1 - _BEST)
    for trial in order[-MOST_LINES:].tolist():
        axes.plot(range(len(names) + 1), places[trial], **_style(search.role, scores[trial], bold))
    axes.set_xlim(-0.02, len(names) + 0.02)
    axes.set_ylim(0, 1)
    ends = [(lowest, highest) for _, lowest, highest in columns] + [(f"{100 * low:.1f}", f"{100 * high:.1f}")]
    _named_axes(axes, [*_last_parts(names), "accuracy (%)"], ends)
    width = size_of(axes)[0]
    left = (NARROW - 32 - width) / width  # the margin as a share of the panel, which is 70 points high
    axes.text(4 / width - left, 1 + 15 / 70, shorten(search.arm, 200), transform=axes.transAxes, size=FONT)
    axes.text(
        1 + 28 / width, 1 + 15 / 70, count_of(len(scores), 'trial'), transform=axes.transAxes, size=SMALL, color=MUTED,
        ha="right",
    )  # fmt: skip


def _last_parts(names: Sequence[str]) -> list[str]:
    """Return the part of each name after its last dot, or the whole name if that part is not unique."""
    short = [clean(name).rpartition(".")[2] for name in names]
    return [part if short.count(part) == 1 else clean(name) for part, name in zip(short, names, strict=True)]


def _style(role: str, score: float, bold: float) -> dict[str, Any]:
    if math.isnan(score):
        return {"color": LOST, "lw": 0.9, "ls": (0, (3, 2)), "alpha": 0.8}
    return {"color": style_of(role).color, "lw": 1.6} if score >= bold else {"color": MUTED, "lw": 0.7, "alpha": 0.55}


def _named_axes(axes: Axes, names: Sequence[str], ends: Sequence[tuple[str, str]]) -> None:
    pitch = size_of(axes)[0] / max(len(names) - 1, 1)
    for column, (name, (low, high)) in enumerate(zip(names, ends, strict=True)):
        for text, y, va in ((low, -3 / 70, "top"), (high, 1 + 3 / 70, "bottom")):
            axes.text(column, y, shorten(text, max(pitch - 3, 20), _TINY), size=_TINY, color=MUTED, ha="center", va=va)
        axes.text(
            column + 0.06, -15 / 70, shorten(name, _NAME, SMALL), size=SMALL, color=INK, ha="right", va="top",
            rotation=22, rotation_mode="anchor",
        )  # fmt: skip


def _spread(values: Sequence[Value]) -> tuple[Array, str, str]:
    """Return the positions of values in [0, 1], NaN for missing ones, and the labels of the two ends."""
    known = [value for value in values if value is not None]
    if not known:
        return np.full(len(values), np.nan), "", ""
    if any(isinstance(value, bool | str) for value in known):
        words = sorted({clean(str(value)) for value in known})
        step = 1 / max(len(words) - 1, 1)
        positions = [math.nan if v is None else words.index(clean(str(v))) * step for v in values]
        return np.array(positions), words[0], words[-1] if len(words) > 1 else ""
    numbers = np.array([math.nan if value is None else float(value) for value in values])
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    # Values come without the scale on which they were searched; how far they lie apart tells enough.
    if low > 0 and high > _LOG * low:
        scaled = (np.log(numbers) - math.log(low)) / (math.log(high) - math.log(low))
    else:
        scaled = (numbers - low) / (high - low) if high > low else np.where(np.isnan(numbers), np.nan, 0.5)
    return scaled, _number(low), _number(high) if high > low else ""


def _number(value: float) -> str:
    text = f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text
